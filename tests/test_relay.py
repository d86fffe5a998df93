"""Warm stdio servers: one process, many callers, each answer to who asked."""

from __future__ import annotations

import json
import os
import random
import selectors
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Spm, eventually, is_running
from hypothesis import given, settings
from hypothesis import strategies as st

import simple_process_manager as program

SERVER = Path(__file__).resolve().parent / "rpc_server.py"
MESSAGE = "message=hello"


def server(*switches: object) -> str:
    return shlex.join([sys.executable, str(SERVER), *map(str, switches)])


def begin(spm: Spm, *switches: object, options: tuple[str, ...] = ()) -> None:
    spm("start", "s", "--type", "stdio", *options, server(*switches))


class Wire:
    """A caller over `connect`."""

    def __init__(self, spm: Spm) -> None:
        self.process = spm.popen("connect", "s", stdin=subprocess.PIPE)

    def send(self, *messages: object) -> None:
        assert self.process.stdin
        for message in messages:
            self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the connection was closed"
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    def ask(self, method: str, id_: object = 1, **params: object) -> dict[str, Any]:
        self.send({"jsonrpc": "2.0", "id": id_, "method": method, "params": params})
        answer = self.hear()
        assert answer["id"] == id_
        return answer


@contextmanager
def wire(spm: Spm) -> Iterator[Wire]:
    one = Wire(spm)
    try:
        yield one
    finally:
        assert one.process.stdin and one.process.stdout and one.process.stderr
        one.process.stdin.close()
        one.process.wait(10)
        one.process.stdout.close()
        one.process.stderr.close()


def tool(id_: object, name: str, **arguments: object) -> dict[str, Any]:
    params = {"name": name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": id_, "method": "tools/call", "params": params}


def said(message: dict[str, Any]) -> str:
    return str(message["result"]["content"][0]["text"])


def relay(spm: Spm) -> dict[str, Any]:
    facts = spm.json("status", "s")["relay"]
    assert isinstance(facts, dict)
    return facts


# -- call


@pytest.mark.smoke
def test_a_call_prints_what_the_tool_answers(spm: Spm) -> None:
    begin(spm)
    assert spm("call", "s", "echo", MESSAGE).stdout == "hello\n"
    long = spm("call", "s", "tools/call", "name=echo", "arguments.message=hi")
    assert long.stdout == "hi\n"
    as_json = spm.json("call", "s", "tools/call", '{"name": "echo", "arguments": {"message": "x"}}')
    assert said(as_json) == "x"
    assert spm("call", "s", "ping").stdout == "{}\n"
    facts = relay(spm)
    assert (facts["era"], facts["version"]) == ("handshake", "2025-06-18")
    assert facts["server"] == {"name": "rpc", "version": "1"}
    assert (facts["calls"], facts["errors"], facts["in_flight"]) == (4, 0, 0)
    spm("stop", "s")


def test_parameters_come_from_a_file_and_from_stdin(spm: Spm) -> None:
    begin(spm, "--plain", options=("--protocol", "jsonrpc"))
    (spm.cwd / "p.json").write_text('{"a": [1, "ü"]}', "utf-8")
    assert spm.json("call", "s", "add", "@p.json")["result"]["params"] == {"a": [1, "ü"]}
    with open(spm.cwd / "p.json", encoding="utf-8") as file:
        done = spm("call", "s", "add", "-", stdin=file)
    assert json.loads(done.stdout)["params"] == {"a": [1, "ü"]}
    given_ = spm.json("call", "s", "add", "a=1", "b.c=true", "b.d=x y", "e=")["result"]["params"]
    assert given_ == {"a": 1, "b": {"c": True, "d": "x y"}, "e": ""}
    raw = '{"jsonrpc": "2.0", "id": "mine", "method": "m", "params": [1, 2]}'
    answer = json.loads(spm("call", "s", "--raw", raw).stdout)
    assert (answer["id"], answer["result"]["params"]) == ("mine", [1, 2])
    assert "was told" in spm("call", "s", "--raw", '{"method": "m"}').stdout
    for none in (f"[{raw}]", "{}", '{"id": 1, "result": {}}'):
        told = spm("call", "s", "--raw", none, "--timeout", "2s", code=2).stderr
        assert "--raw: not one JSON-RPC message with a method" in told
    spm("call", "s", "add", "--notification")
    assert relay(spm)["era"] == "jsonrpc"
    spm("stop", "s")


def test_a_file_that_is_not_there_was_called_no_json(spm: Spm) -> None:
    begin(spm, "--plain", options=("--protocol", "jsonrpc"))
    error = spm.json("call", "s", "add", "@/nope", code=2)["error"]
    assert error["message"] == "/nope can't be read: No such file or directory"
    assert error["advice"] == "name a file with JSON behind @"
    (spm.cwd / "x.json").write_text("{")
    assert spm.json("call", "s", "add", "@x.json", code=2)["error"]["message"].startswith(
        "not JSON"
    )
    spm("stop", "s")


def test_with_a_closed_stdin_connect_hung_and_call_ended_in_a_traceback(spm: Spm) -> None:
    begin(spm, "--plain", options=("--protocol", "jsonrpc"))
    for words, code in ((["connect", "s"], 0), (["call", "s", "add", "-"], 2)):
        closed = ["sh", "-c", 'exec "$@" <&-', "sh", *spm.argv(*words)]
        done = subprocess.run(
            closed, cwd=spm.cwd, env=spm.env, capture_output=True, text=True, timeout=8
        )
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    spm("stop", "s")


def test_a_result_beside_an_error_that_is_null_was_a_failure_called_none(spm: Spm) -> None:
    begin(spm)
    assert spm("call", "s", "old").stdout == "done\n"
    assert relay(spm)["errors"] == 0
    spm("stop", "s")


def test_what_a_server_wrote_last_was_lost_without_its_line_end(spm: Spm) -> None:
    script = "printf 'fatal: no key'; exit 3"
    spm("start", "q", "--type", "stdio", "--protocol", "jsonrpc", "--shell", script)
    eventually(lambda: spm.service("q")["status"] == "failed", what="its end")
    assert spm.log("q") == "[WARN] on stdout, not JSON-RPC: fatal: no key\n"
    assert "fatal: no key" in spm.json("explain", "q")["cause"]["message"]
    begin(spm)
    assert spm("call", "s", "last").stdout == "the end\n"


def test_a_call_or_a_start_in_other_letters_gave_a_service_another_name(spm: Spm) -> None:
    begin(spm)
    for words in (("call", "S", "echo", MESSAGE), ("start", "S")):
        spm("stop", "s")
        spm(*words)
        assert spm.service("s")["pid"], words
    spm("stop", "s")


def test_an_answer_to_5_0_was_none_to_5(spm: Spm) -> None:
    begin(spm)
    assert spm.json("call", "s", "float", "--timeout", "2s")["result"] == {"content": []}
    spm("stop", "s")


def test_progress_of_5_0_was_none_of_5(spm: Spm) -> None:
    begin(spm)
    words = ("progress", "steps=4", "pause=0.4", "float=true", "--timeout", "900ms")
    assert spm("call", "s", *words).stdout == "done\n"
    spm("stop", "s")


def test_an_error_that_is_a_mere_text_was_told_as_none(spm: Spm) -> None:
    begin(spm)
    failed = spm.json("call", "s", "terse", code=1)["error"]
    assert (failed["message"], failed["cause"]) == ('s: "out of paper"', "protocol")
    spm("stop", "s")


def test_what_a_server_calls_the_cause_of_its_error_was_taken_for_ours(spm: Spm) -> None:
    begin(spm)
    failed = spm.json("call", "s", "refused", code=1)["error"]
    assert (failed["message"], failed["cause"]) == ("s: no database (-32000)", "protocol")
    assert failed["data"] == {"cause": "ECONNREFUSED"}
    for cause in ("timeout", "cancelled", "server_died"):
        told = f'data={{"cause": "{cause}"}}'
        assert spm.json("call", "s", "refused", told, code=1)["error"]["cause"] == "protocol"
    spm("stop", "s")


def test_the_data_of_an_error_that_is_no_object_was_lost(spm: Spm) -> None:
    begin(spm)
    for text, data in (("words", "words"), ("[1]", [1]), ("null", None)):
        assert spm.json("call", "s", "refused", f"data={text}", code=1)["error"]["data"] == data
    spm("stop", "s")


def test_errors_of_a_call_are_told_apart(spm: Spm) -> None:
    begin(spm)
    unknown = spm.json("call", "s", "nope", code=1)["error"]
    assert (unknown["cause"], unknown["code"]) == ("invalid_params", -32602)
    assert spm.json("call", "s", "no/method", code=1)["error"]["cause"] == "protocol"
    failed = spm("call", "s", "sample", code=1)
    assert "no client that supports sampling" in failed.stdout
    late = spm.json("call", "s", "slow", "seconds=3", "--timeout", "200ms", code=124)["error"]
    assert (late["cause"], late["retryable"]) == ("timeout", False)
    eventually(lambda: json.loads(spm("call", "s", "cancelled").stdout), what="its cancellation")
    spm("call", "s", "echo", "{broken", code=2)
    spm("call", "s", "echo", "a=1", "a.b=2", code=2)
    spm("call", "s", "echo", "words", code=2)
    spm("stop", "s")
    spm("call", "s", "echo", "--no-start", code=3)
    spm("call", "unknown", "echo", code=3)
    spm("start", "other", f"{sys.executable} -c 'import time; time.sleep(60)'")
    spm("call", "other", "echo", code=2)
    spm("stop", "other")


def test_progress_renews_the_timeout(spm: Spm) -> None:
    begin(spm)
    spm("tools", "s")  # the limit is about the call, not about its start
    words = ("steps=8", "pause=0.1", "--timeout", "400ms")
    assert spm("call", "s", "progress", *words).stdout == "done\n"
    spm("stop", "s")


@pytest.mark.smoke
def test_after_an_empty_page_no_further_tools_were_listed(spm: Spm) -> None:
    begin(spm, "--pages")
    names = [one["name"] for one in spm.json("tools", "s")["tools"]]
    assert (names[0], names[-1], len(names)) == ("echo", "pid", 9)
    spm("stop", "s")


def test_tools_are_listed_with_their_arguments(spm: Spm) -> None:
    begin(spm)
    rows = spm("tools", "s").stdout.splitlines()
    assert rows[1].split() == ["echo", "message=string", "[times=integer]"]
    spm("stop", "s")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string"}, "string"),
        ({"type": ["string", "null"]}, "string|null"),
        ({"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/X"}]}, "integer|any"),
        ({"oneOf": 3}, "any"),
        ({"enum": ["x"]}, "any"),
    ],
)
def test_the_type_of_an_argument_is_said_in_a_word(schema: dict[str, object], words: str) -> None:
    assert program.type_in(schema) == words


# -- one process


def test_twenty_first_calls_start_one_process(spm: Spm) -> None:
    starts = spm.base / "starts"
    begin(spm, "--starts", starts)
    spm("stop", "s")
    starts.write_text("")
    with ThreadPoolExecutor(20) as pool:
        done = list(pool.map(lambda _: spm("call", "s", "pid").stdout, range(20)))
    assert done == [starts.read_text()] * 20
    spm("stop", "s")


def test_without_keep_alive_two_calls_are_two_processes(spm: Spm) -> None:
    begin(spm, options=("--no-keep-alive",))
    first = spm("call", "s", "pid").stdout
    second = spm("call", "s", "pid").stdout
    assert first != second
    eventually(lambda: not is_running(int(second)), what="its end after the call")
    eventually(lambda: spm.service("s")["status"] == "stopped", what="stopped")


def test_without_keep_alive_a_server_nobody_can_speak_with_lived_on(spm: Spm) -> None:
    begin(spm, options=("--no-keep-alive", "--protocol", "modern"))
    error = spm.json("call", "s", "pid", code=1)["error"]
    assert "answered server/discover with" in error["message"]
    eventually(lambda: spm.service("s")["status"] == "stopped", what="its end")
    assert "it answered server/discover with" in spm("events", "s").stdout


def test_without_keep_alive_a_server_that_refused_and_failed_was_called_stopped(spm: Spm) -> None:
    words = (
        "import json; asked = json.loads(input()); error = dict(code=-1, message='no licence');"
        "print(json.dumps(dict(jsonrpc='2.0', id=asked['id'], error=error)), flush=True); exit(3)"
    )
    options = ("--no-keep-alive", "--protocol", "handshake", "--cooldown", "1m")
    spm("start", "s", "--type", "stdio", *options, "--", sys.executable, "-c", words)
    eventually(lambda: spm.service("s")["status"] == "failed", what="its end")
    assert spm.json("status", "s", code=3)["exit"]["code"] == 3
    assert "cooldown" in spm("call", "s", "pid", code=7).stderr, "no call begins it at once"


def test_every_answer_reaches_its_caller(spm: Spm) -> None:
    begin(spm)
    callers, rounds, at_once = 50, 10, 20
    known: list[object] = [*range(150), *map(str, range(150))]  # many are equal, 1 isn't "1"

    def talk(caller: int) -> None:
        ids = random.Random(caller).sample(known, rounds * at_once)
        with connected(spm) as connection, connection.makefile("rwb") as file:
            for first in range(0, len(ids), at_once):
                asked = [(id_, f"{caller}/{id_!r}") for id_ in ids[first : first + at_once]]
                lines = [json.dumps(tool(id_, "echo", message=words)) for id_, words in asked]
                file.write("\n".join([*lines, ""]).encode())
                file.flush()
                answers = [json.loads(file.readline()) for _ in asked]
                assert [(answer["id"], said(answer)) for answer in answers] == asked

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(talk, range(callers)))
    assert relay(spm)["calls"] == callers * rounds * at_once
    spm("stop", "s")


def test_however_callers_take_turns_each_hears_its_own_answers_once(spm: Spm) -> None:
    begin(spm)
    ids: st.SearchStrategy[object] = st.sampled_from([0, 1, "0", "1", -1, 1.5, None])
    step = st.tuples(st.integers(0, 3), ids, st.sampled_from(["echo", "slow"]))

    @settings(max_examples=20, deadline=None)
    @given(st.lists(step, max_size=30))
    def talk(steps: list[tuple[int, object, str]]) -> None:
        with ExitStack() as stack:
            clients = [stack.enter_context(connected(spm)) for _ in range(4)]
            for number, (client, id_, name) in enumerate(steps):
                message = tool(id_, name, message=str(number), seconds=number % 3 / 1000)
                clients[client].sendall(json.dumps(message).encode() + b"\n")
            for client, connection in enumerate(clients):
                file = stack.enter_context(connection.makefile("rb"))
                mine = [(repr(s[1]), str(n)) for n, s in enumerate(steps) if s[0] == client]
                answers = [json.loads(file.readline()) for _ in mine]
                assert sorted((repr(one["id"]), said(one)) for one in answers) == sorted(mine)
                connection.sendall(b'{"jsonrpc": "2.0", "id": "last", "method": "ping"}\n')
                assert json.loads(file.readline())["id"] == "last"

    talk()
    spm("stop", "s")


@contextmanager
def connected(spm: Spm) -> Iterator[socket.socket]:
    """A caller over the control socket itself."""
    path = spm.home / "services" / "s" / "control.sock"
    eventually(path.exists, what="the control socket")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        connection.sendall(b'{"op": "join", "token": ""}\n')
        answer = program.receive(connection, 20)
        assert answer["ok"]
        yield connection


def test_a_service_whose_supervisor_was_killed_is_started_anew(spm: Spm) -> None:
    begin(spm)
    first = spm("call", "s", "pid").stdout
    spm.kill_supervisor("s")
    assert spm("call", "s", "pid").stdout != first
    spm.kill_supervisor("s")
    begin(spm)
    spm("call", "s", "echo", MESSAGE)
    spm("stop", "s")


# -- servers that misbehave


def test_objects_that_a_server_writes_to_stdout_were_in_no_log(spm: Spm) -> None:
    begin(spm, "--noise", "--wrong-ids")
    spm("call", "s", "broken", code=1)
    assert '[WARN] on stdout, not JSON-RPC: {"level": "info"}' in spm.log("s")
    complaint = '{"jsonrpc": "2.0", "id": null, "error": {"code": -32603'
    assert f"[WARN] on stdout, an error about no request: {complaint}" in spm.log("s")
    spm("stop", "s")


@pytest.mark.parametrize("manner", ["--noise", "--twice", "--wrong-ids", "--silent", "--batch"])
def test_bad_manners_disturb_nobody(spm: Spm, manner: str) -> None:
    begin(spm, manner)
    for number in range(3):
        assert spm("call", "s", "echo", f"message=m{number}").stdout == f"m{number}\n"
    assert ("not JSON-RPC: hello" in spm.log("s")) is (manner == "--noise")
    spm("stop", "s")


def test_a_server_that_dies_on_the_probe_is_started_again_and_that_is_remembered(spm: Spm) -> None:
    starts = spm.base / "starts"
    begin(spm, "--die-on-probe", "--starts", starts)
    assert spm("call", "s", "echo", MESSAGE).stdout == "hello\n"
    assert len(starts.read_text().split()) == 2
    spm("stop", "s")
    begin(spm, "--die-on-probe", "--starts", starts)
    spm("call", "s", "echo", MESSAGE)
    assert len(starts.read_text().split()) == 3
    spm("stop", "s")


def test_a_stop_that_had_seen_the_process_before_the_probe_was_refused_as_forged(spm: Spm) -> None:
    begin(spm, "--die-on-probe")
    spm("call", "s", "echo", MESSAGE)
    store = program.Store(str(spm.home))
    journal = store.path("s", "events.jsonl")
    events = map(json.loads, Path(journal).read_text("utf-8").splitlines())
    first, *_, last = (event["record"]["main"] for event in events)
    assert first != last
    asked = {"op": "stop", "main": first, "spare": [], "timeout_s": 5, "force": False}
    with store.send("s", asked) as supervisor:
        assert program.receive(supervisor, 5)["ok"] and program.receive(supervisor, 5)["ended"]


def test_a_server_that_dies_on_the_probe_and_is_gone_then_has_failed(spm: Spm) -> None:
    # its supervisor left twice, and died of that
    tool = spm.cwd / "tool"
    tool.write_text('#!/bin/sh\nread line\nrm "$0"\n')
    tool.chmod(0o755)
    spm("start", "s", "--type", "stdio", "./tool")
    row = eventually(
        lambda: [r for r in [spm.service("s")] if r["status"] == "failed"], what="its failure"
    )[0]
    assert "could not be executed: No such file" in row["why"]


def test_what_a_server_died_of_before_any_probe_is_not_taken_for_the_probe(spm: Spm) -> None:
    begin(spm, "--modern", "--needs", "it")
    assert "it needs something" in spm("call", "s", "echo", code=1).stderr
    (spm.cwd / "it").touch()
    spm("start", "s", "--force")
    assert spm("call", "s", "echo", MESSAGE).stdout == "hello\n"
    spm("stop", "s")


@pytest.mark.parametrize("again", [["start", "s", "--force"], ["restart", "s"]])
def test_a_server_mended_after_a_bug_was_spoken_to_as_an_old_one_for_good(
    spm: Spm, again: list[str]
) -> None:
    text = Path(__file__).with_name("rpc_server.py").read_text("utf-8")
    file = spm.cwd / "mended.py"
    file.write_text(text.replace("import json", "raise SystemExit('nosuchmod')", 1))
    spm("start", "s", "--type", "stdio", "--", sys.executable, file, "--modern")
    assert "nosuchmod" in spm("call", "s", "echo", MESSAGE, code=1).stderr
    file.write_text(text)
    spm(*again)
    assert spm("call", "s", "echo", MESSAGE).stdout == "hello\n"
    assert relay(spm)["era"] == "modern"
    spm("stop", "s")


def test_a_server_that_died_of_the_probe_may_be_a_modern_one_by_its_next_start(spm: Spm) -> None:
    text = Path(__file__).with_name("rpc_server.py").read_text("utf-8")
    file = spm.cwd / "server.py"
    old = text.replace('"--modern" in', '"-" in').replace('"--modern" not in', '"-" not in')
    file.write_text(old.replace('"--die-on-probe"', '"--modern"'))
    spm("start", "s", "--type", "stdio", "--", sys.executable, file, "--modern")
    assert spm("call", "s", "echo", MESSAGE).stdout == "hello\n"
    file.write_text(text)
    spm("restart", "s")
    assert spm("call", "s", "echo", MESSAGE).stdout == "hello\n"
    assert relay(spm)["era"] == "modern"
    spm("stop", "s")


def test_a_death_of_the_probe_had_no_exit_among_the_events(spm: Spm) -> None:
    begin(spm, "--die-on-probe")
    spm("call", "s", "echo", MESSAGE)
    assert "exited: exit code" in spm("events", "s").stdout
    spm("stop", "s")


def test_the_advice_for_an_error_of_a_tool_names_its_log(spm: Spm) -> None:
    begin(spm)
    assert "logs s" in spm("call", "s", "sample", code=1).stderr
    spm("stop", "s")


def test_death_in_mid_call_fails_every_pending_call_at_once(spm: Spm) -> None:
    begin(spm)
    slow = spm.popen("call", "s", "slow", "seconds=30", "--json")
    eventually(lambda: relay(spm)["in_flight"], what="the slow call in flight")
    killer = spm.json("call", "s", "die", code=1)["error"]
    out, _ = slow.communicate(timeout=10)
    for error in (killer, json.loads(out)["error"]):
        assert (error["cause"], error["retryable"]) == ("server_died", False)
        assert "may or may not have happened" in error["message"]
        assert error["log_tail"] == ["dying words"]
        assert "exit code 3" in error["message"]
    assert slow.returncode == 1


def test_the_death_of_a_server_whose_log_is_a_link_ended_the_supervisor(spm: Spm) -> None:
    begin(spm)
    log = spm.home / "services" / "s" / "output.log"
    log.unlink()
    log.symlink_to(spm.base / "elsewhere")
    error = spm.json("call", "s", "die", code=1)["error"]
    assert (error["cause"], error["log_tail"]) == ("server_died", [])
    log.unlink()
    eventually(lambda: spm.service("s")["status"] == "failed", what="failed")


@pytest.mark.parametrize(
    ("words", "is_harmless"),
    [(["prompts/list"], True), (["pid"], True), (["slow", "seconds=0"], False)],
)
def test_only_what_can_do_no_harm_is_sent_again(
    spm: Spm, words: list[str], is_harmless: bool
) -> None:
    died = spm.base / "died"
    begin(spm, "--die-once", died)
    spm("tools", "s")  # pid says that it is read only, slow doesn't
    spm("call", "s", *words, code=0 if is_harmless else 1)
    assert died.exists()
    spm("stop", "s")


def test_the_death_of_a_server_is_told_though_a_caller_does_not_read(spm: Spm) -> None:
    # it was let go because of the first of its answers, and the others were looked for in vain
    begin(spm)
    with connected(spm) as connection:
        asked = [tool(n, "slow", seconds=60) for n in range(3)]
        asked += [tool(n, "big", size=33 << 20) for n in (3, 4)]
        connection.sendall("".join(json.dumps(one) + "\n" for one in asked).encode())
        facts = eventually(
            lambda: [f for f in [relay(spm)] if f["calls"] == 5 and f["in_flight"] == 3]
        )
        assert facts[0]["callers"] == 1
        spm("call", "s", "die", code=1)
        eventually(lambda: spm.service("s")["status"] == "failed", what="its end")
    assert spm.record("s")["exit"]["code"] == 3


def test_a_server_that_leaves_somebody_behind_who_floods_its_stdout_has_ended(spm: Spm) -> None:
    # what came was read for ever
    spm("start", "s", "--type", "stdio", "--shell", f"yes {'y' * 9} & read line; exit 3")
    eventually(lambda: spm.service("s")["status"] == "failed", what="its end")
    spm("stop", "s")
    assert spm.record("s")["exit"]["code"] == 3


def test_idleness_ends_the_server_but_not_under_a_call(spm: Spm) -> None:
    begin(spm, options=("--idle-timeout", "1500ms"))
    assert spm("call", "s", "slow", "seconds=2").stdout == "slow\n"
    eventually(lambda: spm.service("s")["status"] == "stopped", within=5, what="its idle end")
    assert "idle" in spm.json("status", "s", code=3)["why"]
    assert spm("call", "s", "echo", MESSAGE).stdout == "hello\n"
    spm("stop", "s")


def test_a_stdio_service_is_let_go_after_an_hour_unless_told_otherwise(spm: Spm) -> None:
    begin(spm)
    assert 3590 < spm.json("status", "s")["idle_left_s"] <= 3600
    spm("stop", "s")


def test_a_server_that_is_restarted_by_its_policy_can_be_called_again(spm: Spm) -> None:
    begin(spm, options=("--restart", "on-failure", "--backoff", "10ms"))
    first, guard = spm("call", "s", "pid").stdout, spm.supervisor("s")
    spm("call", "s", "die", code=1)
    eventually(lambda: spm.service("s")["status"] in ("running", "ready"), what="its restart")
    assert spm("call", "s", "pid").stdout != first
    assert spm.supervisor("s") == guard
    spm("stop", "s")


def test_a_server_that_ends_at_once_is_not_started_for_ever(spm: Spm) -> None:
    starts = spm.base / "starts"
    begin(spm, options=("--protocol", "handshake"))
    spm("stop", "s")
    script = f"echo x >>{starts}; echo broken >&2; exit 5"
    spm("start", "s", "--type", "stdio", "--shell", script)
    error = spm.json("call", "s", "echo", code=1)["error"]
    assert error["cause"] == "server_died"
    assert {*error["log_tail"]} == {"broken"} and "explain s" in error["advice"]
    count = len(starts.read_text().split())
    assert count <= 4
    eventually(lambda: not spm.bearers(), what="its supervisor to leave")
    refused = spm.json("call", "s", "echo", code=7)["error"]
    assert (refused["kind"], refused["reason"]) == ("cooldown", "exit code 5")
    assert 55 < refused["seconds_left"] <= 240 and "start s --force" in refused["advice"]
    assert len(starts.read_text().split()) == count
    spm("start", "s")  # by hand: whoever does that has mended it
    spm("start", "s", "--type", "stdio", "--cooldown", "0", "--shell", script, "--replace")
    for _ in range(2):
        spm("call", "s", "echo", code=1)


def test_a_server_that_a_call_started_and_that_answered_may_be_called_again_at_once(
    spm: Spm,
) -> None:
    begin(spm)
    for _ in range(2):
        spm("stop", "s")
        spm("call", "s", "echo", MESSAGE)
        spm("call", "s", "die", code=1)
        assert spm("call", "s", "echo", MESSAGE).stdout == "hello\n"
    spm("stop", "s")


def test_a_server_that_never_answers_is_given_up(spm: Spm) -> None:
    begin(spm, "--mute", options=("--protocol", "jsonrpc"))
    spm("call", "s", "anything", "--timeout", "100ms", code=124)
    spm("stop", "s")


def test_the_timeout_of_a_call_is_that_of_its_start_too(spm: Spm) -> None:
    begin(spm, "--mute")
    began = time.monotonic()
    error = spm.json("call", "s", "echo", "--timeout", "500ms", code=124)["error"]
    assert (error["cause"], time.monotonic() - began < 5) == ("timeout", True)
    spm("stop", "s")


def test_a_server_that_ignores_the_end_of_stdin_is_killed(spm: Spm) -> None:
    begin(spm, "--ignore-end")
    spm("call", "s", "echo", MESSAGE)
    done = spm.json("stop", "s")["services"][0]
    assert done["killed"] is True
    assert 3.5 < done["seconds"] < 8


@pytest.mark.skipif(sys.platform == "win32", reason="the end of a pipe's reader isn't told")
@pytest.mark.parametrize(("descriptor", "closed"), [(0, "stdin"), (1, "stdout")])
def test_a_server_that_had_closed_one_of_its_pipes_was_waited_for_in_vain(
    spm: Spm, descriptor: int, closed: str
) -> None:
    begin(spm)
    pid = spm.service("s")["pid"]
    done = spm("call", "s", "close", f"descriptor={descriptor}", "--timeout", "20s", code=None)
    answered = "" if done.returncode else done.stdout
    assert answered == "closed\n" * (closed == "stdin")
    for _ in range(2):
        error = spm.json("call", "s", "echo", MESSAGE, "--timeout", "20s", code=1)["error"]
        assert error["message"].startswith(f"s closed its {closed}, but lives"), error
        assert error["advice"] == "start it anew: restart s; see why: explain s"
        assert error["cause"] == "server_died"
    assert spm.service("s")["pid"] == pid
    spm("stop", "s", "--force")


def test_the_end_of_stdin_ends_a_polite_server(spm: Spm) -> None:
    begin(spm)
    spm("call", "s", "echo", MESSAGE)
    done = spm.json("stop", "s")["services"][0]
    assert (done["killed"], done["exit"]["code"], done["processes"]) == (False, 0, 1)


def test_what_a_server_says_at_its_end_comes_whole(spm: Spm) -> None:
    begin(spm)
    with connected(spm) as connection, connection.makefile("rwb") as file:
        file.write(json.dumps(tool(1, "parting")).encode() + b"\n")
        file.flush()
        eventually(lambda: relay(spm)["in_flight"], what="the request in flight")
        stopping = spm.popen("stop", "s")
        assert len(said(json.loads(file.readline()))) == 2_000_000
        assert stopping.communicate(timeout=20)[1] == ""


def test_who_took_an_answer_slowly_lost_the_rest_of_it_at_the_servers_end() -> None:
    ours, theirs = socket.socketpair()
    with selectors.DefaultSelector() as events, theirs:
        caller = program.Channel(events, ours)
        caller.listen(lambda *_: None)
        caller.send({"x": "x" * 1_000_000})
        now = time.monotonic()
        with ThreadPoolExecutor() as pool:
            came = pool.submit(slowly, theirs)
            caller.finish(now + 0.2, now + 30)
            assert len(came.result()) > 1_000_000


def slowly(connection: socket.socket) -> bytes:
    """What comes until its end, in more than a third of a second."""
    pieces = [b"x"]
    while pieces[-1]:
        pieces.append(connection.recv(1 << 16))
        time.sleep(0.02)
    return b"".join(pieces[1:])


# -- both eras


def test_a_modern_server_serves_callers_of_both_eras(spm: Spm) -> None:
    begin(spm, "--modern")
    assert spm("call", "s", "echo", MESSAGE).stdout == "hello\n"
    assert relay(spm)["era"] == "modern"
    assert relay(spm)["server"] == {"name": "modern", "version": "9"}
    with wire(spm) as one:
        greeting = one.ask("initialize", protocolVersion="2025-06-18", capabilities={})["result"]
        assert greeting["protocolVersion"] == "2025-06-18"
        assert greeting["serverInfo"] == {"name": "modern", "version": "9"}
        assert one.ask("ping", 2)["result"] == {}
        one.send(tool(3, "echo", message="from the older era"))
        assert said(one.hear()) == "from the older era"
        one.send({"jsonrpc": "2.0", "id": "mine", "method": "subscriptions/listen"})
        news, end = one.hear()["params"], one.hear()["result"]  # both by the caller's own id
        assert news == end == {"_meta": {"io.modelcontextprotocol/subscriptionId": "mine"}}
    spm("stop", "s")


@pytest.mark.parametrize("era", [(), ("--modern",)])
def test_an_older_client_was_answered_in_a_version_that_it_does_not_know(
    spm: Spm, era: tuple[str, ...]
) -> None:
    begin(spm, *era)
    latest = "2025-11-25" if era else "2025-06-18"
    versions = {"2024-11-05": "2024-11-05", "2026-07-28": latest, "": latest}
    with wire(spm) as one:
        for asked, answered in versions.items():
            result = one.ask("initialize", protocolVersion=asked, capabilities={})["result"]
            assert result["protocolVersion"] == answered
    spm("stop", "s")


def test_a_client_that_shakes_hands_was_promised_what_only_a_modern_one_can_have(spm: Spm) -> None:
    begin(spm, "--modern")
    with wire(spm) as one:
        result = one.ask("initialize", protocolVersion="2025-11-25", capabilities={})["result"]
        assert result["capabilities"] == {"resources": {}, "tools": {"other": True}}
    spm("stop", "s")


@pytest.mark.parametrize(
    ("version", "era"), [("2027-01-01", "modern"), ("2025-06-18", "handshake")]
)
def test_a_server_that_names_another_version_is_spoken_to_in_it(
    spm: Spm, version: str, era: str
) -> None:
    begin(spm, "--supports", version)
    assert spm("call", "s", "echo", MESSAGE).stdout == "hello\n"
    assert (relay(spm)["era"], relay(spm)["version"]) == (era, version)
    spm("stop", "s")


def test_a_server_that_refused_our_handshake_was_not_asked_in_a_version_that_it_speaks(
    spm: Spm,
) -> None:
    begin(spm, "--insists", "2025-03-26")
    assert spm("call", "s", "echo", MESSAGE).stdout == "hello\n"
    facts = relay(spm)
    assert (facts["era"], facts["version"]) == ("handshake", "2025-03-26")
    spm("stop", "s")
    spm("start", "old", "--type", "stdio", server("--insists", "2001-01-01"))
    error = spm.json("call", "old", "echo", MESSAGE, code=1)["error"]
    ours = "2026-07-28, 2025-11-25, 2025-06-18, 2025-03-26, 2024-11-05, 2024-10-07"
    told = f"old speaks MCP 1999-01-01, 2001-01-01; this program speaks {ours}"
    assert (error["message"], error["cause"]) == (told, "protocol")
    spm("stop", "old")


def test_the_protocol_asked_for_is_the_one_used(spm: Spm) -> None:
    begin(spm, options=("--protocol", "modern"))
    error = spm.json("call", "s", "echo", MESSAGE, code=1)["error"]
    assert error["cause"] == "protocol"
    spm("stop", "s")
    spm("start", "s", "--type", "stdio", "--protocol", "old", "x", code=2)


# -- connect


def test_clients_share_the_server_and_their_end_is_not_its_end(spm: Spm) -> None:
    begin(spm)
    with wire(spm) as one, wire(spm) as two:
        for client in (one, two):
            assert client.ask("initialize", "a", capabilities={})["result"]["serverInfo"]
            client.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
            assert client.ask("server/discover", "b")["error"]["code"] == -32601
        one.send(tool(5, "pid"))
        two.send(tool("5", "pid"))
        first, second = one.hear(), two.hear()
        assert (first["id"], second["id"]) == (5, "5")
        assert said(first) == said(second)
    assert spm("call", "s", "pid").stdout == said(first) + "\n"
    spm("stop", "s")


def test_what_was_asked_before_stdin_ended_is_still_answered(spm: Spm) -> None:
    begin(spm)
    asked = spm.cwd / "asked"
    asked.write_text(json.dumps(tool(1, "slow", seconds=0.3)))  # without an end of line, too
    with open(asked, encoding="utf-8") as file:
        assert said(json.loads(spm("connect", "s", stdin=file).stdout)) == "slow"
    spm("stop", "s")


def test_connect_stayed_for_ever_when_the_terminal_that_it_read_from_was_closed(spm: Spm) -> None:
    begin(spm)
    ours, theirs = os.openpty()
    client = spm.popen("connect", "s", stdin=theirs, start_new_session=True)
    os.close(theirs)
    eventually(lambda: relay(spm)["callers"] == 1, what="its arrival")
    os.close(ours)
    out, err = client.communicate(timeout=4)
    assert (client.returncode, out, err) == (0, "", "")
    spm("stop", "s")


def test_connect_was_deaf_where_its_stdin_did_not_block(spm: Spm) -> None:
    begin(spm)
    theirs, ours = os.pipe()
    os.set_blocking(theirs, False)
    client = spm.popen("connect", "s", stdin=theirs)
    os.close(theirs)
    eventually(lambda: relay(spm)["callers"] == 1, what="its arrival")
    # it has looked at its stdin once, in vain
    eventually(lambda: psutil.Process(client.pid).num_threads() == 2, what="its second thread")
    with open(ours, "w", encoding="utf-8") as file:
        file.write(json.dumps(tool(1, "slow", seconds=0)))
    out, err = client.communicate(timeout=4)
    assert said(json.loads(out)) == "slow", err
    spm("stop", "s")


def test_a_large_answer_after_the_end_of_stdin_comes_whole(spm: Spm) -> None:
    begin(spm)
    asked = spm.cwd / "asked"
    asked.write_text(json.dumps(tool(1, "big", size=5_000_000)))
    began = time.monotonic()
    with open(asked, encoding="utf-8") as file:
        assert len(said(json.loads(spm("connect", "s", stdin=file).stdout))) == 5_000_000
    assert time.monotonic() - began < program.LEAVING_S, "it leaves when it has its answer"
    spm("stop", "s")


def test_nothing_is_done_for_a_caller_that_was_let_go(spm: Spm) -> None:
    begin(spm)
    with connected(spm) as connection, connection.makefile("rwb") as file:
        end = {"jsonrpc": "2.0", "method": program.END}
        for message in (end, tool(1, "slow", seconds=60)):
            file.write(json.dumps(message).encode() + b"\n")
        file.flush()
        assert file.readline() == b""
    assert (relay(spm)["in_flight"], relay(spm)["calls"]) == (0, 0)
    spm("stop", "s")


def test_notifications_about_a_request_go_to_its_caller_alone(spm: Spm) -> None:
    begin(spm)
    with wire(spm) as one, wire(spm) as two:
        two.ask("ping")
        request = tool(1, "progress", steps=2)
        request["params"]["_meta"] = {"progressToken": "tok"}
        one.send(request)
        heard = [one.hear() for _ in range(3)]
        tokens = [m["params"]["progressToken"] for m in heard if "params" in m]
        assert tokens == ["tok", "tok"]
        one.send(tool(2, "announce"))
        assert one.hear()["method"] == "notifications/message"
        assert two.hear()["method"] == "notifications/message"  # and no progress before it
    spm("stop", "s")


@pytest.mark.parametrize("token", ["tok", 1])
def test_progress_in_plain_json_rpc_reaches_who_asked_for_it(spm: Spm, token: object) -> None:
    # tokens are the callers' own there: it reached nobody, or whose request had that number of ours
    begin(spm, options=("--protocol", "jsonrpc"))
    with wire(spm) as one, wire(spm) as two:
        two.ask("ping")
        request = tool(7, "progress", steps=2)
        request["params"]["_meta"] = {"progressToken": token}
        one.send(request)
        heard = [one.hear() for _ in range(3)]
        assert [m["params"]["progressToken"] for m in heard if "params" in m] == [token] * 2
    spm("stop", "s")


def test_a_client_that_watched_no_longer_took_the_news_from_the_others(spm: Spm) -> None:
    begin(spm)
    with wire(spm) as one, wire(spm) as two:

        def watched() -> Any:
            one.send(tool(9, "watched"))
            return json.loads(said(one.hear()))

        for client in (one, two):
            assert client.ask("resources/subscribe", uri="x://1")["result"] == {}
        assert two.ask("resources/unsubscribe", uri="x://1")["result"] == {}
        assert "x://1" in watched(), "one still wants to know"
        assert one.ask("resources/unsubscribe", uri="x://1")["result"] == {}
        assert watched() == []
        two.ask("resources/subscribe", uri="x://2")
        two.process.kill()
        eventually(lambda: "x://2" not in watched(), what="the end of what it watched")
    spm("stop", "s")


def test_the_log_level_of_one_client_held_for_all(spm: Spm) -> None:
    begin(spm)
    with wire(spm) as loud:
        with wire(spm) as quiet:
            for one, level in ((loud, "debug"), (quiet, "error")):
                assert one.ask("logging/setLevel", level=level)["result"] == {}
            loud.send(tool(1, "announce", levels=["debug", "error", "alert"]))
            levels = [loud.hear()["params"]["level"] for _ in range(3)]
            assert (levels, said(loud.hear())) == (["debug", "error", "alert"], "announced")
            assert [quiet.hear()["params"]["level"] for _ in range(2)] == ["error", "alert"]
            assert quiet.ask("ping")["result"] == {}
        assert loud.ask("logging/setLevel", level="warning")["result"] == {}
        with wire(spm) as other:
            assert other.ask("logging/setLevel", level="info")["result"] == {}
            assert "error" not in other.ask("tools/call", name="levels")
        asked = "debug debug warning info warning"  # of the server: the most verbose
        eventually(lambda: spm("call", "s", "levels").stdout == f"{asked}\n", what="the last one")
    spm("stop", "s")


def test_a_caller_that_goes_away_has_its_requests_cancelled(spm: Spm) -> None:
    begin(spm)
    with wire(spm) as one:
        one.send(tool("mine", "slow", seconds=20))
        eventually(lambda: relay(spm)["in_flight"], what="the request in flight")
        one.process.kill()
    eventually(lambda: not relay(spm)["in_flight"], what="its cancellation")
    assert len(json.loads(spm("call", "s", "cancelled").stdout)) == 1
    with wire(spm) as two:  # and by its own id
        note = {"requestId": "mine", "reason": "enough"}
        cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": note}
        two.send(tool("mine", "slow", seconds=20), cancelled)
        two.send(tool(2, "cancelled"))
        assert len(json.loads(said(two.hear()))) == 2
    spm("stop", "s")


def test_sampling_goes_to_the_client_that_declared_it(spm: Spm) -> None:
    begin(spm)
    with wire(spm) as able, wire(spm) as other:
        able.ask("initialize", capabilities={"sampling": {}})
        other.ask("initialize", capabilities={})
        able.send(tool(7, "sample"))
        question = able.hear()
        assert question["method"] == "sampling/createMessage"
        able.send({"jsonrpc": "2.0", "id": question["id"], "result": {"model": "m"}})
        assert json.loads(said(able.hear()))["result"] == {"model": "m"}
        other.send(tool(8, "sample"))
        assert json.loads(said(other.hear()))["error"]["code"] == -32601
        other.send(tool(9, "sample", method="roots/list"))
        assert json.loads(said(other.hear()))["result"] == {"roots": []}
    spm("stop", "s")


def test_an_answer_of_who_was_not_asked_takes_the_place_of_none(spm: Spm) -> None:
    begin(spm)
    with wire(spm) as able, wire(spm) as other:
        able.ask("initialize", capabilities={"sampling": {}})
        able.send(tool(7, "sample"))
        question = able.hear()
        other.send({"jsonrpc": "2.0", "id": question["id"], "result": {"model": "other's"}})
        other.ask("ping")
        able.send({"jsonrpc": "2.0", "id": question["id"], "result": {"model": "m"}})
        assert json.loads(said(able.hear()))["result"] == {"model": "m"}
    spm("stop", "s")


def test_a_question_that_is_taken_back_costs_nobody_an_answer(spm: Spm) -> None:
    begin(spm)
    with connected(spm) as connection, connection.makefile("rwb") as file:
        abilities = {"method": "initialize", "id": 0, "params": {"capabilities": {"sampling": {}}}}
        for message in (abilities, tool("mine", "regret")):
            file.write(json.dumps(message).encode() + b"\n")
        file.flush()
        _, question, note, answer = (json.loads(file.readline()) for _ in range(4))
        assert note["params"]["requestId"] == question["id"] != "mine"
        assert (answer["id"], said(answer)) == ("mine", "no matter")
    spm("stop", "s")


def test_what_is_no_json_reaches_no_server(spm: Spm) -> None:
    begin(spm)
    error = spm.json("call", "s", "echo", "message=1e400", code=1)["error"]
    assert (error["cause"], error["retryable"]) == ("invalid_params", False)
    with connected(spm) as connection, connection.makefile("rwb") as file:
        file.write(json.dumps(tool(1, "echo", message=float("nan"))).encode() + b"\n")
        file.flush()
        assert json.loads(file.readline())["error"]["code"] == -32602
        assert relay(spm)["in_flight"] == 0
    spm("stop", "s")


def test_garbage_and_batches_of_a_caller(spm: Spm) -> None:
    begin(spm)
    with connected(spm) as connection, connection.makefile("rwb") as file:
        file.write(b"\n{half\n" + b"[" * 100000 + b'\n3\n{"jsonrpc":"2.0","id":1,"result":{}}\n')
        batch = [tool(1, "echo", message="a"), tool({"an": "object"}, "echo", message="b")]
        file.write(json.dumps(batch).encode() + b"\n")
        file.flush()
        answers = [json.loads(file.readline()) for _ in range(5)]
    assert [one["error"]["code"] for one in answers[:3]] == [-32700] * 3
    assert [said(one) for one in answers[3:]] == ["a", "b"]
    assert answers[4]["id"] == {"an": "object"}
    assert spm("call", "s", "echo", MESSAGE).stdout == "hello\n"
    spm("stop", "s")


def test_no_depth_of_nesting_ends_the_supervisor(spm: Spm) -> None:
    begin(spm, "--plain", options=("--protocol", "jsonrpc"))
    with connected(spm) as connection, connection.makefile("rwb") as file:
        for depth in range(850, 1010):
            params = b"[" * depth + b"]" * depth
            file.write(b'{"jsonrpc":"2.0","id":1,"method":"m","params":%s}\n' % params)
        file.write(b'{"jsonrpc":"2.0","id":"last","method":"m"}\n')
        file.flush()
        while b'"id":"last"' not in file.readline():
            pass
    spm("call", "s", "anything")
    spm("stop", "s")


def test_values_of_any_type_anywhere_disturb_nobody(spm: Spm) -> None:
    begin(spm, "--plain", options=("--protocol", "jsonrpc"))
    odd: list[object] = [None, 1, "x", [], {}, [{}], {"_meta": 3}, {"_meta": {"progressToken": []}}]
    with connected(spm) as connection, connection.makefile("rwb") as file:
        for one in odd:
            for message in (
                {"method": one},
                {"id": one},
                {"method": "m", "id": one, "params": one},
            ):
                file.write(json.dumps(message).encode() + b"\n")
        file.write(b'{"jsonrpc":"2.0","id":"last","method":"m"}\n')
        file.flush()
        while b'"id":"last"' not in file.readline():
            pass
    spm("call", "s", "anything")
    spm("stop", "s")


def test_a_caller_that_never_reads_is_let_go_and_stalls_nobody(spm: Spm) -> None:
    begin(spm)
    with connected(spm):
        for _ in range(7):
            spm("call", "s", "announce", "count=10", "size=1000000")
            assert spm("call", "s", "echo", MESSAGE, "--timeout", "5s").stdout == "hello\n"
        eventually(lambda: "it doesn't read" in spm.log("s"), what="its disconnection")
    spm("stop", "s")


def test_a_flood_of_requests_is_bounded(spm: Spm) -> None:
    begin(spm)
    with connected(spm) as connection, connection.makefile("rwb") as file:
        requests = [json.dumps(tool(n, "slow", seconds=60)) for n in range(1000)]
        requests.append(json.dumps(tool("last", "echo", message="x")))
        file.write("\n".join(requests).encode() + b"\n")
        file.flush()
        refused = json.loads(file.readline())
    assert (refused["id"], refused["error"]["data"]["cause"]) == ("last", "flood")
    eventually(lambda: not relay(spm)["in_flight"], what="their cancellation")
    assert spm("call", "s", "echo", MESSAGE).stdout == "hello\n"
    spm("stop", "s", "--force")


@pytest.mark.slow
def test_messages_of_50_mb_pass(spm: Spm) -> None:
    begin(spm)
    size = 50 * 2**20
    (spm.cwd / "big.json").write_text(json.dumps({"message": "y" * size}))
    assert spm("call", "s", "echo", "@big.json").stdout == "y" * size + "\n"
    spm("stop", "s")


def test_a_call_renews_last_active(spm: Spm) -> None:
    begin(spm)
    before = spm.record("s")["last_active"]
    call = ("call", "s", "echo", MESSAGE)
    for words in (call, call, call, ("touch", "s")):  # calls are written down late
        last = spm.json("status", "s")["last_active"]
        spm(*words)
        assert spm.json("status", "s")["last_active"] > last
    spm("stop", "s")
    assert spm.record("s")["last_active"] > before


# -- the official servers and client


def needs_mcp() -> Any:
    return pytest.importorskip("mcp", reason="the package mcp is not installed")


def test_the_official_server_and_client(spm: Spm) -> None:
    needs_mcp()
    import anyio
    from mcp.client.client import Client
    from mcp.client.stdio import StdioServerParameters, stdio_client

    if not shutil.which("mcp-server-time", path=str(Path(sys.executable).parent)):
        pytest.skip("mcp-server-time is not installed")
    spm("start", "s", "--type", "stdio", f"{sys.executable} -m mcp_server_time")

    async def talk(mode: Any) -> str:
        words = spm.argv("connect", "s")
        command = StdioServerParameters(command=words[0], args=words[1:], env=spm.env)
        async with Client(stdio_client(command), mode=mode) as client:
            tools = await client.list_tools()
            assert "get_current_time" in [one.name for one in tools.tools]
            result = await client.call_tool("get_current_time", {"timezone": "UTC"})
            return str(result.content[0])

    for mode in ("auto", "legacy"):
        assert "UTC" in anyio.run(talk, mode)
    assert relay(spm)["era"] == "modern"
    spm("stop", "s")


def test_the_official_server_of_node(spm: Spm) -> None:
    package = "node_modules/@modelcontextprotocol/server-everything/dist/index.js"
    found = [*Path.home().glob(f".npm/_npx/*/{package}")]
    if not (found and shutil.which("node")):
        pytest.skip("npx has not fetched @modelcontextprotocol/server-everything")
    spm("start", "s", "--type", "stdio", f"node {found[0]} stdio")
    assert spm("call", "s", "echo", MESSAGE).stdout == "Echo: hello\n"
    assert (relay(spm)["era"], relay(spm)["server"]["version"]) == ("handshake", "2.0.0")
    assert "expected number" in spm("call", "s", "get-sum", "a=x", code=1).stdout
    long = ("trigger-long-running-operation", "duration=1.2", "steps=6")
    assert "completed" in spm("call", "s", *long, "--timeout", "900ms").stdout
    asked = tool(1, "trigger-sampling-request", prompt="p")
    with wire(spm) as able:
        able.ask("initialize", protocolVersion="2025-11-25", capabilities={"sampling": {}})
        able.send(asked)
        question = able.hear()
        content = {
            "role": "assistant",
            "model": "m",
            "content": {"type": "text", "text": "so be it"},
        }
        able.send({"jsonrpc": "2.0", "id": question["id"], "result": content})
        assert "so be it" in said(able.hear())
    spm("stop", "s")


OFFICIAL = """
import anyio
from mcp.server.mcpserver import Context, MCPServer
from pydantic import BaseModel

server = MCPServer("official", version="7")

class Answer(BaseModel):
    word: str

@server.tool()
def add(a: int, b: int) -> int:
    return a + b

@server.tool()
async def ask(ctx: Context) -> str:
    return (await ctx.elicit("which word?", Answer)).data.word

@server.tool()
async def slow(ctx: Context) -> str:
    for step in range(3):
        await ctx.report_progress(step, 3)
    return "done"

server.run()
"""


def test_an_official_server_asks_the_client_behind_connect(spm: Spm) -> None:
    needs_mcp()
    import anyio
    from mcp.client.client import Client
    from mcp.client.stdio import StdioServerParameters, stdio_client
    from mcp.types import ElicitResult

    (spm.cwd / "server.py").write_text(OFFICIAL)
    command = f"{sys.executable} server.py"
    spm("start", "s", "--type", "stdio", "--protocol", "handshake", command)
    steps: list[float] = []

    async def answer(context: Any, params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"word": "xyzzy"})

    async def note(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    async def talk() -> list[str]:
        words = spm.argv("connect", "s")
        parameters = StdioServerParameters(command=words[0], args=words[1:], env=spm.env)
        async with Client(stdio_client(parameters), elicitation_callback=answer) as client:
            asked = await client.call_tool("ask", {})
            slow = await client.call_tool("slow", {}, progress_callback=note)
            return [str(one.content[0]) for one in (asked, slow)]

    heard = anyio.run(talk)
    assert "xyzzy" in heard[0]
    assert "done" in heard[1]
    assert steps == [0, 1, 2]
    assert spm("call", "s", "add", "a=2", "b=3").stdout == "5\n"
    assert "no client that supports" in spm("call", "s", "ask", code=1).stderr
    assert relay(spm)["server"]["name"] == "official"
    spm("stop", "s")


@pytest.mark.parametrize("files", [2000, 200])
def test_hundreds_of_silent_or_broken_connections_disturb_nobody(spm: Spm, files: int) -> None:
    script = f'ulimit -S -n {files}; exec "$@"'
    words = spm.argv("start", "s", "--type", "stdio", server())
    null = subprocess.DEVNULL
    subprocess.run(["sh", "-c", script, "sh", *words], env=spm.env, cwd=spm.cwd, stdout=null)
    spm("call", "s", "ping")
    guard = spm.supervisor("s")
    path = str(spm.home / "services" / "s" / "control.sock")
    crowd: list[socket.socket] = []
    for number in range(500):
        one = socket.socket(socket.AF_UNIX)  # it blocks: with a timeout a full backlog is EAGAIN
        one.connect(path)
        crowd.append(one)
        if number % 3:
            with suppress(BrokenPipeError):  # there was no descriptor for it
                one.sendall([b'{"op": "jo', b'{"op": "join", "token": ""}\n{"half'][number % 2])
    if files > 500:  # else nobody is let in for a while
        assert spm("call", "s", "echo", MESSAGE).stdout == "hello\n"
    for one in crowd:
        one.close()
    eventually(lambda: not relay(spm)["callers"], what="their departure")
    assert spm("call", "s", "echo", MESSAGE).stdout == "hello\n"
    assert spm.supervisor("s") == guard
    spm("stop", "s")


@pytest.mark.parametrize("words", [("restart", "s"), ("stop", "s"), ("call", "s", "die")])
def test_a_connection_that_the_service_ended_is_no_success(
    spm: Spm, words: tuple[str, ...]
) -> None:
    begin(spm)
    client = spm.popen("connect", "s", stdin=subprocess.PIPE)
    assert client.stdin and client.stdout
    client.stdin.write('{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
    client.stdin.flush()
    assert '"id":1' in client.stdout.readline()
    spm(*words, code=None)
    client.wait(20)  # its stdin is open until it has heard of that
    told = client.communicate(timeout=20)[1]
    assert client.returncode == 1 and "[ERROR] s has ended this connection; it is " in told, told
    assert "connect again" in told
    spm("stop", "s")


def test_an_answer_that_is_too_long_is_told_at_once(spm: Spm) -> None:
    begin(spm)
    failed = spm.json("call", "s", "big", "size=67200000", "--timeout", "30s", code=1)["error"]
    assert "the answer of s is longer than 64 MiB" in failed["message"]
    assert (failed["cause"], failed["retryable"]) == ("protocol", False)
    assert spm("call", "s", "echo", MESSAGE).stdout == "hello\n"
    spm("stop", "s")


def test_a_call_that_is_too_long_was_told_that_it_is_no_message(spm: Spm) -> None:
    begin(spm)
    (spm.cwd / "big.json").write_text(json.dumps({"message": "y" * 67_200_000}))
    failed = spm.json("call", "s", "echo", "@big.json", code=1)["error"]
    assert "this message is longer than 64 MiB" in failed["message"]
    assert spm("call", "s", "echo", MESSAGE).stdout == "hello\n"
    spm("stop", "s")


def test_a_long_answer_with_other_letters_than_ascii_was_lost(spm: Spm) -> None:
    begin(spm)
    size = 11_500_000  # 23 MB that were 69 MB on their way to the caller
    assert len(spm("call", "s", "wide", f"size={size}", "--timeout", "20s").stdout) == size + 1
    spm("stop", "s")


# -- does it still work?


def test_a_deaf_server_that_somebody_listens_to_was_called_healthy(spm: Spm) -> None:
    times = ("--health-interval", "50ms", "--health-timeout", "150ms", "--health-retries", "1")
    begin(spm, "--deaf", "deaf", "--modern", options=times)
    spm("wait-healthy", "s", "10")
    with wire(spm) as one:
        listens = {"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen"}
        one.send({**listens, "params": {"lasts": True}})
        assert one.hear()["method"] == "notifications/subscriptions/acknowledged"
        (spm.cwd / "deaf").touch()
        eventually(lambda: spm.service("s")["status"] == "unhealthy", what="the silence")
        began = time.monotonic()
    assert time.monotonic() - began < program.LEAVING_S / 2, "nor is the end of that waited for"
    spm("stop", "s")


@pytest.mark.parametrize("era", [(), ("--modern",)])
def test_a_server_that_no_longer_answers_is_unhealthy(spm: Spm, era: tuple[str, ...]) -> None:
    times = ("--health-interval", "50ms", "--health-timeout", "150ms", "--health-retries", "1")
    begin(spm, "--deaf", "deaf", *era, options=(*times, "--idle-timeout", "1h"))
    assert "[OK] s is ready after" in spm("wait-healthy", "s", "10").stdout
    (spm.cwd / "deaf").touch()
    eventually(lambda: spm.service("s")["status"] == "unhealthy", what="the silence")
    used = spm.record("s")["last_active"]
    (spm.cwd / "deaf").unlink()
    eventually(lambda: spm.service("s")["status"] == "ready", what="its answer")
    assert spm.record("s")["last_active"] == used, "asked by its supervisor, used by nobody"
    spm("stop", "s")
    spm("start", "t", "sleep 9", "--health", "mcp", code=2)


def test_a_look_at_its_health_lost_which_tools_may_be_called_again(spm: Spm) -> None:
    begin(spm, "--slow-list", options=("--health", "mcp", "--health-interval", "50ms"))
    spm("call", "s", "echo", MESSAGE)
    eventually(lambda: "repeatable" in spm.record("s")["spec"], 2, what="what it lists")
    spm("stop", "s")


def test_calls_that_fail_are_a_metric_and_an_alert(spm: Spm) -> None:
    begin(spm, options=("--sample-interval", "50ms"))
    spm("call", "s", "nonsense", "a=1", code=1)  # the caller's own mistake
    spm("call", "s", "echo", MESSAGE)

    def figures() -> Any:
        return spm.json("stats", "s")["metrics"].get("call_errors")

    eventually(lambda: figures() and figures()["max"] == 0, what="a figure")
    assert not spm.service("s")["alerts"]
    spm("call", "s", "broken", "a=1", code=1)
    eventually(lambda: "call_errors" in str(spm.service("s")["alerts"]), what="its alert")
    assert 0 < figures()["max"] <= 50
    spm("stop", "s")


def test_another_user_is_not_heard(spm: Spm) -> None:
    if os.geteuid():
        pytest.skip("only root can be somebody else")
    begin(spm)
    directory = spm.home / "services" / "s"
    for path in (spm.base, spm.home, directory.parent, directory, directory / "control.sock"):
        path.chmod(0o755 if path.is_dir() else 0o666)
    code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
    code += 's.sendall(b\'{"op": "status"}\\n\'); print(len(s.recv(9)))'
    argv = ["/usr/bin/env", "python3", "-c", code, str(directory / "control.sock")]
    answers = [subprocess.run(argv, user=uid, capture_output=True) for uid in (65534, 0)]
    assert [done.stdout for done in answers] != [b"9\n", b"9\n"]
    assert answers[0].stdout in (b"0\n", b"") and answers[1].stdout == b"9\n", answers
    assert b"Permission" not in answers[0].stderr
    spm("stop", "s")


# -- pure parts


@given(st.lists(st.binary(max_size=20)), st.data())
def test_frames_are_the_same_in_any_pieces(pieces: list[bytes], data: st.DataObject) -> None:
    text = b"\n".join(pieces) + b"\n"
    frames = program.Frames(most=15)
    found: list[bytes | None] = []
    while text:
        cut = data.draw(st.integers(1, len(text)))
        found += frames.feed(text[:cut])
        text = text[cut:]
    lines = [line for piece in pieces for line in piece.split(b"\n")] or [b""]
    assert found == [line if len(line) <= 15 else None for line in lines]


@given(st.recursive(st.text() | st.integers() | st.booleans() | st.none(), st.lists))
def test_values_of_parameters_are_json_where_they_are_json(value: object) -> None:
    assert program.params_of(["a=" + json.dumps(value)]) == {"a": value}


def test_a_server_without_supervisor_is_said_to_be_started_anew_and_is(spm: Spm) -> None:
    begin(spm, "--ignore-end")
    spm("call", "s", "ping")  # or it may still have something to write, and die of that
    first = spm.service("s")["pid"]
    spm.kill_supervisor("s")
    told = spm("list").stderr
    assert "its pipes with it: the next call starts s anew" in told
    assert "takes it back" not in told
    spm("call", "s", "ping")
    assert spm.service("s")["pid"] != first
    assert not is_running(first)
    spm("stop", "s", "--force")
