"""Programs that leave home: daemons (forking), windows that live elsewhere (external)."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import GENERIC, Spm, cmdline, end, eventually, is_running, nasty
from hypothesis import given
from hypothesis import strategies as st

import simple_process_manager as program


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not shutil.which(name), reason=f"{name} is not installed")


def becomes(spm: Spm, name: str, status: str, within: float = 10.0) -> dict[str, Any]:
    """What `list` says of the service once it has this status."""

    def look() -> dict[str, Any]:
        seen = spm.service(name)
        return seen if seen["status"] == status else {}

    return eventually(look, within, f"{name} {status}")


def events(spm: Spm, name: str) -> list[str]:
    return [one["event"] for one in spm.json("status", name)["events"]]


def nginx(spm: Spm, port: int) -> str:
    config = spm.cwd / "nginx.conf"
    config.write_text(
        f"pid {spm.cwd}/nginx.pid; error_log {spm.cwd}/error.log; worker_processes 2;\n"
        "events {}\n"
        f"http {{ access_log off; server {{ listen 127.0.0.1:{port}; return 200 nginx; }} }}\n"
    )
    return f"nginx -p {spm.cwd} -e {spm.cwd}/error.log -c {config}"


def daemon_pid(spm: Spm, count: int = 2) -> int:
    """The pid that the nasty daemon wrote down last."""
    file = spm.cwd / "pids"

    def look() -> list[str]:
        return file.read_text().split()[count - 1 :] if file.exists() else []

    return int(eventually(look, what=f"{count} pids")[0])


# A pid file may name whom no kernel shows: without a subreaper it has five seconds to come.
NOTHING_COMES_S = 8.0 if GENERIC else 3.0
DAEMON = ("--daemon", "--pids", "pids", "--exit", 0)


# -- forking


@needs("nginx")
def test_nginx_as_a_daemon_is_followed_by_its_pid_file(spm: Spm, port: int) -> None:
    asked = ("--type", "forking", "--pid-file", "nginx.pid", "--port", port)
    spm("start", "web", nginx(spm, port), *asked)
    seen = becomes(spm, "web", "running")
    master = int((spm.cwd / "nginx.pid").read_text())
    assert (seen["pid"], seen["type"]) == (master, "forking")
    record = spm.record("web")
    assert "nginx.pid" in record["reason"] and record["launcher"]["pid"] != master
    assert events(spm, "web")[-3:] == ["started", "launcher_exited", "daemonized"]
    spm("wait-healthy", port, 10)
    done = spm.json("stop", "web")["services"][0]
    assert done["processes"] == 3 and not done["killed"] and done["port_free"]
    assert done["exit"]["code"] == (None if GENERIC else 0) and not is_running(master)


@needs("redis-server")
def test_redis_that_daemonizes_itself_is_followed_without_a_pid_file(spm: Spm, port: int) -> None:
    redis = f"redis-server --port {port} --save '' --daemonize yes --pidfile {spm.cwd}/redis.pid"
    # its title takes the place of its environment: there without a subreaper nothing tells of it
    named = ("--pid-file", "redis.pid") if GENERIC else ()
    spm("start", "redis", redis, "--type", "forking", *named)
    pid = becomes(spm, "redis", "running")["pid"]
    spm("wait-healthy", "redis", 10)
    assert psutil.Process(pid).name() == "redis-server"
    assert "already running" in spm("start", "redis").stdout
    assert "redis restarted" in spm("restart", "redis").stdout
    assert becomes(spm, "redis", "running")["pid"] != pid
    spm("stop", "redis")
    eventually(lambda: not spm.bearers(), what="the end of all, its supervisor's too")


def test_a_daemon_forked_twice_is_the_main_process_and_its_end_is_noticed(spm: Spm) -> None:
    spm("start", "api", nasty(*DAEMON), "--type", "forking")
    daemon = daemon_pid(spm)
    assert becomes(spm, "api", "running")["pid"] == daemon
    os.kill(daemon, signal.SIGKILL)
    if GENERIC:  # looked at each second; only a parent is told how it ended
        assert "exit code not known" in becomes(spm, "api", "exited")["why"]
    else:
        seen = becomes(spm, "api", "failed", within=1.0)
        assert seen["exit"]["signal"] == "SIGKILL" and "SIGKILL" in seen["why"]
    eventually(lambda: not spm.bearers(), what="the supervisor's end")


def test_a_start_was_judged_good_while_nobody_knew_which_process_goes_on(spm: Spm) -> None:
    later = "(sleep 0.8; sleep 100 & echo $! >pid) &"
    line = f"{later} sleep 0.1 & echo $! >pid; exit 0"
    asked = ("--type", "forking", "--pid-file", "pid", "--start-seconds", "300ms")
    spm("start", "api", "--shell", line, *asked)
    assert events(spm, "api")[-3:] == ["launcher_exited", "daemonized", "running"]
    assert becomes(spm, "api", "running")["pid"] == int((spm.cwd / "pid").read_text())
    spm("stop", "api")


def test_until_the_launcher_has_exited_the_status_is_starting(spm: Spm) -> None:
    spm("start", "api", nasty(*DAEMON, "--after", 0.5), "--type", "forking")
    started = spm.service("api")
    assert started["status"] == "starting"
    assert becomes(spm, "api", "running")["pid"] == daemon_pid(spm) != started["pid"]
    spm("stop", "api", "--timeout", "100ms")


def test_a_stop_while_the_launcher_runs_ends_launcher_and_daemon(spm: Spm) -> None:
    spm("start", "api", nasty(*DAEMON, "--after", 60), "--type", "forking")
    daemon = daemon_pid(spm)
    assert spm.service("api")["status"] == "starting"
    spm("stop", "api", "--timeout", "100ms")
    assert not is_running(daemon) and spm.service("api")["status"] == "stopped"


def test_a_launcher_whose_child_forks_again_is_followed_to_the_last(spm: Spm) -> None:
    # The first left behind is no daemon yet: it exits with 0 in turn and leaves another.
    line = "(sleep 0.3; setsid sleep 100 &) & exit 0"
    spm("start", "api", "--shell", line, "--type", "forking")

    def is_last() -> bool:
        pid = spm.service("api")["pid"]
        return bool(pid) and cmdline(pid) == ["sleep", "100"]

    eventually(is_last, what="the last one")
    spm("stop", "api")
    assert not spm.bearers()


def test_a_launcher_that_fails_has_failed(spm: Spm) -> None:
    spm("start", "api", nasty("--exit", 3), "--type", "forking")
    assert becomes(spm, "api", "failed")["exit"]["code"] == 3


def test_a_launcher_that_leaves_nothing_has_exited_and_the_reason_says_so(spm: Spm) -> None:
    spm("start", "api", "true", "--type", "forking", "--pid-file", "none.pid")
    seen = becomes(spm, "api", "exited", within=NOTHING_COMES_S)
    assert "its launcher ended with exit code 0 and left no process" in seen["why"]


@pytest.mark.parametrize("content", ["1\n", "{self}\n", "nonsense", "", "-4", "9" * 30])
def test_a_pid_file_that_names_another_process_is_not_believed(spm: Spm, content: str) -> None:
    (spm.cwd / "api.pid").write_text(content.format(self=os.getpid()))
    late = f"sleep 0.2; echo $! > {spm.cwd}/api.pid"
    line = f"sleep 99 & child=$!; (setsid sleep 100 & {late}) & exit 0"
    spm("start", "api", "--shell", line, "--type", "forking", "--pid-file", "api.pid")
    seen = becomes(spm, "api", "running")
    assert seen["pid"] == int((spm.cwd / "api.pid").read_text())
    assert psutil.Process(seen["pid"]).cmdline() == ["sleep", "100"]
    assert spm.json("stop", "api")["services"][0]["processes"] == 2


def test_a_pid_file_that_does_not_come_is_what_is_waited_for(spm: Spm) -> None:
    spm("start", "api", nasty(*DAEMON), "--type", "forking", "--pid-file", "none.pid")
    why = "its launcher ended: exit code 0; its pid file names no process of it yet"
    eventually(lambda: spm.json("status", "api")["why"] == why, what="the launcher's end")
    assert f"(starting: {why})" in spm("wait-healthy", "api", "200ms", code=124).stderr
    spm("stop", "api", "--force")


def test_a_fifo_as_pid_file_is_no_wait(spm: Spm) -> None:
    os.mkfifo(spm.cwd / "api.pid")
    spm("start", "api", "true", "--type", "forking", "--pid-file", "api.pid")
    becomes(spm, "api", "exited", within=NOTHING_COMES_S)


def test_a_daemon_is_taken_back_after_its_supervisor_was_killed(spm: Spm) -> None:
    spm("start", "api", nasty(*DAEMON), "--type", "forking")
    pid = becomes(spm, "api", "running")["pid"]
    spm.kill_supervisor("api")
    assert not spm.service("api")["supervised"] and spm.service("api")["pid"] == pid
    assert "taken back" in spm("start", "api").stdout
    assert becomes(spm, "api", "running")["pid"] == pid
    os.kill(pid, signal.SIGKILL)
    assert becomes(spm, "api", "exited", within=1.0)["exit"] == {**spm.record("api")["exit"]}


def test_a_daemon_without_supervisor_is_stopped_all_the_same(spm: Spm) -> None:
    spm("start", "api", nasty(*DAEMON), "--type", "forking")
    pid = becomes(spm, "api", "running")["pid"]
    spm.kill_supervisor("api")
    assert spm.json("stop", "api", "--timeout", "100ms")["services"][0]["processes"] == 1
    assert not is_running(pid)


def test_a_launcher_is_taken_back_and_its_daemon_still_found(spm: Spm) -> None:
    spm("start", "api", nasty(*DAEMON, "--after", 1), "--type", "forking")
    daemon = daemon_pid(spm)
    spm.kill_supervisor("api")
    assert "taken back" in spm("start", "api").stdout
    seen = becomes(spm, "api", "starting")
    assert seen["pid"] != daemon and seen["why"] == "its launcher has not exited"
    eventually(lambda: spm.service("api")["pid"] == daemon, what="the daemon to be followed")
    assert "bears its cookie" in spm.record("api")["reason"]
    spm("stop", "api", "--timeout", "100ms")
    assert not is_running(daemon)


def test_a_daemon_whose_launcher_ended_unseen_is_not_lost(spm: Spm) -> None:
    spm("start", "api", nasty(*DAEMON, "--after", 0.3), "--type", "forking")
    daemon, launcher = daemon_pid(spm), spm.record("api")["main"]["pid"]
    spm.kill_supervisor("api")
    eventually(lambda: not is_running(launcher), what="the launcher's end")
    assert [one["pid"] for one in spm.json("status", "api", code=3)["tree"]] == [daemon]
    assert spm.json("stop", "api", "--timeout", "100ms")["services"][0]["processes"] == 1
    assert not is_running(daemon)


def test_a_daemon_under_simple_is_kept_and_the_advice_names_forking(spm: Spm) -> None:
    spm("start", "api", nasty(*DAEMON))
    daemon = daemon_pid(spm)
    assert "--type forking" in becomes(spm, "api", "exited")["why"]
    assert [one["pid"] for one in spm.json("status", "api", code=3)["tree"]] == [daemon]
    assert spm.json("stop", "api", "--timeout", "100ms")["services"][0]["processes"] == 1
    assert not is_running(daemon)


@pytest.mark.skipif(GENERIC, reason="only Linux tells whether a child is left to look for")
def test_a_daemon_that_was_just_forking_was_said_to_have_left_nothing(spm: Spm) -> None:
    # each look sees one of its processes at most for a moment
    code = "import os, time\nfor _ in range(40):\n    if os.fork(): os._exit(0)\ntime.sleep(99)"
    names = [f"dae{number}" for number in range(6)]
    for name in names:
        spm("start", name, "--", sys.executable, "-S", "-c", code)
    for name in names:
        assert "of its tree left alive (a daemon?" in becomes(spm, name, "exited")["why"]
    spm("cleanup")


def test_to_repeat_the_start_was_the_advice_for_a_daemon_under_simple(spm: Spm) -> None:
    code = "import os, time; os.fork() and os._exit(0); os.fork() and os._exit(0); time.sleep(99)"
    command = shlex.join([sys.executable, "-S", "-c", code])
    spm("start", "api", command)
    becomes(spm, "api", "exited")
    daemon = spm.json("status", "api", code=3)["tree"][-1]["pid"]
    again = f"start api --type forking {shlex.quote(command)}"
    told = spm("status", "api", code=3).stderr
    assert told.endswith(f"start it again: {again}, or stop api\n")
    assert spm.json("explain", "api")["next"][2:] == [again, "stop api"]
    spm(*shlex.split(again))
    eventually(lambda: not is_running(daemon) and spm.service("api")["status"] == "running")
    spm("stop", "api")
    assert spm.json("explain", "api")["next"][2:] == ["restart api"]


def test_the_advice_for_a_daemon_of_several_lines_could_not_be_pasted(spm: Spm) -> None:
    code = (
        "import os, time\nif os.fork(): os._exit(0)\nos.setsid(); print('it\\'s'); time.sleep(99)"
    )
    command = shlex.join([sys.executable, "-S", "-c", code])
    spm("start", "api", "--", sys.executable, "-S", "-c", code)
    becomes(spm, "api", "exited")
    again = spm.json("explain", "api")["next"][2]
    typed = subprocess.run(
        ["bash", "-c", f'set -- {again}; printf %s "$5"'], capture_output=True, text=True, timeout=9
    )
    assert (typed.stdout, "\n" in again) == (command, False)
    spm("stop", "api")


def test_what_repeats_the_start_of_a_daemon_left_its_options_out(spm: Spm, port: int) -> None:
    (spm.cwd / "sub dir").mkdir()
    options = f"--cwd 'sub dir' --port {port} --env TOKEN=sesame --env HOME --cooldown 0 --insecure"
    options += " --alert 'memory_mb>500' --alert 'cpu>99' --restart on-failure --backoff 250ms"
    options += " --sample-interval 1.5 --idle-timeout 1h --health-retries 0"
    options += " --start-seconds 0 --failure-log 'no way'"
    spm("start", "api", "--shell", "setsid sleep 100 & : {port}", *shlex.split(options))
    becomes(spm, "api", "exited")
    daemon, before = spm.json("status", "api", code=3)["tree"][-1]["pid"], spm.record("api")["spec"]
    again, told, values = spm.json("explain", "api")["next"][2].partition(" (and with --env ")
    assert values == "TOKEN as before)" and "sesame" not in f"{again}{told}"
    spm(*shlex.split(again), "--env", "TOKEN=sesame")
    assert spm.record("api")["spec"] == {**before, "type": "forking"}
    eventually(lambda: not is_running(daemon), what="the former daemon's end")
    spm("stop", "api")


# -- external


@pytest.fixture
def window(spm: Spm) -> Iterator[str]:
    """A command line that nothing connects with who asked for it, like a window elsewhere."""
    mark = f"WINDOW-{os.getpid()}-{time.monotonic_ns()}"
    yield mark
    end([one for one in psutil.process_iter() if mark in " ".join(cmdline(one.pid))])


class Desktop:
    """A process that opens windows for others: they are its children, not the launcher's."""

    def __init__(self, directory: Path) -> None:
        self.fifo = directory / "desktop"
        os.mkfifo(self.fifo)
        line = f'while true; do read -r line < {self.fifo} && eval "$line"; done'
        self.process = subprocess.Popen(["/bin/sh", "-c", line], start_new_session=True)

    def asks(self, mark: str) -> str:
        """A launcher that has a window opened and returns at once."""
        opens = f"{sys.executable} -S -c 'import time; time.sleep(100)' {mark} &"
        return f'echo "{opens}" > {self.fifo}'


@pytest.fixture
def desktop(spm: Spm) -> Iterator[Desktop]:
    one = Desktop(spm.base)
    yield one
    one.process.kill()
    one.process.wait()


def test_an_external_tool_is_followed_by_what_its_launcher_left(spm: Spm) -> None:
    line = "setsid sleep 100 & exit 0"
    started = spm("start", "tool", "--shell", line, "--type", "external")
    why = "bears its cookie" if GENERIC else "adopted by its supervisor"
    assert "external: pid " in started.stdout and why in started.stdout
    seen = spm.service("tool")
    assert seen["status"] == "running" and psutil.Process(seen["pid"]).name() == "sleep"
    os.kill(seen["pid"], signal.SIGKILL)
    # Only a parent is told how it ended: elsewhere a launcher may have handed over once more.
    becomes(spm, "tool", "external" if GENERIC else "failed", within=3.0 if GENERIC else 1.0)


def test_an_external_tool_is_followed_by_its_command_line(
    spm: Spm, desktop: Desktop, window: str
) -> None:
    asks = ("--shell", desktop.asks(window), "--type", "external", "--match", f"{window}$")
    started = spm.json("start", "tool", *asks)
    assert started["status"] == "running" and f"matches '{window}$'" in started["why"]
    pid = started["pid"]
    assert pid == spm.record("tool")["main"]["pid"] and is_running(pid)
    assert "tool stopped" in spm("stop", "tool").stdout
    assert not is_running(pid) and desktop.process.poll() is None
    restarted = spm("restart", "tool").stdout
    assert "tool restarted" in restarted and becomes(spm, "tool", "running")["pid"] != pid
    spm("stop", "tool")


def test_what_was_followed_by_its_command_line_is_stopped_without_a_supervisor_too(
    spm: Spm, desktop: Desktop, window: str
) -> None:
    asks = ("--shell", desktop.asks(window), "--type", "external", "--match", f"{window}$")
    pid = spm.json("start", "tool", *asks)["pid"]
    spm.kill_supervisor("tool")
    spm("start", "tool")
    spm.kill_supervisor("tool")
    assert spm.json("stop", "tool")["services"][0]["processes"] == 1
    assert not is_running(pid)


def test_what_matched_before_the_start_is_no_evidence(
    spm: Spm, desktop: Desktop, window: str
) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)", window])
    try:
        eventually(lambda: window in cmdline(other.pid), what="exec")
        asks = ("--shell", desktop.asks(window), "--type", "external", "--match", window)
        started = spm.json("start", "tool", *asks)
        assert started["status"] == "external" and started["pid"] is None
        assert "1 process matched before" in started["why"]
        assert "forgotten" in spm("stop", "tool").stdout
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_tool_of_which_nothing_can_be_followed_is_external_until_stop(
    spm: Spm, desktop: Desktop, window: str
) -> None:
    started = spm("start", "tool", "--shell", desktop.asks(window), "--type", "external")
    assert "[OK] tool started (pid not known, external: can't be followed" in started.stdout
    eventually(lambda: not spm.bearers(), what="the supervisor's end")
    seen = spm.service("tool")
    assert (seen["status"], seen["pid"]) == ("external", None)
    assert spm("status", "tool").returncode == 0
    again = spm("start", "tool").stdout
    assert "its former window, if it is still open" in again and "[OK] tool started" in again
    assert spm.service("tool")["status"] == "external"
    spm("notify", "tool", "ready")
    assert spm.json("notify", "tool", "stopped")["status"] == "stopped", "it says so itself"
    spm("start", "tool")
    told = spm("stop", "tool").stdout
    assert told.startswith(
        "[OK] tool forgotten: nothing of it could be followed; its window, if any, is still open"
    )
    assert spm.service("tool")["status"] == "stopped"
    windows = [one for one in psutil.process_iter() if cmdline(one.pid)[-1:] == [window]]
    eventually(lambda: windows and all(is_running(one.pid) for one in windows), 1.0)


def test_a_chain_of_launchers_ends_external_and_not_exited(spm: Spm) -> None:
    # like `code .`: what the launcher left hands over to an open window and exits with 0 too
    spm("start", "tool", "--shell", "setsid sleep 0.3 & exit 0", "--type", "external")
    seen = becomes(spm, "tool", "external")
    code = "not known" if GENERIC else "0"
    assert re.search(rf"its launcher and pid \d+ ended with exit code {code}", seen["why"])
    assert "forgotten" in spm("stop", "tool").stdout
    assert "was not running" in spm("stop", "tool").stdout  # that is said once


def test_a_launcher_that_stays_is_the_tool_itself(spm: Spm) -> None:
    started = spm.json("start", "tool", "sleep 100", "--type", "external")
    assert started["status"] == "running" and "has not returned" in started["why"]
    spm("stop", "tool")


def test_an_external_tool_that_was_restarted_runs_and_is_not_starting_for_ever(spm: Spm) -> None:
    line = "[ -e once ] || { touch once; sleep 100 & }; exec sleep 100"
    rule = ("--alert", "processes>1 for 100ms: restart", "--sample-interval", "50ms")
    spm("start", "tool", "--shell", line, "--type", "external", *rule)
    eventually(lambda: spm.service("tool")["restarts"] == 1, what="a restart")
    becomes(spm, "tool", "running", within=3.0)
    spm("stop", "tool")


def test_an_external_launcher_that_fails_is_a_failed_start(spm: Spm) -> None:
    failed = spm(
        "start", "tool", "--shell", "echo no display >&2; exit 5", "--type", "external", code=4
    )
    assert "its launcher failed: exit code 5" in failed.stderr and "| no display" in failed.stderr
    assert spm.service("tool")["status"] == "failed"


def test_an_external_tool_whose_launcher_stays_was_never_judged(spm: Spm) -> None:
    line = "sleep 1.1; echo no display; exec sleep 100"
    words = ("start", "tool", "--shell", line, "--type", "external", "--failure-log", "no display")
    assert "its log matches 'no display'" in spm(*words, code=4).stderr
    becomes(spm, "tool", "failed")


def test_cleanup_forgets_what_is_external(spm: Spm) -> None:
    spm("start", "tool", "true", "--type", "external")
    assert "tool forgotten" in spm("cleanup").stdout
    assert spm.json("list")["services"] == []


# -- words


def test_options_of_another_type_are_refused(spm: Spm) -> None:
    assert "add --type forking" in spm("start", "a", "true", "--pid-file", "x", code=2).stderr
    assert "add --type external" in spm("start", "a", "true", "--match", "x", code=2).stderr
    wrong = ("start", "a", "true", "--type", "external", "--match", "(")
    assert "is no regular expression" in spm(*wrong, code=2).stderr
    assert (
        "isn't one of simple, forking, stdio, external"
        in spm("start", "a", "true", "--type", "odd", code=2).stderr
    )


def test_another_type_is_another_spec(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    refused = spm("start", "api", "sleep 100", "--type", "forking", code=8)
    assert "type: simple → forking" in refused.stderr
    spm("stop", "api")


@given(st.text())
def test_any_text_is_a_pattern_or_the_one_error(text: str) -> None:
    try:
        re.compile(program.parse_pattern(text))
    except program.UsageError:
        return


# -- windows of their own


class Tmux:
    """A tmux server of the test's own, as the service's windows see it."""

    def __init__(self, spm: Spm) -> None:
        self.env = {**spm.env, "TMUX_TMPDIR": str(spm.base)}
        del self.env["SPM_HOME"]  # the server is no service's
        spm.env["TMUX_TMPDIR"] = str(spm.base)
        self("-f", "/dev/null", "new-session", "-d", "-s", "mine", "sleep 1000")

    def __call__(self, *words: str) -> str:
        done = subprocess.run(["tmux", *words], env=self.env, capture_output=True, text=True)
        return done.stdout

    def windows(self, name: str) -> list[str]:
        """The panes of the windows and sessions that are named after the service."""
        listed = self("list-panes", "-a", "-F", "#{pane_id} #{session_name} #{window_name}")
        return [line.split()[0] for line in listed.splitlines() if f" {name}-" in line]

    def shown(self, name: str) -> str:
        return self("capture-pane", "-p", "-J", "-t", *self.windows(name))

    def type(self, name: str, *keys: str) -> None:
        self("send-keys", "-t", *self.windows(name), *keys)


@pytest.fixture
def tmux(spm: Spm) -> Iterator[Tmux]:
    for variable in ("TMUX", "DISPLAY", "WAYLAND_DISPLAY"):
        spm.env.pop(variable, None)
    one = Tmux(spm)
    yield one
    one("kill-server")


def script(text: str) -> tuple[str, ...]:
    return ("--", "/bin/sh", "-c", text)


@needs("tmux")
def test_a_tool_in_a_window_is_typed_at_and_its_exit_code_is_known(spm: Spm, tmux: Tmux) -> None:
    spm.env["CALLERS"] = "from the caller"
    text = "tty; echo $CALLERS $GIVEN $TERM; read line; echo read $line; exit 3"
    asked = ("--terminal", "auto", "--env", "GIVEN=hidden-value", *script(text))
    started = spm("start", "tool", *asked).stdout
    assert "in its window: tmux attach -t tool-" in started
    assert "log: " not in started and "logs tool" not in spm("explain", "tool").stdout
    eventually(lambda: "from the caller hidden-value tmux" in tmux.shown("tool"), what="the tool")
    assert "/dev/pts/" in tmux.shown("tool")
    assert (
        "goes to its window" in spm("logs", "tool").stderr
        and "already" in spm("start", "tool").stdout
    )
    files = [path for path in spm.home.rglob("*") if path.is_file() and path.name != "env.json"]
    assert not [path for path in files if b"hidden-value" in path.read_bytes()]
    tmux.type("tool", "typed", "Enter")
    assert becomes(spm, "tool", "failed")["exit"]["code"] == 3
    eventually(lambda: "exit code 3] press a key" in tmux.shown("tool"), what="the pause")
    assert "read typed" in tmux.shown("tool")
    tmux.type("tool", "x")
    eventually(lambda: not tmux.windows("tool"), what="the window to close")
    assert spm.service("tool")["status"] == "failed"


def test_what_had_its_own_window_was_said_to_have_written_nothing(spm: Spm, tmux: Tmux) -> None:
    words = ("--terminal", "tmux", "--no-pause")
    spm("start", "tool", *words, *script("echo heard; sleep 0.2; exit 3"))
    becomes(spm, "tool", "failed")
    assert spm.json("explain", "tool")["cause"]["message"] == "exit code 3"


@needs("tmux")
def test_stop_closes_the_window_and_restart_opens_another(spm: Spm, tmux: Tmux) -> None:
    spm("start", "tool", "sleep 100", "--terminal", "tmux")
    (first,) = tmux.windows("tool")
    assert "tool restarted" in spm("restart", "tool").stdout
    eventually(lambda: tmux.windows("tool") not in ([], [first]), what="another window")
    assert spm.json("stop", "tool")["services"][0]["exit"]["signal"] == "SIGTERM"
    eventually(lambda: not tmux.windows("tool"), what="the window to close")
    assert not spm.bearers()


@needs("tmux")
def test_a_tool_with_a_long_command_was_said_to_have_died_in_its_window(
    spm: Spm, tmux: Tmux
) -> None:
    spm.forks, long = False, ["x" * 120_000] * 4  # more than a socket takes at once
    started = spm("start", "tool", "--terminal", "tmux", *script("sleep 100"), *long)
    assert "[OK] tool started" in started.stdout
    spm("stop", "tool")
    eventually(lambda: not tmux.windows("tool"), what="the window to close")


@needs("tmux")
def test_a_window_that_is_closed_has_stopped_its_tool(spm: Spm, tmux: Tmux) -> None:
    spm("start", "tool", nasty("--child"), "--terminal", "tmux")
    tmux("kill-pane", "-t", *tmux.windows("tool"))
    assert "its window was closed" in becomes(spm, "tool", "stopped")["why"]
    eventually(lambda: not spm.bearers(), what="the end of the whole tree")


@needs("tmux")
def test_a_shell_in_a_window_has_the_keyboard_and_gives_it_back(spm: Spm, tmux: Tmux) -> None:
    spm("start", "tool", "sh -i", "--terminal", "tmux", "--env", "PS1=ready: ")
    eventually(lambda: "ready:" in tmux.shown("tool"), what="the prompt")
    tmux.type("tool", "sleep 100", "Enter")
    eventually(lambda: len(spm.json("status", "tool")["tree"]) == 2, what="its child")
    tmux.type("tool", "C-c")
    tmux.type("tool", "exec kill -9 $$", "Enter")
    becomes(spm, "tool", "failed")
    eventually(lambda: "SIGKILL] press a key" in tmux.shown("tool"), what="the pause")
    assert "tool started" in spm("start", "tool").stdout, "a start doesn't wait for the key"
    tmux.type("tool", "exit 4", "Enter")
    becomes(spm, "tool", "failed")
    spm("stop", "tool")
    eventually(lambda: not tmux.windows("tool"), what="a stop doesn't wait for it either")


@needs("tmux")
def test_a_tool_that_cannot_be_started_leaves_no_window(spm: Spm, tmux: Tmux) -> None:
    failed = spm("start", "tool", "no-such-tool", "--terminal", "tmux", code=4)
    assert "no-such-tool" in failed.stderr and "No such file" in failed.stderr
    eventually(lambda: not tmux.windows("tool"), what="the window to close")
    asked = ("--terminal", "tmux", "--no-pause", *script("exit 3"))
    spm("start", "tool", *asked)
    becomes(spm, "tool", "failed")
    eventually(lambda: not tmux.windows("tool"), what="the window to close")


@needs("tmux")
def test_inside_tmux_it_is_a_window_of_that_session(spm: Spm, tmux: Tmux) -> None:
    spm.env["TMUX"] = tmux("display-message", "-p", "#{socket_path},#{pid},0").strip()
    spm("start", "tool", "sleep 100", "--terminal", "auto")
    assert tmux("list-sessions").count("\n") == 1 and tmux.windows("tool")
    spm("stop", "tool")


@needs("xterm")
@needs("Xvfb")
def test_a_window_on_a_screen_whose_x_is_clicked_has_stopped_its_tool(
    spm: Spm, display: str
) -> None:
    spm.env.update(DISPLAY=display)
    spm("start", "tool", "cat", "--terminal", "xterm")
    pid = spm.service("tool")["pid"]
    xterm = psutil.Process(spm.supervisor("tool")).parent()
    assert xterm and xterm.name() == "xterm"
    xterm.kill()  # as a click on its X, but without a word: the kernel hangs the terminal up
    assert "its window was closed" in becomes(spm, "tool", "stopped")["why"]
    eventually(lambda: not is_running(pid) and not spm.bearers(), what="the end of all")
    spm("start", "tool", "--terminal", "xterm", *script("exit 3"))
    assert becomes(spm, "tool", "failed")["exit"]["code"] == 3
    spm("stop", "tool")
    assert not spm.bearers()


def test_any_program_can_be_the_terminal(spm: Spm) -> None:
    terminal = f"{sys.executable} -c 'import pty, sys; pty.spawn(sys.argv[1:])' {{}}"
    spm.env["PYTHONWARNINGS"] = "always::ResourceWarning"
    assert not spm("start", "tool", "cat", "--terminal", terminal).stderr, "its window lives on"
    assert spm.service("tool")["status"] == "running"
    spm("stop", "tool")


def test_a_terminal_that_fails_is_a_failed_start(spm: Spm) -> None:
    failed = spm(
        "start", "tool", "cat", "--terminal", "sh -c 'echo no display >&2; exit 1' {}", code=4
    )
    assert "it failed: no display" in failed.stderr
    assert spm.service("tool")["status"] == "failed"
    absent = spm("start", "tool", "cat", "--terminal", "no-such-terminal {}", code=4)
    assert "no window can be opened here" in absent.stderr and "tmux" in absent.stderr
    for odd in ("odd", "'{}"):  # the second one's quotation doesn't end
        assert "is no terminal" in spm("start", "tool", "cat", "--terminal", odd, code=2).stderr


@given(st.lists(st.from_regex(r"[ -~]+", fullmatch=True), min_size=1))
def test_a_terminal_gets_the_very_words(words: list[str]) -> None:
    assert program.in_words("xterm -e {}", words) == ["xterm", "-e", *words]
    assert program.split_command(program.in_words('sh -c "exec {}"', words)[2]) == ["exec", *words]
