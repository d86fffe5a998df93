"""How long a service may live: leases, idle timeouts, whose session it is; and notify."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import GENERIC, PACE, SCRIPT, Spm, eventually, is_running, nasty
from hypothesis import given
from hypothesis import strategies as st

import simple_process_manager as program

Helper = subprocess.Popen[bytes]


@pytest.fixture
def helper() -> Iterator[Callable[[], Helper]]:
    """Starts processes that can own a service; they are gone at the end."""
    helpers: list[Helper] = []

    def begin() -> Helper:
        helpers.append(subprocess.Popen(["sleep", "100"]))
        return helpers[-1]

    yield begin
    for one in helpers:
        one.kill()
        one.wait()


def until(spm: Spm, name: str, status: str, within: float = 5.0) -> str:
    """Wait for a status; why it is so."""
    eventually(lambda: spm.service(name)["status"] == status, within, f"{name} {status}")
    return str(spm.service(name)["why"])


def status(spm: Spm, name: str) -> dict[str, object]:
    """What `status` says, whether it runs or not."""
    document = json.loads(spm("status", name, "--json", code=None).stdout)
    assert isinstance(document, dict)
    return document


# -- decisions

times = st.floats(0, 1e9, allow_nan=False)
RECORD = program.new_record("api", program.Spec(("sleep", "9"), "/"), "an-instance")
OWNER = program.Identity(812, "4711@boot")


@given(now=times, lease=st.integers(1, 10**6), later=times)
def test_a_duration_is_over_when_it_has_passed_and_not_before(
    now: float, lease: int, later: float
) -> None:
    record = RECORD._replace(spec=RECORD.spec._replace(lease=f"{lease}s"))
    record = program.granted(record, None, "", now)
    over = program.lease_over(record, False, now + later)
    assert (over is not None) == (now + later >= now + lease)
    left = program.left_s(record, now + later)
    assert left[0] == now + lease - (now + later) and left[1] is None


@given(now=times, idle=st.floats(0.001, 1e6), later=times)
def test_idle_is_what_nobody_used_for_so_long(now: float, idle: float, later: float) -> None:
    record = RECORD._replace(spec=RECORD.spec._replace(idle_timeout_s=idle))
    record = program.granted(record, None, "", now)
    left = program.left_s(record, now + later)[1]
    assert left is not None
    assert (program.lease_over(record, False, now + later) is not None) == (left <= 0)
    assert program.lease_over(record._replace(active_at=now + later), False, now + later) is None


@given(now=times)
def test_who_asked_for_no_end_gets_none(now: float) -> None:
    assert program.lease_over(RECORD, False, now) is None
    assert program.left_s(RECORD, now) == (None, None)


def test_an_owner_counts_while_it_lives() -> None:
    record = program.granted(RECORD, OWNER, "code", 5.0)
    assert program.lease_over(record, True, 1e9) is None
    assert program.lease_over(record, False, 5.0) == "its owner is gone: pid 812 (code)"


def test_the_reason_of_an_idle_end_has_both_times() -> None:
    record = RECORD._replace(spec=RECORD.spec._replace(idle_timeout_s=60.0), active_at=100.0)
    assert program.lease_over(record, False, 160.0) == "idle for 1 m 0 s (idle timeout 1 m 0 s)"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bash", "-bash"),
        ("sh", "sh -c x"),
        ("zsh", "/usr/bin/zsh"),
        ("cmd.exe", r"C:\Windows\cmd.exe"),
        ("pwsh.exe", "pwsh.exe"),
        ("make", "make test"),
        ("gmake4.3", "gmake"),
        ("npm run dev", "npm\0run"),
        ("node", "node /usr/lib/node_modules/npm/bin/npm-cli.js run dev"),
        ("MainThread", "node /usr/bin/npx vite"),
        ("node.exe", "node.exe yarn.js dev"),
        ("uv", "uv run x"),
        ("timeout", "timeout 9 x"),
        ("python3.11", "python3.11 -m tox -e py"),
        ("python3.11", "/usr/bin/python3.11 /usr/bin/poetry run x"),
        pytest.param("Python", f"python {SCRIPT} start api x", id="a copy of the file"),
        ("python3", "python3 -S -E /h/cache/x/simple_process_manager.pyc supervise api"),
        ("python", "python /usr/local/bin/spm run api"),
    ],
)
def test_shells_and_tool_runners_own_no_session(name: str, words: str) -> None:
    assert program.is_runner(name, words.split(" "))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("agent", "agent"),
        ("node", "node /usr/bin/agent --resume"),
        ("code", "/usr/share/code/code --type=utility"),
        ("python3.11", "python3.11 agent.py npm"),
        ("python", "python -m pytest tests/"),
        ("python", "python"),
        ("shfmt", "shfmt x"),
        ("envoy", "envoy"),
        ("tmux: server", "tmux"),
        ("makepkg", "makepkg"),
        ("", ""),
    ],
)
def test_everything_else_may_own_a_session(name: str, words: str) -> None:
    assert not program.is_runner(name, words.split(" "))


@pytest.mark.parametrize("lease", ["soon", "0s", "-1", "", " 2h", "1d", "11y", "forever ", "1e9"])
def test_a_bad_lease_is_exit_2(spm: Spm, lease: str) -> None:
    assert "[ERROR] " in spm("start", "api", "sleep 100", f"--lease={lease}", code=2).stderr
    assert not spm.home.exists() or not spm.json("list")["services"]


def test_a_record_with_a_forged_lease_is_refused() -> None:
    for forged in (5, "soon", None, "forever\n"):
        spec = {"argv": ["sleep"], "cwd": "/", "lease": forged}
        with pytest.raises(program.RecordError, match=r"^spec\.lease: a lease"):
            program.Spec.from_json(spec)


# -- leases


def test_without_a_lease_a_service_lives_forever_and_nothing_is_said(spm: Spm) -> None:
    started = spm("start", "api", "sleep 100")
    assert "lease" not in started.stdout
    shown = status(spm, "api")
    assert (shown["lease"], shown["owner"], shown["lease_left_s"]) == ("forever", None, None)
    spm("stop", "api")


def test_the_time_being_over_ends_it(spm: Spm) -> None:
    began = time.monotonic()
    lease_s = 2 * PACE
    why = f"its lease of {lease_s}s is over"
    spm("start", "api", nasty("--child"), "--lease", f"{lease_s}s")
    left = status(spm, "api")["lease_left_s"]
    assert isinstance(left, float) and 0 < left < lease_s
    assert until(spm, "api", "stopped", within=5.0 * PACE) == why
    assert lease_s < time.monotonic() - began < lease_s + 6
    assert spm.record("api")["wanted"] == "stopped"
    events = status(spm, "api")["events"]
    assert isinstance(events, list)
    assert [(one["event"], one["why"]) for one in events[-2:]] == [
        ("stopping", why),
        ("stopped", why),
    ]


def test_the_times_are_of_the_clock_that_nobody_sets(spm: Spm) -> None:
    spm("start", "api", "sleep 100", "--lease", "1h", "--idle-timeout", "2h")
    record = spm.record("api")
    assert record["active_at"] <= time.monotonic()
    assert 3590 < record["lease_until"] - time.monotonic() <= 3600
    line = spm("start", "api", "sleep 100", "--lease", "1h", "--idle-timeout", "2h").stdout
    assert "[INFO] lease: for 59 m 59 s, until it is idle for 2 h 0 m\n" in line
    spm("stop", "api")
    assert status(spm, "api")["lease_left_s"] is None


def test_an_owner_killed_takes_its_service_along(spm: Spm, helper: Callable[[], Helper]) -> None:
    owner = helper()
    started = spm("start", "api", nasty("--child"), "--lease", owner.pid)
    assert f"[INFO] lease: as long as pid {owner.pid} (sleep) lives" in started.stdout
    assert status(spm, "api")["owner"] == {"pid": owner.pid, "name": "sleep"}
    spm("start", "other", "sleep 100")
    owner.kill()  # and nobody waits for it yet: a zombie is as gone as can be
    assert until(spm, "api", "stopped", 2.0) == f"its owner is gone: pid {owner.pid} (sleep)"
    assert spm.service("other")["status"] == "running"
    spm("stop", "other")


def test_a_process_that_does_not_live_owns_nothing_and_nothing_happens(
    spm: Spm, helper: Callable[[], Helper]
) -> None:
    spm("start", "api", "sleep 100")
    owner = helper()
    owner.kill()
    for pid in (owner.pid, 0, 2**31, 10**30, "1" * 5000):
        failed = spm("start", "api", "sleep 101", "--replace", "--lease", pid, code=2)
        assert f"--lease {pid}: no such process lives" in failed.stderr
        spm("start", "new", "sleep 101", "--lease", pid, code=2)
    assert spm.service("api")["command"] == "sleep 100"
    spm("stop", "api")


def test_the_same_start_renews_a_duration(spm: Spm) -> None:
    spm("start", "api", "sleep 100", "--lease", "2s")
    before = spm.record("api")["lease_until"]
    spm("start", "api", "sleep 100", "--lease", "2s")
    spm("start", "api")
    assert spm.record("api")["lease_until"] > before
    spm("touch", "api")
    assert spm.record("api")["lease_until"] < time.monotonic() + 2
    until(spm, "api", "stopped")


def test_a_command_of_any_length_is_renewed_too(spm: Spm) -> None:
    # what was longer than 64 kB was not heard
    words = ("start", "api", "--lease", "2h", "--", "sh", "-c", f"# {'x' * 100_000}\nsleep 100")
    spm(*words)
    until = spm.record("api")["lease_until"]
    assert "already" in spm(*words).stdout
    assert spm.record("api")["lease_until"] > until
    spm("stop", "api")


def test_the_first_owner_stays_the_owner_while_it_lives(
    spm: Spm, helper: Callable[[], Helper]
) -> None:
    first, second = helper(), helper()
    spm("start", "api", "sleep 100", "--lease", first.pid)
    again = spm("start", "api", "sleep 100", "--lease", second.pid)
    assert f"--lease: {first.pid} → {second.pid}; --replace starts it anew" in again.stderr
    assert f"as long as pid {first.pid} (sleep) lives" in again.stdout
    warned = spm.json("start", "api", "sleep 100", "--lease", "session")
    assert "keeps the lease it was started with" in warned["warnings"][0]
    spm("start", "api", "sleep 100", "--lease", second.pid, "--replace")
    first.kill()
    assert status(spm, "api")["owner"] == {"pid": second.pid, "name": "sleep"}
    assert spm.service("api")["status"] == "running"
    second.kill()
    until(spm, "api", "stopped", 2.0)


@pytest.mark.skipif(sys.platform != "linux" or GENERIC, reason="elsewhere nothing tells of an end")
def test_the_owners_that_a_service_had_cost_its_supervisor_no_descriptors(
    spm: Spm, helper: Callable[[], Helper]
) -> None:
    first = helper()
    spm("start", "api", "sleep 100", "--lease", first.pid)
    store, owners = program.Store(str(spm.home)), [first]
    for _ in range(4):
        owners.append(helper())
        look = program.stat_of(owners[-1].pid)
        assert look and store.ask_record("api", "touch", 5, sharer=look.identity._asdict())
        owners[-2].kill()
        owners[-2].wait()
        eventually(lambda: spm.record("api")["owner"]["pid"] == owners[-1].pid, what="its heir")
    links = [os.readlink(path) for path in Path(f"/proc/{spm.supervisor('api')}/fd").iterdir()]
    assert len([link for link in links if "pidfd" in link]) <= 1, links
    spm("stop", "api")


def test_who_takes_it_back_goes_on_with_its_owner(spm: Spm, helper: Callable[[], Helper]) -> None:
    owner = helper()
    spm("start", "api", "sleep 100", "--lease", owner.pid)
    spm.kill_supervisor("api")
    pid = spm.service("api")["pid"]
    spm("start", "api", "sleep 100", "--lease", owner.pid)
    assert spm.service("api")["pid"] == pid
    owner.kill()
    assert "its owner is gone" in until(spm, "api", "stopped", 2.0)


def test_who_takes_it_back_goes_on_with_its_times(spm: Spm) -> None:
    spm("start", "api", "sleep 100", "--lease", "1h", "--idle-timeout", "1500ms")
    spm.kill_supervisor("api")
    left = status(spm, "api")["lease_left_s"]
    assert isinstance(left, float) and 3590 < left < 3600
    spm("start", "api")
    assert 3590 < spm.record("api")["lease_until"] - time.monotonic() < 3600
    assert "idle timeout" in until(spm, "api", "stopped")


def test_a_gone_owner_is_followed_by_who_asks_next(spm: Spm, helper: Callable[[], Helper]) -> None:
    first, second = helper(), helper()
    spm("start", "api", "sleep 100", "--lease", first.pid)
    spm.kill_supervisor("api")
    first.kill()
    spm("start", "api", "sleep 100", "--lease", second.pid)
    assert status(spm, "api")["owner"] == {"pid": second.pid, "name": "sleep"}
    second.kill()
    until(spm, "api", "stopped", 2.0)


def test_restart_keeps_lease_owner_and_idle_timeout(spm: Spm, helper: Callable[[], Helper]) -> None:
    owner = helper()
    spm("start", "api", "sleep 100", "--lease", "1h", "--idle-timeout", "2h")
    before = spm.record("api")["lease_until"]
    spm("restart", "api")
    after = spm.record("api")
    assert after["lease_until"] > before and after["spec"]["idle_timeout_s"] == 7200
    spm("start", "api", "sleep 100", "--lease", owner.pid, "--replace")
    assert "as long as pid" in spm("restart", "api").stdout
    owner.kill()
    until(spm, "api", "stopped", 2.0)
    assert "no such process lives any more" in spm("restart", "api", code=2).stderr
    spm("start", "api", "--lease", "forever")
    spm("stop", "api")


def test_the_times_of_another_boot_mean_nothing(spm: Spm) -> None:
    spm("start", "api", "sleep 100", "--lease", "1h", "--idle-timeout", "1h")
    spm("stop", "api")
    state = spm.state()
    record = state["services"]["api"]
    record.update(phase="running", wanted="running")
    record["place"]["boot"] = "another"
    (spm.home / "state.json").write_text(json.dumps(state))
    shown = status(spm, "api")
    assert (shown["lease"], shown["lease_left_s"], shown["idle_left_s"]) == ("1h", None, None)


# -- idle


def test_nobody_using_it_ends_it(spm: Spm) -> None:
    spm("start", "api", "sleep 100", "--idle-timeout", "750ms")
    assert status(spm, "api")["idle_timeout_s"] == 0.75
    why = until(spm, "api", "stopped")
    told = re.fullmatch(r"idle for (\d+\.\d+) s \(idle timeout 0.75 s\)", why)
    assert told and 0.75 <= float(told[1]) < 5


def test_looking_at_it_is_not_using_it(spm: Spm) -> None:
    began = time.monotonic()
    spm("start", "api", "sleep 100", "--idle-timeout", "1s")
    while spm.service("api")["status"] == "running":
        status(spm, "api")
        spm("logs", "api")
        looked = time.monotonic()
        eventually(lambda: time.monotonic() - looked > 0.1, what="the next look")  # noqa: B023
        assert time.monotonic() - began < 4, "looking has kept it alive"
    assert "idle for" in spm.service("api")["why"]


@pytest.mark.parametrize("use", ["touch", "start", "wait-healthy", "notify"])
def test_using_it_in_time_keeps_it(spm: Spm, port: int, use: str) -> None:
    words = {"wait-healthy": ["api", "5"], "notify": ["api", "alive"]}.get(use, ["api"])
    spm("start", "api", nasty("--port", port), "--idle-timeout", f"{2 * PACE}s")
    pid = spm.service("api")["pid"]
    began = time.monotonic()
    while time.monotonic() - began < 2.4 * PACE:
        spm(use, *words)
        assert spm.service("api")["pid"] == pid
        used = time.monotonic()
        eventually(lambda: time.monotonic() - used > 0.3, what="the time for the next")  # noqa: B023
    until(spm, "api", "stopped", within=5.0 * PACE)


# -- sessions


@pytest.mark.slow
def test_a_wait_that_goes_on_is_use(spm: Spm) -> None:
    words = ("--idle-timeout", "2s", "--ready", "exec:test -e go", "--wait", "3s")
    assert "alive and left running" in spm("start", "api", "sleep 100", *words, code=124).stderr
    assert "idle for 2." in until(spm, "api", "stopped")  # and no longer than that


def test_a_notice_is_readiness_where_nothing_else_is_declared(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    assert "notify api ready" in spm("wait-healthy", "api", "100ms", code=124).stderr
    wait = spm.popen("wait-healthy", "api", "20")
    spm("notify", "api", "ready", "--message", "warm")
    stdout, _ = wait.communicate(timeout=20)
    assert wait.returncode == 0 and "[OK] api is ready after" in stdout and "warm" in stdout
    assert spm("wait-healthy", "api", "5").returncode == 0
    spm("stop", "api")


def test_the_owner_of_a_session_is_found_above_shells_and_runners(spm: Spm) -> None:
    spm.forks = False
    start = spm.argv("start", "api", "sleep 100", "--lease", "session", "--json")
    line = f"timeout 30 sh -c {shlex.quote(shlex.join(start) + '; true')}; true"
    done = subprocess.run(
        ["sh", "-c", line], cwd=spm.cwd, env=spm.env, capture_output=True, timeout=30
    )
    owner = json.loads(done.stdout)["owner"]
    assert owner["pid"] == os.getpid(), "the tests aren't a shell: the session is theirs"
    again = spm("start", "api", "sleep 100", "--lease", "session")
    assert f"lease: as long as pid {os.getpid()} ({owner['name']}) lives" in again.stdout
    assert not again.stderr
    spm("stop", "api")


def test_the_end_of_a_session_ends_what_it_owns(spm: Spm) -> None:
    agent = "import subprocess, sys; subprocess.run(sys.argv[1:], check=True); input()"
    start = spm.argv("start", "api", "sleep 100", "--lease", "session")
    session = subprocess.Popen(
        [sys.executable, "-c", agent, *start],
        cwd=spm.cwd,
        env={**spm.env, "SPM_HOME": str(spm.home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    eventually(lambda: (spm.home / "state.json").exists() and spm.json("list")["services"])
    assert status(spm, "api")["owner"] == {
        "pid": session.pid,
        "name": psutil.Process(session.pid).name(),
    }
    assert "--lease: another session's" in spm("start", "api", "--lease", "session").stderr
    session.kill()
    session.communicate()
    until(spm, "api", "stopped", 2.0)


def test_a_stop_of_what_just_ends_by_itself_takes_no_longer_than_it_was_given(spm: Spm) -> None:
    # it took nine seconds, then killed the supervisor, and with it went how the service ended
    ignores = "trap '' TERM; while :; do sleep 0.05; done"
    spm("start", "api", "--lease", "300ms", "--shell", ignores)
    until(spm, "api", "stopping")
    began = time.monotonic()
    assert "killed by SIGKILL" in spm("stop", "api", "--timeout", "200ms").stdout
    assert time.monotonic() - began < 6 * PACE
    assert spm.service("api")["why"].startswith("its lease of 300ms is over")


def test_cleanup_of_a_session_ends_what_it_owns_and_nothing_else(
    spm: Spm, helper: Callable[[], Helper]
) -> None:
    owner = helper()
    spm.forks = False
    spm("start", "mine", "sleep 100", "--lease", "session")
    spm("start", "mine2", "sleep 100", "--lease", "session")
    spm("start", "forever", "sleep 100")
    spm("start", "theirs", "sleep 100", "--lease", owner.pid)
    spm("cleanup", "--session", "--purge", code=2)
    done = spm("cleanup", "--session")
    assert f"[OK] 2 services of the session of pid {os.getpid()} (" in done.stdout
    assert {one["name"] for one in spm.json("list")["services"]} == {"forever", "theirs"}
    assert {one["status"] for one in spm.json("list")["services"]} == {"running"}
    assert spm.json("cleanup", "--session")["services"] == []
    spm("cleanup")


def test_cleanup_of_a_session_forgets_what_is_lost_too(
    spm: Spm, helper: Callable[[], Helper]
) -> None:
    # it failed at each end of a session, and forgot nothing of the others either
    spm.forks = False
    spm("start", "api", "sleep 100", "--lease", "session")
    state, look = spm.state(), program.stat_of(helper().pid)
    assert look
    ghost = {**state["services"]["api"], "name": "ghost", "instance": "ff" * 16}
    ghost.update(main=look.identity._asdict(), supervisor=None)
    state["services"]["ghost"] = ghost
    (spm.home / "state.json").write_text(json.dumps(state))
    done = spm("cleanup", "--session")
    assert f"[WARN] ghost: pid {look.identity.pid} " in done.stderr
    assert done.stdout.endswith("; 2 forgotten\n") and spm.state()["services"] == {}
    assert is_running(look.identity.pid)


def test_two_cleanups_of_a_session_at_once_both_succeed(spm: Spm) -> None:
    spm.forks = False
    spm("start", "api", "sleep 100", "--lease", "session")
    spm("stop", "api")
    path = spm.home / "services" / "api" / "lock"
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        late = spm.popen("cleanup", "--session")
        files = psutil.Process(late.pid).open_files
        eventually(lambda: str(path) in [one.path for one in files()], what="its wait")
        (spm.home / "state.json").write_text('{"schema": 1, "services": {}}')
    out, err = late.communicate(timeout=10)
    assert late.returncode == 0 and not err and out.endswith("; 0 forgotten\n"), err


@pytest.mark.parametrize("words", [("notify", "api", "alive"), ("touch", "api")])
def test_a_heartbeat_to_a_supervisor_that_is_stopped_says_how_it_goes_on(
    spm: Spm, words: tuple[str, ...]
) -> None:
    spm("start", "api", "sleep 100")
    guard = spm.supervisor("api")
    os.kill(guard, signal.SIGSTOP)
    try:
        eventually(lambda: psutil.Process(guard).status() == "stopped", what="it to stand still")
        told = f"its supervisor is stopped (SIGSTOP)\n  → kill -CONT {guard} has it go on\n"
        assert spm(*words, code=1).stderr == f"[ERROR] api: {told}"
    finally:
        os.kill(guard, signal.SIGCONT)
    spm("stop", "api")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="makes a namespace")
def test_who_is_pid_1_of_a_container_may_own_a_service(spm: Spm) -> None:
    def inside(*words: str) -> subprocess.CompletedProcess[str]:
        apart = ["unshare", "-fp", "--mount-proc", *words]
        env = {**spm.env, "SPM_HOME": str(spm.home)}
        return subprocess.run(apart, cwd=spm.cwd, env=env, capture_output=True, text=True)

    if inside("true").returncode:
        pytest.skip("makes a namespace")
    api = ("--ready", "log:up", "--shell", "echo up; exec sleep 100")
    run = inside(*spm.argv("run", "api", *api, "--", "true"))
    assert run.returncode == 0 and "stopped: api" in run.stderr, run.stderr
    assert not [*spm.home.glob("state.json.corrupt*")]
    start = shlex.join(spm.argv("start", "api", "sleep 100", "--lease", "1"))
    stop = shlex.join(spm.argv("stop", "api"))
    told = inside("sh", "-c", f"{start} && {stop}; exit $?")
    assert "as long as pid 1 (sh) lives" in told.stdout and "api stopped" in told.stdout, told
    start = shlex.join(spm.argv("start", "api", "sleep 100", "--lease", "session"))
    end = shlex.join(spm.argv("cleanup", "--session"))
    told = inside("sh", "-c", f"{start} && {end}; exit $?")
    assert "[OK] 1 service of the session of pid 1; 1 forgotten" in told.stdout, told
    # nor does who asks for it again take it away from pid 1
    again = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"]
    again += spm.argv("start", "api", "sleep 100")
    shown = shlex.join(spm.argv("status", "api", "--json"))
    told = inside("sh", "-c", f"{start} && {shlex.join(again)} && {shown} && {end}; exit $?")
    assert '"lease": "session", "owner": null' in told.stdout, told
    if GENERIC:
        return  # macOS has no namespaces that could be told apart
    # another container's pid 1 is somebody else
    inner = f"{start} && touch up; until test -e over; do sleep 0.01; done; exec {end}"
    apart = ["unshare", "-fp", "--mount-proc", "sh", "-c", inner]
    other = subprocess.Popen(apart, cwd=spm.cwd, env=spm.env, stdout=subprocess.PIPE)
    eventually((spm.cwd / "up").exists, what="the other one's service")
    told = inside("sh", "-c", f"{end}; exit $?")
    (spm.cwd / "over").touch()
    assert (
        b"[OK] 1 service of the session of pid 1; 1 forgotten" in other.communicate(timeout=10)[0]
    )
    assert told.returncode == 0 and "[OK] 0 services of" in told.stdout, told


# -- notify


def events_of(spm: Spm, name: str) -> list[tuple[str, str]]:
    path = spm.home / "services" / name / "events.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [(one["event"], one["why"]) for one in map(json.loads, lines)]


def test_a_service_tells_of_itself_from_inside(spm: Spm) -> None:
    tell = shlex.join([sys.executable, str(SCRIPT), "notify", "ready", "--message", "warm now"])
    del spm.env["SPM_HOME"]
    spm("--home", spm.home, "start", "api", "--shell", f"{tell} && exec sleep 100")
    eventually(lambda: ("ready", "warm now") in events_of(spm, "api"), what="the notice")
    spm.env["SPM_HOME"] = str(spm.home)
    eventually(lambda: spm.service("api")["status"] == "ready")  # the journal is written first
    told = spm("notify", "api", "stopped", "--message", "the window was closed").stdout
    assert "it is ready, as its process" in told, "who lives hasn't stopped"
    assert events_of(spm, "api")[-1] == ("notice", "it says stopped: the window was closed")
    answer = {"name": "api", "state": "alive", "message": "", "status": "ready"}
    assert spm.json("notify", "api", "alive") == {"ok": True, **answer}
    spm("stop", "api")


def test_a_notice_is_not_readiness_where_checks_decide(spm: Spm) -> None:
    spm("start", "api", "sleep 100", "--ready", "log:never")
    assert "ready noted; it is running, as" in spm("notify", "api", "ready").stdout
    assert events_of(spm, "api")[-1] == ("notice", "it says ready")
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")


def test_an_earlier_instance_is_not_heard(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    spm.env.update(SPM_SERVICE="api", SPM_INSTANCE=spm.record("api")["instance"])
    spm("notify", "alive")
    spm.env["SPM_INSTANCE"] = "0" * 32
    assert "of an earlier instance of api" in spm("notify", "alive", code=8).stderr
    del spm.env["SPM_INSTANCE"], spm.env["SPM_SERVICE"]
    assert "whose notice is it?" in spm("notify", "alive", code=2).stderr
    told = spm("notify", "api", "dancing", code=2).stderr
    assert "'dancing' isn't one of ready, alive, stopped\n  → " in told
    spm("notify", "apu", "alive", code=3)
    spm("stop", "api")
    spm("notify", "api", "alive", code=3)


def test_a_stop_signal_to_the_supervisor_still_works_with_a_lease(
    spm: Spm, helper: Callable[[], Helper]
) -> None:
    spm("start", "api", "sleep 100", "--lease", helper().pid)
    os.kill(spm.supervisor("api"), signal.SIGTERM)
    assert until(spm, "api", "stopped") == "its supervisor got SIGTERM"


def test_a_service_that_was_taken_back_had_to_say_again_that_it_is_ready(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    spm("notify", "api", "ready", "--message", "warm")
    spm.kill_supervisor("api")
    assert "taken back" in spm("start", "api").stdout
    assert spm.service("api")["status"] == "ready"
    spm("wait-healthy", "api", "1s")
    spm("stop", "api")
