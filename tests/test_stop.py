"""stop, restart, cleanup: the whole tree goes, nothing else does."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import GENERIC, PACE, SCRIPT, Spm, end, eventually, is_running, nasty

TREES = [
    ("--child",),
    ("--setsid-child",),
    ("--daemon",),
    ("--scrubbed-daemon",),
    ("--child", "--setsid-child", "--daemon", "--scrubbed-daemon", "--ignore-term"),
]


def started_pids(spm: Spm, count: int) -> list[int]:
    """The pids that the nasty service wrote down."""
    file = spm.cwd / "pids"

    def read() -> list[int]:
        pids = [int(line) for line in file.read_text().split()] if file.exists() else []
        return pids if len(pids) == count else []

    return eventually(read, what=f"{count} pids")


@pytest.mark.parametrize("switches", TREES)
@pytest.mark.parametrize("supervised", [True, False])
def test_the_whole_tree_goes(spm: Spm, switches: tuple[str, ...], supervised: bool) -> None:
    if not supervised and "--scrubbed-daemon" in switches:
        pytest.skip(
            "without cookie and without supervisor nothing tells whose it is (README, limits)"
        )
    if GENERIC and "--scrubbed-daemon" in switches:
        pytest.skip("who scrubs its environment and escapes is caught by Linux's subreaper alone")
    daemons = [switch for switch in switches if switch != "--ignore-term"]
    spm("start", "api", nasty("--pids", spm.cwd / "pids", *switches))
    pids = started_pids(spm, len(daemons) + 1)
    if not supervised:
        spm.kill_supervisor("api")
    done = spm.json("stop", "api", "--timeout", "300ms")["services"][0]
    assert not [pid for pid in pids if is_running(pid)]
    assert done["status"] == "stopped" and done["processes"] >= len(pids)
    eventually(lambda: not spm.bearers(), what="the supervisor's end")


def test_a_shell_wrapper_goes_with_its_children(spm: Spm) -> None:
    spm("start", "api", "--shell", "sleep 100 & sleep 101 & wait")
    eventually(lambda: len(spm.json("status", "api")["tree"]) == 3, what="the shell's children")
    spm("stop", "api")


@pytest.mark.smoke
def test_stop_tells_time_exit_and_port(spm: Spm, port: int) -> None:
    spm("start", "api", nasty("--port", port))
    spm("wait-healthy", "api", 10)
    line = spm("stop", "api").stdout
    assert line.startswith("[OK] api stopped in 0.")
    assert "killed by SIGTERM, 1 process ended" in line
    assert line.endswith(f"port {port} is free\n")


def test_an_exit_code_is_told(spm: Spm) -> None:
    obey = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print(1, flush=True)"
    )
    spm("start", "api", "--", sys.executable, "-c", f"{obey}; time.sleep(100)")
    eventually(lambda: spm.log("api"), what="the handler")
    assert "exit code 7" in spm("stop", "api").stdout


def test_stopping_what_is_stopped_is_success(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    spm("stop", "api")
    again = spm.json("stop", "api")["services"][0]
    assert again["already_stopped"] is True
    assert "was not running" in spm("stop", "api").stdout
    assert "no service 'apu'" in spm("stop", "apu", code=3).stderr


def test_several_are_stopped_side_by_side(spm: Spm) -> None:
    for name in "abc":
        spm("start", name, nasty("--ignore-term", "--say", "up"))
    eventually(lambda: all(spm.log(name) for name in "abc"), what="three services")
    began = time.monotonic()
    spm("stop", "a", "b", "c", "--timeout", "2s")
    assert time.monotonic() - began < 5 * PACE
    assert {spm.service(name)["status"] for name in "abc"} == {"stopped"}


def test_a_stop_that_took_sigkill_is_told_as_that(spm: Spm) -> None:
    spm("start", "api", nasty("--ignore-term", "--say", "up"))
    eventually(lambda: "up" in spm.log("api"))
    spm("stop", "api", "--timeout", "0.2")
    assert "; it took " in spm("events", "api").stdout.splitlines()[-1]


def test_the_waits_for_what_other_commands_hold_do_not_add_up(spm: Spm) -> None:
    # three times the timeout for three services that others were starting
    with contextlib.ExitStack() as held:
        for name in "abc":
            spm("start", name, "sleep 100")
            lock = held.enter_context(open(spm.home / "services" / name / "lock"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        told = spm.json("stop", "a", "b", "c", "--timeout", "1s", code=124)
        assert time.monotonic() - began < 2.5 * PACE
    assert [one["name"] for one in told["errors"]] == ["a", "b", "c"]
    assert all("not done after 1 s" in one["message"] for one in told["errors"])
    spm("stop", "a", "b", "c")


def test_a_command_with_json_that_got_sigterm_printed_nothing(spm: Spm) -> None:
    spm("start", "api", nasty("--ignore-term", "--say", "up"))
    eventually(lambda: spm.log("api"), what="the service")
    words = ("stop", "api", "--timeout", "20s")
    stop, plain = spm.popen(*words, "--json"), spm.popen(*words)
    eventually(lambda: spm.service("api")["status"] == "stopping", what="the stop")
    stop.terminate()
    plain.terminate()
    error = json.loads(stop.communicate(timeout=20)[0])["error"]
    assert (error["kind"], error["signal"], stop.returncode) == ("interrupted", "SIGTERM", 143)
    assert plain.communicate(timeout=20) == ("", "") and plain.returncode == -signal.SIGTERM
    spm("stop", "api", "--force")


def test_sigkill_comes_after_the_timeout_and_at_once_with_force(spm: Spm) -> None:
    spm("start", "api", nasty("--ignore-term", "--say", "up"))
    eventually(lambda: spm.log("api"), what="the service")
    done = spm.json("stop", "api", "--timeout", "0.4s")["services"][0]
    assert done["killed"] and done["exit"]["signal"] == "SIGKILL"
    assert 0.4 <= done["seconds"] < 2 * PACE
    spm("start", "api", nasty("--ignore-term", "--say", "up"))
    eventually(lambda: spm.log("api"), what="the service")
    assert spm.json("stop", "api", "--force")["services"][0]["seconds"] < 4
    spm("start", "api", nasty("--ignore-term", "--say", "up"))
    eventually(lambda: spm.log("api"), what="the service")
    assert "(killed by SIGKILL, 1 process ended, SIGKILL was used)" in (
        spm("stop", "api", "--timeout", "0.1s").stdout
    )


def test_force_overtakes_a_stop_that_waits_politely(spm: Spm) -> None:
    spm("start", "api", nasty("--ignore-term", "--say", "up"))
    eventually(lambda: spm.log("api"), what="the service")
    polite = spm.popen("stop", "api", "--timeout", "50s")
    eventually(lambda: spm.service("api")["status"] == "stopping", what="the polite stop")
    spm("stop", "api", "--force")
    assert polite.wait(5) == 0
    polite.communicate()


@pytest.mark.slow
@pytest.mark.skipif(GENERIC, reason="there another user's process is in no tree")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be without CAP_KILL")
def test_a_stop_that_failed_is_meant_all_the_same(spm: Spm) -> None:
    # what outlived SIGKILL was restarted when it ended later; whose main process was gone stayed
    # "running" in its record while a child lived, and its supervisor never left
    unkillable = "setpriv --reuid 65534 --clear-groups sleep 100"
    lines = dict.fromkeys(("main", "again"), f"exec {unkillable}")
    lines["child"] = f"{unkillable} & wait"
    less = ["setpriv", "--bounding-set", "-kill", "--inh-caps", "-kill"]
    for name, line in lines.items():
        words = spm.argv("start", name, "--shell", line, "--restart", "always", "--backoff", "10ms")
        subprocess.run([*less, *words], cwd=spm.cwd, env=spm.env, check=True, capture_output=True)

    def all_three() -> list[psutil.Process]:
        found = [one for one in spm.bearers() if one.name() == "sleep"]
        return found if len(found) == 3 else []

    sleeps = eventually(all_three, what="who can't be killed")
    main, supervisor = spm.service("main")["pid"], spm.supervisor("main")
    spm("stop", *lines, "--timeout", "50ms", code=1)
    assert spm.service("main")["status"] == "running"
    assert spm.service("child")["status"] == "failed"
    assert "outlived" in spm.record("child")["reason"]
    os.kill(main, signal.SIGKILL)
    eventually(lambda: not is_running(supervisor), what="the end of a service that was to stop")
    assert spm.service("main")["status"] == "failed"
    assert "already" in spm("start", "again").stdout
    assert spm.record("again")["wanted"] == "running", "it is wanted again"
    spm.kill_supervisor("again")
    end(sleeps)
    eventually(lambda: not spm.bearers(), what="the others' end")


def test_ctrl_c_in_a_stop_does_not_stop_the_stop(spm: Spm) -> None:
    spm("start", "api", nasty("--ignore-term", "--say", "up"))
    eventually(lambda: spm.log("api"), what="the service")
    command = spm.popen("stop", "api", "--timeout", "700ms")
    eventually(lambda: spm.service("api")["status"] == "stopping", what="the stop")
    command.send_signal(signal.SIGINT)
    assert command.wait(5) == 130
    command.communicate()
    eventually(lambda: spm.service("api")["status"] == "stopped", what="the end of the stop")


def test_a_stopped_process_obeys_sigterm_all_the_same(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    os.kill(spm.service("api")["pid"], signal.SIGSTOP)
    eventually(lambda: "SIGSTOP" in spm.service("api")["why"], what="the status to tell")
    assert spm.json("stop", "api")["services"][0]["killed"] is False


@pytest.mark.skipif(
    GENERIC or platform.machine() != "x86_64", reason="Linux, and a system call by its number"
)
def test_who_lost_its_first_thread_is_not_dead(spm: Spm) -> None:
    # exit(2) of one thread; the kernel shows the process as a zombie while the others go on
    text = "threading.Thread(target=time.sleep, args=(60,)).start(); ctypes.CDLL(None).syscall(60)"
    spm("start", "api", "--", sys.executable, "-c", f"import ctypes, threading, time; {text}")
    process = psutil.Process(spm.service("api")["pid"])
    eventually(lambda: process.status() == psutil.STATUS_ZOMBIE, what="the end of that thread")
    assert spm.service("api")["status"] == "running"
    assert spm.json("stop", "api")["services"][0]["processes"] == 1
    assert not psutil.pid_exists(process.pid)


def test_a_name_that_is_asked_to_stop_is_told_as_it_was_typed_and_once(spm: Spm) -> None:
    # in lower case it was near to no service any more; --dry-run listed it for each way to write it
    spm("start", "API", "sleep 100")
    told = spm("stop", "APY", code=3).stderr
    assert "no service 'APY'" in told and "did you mean API?" in told
    for more in (["--dry-run"], []):
        assert len(spm.json("stop", "api", "Api", *more)["services"]) == 1


def test_dry_run_lists_each_process_and_why_and_signals_none(spm: Spm) -> None:
    switches = ("--child", "--setsid-child", "--daemon", "--pids", spm.cwd / "pids")
    spm("start", "api", nasty(*switches))
    pids = started_pids(spm, 4)
    listed = spm.json("stop", "api", "--dry-run")["services"][0]["processes"]
    why = {one["pid"]: one["why"] for one in listed}
    assert why[pids[0]] == "main process"
    assert set(pids) == set(why)
    assert f"child of {pids[0]}" in why.values()
    assert {"bears its cookie" if GENERIC else "adopted by its supervisor"} & set(why.values())
    assert all(is_running(pid) for pid in pids)
    done = spm("stop", "api", "nobody", "--dry-run", code=3)
    assert f"pid {pids[0]}: main process: " in done.stdout
    assert "no service 'nobody'" in done.stderr
    spm("stop", "api", "--force")


@pytest.mark.smoke
def test_stop_leaves_a_foreign_process_alone(spm: Spm) -> None:
    same_command = subprocess.Popen(["sleep", "100"])
    spm("start", "api", "sleep 100")
    try:
        spm("stop", "api")
        assert same_command.poll() is None
    finally:
        same_command.kill()
        same_command.wait()


def test_a_service_that_stops_itself_is_refused(spm: Spm) -> None:
    inner = f"{sys.executable} {SCRIPT} stop api; echo exit $?; exec sleep 100"
    spm("start", "api", "--shell", inner)
    eventually(lambda: "exit 8" in spm.log("api"), what="the refusal")
    assert "above this command" in spm.log("api")
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")


def test_the_supervisor_obeys_sigterm_by_stopping_its_service(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    pid, supervisor = spm.service("api")["pid"], spm.supervisor("api")
    os.kill(supervisor, signal.SIGTERM)
    eventually(lambda: not is_running(supervisor) and not is_running(pid), what="both ends")
    assert spm.service("api")["status"] == "stopped"


def test_restart_takes_the_recorded_spec_and_the_callers_environment(spm: Spm) -> None:
    file = spm.cwd / "my.env"
    file.write_text("FROM_FILE=old\n")
    spm.env["FROM_CALLER"] = "old"
    spm("start", "api", nasty(), "--env", "GIVEN=kept", "--env-file", "my.env")
    old = spm.service("api")["pid"]
    file.write_text("FROM_FILE=new\n")
    spm.env["FROM_CALLER"] = "new"
    assert "api restarted" in spm("restart", "api", cwd="/").stdout
    new = psutil.Process(spm.service("api")["pid"])
    assert new.pid != old and not is_running(old)
    environ = new.environ()
    values = [environ[key] for key in ("FROM_FILE", "FROM_CALLER", "GIVEN")]
    assert values == ["new", "new", "kept"]
    assert new.cwd() == str(spm.cwd)
    spm("stop", "api")
    assert spm("restart", "api").returncode == 0
    spm("stop", "api")
    spm("restart", "nobody", code=3)


def test_cleanup_stops_everything_and_forgets_it(spm: Spm) -> None:
    for name in "abc":
        spm("start", name, nasty("--child"))
    spm("stop", "c")
    done = spm("cleanup")
    assert "a stopped in" in done.stdout and "b stopped in" in done.stdout
    assert "3 services forgotten, logs kept (--purge)\n" in done.stdout
    assert spm.json("list")["services"] == []
    assert not spm.bearers()
    assert (spm.home / "services" / "a" / "output.log").exists()
    spm("start", "never", "sleep 100", "--cwd", "/nowhere", code=4)
    assert "runs; 3 logs removed\n" in spm("cleanup", "--purge").stdout
    assert not list((spm.home / "services").iterdir())


def test_cleanup_did_not_forget_what_was_restarted_by_itself_just_then(spm: Spm) -> None:
    quick = ("--backoff", "1ms", "--backoff-max", "1ms", "--max-restarts", "100000")
    spm("start", "api", "sh -c 'exit 1'", "--restart", "always", *quick)
    eventually(lambda: spm.service("api")["restarts"] > 2)
    assert spm.json("cleanup")["forgotten"] == ["api"]


def test_cleanup_removes_what_killed_writes_left(spm: Spm) -> None:
    spm.env["SPM_TEST_CRASH"] = "command.written"
    spm("start", "api", "sleep 100", code=None)
    del spm.env["SPM_TEST_CRASH"]
    (left,) = spm.home.rglob("*.tmp")
    notes = spm.home / "services" / "api" / "data" / "dump.5.tmp"  # of the service
    notes.parent.mkdir(parents=True)
    notes.touch()
    spm("cleanup")
    assert left.exists(), "it might be somebody's who writes just now"
    for path in (left, notes):
        os.utime(path, (0, 0))
    spm("cleanup")
    assert notes.exists() and not left.exists()


def test_cleanup_keep_keeps_them_known(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    spm("cleanup", "--keep")
    assert spm.service("api")["status"] == "stopped"
    assert spm.json("cleanup", "--purge")["forgotten"] == ["api"]


def test_cleanup_of_a_home_that_does_not_exist_is_success(spm: Spm) -> None:
    spm.forget_home()
    assert "nothing to clean up" in spm("cleanup").stdout
    assert not spm.home.exists()


def test_what_a_crashed_main_process_left_is_known_and_ended(spm: Spm) -> None:
    spm("start", "api", nasty("--child", "--pids", spm.cwd / "pids", "--exit", 3))
    main, child = started_pids(spm, 2)
    eventually(lambda: spm.service("api")["status"] == "failed", what="the end of the main process")
    assert is_running(child)
    assert "1 process of its tree left alive" in spm.service("api")["why"]
    assert spm.json("stop", "api")["services"][0]["processes"] == 1
    assert not is_running(child) and not is_running(main)


def test_start_ends_what_the_former_instance_left(spm: Spm) -> None:
    spm("start", "api", nasty("--child", "--pids", spm.cwd / "pids", "--exit", 3))
    child = started_pids(spm, 2)[1]
    eventually(lambda: spm.service("api")["status"] == "failed", what="the end of the main process")
    started = spm("start", "api", nasty())
    assert "1 process of its former instance ended" in started.stdout
    assert not is_running(child)
    spm("stop", "api")


def test_no_zombie_stays_behind(spm: Spm) -> None:
    spm("start", "api", nasty("--daemon", "--pids", spm.cwd / "pids"))
    daemon = started_pids(spm, 2)[1]
    os.kill(daemon, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(daemon), what="the orphan to be reaped")
    spm("stop", "api")
    assert not Path(f"/proc/{daemon}").exists()


def test_a_graceful_end_that_runs_short_commands_is_left_its_time(spm: Spm) -> None:
    ends = "i=0; while [ $i -lt 300 ]; do /bin/true; i=$((i + 1)); done; echo in peace; exit 0"
    line = f"trap '{ends}' TERM; echo up; while :; do sleep 0.05; done"
    spm("start", "web", "--ready", "log:up", "--shell", line)
    spm("wait-healthy", "web", "10")
    assert "exit code 0" in spm("stop", "web", "--timeout", "20").stdout
    assert spm("logs", "web").stdout.endswith("in peace\n")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can")
def test_what_became_another_user_and_outlives_a_stop_is_named(spm: Spm) -> None:
    # of a daemon that left its tree, when there is no supervisor that has adopted it
    leave = "if not os.fork():\n os.setsid()\n if os.fork(): os._exit(0)\n"
    other = " print('pid', os.getpid(), flush=True); os.chdir('/'); os.setuid(65534)\n"
    program = f"import os, time\n{leave}{other} os.execv('/bin/sleep', ['sleep', '99'])\n"
    spm("start", "web", "--", sys.executable, "-c", f"{program}time.sleep(99)")
    pid = int(eventually(lambda: re.findall(r"pid (\d+)\n", spm.log("web")))[0])
    eventually(lambda: psutil.Process(pid).name() == "sleep")
    try:
        spm.kill_supervisor("web")
        told = f"[WARN] pid {pid} (sleep, user nobody, in /, service web of {spm.home}) is left: "
        told += f"it became another user's; if it may go: kill {pid}\n"
        assert spm("stop", "web").stderr == told
        assert spm("list").stderr == told
        done = spm("cleanup")
        assert done.stderr == told and ", nothing else of " in done.stdout
    finally:
        end([psutil.Process(pid)])
    eventually(lambda: not is_running(pid))
