"""An adversary: planted files, foreign users, hostile services, secrets that must not get out."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
from conftest import Spm, eventually, is_running, nasty

import simple_process_manager as program

CANARY = "the canary's own words\n"
SECONDS = 20.0  # for a command on hostile ground, on a busy machine; most take 0.1
MEMORY_BYTES = 400 << 20


def told(spm: Spm, *words: object) -> str:
    """All that a command says, with little memory and in little time, whatever comes of it."""
    began = time.monotonic()
    done = spm(*words, code=None, memory_bytes=MEMORY_BYTES)
    assert time.monotonic() - began < SECONDS, words
    assert done.returncode in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 124), f"{words}: {done}"
    return done.stdout + done.stderr


# What each command is called with where it isn't just the name of a service.
WORDS: dict[str, list[list[object]]] = {
    "start": [["api"], ["new", "sh -c 'exit 3'", "--start-seconds", "0.2"], ["--all-previous"]],
    "run": [["--timeout", "1", "--", "true"], ["--with", "api", "--timeout", "1", "--", "true"]],
    "stop": [["api", "--dry-run"], ["nosuch"]],
    "cleanup": [],  # at the end, by who needs it
    "end-session": [],
    "list": [[]],
    "wait-healthy": [["api", "200ms"]],
    "port": [["1"]],
    "alerts": [[], ["api"]],
    "events": [[], ["api"]],
    "call": [["api", "x", "--timeout", "200ms"]],
    "restart": [["nosuch"]],
    "notify": [["api", "alive"]],
    **{
        f"config {word}": [[]]
        for word in ("schema", "validate", "rules", "history", "show", "diff")
    },
    "config impact": [["spm.json"]],
    "config rollback": [["1", "--dry-run"]],
    "config export": [["-"]],
    "config import": [["spm.json"]],
    "up": [["--dry-run"], []],
    "down": [["conf"]],
    "export": [],  # the words of a command stay in it, README says so; no value of a variable does
    "init": [["--agent", "all", "--hooks"], ["--config"]],
}


LOOKS = [*([look, "api"] for look in ("status", "explain", "events", "alerts", "stats", "logs"))]


def looked_at(spm: Spm) -> str:
    """What the commands that read a service's files say."""
    return "\n".join(told(spm, *words) for words in (["list"], *LOOKS))


def everything_said(spm: Spm, *forms: str) -> str:
    """What all commands, new ones too, say of a service `api`, for people and as JSON."""
    said = []
    for name in program.COMMANDS:
        for words in WORDS.get(name, [["api"]]):
            line = [*name.split(), *words]
            said += [told(spm, *line, *form.split()) for form in forms or ("", "--json")]
    return "\n".join(said)


# -- what somebody planted


def link(path: Path, to: Path) -> None:
    """Put a symbolic link in a file's or directory's place."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(to)


def contents(directory: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def elsewhere(spm: Spm) -> Path:
    """A directory with files that nobody may read or write through a link."""
    path = spm.base / "elsewhere"
    (path / "api").mkdir(parents=True)
    for name in ("canary", "api/output.log", "api/lock", "api/events.jsonl", "api/env.json"):
        (path / name).write_text(CANARY)
    return path


@pytest.mark.parametrize("name", ["state.json", "lock", "services", "services/api", "cache"])
def test_a_link_planted_in_the_state_directory_is_refused_with_its_name(
    spm: Spm, elsewhere: Path, name: str
) -> None:
    spm("start", "api", "sleep 100")
    spm("stop", "api")
    before = contents(elsewhere)
    link(spm.home / name, elsewhere if "." not in name else elsewhere / "canary")
    for words in (["list"], ["start", "api", "sleep 100"], ["cleanup", "--purge"]):
        refused = spm(*words, code=9).stderr
        assert f"{spm.home / name} is a link" in refused and CANARY.strip() not in refused
    assert contents(elsewhere) == before


JOURNALS = ("output.log", "env.json", "events.jsonl", "metrics.jsonl", "exits.jsonl")
LINKED = {
    "files": (*JOURNALS, "output.log.1"),
    "locks": ("lock", "supervisor.lock", "control.sock"),
}


@pytest.mark.parametrize("kind", LINKED)
@pytest.mark.parametrize("supervised", [True, False])
def test_a_link_in_the_place_of_a_service_s_file_is_not_followed(
    spm: Spm, elsewhere: Path, kind: str, supervised: bool
) -> None:
    spm("start", "api", "sh -c 'echo hello; exec sleep 100'", "--env", "A=1", "--log-size", "1kB")
    (found,) = [one for one in spm.bearers() if one.cmdline() == ["sleep", "100"]]
    if not supervised:
        spm.kill_supervisor("api")
    before, directory = contents(elsewhere), spm.home / "services" / "api"
    (directory / "output.log").write_text("x" * 5000)
    for name in LINKED[kind]:
        link(directory / name, elsewhere / ("canary" if "log" in name else f"new-{name}"))
    for words in (["logs", "api"], ["list"], ["start", "api"], ["explain", "api"], ["stop", "api"]):
        assert CANARY.strip() not in told(spm, *words), words
    for name in LINKED[kind]:
        assert contents(elsewhere) == before, "nothing was written, nothing created"
        if (directory / name).is_symlink():
            (directory / name).unlink()
    for _ in range(2):
        told(spm, "stop", "api")
    assert not is_running(found.pid)


@pytest.mark.parametrize("supervised", [True, False])
def test_nothing_is_said_to_a_foreign_socket_that_a_link_leads_to(
    spm: Spm, supervised: bool
) -> None:
    spm("start", "api", "sleep 100")
    pid = spm.service("api")["pid"]
    if not supervised:
        spm.kill_supervisor("api")
    path = spm.home / "services" / "api" / "control.sock"
    eventually(lambda: path.exists() or not supervised, what="the control socket")
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(spm.base / "foreign"))
        foreign.listen(50)
        foreign.setblocking(False)
        link(path, spm.base / "foreign")
        for words in (["list"], ["status", "api"], ["touch", "api"], ["call", "api", "x"]):
            told(spm, *words)
        told(spm, "stop", "api")
        heard = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                with foreign.accept()[0] as one:
                    one.settimeout(1.0)
                    heard += one.recv(999)
        assert heard == b""
    assert not is_running(pid)


def test_a_hard_link_gets_nothing_written_by_a_start(spm: Spm, elsewhere: Path) -> None:
    spm("start", "api", "sleep 100")
    spm("stop", "api")
    for name in ("state.json", "services/api/output.log", "services/api/env.json"):
        (spm.home / name).unlink(missing_ok=True)
        os.link(elsewhere / "canary", spm.home / name)
    spm("start", "api", "sh -c 'echo hello; exec sleep 100'", "--env", "A=1", "--replace")
    spm("stop", "api")
    assert (elsewhere / "canary").read_text() == CANARY


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
@pytest.mark.parametrize("through_link", [False, True])
def test_a_state_directory_planted_by_another_user_is_refused(spm: Spm, through_link: bool) -> None:
    spm.forget_home()
    planted = spm.base / "planted" if through_link else spm.home
    planted.mkdir(mode=0o700)
    (planted / "state.json").write_text('{"schema": 1, "services": {}}')
    os.chown(planted, 65534, 65534)
    if through_link:
        spm.home.symlink_to(planted)
        os.chown(spm.home, 0, 0, follow_symlinks=False)
    for words in (["list"], ["start", "api", "sleep 100"], ["cleanup", "--purge"]):
        refused = spm(*words, code=9).stderr
        assert "belongs to another user" in refused and "chown" in refused
    assert os.listdir(planted) == ["state.json"]


# -- names


def test_a_name_is_a_file_name_on_every_system_and_nothing_else(spm: Spm) -> None:
    spm.forget_home()
    bad = ["../x", "a/b", "a\\b", ".", "..", "", "a\nb", "a\tb", "a b", "x" * 65, ".hidden", "é"]
    bad += ["api.", "con", "NUL", "aux.txt", "Com1", "lpt9.log", "prn", "-x", "a:b", "\x1b[2J"]
    for name in bad:
        for words in (["start", name, "sleep 100"], ["--home", str(spm.home), "start", name, "x"]):
            assert program.run(words) == 2, name
    with pytest.raises(program.UsageError):
        program.check_name("a\0b")
    assert not spm.home.exists() and os.listdir(spm.base) == ["work"]
    for name in ("console", "com10", "nullable", "a.con", "lpt"):
        assert program.check_name(name) == name


def test_names_that_differ_in_case_only_are_one_service(spm: Spm) -> None:
    spm("start", "API", "sleep 100")
    assert "already running" in spm("start", "api", "sleep 100").stdout
    assert os.listdir(spm.home / "services") == ["api"]
    spm("stop", "Api")
    assert [row["name"] for row in spm.json("list")["services"]] == ["API"]


# -- secrets


def files_with(text: str, *directories: Path) -> set[str]:
    """The names of the files that hold a text."""
    found = [path for top in directories for path in top.rglob("*") if path.is_file()]
    return {path.name for path in found if text.encode() in path.read_bytes()}


def test_a_secret_is_where_it_has_to_be_and_nowhere_else(spm: Spm) -> None:
    caller, given, filed, word, url = (f"{w}{os.urandom(9).hex()}" for w in "abcde")
    spm.env["CALLERS_OWN"] = caller
    (spm.cwd / "env").write_text(f"FROM_FILE={filed}\n")
    command = f"sh -c 'exec sleep 100' PASSWORD={word} --db postgres://ann:{url}@localhost/db"
    options = ["--env", f"GIVEN={given}", "--env", "CALLERS_OWN", "--env-file", "env"]
    said = [told(spm, "start", "api", command, *options, "--health", "exec:true")]
    supervisor, pid = spm.supervisor("api"), spm.service("api")["pid"]
    literal = f"f{os.urandom(9).hex()}"
    conf = {"command": "sleep 100", "env": {"KEY": literal, "OTHER": f"${{NO_SUCH:-{literal}}}"}}
    (spm.cwd / "spm.json").write_text(json.dumps({"services": {"conf": conf}}))
    said += [told(spm, "up"), everything_said(spm)]
    exported = "\n".join(told(spm, "export", target) for target in program.TARGETS)
    assert not any(one in exported for one in (caller, given, filed, literal))
    assert literal not in "\n".join(said)
    assert files_with(literal, spm.base) == {"env.json", "0001.json", "spm.json"}
    # and what goes wrong
    (spm.cwd / "bad").write_text(f"FROM FILE {filed}\n")
    for words in (
        ["start", "x", command + " && true", *options],
        ["start", "x", "--", "/no/such", f"PASSWORD={word}", f"http://a:{url}@b/"],
        ["start", "x", "sleep 100", "--env-file", "bad"],
        ["start", "x", "sleep 100", "--env", f"not-a-name={given}"],
        ["start", "x", "sleep 100", "--require-env", "CALLERS_OWN=short"],
        ["start", "x", "sleep 100", f"--token={given}"],
        ["start", "x", "sleep 100", "--password", f"{given}"],
        ["start", "x", "sleep", "100", "--env", f"A={given}"],
        ["start", "x", "sleep 100", "--ready", f"http://ann:{url}@localhost/"],
        ["start", "api", "sleep 100", *options[:1], f"GIVEN=other{given}"],
        ["wait-healthy", f"http://ann:{url}@localhost/", "1"],
        ["call", "api", f"http://ann:{url}@localhost/"],
        ["port", f"http://ann:{url}@localhost/"],
        [f"http://ann:{url}@localhost/"],
    ):
        said += [told(spm, *words), told(spm, "--json", *words)]
    for secret in (caller, given, filed, word, url):
        assert secret not in "\n".join(said), next(one for one in said if secret in one)
    assert files_with(given, spm.base) == {"env.json"}
    assert not files_with(caller, spm.base) and files_with(filed, spm.base) == {"env", "bad"}
    # A command couldn't be started again without its words: they are kept, for this user's eyes.
    assert files_with(word, spm.base) | files_with(url, spm.base) <= {"state.json", "events.jsonl"}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environ, line = str(process.environ()), str(process.cmdline())
            assert given not in line and filed not in line
            if process.pid != pid:
                assert not any(one in environ + line for one in (given, filed, word, url)), line
                assert caller not in environ or process.pid == supervisor
    assert not is_running(0) and caller in str(psutil.Process(pid).environ())
    spm("cleanup")
    assert not files_with(given, spm.home)


def test_a_password_in_the_last_lines_was_shown_by_those_who_wait_for_a_service(spm: Spm) -> None:
    sayer = nasty("--say", "PASSWORD=s3cr3t99", "--exit", 3, "--after", 0.2)
    failed = spm("start", "api", sayer, "--wait", code=1)
    assert "  | PASSWORD=…\n" in failed.stderr
    error = spm.json("wait-healthy", "api", 10, code=1)["error"]
    assert error["log_tail"][0] == "PASSWORD=…"
    tests = ("--ready", "log:PASSWORD", "--", "sh", "-c", "sleep 0.6; echo tested")
    said = spm("run", "api", sayer, *tests)
    assert "  | PASSWORD=…\n" in said.stderr and "s3cr3t99" not in failed.stderr + said.stderr


# -- other users

NOBODY = """
import json, os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
seen = {}
for path in sys.argv[1:]:
    try:
        if path.endswith(".sock"):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(5)
                client.connect(path)
                client.sendall(b'{"op": "touch"}\\n')
                seen[path] = client.recv(100000).decode()[:12]
        else:
            seen[path] = str(os.listdir(path) if os.path.isdir(path) else open(path).read())[:12]
    except OSError as error:
        seen[path] = type(error).__name__
print(json.dumps(seen))
"""


LESS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]  # root, to whom modes matter


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv isn't here")
@pytest.mark.parametrize("is_own", [True, False])
def test_who_cant_write_is_told_what_would_help(spm: Spm, is_own: bool) -> None:
    # chmod of somebody else's directory, or of state.json alone, mends nothing
    place = spm.cwd / "place"
    place.mkdir()
    home = place / "home"
    if is_own:
        spm("start", "a", "true", "--home", home)
        eventually(lambda: spm.json("list", "--home", home)["services"][0]["status"] == "exited")
        home.chmod(0o500)
    else:
        os.chown(place, 65534, 65534)
    argv = [*LESS, *spm.argv("start", "b", "true", "--home", home)]
    done = subprocess.run(argv, env=spm.env, capture_output=True, text=True, timeout=30)
    assert (done.returncode, "Permission denied" in done.stderr) == (9, True), done
    advice = f"chmod -R u+rwX {home}\n" if is_own else program.OTHER_HOME
    assert advice in done.stderr, done


def seen_by_nobody(*paths: Path) -> set[str]:
    words = [sys.executable, "-S", "-c", NOBODY, *map(str, paths)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=20, check=True, cwd="/")
    return set(json.loads(done.stdout).values())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_reads_nothing_and_reaches_no_control_socket(spm: Spm) -> None:
    spm.base.chmod(0o755)
    spm("start", "api", "sh -c 'echo hi; exec sleep 100'", "--env", "A=1", umask=0)
    eventually((spm.home / "services/api/control.sock").exists, what="the control socket")
    paths = [spm.home, *spm.home.rglob("*")]
    modes = {str(path): oct(path.stat().st_mode & 0o777) for path in paths}
    assert {m for p, m in modes.items() if not p.endswith(".pyc")} == {"0o700", "0o600"}, modes
    private = [path for path in paths if "cache" not in path.parts and path.name != ".gitignore"]
    assert seen_by_nobody(*private) == {"PermissionError"}
    for path in paths:  # as careless as can be, short of what the next command refuses
        if path.is_dir():
            path.chmod(0o755)
    sockets = [path for path in paths if path.suffix == ".sock"]
    assert seen_by_nobody(*[p for p in private if p.is_file()], *sockets) == {"PermissionError"}
    sockets[0].chmod(0o666)
    assert 'ok": true' not in str(seen_by_nobody(*sockets))
    spm.home.chmod(0o757)
    assert "can be written by others" in spm("stop", "api", code=9).stderr
    spm.home.chmod(0o700)
    spm("stop", "api")


# -- the control socket


def control(spm: Spm, name: str = "api") -> socket.socket:
    path = str(spm.home / "services" / name / "control.sock")
    client = socket.socket(socket.AF_UNIX)  # it blocks: a full backlog is no error
    client.connect(path)
    client.settimeout(10)
    return client


def test_whatever_comes_over_the_control_socket_the_supervisor_goes_on(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    supervisor = spm.supervisor("api")
    eventually((spm.home / "services/api/control.sock").exists, what="the control socket")
    nothing = dict.fromkeys(("main", "spare", "timeout_s", "force", "state", "message", "record"))
    lines = [os.urandom(5000).replace(b"\n", b" "), b"[" * 60000, b'{"op":' * 9000, b"\0" * 100]
    lines += [json.dumps({**nothing, "op": op}).encode() for op in program.OPERATIONS]
    lines += [b'{"op": ["stop"]}', b'{"op": "stop", "spare": {}, "timeout_s": NaN}', b"1e999"]
    lines += [b'{"op": "notify", "state": "ready", "message": "\\ud800"}']
    for line in lines:
        with control(spm) as client:
            client.sendall(line + b"\n")
            client.shutdown(socket.SHUT_WR)  # or `watch` would go on
            client.makefile("rb").read()
    with control(spm) as client, contextlib.suppress(OSError):
        for _ in range(200):
            client.sendall(b"x" * 65536)  # an endless line
    halves = [control(spm) for _ in range(200)]
    for client in halves:
        client.sendall(b'{"op": "sta')
    began = time.monotonic()
    assert "touched" in spm("touch", "api").stdout and time.monotonic() - began < 3
    for client in halves:
        client.close()
    assert spm.supervisor("api") == supervisor and is_running(supervisor)
    assert spm.service("api")["status"] in ("running", "ready")
    assert psutil.Process(supervisor).num_fds() < 30
    spm("stop", "api")


def test_a_setting_that_only_a_later_version_knows_ended_the_supervisor(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    supervisor, spec = spm.supervisor("api"), spm.record("api")["spec"]
    eventually((spm.home / "services/api/control.sock").exists, what="the control socket")
    with control(spm) as client:
        asked = {"op": "settings", "spec": {**spec, "alerts": ["entropy>5"], "restart": "always"}}
        client.sendall(json.dumps(asked).encode() + b"\n")
        error = json.loads(client.makefile("rb").read())["error"]
    assert (error["kind"], "entropy>5" in error["message"]) == ("usage", True)
    spm("touch", "api")
    assert spm.supervisor("api") == supervisor and is_running(supervisor)
    assert spm.record("api")["spec"] == spec, "all of it, or nothing"
    spm("stop", "api")


ANSWERS = {
    "deep": "client.sendall(b'[' * 200000 + b'\\n')",
    "endless": "while True: client.sendall(b'x' * 1000000); time.sleep(0.02)",
    "dripping": "while True: client.sendall(b'x'); time.sleep(0.2)",
    "an error of no kind": 'client.sendall(b\'{"ok": false, "error": [1]}\\n\')',
    "a lie": "client.sendall((b'{\"ok\": true}\\n' + told))",
}
IMPOSTOR = """
import contextlib, json, os, socket, time
state = json.load(open(os.environ["SPM_HOME"] + "/state.json"))
ended = {{"processes": 1, "seconds": 0.1, "killed": False, "left": []}}
told = {{"ok": True, "ended": ended, "record": state["services"]["api"], "unsaved": False}}
told = json.dumps(told).encode() + b"\\n"
os.chdir(os.path.join(os.environ["SPM_HOME"], "services", "api"))
while not os.path.exists("control.sock"): time.sleep(0.001)
os.unlink("control.sock")
server = socket.socket(socket.AF_UNIX)
server.bind("control.sock")
server.listen()
print("listening", flush=True)
while True:
    client = server.accept()[0]
    with contextlib.suppress(OSError):
        client.recv(1000000)
        {}
    client.close()
"""


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_service_that_answers_in_its_supervisor_s_place_gets_nowhere(
    spm: Spm, answer: str
) -> None:
    spm("start", "api", "--", sys.executable, "-S", "-c", IMPOSTOR.format(ANSWERS[answer]))
    eventually(lambda: "listening" in spm.log("api"), what="the impostor")
    pid, supervisor = spm.service("api")["pid"], spm.supervisor("api")
    began = time.monotonic()
    for words in (["touch", "api"], ["stop", "api", "--timeout", "0.2"]):
        told(spm, *words)
    assert not is_running(pid) and time.monotonic() - began < SECONDS
    told(spm, "cleanup")
    eventually(lambda: not is_running(supervisor), what="the supervisor's end")


# -- what a service prints

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\x08\x7f\r\u202egnp"


def is_plain(text: str) -> bool:
    return all(c.isprintable() or c in "\n\t" for c in text)


def test_terminal_escapes_come_out_with_raw_only(spm: Spm) -> None:
    script = f"import os, sys; os.write(1, {ESCAPES!r}.encode() + b' Error\\n'); "
    (spm.cwd / "hostile.py").write_text(f"{script} sys.argv[2:] or sys.exit(3)\nimport time\n")
    words = [sys.executable, "-S", "hostile.py", ESCAPES]
    spm("start", "api", "--start-seconds", "0.3", "--", *words, code=4)
    assert is_plain(everything_said(spm, ""))
    for command in ("notify", "alerts"):
        assert is_plain(told(spm, command, "api", *["ready", ESCAPES][: 2 * (command == "notify")]))
    with open(spm.home / "services/api/events.jsonl", "a") as file:  # as the service itself could
        for event in ("alert", ESCAPES):
            file.write(json.dumps({"at": 1, "event": event + ESCAPES, "why": ESCAPES}) + "\n")
    assert is_plain(looked_at(spm))
    spm("start", "other", "sleep 0.3")  # so that -f has an end
    assert is_plain(told(spm, "events", "other", "-f")) and is_plain(told(spm, "logs", "api", "-f"))
    assert spm.json("logs", "api")["lines"] == [ESCAPES + " Error"]
    assert spm("logs", "api", "--raw").stdout == ESCAPES.replace("\r", "\n") + " Error\n"
    spm("cleanup")


# -- what a service does to its own files

OUTPUT = "$SPM_HOME/services/api/output.log"
TRICKS = {
    "fifo": f"rm {OUTPUT}; mkfifo {OUTPUT}",
    "directory": f"rm {OUTPUT}; mkdir {OUTPUT}",
    "truncated": f"echo hello; : >{OUTPUT}",
    "removed": f"rm {OUTPUT}",
    "older a directory": f"mkdir {OUTPUT}.1; head -c 300000 /dev/zero",
    "one line of 100 MB": "head -c 100000000 /dev/zero | tr '\\0' x",
    "no directory": "cd $SPM_HOME/services; until [ -e api/control.sock ]; do :; done; rm -r api",
    "samples a directory": "cd $SPM_HOME/services/api; rm metrics.jsonl; mkdir metrics.jsonl",
    "events a fifo": "cd $SPM_HOME/services/api; rm events.jsonl; mkfifo events.jsonl",
    "values a fifo": "cd $SPM_HOME/services/api; rm env.json; mkfifo env.json",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_service_that_plays_tricks_with_its_files_is_still_seen_and_stopped(
    spm: Spm, trick: str
) -> None:
    script = f"{TRICKS[trick]}; cd /; echo done >{spm.base}/done; echo still; exec sleep 100"
    checks = ["--health", "log:never", "--health-interval", "50ms", "--sample-interval", "50ms"]
    checks += ["--failure-log", "never", "--start-seconds", "0.5", "--log-size", "100kB"]
    told(spm, "start", "api", "--shell", script, *checks, "--env", "A=1")
    eventually((spm.base / "done").exists, what="the trick", within=20)
    found = [one for one in spm.bearers() if one.cmdline() == ["sleep", "100"]]
    supervisor = spm.supervisor("api")
    assert looked_at(spm)
    assert is_running(supervisor) and spm.supervisor("api") == supervisor
    told(spm, "stop", "api")
    assert found and not any(is_running(one.pid) for one in found)


def enormous(path: Path) -> None:
    with open(path, "wb") as file:
        file.write(b'{"a":[' * 1000)
        file.truncate(500 << 20)


def long_line(path: Path) -> None:
    with open(path, "ab") as file:
        file.truncate(path.stat().st_size + (200 << 20))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "500 MB": enormous,
    "a line of 200 MB": long_line,
    "nested": lambda path: path.write_text("[" * 10**6 + "\n"),
    "a number of a million digits": lambda path: path.write_text("1" * 10**6 + "\n"),
    "lone surrogates": lambda path: path.write_text('{"event": "\\ud800", "at": 1, "why": ""}\n'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_made_to_exhaust_who_reads_them_cost_little_and_one_clear_line(
    spm: Spm, damage: str
) -> None:
    spm("start", "api", "sh -c 'echo hi; exec sleep 100'", "--env", "A=1")
    pid, supervisor = spm.service("api")["pid"], spm.supervisor("api")
    for name in JOURNALS[1:]:
        DAMAGES[damage](spm.home / "services" / "api" / name)
    looked_at(spm)
    assert "running" in told(spm, "list")
    DAMAGES[damage](spm.home / "state.json")
    assert told(spm, "list").count("state.json was damaged") == 1
    for one in spm.home.glob("state.json.corrupt*"):
        one.unlink()
    spm("touch", "api")
    assert psutil.Process(supervisor).memory_info().rss < 150 << 20
    told(spm, "restart", "api")
    told(spm, "stop", "api")
    assert not is_running(pid)


# -- never the wrong process


def test_a_copy_of_a_state_directory_is_not_the_service_s_own(spm: Spm) -> None:
    spm("start", "api", "sleep 100", "--port", free())
    copy = spm.base / "copy"
    shutil.copytree(spm.home, copy, ignore=shutil.ignore_patterns("*.sock"))
    pid, supervisor = spm.service("api")["pid"], spm.supervisor("api")
    there = ["--home", str(copy)]
    assert "lost" in spm(*there, "list").stdout and str(spm.home) in spm(*there, "list").stderr
    for words in (["stop", "api"], ["stop", "api", "--force"]):
        refused = spm(*there, *words, code=8).stderr
        assert "nothing was signalled" in refused and str(spm.home) in refused
    for words in (["touch", "api"], ["status", "api"], ["cleanup"], ["start", "api", "sleep 100"]):
        spm(*there, *words, code=None)
        assert is_running(pid) and is_running(supervisor), words
    spm(*there, "cleanup")
    assert is_running(pid) and is_running(supervisor)
    spm.home.rename(spm.base / "moved")  # moved is not copied: it is still the only one there is
    spm("--home", spm.base / "moved", "stop", "api")
    assert not is_running(pid)
    eventually(lambda: not is_running(supervisor), what="the supervisor's end")


def free() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


ROLES = ("main", "launcher", "supervisor", "owner")


@pytest.mark.slow
def test_a_forged_record_makes_nobody_end_a_foreign_process(spm: Spm) -> None:
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as canary:
        look = program.stat_of(canary.pid)
        assert look
        forged = look.identity._asdict()
        for roles in (ROLES, *((role,) for role in ROLES)):
            spm("start", "api", "sleep 100", "--replace")
            pid = spm.service("api")["pid"]
            spm.kill_supervisor("api")
            os.kill(pid, signal.SIGKILL)
            eventually(partial(is_gone, pid), what="its end")
            state = spm.state()
            state["services"]["api"].update(dict.fromkeys(roles, forged), phase="running")
            text = json.dumps(state)
            for words in (
                *(["stop", "api"], ["stop", "api", "--force"], ["restart", "api"], ["cleanup"]),
                *(["start", "api", "sleep 9"], ["start", "api", "sleep 9", "--replace"]),
            ):
                (spm.home / "state.json").write_text(text)
                said = told(spm, *words)
                assert canary.poll() is None, f"{roles} {words}: {said}"
            (spm.home / "state.json").unlink()
            spm("cleanup")
        canary.kill()


def test_what_a_service_s_command_is_called_runs_nothing(spm: Spm) -> None:
    marker = spm.base / "marker"
    for name in ("$(touch marker)", f"; touch {marker} #", f"--env=A=`touch {marker}`"):
        told(spm, "start", name, "sleep 100")
        told(spm, "start", "x", shlex.quote(name))
    assert not marker.exists()


def test_a_password_in_a_check_or_an_alert_is_masked_wherever_it_is_shown(spm: Spm) -> None:
    # only the service's own command was
    ready = ["--ready", "exec:true --password s3cr3t99 && test -e up", "--health-interval", "20ms"]
    health = ["--health", "exec:test -e up || false --password s3cr3t99", "--health-retries", 1]
    alert = ["--alert", "processes>0: exec false --password s3cr3t99", "--sample-interval", "50ms"]
    told = [spm("start", "api", "sleep 100", *ready, *health, *alert)]
    told.append(spm("explain", "api"))
    (spm.cwd / "up").touch()
    told += [spm("wait-healthy", "api"), spm("wait-healthy", "api", "--json")]
    (spm.cwd / "up").unlink()
    known = spm.home / "services" / "api" / "events.jsonl"
    seen = ('"unhealthy"', '"alert_failed"')
    eventually(lambda: all(one in known.read_text() for one in seen), what="the events")
    pages = ("status", "explain", "events", "alerts")
    told += [spm(word, "api", *more) for word in pages for more in ([], ["--json"])]
    told += [spm("list"), spm("list", "--json"), spm("stop", "api")]
    assert not [one for one in told if "s3cr3t99" in one.stdout + one.stderr]
    assert "--password …" in told[2].stdout and "--password …" in spm("events", "api").stdout


def test_a_service_that_writes_into_its_journals_breaks_no_page(spm: Spm) -> None:
    # status and explain ended in a traceback
    spm("start", "api", "sleep 100")
    odd = [{"cause": {}}, {"memory_bytes": 10**400}, [{"uptime_s": 10**400}], float("nan")]
    for file in ("events.jsonl", "exits.jsonl"):
        with open(spm.home / "services" / "api" / file, "a") as journal:
            for one in odd:
                line = {"at": 1, "event": "alert", "why": one, "cause": one, "log_tail": one}
                journal.write(f"{json.dumps(line)}\n")
                journal.write(f"{json.dumps({**line, 'why': '', 'cause': '', 'at': one})}\n")
    for page in ("status", "explain", "alerts", "events"):
        spm(page, "api")
        assert "NaN" not in spm(page, "api", "--json").stdout
    assert [one["event"] for one in spm.json("status", "api")["events"]] == ["started"]
    spm("stop", "api")
