"""Restarts: policies, backoff, cooldown, the verdict about a start, and never a wrong status."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import THOROUGH, Spm, eventually, is_running, nasty
from hypothesis import given
from hypothesis import strategies as st

import simple_process_manager as program

QUICK = ("--backoff", "50ms", "--backoff-max", "100ms")
SPEC = program.Spec(("sleep", "9"), "/")
ALWAYS = SPEC._replace(restart="always")
ON_FAILURE = SPEC._replace(restart="on-failure")
moments = st.floats(0, 1e9)
counts = st.integers(0, 10**6)
jitters = st.floats(0, 1)


# -- the policies


@given(waits=counts, base=st.floats(0, 1e6), most=st.floats(0, 1e6), jitter=jitters)
def test_a_backoff_is_never_negative_never_beyond_the_cap_and_grows(
    waits: int, base: float, most: float, jitter: float
) -> None:
    spec = SPEC._replace(backoff_s=base, backoff_max_s=most)
    wait_s = program.backoff_s(waits, spec, jitter)
    assert 0 <= wait_s <= most
    assert wait_s <= program.backoff_s(waits + 1, spec, jitter)


def test_a_backoff_doubles_from_half_a_second_to_a_minute() -> None:
    waits = [program.backoff_s(n, SPEC, 0.0) for n in range(9)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert program.backoff_s(0, SPEC, 1.0) < 0.5


@pytest.mark.parametrize("reset_s", [1.0, 60.0])
def test_who_lived_long_enough_begins_anew(reset_s: float) -> None:
    record = program.new_record("api", SPEC._replace(backoff_reset_s=reset_s), "0")
    record, failed = record._replace(backoffs=3, failures=3), program.Exit(0.0, code=1)
    for lived_s, expected in ((reset_s - 0.1, (3, 4)), (reset_s, (0, 1))):
        after = program.after_end(record, failed, lived_s, 0.0)
        assert (after.backoffs, after.failures) == expected


@given(failures=counts, failed_at=moments, base=st.floats(0, 1e6))
def test_a_cooldown_is_never_negative_never_beyond_15_minutes_and_grows(
    failures: int, failed_at: float, base: float
) -> None:
    until = program.cooldown_until(failures, failed_at, base)
    assert failed_at <= until <= failed_at + 900
    assert until <= program.cooldown_until(failures + 1, failed_at, base)
    assert program.cooldown_until(0, failed_at, base) == failed_at
    assert program.cooldown_until(failures, failed_at, 0.0) == failed_at


def test_a_cooldown_doubles_from_a_minute_to_a_quarter_of_an_hour() -> None:
    assert [program.cooldown_until(n, 0, 60) for n in range(7)] == [0, 60, 120, 240, 480, 900, 900]


@pytest.mark.parametrize(
    ("policy", "ended", "verdict"),
    [
        ("no", program.Exit(1.0, 1), "no"),
        ("no", None, "no"),
        ("on-failure", program.Exit(1.0, 0), "no"),
        ("on-failure", program.Exit(1.0, 1), "restart"),
        ("on-failure", program.Exit(1.0, None, "SIGSEGV"), "restart"),
        ("on-failure", program.Exit(1.0, None, "SIGTERM"), "no"),
        ("on-failure", program.Exit(1.0, 143), "no"),
        ("on-failure", program.Exit(1.0, 77), "no"),
        ("on-failure", program.Exit(1.0, None, "SIGKILL"), "no"),
        ("on-failure", program.Exit(1.0), "restart"),
        ("on-failure", None, "restart"),
        ("always", program.Exit(1.0, 0), "restart"),
        ("always", program.Exit(1.0, 143), "restart"),
        ("always", program.Exit(1.0, 77), "no"),
        ("always", program.Exit(1.0, 137), "no"),
    ],
)
def test_the_policy_decides_by_how_it_ended(
    policy: str, ended: program.Exit | None, verdict: str
) -> None:
    codes = {"success_codes": "0,143", "no_restart_codes": "77, SIGKILL"}
    spec = SPEC._replace(restart=policy, **codes)  # type: ignore[arg-type]
    assert program.should_restart(spec, ended, (), 5.0) == verdict


@given(restarted_at=st.lists(moments, max_size=12), now=moments, most=st.integers(0, 6))
def test_only_restarts_within_the_window_count(
    restarted_at: list[float], now: float, most: int
) -> None:
    spec = ALWAYS._replace(max_restarts=most, restart_window_s=100.0)
    recent = [at for at in restarted_at if at > now - 100]
    verdict = program.should_restart(spec, None, restarted_at, now)
    assert verdict == ("restart" if len(recent) < most else "gave up")
    assert program.should_restart(spec, None, restarted_at, now + 1e10) == (
        "restart" if most else "gave up"
    )


@given(lived=st.lists(st.floats(0, 200), max_size=20), now=moments)
def test_failures_in_a_row_are_counted_until_one_lived_for_a_minute(
    lived: list[float], now: float
) -> None:
    record, expected = program.new_record("api", ON_FAILURE, "an-instance"), 0
    for seconds in lived:
        record = program.after_end(record, program.Exit(1.0, 1), seconds, now)
        expected = 1 if seconds >= 60 else expected + 1
        assert (record.failures, record.failed_at) == (expected, now)
    assert program.after_end(record, program.Exit(1.0, 0), 1.0, now).failures == 0
    waited = record._replace(backoffs=4)
    assert program.after_end(waited, None, 59.0, now).backoffs == 4
    assert program.after_end(waited, None, 60.0, now).backoffs == 0


@pytest.mark.parametrize("text", ["x", "0,", "0;1", "SIGTEMR", "-1", "0,²"])
def test_what_are_no_exit_codes_is_refused(spm: Spm, text: str) -> None:
    refused = spm("start", "api", "sleep 1", f"--success-codes={text}", code=2)
    assert "no exit codes" in refused.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-restarts", "x"),
        ("--sample-interval", "1y"),
        ("--backoff", "-1"),
        ("--restart", "sometimes"),
        ("--alert", "cpu>90%"),
        ("--port", "x"),
    ],
)
def test_a_bad_value_is_refused_naming_its_option(spm: Spm, option: str, value: str) -> None:
    refused = spm("start", "api", "sleep 1", option, value, code=2)
    assert refused.stderr.startswith(f"[ERROR] {option}: {value!r} "), refused.stderr
    assert "\n  → " in refused.stderr and spm.json("list")["services"] == []


def test_what_a_record_says_of_restarts_comes_back_from_its_json() -> None:
    record = program.new_record("api", ALWAYS._replace(success_log="up", cooldown_s=1.5), "one.2")
    record = record._replace(
        phase="backoff", restarts=2, restarted_at=(1.0, 2.5), backoffs=2, retry_at=7.5, failures=3
    )
    assert program.Record.from_json(json.loads(json.dumps(record.to_json()))) == record


# -- restarts


def events(spm: Spm, name: str) -> list[tuple[str, str]]:
    """(event, why) of everything that happened."""
    lines = (spm.home / "services" / name / "events.jsonl").read_text("utf-8").splitlines()
    return [(line["event"], line["why"]) for line in map(json.loads, lines)]


def new_main(spm: Spm, name: str, former: int) -> int:
    """The pid of the main process once it is another one, and runs."""

    def look() -> int:
        row = spm.service(name)
        is_new = row["status"] in ("running", "ready") and row["pid"] not in (None, former)
        return int(row["pid"]) if is_new else 0

    return eventually(look, what=f"another instance of {name}")


def status_once(spm: Spm, name: str, *words: str) -> dict[str, Any]:
    """What list says as soon as the status is one of these."""

    def look() -> dict[str, Any] | None:
        row = spm.service(name)
        return row if row["status"] in words else None

    found = eventually(look, what=f"{name}: {words}")
    assert found
    return found


@pytest.mark.smoke
def test_a_service_that_crashes_is_restarted_with_the_environment_of_its_start(spm: Spm) -> None:
    command = "sh -c 'echo $MODE; sleep 100 & wait'"
    spm("start", "api", command, "--restart", "on-failure", *QUICK, "--env", "MODE=one")
    first = spm.record("api")
    child = psutil.Process(first["main"]["pid"]).children()[0].pid
    os.kill(first["main"]["pid"], signal.SIGSEGV)
    new_main(spm, "api", first["main"]["pid"])
    second = spm.record("api")
    assert second["instance"] != first["instance"]
    assert (second["restarts"], second["failures"], second["spec"]) == (1, 1, first["spec"])
    assert second["supervisor"] == first["supervisor"]
    assert not is_running(child), "what was left of the crashed one was ended before"
    eventually(lambda: spm.log("api") == "one\none\n", what="both outputs in one log")
    assert [event for event, _ in events(spm, "api")] == [
        "started",
        "backoff",
        "restarting",
        "restarted",
    ]
    stopped = spm.json("stop", "api")["services"][0]
    assert (stopped["status"], spm.record("api")["wanted"]) == ("stopped", "stopped")


@pytest.mark.parametrize(
    ("policy", "switches", "status"),
    [
        ("no", ("--exit", 1), "failed"),
        ("on-failure", ("--exit", 0), "exited"),
        ("on-failure", ("--signal", int(signal.SIGUSR1)), "exited"),
        ("on-failure", ("--exit", 138), "exited"),
        ("always", ("--exit", 9), "failed"),
    ],
)
def test_what_the_policy_does_not_want_stays_ended(
    spm: Spm, policy: str, switches: tuple[object, ...], status: str
) -> None:
    usr1 = 128 + signal.SIGUSR1
    codes = ("--success-codes", f"0,{usr1}", "--no-restart-codes", "9")
    switches = tuple(usr1 if one == 138 else one for one in switches)
    spm("start", "api", nasty(*switches), "--restart", policy, *codes, *QUICK)
    row = status_once(spm, "api", "exited", "failed", "backoff")
    assert (row["status"], row["restarts"]) == (status, 0)


def test_a_service_that_ends_well_is_restarted_if_it_is_always_to_run(spm: Spm) -> None:
    spm("start", "api", "sh -c 'echo once; sleep 0.05'", "--restart", "always", *QUICK)
    eventually(lambda: spm.log("api").count("once") >= 2, what="a second instance")
    assert spm.record("api")["failures"] == 0
    spm("stop", "api")


def test_a_crash_loop_ends_as_failed_with_the_whole_story_and_starts_are_refused(spm: Spm) -> None:
    loop = ("--restart", "on-failure", "--max-restarts", 2, *QUICK)
    spm("start", "api", nasty("--exit", 3), *loop)
    row = status_once(spm, "api", "failed")
    assert row["why"].startswith("exit code 3, 2 restarts in ")
    assert row["why"].endswith(": gave up")
    assert (row["restarts"], row["supervised"]) == (2, False)
    assert spm.log("api").count("last words") == 3
    waits = [why for event, why in events(spm, "api") if event == "backoff"]
    assert waits == [f"exit code 3 (restart {n} of 2 in 10 m 0 s)" for n in (1, 2)]

    before = spm.record("api")
    for words in (
        ("start", "api"),
        ("start", "api", nasty("--exit", 3), *loop),
        ("restart", "api"),
    ):
        refused = spm.json(*words, code=7)["error"]
        assert (refused["kind"], refused["count"], refused["reason"]) == ("cooldown", 3, row["why"])
        assert 230 < refused["seconds_left"] <= 240, "60 s doubled twice"
        assert abs(refused["retry_at"] - time.time() - refused["seconds_left"]) < 5
    assert "start it again: restart api --force (cooldown: " in spm("status", "api", code=3).stderr
    assert "\n  restart api --force (cooldown: " in spm("explain", "api").stdout
    told = spm("wait-healthy", "api", 5, code=1).stderr
    assert "mend the cause, then: restart api --force (cooldown: " in told
    assert spm.record("api") == before, "a refusal is no failure and changes nothing"

    spm("start", "api", "--force")
    assert "forced" in [event for event, _ in events(spm, "api")]
    again = status_once(spm, "api", "failed")
    assert spm.record("api")["failures"] == 6, f"they go on to count: {again}"
    assert 890 < spm.json("start", "api", code=7)["error"]["seconds_left"] <= 900
    spm("start", "api", nasty("--exit", 4), *loop, "--cooldown", "0")
    assert spm.record("api")["failures"] <= 3, "another spec begins anew"
    status_once(spm, "api", "failed")
    spm("start", "api")
    spm("stop", "api")


def test_without_a_policy_what_failed_may_be_started_at_once(spm: Spm) -> None:
    for _ in range(3):
        spm("start", "api", nasty("--exit", 3))
        status_once(spm, "api", "failed")
    assert spm.record("api")["failures"] == 3
    spm("start", "api", nasty("--exit", 3), "--cooldown", "1h")
    status_once(spm, "api", "failed")
    assert spm.record("api")["failures"] == 1
    spm("start", "api", code=7)


def test_being_ready_resets_the_count_and_a_stop_on_purpose_is_no_failure(spm: Spm) -> None:
    flag = spm.cwd / "flag"
    command = f"sh -c 'test -e {flag} || exit 1; echo up; exec sleep 100'"
    words = ("start", "api", command, "--ready", "log:up", "--cooldown", "60")
    spm(*words)
    status_once(spm, "api", "failed")
    spm(*words, code=7)
    flag.touch()
    spm(*words, "--force", "--wait", "10s")
    assert spm.record("api")["failures"] == 0
    spm("stop", "api")
    spm(*words)
    spm("stop", "api")


def slow_backoff(spm: Spm, *more: object) -> dict[str, Any]:
    """A service that waits for its restart for a long time."""
    spm("start", "api", nasty("--exit", 3), "--restart", "always", "--backoff", "60", *more)
    return status_once(spm, "api", "backoff")


def test_while_it_waits_to_restart_everything_says_so(spm: Spm) -> None:
    row = slow_backoff(spm)
    assert (
        row["why"].startswith("restarting in ")
        and "after exit code 3 (restart 1 of 5" in row["why"]
    )
    assert (row["pid"], row["supervised"]) == (None, True)
    assert 40 < row["retry_in_s"] <= 60
    page = spm.json("status", "api")
    assert (page["status"], page["wanted"], page["tree"]) == ("backoff", "running", [])
    waited = spm("wait-healthy", "api", "500ms", code=124)
    assert "did not become healthy in 0.50 s (backoff: restarting in " in waited.stderr
    assert (
        "→ see why: explain api; or wait longer" in waited.stderr and "alive" not in waited.stderr
    )
    began = time.monotonic()
    spm("stop", "api")
    assert time.monotonic() - began < 5
    assert spm.service("api")["status"] == "stopped"
    assert not spm.bearers()


def test_a_start_while_it_waits_to_restart_starts_it_now(spm: Spm) -> None:
    slow_backoff(spm)
    first = spm.record("api")
    spm("start", "api")
    assert spm.record("api")["instance"] != first["instance"]
    status_once(spm, "api", "backoff")
    assert spm.record("api")["failures"] == 2
    spm("stop", "api")


def test_a_supervisor_killed_while_it_waits_to_restart_is_told_truthfully(spm: Spm) -> None:
    slow_backoff(spm)
    spm.kill_supervisor("api")
    row = spm.service("api")
    assert row["status"] == "failed"
    assert row["why"].endswith("its supervisor was gone while it waited to restart")
    assert spm.record("api")["phase"] == "failed"
    assert events(spm, "api")[-1][0] == "corrected"
    refused = spm("start", "api", code=7)
    assert "cooldown" in refused.stderr
    spm("restart", "api", "--force")
    spm("stop", "api")


def test_list_tells_of_what_nobody_restarts_since_its_supervisor_was_gone(spm: Spm) -> None:
    # it was `exited` in silence, whatever its policy
    for name, policy in (("a", "always"), ("b", "no"), ("c", "on-failure")):
        spm("start", name, "sleep 100", "--restart", policy)
        spm.kill_supervisor(name)
    mains = [record["main"]["pid"] for record in spm.state()["services"].values()]
    for main in mains:
        os.kill(main, signal.SIGKILL)
    eventually(lambda: not any(map(is_running, mains)))
    spm("start", "bad", "no-such-program", "--restart", "always", code=4)
    slow_backoff(spm)
    spm.kill_supervisor("api")
    told = spm("list").stderr.splitlines()
    assert [line.split(":")[0] for line in told] == ["[WARN] a", "[WARN] api", "[WARN] c"], told
    how = "nobody restarts it now (--restart always): restart"
    assert told[0].endswith(f"; {how} a") and f"; {how} api --force (cooldown: " in told[1], told
    spm("restart", "a")
    spm("restart", "api", "--force")
    status_once(spm, "api", "backoff")
    assert [line[:8] for line in spm("list").stderr.splitlines()] == ["[WARN] a", "[WARN] c"]
    spm("cleanup")
    assert not spm("list").stderr


def test_waiting_goes_on_through_restarts_and_ends_when_the_policy_gives_up(
    spm: Spm, port: int
) -> None:
    flag = spm.cwd / "flag"
    server = f"test -e {flag} && exec {nasty('--port', port)}; touch {flag}; sleep 0.3; exit 1"
    spm("start", "api", "--shell", server, "--port", port, "--restart", "on-failure", *QUICK)
    assert "answers" in spm("wait-healthy", "api", "20s").stdout
    spm("stop", "api")
    loop = ("--restart", "on-failure", "--max-restarts", 1, *QUICK)
    spm("start", "bad", nasty("--exit", 3, "--after", 0.2), *loop)
    began = time.monotonic()
    assert "gave up" in spm("wait-healthy", "bad", "30s", code=1).stderr
    assert time.monotonic() - began < 15


def test_what_hangs_before_it_was_ever_healthy_is_unhealthy_and_restarted(spm: Spm) -> None:
    # until its first success no failure was counted: it was running for good
    liveness = ("--health", "exec:test -e well", "--health-interval", "50ms")
    spm("start", "calm", "sleep 100", *liveness)
    eventually(lambda: spm.service("calm")["status"] == "unhealthy", what="calm told of")
    policy = ("--restart", "on-failure", "--backoff", "10ms")
    spm("start", "api", "sleep 100", *liveness, *policy)
    spm("start", "slow", "sleep 100", *liveness, *policy, "--ready", "exec:test -e well")
    eventually(lambda: spm.service("api")["restarts"] > 0, what="a restart")
    assert spm.service("slow")["status"] == "running", "its readiness has all the time it wants"
    (spm.cwd / "well").touch()
    for name in ("calm", "api", "slow"):
        spm("wait-healthy", name, "10s")
        spm("stop", name)


def test_an_unhealthy_service_is_ended_and_restarted(spm: Spm) -> None:
    sick = spm.cwd / "sick"
    health = ("--health", f"exec:test ! -e {sick}", "--health-interval", "50ms")
    spm("start", "api", nasty("--child"), "--restart", "on-failure", *QUICK, *health)
    status_once(spm, "api", "ready")
    first = spm.record("api")["main"]["pid"]
    sick.touch()
    eventually(lambda: not is_running(first), what="the end of the unhealthy one")
    sick.unlink()
    new_main(spm, "api", first)
    status_once(spm, "api", "ready")
    assert tuple(
        event for event, why in events(spm, "api") if event in ("stopping", "backoff")
    ) == ("stopping", "backoff")
    spm("stop", "api")


def test_who_was_ended_as_unhealthy_has_failed_and_that_is_kept_with_its_reason(spm: Spm) -> None:
    sick = spm.cwd / "sick"
    health = ("--health", f"exec:test ! -e {sick}", "--health-interval", "50ms")
    policy = ("--restart", "on-failure", "--max-restarts", 0, "--cooldown", "0")
    spm("start", "api", "sleep 100", *policy, *health)
    status_once(spm, "api", "ready")
    sick.touch()
    row = status_once(spm, "api", "failed")
    assert row["why"].endswith(", --max-restarts 0: gave up"), "it was 0 restarts in 0.00 s"
    page = spm.json("explain", "api")
    seen = f"unhealthy: exec 'test ! -e {sick}': exit code 1"
    assert [one["because"] for one in page["exits"]] == [seen]
    assert page["cause"]["message"].startswith(seen), "it isn't that somebody sent SIGTERM"
    assert page["cause"]["kind"] == "unknown"
    short = ("--start-seconds", 5)
    done = spm("start", "short", "sh -c 'exit 0'", *short, code=4)
    assert f"\n  → {program.SILENT}\n" in done.stderr
    assert [one["code"] for one in spm.json("explain", "short")["exits"]] == [0]
    words = "sh -c 'echo bind: Connection refused; sleep 100'"
    done = spm("start", "bad", words, "--failure-log", "bind:", code=4)
    told = "its log matches 'bind:'; connection refused: bind: Connection refused"
    assert f"  cause: {told}\n" in done.stderr
    assert [one["cause"] for one in spm.json("explain", "bad")["exits"]] == ["connection_refused"]


def test_readiness_by_log_is_that_of_the_new_instance(spm: Spm) -> None:
    flag = spm.cwd / "flag"
    command = f"sh -c 'test -e {flag} && sleep 100; touch {flag}; echo up; sleep 0.3; exit 1'"
    spm("start", "api", command, "--ready", "log:up", "--restart", "always", *QUICK, "--wait", "9s")
    first = spm.record("api")["main"]["pid"]
    new_main(spm, "api", first)
    spm("wait-healthy", "api", "300ms", code=124)
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")


def test_what_cannot_be_executed_any_more_counts_as_a_failure(spm: Spm) -> None:
    tool = spm.cwd / "tool"
    tool.write_text("#!/bin/sh\nexec sleep 100\n")
    tool.chmod(0o755)
    spm("start", "api", "./tool", "--restart", "always", "--max-restarts", 2, *QUICK)
    tool.unlink()
    os.kill(spm.service("api")["pid"], signal.SIGKILL)
    row = status_once(spm, "api", "failed")
    assert "could not be executed: No such file" in row["why"] and "gave up" in row["why"]


def test_a_service_that_was_taken_back_is_restarted_too(spm: Spm) -> None:
    spm("start", "api", "sleep 100", "--restart", "on-failure", *QUICK, "--env", "MODE=one")
    first = spm.service("api")["pid"]
    spm.kill_supervisor("api")
    assert "taken back" in spm("start", "api").stdout
    os.kill(first, signal.SIGKILL)
    second = new_main(spm, "api", first)
    assert psutil.Process(second).environ()["MODE"] == "one"
    spm.kill_supervisor("api")
    spm("start", "api")
    os.kill(second, signal.SIGKILL)
    new_main(spm, "api", second)
    spm("stop", "api")


def test_a_service_that_was_taken_back_had_lived_only_since_then(spm: Spm) -> None:
    # after a long good life it still waited as long as after the last of many failures
    line = "test -e once || { touch once; exit 1; }; exec sleep 100"
    spm("start", "api", "--shell", line, "--restart", "always", *QUICK, "--backoff-reset", "700ms")
    eventually(lambda: spm.record("api")["restarts"] == 1 and spm.record("api")["main"])
    eventually(lambda: spm.service("api")["uptime_s"] > 0.8, what="a life that was long enough")
    before = spm.record("api")
    spm.kill_supervisor("api")
    assert "taken back" in spm("start", "api").stdout
    assert spm.record("api")["started_at"] == before["started_at"]
    os.kill(before["main"]["pid"], signal.SIGKILL)
    new_main(spm, "api", before["main"]["pid"])
    after = spm.record("api")
    assert (before["backoffs"], after["backoffs"]) == (1, 1)
    assert (before["failures"], after["failures"]) == (1, 1)
    spm("stop", "api")


def test_a_start_that_was_taken_back_was_judged_from_then_on(spm: Spm) -> None:
    starting = spm.popen("start", "api", "sleep 100", "--start-seconds", "2s")

    def has_lived() -> bool:
        return any((one["uptime_s"] or 0) > 1 for one in spm.json("list")["services"])

    eventually(has_lived, what="most of that time")
    starting.kill()
    starting.communicate()
    spm.kill_supervisor("api")
    spm("start", "api")
    eventually(lambda: spm.record("api")["phase"] == "running", what="the verdict")
    at = {one["event"]: one["at"] for one in spm.json("events", "api")["events"]}
    assert at["running"] - at["adopted"] < 1.9, at
    spm("stop", "api")


def test_a_supervisor_that_hangs_after_a_restart_can_be_put_aside(spm: Spm) -> None:
    spm("start", "api", "sleep 100", "--restart", "always", *QUICK)
    first = spm.service("api")["pid"]
    os.kill(first, signal.SIGKILL)
    new_main(spm, "api", first)
    os.kill(spm.supervisor("api"), signal.SIGSTOP)
    spm("stop", "api")
    assert not spm.bearers()


def test_a_daemon_is_restarted_by_its_launcher(spm: Spm) -> None:
    spm(
        "start", "api", "--shell", "sleep 100 &", "--type", "forking", "--restart", "always", *QUICK
    )
    first = status_once(spm, "api", "running")["pid"]
    os.kill(first, signal.SIGKILL)
    second = new_main(spm, "api", first)
    assert psutil.Process(second).cmdline() == ["sleep", "100"]
    spm("stop", "api")


def test_a_lease_goes_on_through_restarts(spm: Spm) -> None:
    spm(
        "start",
        "api",
        nasty("--exit", 1),
        "--restart",
        "always",
        "--backoff",
        "60",
        "--lease",
        "1s",
    )
    row = status_once(spm, "api", "stopped")
    assert "lease" in row["why"]


# -- did it start?


def test_a_start_that_dies_too_soon_has_failed_and_says_how(spm: Spm) -> None:
    died = spm("start", "api", nasty("--exit", 3, "--after", 0.1), "--start-seconds", "5", code=4)
    assert "exit code 3" in died.stderr and "  | last words" in died.stderr
    assert spm.service("api")["status"] == "failed"
    error = spm.json("start", "api", "sh -c 'exit 0'", "--start-seconds", "5", code=4)["error"]
    assert error["kind"] == "start_failed" and error["exit"]["code"] == 0
    assert spm.record("api")["failures"] == 1, "a good exit code is no success before that"
    assert spm.service("api")["status"] == "failed"
    policy = ("--restart", "always", "--cooldown", "0")
    spm("start", "api", nasty("--exit", 3), "--start-seconds", "5", *policy, code=4)
    assert spm.record("api")["restarts"] == 0, "what has not started isn't restarted"
    eventually(lambda: not spm.bearers(), what="the supervisor's end")


def test_a_start_returns_when_it_has_lived_for_long_enough(spm: Spm) -> None:
    began = time.monotonic()
    starting = spm.popen("start", "api", "sleep 100", "--start-seconds", "1s")
    wait_for_state(spm)
    eventually(lambda: "to live first" in spm.service("api")["why"], what="what it waits for")
    stdout, stderr = starting.communicate(timeout=30)
    assert starting.returncode == 0, stdout + stderr
    assert time.monotonic() - began >= 1
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")


def wait_for_state(spm: Spm) -> bool:
    """Whether a start has written its intent."""
    return bool(eventually(lambda: (spm.home / "state.json").exists()))


def test_the_first_match_in_the_log_decides(spm: Spm) -> None:
    patterns = ("--success-log", "^listening", "--failure-log", "(?i)error")
    began = time.monotonic()
    spm("start", "good", "sh -c 'echo listening; echo ERROR; sleep 100'", *patterns)
    assert time.monotonic() - began < 9
    assert spm.service("good")["status"] == "running"
    slow = "signal.signal(15, lambda *_: sys.exit(time.sleep(0.3)))  # no quick end"
    told = f"import signal, sys, time\n{slow}\nprint('ERROR: no\\nlistening', flush=True)"
    command = (sys.executable, "-S", "-c", f"{told}\ntime.sleep(100)")
    failed = spm("start", "bad", *patterns, "--", *command, code=4)
    assert "its log matches '(?i)error'" in failed.stderr and "  | ERROR: no" in failed.stderr
    row = spm.service("bad")
    assert (row["status"], row["pid"]) == ("failed", None)
    spm("start", "quiet", "sleep 100", *patterns, "--start-seconds", "200ms")
    assert spm.service("quiet")["status"] == "running"
    spm("cleanup")


# -- one truth


def test_a_difference_is_corrected_once_and_told(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    main = spm.service("api")["pid"]
    spm.kill_supervisor("api")
    os.kill(main, signal.SIGKILL)
    eventually(lambda: not is_running(main))
    row = spm.service("api")
    assert row["status"] == "exited"
    assert spm.record("api")["phase"] == "exited"
    state = (spm.home / "state.json").stat().st_mtime_ns
    assert spm.service("api")["why"] == row["why"]
    corrections = [why for event, why in events(spm, "api") if event == "corrected"]
    assert corrections == [f"recorded running, found dead: {row['why']}"]
    assert (spm.home / "state.json").stat().st_mtime_ns == state


def test_what_ran_when_the_machine_went_down_is_started_again(spm: Spm) -> None:
    assert "nothing ran" in spm("start", "--all-previous").stdout
    place = spm.cwd / "place"
    place.mkdir()
    for name in ("a", "b", "c"):
        spm("start", name, "sleep 100", *(["--cwd", place] if name == "c" else []))
    spm("stop", "b")
    pids = [spm.service(name)["pid"] for name in "ac"]
    spm.kill_supervisor("a")
    spm.kill_supervisor("c")
    place.rmdir()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    state = spm.state()
    for record in state["services"].values():
        record["place"]["boot"] = "another"
    (spm.home / "state.json").write_text(json.dumps(state))
    assert spm.service("a")["why"] == "machine restarted"
    assert "machine restarted: start --all-previous brings" in spm("list").stderr
    told = spm.json("start", "--all-previous", code=4)
    a, c = told["services"]
    assert (a["name"], a["status"], a["error"]) == ("a", "running", None)
    assert a["pid"] == spm.service("a")["pid"]
    assert (c["name"], c["status"], c["pid"]) == ("c", "exited", None)
    assert c["error"]["kind"] == told["error"]["kind"] == "start_failed"
    said = spm("start", "--all-previous", code=4).stderr
    assert said.startswith("[ERROR] c: no such directory: ") and said.count("[ERROR]") == 1, said
    place.mkdir()
    lines = spm("start", "--all-previous").stdout.splitlines()
    assert [line.partition(" (")[0] for line in lines] == ["[OK] c started"]
    assert [spm.service(name)["status"] for name in "abc"] == ["running", "stopped", "running"]
    spm("cleanup")


def test_what_was_stopped_after_the_machine_restarted_is_not_to_be_brought_back(spm: Spm) -> None:
    # list went on to advise start --all-previous for ever, which answered that nothing ran
    spm("start", "a", "sleep 100")
    state = spm.state()
    spm.kill_supervisor("a")
    os.kill(state["services"]["a"]["main"]["pid"], signal.SIGKILL)
    state["services"]["a"]["place"]["boot"] = "another"
    (spm.home / "state.json").write_text(json.dumps(state))
    assert "brings back what ran" in spm("list").stderr
    waited = spm("wait-healthy", "a", code=1).stderr
    assert "mend" not in waited and waited.endswith(
        "→ start it again: restart a; all that ran: start --all-previous\n"
    ), waited
    page = spm.json("explain", "a")
    assert (page["since"], page["why"]) == (None, "machine restarted"), "its end wasn't seen"
    assert spm("stop", "a").stdout == "[OK] a was not running: machine restarted\n"
    assert "brings back" not in spm("list").stderr
    assert "nothing ran" in spm("start", "--all-previous").stdout


def test_each_of_all_previous_is_an_instance_of_its_own(spm: Spm) -> None:
    # as JSON both bore one cookie: a stop of one ended the other
    for name in ("a", "b"):
        spm("start", name, "sleep 100")
    state = spm.state()
    for name, record in state["services"].items():
        spm.kill_supervisor(name)
        os.kill(record["main"]["pid"], signal.SIGKILL)
        record["place"]["boot"] = "another"
    (spm.home / "state.json").write_text(json.dumps(state))
    spm("start", "--all-previous", "--wait", "5s", code=2)
    spm("start", "--all-previous", "--json")
    assert spm.record("a")["instance"] != spm.record("b")["instance"]
    spm("stop", "a")
    assert [spm.service(name)["status"] for name in "ab"] == ["stopped", "running"]
    spm("cleanup")


@pytest.mark.skipif(sys.platform == "darwin", reason="a zombie's parent can't be seen there")
def test_a_zombie_that_its_parent_does_not_collect_is_shown_with_that_parent(spm: Spm) -> None:
    (spm.cwd / "careless.py").write_text(
        "import os, time\nos.fork() or os._exit(0)\ntime.sleep(100)"
    )
    spm("start", "api", f"{sys.executable} careless.py")
    main = spm.service("api")["pid"]
    shown = eventually(lambda: spm.json("status", "api")["zombies"], what="the zombie")
    assert [one["parent"] for one in shown] == [main]
    spm("stop", "api")


STEPS = int(os.environ.get("SPM_RESTART_STEPS", "1000" if THOROUGH else "100"))


@pytest.mark.parametrize("part", range(4))  # side by side where there are several workers
def test_random_starts_kills_and_stops_never_give_a_wrong_status(spm: Spm, part: int) -> None:
    seed = int(os.environ.get("SPM_RESTART_SEED", time.time_ns() % 10**6 * 4)) + part
    rng, done = random.Random(seed), []
    words = {
        "plain": ("start", "plain", "sleep 100"),
        "kept": ("start", "kept", "sleep 100", "--restart", "always", "--backoff", "20ms"),
    }
    words["kept"] += ("--max-restarts", "100000", "--backoff-max", "100ms", "--cooldown", "0")
    strict = 0
    try:
        for _ in range(STEPS // 4):
            name = rng.choice(list(words))
            step = rng.choice(("start", "start", "kill", "kill", "supervisor", "stop", "restart"))
            done.append(f"{step} {name}")
            take(spm, step, name, words[name])
            before, rows = sight(spm), spm.json("list")["services"]
            is_quiet = before == sight(spm)  # else something changed while list looked
            strict += is_quiet
            for row in rows if is_quiet else ():
                check_true(row, *before)
    except BaseException:
        print(f"SPM_RESTART_SEED={seed - part}, {len(done)} steps, the last: {done[-12:]}")
        raise
    assert strict > STEPS / 8, "most looks count"
    spm("cleanup")


def take(spm: Spm, step: str, name: str, words: tuple[str, ...]) -> None:
    """One step, on whatever is there."""
    if step == "start":
        spm(*words)
    elif step in ("stop", "restart"):
        spm(step, name, code=0 if state_has(spm, name) else 3)
    elif state_has(spm, name):
        record = spm.record(name)
        one = record["supervisor" if step == "supervisor" else "main"]
        pid = one["pid"] if one else 0
        if pid and pid in [process.pid for process in spm.bearers()]:
            os.kill(pid, signal.SIGKILL)


def state_has(spm: Spm, name: str) -> bool:
    path = Path(spm.home / "state.json")
    return path.exists() and name in spm.state()["services"]


def sight(spm: Spm) -> tuple[dict[str, list[int]], set[str]]:
    """What the system says: the main processes of each service, and whose supervisor lives."""
    mains: dict[str, list[int]] = {}
    guards = set()
    for process in spm.bearers():
        try:
            name, words = process.environ().get("SPM_SERVICE", ""), process.cmdline()
        except (psutil.Error, OSError):
            continue
        if "supervise" in words:
            guards.add(name)
        elif words == ["sleep", "100"]:
            mains.setdefault(name, []).append(process.pid)
    return mains, guards


def check_true(row: dict[str, Any], mains: dict[str, list[int]], guards: set[str]) -> None:
    """What list says of a service is what the system says."""
    name, status, pids = row["name"], row["status"], mains.get(row["name"], [])
    if status == "running":
        assert pids == [row["pid"]], f"{row}: {mains}"
        assert row["supervised"] is (name in guards), f"{row}: {guards}"
    elif status in ("backoff", "starting"):
        assert name == "kept" and name in guards, f"{row}: no supervisor would restart it"
        assert not pids, f"{row}: {mains}"
    else:
        assert status in ("stopped", "exited", "failed"), row
        assert not pids, f"{row}: {mains}"


def test_restarts_outside_of_the_window_are_not_counted(spm: Spm) -> None:
    limits = ("--max-restarts", "1", "--restart-window", "100ms", "--cooldown", "0")
    waits = ("--backoff", "200ms", "--backoff-max", "200ms")
    spm("start", "api", "sh -c 'exit 3'", "--restart", "on-failure", *limits, *waits)
    eventually(lambda: spm.record("api")["restarts"] >= 3, what="a third restart")
    spm("stop", "api")


def test_the_advice_of_a_start_that_failed_is_not_refused_by_its_cooldown(spm: Spm) -> None:
    # `restart web` was advised, and refused for a minute
    soon = ("sh", "-c", "echo \"ModuleNotFoundError: No module named 'x'\"; exit 1")
    policy = ("--start-seconds", "20", "--restart", "on-failure")
    refused = spm("start", "web", *policy, "--", *soon, code=4).stderr.strip()
    assert "then: restart web --force (or" in refused
    free = spm("start", "job", *policy[:2], "--", *soon, code=4).stderr.strip()
    assert "then: restart job (or" in free


def test_a_directory_that_vanished_was_told_as_if_the_program_were_missing(spm: Spm) -> None:
    there = spm.base / "there"
    there.mkdir()
    words = ("--restart", "always", *QUICK, "--cwd", there, "--shell", f"rm -r {there}; exit 1")
    spm("start", "api", *words)
    told = f"it could not be executed: {there}: No such file or directory"
    eventually(lambda: told in spm("events", "api").stdout, what="the second instance")
    cause = spm.json("explain", "api")["cause"]
    before = "" if "guess" not in cause else "it ended before: "  # while it is tried again
    assert cause["message"] == f"{before}no such directory: {there}"
    assert cause["advice"].startswith("from the directory that it shall run in: start api ")
    spm("stop", "api")


def test_a_clock_that_was_set_made_a_short_life_a_long_one(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    pid = spm.service("api")["pid"]
    spm.kill_supervisor("api")
    state = spm.state()
    state["services"]["api"]["started_at"] -= 3600  # as if the clock had been set forward since
    (spm.home / "state.json").write_text(json.dumps(state))
    spm("start", "api")
    assert spm.service("api")["pid"] == pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: spm.record("api")["exit"], what="its end")
    assert 0 < spm.record("api")["exit"]["lived_s"] < 60
    told = spm("wait-healthy", "api", code=1).stderr
    assert " s after its start" in told and "1 h" not in told
