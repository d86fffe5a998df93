"""What an attack found: each a defect once, named after its symptom."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import GENERIC, Spm, eventually, is_running, nasty
from test_relay import server

import simple_process_manager as program


def test_purge_leaves_directories_alone_that_are_not_ours(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    theirs = spm.home / "services" / "billing" / "main.py"
    theirs.parent.mkdir()
    theirs.write_text("precious")
    spm("cleanup", "--purge")
    assert theirs.read_text() == "precious"
    assert not (spm.home / "services" / "api").exists()


def test_cleanup_keeps_what_it_could_not_stop(spm: Spm) -> None:
    script = f"{' '.join(spm.argv('cleanup', '--home', spm.home))}; echo exit $?; exec sleep 100"
    spm("start", "api", "--", "env", "-i", f"PATH={os.environ['PATH']}", "sh", "-c", script)
    eventually(lambda: "exit 8" in spm.log("api"), what="the refusal")
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")


@pytest.mark.parametrize("variable", ["SPM_SUPERVISOR=1", "SPM_INSTANCE=other"])
def test_a_main_process_belongs_whatever_its_environment_says(spm: Spm, variable: str) -> None:
    spm("start", "api", "--", "env", variable, "sleep", "100")
    pid = spm.service("api")["pid"]
    assert spm.json("stop", "api")["services"][0]["processes"] == 1
    assert not is_running(pid)


def test_one_service_by_two_spellings_is_stopped_without_waiting_for_itself(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    began = time.monotonic()
    spm("stop", "api", "API")
    assert time.monotonic() - began < 5


def test_a_directory_that_is_gone_is_one_line(spm: Spm) -> None:
    gone = spm.base / "gone"
    gone.mkdir()
    env = {key: value for key, value in spm.env.items() if key != "SPM_HOME"}
    line = f"cd {gone} && rmdir {gone} && exec {' '.join(spm.argv('list'))}"
    done = subprocess.run(["sh", "-c", line], env=env, capture_output=True, text=True)
    assert done.returncode == 9 and "Traceback" not in done.stderr


def test_an_unknown_option_is_named_without_its_value(spm: Spm) -> None:
    done = spm("start", "api", "sleep 1", "--evn", "TOKEN=hunter2", code=2)
    assert "hunter2" not in done.stderr


def test_forgetting_a_service_forgets_its_values(spm: Spm) -> None:
    spm("start", "api", nasty(), "--env", "TOKEN=hunter2")
    spm("cleanup")
    assert not Path(spm.home, "services", "api", "env.json").exists()


@pytest.mark.parametrize("variable", ["SPM_SUPERVISOR=1", "SPM_INSTANCE=other"])
def test_a_child_belongs_whatever_its_environment_says(spm: Spm, variable: str) -> None:
    spm("start", "api", "--", "sh", "-c", f"{variable} sleep 100 & exec sleep 100")
    main = psutil.Process(spm.service("api")["pid"])
    child = eventually(main.children, what="the child")[0]
    assert spm.json("stop", "api")["services"][0]["processes"] == 2
    assert not is_running(child.pid)


def test_a_process_that_forks_and_exits_all_the_time_does_not_escape(spm: Spm) -> None:
    # Should the test itself be killed, it goes on for a minute, not for ever.
    script = """import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
end = time.monotonic() + 60
while time.monotonic() < end:
    if os.fork():
        os._exit(0)
"""
    spm("start", "api", "--", "python3", "-c", script)
    eventually(lambda: spm.service("api")["status"] == "exited", what="the first one's end")
    spm("stop", "api", "--timeout", "300ms")
    assert not spm.bearers()


def test_a_start_under_way_is_starting_and_one_broken_off_is_failed(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    spm("stop", "api")
    document = spm.state()
    new = {"phase": "starting", "instance": "0" * 32, "main": None, "supervisor": None}
    document["services"]["api"].update(new)
    (spm.home / "state.json").write_text(json.dumps(document))
    with open(spm.home / "services" / "api" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert spm.service("api")["status"] == "starting"
    assert spm.service("api")["status"] == "failed"


def test_a_service_whose_supervisor_died_before_it_noted_the_pid_is_taken_back(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    pid = spm.service("api")["pid"]
    spm.kill_supervisor("api")
    document = spm.state()
    document["services"]["api"].update(phase="starting", main=None, supervisor=None)
    (spm.home / "state.json").write_text(json.dumps(document))
    row = spm.service("api")
    assert (row["status"], row["pid"], row["supervised"]) == ("running", pid, False)
    assert spm.json("start", "api", "sleep 100")["pid"] == pid
    assert spm.service("api")["supervised"]
    spm("stop", "api")


def test_what_runs_is_not_ended_for_a_program_that_does_not_exist(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    pid = spm.service("api")["pid"]
    done = spm("start", "api", "slep 100", "--replace", code=4)
    assert "left alone" in done.stderr and "sleep" in done.stderr
    assert spm.service("api")["pid"] == pid
    spm("stop", "api")


def test_a_damaged_compiled_form_is_made_anew(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    spm("stop", "api")
    (compiled,) = spm.home.glob("cache/*/*.pyc")
    compiled.write_bytes(compiled.read_bytes()[:5000])
    spm("start", "api", "sleep 100")
    spm("stop", "api")


def test_damaged_values_do_not_prevent_a_replacement(spm: Spm) -> None:
    spm("start", "api", "sleep 100", "--env", "A=1")
    (spm.home / "services" / "api" / "env.json").write_text("{")
    assert "can't be read" in spm("start", "api", "sleep 100", "--env", "A=1", code=8).stderr
    spm("start", "api", "sleep 100", "--env", "A=1", "--replace")
    spm("stop", "api")


def test_a_fifo_in_place_of_the_state_does_not_hang(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    (spm.home / "state.json").unlink()
    os.mkfifo(spm.home / "state.json")
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")


def test_stop_stops_what_it_can_and_names_what_it_cannot(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    pid = spm.service("api")["pid"]
    done = spm("stop", "nosuch", "api", code=3)
    assert "nosuch" in done.stderr and "api stopped" in done.stdout
    assert not is_running(pid)


def test_an_option_without_a_command_is_not_ignored(spm: Spm) -> None:
    spm("start", "api", "sleep 100", "--log-size", "1MB")
    spm("stop", "api")
    assert "command is missing" in spm("start", "api", "--log-size", "2MB", code=2).stderr


def test_control_characters_in_a_command_stay_in_their_line(spm: Spm) -> None:
    spm("start", "api", "--", "sh", "-c", "exec sleep 100\n# \x1b[31m")
    assert r"\x1b" in spm("list").stdout and "\x1b" not in spm("status", "api").stdout
    assert len(spm("list").stdout.splitlines()) == 2
    spm("stop", "api")


def test_a_home_behind_a_link_is_used(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    (spm.base / "link").symlink_to(spm.home)
    spm("stop", "api", "--home", spm.base / "link")


def test_a_service_of_the_home_behind_a_link_was_taken_for_another_homes(
    spm: Spm, port: int
) -> None:
    (spm.base / "link").symlink_to(spm.home)
    script = nasty("--port") + " $LISTEN"  # no port that could be recognised
    way = ("--env", f"LISTEN={port}", "--home", spm.base / "link")
    spm("start", "web", *way, "--", "sh", "-c", f"exec {script}")
    spm("wait-healthy", "web", 10)
    told = spm("start", "api", nasty(), "--port", port, code=5).stderr
    assert ", another service of this home" in told and "→ stop web, take " in told
    assert "service web of this home answers there" in spm("wait-healthy", port, 10).stdout
    pid = spm.service("web")["pid"]
    spm.kill_supervisor("web")
    shutil.rmtree(spm.home)
    assert spm.service("web")["pid"] == pid, "it is found by its cookie"
    spm("cleanup")
    assert not is_running(pid)


def test_a_directory_with_other_files_is_no_home(spm: Spm) -> None:
    (spm.base / "photos").mkdir()
    (spm.base / "photos" / "a.jpg").touch()
    done = spm("start", "api", "sleep 1", "--home", spm.base / "photos", code=9)
    assert "holds other files" in done.stderr
    assert os.listdir(spm.base / "photos") == ["a.jpg"]


def test_after_somebody_emptied_the_log_its_follower_saw_nothing_for_long(spm: Spm) -> None:
    line = "seq 1000; until [ -e go ]; do sleep 0.01; done; echo after; exec sleep 100"
    spm("start", "api", "--sample-interval", "50ms", "--", "sh", "-c", line)
    eventually(lambda: "1000" in spm.log("api"), what="the output")
    shown = spm.cwd / "shown"
    with shown.open("w") as out:
        follower = spm.popen("logs", "api", "-f", stdout=out)
    eventually(lambda: "1000" in shown.read_text(), what="the follower")
    samples = str(spm.home / "services" / "api" / "metrics.jsonl")
    eventually(lambda: program.last_sample(samples).size > 3000, what="a look at its size")
    os.truncate(spm.home / "services" / "api" / "output.log", 0)
    eventually(lambda: program.last_sample(samples).size == 0, what="another one")
    (spm.cwd / "go").touch()
    eventually(lambda: shown.read_text().endswith("1000\nafter\n"), what="what came after it")
    assert spm("logs", "api", "--since", "1m").stdout == "after\n"
    spm("stop", "api")
    follower.communicate(timeout=10)


def test_after_somebody_removed_the_log_later_instances_wrote_to_nobody(spm: Spm) -> None:
    line = "echo up; until [ -e go ]; do sleep 0.01; done; rm go; exit 1"
    spm("start", "api", "--restart", "always", "--backoff", "1ms", "--shell", line)
    eventually(lambda: "up" in spm.log("api"), what="the output")
    (spm.home / "services" / "api" / "output.log").unlink()
    (spm.cwd / "go").touch()
    eventually(lambda: spm("logs", "api").stdout == "up\n", what="its second instance's")
    assert spm("logs", "api", "--since", "1m").stdout == "up\n"
    spm("stop", "api")


def test_following_a_log_shows_no_line_twice(spm: Spm) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done; exec sleep 0.5"
    spm("start", "api", "--", "sh", "-c", script)
    shown = spm("logs", "api", "-n", "10000", "-f").stdout.splitlines()
    assert shown == [f"line {i}" for i in range(1, 3001)]


def test_a_start_during_cleanup_is_whole_or_was_not(spm: Spm) -> None:
    for _ in range(5):
        spm("start", "api", "sleep 100")
        cleanup, start = spm.popen("cleanup", "--purge"), spm.popen("start", "api", "sleep 100")
        outputs = [one.communicate(timeout=60) for one in (cleanup, start)]
        assert cleanup.returncode == 0 and start.returncode == 0, outputs
        alive = [p for p in spm.bearers() if p.name() == "sleep"]
        rows = spm.json("list")["services"]
        assert [p.pid for p in alive] == [row["pid"] for row in rows if row["pid"]]
        spm("cleanup", "--purge")
    assert not any(os.scandir(spm.home / "services"))


def test_a_lock_can_be_had_while_somebody_purges(spm: Spm) -> None:
    # between the making of the directory and the opening of the lock it was removed: exit 9
    store = program.Store(str(spm.home))
    store.prepare()
    lock = spm.home / "services" / "api" / "lock"
    purge = f"import os\nwhile True:\n try: os.unlink({str(lock)!r})\n except OSError: pass\n"
    purge += f" try: os.rmdir({str(lock.parent)!r})\n except OSError: pass"
    with subprocess.Popen([sys.executable, "-S", "-c", purge]) as purger:
        try:
            for _ in range(2000):
                with store.claim("api", 10.0):
                    pass
        finally:
            purger.kill()


def test_force_does_not_overtake_a_start(spm: Spm) -> None:
    for _ in range(5):
        start, stop = spm.popen("start", "api", "sleep 100"), spm.popen("stop", "api", "--force")
        outputs = [one.communicate(timeout=60) for one in (start, stop)]
        assert start.returncode == 0 and stop.returncode in (0, 3), outputs
        alive = [p.pid for p in spm.bearers() if p.name() == "sleep"]
        rows = spm.json("list")["services"]
        assert alive == [row["pid"] for row in rows if row["status"] == "running"]
        spm("cleanup")


def test_a_signal_needs_the_very_process_it_is_meant_for(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    pid = spm.service("api")["pid"]
    look = program.stat_of(pid)
    assert look
    for force in (False, True):
        assert not program.send_signal(look.identity._replace(token="1@other"), force)
    assert is_running(pid)
    assert program.send_signal(look.identity, force=True)
    eventually(lambda: not is_running(pid), what="the end of the one that was meant")


def test_a_tree_is_not_gone_as_long_as_the_kernel_knows_of_children() -> None:
    record = program.new_record("api", program.Spec(("x",), "/"), "no-such-instance")
    said: list[bool | None] = [False, False, False, True]
    ended = program.drive(program.end_tree(program.Tree(record), 5.0, False, lambda _: said.pop(0)))
    assert said == [] and ended.left == ()


@pytest.mark.skipif(GENERIC, reason="the look happens in this process, which has /proc")
def test_older_strangers_need_no_second_look_but_only_for_a_moment(spm: Spm) -> None:
    spm("start", "api", nasty("--child"))
    eventually(lambda: len(spm.json("status", "api")["tree"]) == 2, what="the child")
    record = program.Store(str(spm.home)).record("api")
    assert record and record.main and record.supervisor
    tree = program.Tree(record)
    members = {one.identity.pid for one in tree.members}
    tree.at = time.monotonic()  # as if that look had taken no time
    assert len(members) == 2 and os.getpid() in tree.settled()
    assert not tree.settled() & {*members, record.supervisor.pid}
    assert {one.identity.pid for one in tree.look()} == members
    eventually(lambda: not tree.settled(), 1.0, "the end of that moment")
    spm("stop", "api")


def test_a_lock_file_that_was_removed_is_not_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with open(path, "w") as held:
        assert program.is_same_file(held.fileno(), str(path))
        path.unlink()
        assert not program.is_same_file(held.fileno(), str(path))
        path.touch()
        assert not program.is_same_file(held.fileno(), str(path))


def test_a_lock_that_is_held_for_long_gathers_no_threads_and_no_descriptors(tmp_path: Path) -> None:
    # a supervisor that tried each second to save had one more of both each time, and died of that
    path = tmp_path / "lock"
    with open(path, "w") as held, open(path) as asking:
        fcntl.flock(held, fcntl.LOCK_EX)
        before = len(os.listdir("/dev/fd"))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            assert not program.lock_within(asking.fileno(), 0.001)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for _ in range(50):
            assert not program.lock_within(asking.fileno(), 0.001)
        assert len(os.listdir("/dev/fd")) - before < 10
        fcntl.flock(held, fcntl.LOCK_UN)
        eventually(lambda: len(os.listdir("/dev/fd")) == before, what="the end of who waited")
    with open(path) as free:
        assert program.lock_within(free.fileno(), 1.0), "who came too late holds nothing"


def test_a_stopped_supervisor_is_not_asked_in_vain(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    guard, pid = spm.supervisor("api"), spm.service("api")["pid"]
    os.kill(guard, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_running(pid), what="the end of the service")
    began = time.monotonic()
    assert spm.service("api")["status"] == "exited"
    assert time.monotonic() - began < program.HUNG_S
    os.kill(guard, signal.SIGCONT)


def test_the_page_of_a_service_shows_nothing_empty(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    assert "environment:" not in spm("status", "api").stdout
    spm("stop", "api")


LIMITED = """import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])"""


def limited(spm: Spm, files: int, *words: str) -> subprocess.CompletedProcess[str]:
    """A command that may have so many files open."""
    argv = [sys.executable, "-S", "-c", LIMITED, str(files), *spm.argv(*words)]
    return subprocess.run(argv, capture_output=True, text=True, env=spm.env, timeout=30)


@pytest.mark.parametrize("files", [8, 11])
def test_with_few_descriptors_a_start_succeeded_and_its_supervisor_died_at_once(
    spm: Spm, files: int
) -> None:
    done = limited(spm, files, "start", "api", "sleep 100")
    assert done.returncode == 4
    eventually(lambda: not spm.bearers(), what="its supervisor to leave")
    assert "[ERROR] api could not be started: Too many open files (sleep 100)\n" in done.stderr
    assert "  → raise the limit of open files (ulimit -n)" in done.stderr
    spm("start", "api", "sleep 100")
    spm.kill_supervisor("api")
    assert limited(spm, files, "start", "api").returncode == 9, "nor is it taken back"
    spm("stop", "api")


def test_without_a_free_descriptor_no_service_is_taken_for_dead(spm: Spm) -> None:
    assert limited(spm, 12, "start", "api", "sleep 100").returncode == 0
    pid = spm.service("api")["pid"]
    for files in (5, 6, 7):  # with fewer Python itself doesn't start
        done = limited(spm, files, "list")
        assert "Traceback" not in done.stderr
        assert "running" in done.stdout or "Too many open files" in done.stderr, done
    assert (spm.service("api")["pid"], spm.record("api")["phase"]) == (pid, "running")
    spm("stop", "api")
    assert not is_running(pid)
    # Its supervisor has 12 descriptors, too: it leaves when it has written that.
    eventually(lambda: not spm.bearers(), 10, what="the supervisor's end")


@pytest.mark.skipif(GENERIC or sys.platform != "linux", reason="needs prlimit() and /proc")
def test_a_supervisor_died_of_the_end_of_its_service_when_it_could_open_no_file(spm: Spm) -> None:
    spm("start", "api", "sleep 100", "--restart", "always", "--backoff", "10ms")
    guard, pid = psutil.Process(spm.supervisor("api")), spm.service("api")["pid"]
    before = resource.prlimit(guard.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(guard.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    begun = guard.num_ctx_switches().voluntary
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: guard.num_ctx_switches().voluntary > begun + 5, what="looks in vain")
    resource.prlimit(guard.pid, resource.RLIMIT_NOFILE, before)
    eventually(lambda: spm.service("api")["pid"] not in (None, pid), what="another process")
    assert (spm.supervisor("api"), spm.record("api")["restarts"]) == (guard.pid, 1)
    spm("stop", "api")


@pytest.mark.skipif(GENERIC or sys.platform != "linux", reason="needs prlimit() and a pidfd")
def test_a_stop_waited_for_the_descriptor_that_it_held_itself(spm: Spm) -> None:
    # its supervisor was taken for hung and killed, and with it how the service ended
    spm("start", "api", "sleep 100")
    spm("touch", "api")  # it has opened all that it will
    guard = spm.supervisor("api")
    opened = max(map(int, os.listdir(f"/proc/{guard}/fd"))) + 1
    most = resource.prlimit(guard, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(guard, resource.RLIMIT_NOFILE, (opened + 2, most))  # who asks, and one more
    spm("stop", "api")
    assert spm.record("api")["exit"]["signal"] == "SIGTERM"


@contextlib.contextmanager
def failing(pid: int, failure: str) -> Iterator[None]:
    """A process in which the system refuses something."""
    if not shutil.which("strace"):
        pytest.skip("there is no strace here")
    argv = ["strace", "-f", "-o", os.devnull, "-p", str(pid), "-e", f"inject={failure}"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr
        told = tracer.stderr.readline()
        yield
        tracer.terminate()
    if "attached" not in told:
        pytest.skip(f"nothing can be traced here: {told}")


@pytest.mark.parametrize("failure", ["flock:error=ENOLCK", "epoll_ctl:error=ENOSPC"])
def test_a_supervisor_died_of_what_the_system_refused_for_a_moment(spm: Spm, failure: str) -> None:
    spm("start", "api", "sleep 100")
    guard = spm.supervisor("api")
    with failing(guard, failure):
        spm("touch", "api", code=None)
        spm("touch", "api", code=None)
    assert spm.json("touch", "api")["name"] == "api"
    assert spm.supervisor("api") == guard
    spm("stop", "api")


def without_room_for(spm: Spm, path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command that can't open that file, as no process of the system can open one more."""
    return traced(spm, ["-P", str(path)], "openat:error=ENFILE", *words)


def traced(
    spm: Spm, where: list[str], failure: str, *words: object
) -> subprocess.CompletedProcess[str]:
    """A command for which the system answers otherwise."""
    if not shutil.which("strace"):
        pytest.skip("there is no strace here")
    argv = ["strace", "-f", "--seccomp-bpf", "-o", os.devnull, *where]
    argv += ["-e", f"trace={failure.partition(':')[0]}", "-e", f"inject={failure}"]
    argv += spm.argv(*words)
    done = subprocess.run(argv, capture_output=True, text=True, cwd=spm.cwd, env=spm.env)
    if "ptrace" in done.stderr.lower():
        pytest.skip(f"nothing can be traced here: {done.stderr}")
    return done


def test_a_supervisor_that_could_not_begin_was_said_to_have_done_what_was_asked_for(
    spm: Spm,
) -> None:
    # or to have died of "Traceback (most recent call last):", the first that came of its words
    done = without_room_for(spm, Path("/dev/fd"), "start", "api", "sleep 100")
    died = (
        "the supervisor of api died: OSError: [Errno 23] Too many open files in system: '/dev/fd'"
    )
    assert (done.returncode, died in done.stderr) == (4, True), done.stderr
    assert "is done all the same" not in done.stderr
    assert not spm.bearers()


def test_what_ended_while_its_sockets_were_looked_at_was_a_traceback(spm: Spm, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        where = [word for path in ("fd", "task") for word in ("-P", f"/proc/{os.getpid()}/{path}")]
        done = traced(spm, where, "getdents64:retval=0", "start", "api", "sleep 9", "--port", port)
    assert (done.returncode, "Traceback" in done.stderr) == (5, False), done.stderr


def test_without_room_for_a_look_at_its_lock_a_supervisor_was_said_to_be_gone(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    lock = spm.home / "services" / "api" / "supervisor.lock"
    for words in (["list"], ["status", "api"], ["stop", "api"]):
        done = without_room_for(spm, lock, *words)
        assert (done.returncode, "is gone" in done.stdout + done.stderr) == (9, False), done
        assert f"{lock}: Too many open files in system\n  → the whole system has no" in done.stderr
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")


def restarted_server(spm: Spm) -> tuple[int, int]:
    """The supervisor and the process of a stdio service that is restarted at once."""
    options = ("--type", "stdio", "--protocol", "jsonrpc", "--restart", "always")
    spm("start", "s", server("--plain"), *options, "--backoff", "9ms")
    return spm.supervisor("s"), int(spm.service("s")["pid"])


def test_a_stdio_service_was_not_restarted_when_no_pipe_could_be_had_for_a_moment(spm: Spm) -> None:
    # and its supervisor had died of it
    guard, pid = restarted_server(spm)
    with failing(guard, "socketpair:error=EMFILE"):
        os.kill(pid, signal.SIGKILL)
        told = "could not be executed: Too many open files"
        eventually(lambda: told in spm("events", "s").stdout, what="a try in vain")
    eventually(lambda: spm.service("s")["pid"] not in (None, pid), what="another process")
    assert spm.supervisor("s") == guard
    assert "hi" in spm("call", "s", "echo", "message=hi").stdout
    spm("stop", "s")


def test_a_supervisor_died_of_a_watch_that_was_refused_to_a_restart_and_to_who_waits(
    spm: Spm,
) -> None:
    guard, pid = restarted_server(spm)
    with failing(guard, "epoll_ctl:error=ENOSPC:when=5"):  # that of the watcher
        spm("wait-healthy", "s", "300ms", code=None)
    with failing(guard, "epoll_ctl:error=ENOSPC"):
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: "restarted" in spm("events", "s").stdout, what="its restart")
    assert "hi" in spm("call", "s", "echo", "message=hi").stdout
    assert spm.supervisor("s") == guard
    spm("stop", "s")


@pytest.mark.skipif(GENERIC, reason="there is no pidfd")
def test_where_a_pidfd_can_be_opened_and_not_signalled_nothing_could_be_stopped(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    with failing(spm.supervisor("api"), "pidfd_send_signal:error=ENOSYS"):
        spm("stop", "api")


THREADLESS = """import os, resource, sys
for kind, size in ((resource.RLIMIT_STACK, 2 << 30), (resource.RLIMIT_AS, 1 << 30)):
    resource.setrlimit(kind, (size, resource.getrlimit(kind)[1]))
os.execv(sys.argv[1], sys.argv[1:])"""


def threadless(spm: Spm, *words: str) -> subprocess.CompletedProcess[str]:
    """A command that can have no thread besides its own."""
    argv = [sys.executable, "-S", "-c", THREADLESS, *spm.argv(*words)]
    pipe, env = subprocess.PIPE, spm.env
    return subprocess.run(argv, stdout=pipe, stderr=pipe, text=True, cwd=spm.cwd, env=env)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stack is none of a thread's")
def test_without_a_thread_to_be_had_up_and_connect_ended_in_a_traceback(spm: Spm) -> None:
    services = {"web": {"command": "sleep 100"}, "db": {"command": "sleep 100"}}
    (spm.cwd / "spm.json").write_text(json.dumps({"services": services}))
    brought = threadless(spm, "up", "--json")
    assert brought.returncode == 0, brought
    assert {row["status"] for row in spm.json("list")["services"]} == {"running"}
    spm("start", "s", server("--plain"), "--type", "stdio", "--protocol", "jsonrpc")
    joined = threadless(spm, "connect", "s")
    assert joined.returncode == 1 and "can't start new thread for stdin" in joined.stderr, joined
    spm("cleanup")


@pytest.mark.skipif(GENERIC, reason="the start happens in this process, which has /proc")
def test_a_supervisor_stopped_while_it_boots_is_replaced(
    spm: Spm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPM_HOME", str(spm.home))
    monkeypatch.setattr(program, "BOOT_S", 3.0)
    store = program.Store(str(spm.home))
    store.prepare()
    booted = program.boot(store, "api", "0" * 32, compiled=True)
    os.kill(booted.pid, signal.SIGSTOP)
    monkeypatch.setattr(program, "BOOTED", [booted])
    assert program.run(["start", "api", "sleep 100"]) == 0, capsys.readouterr()
    assert not is_running(booted.pid)
    assert spm.service("api")["status"] == "running" and spm.supervisor("api") != booted.pid
    spm("stop", "api")


SMALL_FILES = """import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
os.execv(sys.argv[1], sys.argv[1:])"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_unbuffered_output_that_a_disk_took_only_a_part_of_was_no_error(
    spm: Spm, unbuffered: str
) -> None:
    argv = [sys.executable, "-S", "-c", SMALL_FILES, *spm.argv("config", "schema", "--json")]
    env = {**spm.env, "PYTHONUNBUFFERED": unbuffered}
    with open(spm.base / "schema.json", "w") as out:
        done = subprocess.run(argv, stdout=out, stderr=subprocess.PIPE, text=True, env=env)
    assert (spm.base / "schema.json").stat().st_size == 1000
    assert done.returncode == 1 and "the output can't be written: File too large" in done.stderr


def test_a_closed_stdout_is_no_failure_of_what_only_tells(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    for words in ("list", "list --json", "status api", "logs api", "events"):
        line = f"{shlex.join(spm.argv())} {words} >&-"
        done = subprocess.run(line, shell=True, cwd=spm.cwd, env=spm.env, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b""), words
    spm("stop", "api")
