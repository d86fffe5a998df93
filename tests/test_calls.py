"""Calls of stdio services: what may be sent twice, how long they take, what a service may ask."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest
from conftest import Spm, eventually, nasty
from test_relay import MESSAGE, begin, relay, said, server, tool, wire

import simple_process_manager as program

WAIT_FOR = "touch up.{0}; until [ -e go.{0} ]; do sleep 0.02; done"


def outcome(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    """The exit code of a command with --json, and its error."""
    out, err = process.communicate(timeout=20)
    assert "Traceback" not in err, err
    return process.returncode, json.loads(out).get("error") or {}


def in_flight(spm: Spm, count: int) -> None:
    eventually(lambda: relay(spm)["in_flight"] == count, what=f"{count} requests in flight")


def learnt(spm: Spm) -> None:
    """Have it be known which tools have no effect: a first call is enough."""
    spm("call", "s", "echo", MESSAGE)
    tools = ["echo", "pid"]  # at once: not with the next of the rare writes
    eventually(lambda: spm.record("s")["spec"].get("repeatable") == tools, within=2)


# -- at most once


def test_with_the_supervisor_gone_in_mid_call_only_what_has_no_effect_is_repeated(
    spm: Spm,
) -> None:
    starts, deaf = spm.base / "starts", spm.base / "deaf"
    begin(spm, "--starts", starts, "--deaf", deaf)
    learnt(spm)
    deaf.touch()
    words = (["echo", MESSAGE], ["tools/list"], ["slow"], ["ping", "--retries", "0"])
    calls = [spm.popen("call", "s", *each, "--json") for each in words]
    in_flight(spm, 4)
    deaf.unlink()
    spm.kill_supervisor("s")
    (echoed, _), (listed, _), (slow, lost), (pinged, once) = map(outcome, calls)
    assert (echoed, listed, slow, pinged) == (0, 0, 1, 1)
    for error, is_harmless in ((lost, False), (once, True)):
        assert (error["cause"], error["retryable"]) == ("connection", is_harmless)
        assert "the connection broke, it may or may not have happened" in error["message"]
    assert len(starts.read_text().split()) == 2, "one new server for all"
    spm("stop", "s")


def test_a_tool_that_changed_and_has_an_effect_now_was_still_called_again(spm: Spm) -> None:
    begin(spm)
    learnt(spm)
    spm("call", "s", "turn")
    spm("call", "s", "echo", MESSAGE)
    eventually(lambda: spm.record("s")["spec"]["repeatable"] == [], within=2)
    spm("stop", "s")


def test_a_tool_of_which_it_is_not_known_yet_what_it_does_by_now_was_called_again(
    spm: Spm,
) -> None:
    starts, deaf = spm.base / "starts", spm.base / "deaf"
    begin(spm, "--starts", starts, "--deaf", deaf)
    learnt(spm)
    spm("call", "s", "turn")
    deaf.touch()
    called = spm.popen("call", "s", "echo", MESSAGE, "--json")
    in_flight(spm, 1)
    deaf.unlink()
    os.kill(int(starts.read_text().split()[-1]), signal.SIGKILL)
    code, error = outcome(called)
    assert (code, error["cause"], error["retryable"]) == (1, "server_died", False), error


def test_a_service_that_was_stopped_under_a_call_was_started_again_by_it(spm: Spm) -> None:
    deaf = spm.base / "deaf"
    begin(spm, "--deaf", deaf)
    learnt(spm)
    deaf.touch()
    called = spm.popen("call", "s", "echo", MESSAGE, "--json")
    in_flight(spm, 1)
    spm("stop", "s")
    deaf.unlink()
    code, error = outcome(called)
    assert (code, error["kind"], spm.service("s")["status"]) == (3, "not_found", "stopped"), error


def test_a_service_that_was_stopped_while_a_call_waited_for_it_was_started_again(spm: Spm) -> None:
    begin(spm, "--mute")
    called = spm.popen("call", "s", "echo", MESSAGE, "--json", "--timeout", "5s")
    is_there = psutil.Process(called.pid).net_connections
    eventually(lambda: is_there("unix"), what="its connection")
    spm("stop", "s")
    code, error = outcome(called)
    assert (code, spm.service("s")["status"]) == (3, "stopped"), error


def test_retries_say_how_often_a_server_may_die_under_what_has_no_effect(spm: Spm) -> None:
    died = spm.base / "died"
    begin(spm, "--die-once", died, "--times", 2)
    error = spm.json("call", "s", "prompts/list", code=1)["error"]
    assert (error["cause"], error["retryable"], died.read_text()) == ("server_died", True, "xx")
    died.write_text("")
    began = time.monotonic()
    assert spm("call", "s", "prompts/list", "--retries", "2").stdout == "{}\n"
    assert time.monotonic() - began > 0.3  # 0.1 and 0.2 s between them
    died.write_text("")
    spm("call", "s", "slow", "seconds=0", "--retries", "2", code=1)
    assert died.read_text() == "x"


def test_of_plain_json_rpc_it_is_not_known_what_has_no_effect(spm: Spm) -> None:
    died = spm.base / "died"
    begin(spm, "--plain", "--die-once", died, options=("--protocol", "jsonrpc"))
    error = spm.json("call", "s", "ping", code=1)["error"]
    assert (error["cause"], error["retryable"]) == ("server_died", False)
    raw = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"})
    died.unlink()
    assert "may or may not have happened" in spm("call", "s", "--raw", raw, code=1).stderr


def test_what_was_never_written_to_the_server_is_sent_again_whatever_it_is(spm: Spm) -> None:
    begin(spm)
    learnt(spm)
    pid = spm.record("s")["main"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    (spm.cwd / "big").write_text(json.dumps({"message": "x" * 2_000_000}))
    big = spm.popen("call", "s", "echo", "@big", "--json")
    in_flight(spm, 1)  # it fills the pipe
    behind = spm.popen("call", "s", "slow", "seconds=0", "--json")
    in_flight(spm, 2)
    os.kill(pid, signal.SIGKILL)
    assert [outcome(each)[0] for each in (big, behind)] == [0, 0]
    spm("stop", "s")


@pytest.mark.parametrize(
    ("era", "method", "named", "is_harmless"),
    [
        ("modern", "tools/call", "echo", True),
        ("modern", "tools/call", "slow", False),
        ("handshake", "prompts/list", None, True),
        ("handshake", "resources/read", None, True),
        ("handshake", "prompts/get", "echo", False),
        ("handshake", ["ping"], None, False),
        ("jsonrpc", "ping", None, False),
    ],
)
def test_what_has_no_effect(era: str, method: object, named: object, is_harmless: bool) -> None:
    assert program.is_harmless(era, method, named, ["echo"]) is is_harmless
    assert not program.is_harmless("modern", "tools/call", "echo", "echo")


# -- how long it may take


def test_progress_renews_a_call_up_to_the_most_it_may_take(spm: Spm) -> None:
    begin(spm, options=("--sample-interval", "50ms"))
    spm("call", "s", "echo", MESSAGE)  # here the limits are about calls, not about its start

    def late(*words: str) -> float:
        began = time.monotonic()
        error = spm.json("call", "s", *words, code=124)["error"]
        assert error["cause"] == "timeout"
        return time.monotonic() - began

    progress = ("progress", "steps=200", "pause=0.05")
    assert 0.7 <= late(*progress, "--timeout", "400ms", "--max-time", "700ms") < 3
    assert late("slow", "seconds=30", "--max-time", "200ms") < 3
    # what it says to everybody is no progress of this call
    assert late("announce", "count=200", "pause=0.05", "--timeout", "300ms") < 3
    spm("stop", "s")


def test_a_caller_that_merely_leaves_is_no_fault_of_the_service(spm: Spm) -> None:
    begin(spm, options=("--sample-interval", "50ms"))

    samples = spm.home / "services" / "s" / "metrics.jsonl"

    def faults() -> list[float]:
        lines = samples.read_text("utf-8").splitlines()
        return [figures["call_errors"] for figures in map(json.loads, lines) if "cpu" in figures]

    spm("call", "s", "echo", MESSAGE)
    with wire(spm) as client:
        client.send(tool(1, "slow", seconds=30))
        in_flight(spm, 1)
        client.process.kill()
    in_flight(spm, 0)
    seen = len(faults())
    eventually(lambda: len(faults()) > seen + 1, what="a sample of after that")
    assert faults()[-1] == 0
    spm("call", "s", "slow", "seconds=30", "--timeout", "1s", code=124)
    eventually(lambda: faults()[-1], what="one that gave up waiting")
    spm("stop", "s")


def test_how_long_a_server_may_take_to_connect_is_settable(spm: Spm) -> None:
    began = time.monotonic()
    begin(spm, "--mute", options=("--connect-timeout", "300ms"))
    error = spm.json("call", "s", "echo", code=124)["error"]
    assert (error["kind"], error["cause"], error["retryable"]) == ("timeout", "timeout", True)
    assert time.monotonic() - began < 8
    assert "didn't answer in 0.30 s" in error["message"] and "--connect-timeout" in error["advice"]
    spm("stop", "s")
    spm("start", "t", "sleep 9", "--connect-timeout", "2s", code=2)


def test_an_http_server_started_as_stdio_was_waited_for_without_a_hint(spm: Spm, port: int) -> None:
    spm("start", "web", "--type", "stdio", nasty("--port", port, "--say", "Serving HTTP"))
    eventually(lambda: spm("port", port, code=None).returncode == 5, what="its listener")
    told = spm("tools", "web", "--timeout", "100ms", code=124).stderr
    assert f"in time: no answer came on its stdout, but it listens on {port}\n" in told
    assert "→ if it speaks HTTP there, start it without --type stdio; else wait longer" in told
    waits = spm.json("explain", "web")["waits_for"]
    assert waits == ["mcp: it hasn't answered on its stdout yet"]
    spm("start", "web", nasty("--port", port), "--replace", "--wait")
    spm("stop", "web")


def test_a_service_that_answered_and_waits_for_its_log_had_not_answered(spm: Spm) -> None:
    begin(spm, options=("--ready", "mcp", "--ready", "log:never"))
    spm("call", "s", "ping")
    (waits,) = spm.json("explain", "s")["waits_for"]
    assert waits.startswith("log:never: no match of 'never'")
    spm("stop", "s")


def test_a_server_that_took_too_long_to_connect_can_be_called_when_it_answers(spm: Spm) -> None:
    slow = f"sleep 0.8; exec {server()}"  # npx that fetches its package first
    spm("start", "s", "--type", "stdio", "--connect-timeout", "300ms", "--shell", slow)
    assert "didn't answer" in spm("call", "s", "echo", MESSAGE, code=124).stderr
    eventually(lambda: not spm("call", "s", "echo", MESSAGE, code=None).returncode, within=5)
    spm("stop", "s")


def test_the_health_interval_asked_for_is_the_one_used(spm: Spm) -> None:
    def interval(**keys: object) -> float:
        document = {"services": {"s": {"command": server(), "type": "stdio", **keys}}}
        config = program.config_of(document, str(spm.cwd / "spm.json"))
        return config.services["s"].spec.health_interval_s

    assert (interval(), interval(health="mcp"), interval(health_interval="10s")) == (60, 60, 10)
    assert (interval(protocol="jsonrpc"), interval(type="simple")) == (10, 10)
    begin(spm, options=("--health-interval", "10s"))
    assert spm.record("s")["spec"]["health_interval_s"] == 10
    spm("stop", "s")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_call_that_is_interrupted_may_have_happened(spm: Spm, name: str) -> None:
    begin(spm)
    call = spm.popen("call", "s", "slow", "seconds=30", "--json")
    in_flight(spm, 1)
    call.send_signal(signal.Signals[name])
    code, error = outcome(call)
    assert (code, error["signal"]) == (128 + signal.Signals[name], name)
    told = (error["kind"], error["cause"], error["retryable"])
    assert told == ("interrupted", "cancelled", False)
    assert "may or may not have happened" in error["message"]
    eventually(lambda: json.loads(spm("call", "s", "cancelled").stdout), what="its cancellation")
    spm("stop", "s")


# -- what a service may ask


def test_what_a_modern_server_needs_to_know_first_is_given_or_refused_at_once(spm: Spm) -> None:
    # specification 2026-07-28: a result may be a question; as if it were the answer it was shown
    begin(spm, "--modern", options=("--root", "lib"))
    roots = {"roots": [{"uri": (spm.cwd / "lib").as_uri()}]}
    seen = json.loads(spm("call", "s", "needs").stdout)
    assert seen == {"roots": {"a": roots}, "state": "s", "able": {"roots": {}}}
    error = spm.json("call", "s", "needs", "method=elicitation/create", code=1)["error"]
    assert error["cause"] == "input_required" and "connect s" in error["advice"]
    assert "elicitation/create, which call can't answer; it says: how many" in error["message"]
    said = spm("call", "s", "needs", "waits=true", code=1).stderr
    assert "needs asked for input 10 times, without end" in said
    raw = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "needs"}}
    assert "input_required" in spm("call", "s", json.dumps(raw), "--raw").stdout
    spm("stop", "s")


def test_a_call_that_was_asked_for_input_again_and_again_forgot_its_limit(spm: Spm) -> None:
    begin(spm, "--modern")
    spm("call", "s", "echo", MESSAGE)
    began = time.monotonic()
    words = ["needs", "waits=true", "pause=1", "--max-time", "0.7"]
    error = spm.json("call", "s", *words, code=124)["error"]
    assert error["cause"] == "timeout" and time.monotonic() - began < 6
    spm("stop", "s")


def test_tools_of_a_server_that_repeats_its_cursor_came_without_end(spm: Spm) -> None:
    begin(spm, "--same-page")
    done = spm("tools", "s", timeout=10)
    assert done.stdout.count("\necho ") == 2 and "[WARN] s repeats the cursor" in done.stderr
    spm("stop", "s")


def test_a_server_is_told_of_the_roots(spm: Spm) -> None:
    begin(spm, options=("--root", "a b", "--root", str(spm.base)))
    told = json.loads(spm("call", "s", "sample", "method=roots/list").stdout)
    uris = [f"file://{spm.cwd}/a%20b", f"file://{spm.base}"]
    assert told["result"] == {"roots": [{"uri": uri} for uri in uris]}
    with wire(spm) as client:
        client.send(tool(1, "sample", method="roots/list"))
        assert json.loads(said(client.hear()))["result"] == told["result"]
    spm("stop", "s")
    spm("start", "t", "sleep 9", "--root", "a", code=2)
    document = {"services": {"s": {"command": "x", "type": "stdio", "root": ["lib"]}}}
    config = program.config_of(document, str(spm.cwd / "spm.json"))
    assert config.services["s"].spec.root == (str(spm.cwd / "lib"),)
    assert "lib" in str(program.spelled_out(config))


ANSWERS_NAN = """
import json, sys
for line in sys.stdin:
    answer = {"jsonrpc": "2.0", "id": json.loads(line)["id"], "result": {"x": float("nan")}}
    print(json.dumps(answer), flush=True)
"""


def test_an_answer_that_is_not_json_made_a_document_that_was_none(spm: Spm) -> None:
    words = ("--type", "stdio", "--protocol", "jsonrpc", "--", sys.executable, "-c", ANSWERS_NAN)
    spm("start", "s", *words)
    printed = spm("call", "s", "a/b", "--json").stdout
    assert json.loads(printed, parse_constant=pytest.fail) == {"ok": True, "result": {"x": None}}
    assert "NaN" in spm("call", "s", "a/b").stdout
    spm("stop", "s")


# -- who shares a service


def test_a_restart_in_one_of_two_runs_leaves_the_service_to_the_other(spm: Spm, port: int) -> None:
    words = ["run", "api", nasty("--port", port), "--", "sh", "-c"]
    first = spm.popen(*words, WAIT_FOR.format(1))
    eventually((spm.cwd / "up.1").exists, what="the first's tests")
    second = spm.popen(*words, WAIT_FOR.format(2))
    eventually((spm.cwd / "up.2").exists, what="the second's tests")
    spm("restart", "api")
    pid = spm.service("api")["pid"]
    (spm.cwd / "go.1").touch()
    _, told = first.communicate(timeout=15)
    assert told.endswith("left to another run: api\n"), told
    eventually(lambda: spm.record("api")["owner"]["pid"] == second.pid, what="its next owner")
    assert spm.service("api")["pid"] == pid
    (spm.cwd / "go.2").touch()
    _, told = second.communicate(timeout=15)
    assert told.endswith("stopped: api\n"), told


def test_a_restart_in_another_session_does_not_take_the_service_away(spm: Spm) -> None:
    spm.forks = False  # whose child a command is matters here
    spm("start", "api", "sleep 100", "--lease", "session")
    agent = "import subprocess, sys; subprocess.run(sys.argv[1:], check=True); input()"
    session = subprocess.Popen(
        [sys.executable, "-c", agent, *spm.argv("restart", "api")],
        cwd=spm.cwd,
        env={**spm.env, "SPM_HOME": str(spm.home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    eventually(lambda: spm.record("api")["owner"]["pid"] == session.pid, what="its new owner")
    session.kill()
    session.communicate()
    eventually(lambda: spm.record("api")["owner"]["pid"] == os.getpid(), what="its first owner")
    owner = spm.json("status", "api")["owner"]
    assert owner == {"pid": os.getpid(), "name": psutil.Process().name()}
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")
