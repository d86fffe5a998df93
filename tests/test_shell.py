"""The caller gets its shell back: nothing of ours holds its descriptors, terminals or signals."""

from __future__ import annotations

import functools
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import SCRIPT, THOROUGH, Spm, eventually, is_running, nasty

START = f"{sys.executable} {SCRIPT} start"
DEAF: dict[str, Any] = {
    "preexec_fn": functools.partial(signal.signal, signal.SIGCHLD, signal.SIG_IGN)
}


def shell(spm: Spm, line: str, timeout: float = 30.0) -> str:
    """The output of a shell line, which must end by itself."""
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=spm.cwd,
        env=spm.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        text=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    "line",
    [
        "out=$({start} api 'sleep 100'); echo \"$out\"",
        "{start} api 'sleep 100' | cat",
        "{start} api 'sleep 100' 2>&1 | cat",
        "{start} api 'sleep 100' <&-",
        "{start} api 'sleep 100' </dev/null >out 2>err; cat out err",
        "exec 7>held; {start} api 'sleep 100' 7>&7",
    ],
)
def test_the_shell_comes_back_at_once(spm: Spm, line: str) -> None:
    assert "[OK] api started" in shell(spm, line.format(start=START))
    spm("stop", "api")


@pytest.mark.parametrize("stream", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_do_no_harm(spm: Spm, stream: str) -> None:
    shell(spm, f"{START} api 'sleep 100' {stream}")
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")


def test_tests_wrote_into_what_was_opened_in_the_place_of_a_closed_stderr(spm: Spm) -> None:
    start = f"{sys.executable} {SCRIPT} run api 'sleep 9' --ready exec:true --json"
    shell(spm, f"{start} -- sh -c 'exec 3>&1; readlink /proc/self/fd/3 >to' 2>&- >out")
    assert (spm.cwd / "to").read_text() == "/dev/null\n"
    assert '"exit_code": 0' in (spm.cwd / "out").read_text()


def test_neither_supervisor_nor_service_holds_a_descriptor_of_the_caller(spm: Spm) -> None:
    read, write = os.pipe()
    with open(spm.cwd / "held", "w", encoding="utf-8") as held:
        options = {"pass_fds": (write, held.fileno()), "stdout": write, "stderr": write}
        assert spm.popen("start", "api", "sleep 100", **options).wait(10) == 0
        os.close(write)
        os.set_blocking(read, True)
        assert b"api started" in os.read(read, 4096)
        assert os.read(read, 4096) == b"", "somebody still holds the pipe"
        os.close(read)
    for pid in (spm.service("api")["pid"], spm.supervisor("api")):
        links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        assert not [link for link in links if "held" in link or "/dev/pts" in link], links
    spm("stop", "api")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_signals_to_the_callers_group_do_not_reach_the_service(spm: Spm, number: int) -> None:
    line = f"{START} api 'sleep 100'; kill -{int(number)} 0; sleep 5"
    caller = subprocess.Popen(
        ["/bin/sh", "-c", line], cwd=spm.cwd, env=spm.env, start_new_session=True
    )
    assert caller.wait(10) != 0
    row = spm.service("api")
    assert (row["status"], row["supervised"]) == ("running", True)
    spm("stop", "api")


def test_the_service_survives_the_terminal_it_was_started_from(spm: Spm) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(spm.cwd)
        os.execve("/bin/sh", ["sh", "-c", f"{START} api 'sleep 100'; sleep 100"], spm.env)
    eventually(lambda: (spm.home / "state.json").exists(), what="the start")
    eventually(lambda: spm.service("api")["status"] == "running", what="the service")
    os.close(terminal)  # the terminal hangs up: SIGHUP
    os.waitpid(pid, 0)
    assert spm.service("api")["status"] == "running"
    assert os.getsid(spm.service("api")["pid"]) == spm.service("api")["pid"]
    spm("stop", "api")


def test_signals_ignored_by_the_caller_are_not_ignored_by_the_service(spm: Spm) -> None:
    shell(spm, f"trap '' INT TERM HUP; {START} api 'sleep 100'")
    ignored = Path(f"/proc/{spm.service('api')['pid']}/status").read_text()
    mask = next(line.split()[1] for line in ignored.splitlines() if line.startswith("SigIgn"))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert not int(mask, 16) & 1 << (number - 1), f"{number} is ignored"
    spm("stop", "api")


def test_a_caller_who_ignores_sigchld_cost_the_exit_code_and_the_restart(spm: Spm) -> None:
    spm("start", "api", "--restart", "always", "--backoff", "1m", "--shell", "exit 3", **DEAF)
    eventually(lambda: "backoff: exit code 3" in spm("events", "api").stdout, what="the restart")
    spm("stop", "api")


def test_a_check_by_command_never_ended_for_a_caller_who_ignores_sigchld(spm: Spm) -> None:
    spm("start", "api", "sleep 100", "--ready", "exec:true", "--wait", "2s", **DEAF)
    spm("stop", "api")


def test_failed_tests_had_passed_for_a_caller_who_ignores_sigchld(spm: Spm) -> None:
    words = ("run", "api", "sleep 100", "--ready", "exec:true", "--", "sh", "-c", "exit 3")
    assert "exit code 3" in spm(*words, code=3, **DEAF).stderr


def test_a_reader_that_goes_away_is_no_traceback(spm: Spm) -> None:
    spm("start", "api", nasty("--spam", 1))
    eventually(lambda: "spam is over" in spm.log("api"), what="the output")
    out = shell(spm, f"{sys.executable} {SCRIPT} logs api -n 10000 | head -1")
    assert out.count("\n") == 1 and "Traceback" not in out
    spm("stop", "api")


def test_ctrl_c_in_a_start_leaves_it_whole_or_not_begun(spm: Spm) -> None:
    for delay in range(0, 120, 3 if THOROUGH else 12):
        command = spm.popen("start", "api", "sleep 100", start_new_session=True)
        time.sleep(delay / 1000)
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=10)
        rows = spm.json("list")["services"]
        status = rows[0]["status"] if rows else "unknown"
        eventually(lambda: not_half_started(spm), what="a whole start or none")
        assert status in ("unknown", "starting", "running", "failed"), rows
        spm("cleanup")
    assert not spm.bearers()


def not_half_started(spm: Spm) -> bool:
    """Either it runs under a supervisor, or nothing of it is there."""
    rows = spm.json("list")["services"]
    if rows and rows[0]["status"] == "running":
        return bool(rows[0]["supervised"]) and is_running(rows[0]["pid"])
    return not spm.bearers()


def test_each_command_leaves_without_waiting_for_anything(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    for words in (["list"], ["status", "api"], ["logs", "api"], ["touch", "api"]):
        began = time.monotonic()
        spm(*words)
        assert time.monotonic() - began < 4, words
    spm("stop", "api")
