"""What an attack on the seams found: each a defect once, named after its symptom."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from conftest import GENERIC, Spm, eventually, is_running, nasty

import simple_process_manager as program

TEST_ENV = "import os; print(os.environ.get('PORT'), os.environ.get('API_PORT'))"


@pytest.fixture
def stranger(port: int) -> Iterator[int]:
    """A port that a process of no service holds, and that isn't in the project."""
    argv = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    null = subprocess.DEVNULL
    process = subprocess.Popen(argv, cwd="/", stdout=null, stderr=null, start_new_session=True)
    try:
        eventually(lambda: program.probe_tcp(port)[0], what="its port")
        yield port
    finally:
        process.kill()
        process.wait()


def test_tests_get_the_port_of_a_service_whose_readiness_is_about_no_port(
    spm: Spm, port: int
) -> None:
    words = ("run", "api", nasty(), "--ready", "exec:true")
    seen = spm(*words, "--port", port, "--", sys.executable, "-c", TEST_ENV).stdout
    assert seen.split() == [str(port), str(port)]
    assert spm(*words, "--", sys.executable, "-c", TEST_ENV).stdout.split() == ["None", "None"]


def test_run_by_another_spelling_survives_the_end_of_its_service(spm: Spm) -> None:
    spm("start", "api", "sleep 100", "--ready", "exec:true")
    script = f"kill -9 {spm.service('api')['pid']}; sleep 0.3"
    done = spm("run", "API", "sleep 100", "--ready", "exec:true", "--", "sh", "-c", script)
    assert "[WARN] api is not running" in done.stderr


def test_a_check_sees_what_its_service_was_given_whoever_looks(spm: Spm) -> None:
    (spm.cwd / "values").write_text("FROM_FILE=1\n")
    check = 'exec:test "$FROM_FILE$GIVEN" = 12'
    given = ("--env", "GIVEN=2", "--env-file", "values", "--ready", check)
    spm("start", "api", "sleep 100", *given, "--wait", "5s")
    spm("wait-healthy", "api", "5")
    spm.kill_supervisor("api")
    spm("start", "api")
    eventually(lambda: spm.service("api")["status"] == "ready", what="the new supervisor's look")
    spm("stop", "api")


def test_what_is_forking_is_not_ready_while_its_launcher_lives(spm: Spm, port: int) -> None:
    server = nasty("--port", port)
    done = spm("start", "web", server, "--type", "forking", "--wait", "1s", code=124)
    assert "its launcher has not exited" in done.stderr
    assert "it seems to stay in the foreground: start it without --type forking\n" in done.stderr
    assert spm.service("web")["status"] == "starting"
    spm("stop", "web")


def test_a_port_of_what_can_not_be_followed_is_waited_for(spm: Spm, stranger: int) -> None:
    spm("start", "tool", "true", "--type", "external", "--port", stranger, "--force")
    assert spm.json("wait-healthy", stranger, 5)["name"] is None
    done = spm("wait-healthy", "tool", 5, code=1)
    assert "tool can't be judged: external" in done.stderr and "mend the cause" not in done.stderr
    spm("stop", "tool")


def test_what_runs_is_not_ended_for_a_port_that_it_can_not_have(spm: Spm, stranger: int) -> None:
    spm("start", "api", "sleep 100")
    pid = spm.service("api")["pid"]
    done = spm("start", "api", "sleep 100", "--replace", "--port", stranger, code=5)
    assert "left alone" in done.stderr
    assert is_running(pid) and spm.service("api")["status"] == "running"
    spm("stop", "api")


def test_start_with_wait_says_the_status_that_list_says(spm: Spm, port: int) -> None:
    done = spm.json("start", "web", nasty("--port", port), "--wait")
    assert done["status"] == spm.service("web")["status"] == "running"
    spm("stop", "web")


@pytest.mark.skipif(GENERIC, reason="without a pidfd who isn't its child has to be looked at")
def test_a_supervisor_that_took_a_service_back_wakes_no_more_often_than_the_first(
    spm: Spm,
) -> None:
    spm("start", "api", "sleep 100")
    spm.kill_supervisor("api")
    spm("start", "api")
    supervisor, last = psutil.Process(spm.supervisor("api")), (0, 0.0)

    def is_quiet() -> bool:
        nonlocal last
        wakes = supervisor.num_ctx_switches().voluntary
        last = last if wakes == last[0] else (wakes, time.monotonic())
        return time.monotonic() - last[1] > 1.5

    eventually(is_quiet, within=6, what="a second and a half without a wake")
    spm("stop", "api")


def test_what_runs_already_is_not_followed_on_the_evidence_of_a_check(spm: Spm) -> None:
    words = ("start", "tool", "sleep 100", "--type", "external", "--ready", "exec:true")
    spm(*words, "--wait")
    assert "external: ready" in spm(*words).stdout
    spm("stop", "tool")


def test_a_notice_does_not_outvote_the_checks(spm: Spm) -> None:
    spm("start", "api", "sleep 100", "--ready", "log:never")
    spm("notify", "api", "ready", "--message", "I think so")
    assert spm.service("api")["status"] == "running"
    assert "I think so" in spm("status", "api").stdout
    spm("stop", "api")


def test_run_stops_what_it_started_though_the_tests_removed_the_state(spm: Spm) -> None:
    done = spm("run", "api", nasty(), "--ready", "exec:true", "--", "rm", "-r", str(spm.home))
    assert "[OK] the tests passed; stopped: api" in done.stderr


def test_a_supervisor_that_is_told_to_stop_while_it_starts_stops_its_service(spm: Spm) -> None:
    start = spm.popen("start", "api", "sleep 100")

    def supervisor() -> int:
        with contextlib.suppress(OSError, KeyError, TypeError):
            return spm.supervisor("api")
        return 0

    os.kill(eventually(supervisor, what="the first record"), signal.SIGTERM)
    start.communicate(timeout=30)
    eventually(lambda: not spm.bearers(), what="the end of both")
    assert spm.service("api")["status"] == "stopped"


def test_who_waits_and_who_lists_agree_on_what_makes_a_service_ready(spm: Spm) -> None:
    done = spm.json("start", "api", "sleep 100", "--health", "exec:true", "--wait", "5s")
    assert done["status"] == spm.service("api")["status"] == "ready"
    spm("wait-healthy", "api", 5)
    spm("stop", "api")
