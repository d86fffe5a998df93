"""What the driver of random faults found: each a defect once, named after its symptom."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import GENERIC, SCRIPT, Spm, cmdline, end, eventually, is_running

import simple_process_manager as program


@pytest.fixture
def stranger() -> Iterator[program.Identity]:
    """A process that isn't ours."""
    with subprocess.Popen(["sleep", "100"]) as process:
        look = program.stat_of(process.pid)
        assert look
        yield look.identity
        process.kill()


SLOW_DISK = """
#include <unistd.h>
int fsync(int descriptor) { usleep(300000); return fdatasync(descriptor); }
"""


@pytest.fixture
def slow_disk(spm: Spm) -> None:
    """Whatever the supervisors have to write takes them 0.3 s."""
    if not shutil.which("cc"):
        pytest.skip("nothing to compile it with (cc)")
    (spm.base / "slow.c").write_text(SLOW_DISK)
    line = ["cc", "-shared", "-fPIC", "-o", f"{spm.base}/slow.so", f"{spm.base}/slow.c"]
    subprocess.run(line, check=True)
    spm.env["LD_PRELOAD"] = str(spm.base / "slow.so")


def kill_all_but(spm: Spm, kept: str) -> list[psutil.Process]:
    """kill -9 the supervisor and every process of a service but those with this word in their line.

    Returns those.
    """
    mine = {process: " ".join(process.cmdline()) for process in spm.bearers()}
    guard = spm.supervisor("api")
    for process in sorted(mine, key=lambda one: one.pid != guard):  # it would see the others end
        if process.pid == guard or not kept or kept not in mine[process]:
            process.send_signal(signal.SIGKILL)
            eventually(lambda gone=process: not is_running(gone.pid), what="its end")  # type: ignore[misc]
    return [process for process in mine if is_running(process.pid)]


LATE = "command.ordered"
HOARD = "import time; x = b'x' * 300_000_000; time.sleep(100)"


def caught(check: Callable[[], list[psutil.Process]]) -> psutil.Process:
    """The first process that is to be seen, which may be for some milliseconds: without pause."""
    deadline, seen = time.monotonic() + 20, check()
    while not seen:
        assert time.monotonic() < deadline, "it was not seen"
        seen = check()
    return seen[0]


def is_late(process: psutil.Process) -> bool:
    """Whether it is a supervisor, and not what one has just forked."""
    try:
        above = process.parent()
        return "supervise" in process.cmdline() and (
            above is None or "supervise" not in above.cmdline()
        )
    except psutil.NoSuchProcess:
        return False


def forge(spm: Spm, **fields: object) -> None:
    document = spm.state()
    document["services"]["api"].update(fields)
    (spm.home / "state.json").write_text(json.dumps(document))


@pytest.mark.parametrize("step", ["launched", "journalled", "noted"])
def test_a_supervisor_that_dies_before_it_answers_leaves_no_service_behind(
    spm: Spm, step: str
) -> None:
    # each of the two supervisors that a start tries; the first one's service went on for ever
    spm.env["SPM_TEST_CRASH"] = f"supervisor.{step}"
    spm("start", "api", "sleep 100", code=4)
    del spm.env["SPM_TEST_CRASH"]
    assert not spm.bearers()
    assert spm.service("api")["status"] in ("failed", "exited")


def test_a_compiled_form_that_can_not_be_made_is_no_reason_to_fail(spm: Spm) -> None:
    # Python 3.11 writes half of it where the disk is nearly full; another start may remove it
    spm("start", "api", "sleep 100")
    spm("stop", "api")
    (compiled,) = spm.home.glob("cache/*/*.pyc")
    compiled.unlink()
    compiled.mkdir()
    spm("start", "api", "sleep 100")
    spm("stop", "api")


@pytest.mark.parametrize("words", [("stop", "api"), ("start", "api", "sleep 200"), ("cleanup",)])
def test_a_supervisor_that_comes_late_starts_nothing_any_more(
    spm: Spm, late: psutil.Process, words: tuple[str, ...]
) -> None:
    # its command was killed when it had the order; another one had its say before it began
    spm(*words)
    assert not is_running(late.pid)
    if words[0] == "start":
        assert spm.service("api")["command"] == "sleep 200"
        spm("stop", "api")


@pytest.fixture
def late(spm: Spm) -> psutil.Process:
    """The supervisor of a start whose command was killed; it has its order, and stands still."""
    for _ in range(20):  # it may have been gone before anybody looked
        start = spm.popen("start", "api", "sleep 100", env={**spm.env, "SPM_TEST_CRASH": LATE})
        late: list[psutil.Process] = []
        while not late and (start.poll() is None or spm.bearers()):
            late = [one for one in spm.bearers() if is_late(one)]
        with contextlib.suppress(IndexError, psutil.NoSuchProcess):
            late[0].suspend()
        start.communicate(timeout=30)
        if late and is_running(late[0].pid):
            return late[0]
    raise AssertionError("it was not seen")


def test_a_start_whose_command_and_state_are_lost_does_not_happen(
    spm: Spm, late: psutil.Process
) -> None:
    # it began after everything that was known had been stopped
    (spm.home / "state.json").write_text("{")
    assert not spm.json("list")["services"]
    late.resume()
    eventually(lambda: not spm.bearers(), what="its end")
    assert not spm.json("list")["services"]


def test_a_start_whose_command_is_lost_does_not_happen_though_it_is_noted(
    spm: Spm, late: psutil.Process
) -> None:
    # `restart` had started another instance meanwhile, and stopped the first one's last process
    late.resume()
    eventually(lambda: not spm.bearers(), what="its end")
    assert "interrupted before anything ran" in spm.service("api")["why"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_supervisor_is_seen_where_nothing_can_be_written(spm: Spm) -> None:
    # its lock could not be opened for writing: it was taken for gone, and what it had for nobody's
    spm("start", "api", "sleep 100")
    home = str(spm.home)
    mounts = f"mount --bind {home} {home} && mount -o remount,bind,ro {home}"
    stop = shlex.join(spm.argv("stop", "api"))
    line = f"{mounts} && {shlex.join(spm.argv('list', '--json'))} && {stop}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", line], cwd=spm.cwd, env=spm.env, capture_output=True
    )
    (row,) = json.loads(done.stdout)["services"]
    assert row["supervised"] is True
    assert b"Read-only" in done.stderr and b"remount,rw" in done.stderr, done.stderr
    spm("stop", "api")


def test_a_start_under_way_survives_the_loss_of_the_state(spm: Spm) -> None:
    # what its supervisor launched, before that was killed, was known to nobody
    crash = {"SPM_TEST_CRASH": "supervisor.launched"}
    start = spm.popen("start", "api", "sleep 100", env={**spm.env, **crash})
    late = caught(lambda: [one for one in spm.bearers() if is_late(one)])
    late.suspend()
    waits = Path(f"/proc/{start.pid}/wchan")  # it has noted its intent, and given its order
    eventually(lambda: "poll" in waits.read_text(), what="that it waits for an answer")
    psutil.Process(start.pid).suspend()
    (spm.home / "state.json").write_text("{")
    assert not spm.json("list")["services"]
    late.resume()
    eventually(lambda: not is_running(late.pid), what="its end")
    assert spm.service("api")["status"] == "starting", "its command seems to be at it"
    start.kill()
    start.communicate(timeout=30)
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")


@pytest.mark.parametrize("role", ["main", "supervisor"])
def test_a_late_supervisor_is_retired_whatever_a_forged_record_says(
    spm: Spm, late: psutil.Process, stranger: program.Identity, role: str
) -> None:
    forge(spm, **{role: stranger._asdict()})
    spm("stop", "api", code=None)
    assert not is_running(late.pid) and is_running(stranger.pid)
    spm("cleanup", code=None)


@pytest.mark.skipif(GENERIC, reason="the look happens in this process, which has /proc")
def test_who_is_just_ending_is_no_stranger(spm: Spm) -> None:
    # the memory goes first, the environment with it: it was taken for another process
    spm("start", "api", "--", sys.executable, "-S", "-c", HOARD)
    pid = spm.service("api")["pid"]
    eventually(lambda: psutil.Process(pid).memory_info().rss > 300_000_000, what="its memory")
    spm.kill_supervisor("api")
    (spm.home / "services" / "api" / "events.jsonl").write_text("")
    store = program.Store(str(spm.home))
    record = store.record("api")
    assert record and program.observe(store, record).facts.main == "alive"
    os.kill(pid, signal.SIGKILL)
    seen, deadline = {"alive"}, time.monotonic() + 20
    while seen & {"alive"} and time.monotonic() < deadline:
        seen = {program.observe(store, record).facts.main}
        assert "stranger" not in seen
    spm("cleanup")


def test_the_second_supervisor_that_a_start_tries_may_come_late_too(spm: Spm, port: int) -> None:
    # the record still named what the first one had started: nobody looked for the second one
    crash = {"SPM_TEST_CRASH": f"supervisor.noted,{LATE}:2"}
    words = ("start", "api", "sleep 100", "--port", str(port))
    start = spm.popen(*words, env={**spm.env, **crash})

    def second() -> list[psutil.Process]:
        late = [one for one in spm.bearers() if is_late(one)]
        seen.update(one.pid for one in late)
        return [one for one in late if one.pid != min(seen)]

    seen: set[int] = set()
    late = caught(second)
    late.suspend()
    start.communicate(timeout=30)
    spm("stop", "api")
    assert not is_running(late.pid)


def test_a_supervisor_that_can_not_open_its_socket_yet_lives_on(spm: Spm) -> None:
    # the directory was read-only just then: it died, and what it had started was known to nobody
    spm("start", "api", "sleep 100")
    spm("stop", "api")
    control = spm.home / "services" / "api" / "control.sock"
    (control / "in the way").mkdir(parents=True)
    spm("start", "api", "sleep 100")
    supervisor = spm.supervisor("api")
    waits = Path(f"/proc/{supervisor}/wchan")
    eventually(lambda: not is_running(supervisor) or "poll" in waits.read_text(), what="its loop")
    (control / "in the way").rmdir()
    control.rmdir()
    eventually(control.is_socket, what="its socket")
    assert "touched" in spm("touch", "api").stdout and spm.supervisor("api") == supervisor
    spm("stop", "api")


def test_start_takes_no_stranger_back_whom_a_forged_record_names(
    spm: Spm, stranger: program.Identity
) -> None:
    spm("start", "api", "sleep 100")
    kill_all_but(spm, "")
    forge(spm, main=stranger._asdict(), phase="running")
    done = spm("start", "api", "sleep 100")
    assert "isn't api; nothing was signalled" in done.stderr
    assert spm.service("api")["pid"] != stranger.pid and spm.service("api")["supervised"]
    spm("stop", "api")
    assert is_running(stranger.pid)


@pytest.mark.parametrize("knows", ["journal", "cookie"])
def test_a_stop_makes_nobody_believe_a_forged_record(
    spm: Spm, stranger: program.Identity, knows: str
) -> None:
    spm("start", "api", "sleep 100")
    (service,) = kill_all_but(spm, "sleep")
    if knows == "cookie":
        (spm.home / "services" / "api" / "events.jsonl").unlink()
    forge(spm, main=stranger._asdict(), phase="running")
    listed = spm.service("api")
    assert (listed["status"], listed["pid"]) == (
        ("running", service.pid) if knows == "journal" else ("lost", None)
    )
    forge(spm, main=stranger._asdict(), phase="running")
    for words in (["stop", "api"], ["cleanup", "--keep"], ["stop", "api"], ["cleanup"]):
        told = spm(*words, code=None)
        assert is_running(stranger.pid), f"{words} ended a stranger: {told}"
        assert not is_running(service.pid), f"{words}: {told}"


def test_list_shows_no_stranger_that_a_forged_record_names(
    spm: Spm, stranger: program.Identity
) -> None:
    spm("start", "api", "sleep 100")
    pid = spm.service("api")["pid"]
    forge(spm, main=stranger._asdict())
    assert spm.service("api")["pid"] == pid
    spm("stop", "api", code=8)
    spm("stop", "api")
    assert not is_running(pid)


@pytest.mark.parametrize("instance", ["", ".0", None])
def test_no_forged_instance_makes_a_stranger_the_service(
    spm: Spm, stranger: program.Identity, instance: str | None
) -> None:
    # an empty one was "the same" as in the environment of whoever has no cookie at all
    spm("start", "api", "sleep 100")
    kill_all_but(spm, "")
    shown = spm.record("api")["instance"] if instance is None else instance
    journal = spm.home / "services" / "api" / "events.jsonl"
    line = {"at": 1.0, "event": "corrected", "why": "", "record": spm.record("api")}
    forge(spm, main=stranger._asdict(), phase="running", instance=shown)
    line["record"] = spm.record("api")
    with journal.open("a") as file:  # as a command writes it, who only repeats what it read
        file.write(json.dumps(line) + "\n")
    text = (spm.home / "state.json").read_text()
    for words in (["list"], ["stop", "api"], ["restart", "api"], ["cleanup"]):
        (spm.home / "state.json").write_text(text)
        told = spm(*words, code=None)
        assert is_running(stranger.pid), f"{words} ended a stranger: {told}"
        assert str(stranger.pid) not in [word for word in told.stdout.split() if words == ["list"]]
    spm("cleanup", code=None)


def test_a_forged_supervisor_proves_nothing(spm: Spm, stranger: program.Identity) -> None:
    # the stranger's parent, with a supervisor alive: no proof that it is that supervisor's child
    spm("start", "api", "sleep 100")
    pid = spm.service("api")["pid"]
    look = program.stat_of(os.getpid())
    assert look
    forge(spm, main=stranger._asdict(), supervisor=look.identity._asdict())
    assert spm.service("api")["pid"] == pid
    spm("stop", "api", code=None)
    spm("stop", "api", code=None)
    assert is_running(stranger.pid) and not is_running(pid)


def test_no_supervisor_vouches_for_the_process_of_another_one(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    spm("start", "web", "sleep 100")
    pid, web = spm.service("api")["pid"], spm.service("web")["pid"]
    forge(spm, main=spm.record("web")["main"])
    assert spm.service("api")["pid"] == pid
    spm("stop", "api", code=None)
    assert is_running(web) and spm.service("web")["status"] == "running"
    spm("stop", "api", "web", code=None)
    assert not is_running(pid)


def test_a_forged_record_makes_nobody_a_stale_process_that_holds_the_port(
    spm: Spm, port: int
) -> None:
    spm("start", "api", "sleep 100")
    kill_all_but(spm, "")
    with subprocess.Popen([sys.executable, "-m", "http.server", str(port)], cwd="/usr") as server:
        try:
            eventually(lambda: program.probe_tcp(port)[0], what="its port")
            look = program.stat_of(server.pid)
            assert look
            forge(spm, main=look.identity._asdict(), phase="running")
            spm("start", "api", "sleep 100", "--port", port, "--replace", code=5)
            assert server.poll() is None, "a stranger was ended for its port"
        finally:
            server.kill()
    spm("cleanup", code=None)


@pytest.fixture
def child(spm: Spm, stranger: program.Identity) -> Iterator[psutil.Process]:
    """What is left of a service whose recorded number is a stranger's now."""
    spm("start", "api", "--", "sh", "-c", "sleep 98 & exec sleep 99")
    (child,) = kill_all_but(spm, "98")
    forge(spm, main={**spm.record("api")["main"], "pid": stranger.pid}, phase="running")
    yield child
    end([child])


def test_what_is_left_of_a_service_is_ended_though_its_number_is_another_ones_now(
    spm: Spm, stranger: program.Identity, child: psutil.Process
) -> None:
    assert spm.service("api")["status"] == "lost"
    spm("start", "api", "sleep 100")
    assert not is_running(child.pid), "two instances"
    assert is_running(stranger.pid)
    spm("stop", "api")


def test_a_stop_that_met_a_stranger_leaves_no_trace_of_it_in_the_record(
    spm: Spm, stranger: program.Identity, child: psutil.Process
) -> None:
    spm("stop", "api")
    assert not is_running(child.pid) and is_running(stranger.pid)
    assert spm.record("api")["main"] is None


@pytest.mark.skipif(GENERIC, reason="the look happens in this process, which has /proc")
def test_what_a_purge_finds_running_in_a_journal_is_known_again(spm: Spm) -> None:
    # started while the state was rebuilt without it; with the journal went the last trace of it
    spm("start", "api", "sleep 100")
    spm.kill_supervisor("api")
    (spm.home / "state.json").write_text('{"schema": 1, "services": {}}')
    assert program.forget(program.Store(str(spm.home)), [], purge=True) == []
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")


@pytest.mark.parametrize("hangs", [False, True])
def test_a_service_that_state_json_has_lost_is_found_at_the_next_look(
    spm: Spm, hangs: bool
) -> None:
    # state.json was rebuilt while the disk had no room for the record, and is whole again
    for name in ("api", "web"):
        spm("start", name, "sleep 100")
    document, pid = spm.state(), spm.supervisor("api")
    del document["services"]["api"]
    if hangs:
        os.kill(pid, signal.SIGSTOP)
    (spm.home / "state.json").write_text(json.dumps(document))
    done = spm("list")
    assert re.search(r"^api +running", done.stdout, re.M)
    assert "[WARN] not in state.json, but running: api (written there again)" in done.stderr
    assert "not in state.json" not in spm("list").stderr
    assert spm.record("api")["phase"] == "running"
    spm("stop", "api", "--timeout", "200ms")
    assert not is_running(spm.record("api")["main"]["pid"])
    spm("cleanup")
    assert spm("list").stderr == ""  # a directory that is left is no service


@pytest.mark.skipif(GENERIC, reason="the start happens in this process, which has /proc")
def test_a_child_that_had_not_yet_executed_the_service_goes_with_its_supervisor(
    spm: Spm, monkeypatch: pytest.MonkeyPatch
) -> None:
    # until then it has the environment of the supervisor that forked it, and was left for one
    for key, value in spm.env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("SPM_TEST_CRASH", "supervisor.launched")
    store = program.Store(str(spm.home))
    store.prepare()
    record = program.new_record("api", program.Spec(("sleep", "100"), str(spm.cwd)), "ab" * 16)
    own = {"SPM_SERVICE": "api", "SPM_SUPERVISOR": record.instance}
    with store.claim("api", 1.0), subprocess.Popen(["sleep", "100"], env={**spm.env, **own}) as it:
        try:
            with pytest.raises(program.StartFailed):
                program.launch(store, record, {})
            assert it.wait(10) == -signal.SIGKILL
        finally:
            it.kill()


@pytest.mark.skipif(GENERIC, reason="the look happens in this process, which has /proc")
def test_what_was_started_during_a_cleanup_is_not_forgotten(spm: Spm) -> None:
    # state.json was rebuilt before it ran, so the cleanup found nothing to stop; then its
    # supervisor was killed, and a service without one was taken for one that had ended
    spm("start", "api", "sleep 100")
    spm.kill_supervisor("api")
    store = program.Store(str(spm.home))
    record = store.record("api")
    assert record and program.forget(store, [record], purge=True) == []
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")


@pytest.mark.skipif(GENERIC, reason="the look happens in this process, which has /proc")
def test_a_touch_that_comes_late_writes_no_old_record(spm: Spm) -> None:
    # it had read the record of a service without supervisor, which was restarted then
    spm("start", "api", "sleep 100")
    spm.kill_supervisor("api")
    store = program.Store(str(spm.home))
    seen = program.find(store, "api")
    spm("restart", "api")
    known = spm.record("api")
    program.touched(store, seen)
    assert spm.record("api") == known and spm.service("api")["supervised"]
    spm("stop", "api")


@pytest.mark.skipif(GENERIC, reason="the look happens in this process, which has /proc")
def test_a_stop_keeps_how_the_service_ended_meanwhile(spm: Spm) -> None:
    # the stop had seen it run; its supervisor wrote the exit and left, and the stop wrote over it
    spm("start", "api", "--shell", "until test -e go; do sleep 0.01; done; exit 7")
    store = program.Store(str(spm.home))
    seen = program.find(store, "api")
    assert seen.record.phase == "running" and seen.record.supervisor
    guard = seen.record.supervisor.pid
    (spm.cwd / "go").touch()
    eventually(lambda: not is_running(guard), what="its supervisor's end")
    after, ended = program.drive(program.stop_steps(store, seen, 1.0, False))
    assert ended is None and after.phase == "failed"
    assert spm.record("api")["exit"]["code"] == 7 and "exit code 7" in spm("stop", "api").stdout


def test_an_old_record_that_somebody_wrote_back_does_not_start_for_ever(spm: Spm) -> None:
    # who wrote had read it before the launcher ended: "starting", and nobody asked its supervisor
    spm("start", "api", "--shell", "setsid sleep 100 & exit 0", "--type", "forking")
    eventually(lambda: spm.record("api")["phase"] == "running", what="the daemon")
    pid = spm.service("api")["pid"]
    launcher = spm.record("api")["launcher"]
    forge(spm, phase="starting", main=launcher, launcher=None)
    row = spm.service("api")
    assert (row["status"], row["pid"]) == ("running", pid)
    spm("stop", "api")
    assert not is_running(pid)


def test_a_purge_leaves_the_directory_of_a_start_that_has_noted_nothing_yet(spm: Spm) -> None:
    # it removed the lock that the start held, and a second start of the name went on beside it
    spm("start", "other", "sleep 100")
    store = program.Store(str(spm.home))
    with store.claim("api", 1.0):
        spm("cleanup", "--purge")
        assert (spm.home / "services" / "api" / "lock").exists()
    assert not (spm.home / "services" / "other").exists()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_restart_that_nobody_could_note_is_found_by_its_cookie(spm: Spm, damaged: bool) -> None:
    # the directory was read-only when the supervisor restarted it, and then that was killed:
    # the record named the process that had ended, and a second one could be started
    spm("start", "api", "--restart", "always", "--backoff", "10ms", "--", "sleep", "100")
    files = [spm.home / "state.json", spm.home / "services" / "api" / "events.jsonl"]
    texts = [path.read_text() for path in files]
    first = spm.service("api")["pid"]
    os.kill(first, signal.SIGKILL)
    eventually(lambda: spm.service("api")["pid"] not in (None, first), what="the restart")
    pid = spm.service("api")["pid"]
    spm.kill_supervisor("api")
    for path, text in zip(files, texts):
        path.write_text(text)
    if damaged:
        files[0].write_text("{")
    row = spm.service("api")
    assert (row["status"], row["pid"], row["supervised"]) == ("running", pid, False)
    assert "already running" in spm("start", "api").stdout
    assert (spm.service("api")["pid"], spm.service("api")["supervised"]) == (pid, True)
    spm("stop", "api")
    assert not is_running(pid)


def test_who_is_in_no_record_and_lost_its_supervisor_is_found_by_what_that_left(spm: Spm) -> None:
    # state.json was damaged and the disk full when it started; then its supervisor was killed
    for name in ("other", "api"):
        spm("start", name, "sleep 100")
    pid, place = spm.service("api")["pid"], spm.home / "services" / "api"
    eventually((place / "control.sock").exists, what="the control socket")
    spm.kill_supervisor("api")
    (place / "events.jsonl").unlink()
    state = spm.state()
    del state["services"]["api"]
    (spm.home / "state.json").write_text(json.dumps(state))
    row = spm.service("api")
    assert (row["status"], row["pid"], row["supervised"]) == ("running", pid, False)
    spm("stop", "api")
    assert not is_running(pid)
    spm("cleanup")
    assert not (place / "control.sock").exists(), "or each look would look for it"


def test_a_record_that_lags_behind_its_supervisor_is_no_forgery(spm: Spm) -> None:
    # the state was read-only when the main process changed: stop was refused
    spm("start", "api", "sleep 100")
    pid = spm.service("api")["pid"]
    with subprocess.Popen(["sleep", "100"]) as former:
        look = program.stat_of(former.pid)
        former.kill()
    assert look
    forge(spm, main=look.identity._asdict())
    assert "api stopped" in spm("stop", "api").stdout
    assert not is_running(pid)


AT_A_START = ("launched", "noted", "journalled", "written", "replaced")
AT_A_RESTART = ("exited", "ending", "ended", "restarting")


@pytest.mark.parametrize("step", [*AT_A_START, *AT_A_RESTART, "leaving"])
def test_a_supervisor_killed_at_any_named_step_loses_no_process(spm: Spm, step: str) -> None:
    def processes(supervisors: bool) -> list[int]:
        pids = [one.pid for one in spm.bearers()]
        return [pid for pid in pids if ("supervise" in cmdline(pid)) is supervisors]

    spm.env["SPM_TEST_CRASH"] = f"supervisor.{step}"
    fails_once = "test -e once || { touch once; exit 1; }; exec sleep 100"
    policy = ("--restart", "on-failure", "--backoff", "10ms", "--shell", fails_once)
    spm("start", "api", *policy, code=None)
    if step == "leaving":
        eventually(lambda: spm.record("api")["restarts"] == 1, what="the restart")
        spm("stop", "api", code=None)
    del spm.env["SPM_TEST_CRASH"]
    eventually(lambda: not processes(True), what="its supervisor's death")
    assert {spm.service("api")["pid"]} - {None} == {*processes(False)}
    spm("start", "api", "--replace", "--force", *policy)
    eventually(lambda: spm.service("api")["pid"] and processes(True), what="a new supervisor")
    eventually(lambda: processes(False) == [spm.service("api")["pid"]], what="one process")
    spm("stop", "api")
    eventually(lambda: not spm.bearers(), what="the end of all")


def test_a_crash_at_a_named_step_is_only_that_of_who_is_meant(spm: Spm) -> None:
    spm.env["SPM_TEST_CRASH"] = "command.intended"
    spm("start", "api", "sleep 100", code=-signal.SIGKILL)
    assert spm.service("api")["status"] == "failed", "the intent was written, nothing ran"
    spm.env["SPM_TEST_CRASH"] = "command.ordered:2"
    spm("start", "api", "sleep 100")
    os.kill(spm.service("api")["pid"], 0)
    del spm.env["SPM_TEST_CRASH"]
    spm("stop", "api")


@pytest.mark.parametrize("restart", ["no", "on-failure"])
def test_up_sees_an_end_that_a_slow_disk_keeps_from_being_written(
    spm: Spm, slow_disk: None, restart: str
) -> None:
    # it looked at state.json a tenth of a second after the start, where that was still to come
    service = {"command": ["sh", "-c", "exit 3"], "restart": restart, "backoff": "9s"}
    (spm.cwd / "spm.json").write_text(json.dumps({"services": {"api": service}}))
    failed = spm.json("up", "--wait", "5s", code=1)
    assert "exit code 3" in failed["error"]["message"]
    spm("down")


# -- what a command had read before another one changed it

END = "lambda *_: (time.sleep(1), os._exit(0))"
SLOW_END = (
    f"import os, signal, time; signal.signal(15, {END}); print('up', flush=True); time.sleep(99)"
)
SLOW = [sys.executable, "-c", f"{SLOW_END}; time.sleep(99)"]


def stopping(spm: Spm, *words: str) -> subprocess.Popen[str]:
    """That command, in the middle of ending api."""
    eventually(lambda: "up" in spm("logs", "api").stdout, what="its handler")
    process = spm.popen(*words)
    eventually(lambda: spm.service("api")["status"] == "stopping", what="the stop")
    return process


def test_a_start_as_last_time_takes_what_another_start_is_just_bringing(spm: Spm) -> None:
    # it had read the former spec before it waited for its turn, and went back to that
    spm("start", "api", "--", *SLOW)
    replaces = stopping(spm, "start", "api", "sleep 100", "--env", "K=new", "--replace")
    assert "already running" in spm("start", "api").stdout
    assert replaces.wait(10) == 0
    replaces.communicate()
    spec = spm.record("api")["spec"]
    assert (spec["argv"], spec["env_given"]) == (["sleep", "100"], ["K"])
    spm("stop", "api")


def test_up_starts_again_what_is_just_being_stopped(spm: Spm) -> None:
    # it said `keep`, and a second later nothing ran
    spm.cwd.joinpath("spm.json").write_text(json.dumps({"services": {"api": {"command": SLOW}}}))
    spm("up")
    stop = stopping(spm, "stop", "api")
    assert "start: 1" in spm("up").stdout
    stop.communicate(timeout=10)
    assert spm.service("api")["status"] == "running"
    spm("cleanup")


def test_a_supervisor_that_rebuilds_the_state_waited_for_an_answer_of_its_own(spm: Spm) -> None:
    spm("start", "api", "sleep 100", "--restart", "always", "--backoff", "1ms")
    place, pid = spm.home / "services" / "api", spm.service("api")["pid"]
    eventually((place / "control.sock").exists, what="the control socket")
    (spm.home / "state.json").unlink()
    os.kill(pid, signal.SIGKILL)
    journal = place / "events.jsonl"
    eventually(lambda: '"restarted"' in journal.read_text("utf-8"), 2, what="its restart")
    eventually((spm.home / "state.json").exists, what="the state")
    eventually(lambda: spm.service("api")["status"] == "running", what="its restart to be noted")
    spm("stop", "api")


def test_a_supervisor_that_can_not_write_how_it_ended_made_a_stop_of_it_when_told_to_go(
    spm: Spm,
) -> None:
    spm("start", "api", "sleep 100")
    supervisor, pid, state = spm.supervisor("api"), spm.service("api")["pid"], spm.state()
    (spm.home / "state.json").unlink()
    (spm.home / "state.json").mkdir()
    os.kill(pid, signal.SIGKILL)
    journal = spm.home / "services" / "api" / "events.jsonl"
    eventually(lambda: '"exited"' in journal.read_text("utf-8"), what="its end")
    os.kill(supervisor, signal.SIGTERM)
    eventually(lambda: not is_running(supervisor), 2, what="the supervisor's end")
    (spm.home / "state.json").rmdir()
    (spm.home / "state.json").write_text(json.dumps(state))
    assert spm.service("api")["status"] == "failed"


def test_a_setting_isnt_lost_to_a_restart_under_way(spm: Spm) -> None:
    # the supervisor that was about to leave took it over, and the restart started what it had read
    service = {"command": SLOW}
    path = spm.cwd / "spm.json"
    path.write_text(json.dumps({"services": {"api": service}}))
    spm("up")
    restart = stopping(spm, "restart", "api")
    path.write_text(json.dumps({"services": {"api": {**service, "restart": "always"}}}))
    spm("up")
    restart.communicate(timeout=10)
    assert spm.record("api")["spec"]["restart"] == "always"
    assert "nothing to do" in spm("up", "--dry-run").stdout or "keep" in spm("up").stdout
    spm("cleanup")


def test_a_service_that_says_ready_before_it_is_judged_is_ready_then(spm: Spm) -> None:
    # a daemon says so before its launcher has ended; it never became ready
    words = [sys.executable, str(SCRIPT), "notify", "ready", "--message", "warm now"]
    line = f"{shlex.join(words)}; exec sleep 100"
    spm("start", "api", "--start-seconds", "1", "--shell", line)
    eventually(lambda: spm.service("api")["status"] == "ready", what="its readiness")
    assert spm.record("api")["reason"] == "warm now"
    spm("stop", "api")


def test_an_end_that_only_the_journal_knows_is_told_as_it_was(spm: Spm) -> None:
    # its supervisor left before it could write state.json: "its end was not seen"
    spm("start", "api", "--shell", "until test -e go; do sleep 0.02; done; exit 3")
    before = spm.record("api")
    (spm.cwd / "go").touch()
    eventually(lambda: spm.record("api")["phase"] == "failed", what="its end")
    eventually(lambda: not is_running(before["supervisor"]["pid"]), what="its supervisor's end")
    forge(spm, **before)
    row = spm.service("api")
    assert (row["status"], row["why"]) == ("failed", "exit code 3")
    assert spm.record("api")["exit"]["code"] == 3


def test_following_a_log_goes_on_while_the_service_is_restarted(spm: Spm) -> None:
    # it looked just when the one had ended and the next hadn't begun
    spm("start", "api", "--shell", "until test -e go; do sleep 0.02; done")
    follower = spm.popen("logs", "api", "-f")
    with open(spm.home / "services" / "api" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (spm.cwd / "go").touch()
        eventually(lambda: spm.record("api")["phase"] == "exited", what="its end")
        with pytest.raises(subprocess.TimeoutExpired):
            follower.wait(0.5)
    assert follower.wait(5) == 0
    follower.communicate()


def test_watch_applies_later_what_it_could_not_while_another_up_went_on(spm: Spm) -> None:
    # the change counted as applied, and was never looked at again
    path = spm.cwd / "spm.json"
    path.write_text('{"services": {"api": {"command": "sleep 100"}}}')
    watch = spm.popen("up", "--watch", "--wait", "300ms")
    try:
        assert watch.stdout and watch.stderr
        while "watching" not in watch.stdout.readline():
            pass
        with open(spm.home / "lock.up", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path.write_text('{"services": {"b": {"command": "sleep 101"}}}')
            while "another `up` is under way" not in watch.stdout.readline():
                pass
        eventually(lambda: "b" in spm.state()["services"], what="the change")
    finally:
        watch.send_signal(signal.SIGINT)
        watch.communicate(timeout=10)
    spm("cleanup")


def test_status_of_what_ends_and_begins_again_is_never_that_its_supervisor_is_gone(
    spm: Spm,
) -> None:
    # what died between the supervisor's answer and the look was taken for an unseen end
    quick = ("--restart", "always", "--max-restarts", "9999", "--backoff", "1ms")
    spm("start", "loop", *quick, "--backoff-max", "1ms", "--", "sleep", "0.01")
    for _ in range(40):
        spm("status", "loop")
    spm("cleanup")


def test_a_start_that_waited_tells_what_became_of_it_since(spm: Spm) -> None:
    # it told "running" of what had ended: its supervisor had left, the record was from before
    job = ("--ready", "log:ok", "--wait", "5", "--", "sh", "-c")
    lines = [f"echo ok; sleep 0.{n:03}" for n in range(0, 60, 4)]
    words = [("--json", "start", f"job{n}", *job, line) for n, line in enumerate(lines)]
    told = [spm(*one, code=None).stdout for one in words]
    good = [one for one in map(json.loads, told) if one["ok"]]
    assert good and {one["status"] for one in good} <= {"ready", "exited"}


def test_a_run_leaves_what_another_one_uses_although_that_could_not_be_written(spm: Spm) -> None:
    # only its supervisor knew the other one yet: state.json was locked
    wait = "touch {0}; until test -e {1}; do sleep 0.02; done"
    spm.env["SPM_HOME"] = str(spm.home)

    def begin(up: str, until: str) -> subprocess.Popen[str]:
        tests = ("sh", "-c", wait.format(up, until))
        run = spm.popen("run", "api", "--ready", "log:up", "--shell", SERVICE, "--", *tests)
        eventually((spm.cwd / up).exists, 20, what=f"the run of {up}")
        return run

    first = begin("up1", "go1")
    with open(spm.home / "lock", "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = begin("up2", "go2")
        (spm.cwd / "go1").touch()
        told = first.communicate(timeout=30)[1]
    assert first.returncode == 0 and "left to another run: api" in told, told
    assert spm.service("api")["status"] == "ready"
    (spm.cwd / "go2").touch()
    told = second.communicate(timeout=30)[1]
    assert second.returncode == 0 and "stopped: api" in told, told


def test_of_runs_that_end_at_the_same_moment_the_last_one_stops_what_they_shared(spm: Spm) -> None:
    # both left it: its supervisor hadn't yet given it to the other one
    spm.env["SPM_HOME"] = str(spm.home)

    def begin(turn: int, number: int) -> subprocess.Popen[str]:
        text = f"touch up{turn}-{number}; until test -e go{turn}; do sleep 0.01; done"
        words = ("--ready", "log:up", "--shell", SERVICE, "--", "sh", "-c", text)
        run = spm.popen("run", "api", *words)
        eventually((spm.cwd / f"up{turn}-{number}").exists, 20, what=f"run {number}")
        return run

    for turn in range(2):
        runs = [begin(turn, number) for number in range(3)]
        (spm.cwd / f"go{turn}").touch()
        told = [run.communicate(timeout=30)[1] for run in runs]
        assert [run.returncode for run in runs] == [0, 0, 0], told
        ends = sorted(text.splitlines()[-1].rpartition("; ")[2] for text in told)
        assert ends == [*["left to another run: api"] * 2, "stopped: api"], told


SERVICE = "echo up; exec sleep 100"
