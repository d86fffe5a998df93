"""Why a service failed, what it needs before it starts, and its story: explain, status, events."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import GENERIC, Spm, eventually, nasty
from hypothesis import given, settings
from hypothesis import strategies as st

import simple_process_manager as program

PY = sys.executable
NGINX = """daemon off; master_process off; pid {0}/nginx.pid; error_log stderr; events {{}}
http {{ access_log off; server {{ listen 127.0.0.1:{1}; }} }}
"""


@pytest.fixture
def held() -> Iterator[int]:
    """A port that this process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def cause(argv: list[str], cwd: Path, **env: str) -> program.Cause:
    """What a program's real end and real output are recognised as."""
    if not shutil.which(argv[0]):
        pytest.skip(f"{argv[0]} isn't installed")
    pipe, together = subprocess.PIPE, subprocess.STDOUT
    done = subprocess.run(
        argv, cwd=cwd, env={**os.environ, **env}, stdout=pipe, stderr=together, timeout=30
    )
    code = done.returncode
    name = signal.Signals(-code).name if code < 0 else None
    ended = program.Exit(time.time(), None if name else code, name)
    assert code, f"{argv} succeeded: {done.stdout!r}"
    return program.cause_of(ended, program.as_lines(done.stdout))


SCRIPTS = [
    ("command_not_found", ["sh", "-c", "nosuchcommand --x"], "nosuchcommand"),
    ("command_not_found", ["bash", "-c", "nosuchcommand"], "nosuchcommand"),
    ("command_not_found", ["sh", "-c", "exit 127"], "exit code 127"),
    ("permission_denied", ["sh", "-c", "touch f; ./f"], "ermission denied"),
    ("permission_denied", ["sh", "-c", "exit 126"], "exit code 126"),
    ("missing_module", [PY, "-c", "import nosuch.thing"], "No module named 'nosuch'"),
    (
        "needs_terminal",
        [PY, "-c", "import os; os.close(0); os.open('/dev/null', 0); input()"],
        "EOF",
    ),
    ("needs_terminal", ["sh", "-c", "echo 'top: failed tty get' >&2; exit 1"], "failed tty get"),
    ("needs_terminal", ["sh", "-c", "stty </dev/null"], "Inappropriate ioctl"),
    ("missing_module", [PY, "-m", "nosuch"], "No module named nosuch"),
    ("missing_module", [PY, "-c", "from os import nosuch"], "cannot import name 'nosuch'"),
    ("missing_module", [PY, "nosuch.py"], "can't open file"),
    ("missing_module", [PY, "-m", "uvicorn", "nosuch:app"], 'Could not import module "nosuch"'),
    ("missing_attribute", [PY, "-m", "uvicorn", "os:nosuch"], 'Attribute "nosuch" not found'),
    ("missing_module", ["node", "-e", "require('nosuch')"], "Cannot find module 'nosuch'"),
    ("missing_module", ["node", "nosuch.js"], "Cannot find module"),
    ("missing_module", ["node", "--input-type=module", "-e", "import 'nosuch'"], "package 'nosuch"),
    ("syntax_error", [PY, "-c", "def f(:"], "SyntaxError"),
    ("syntax_error", [PY, "-c", "if 1:\nx"], "IndentationError"),
    ("syntax_error", ["node", "-e", "const x = ;"], "SyntaxError: Unexpected token"),
    ("syntax_error", ["sh", "-c", "if ; then"], "yntax error"),
    ("syntax_error", ["bash", "-c", "if ; then"], "syntax error near"),
    ("missing_variable", [PY, "-c", "import os; os.environ['DB_URL']"], ": DB_URL"),
    ("missing_variable", ["sh", "-c", "echo ${DB_URL:?}"], ": DB_URL"),
    ("missing_variable", ["sh", "-uc", "echo $DBURL"], ": DBURL"),
    ("missing_variable", ["bash", "-uc", "echo $DBURL"], ": DBURL"),
    ("missing_variable", ["bash", "-c", "echo ${DB_URL:?what a pity}"], ": DB_URL"),
    ("missing_variable", ["node", "-e", "throw new Error('DB_URL is not set')"], ": DB_URL"),
    (
        "missing_variable",
        ["node", "-e", "throw 'DB_URL environment variable is required'"],
        ": DB_URL",
    ),
    (
        "missing_variable",
        ["node", "-e", "throw Error('Missing required environment variable: DB_URL')"],
        ": DB_URL",
    ),
    (
        "connection_refused",
        [PY, "-c", "import socket as s; s.create_connection(('::1', 1))"],
        "111",
    ),
    (
        "connection_refused",
        ["node", "-e", "require('net').connect(1, '127.0.0.1')"],
        "ECONNREFUSED",
    ),
    ("connection_refused", ["redis-cli", "-p", "1", "ping"], "Could not connect to Redis"),
    ("connection_refused", ["psql", "-h", "127.0.0.1", "-p", "1"], "Connection refused"),
    ("disk_full", [PY, "-c", "open('/dev/full', 'wb', 0).write(b'x')"], "No space left on device"),
    ("disk_full", ["node", "-e", "require('fs').writeFileSync('/dev/full', 'x')"], "ENOSPC"),
    ("out_of_memory", ["sh", "-c", f"ulimit -v 400000; {PY} -c 'bytearray(10**9)'"], "MemoryError"),
    (
        "out_of_memory",
        ["node", "--max-old-space-size=20", "-e", "a=[]; for(;;) a.push(Array(1e5).fill(1.5))"],
        "heap out of memory",
    ),
    ("killed_by_signal", ["sh", "-c", "kill -SEGV $$"], "killed by SIGSEGV"),
    ("killed_by_signal", ["sh", "-c", "kill -KILL $$"], "which nobody here sent: out of memory?"),
    ("killed_by_signal", ["sh", "-c", "sh -c 'kill -SEGV $$'; exit $?"], "exit code 139"),
    ("unknown", ["sh", "-c", "echo no idea; exit 3"], "exit code 3; it last wrote: no idea"),
    ("unknown", ["sh", "-c", "exit 3"], "exit code 3; it wrote nothing"),
]


@pytest.mark.parametrize(("kind", "argv", "told"), SCRIPTS)
def test_what_a_real_program_says_is_recognised(
    kind: str, argv: list[str], told: str, tmp_path: Path
) -> None:
    found = cause(argv, tmp_path)
    assert (found.kind, told in found.message) == (kind, True), found
    assert found.advice, "each has a sentence of advice"
    is_file = argv[-1] in ("nosuch.py", "nosuch:app", "nosuch.js")
    assert (found.advice == program.NO_FILE) == is_file
    assert found.message.startswith("missing file or module: ") == is_file


@pytest.mark.parametrize(
    ("code", "line", "told", "advice"),
    [
        (1, 'npm error Missing script: "dev"', "missing script: npm error Missing", "`npm run`"),
        (254, "npm error enoent Could not read package.json: Error: …", "missing file or", "--cwd"),
        (127, "/bin/sh: 1: source: not found", "command not found: /bin/sh: 1: ", "write . FILE"),
    ],
)
def test_npm_in_another_directory_and_source_in_sh_got_advice_that_led_nowhere(
    code: int, line: str, told: str, advice: str
) -> None:
    found = program.cause_of(program.Exit(0.0, code), [line, "npm error"])
    assert found.message.startswith(told) and advice in found.advice, found


def test_a_held_port_is_recognised_whoever_says_so(held: int, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("async def app(*_): pass\n")
    (tmp_path / "nginx.conf").write_text(NGINX.format(tmp_path, held))
    listen = f"require('http').createServer().listen({held}, '127.0.0.1')"
    for argv in (
        [PY, "-m", "http.server", str(held), "--bind", "127.0.0.1"],
        [PY, "-m", "uvicorn", "app:app", "--port", str(held)],
        ["redis-server", "--port", str(held), "--bind", "127.0.0.1"],
        ["nginx", "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path)],
        ["node", "-e", listen],
    ):
        if shutil.which(argv[0]):
            found = cause(argv, tmp_path)
            assert (found.kind, found.retryable) == ("address_in_use", True), found
            assert argv[0] != "node" or found.message.endswith(f":{held}"), "the line with the port"


def test_a_missing_setting_of_pydantic_is_named_without_its_values(tmp_path: Path) -> None:
    pytest.importorskip("pydantic")
    code = "import pydantic\nclass Settings(pydantic.BaseModel):\n  db_url: str\n  key: str\n"
    found = cause([PY, "-c", code + "Settings(key='s3cr3t')"], tmp_path)
    assert (found.kind, found.message) == ("missing_variable", "missing variable: db_url")


@pytest.mark.parametrize(
    "argv",
    [
        [PY, "-c", "import urllib.request as u; u.urlopen('http://{}')"],
        [PY, "-c", "import urllib.request as u; u.urlopen('https://{}')"],
        ["node", "-e", "require('http').get('http://{}')"],
        ["curl", "-sS", "http://{}"],
    ],
)
def test_a_server_of_another_protocol_is_recognised(argv: list[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(b"-ERR unknown command 'GET'\r\n")

        threading.Thread(target=answer, daemon=True).start()
        where = f"127.0.0.1:{server.getsockname()[1]}"
        found = cause([word.replace("{}", where) for word in argv], tmp_path)
    assert found.kind == "protocol_error", found


@pytest.mark.parametrize(
    "argv",
    [
        [PY, "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:{}', timeout=0.1)"],
        ["curl", "-sS", "--max-time", "0.1", "http://127.0.0.1:{}"],
    ],
)
def test_a_server_that_never_answers_is_recognised(
    held: int, argv: list[str], tmp_path: Path
) -> None:
    found = cause([word.replace("{}", str(held)) for word in argv], tmp_path)
    assert (found.kind, found.retryable) == ("timeout", True), found


def test_an_old_remark_in_the_log_does_not_explain_a_signal() -> None:
    lines = ["connection refused, trying again", "served 1000 requests"]
    assert program.cause_of(program.Exit(0.0, None, "SIGSEGV"), lines).kind == "killed_by_signal"
    beyond = [*lines[:1], *["served"] * program.CAUSE_LINES]
    assert program.cause_of(program.Exit(0.0, 1), beyond).kind == "unknown"
    harmless = ["ERROR: missing cache", "LIMIT_MAX set to 10", "INFO required"]
    assert program.cause_of(program.Exit(0.0, 1), harmless).kind == "unknown"


ENDS = [
    *(program.Exit(1.0, code) for code in (None, *range(256))),
    *(program.Exit(1.0, errno=code) for code in range(1, 140)),
    *(
        program.Exit(1.0, None, name, oom=oom)
        for name in ("SIGKILL", "SIGHUP")
        for oom in (False, True)
    ),
]


@settings(max_examples=50, deadline=None, database=None)
@given(st.sampled_from(ENDS), st.lists(st.text()))
def test_every_end_has_one_cause_with_advice(ended: program.Exit, lines: list[str]) -> None:
    found = program.cause_of(ended, lines)
    assert found.kind in program.CAUSE_ADVICE and found.message and len(found.message) <= 300
    assert {kind for kind, _, _ in program.RECOGNISERS} == set(program.CAUSE_ADVICE)
    assert set(program.RETRYABLE.split()) < set(program.CAUSE_ADVICE)


@pytest.mark.parametrize(
    "piece", ["missing env ", "A_", "token", "a@", "://x:", "TOKEN ", "0_", "K: ", "\"'", "x="]
)
def test_hostile_output_does_not_hold_up_the_supervisor(piece: str) -> None:
    lines = [piece * 1000] * program.CAUSE_LINES
    began = time.process_time()
    program.cause_of(program.Exit(0.0, 1), lines)
    for line in lines[:20]:
        program.masked_line(line)
    assert time.process_time() - began < 2.0


SECRETS = [
    "API_TOKEN=s3cr3t99",
    "export DB_PASSWORD='s3cr3t99 with blanks'",
    '{"client_secret": "s3cr3t99"}',
    "X-Api-Key: s3cr3t99",
    "Authorization: Bearer s3cr3t99.aaa-bbb",
    "connecting to postgres://app:s3cr3t99@db:5432/app",
    "mysql://app:s3cr3t99@x@db/app",
    "tool --password s3cr3t99 --verbose",
    "using key sk-s3cr3t99abcdefgh",
    "cloned with ghp_s3cr3t99abcdefghijkl",
    "AKIAs3cr3t99ABCDEFGH found",
    "the token s3cr3t99aGVsbG8gd29ybGQgaGVsbG8 was refused",
    "DB_PASS=s3cr3t99",
    "passphrase: s3cr3t99",
    r'{"password": "a \" s3cr3t99"}',
    "password='it is s3cr3t99 and the line ends here",
    "tool --password 'it is s3cr3t99' --verbose",
    """DB_PASSWORD='it'"'"'s s3cr3t99'""",
]


@pytest.mark.parametrize("line", SECRETS)
def test_what_looks_like_a_secret_is_masked(line: str) -> None:
    assert "s3cr3t99" not in program.mask_secrets(line), program.mask_secrets(line)
    assert "…" in program.mask_secrets(line)


def test_a_long_secret_in_quotes_was_shown_where_the_line_was_cut_inside_it() -> None:
    line = f'private_key="{"s3cr3t99" * 50}"'
    assert program.masked_line(line) == "private_key=…"


@pytest.mark.parametrize(
    "line",
    [
        "INFO: Uvicorn running on http://127.0.0.1:8000 (Press CTRL+C to quit)",
        "GET http://localhost:5173/@vite/client 200",
        "API_TOKEN: not set here",
        "KeyError: 'API_TOKEN'",
        "author@example.com wrote 3 tokens",
    ],
)
def test_what_is_no_secret_stays_legible(line: str) -> None:
    assert program.mask_secrets(line) == line


# -- where a failure is reported


def failed(spm: Spm, name: str, *words: object) -> dict[str, Any]:
    """The status of a service after it was started and has failed."""
    spm("start", name, *words)
    eventually(lambda: spm.service(name)["status"] == "failed", what="its end")
    return spm.json("status", name, code=3)


@pytest.mark.smoke
def test_wait_and_status_tell_the_cause_and_what_to_do(spm: Spm) -> None:
    advice = failed(spm, "file", PY, "nosuch.py")["cause"]["advice"]
    assert advice == f"no such file or module below {spm.cwd.resolve()}: check --cwd and the name"
    spm("start", "api", "--", PY, "-m", "nosuch")
    error = spm.json("wait-healthy", "api", 10, code=1)["error"]
    assert error["cause"]["kind"] == "missing_module" and error["cause"]["retryable"] is False
    told = spm("wait-healthy", "api", 10, code=1).stderr
    assert f"cause: missing module: {PY}: No module named nosuch" in told
    assert "→ install it" in told
    other = 'start api "CORRECTED COMMAND"'
    again = f"mend the cause, then: restart api (or, if the command is wrong: {other})"
    assert error["advice"] == again
    after = spm.json("explain", "api")["next"][2:]
    assert after == ["restart api", f"{other} (if the command is wrong)"]
    assert spm.json("status", "api", code=3)["cause"] == error["cause"]
    for words, code in ((("status", "api"), 3), (("explain", "api"), 0)):
        told = spm(*words, code=code).stdout
        line = next(line for line in told.splitlines() if line.startswith("cause:"))
        assert line.split(maxsplit=1)[1] == error["cause"]["message"]
        assert f"\n  → {error['cause']['advice']}\n" in told and "retryable" not in told


def test_a_command_that_cannot_be_executed_has_a_cause_at_once_and_later(spm: Spm) -> None:
    error = spm.json("start", "api", "nosuchprogram", code=4)["error"]
    assert error["cause"]["kind"] == "command_not_found"
    status = spm.json("status", "api", code=3)
    assert status["cause"]["kind"] == "command_not_found" and status["exit"]["errno"] == 2
    (spm.cwd / "tool").write_text("x")
    spm("start", "tool", "./tool", code=4)
    assert spm.json("status", "tool", code=3)["cause"]["kind"] == "permission_denied"
    assert spm.json("explain", "tool")["exits"][0]["cause"] == "permission_denied"


def test_a_held_port_names_its_holder_and_later_that_it_is_free(spm: Spm) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        status = failed(spm, "web", f"{PY} -m uvicorn json:loads --port {port}")
        assert f"port {port} is held by pid {os.getpid()}" in status["cause"]["message"]
        assert f"pid {os.getpid()}" in spm.json("explain", "web")["port_state"]
        way = "or put {port} into the command and add --port auto"
        assert status["cause"]["advice"].endswith(way)
    assert f"port {port} is free" in spm.json("status", "web", code=3)["cause"]["message"]


def test_a_success_and_a_stop_have_no_cause(spm: Spm) -> None:
    spm("start", "done", nasty("--exit", 0))
    spm("start", "web", nasty())
    assert spm.json("status", "web")["cause"] is None
    spm("stop", "web", "--force")
    eventually(lambda: spm.service("done")["status"] == "exited", what="its end")
    for name in ("web", "done"):
        assert spm.json("status", name, code=3)["cause"] is None
        assert spm.json("explain", name)["exits"] == []


# -- exits that are kept


def test_the_last_20_failed_exits_are_kept_over_instances(spm: Spm) -> None:
    failed(spm, "api", nasty("--exit", 7, "--say", "API_TOKEN=s3cr3t99"))
    store = program.Store(str(spm.home))
    kept = store.failed_exits("api")
    assert [one["code"] for one in kept] == [7] and "API_TOKEN=…" in str(kept[0])
    path = store.path("api", "exits.jsonl")
    assert "s3cr3t99" not in Path(path).read_text("utf-8")
    worst = {**kept[0], "log_tail": ["\u0100" * 200] * 20}
    for number in range(200):  # the longest possible: the file loses its older half on the way
        program.append_line(path, {**worst, "code": number})
    failed(spm, "api", nasty("--exit", 8), "--replace")
    exits = spm.json("explain", "api")["exits"]
    assert [one["code"] for one in exits] == [8, *range(199, 180, -1)]
    assert exits[0]["lived_s"] > 0 and exits[0]["cause"] == "unknown"
    assert len(spm("explain", "api").stdout.splitlines()) <= 60
    spm("cleanup")
    failed(spm, "api", nasty("--exit", 9))
    assert len(spm.json("explain", "api")["exits"]) == 1, "forgotten is forgotten"


def test_a_silent_end_was_explained_by_what_the_instance_before_it_had_written(spm: Spm) -> None:
    words = "test -e flag && exit 3; touch flag; echo No module named x; exit 1"
    once = ("--restart", "on-failure", "--max-restarts", 1, "--backoff", "1ms", "--cooldown", "0")
    spm("start", "api", "--shell", words, *once)
    eventually(lambda: spm.service("api")["status"] == "failed", what="its second end")
    page = spm.json("explain", "api")
    assert [one["cause"] for one in page["exits"]] == ["unknown", "missing_module"]
    assert [one["log_tail"] for one in page["exits"]] == [[], ["No module named x"]]
    assert page["cause"]["message"] == "exit code 3; it wrote nothing"
    assert page["log_tail"] == ["No module named x"], "the log has both"


def test_what_failed_again_and_again_had_no_cause_while_it_waited_to_restart(spm: Spm) -> None:
    words = "ModuleNotFoundError: No module named 'nosuchmodule'"
    (spm.cwd / "broken.py").write_text(f'raise SystemExit("{words}")')
    options = ("--restart", "on-failure", "--backoff", "100ms", "--wait", "1")
    late = spm("start", "bk", f"{PY} -S broken.py", *options, code=124).stderr
    assert re.search(
        r"bk did not become healthy in 1.00 s .*; it ended [2-9] times since its", late
    )
    told = f"missing module: {words}\n  → install it"
    assert told in late
    # between two backoffs it runs for a moment
    eventually(lambda: f"cause:        {told}" in spm("explain", "bk").stdout, what="the cause")
    ends = "  restart bk\n  stop bk\n"
    eventually(lambda: spm("explain", "bk").stdout.endswith(ends), what="what to do")
    kind = "missing_module"
    eventually(lambda: (spm.json("status", "bk")["cause"] or {"kind": ""})["kind"] == kind)
    spm("stop", "bk")
    assert spm.json("explain", "bk")["cause"] is None


def test_what_lives_on_without_its_worker_was_explained_by_nothing(spm: Spm, port: int) -> None:
    script = "import sys, time; sys.stderr.write(sys.argv[1]); time.sleep(99)"
    argv = ["--port", str(port), "--", PY, "-S", "-c", script]
    spm("start", "app", *argv, "old: ModuleNotFoundError: No module named 'old'\n")
    spm("start", "app", "--replace", *argv, "ModuleNotFoundError: No module named 'new'\n")
    told = "its last lines look like: missing module: ModuleNotFoundError: No module named 'new'"
    eventually(lambda: "new" in spm.log("app"))
    late = spm("wait-healthy", "app", "0.2", code=124).stderr
    assert f"  cause: {told}\n  → install it" in late
    assert f"cause:        {told}\n  → install it" in spm("explain", "app").stdout
    assert spm.json("explain", "app")["cause"]["guess"] is True
    spm("start", "app", "--replace", *argv, "all is well\n")
    eventually(lambda: "well" in spm.log("app"))
    assert "cause:" not in spm("wait-healthy", "app", "0.2", code=124).stderr
    assert spm.json("explain", "app")["cause"] is None, "an earlier instance wrote that"
    spm("stop", "app")


def test_after_somebody_emptied_the_log_a_failure_was_explained_by_nothing(spm: Spm) -> None:
    words = "test -e flag || { touch flag; seq 9999; exit 1; }; cat fifo; echo No module named x"
    os.mkfifo(spm.cwd / "fifo")
    once = ("--restart", "on-failure", "--max-restarts", 1, "--backoff", "1ms", "--cooldown", "0")
    spm("start", "api", "--shell", f"{words}; exit 3", *once)
    eventually(lambda: spm.service("api")["restarts"] == 1, what="its second instance")
    os.truncate(spm.json("status", "api")["log"], 0)
    (spm.cwd / "fifo").write_text("")
    eventually(lambda: spm.service("api")["status"] == "failed", what="its second end")
    page = spm.json("explain", "api")
    assert page["exits"][0]["cause"] == page["cause"]["kind"] == "missing_module"


def test_after_the_emptied_log_outgrew_what_it_had_only_a_part_of_it_explained(spm: Spm) -> None:
    words = "test -e flag || { touch flag; seq 20; exit 1; }; cat fifo; echo No module named x"
    os.mkfifo(spm.cwd / "fifo")
    once = ("--restart", "on-failure", "--max-restarts", 1, "--backoff", "1ms", "--cooldown", "0")
    command = f"{words}; printf '%080d' 0; exit 3"
    spm("start", "api", "--sample-interval", "50ms", *once, "--shell", command)
    eventually(lambda: spm.service("api")["restarts"] == 1, what="its second instance")
    samples = spm.home / "services/api/metrics.jsonl"
    eventually(lambda: samples.read_text().count('"size": 51') > 1, what="a look at its log")
    os.truncate(spm.json("status", "api")["log"], 0)
    eventually(lambda: '"start": 51' in samples.read_text(), what="its supervisor to see that")
    (spm.cwd / "fifo").write_text("")
    eventually(lambda: spm.service("api")["status"] == "failed", what="its second end")
    page = spm.json("explain", "api")
    assert page["exits"][0]["cause"] == page["cause"]["kind"] == "missing_module"


def test_a_core_dump_is_known(spm: Spm) -> None:
    with open("/proc/sys/kernel/core_pattern", encoding="utf-8") as file:
        if file.read(1) in "|/":
            pytest.skip("core files go elsewhere on this system")
    limit = "ulimit -c unlimited && kill -SEGV $$"
    if cause(["sh", "-c", f"{limit}; exit 1"], spm.cwd).kind != "killed_by_signal":
        pytest.skip("no core files here")
    status = failed(spm, "api", "--shell", limit)
    assert status["exit"]["core"] is True and status["cause"]["kind"] == "killed_by_signal"
    assert status["cause"]["message"] == "killed by SIGSEGV, core dumped"


@pytest.mark.skipif(GENERIC, reason="only Linux tells whom it ended for want of memory")
def test_a_kill_by_the_kernel_for_want_of_memory_is_told_from_a_guess(spm: Spm) -> None:
    group = Path(f"/sys/fs/cgroup/memory/spm-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no memory cgroup can be made here")
    try:
        (group / "memory.limit_in_bytes").write_text(str(64 * 2**20))
        eat = "a = bytearray(10**9)"
        start = [*spm.argv("start", "hog"), "--", PY, "-c", eat]
        script = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        subprocess.run(
            ["sh", "-c", script, str(group), *start], env=spm.env, cwd=spm.cwd, check=True
        )
        eventually(lambda: spm.service("hog")["status"] == "failed", what="its end")
        status = spm.json("status", "hog", code=3)
        assert status["exit"]["oom"] is True and status["cause"]["kind"] == "out_of_memory"
        assert "killed by SIGKILL, out of memory" in spm("explain", "hog").stdout
        eventually(lambda: not spm.bearers(), what="the supervisor's end")
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text(), what="an empty cgroup")
        group.rmdir()
    status = failed(spm, "web", nasty("--signal", 9))
    assert status["exit"]["oom"] is False
    assert "which nobody here sent: out of memory?" in status["cause"]["message"]


@pytest.mark.skipif(GENERIC, reason="only Linux tells whom it ended for want of memory")
def test_an_old_kill_of_another_one_in_the_cgroup_explains_nothing(spm: Spm) -> None:
    """As in a container with cgroup v2: its memory.events counts what any process there meets."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        groups = [line.rstrip()[4:] for line in file if line.startswith("0::/")]
    counts = spm.base / "cgroup" / "".join(groups) / "memory.events"
    counts.parent.mkdir(parents=True)
    counts.write_text("oom 0\noom_kill 0\noom_group_kill 0\n")
    script = 'mount --bind "$0" /sys/fs/cgroup && exec "$@"'
    words = ["unshare", "-m", "sh", "-c", script, str(spm.base / "cgroup")]
    if not groups or not shutil.which("unshare") or subprocess.run([*words, "true"]).returncode:
        pytest.skip("no file can be put in the place of the kernel's here")
    for name, interval in (("new", "1m"), ("old", "100ms")):  # how long a kill counts as new
        start = spm.argv("start", name, "sleep 100", "--sample-interval", interval)
        subprocess.run([*words, *start], env=spm.env, cwd=spm.cwd, check=True)
    counts.write_text("oom 1\noom_kill 1\noom_group_kill 0\n")
    path = spm.home / "services" / "old" / "metrics.jsonl"
    ended_by(spm, "new", signal.SIGKILL)
    assert spm.service("new")["exit"]["oom"] is True
    count = len(path.read_text().splitlines())
    eventually(lambda: len(path.read_text().splitlines()) > count + 2, what="more samples")
    ended_by(spm, "old", signal.SIGKILL)
    assert spm.service("old")["exit"]["oom"] is False


def ended_by(spm: Spm, name: str, number: int) -> None:
    """Send a signal to a service that ends it."""
    os.kill(spm.service(name)["pid"], number)
    eventually(lambda: spm.service(name)["status"] == "failed", what="its end")


# -- explain


def test_explain_is_one_page_without_secrets_and_control_characters(spm: Spm) -> None:
    text = "\n".join(f"line {n} \x1b[31mred\x07 API_KEY=s3cr3t99" for n in range(300))
    code = f"print({text!r}); raise SystemExit(3)"
    code = "\n" * 60 + code  # a command of many lines takes one
    failed(spm, "api", "--env", "TOKEN=s3cr3t99", "--", PY, "-c", code)
    page = spm("explain", "api").stdout
    lines = page.splitlines()
    assert len(lines) <= 60 and "s3cr3t99" not in page and "\x1b" not in page and "\x07" not in page
    assert "  | line 299 \\x1b[31mred\\x07 API_KEY=…" in lines
    for part in ("name:", "api", "status:", "failed", "since:", "cause:", "exits:", "TOKEN"):
        assert part in page
    assert lines[-4:-1] == ["  logs api -n 100", "  events api", "  restart api"]
    document = spm.json("explain", "api")
    assert document["environment"] == {"TOKEN": "--env"} and "s3cr3t99" not in json.dumps(document)


def test_explain_of_what_runs_names_its_ports(spm: Spm, port: int) -> None:
    spm("start", "web", nasty("--port", port), "--port", port)
    spm("wait-healthy", "web")
    page = spm.json("explain", "web")
    assert (page["status"], page["listens_on"], page["port_state"]) == ("running", [port], None)
    assert page["cause"] is None and "stop web" in page["next"]
    spm("stop", "web")
    spm("explain", "nobody", code=3)


def test_explain_led_to_a_restart_in_a_directory_that_is_gone(spm: Spm) -> None:
    there = spm.base / "there"
    there.mkdir()
    spm("start", "web", nasty(), "--cwd", there)
    spm("stop", "web")
    assert spm.json("explain", "web")["next"][-1] == "restart web"
    there.rmdir()
    after = spm.json("explain", "web")["next"][-2:]
    assert after[0] == f"make {there} anew (it is gone), then: restart web"
    assert after[1] == 'from the directory that it shall run in: start web "COMMAND" --replace'
    assert f"start it again: {after[0]}" in spm("status", "web", code=3).stderr
    spm("start", "web", nasty(), "--replace")
    spm("stop", "web")


# -- required variables


def test_every_missing_variable_is_told_at_once_before_anything_starts(spm: Spm) -> None:
    required = ("DB_URL", "EMPTY", "MODE=dev|prod", "PORT=\\d+", "GOOD=x.*", "TAKEN")
    options = [word for one in required for word in ("--require-env", one)]
    given_env = ("--env", "EMPTY=", "--env", "MODE=s3cr3t99", "--env", "GOOD=xyz")
    env = {**spm.env, "TAKEN": "s3cr3t99"}
    done = spm("start", "api", nasty(), *options, *given_env, "--port", 18999, code=6, env=env)
    asked = ("--env", "DB_URL", "--require-env", "DB_URL")
    assert spm("start", "api", nasty(), *asked, code=6).stderr.count("DB_URL is not set") == 1
    assert "DB_URL is not set; EMPTY is empty; MODE doesn't match dev|prod" in done.stderr
    assert "s3cr3t99" not in done.stderr and "PORT" not in done.stderr
    assert spm.json("list")["services"] == [] and not spm.bearers()
    spm("start", "api", nasty(), "--require-env", "MODE=(", code=2)
    spm("start", "api", nasty(), "--require-env", "=x", code=2)


def test_a_restart_reads_the_file_anew_and_fails_as_clearly(spm: Spm) -> None:
    file = spm.cwd / ".env"
    file.write_text("DB_URL=postgres://x\n")
    options = ("--env-file", ".env", "--require-env", "DB_URL=postgres://.*")
    spm("start", "api", nasty(), *options, "--env", "TOKEN=s3cr3t99", "--port", 18998)
    sources = {"DB_URL": "--env-file", "PORT": "--port", "TOKEN": "--env"}
    assert spm.record("api")["environment"] == sources
    journal = (spm.home / "services" / "api" / "events.jsonl").read_text("utf-8")
    assert json.loads(journal)["record"]["environment"] == sources
    assert "s3cr3t99" not in journal and "postgres://x" not in journal
    pid = spm.service("api")["pid"]
    file.write_text("DB_URL=mysql://s3cr3t99\n")
    done = spm("restart", "api", code=6)
    assert "DB_URL doesn't match postgres://.*" in done.stderr and "s3cr3t99" not in done.stderr
    assert spm.service("api")["pid"] == pid, "what runs was left alone"
    file.write_text("DB_URL=postgres://y\n")
    spm("restart", "api")
    spm("stop", "api")


# -- events

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (\w+) (\w+)(?:: (.*))?")


def told(text: str) -> list[tuple[str, ...]]:
    """(service, event, why) of each line."""
    found = [LINE.fullmatch(line) for line in text.splitlines()]
    assert all(found), text
    return [one.groups("") for one in found if one]


def test_events_tell_the_story_of_one_service_or_of_all(spm: Spm) -> None:
    assert spm.json("events")["events"] == []
    failed(spm, "api", nasty("--exit", 3))
    spm("start", "web", nasty())
    spm("stop", "web")
    one = [("api", "started", ""), ("api", "exited", "exit code 3")]
    assert told(spm("events", "api").stdout) == one
    stopping = ("web", "stopping", "stop was asked for")
    rest = [("web", "started", ""), stopping, ("web", "stopped", "stop was asked for")]
    assert told(spm("events").stdout) == [*one, *rest]
    assert told(spm("events", "-n", 1).stdout) == rest[-1:]
    assert spm.json("events", "api")["events"][1]["why"] == "exit code 3"
    spm("events", "nobody", code=3)


@pytest.mark.parametrize("words", [["logs", "web", "-f"], ["events", "-f"]])
def test_a_follower_that_can_not_read_any_more_ended_in_a_traceback(
    spm: Spm, words: list[str]
) -> None:
    spm("start", "web", "sh -c 'echo started; exec sleep 60'")
    follower = spm.popen(*words)
    assert follower.stdout and "started" in follower.stdout.readline()
    path, kept = spm.home / ("services" if "events" in words else "state.json"), spm.home / "kept"
    path.rename(kept)
    path.touch() if kept.is_dir() else path.mkdir()
    _, error = follower.communicate(timeout=10)
    path.unlink() if kept.is_dir() else path.rmdir()
    kept.rename(path)
    assert (follower.returncode, error.count("[ERROR] ")) == (9, 1), error
    assert str(path) in error and "→ " in error and "can't be written" not in error
    spm("stop", "web")


def test_events_are_followed_until_the_service_ends(spm: Spm) -> None:
    spm("start", "web", nasty())
    follower = spm.popen("events", "web", "-f", "--lines", 1)
    everything = spm.popen("events", "-f")
    try:
        for one in (follower, everything):
            assert one.stdout and "started" in one.stdout.readline()
        spm("stop", "web")
        text = follower.communicate(timeout=20)[0]
        assert [event for _, event, _ in told(text)] == ["stopping", "stopped"]
        assert everything.stdout and "stopping" in everything.stdout.readline()
        assert everything.poll() is None, "without a name it goes on"
    finally:
        for process in (follower, everything):
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
    spm("events", "-f", "--json", code=2)


@pytest.mark.parametrize("words", [["logs", "web", "-f"], ["events", "-f"], ["up", "--watch"]])
def test_a_follower_whose_reader_had_left_hung_until_there_was_more(
    spm: Spm, words: list[str]
) -> None:
    config = {"version": 1, "services": {"web": {"command": ["sh", "-c", "echo up; sleep 60"]}}}
    (spm.cwd / "spm.json").write_text(json.dumps(config))
    spm("up")
    eventually(lambda: spm.log("web"), what="output")
    follower = spm.popen(*words)
    assert follower.stdout and follower.stderr
    with follower.stderr:
        assert follower.stdout.readline()
        follower.stdout.close()  # as `| head -1` does
        try:
            assert follower.wait(timeout=5) == 141, follower.stderr.read()
        finally:
            follower.kill()
            follower.wait()
    spm("stop", "web")


def test_who_ignores_the_declared_port_is_told_so_and_not_sent_in_a_circle(
    spm: Spm, port: int
) -> None:
    fails = [sys.executable, "-c", "raise SystemExit('OSError: [Errno 98] Address already in use')"]
    done = spm("start", "api", "--port", port, "--wait", "5s", "--", *fails, code=1)
    assert f"→ it takes another port than {port}, which is free: write {{port}}" in done.stderr
    assert "--port auto" not in done.stderr
    assert f"than {port}, which is free" in spm("explain", "api").stdout
    done = spm("start", "other", "--wait", "5s", "--", *fails, code=1)
    assert "→ find the port in its last lines, then see who holds it" in done.stderr
    assert "port N" not in done.stderr
