"""Every parser, given garbage: a value or one of our errors, never a traceback, never for long.

A few hundred cases as it is. Of 20,000 each, in an hour and without a watchdog that takes long for
hung:
SPM_TEST_CASES=20000 pytest -n 2 -o faulthandler_timeout=0 tests/test_fuzz.py
A new parser takes one line in TEXTS, DOCUMENTS or BYTES.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Spm, eventually, is_running
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import simple_process_manager as program

CASES = int(os.environ.get("SPM_TEST_CASES", "0"))
SLOWEST_S = 5.0  # of a processor, for one case: a pattern that backtracks takes for ever


def cases(few: int) -> settings:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    number = CASES or few
    return settings(max_examples=number, deadline=None, database=None, suppress_health_check=checks)


@contextlib.contextmanager
def refused_or_done(*errors: type[Exception]) -> Iterator[None]:
    """What is called here may refuse with one of our errors, and takes no long time."""
    began = time.process_time()
    with contextlib.suppress(program.SpmError, *errors):
        yield
    assert time.process_time() - began < SLOWEST_S


# -- texts

PIECES = (
    *(
        "0",
        "1",
        "5",
        "65535",
        "99999999999999999999",
        "1e9",
        ".",
        "-",
        "+",
        "٣",
        "²",
        "ms",
        "s",
        "m",
    ),
    *("kB", "GiB", "auto", "forever", "session", "tcp", "http", "https", "log", "exec", ":", "://"),
    *("//", "/", "?", "#", "@", "[", "]", "[::1]", "localhost", "127.0.0.1", " ", "\t", "\n", "\r"),
    *("=", ",", "'", '"', "\\", "$", "`", "&&", "|", ">", "<", "(", ")", "*", "{", "}", "{port}"),
    *(
        "export",
        "A",
        "A_b",
        "PASSWORD",
        "token",
        "--port",
        "-p",
        "PORT=",
        "SIGTERM",
        "0,143",
        "for",
    ),
    *("memory_mb", "cpu", "restarts", "warning", "every", "restart", "stop", "200-399", "null"),
    *("\x00", "\x1b[2J", "\x9b", "\ud800", "\U0001f600", "\u202e", "é", "(?P<a>", "(a+)+", "\xa0"),
    *("--", "-n", "--env", "true", '{"a":', "[1,", "a" * 300, "A=" * 50, ": " * 50, '"\\' * 40),
)
PIECED = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
TEXT = st.one_of(PIECED, st.text(max_size=60), st.tuples(PIECED, st.text(max_size=9)).map("".join))


def words_of(text: str, shell: bool = False) -> object:
    args = argparse.Namespace(command=[text], tail=None, shell=shell)
    return program.command_words("api", args)


def params_of(text: str) -> object:
    return program.params_of([word for word in text.split(" ") if word[:1] not in ("-", "@")])


def explained(text: str) -> object:
    tail = text.split("\n") * 20
    return [program.cause_of(program.Exit(0.0, code=1), tail), program.masked_line(text)]


TEXTS: dict[str, Callable[[str], object]] = {
    "duration": program.parse_duration,
    "lease": program.parse_lease,
    "size": program.parse_size,
    "count": program.parse_count,
    "name": program.check_name,
    "exit codes": program.parse_codes,
    "pause": program.parse_pause,
    "pattern": program.parse_pattern,
    "port": program.parse_port_or_auto,
    "url": program.parse_url,
    "check": program.parse_check,
    "expected statuses": program.parse_expect,
    "required variable": program.parse_required,
    "alert": program.parse_rule,
    "dotenv": lambda text: program.parse_env_text(text, "here"),
    "port in a command": lambda text: program.recognise_port(text.split()),
    "command": words_of,
    "command for a shell": lambda text: words_of(text, shell=True),
    "terminal": program.parse_terminal,
    "parameters": params_of,
    "last words": explained,
    "secrets": program.mask_secrets,
    "shown": lambda text: program.write(io.TextIOWrapper(io.BytesIO(), "ascii"), text),
}


@pytest.mark.parametrize("name", TEXTS)
@given(text=TEXT)
@cases(25)
def test_any_text_is_a_value_or_refused(name: str, text: str) -> None:
    with refused_or_done():
        TEXTS[name](text)


@given(text=TEXT)
@cases(100)
def test_what_is_shown_moves_no_cursor(text: str) -> None:
    shown = program.neutral(text)
    assert not any((ord(c) < 32 and c != "\t") or 127 <= ord(c) < 160 for c in shown)


# -- documents

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.sampled_from((2**63, 1e308, -1))
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
)
OTHERS = ("depends_on", "include", "args", "envFile", "a", "pid", "token", "host", "boot", "at")
KEYS = (*program.SPEC, *program.RECORD, *OTHERS, "namespace", "code")


def a_record() -> dict[str, object]:
    spec = program.Spec(("sleep", "1"), "/", ready=("tcp:1",), env_files=("x",))
    me = program.Identity(1234, "1@boot")
    ended = program.Exit(1.0, 1)
    record = program.new_record("api", spec, "0" * 32)
    record = record._replace(main=me, supervisor=me, exit=ended, launcher=me)
    document = json.loads(json.dumps(record.to_json()))
    assert isinstance(document, dict)
    return document


@st.composite
def damaged(draw: st.DrawFn, whole: Callable[[], dict[str, object]] = a_record) -> object:
    """A document with a few of its values replaced, removed or added."""
    document: object = whole()
    for _ in range(draw(st.integers(0, 3))):
        spot = document
        while isinstance(spot, dict) and spot:
            key = draw(st.sampled_from(sorted(spot)) | st.sampled_from(KEYS))
            if isinstance(spot.get(key), dict) and draw(st.booleans()):
                spot = spot[key]
            elif draw(st.integers(0, 3)):
                spot[key] = draw(JSON)
                break
            else:
                spot.pop(key, None)
                break
    return document


def a_request() -> dict[str, object]:
    request = {"main": {"pid": 12, "token": "x"}, "spare": [1], "timeout_s": 1.0, "force": False}
    answers = {"ended": {"processes": 1, "seconds": 1.0, "killed": True, "left": []}, "ok": True}
    texts = {"state": "ready", "message": "", "home": "/", "adopt": False, "env": {"A": "b"}}
    return {**request, **answers, **texts, "record": a_record()}


def a_config() -> dict[str, object]:
    """A configuration with every kind of key."""
    service = {"command": ["sleep", "1"], "depends_on": ["b"], "env": {"A": "${B:-${A}}"}}
    service.update(require_env=["A=.+"], ready=["tcp:1"], health=["exec:true"])
    service.update(alert=["cpu>1"], port="auto", lease="1h", type="simple", cwd="${PWD}")
    service.update(environment={"A": {"required": True}}, restart="on-failure")
    server = {"command": "x", "args": ["y"], "env": {"X": "${A:-1}"}}
    services = {"a": service, "b": {"command": "true", "env": {"B": "${A:-1}"}}}
    defaults, alerts = {"restart": "no", "env": {"A": "1"}}, ["memory_mb>1 for 3s"]
    document = {"version": 1, "services": services, "mcpServers": {"c": server}, "include": []}
    return {**document, "defaults": defaults, "alerts": alerts}


def as_config(document: object) -> object:
    """All that is asked of a configuration before anything is started."""
    config = program.config_of(document, "/nowhere/spm.json")
    return [config.named(name) for name in config.services]


@given(document=damaged(a_config), remark=TEXT, at=st.integers(0, 2000))
@cases(100)
def test_any_configuration_is_one_or_refused_with_its_place(
    document: object, remark: str, at: int
) -> None:
    with refused_or_done(program.RecordError):
        as_config(document)
    text, comment = json.dumps(document, indent=1), f"/*{remark}*/ // {remark}\n"
    whole = text[:at] + comment + text[at:]
    with refused_or_done():
        through_file(whole.encode("utf-8", "surrogatepass"))


def as_state(directory: Path, document: object) -> object:
    """A state.json of that kind, read as a command does."""
    (directory / "state.json").write_text(json.dumps({"schema": 1, "services": {"api": document}}))
    records = program.Store(str(directory)).read()
    for record in records.values():
        program.status_of(record, program.Facts(True, True, False, False, "gone"))
        seen = program.Seen(record, program.Facts(False, True, False, False, "gone"), VERDICT)
        page = program.service_data(seen)
        lines = [program.shown(key, value) for key, value in page.items()]
        program.Result(page, lines)
        json.dumps(page)
    return records


VERDICT = program.Verdict("exited")
DOCUMENTS: dict[str, Callable[[object], object]] = {
    "record": program.Record.from_json,
    "spec": program.Spec.from_json,
    "order": lambda document: program.read_order(document, "order"),
    "stop request": lambda document: program.read_stop_request(document, "request"),
    "ended": lambda document: program.read_ended(document, "ended"),
    "identity": lambda document: program.read_identity(document, "identity"),
    "exit": lambda document: str(program.read_exit(document, "exit")),
    "values": lambda document: program.texts_by_name(document, "env.json"),
    "answer": lambda document: program.accepted(json.dumps(document).encode()),
    "configuration": lambda document: program.config_of(document, "/nowhere/spm.json"),
    "service": lambda one: program.config_of({"services": {"a": one}}, "/nowhere/spm.json"),
    "agents' servers": lambda one: program.config_of({"mcpServers": {"a": one}}, "/no/spm.json"),
    "environment rules": lambda document: program.env_rules(document, "rules"),
    "version": lambda document: program.Version.from_json(document, 1),
}


@pytest.mark.parametrize("name", DOCUMENTS)
@given(document=st.one_of(JSON, damaged(), damaged(a_request)))
@cases(25)
def test_any_document_is_a_value_or_refused(name: str, document: object) -> None:
    with refused_or_done(program.RecordError):
        DOCUMENTS[name](document)


@given(document=damaged())
@cases(60)
def test_any_state_is_shown_or_damaged(tmp_path: Path, document: object) -> None:
    with refused_or_done(program.RecordError):
        as_state(tmp_path, document)


# -- bytes


def through_frames(data: bytes) -> object:
    """As the relay reads: in pieces, some too long."""
    frames, size = program.Frames(64), 1 + len(data) % 7
    lines = [f for i in range(0, len(data), size) for f in frames.feed(data[i : i + size])]
    whole = [None if len(line) > 64 else line for line in data.split(b"\n")[:-1]]
    assert lines == whole
    return [program.messages_in(line) for line in lines]


def through_tail(data: bytes) -> object:
    path = f"/tmp/spm-fuzz-{os.getpid()}"
    with open(path, "wb") as file:
        file.write(data)
    try:
        program.last_sample(path)
        program.figures(path, 0.0)
        program.log_samples(path)
        return program.thinned(data.splitlines(True), time.time())
    finally:
        os.unlink(path)


def through_file(data: bytes, is_procfile: bool = False) -> None:
    """A configuration, or a Procfile beside an empty one, is read from its file."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "file")
        path.write_bytes(data)
        if is_procfile:
            program.read_config(str(Path(directory, "none")), procfile=str(path))
        else:
            program.read_config(str(path))


BYTES: dict[str, Callable[[bytes], object]] = {
    "configuration file": through_file,
    "Procfile": lambda data: through_file(data, is_procfile=True),
    "frames": through_frames,
    "json": program.parse_json,
    "answer": program.accepted,
    "journal": through_tail,
    "lines": program.as_lines,
}
JSON_LINES = st.lists(JSON.map(lambda one: json.dumps(one).encode())).map(b"\n".join)
DATA = st.one_of(
    st.binary(max_size=300),
    JSON_LINES,
    TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.integers(1, 200000).map(lambda count: b"[" * count),
    st.integers(1, 9000).map(lambda count: b"1" * count),
)


@pytest.mark.parametrize("name", BYTES)
@given(data=DATA)
@cases(25)
def test_any_bytes_are_a_value_or_refused(name: str, data: bytes) -> None:
    with refused_or_done(ValueError):
        BYTES[name](data)


HTTP = (
    *(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 ", b"HTTP/1.1 302 Found\r\n", b"200", b"99999", b"HTTP/9"),
    *(b"Location: /x\r\n", b"Location: http://[::1]:", b"location:", b"Location: //\r\n", b"\r\n"),
    *(b"\n\n", b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"\x00", b"\xff"),
    *(b"Content-Length: -1\r\n", b" ", b"a" * 5000, b"Location: http://127.0.0.1:1/\x1b[2J\r\n"),
)


@pytest.fixture(scope="module")
def answers() -> Iterator[tuple[int, list[list[bytes]]]]:
    """A server that answers each request with the pieces that are put there; "" is a pause."""
    server, next_ones = socket.create_server(("127.0.0.1", 0)), [[b""]]

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = server.accept()[0]
                with connection, contextlib.suppress(OSError):
                    for piece in next_ones[0]:
                        connection.sendall(piece)
                        time.sleep(0.02 * (not piece))

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1], next_ones
    server.shutdown(socket.SHUT_RDWR)
    server.close()


@given(pieces=st.lists(st.sampled_from((*HTTP, b"")) | st.binary(max_size=20), max_size=8))
@cases(60)
def test_any_http_answer_is_looked_at_in_time(
    answers: tuple[int, list[list[bytes]]], pieces: list[bytes]
) -> None:
    port, next_ones = answers
    next_ones[0] = pieces
    url, spec = program.Check("http", "/", "127.0.0.1", port), program.Spec(("x",), "/")
    began = time.monotonic()
    is_ok, seen, _ = program.probe_http(url, "127.0.0.1", spec, time.monotonic() + 0.1)
    assert time.monotonic() - began < 1 and seen.isprintable()
    assert not is_ok or b"".join(pieces).startswith(b"HTTP/1.")


# -- arguments

HARMLESS = {"list", "status", "explain", "logs", "events", "alerts", "stats", "touch", "stop"}
HARMLESS |= {"notify", "cleanup"}
OPTIONS = {
    word for one in program.COMMANDS.values() for o in one.options for word in o.words.split()
}
VALUES = ["api", "nosuch", "API", "1", "30s", "0", "-1", "true", "A=b", "A", "--", "-", "ready", ""]
NO_END = {"--watch", "-f", "--follow", "--home"}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """The words of a command that may be one of ours."""
    options = sorted(word for word in OPTIONS if word.startswith("-"))
    names = st.sampled_from(sorted(program.COMMANDS)) | TEXT
    values = st.sampled_from(VALUES) | TEXT
    joined = st.tuples(st.sampled_from(options), values).map("=".join)
    word = st.one_of(st.sampled_from(options), values, joined, st.just("--json"))
    words = [draw(names), *draw(st.lists(word, max_size=6))]
    return [word.replace("\x00", "") for word in words]  # execve(2) knows no NUL


@given(words=command_lines())
@cases(120)
def test_any_words_are_a_command_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPM_HOME", str(tmp_path / "home"))
    out, err = io.StringIO(), io.StringIO()
    if words[0] in HARMLESS and not any(word.partition("=")[0] in NO_END for word in words):
        if not (tmp_path / "home").exists():
            store = program.Store(str(tmp_path / "home"))
            store.prepare()
            store.save({"api": program.Record.from_json(a_record())})
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), refused_or_done():
            code = program.run(words)
            assert code in {0, *(error.exit_code for error in program.ERRORS.values())}
            ours = words[: words.index("--")] if "--" in words else words
            assert "--json" not in ours or json.loads(out.getvalue())["ok"] is (code == 0)
        return
    with refused_or_done(program.HelpWanted):
        _, args = program.parse(words)
        if words[0] in ("start", "run"):
            args.name = getattr(args, "name", None) or "api"
            with contextlib.suppress(AttributeError):
                program.spec_of("api", args)


# -- a supervisor that lives


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spm]:
    """A service, and one that says what it is told: an enemy of both sides of the relay."""
    one = Spm(Path(tmp_path_factory.mktemp("f")))
    one("start", "api", "sleep 1000")
    one("start", "echo", "--type", "stdio", "--", "cat")
    for name in ("api", "echo"):
        path = one.home / "services" / name / "control.sock"
        eventually(path.exists, what=f"the control socket of {name}")
    yield one
    one("cleanup")
    assert not one.bearers()


def said_to(spm: Spm, name: str, data: bytes) -> bytes:
    client = program.connect_local(str(spm.home / "services" / name), 5.0)[0]
    with client, contextlib.suppress(OSError):
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return client.recv(1 << 20)
    return b""


@given(
    document=st.one_of(damaged(a_request), JSON),
    operation=st.sampled_from(sorted(program.OPERATIONS)),
)
@cases(25)
def test_any_request_leaves_the_supervisor_alive(
    living: Spm, document: object, operation: str
) -> None:
    if isinstance(document, dict):
        document = {**document, "op": operation}
        record = document.get("record")
        if isinstance(record, dict):  # else it may well be over with the service, and rightly so
            document["record"] = {**record, "lease_until": None, "owner": None}
    guard = living.supervisor("api")
    answer = said_to(living, "api", json.dumps(document).encode() + b"\n")
    assert operation == "join" or json.loads(answer)["ok"] in (True, False)
    assert is_running(guard)


RPC = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0")},
    optional={
        "id": JSON,
        "method": st.sampled_from(("initialize", "ping", "tools/call", "server/discover", "x", 1))
        | st.sampled_from(
            sorted((*program.ABOUT, *program.SWALLOWED, *program.ABILITY, program.END))
        ),
        "params": JSON | st.fixed_dictionaries({}, optional={"_meta": JSON, "requestId": JSON}),
        "result": JSON,
        "error": JSON,
    },
)
RPC_LINES = st.lists(st.one_of(RPC, st.lists(RPC, max_size=3), JSON), min_size=1, max_size=5)


@given(messages=RPC_LINES, data=DATA)
@cases(60)
def test_any_messages_leave_the_relay_alive(
    living: Spm, messages: list[object], data: bytes
) -> None:
    guard = living.supervisor("echo")
    lines = [b'{"op": "join"}', *(json.dumps(one).encode() for one in messages), data[:5000]]
    said_to(living, "echo", b"\n".join(lines) + b"\n")
    assert is_running(guard)
    assert "supervisor_failed" not in (living.home / "services/echo/events.jsonl").read_text()
