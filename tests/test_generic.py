"""The story of one service where there is no /proc, no pidfd and no subreaper: see generic.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import Spm, eventually, is_running, nasty
from generic import generic_copy


@pytest.fixture
def generic(spm: Spm) -> Spm:
    """The command line of the copy."""
    spm.program = generic_copy(spm.base / "program").parent / "tests" / "spm.py"
    return spm


def test_a_service_and_its_daemon_are_followed_and_ended_without_proc(
    generic: Spm, port: int
) -> None:
    pids = generic.cwd / "pids"
    switches = ("--port", port, "--child", "--setsid-child", "--daemon", "--pids", pids)
    generic("start", "api", nasty(*switches))
    generic("wait-healthy", "api", "20")
    assert "@" not in generic.record("api")["main"]["token"], "it is psutil that was asked"
    row = generic.service("api")
    assert (row["status"], row["port"]) == ("running", port) and row["memory_bytes"] > 0
    eventually(lambda: pids.exists() and len(pids.read_text().split()) == 4, what="four pids")
    started = [int(line) for line in pids.read_text().split()]
    assert {one["pid"] for one in generic.json("status", "api")["tree"]} >= set(started)
    other = generic("start", "other", "--port", port, nasty("--port", port), code=None)
    assert (other.returncode, f"pid {row['pid']}" in other.stderr) == (5, True), other.stderr
    done = generic.json("stop", "api", "--timeout", "300ms")["services"][0]
    assert not [pid for pid in started if is_running(pid)]
    assert done["status"] == "stopped" and done["processes"] >= 4


@pytest.mark.slow
def test_a_service_outlives_its_supervisor_and_is_taken_back_without_proc(generic: Spm) -> None:
    pids = generic.cwd / "pids"
    generic("start", "api", nasty("--daemon", "--pids", pids))
    eventually(lambda: pids.exists() and len(pids.read_text().split()) == 2, what="two pids")
    generic.kill_supervisor("api")
    assert generic.service("api")["status"] == "running"
    generic("start", "api", nasty("--daemon", "--pids", pids))
    assert is_running(generic.supervisor("api")), "adopted by a supervisor"
    generic.kill_supervisor("api")
    (generic.home / "state.json").unlink()
    shown = generic("cleanup").stdout
    assert "api" in shown and not generic.bearers()


def test_the_copy_without_proc_refuses_to_open_it(base: Path) -> None:
    script = generic_copy(base)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import simple_process_manager as spm\n"
        "assert spm.stat_of(int(sys.argv[2])).parent and spm.listen_sockets() is None\n"
        "assert not spm.become_subreaper() and not spm.place().namespace\n"
        "def denied(process): raise spm.psutil.AccessDenied(process.pid)\n"
        "spm.psutil.Process.num_threads = denied  # as of another user's on macOS\n"
        "assert spm.stat_of(1).identity.born, 'not seen'\n"
        "was = spm.stat_of(1)\n"
        "spm.psutil.Process.create_time = lambda process: 1.0  # the clock was set\n"
        "assert spm.stat_of(1).identity == was.identity\n"
        "dead = spm.os.fork() or spm.os._exit(0)\n"
        "def gone(process): raise spm.psutil.ZombieProcess(process.pid)\n"
        "spm.psutil.Process.num_threads = gone  # macOS tells of a zombie what its table says\n"
        "while not spm.stat_of(dead).is_dead: pass\n"
        "assert spm.stat_of(dead).parent == spm.os.getpid() and spm.stat_of(dead).identity.born\n"
        "print(spm.death_watch(spm.Identity(int(sys.argv[2]), '')))\n"
        "exec('open(\"/proc/self/stat\")', vars(spm))"
    )
    words = [sys.executable, "-c", program, str(script.parent), str(os.getpid())]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "None\n", done.stderr
    assert "AssertionError: opened where there is no /proc: /proc/self/stat" in done.stderr


def test_a_daemon_that_shows_no_cookie_is_followed_by_its_pid_file(generic: Spm) -> None:
    line = "setsid env -i sleep 100 & echo $! > d.pid; exit 0"
    generic("start", "lost", "--shell", line, "--type", "forking")
    eventually(lambda: generic.service("lost")["status"] == "exited", what="nothing to be found")
    assert "found by its --pid-file alone" in generic.service("lost")["why"]
    left = int((generic.cwd / "d.pid").read_text())
    psutil.Process(left).kill()
    generic("start", "api", "--shell", line, "--type", "forking", "--pid-file", "d.pid")
    eventually(lambda: generic.service("api")["status"] == "running", what="the daemon")
    daemon = int((generic.cwd / "d.pid").read_text())
    assert generic.service("api")["pid"] == daemon
    generic("stop", "api")
    assert not is_running(daemon)
