"""One truth: concurrency, kills and damaged state lose no service and touch no stranger."""

from __future__ import annotations

import contextlib
import json
import os
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
from conftest import GENERIC, SCRIPT, THOROUGH, Spm, cmdline, end, eventually, is_running, nasty

import simple_process_manager as program


def test_twenty_starts_of_one_name_make_one_process(spm: Spm) -> None:
    commands = [spm.popen("start", "api", "sleep 100") for _ in range(20)]
    answers = [command.communicate(timeout=60) for command in commands]
    assert [command.returncode for command in commands] == [0] * 20, answers
    assert sum("started" in stdout for stdout, _ in answers) == 1
    assert sum("already running" in stdout for stdout, _ in answers) == 19
    sleepers = [p for p in spm.bearers() if p.cmdline() == ["sleep", "100"]]
    assert len(sleepers) == 1 and len(spm.bearers()) == 2
    spm("stop", "api")


def test_who_asks_whether_a_supervisor_lives_doesnt_seem_to_be_one(spm: Spm) -> None:
    spm("start", "api", "true")
    eventually(lambda: spm.service("api")["status"] == "exited", 10)
    ask = (
        f"import sys; sys.path[0] = {str(SCRIPT.parent)!r}; import simple_process_manager as spm; "
    )
    ask += f"store = spm.Store({str(spm.home)!r}); "
    ask += "print(sum(store.is_supervised('api') for _ in range(3000)))"
    argv = [sys.executable, "-c", ask]
    asking = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [one.communicate(timeout=60)[0] for one in asking] == ["0\n", "0\n"]


def test_what_killed_writes_left_is_removed_by_a_cleanup(spm: Spm) -> None:
    spm("start", "api", "sleep 60")
    (spm.home / "versions").mkdir(mode=0o700)
    kept = ["state.json", "services/api/env.json"]
    left = ["state.json.12.tmp", "lock.up.by.12.tmp", "versions/0003-1712345678901.json.12.tmp"]
    left += ["services/api/env.json.12.tmp", "services/api/output.log.1.12.tmp"]
    for name in left:
        (spm.home / name).touch()
        os.utime(spm.home / name, (1e9, 1e9))
    spm("cleanup", "--keep")
    assert [name for name in left if (spm.home / name).exists()] == []
    assert all((spm.home / name).exists() for name in kept)


def test_thirty_starts_of_different_names_make_thirty_records(spm: Spm) -> None:
    commands = [spm.popen("start", f"s{n}", "sleep 100") for n in range(30)]
    for command in commands:
        command.communicate(timeout=60)
        assert command.returncode == 0
    rows = spm.json("list")["services"]
    assert len(rows) == 30 and {row["status"] for row in rows} == {"running"}
    assert "30 services stopped" in spm("cleanup").stdout


def test_starts_and_stops_at_once_end_in_one_of_both(spm: Spm) -> None:
    for _ in range(5):
        commands = [spm.popen("start", "api", "sleep 100"), spm.popen("stop", "api")]
        commands += [spm.popen("restart", "api"), spm.popen("start", "api", "sleep 100")]
        for command in commands:
            command.communicate(timeout=60)
            assert command.returncode in (0, 3), "3: it wasn't known yet"
        assert len(spm.bearers()) in (0, 2)
        assert len(spm.bearers()) == 2 * (spm.service("api")["status"] == "running")
    spm("cleanup")


@pytest.mark.parametrize("command", ["start", "stop"])
def test_a_command_killed_at_any_moment_loses_nothing(spm: Spm, command: str) -> None:
    for delay in range(0, 150, 3 if THOROUGH else 15):
        if command == "stop":
            spm("start", "api", nasty("--child"))
        words = ("start", "api", "sleep 100") if command == "start" else ("stop", "api")
        one = spm.popen(*words)
        time.sleep(delay / 1000)
        one.kill()
        one.communicate()

        def is_settled() -> bool:
            rows = spm.json("list")["services"]
            status = rows[0]["status"] if rows else "unknown"
            return len(spm.bearers()) == {"running": 2}.get(status, 0)

        eventually(is_settled if command == "start" else lambda: known(spm), what="one truth")
        spm("cleanup")
        assert not spm.bearers()


def known(spm: Spm) -> bool:
    """Whether every process of ours that lives is in the tree of a service, or its supervisor."""
    rows = spm.json("list")["services"]
    pids = set()
    for row in rows:
        status = json.loads(spm("status", row["name"], "--json", code=None).stdout)
        pids |= {one["pid"] for one in status.get("tree", [])} | {status.get("supervisor")}
    return {process.pid for process in spm.bearers()} <= pids


@pytest.mark.smoke
def test_a_killed_supervisor_costs_the_exit_code_never_the_service(spm: Spm) -> None:
    spm("start", "api", nasty("--say", "hello"))
    pid = spm.service("api")["pid"]
    spm.kill_supervisor("api")
    assert is_running(pid)
    listed = spm("list")
    assert "running" in listed.stdout and "its supervisor is gone" in listed.stderr
    assert spm.service("api")["supervised"] is False
    assert "start api (takes it back)" in spm.json("explain", "api")["next"]
    adopted = spm("start", "api", nasty("--say", "hello"))
    assert "taken back" in adopted.stdout
    row = spm.service("api")
    assert (row["pid"], row["supervised"], row["status"]) == (pid, True, "running")
    assert spm("list").stderr == ""
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: spm.service("api")["status"] == "exited", what="its end to be noticed")
    assert "exit code not known" in spm.service("api")["why"]


def test_stop_and_restart_work_without_the_supervisor(spm: Spm) -> None:
    for command in ("stop", "restart"):
        spm("start", "api", nasty("--child"))
        pid = spm.service("api")["pid"]
        spm.kill_supervisor("api")
        spm(command, "api")
        assert not is_running(pid)
        spm("stop", "api")
        assert spm.service("api")["status"] == "stopped" and not spm.bearers()


def test_a_service_that_dies_with_its_supervisor_is_not_called_running(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    pid = spm.service("api")["pid"]
    spm.kill_supervisor("api")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(pid), what="its end")
    row = spm.service("api")
    assert row["status"] == "exited" and "not seen" in row["why"]
    spm("status", "api", code=3)
    spm("start", "api", "sleep 100")
    spm("stop", "api")


def test_a_hanging_supervisor_is_put_aside(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    pid, supervisor = spm.service("api")["pid"], spm.supervisor("api")
    os.kill(supervisor, signal.SIGSTOP)
    began = time.monotonic()
    spm("stop", "api")
    assert time.monotonic() - began < 15
    assert not is_running(pid) and not is_running(supervisor)


Damage = Callable[[Path], object]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Damage] = {
    "truncated": truncate,
    "garbage": lambda path: path.write_bytes(b"\xff\x00garbage"),
    "empty": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
    "a list": lambda path: path.write_text("[1, 2]"),
    "one bad field": lambda path: path.write_text(path.read_text().replace('"phase"', '"phrase"')),
    "deeply nested": lambda path: path.write_text("[" * 100_000),
    "another's name": lambda path: path.write_text(path.read_text().replace('"api"', '"../x"')),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("supervised", [True, False])
def test_damaged_state_loses_no_service(spm: Spm, damage: str, supervised: bool) -> None:
    spm("start", "api", nasty("--say", "x"), "--env", "A=1")
    spm("start", "other", "sleep 100")
    spm("stop", "other")
    before = {name: spm.service(name)["pid"] for name in ("api", "other")}
    if not supervised:
        spm.kill_supervisor("api")
    DAMAGES[damage](spm.home / "state.json")
    listed = spm("list")
    told = "state.json was missing" if damage == "deleted" else "state.json was damaged"
    assert listed.stderr.count(told) == 1
    after = {name: spm.service(name)["pid"] for name in ("api", "other")}
    assert after == before
    assert [spm.service(name)["status"] for name in ("api", "other")] == ["running", "stopped"]
    aside = list(spm.home.glob("state.json.corrupt-*"))
    assert len(aside) == (damage != "deleted"), "nothing is overwritten"
    spm("stop", "api")
    assert not is_running(before["api"] or 0)
    assert "damaged" not in spm("list").stderr


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("way", [("stop", "api"), ("stop", "api", "--force"), ("cleanup",)])
def test_who_is_stopped_after_the_home_was_removed_is_not_restarted(
    spm: Spm, bare: bool, way: tuple[str, ...]
) -> None:
    # as `git clean -fdx` does: the supervisor lives, but nobody can talk to it; without a cookie
    # (nginx, redis write over theirs) only it says whose its child is
    words = ["env", "-i"] * bare + ["sleep", "100"]
    spm("start", "api", "--restart", "always", "--backoff", "10ms", "--", *words)
    pid, guard = spm.service("api")["pid"], spm.supervisor("api")
    eventually(lambda: psutil.Process(pid).name() == "sleep", what="exec")
    spm.forget_home()
    row = spm.service("api")
    assert (row["pid"], row["status"]) == (pid, "running")
    assert "api stopped in" in spm(*way).stdout
    assert not is_running(pid) and not is_running(guard) and not spm.bearers()


def test_a_guest_of_a_supervisor_is_not_its_service(spm: Spm) -> None:
    # it adopts the supervisors that its service has had started, and one was taken for the service
    line = f"{shlex.join(spm.argv('start', 'db', 'sleep 100'))}; exec env -i sleep 101"
    spm("start", "app", "--restart", "always", "--backoff", "10ms", "--shell", line)

    def sleeps() -> bool:
        pid = spm.service("app")["pid"]
        return cmdline(pid or 0) == ["sleep", "101"]

    eventually(sleeps, what="exec")
    former, db = spm.service("app")["pid"], spm.service("db")["pid"]
    os.kill(former, signal.SIGKILL)
    eventually(lambda: spm.service("app")["pid"] not in (None, former) and sleeps(), what="anew")
    app = spm.service("app")["pid"]
    spm.forget_home()
    assert (spm.service("app")["pid"], spm.service("db")["pid"]) == (app, db)
    spm("stop", "app")
    assert not is_running(app) and is_running(db)
    spm("cleanup")


def test_an_odd_cookie_of_a_supervisor_makes_no_service(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    odd = {**spm.env, "SPM_SUPERVISOR": "abc", "SPM_SERVICE": "../../evil"}
    with subprocess.Popen(["sh", "-c", "sleep 100; :"], env=odd, start_new_session=True) as one:
        try:
            (spm.home / "state.json").unlink()
            assert [row["name"] for row in spm.json("list")["services"]] == ["api"]
            assert "damaged" not in spm("list").stderr
        finally:
            os.killpg(one.pid, signal.SIGKILL)
    spm("stop", "api")


EDITS: dict[str, Callable[[str], str]] = {  # valid, though not as we write it
    "two in a line": lambda text: text.replace(',\n"', ', "'),
    "a blank at the end": lambda text: text.replace(',\n"', ', \n"'),
    "a blank before the colon": lambda text: text.replace('"b": {', '"b" : {'),
    "an escape": lambda text: text.replace('"b": {', '"\\u0062": {'),
    "a byte order mark": lambda text: f"\ufeff{text}",
    "indented": lambda text: json.dumps(json.loads(text), indent=2),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_state_that_was_edited_by_hand_is_read_and_kept(spm: Spm, edit: str) -> None:
    for name in ("a", "b", "c"):
        spm("start", name, "--shell", "test -e go || exec sleep 100")
        spm("stop", name)
    path = spm.home / "state.json"
    path.write_text(EDITS[edit](path.read_text("utf-8")), encoding="utf-8")
    (spm.cwd / "go").touch()
    spm("start", "a")  # its supervisor writes, too
    eventually(lambda: spm.service("a")["status"] == "exited", what="its end")
    path.write_text(EDITS[edit](path.read_text("utf-8")), encoding="utf-8")
    shown = spm("list")
    assert "damaged" not in shown.stderr and not [*spm.home.glob("*corrupt*")]
    assert [row["name"] for row in spm.json("list")["services"]] == ["a", "b", "c"]


def test_a_damaged_line_is_not_written_over(spm: Spm) -> None:
    for name in ("a", "b", "c"):
        spm("start", name, "true")
        eventually(lambda: spm.service(name)["status"] == "exited", what="its end")  # noqa: B023
    text = (spm.home / "state.json").read_text("utf-8")
    at, to = text.index('"a": ') + 40, text.index('"c": ') + 40
    (spm.home / "state.json").write_text(text[:at] + "\0" * (to - at) + text[to:])
    store = program.Store(str(spm.home))
    store.save({"a": store.journal_record("a")})
    assert "was damaged" in store.notes[0] and [*spm.home.glob("*corrupt*")]
    assert [row["name"] for row in spm.json("list")["services"]] == ["a", "b", "c"]


def remove(directory: Path) -> None:
    """Remove it, though a supervisor may just be beginning to write there."""

    def is_removed() -> bool:
        shutil.rmtree(directory, ignore_errors=True)
        return not directory.exists()

    eventually(is_removed, what="its removal")


def test_a_removed_project_does_not_come_back(spm: Spm) -> None:
    # its supervisor made the directories anew, without a .gitignore: git add took the values along
    project = spm.cwd / "above" / "project"
    project.mkdir(parents=True)
    spm.home = project / ".spm"
    spm.env["SPM_HOME"] = str(spm.home)
    spm("start", "job", "--shell", "until test -e go; do sleep 0.02; done")
    supervisor, above = spm.supervisor("job"), spm.cwd / "above"
    remove(above)
    (spm.cwd / "go").touch()
    eventually(lambda: not is_running(supervisor), 10, what="its supervisor's end")
    assert not above.exists()


def test_a_state_directory_is_ignored_by_git_again_at_the_next_start(spm: Spm) -> None:
    spm("start", "api", "true")
    (spm.home / ".gitignore").unlink()
    spm("start", "api", "true", "--env", "TOKEN=secret")
    assert (spm.home / ".gitignore").read_text() == "*\n"


def rename_home(spm: Spm) -> None:
    spm.home = spm.home.rename(spm.base / "renamed")
    spm.env["SPM_HOME"] = str(spm.home)


@pytest.mark.skipif(sys.platform == "win32", reason="no directory with open files is renamed")
def test_an_end_after_the_home_was_renamed_was_not_seen(spm: Spm) -> None:
    # its supervisor lived and saw it, but had written it to where the home was before
    rounds = "until test -e go; do sleep 0.02; done; echo last words; exit 7"
    spm("start", "one", "--shell", rounds)
    former = spm.home
    rename_home(spm)
    (spm.cwd / "go").touch()
    eventually(lambda: spm.service("one")["status"] == "failed", what="its end")
    assert spm.record("one")["exit"]["code"] == 7
    told = [(row["event"], row["why"]) for row in spm.json("events", "one")["events"]]
    assert ("moved", f"{former} was renamed: it is {spm.home}") in told
    assert "corrected" not in dict(told) and not former.exists()
    assert [one["log_tail"] for one in spm.json("explain", "one")["exits"]] == [["last words"]]


@pytest.mark.skipif(sys.platform == "win32", reason="no directory with open files is renamed")
def test_a_home_made_anew_where_one_was_renamed_took_what_its_supervisors_wrote(spm: Spm) -> None:
    # and what runs in the renamed one was said to run for the new one
    spm("start", "one", "--shell", "until test -e go; do sleep 0.02; done; exit 7")
    spm("start", "two", "sleep 100")
    former = spm.home
    rename_home(spm)
    spm("start", "three", "true", "--home", former)
    assert [spm.service(name)["status"] for name in ("one", "two")] == ["running", "running"]
    (former / "services" / "one").mkdir(exist_ok=True, parents=True)
    (spm.cwd / "go").touch()
    eventually(lambda: spm.service("one")["status"] == "failed", what="its end")
    assert spm.record("one")["exit"]["code"] == 7
    assert "corrected" not in spm("events", "one").stdout
    assert "exit code 7" not in (former / "state.json").read_text()
    assert "two stopped" in spm("stop", "two").stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no directory with open files is renamed")
def test_an_end_after_the_home_was_renamed_and_its_place_was_closed_was_not_seen(spm: Spm) -> None:
    # by another user's home, or by a file
    spm("start", "one", "--shell", "until test -e go; do sleep 0.02; done; exit 7")
    former = spm.home
    rename_home(spm)
    former.touch()
    (spm.cwd / "go").touch()
    eventually(lambda: spm.service("one")["status"] == "failed", what="its end")
    assert spm.record("one")["exit"]["code"] == 7


@pytest.mark.skipif(sys.platform == "win32", reason="no directory with open files is renamed")
def test_a_supervisor_whose_home_was_renamed_cut_off_the_one_that_was_made_in_its_place(
    spm: Spm,
) -> None:
    # when it left it removed the socket of the service of that name
    spm("start", "one", "--shell", "until test -e go; do sleep 0.02; done & exit 0")
    eventually(lambda: spm.record("one")["phase"] == "exited", what="the end of its main process")
    socket_of_other = spm.home / "services" / "one" / "control.sock"
    guard, at = spm.supervisor("one"), spm.record("one")["started_at"] + 0.9
    eventually(lambda: time.time() > at, what="the third look at its log: there is a pause by now")
    rename_home(spm)
    socket_of_other.parent.mkdir(parents=True)
    socket_of_other.touch()
    (spm.cwd / "go").touch()
    eventually(lambda: not is_running(guard), what="the end of its supervisor")
    assert socket_of_other.exists()
    assert not (spm.home / "services" / "one" / "control.sock").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no directory with open files is renamed")
def test_a_home_made_anew_listed_and_ended_the_services_of_the_renamed_one(
    spm: Spm, port: int
) -> None:
    spm("start", "one", nasty("--port", port), "--port", port, "--wait")
    spm("start", "two", "sleep 100")
    spm.kill_supervisor("two")
    former = spm.home
    rename_home(spm)
    assert spm.json("list", "--home", former)["services"] == [] and not former.exists()
    spm("start", "three", "true", "--home", former)
    (former / "state.json").unlink()
    assert [row["name"] for row in spm.json("list", "--home", former)["services"]] == ["three"]
    told = spm("start", "four", "sleep 100", "--port", port, "--home", former, code=5).stderr
    assert f"stop one --home {spm.home}," in told
    assert "one" not in spm("cleanup", "--home", former).stdout
    assert [spm.service(name)["status"] for name in ("one", "two")] == ["running", "running"]
    spm("cleanup")


@pytest.mark.skipif(sys.platform == "win32", reason="no directory with open files is renamed")
def test_a_rotation_after_the_home_was_renamed_destroyed_the_log(spm: Spm) -> None:
    # the older file was written to where the home was before, then the log was emptied all the same
    rounds = "until test -e go; do sleep 0.02; done; seq 1 3000; exec sleep 100"
    spm("start", "web", "--shell", rounds, "--log-size", "10kB")
    rename_home(spm)
    (spm.cwd / "go").touch()
    older = spm.home / "services" / "web" / "output.log.1"
    eventually(older.exists, 10, what="the older file")
    kept = older, older.parent / "output.log"  # the one is made, filled, then the other emptied

    def is_whole() -> bool:
        return "".join(path.read_text() for path in kept).endswith("3000\n")

    eventually(is_whole, what="the end of the rotation")
    spm("cleanup")


def test_a_service_of_a_project_that_was_moved_is_stopped_in_its_new_place(spm: Spm) -> None:
    there = spm.cwd / "there"
    there.mkdir()
    spm("start", "api", "sleep 100", "--home", there / ".spm")
    moved = there.rename(spm.cwd / "moved")
    assert "api stopped" in spm("stop", "api", "--home", moved / ".spm").stdout
    (row,) = spm.json("list", "--home", moved / ".spm")["services"]
    assert row["status"] == "stopped" and not there.exists()


def test_a_file_in_place_of_the_services_is_told_at_once(spm: Spm) -> None:
    spm("start", "api", "true")
    eventually(lambda: not spm.bearers(), what="its supervisor's end")
    shutil.rmtree(spm.home / "services")
    (spm.home / "services").touch()
    began = time.monotonic()
    assert "services" in spm("start", "web", "sleep 100", code=9).stderr
    assert time.monotonic() - began < 5


@pytest.mark.skipif(GENERIC, reason="only Linux has namespaces of processes")
def test_what_runs_in_another_container_is_left_alone(spm: Spm) -> None:
    # they share the directory, so its supervisor could be asked: a start ended the other's service
    apart = ["unshare", "-fp", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], stderr=-3).returncode:
        pytest.skip("makes a namespace")
    spm("start", "api", "sleep 100")
    before = spm.service("api")
    env = {**spm.env, "SPM_HOME": str(spm.home)}
    for words in (["start", "api"], ["restart", "api"], ["stop", "api"], ["cleanup"]):
        argv = [*apart, *spm.argv(*words)]
        told = subprocess.run(argv, cwd=spm.cwd, env=env, capture_output=True, text=True)
        assert told.returncode == 8 and "api runs elsewhere: " in told.stderr, (words, told)
    assert spm.service("api")["pid"] == before["pid"]
    spm("stop", "api")


def test_a_command_inside_a_service_says_that_it_has_its_home_from_there(spm: Spm) -> None:
    # a cleanup in another project stopped what was above
    other = spm.base / "other"
    (other / ".git").mkdir(parents=True)
    spm("start", "inner", "true", "--home", other / ".spm")
    listing = shlex.join(spm.argv("list"))
    spm("start", "term", "--shell", f"{listing}; cd {other} && {listing}; exec sleep 100")
    eventually(lambda: spm.log("term").count("term ") >= 2, what="both lists")
    told = [line for line in spm.log("term").splitlines() if line.startswith("[WARN]")]
    assert told == [
        f"[WARN] this is {spm.home}, SPM_HOME of term above us: for {other}/.spm give --home"
    ]
    spm("cleanup")


def test_services_of_a_part_of_the_repository_with_its_own_home_were_told_by_nobody(
    spm: Spm,
) -> None:
    del spm.env["SPM_HOME"]
    front, elsewhere = spm.cwd / "frontend", spm.base / "other"
    for path in (spm.cwd, front, elsewhere):
        path.mkdir(exist_ok=True)
    for root in (spm.cwd, elsewhere):
        (root / ".git").mkdir()
    (front / "package.json").write_text("{}")
    spm("start", "web", nasty(), cwd=front)
    spm("start", "stranger", nasty(), cwd=elsewhere)
    told = "[INFO] other services of this repository run in {0}: {1} (list them: list --home {0})\n"
    line = told.format("frontend/.spm", "web")
    assert spm("list").stdout.endswith(line) and "stranger" not in spm("list").stdout
    assert spm("cleanup").stdout.endswith(f"there is no .spm\n{line}")
    spm("start", "api", nasty())
    assert line not in spm("list").stdout, "it was asked for what it has"
    assert spm("list", "--home", "frontend/.spm").stdout.count("web") == 1
    assert spm.json("cleanup")["other_homes"] == {str(front / ".spm"): ["web"]}
    spm("start", "api", nasty())
    spm("cleanup", cwd=front)
    told_below = spm("list", cwd=front).stdout
    assert told_below.endswith(told.format(spm.cwd / ".spm", "api")), "an empty home hides it"
    assert spm("cleanup").stdout.endswith("(--purge)\n")
    assert spm("cleanup", cwd=elsewhere).stdout.count("[INFO]") == 0


def test_who_calls_a_copy_from_elsewhere_is_told_where_its_project_has_its_services(
    spm: Spm,
) -> None:
    # after a `cd` it was "services here: none; start one", and a second one was started
    del spm.env["SPM_HOME"]
    copy, other = spm.cwd / "simple_process_manager.py", spm.base / "other"
    other.mkdir()
    shutil.copy(SCRIPT, copy)

    def call(*words: str) -> str:
        argv = [sys.executable, str(copy), *words]
        done = subprocess.run(argv, cwd=other, env=spm.env, capture_output=True, text=True)
        return done.stdout + done.stderr

    spm("start", "web", nasty())
    home = spm.cwd / ".spm"
    assert f"services of {spm.cwd} run in {home}: web (list them: list --home {home})" in call(
        "list"
    )
    assert f"→ it runs in another home: add --home {home}" in call("logs", "web")
    assert "not running" not in call("status", "web", "--home", str(home))
    (other / "spm.json").write_text('{"services": {}}')
    assert "no services in .spm; start what spm.json says: up" in call("list")
    spm("cleanup")


@pytest.mark.parametrize("recreated", [True, False])
def test_a_home_that_was_removed_is_found_again_by_the_cookies(spm: Spm, recreated: bool) -> None:
    spm("start", "api", nasty("--child"), "--cwd", "/")
    pid, supervisor = spm.service("api")["pid"], spm.supervisor("api")
    remove(spm.home)
    if recreated:
        spm.home.mkdir(mode=0o700)
    row = spm.service("api")
    assert (row["pid"], row["status"], row["supervised"]) == (pid, "running", False)
    assert row["command"] == nasty("--child")
    assert "api: what its supervisor listened in was removed: start api " in spm("list").stderr
    done = spm("cleanup")
    assert "api stopped" in done.stdout
    assert not is_running(pid)
    eventually(lambda: not is_running(supervisor), what="the end of the old supervisor")


@pytest.mark.skipif(sys.platform == "win32", reason="no open file is removed there")
def test_a_supervisor_whose_directory_was_removed_was_told_to_be_gone(spm: Spm) -> None:
    # it lives, but nobody can reach it any more
    spm("start", "api", "sleep 100")
    remove(spm.home / "services" / "api")
    row, supervisor = spm.service("api"), spm.supervisor("api")
    assert (row["status"], row["supervised"], is_running(supervisor)) == ("running", False, True)
    assert "api: what its supervisor listened in was removed: start api " in spm("list").stderr
    spm("start", "api", "sleep 100")
    assert spm.service("api")["supervised"]
    spm("cleanup")
    eventually(lambda: not is_running(supervisor), what="the end of the old supervisor")


def test_in_a_copy_of_a_home_nothing_is_stopped_and_cleanup_says_so(spm: Spm) -> None:
    for name in "abc":
        spm("start", name, "sleep 100")
    pids = [spm.service(name)["pid"] for name in "abc"]
    copied = spm.base / "copied"
    shutil.copytree(spm.home, copied, ignore=shutil.ignore_patterns("*.sock"))
    failed = spm.json("stop", "a", "b", "--dry-run", "--home", copied, code=8)
    assert failed["services"] == []
    assert [one["name"] for one in failed["errors"]] == ["a", "b"]
    done = spm("cleanup", "--home", copied)
    assert done.stderr.count("[WARN] ") == done.stderr.count("; nothing was signalled") == 3
    assert "[OK] 0 services stopped, nothing of " in done.stdout
    assert "; 3 services forgotten" in done.stdout
    assert all(map(is_running, pids))
    assert [row["pid"] for row in spm.json("list")["services"]] == pids
    spm("cleanup")


def test_cleanup_ends_what_only_a_cookie_tells_of(spm: Spm) -> None:
    for name in ("known", "lost"):
        spm("start", name, "sleep 100")
    pid = spm.service("lost")["pid"]
    os.kill(spm.supervisor("lost"), signal.SIGKILL)
    shutil.rmtree(spm.home / "services" / "lost")
    path = spm.home / "state.json"
    state = json.loads(path.read_text())
    del state["services"]["lost"]
    path.write_text(json.dumps(state))
    done = spm.json("cleanup")
    assert [one["name"] for one in done["services"]] == ["known", "lost"]
    assert sorted(done["forgotten"]) == ["known", "lost"]
    assert not is_running(pid)


def test_state_that_is_in_the_way_is_exit_9_and_one_clear_message(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    make_directory(spm.home / "state.json")
    for words in (["list"], ["stop", "api"], ["start", "x", "sleep 1"]):
        failed = spm(*words, code=9)
        assert "state.json" in failed.stderr and failed.stderr.count("\n") == 2
    (spm.home / "state.json").rmdir()
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_unreadable_state_is_exit_9_for_who_may_not_read_it(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    spm("stop", "api")
    spm.base.chmod(0o711)
    above = [Path(psutil.__file__), *Path(psutil.__file__).parents]
    if not all(path.stat().st_mode & 0o001 for path in above[1:]):
        pytest.skip("another user can't reach this virtual environment")
    refused = as_nobody(spm, "list")
    assert "exit 9" in refused and "belongs to another user" in refused and "--home" in refused
    os.chown(spm.home, 65534, 65534)
    (spm.home / "state.json").chmod(0)
    unreadable = as_nobody(spm, "list")
    assert "Traceback" not in unreadable, unreadable
    assert "exit 9" in unreadable and "Permission denied" in unreadable and "chmod" in unreadable
    os.chown(spm.home, 0, 0)
    assert spm.service("api")["status"] == "stopped"


def as_nobody(spm: Spm, *words: str) -> str:
    """What a command says to another user, who can't execute our interpreter: hence the fork."""
    program = (
        "import os, sys\n"
        "sys.path.insert(0, os.path.dirname(sys.argv[1]))\n"
        "import simple_process_manager as spm\n"
        "spm.run(sys.argv[2:])  # imports what it needs\n"
        "os.setgid(65534); os.setuid(65534); spm.my_user_id = os.geteuid()\n"
        "code = spm.run(sys.argv[2:])\n"
        "print('exit', code, file=sys.stderr)\n"
    )
    words = (sys.executable, "-c", program, str(SCRIPT), *words)
    done = subprocess.run(words, env=spm.env, cwd="/", capture_output=True, text=True, timeout=30)
    return done.stderr


def test_a_home_that_others_can_write_is_refused_with_the_remedy(spm: Spm) -> None:
    spm.forget_home()
    spm.home.mkdir(mode=0o777)
    spm.home.chmod(0o777)
    words: tuple[tuple[str, ...], ...] = (("list",), ("start", "x", "sleep 1"))
    for one in words:  # it holds no state: whose it is, nobody knows
        assert "chmod" not in spm(*one, code=9).stderr
    spm.home.chmod(0o700)
    spm("start", "x", "true")
    for mode in (0o777, 0o1777):
        spm.home.chmod(mode)
        told = [spm(*one, code=9).stderr for one in words]
        assert [f"run: chmod 700 {spm.home}" in one for one in told] == [mode == 0o777] * 2
    spm.home.chmod(0o700)
    spm("list")
    system = spm.base / "etc"
    system.mkdir()
    (system / "services").write_text("http 80/tcp")
    (system / "os-release").symlink_to("../usr/lib/os-release")
    for place in ("/tmp", "/dev/null", system):
        for one in words:
            said = spm("--home", place, *one, code=9).stderr
            assert "--home /tmp/x" in said
            assert not any(word in said for word in ("chmod", "chown", "remove"))


@pytest.fixture
def small_disk(spm: Spm) -> Iterator[Path]:
    """A tmpfs of 1 MB as the home's parent."""
    disk = spm.base / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    spm.home = disk / "home"
    spm.env["SPM_HOME"] = str(spm.home)
    yield disk
    with contextlib.suppress(AssertionError):  # a supervisor that has answered is about to leave
        eventually(lambda: not spm.bearers(), within=2)
    left = spm.bearers()
    end(left)
    eventually(lambda: not spm.bearers(), what="the end of what is left")
    subprocess.run(["umount", "-l", str(disk)], check=True)
    assert not left, left


def test_a_full_disk_loses_no_service_and_is_told(spm: Spm, small_disk: Path) -> None:
    spm("start", "api", "sleep 100")
    pid = spm.service("api")["pid"]
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    failed = spm("start", "other", "sleep 100", code=9)
    assert "No space left on device" in failed.stderr and "free some disk space" in failed.stderr
    for words in (["restart", "api"], ["start", "api", "sleep 101", "--replace"]):
        assert "running services go on" in spm(*words, code=9).stderr
    assert spm.json("restart", "api", code=9)["error"]["retryable"] is True
    assert spm.json("list", "--home", filler, code=9)["error"]["retryable"] is False
    assert spm.service("api")["pid"] == pid
    assert len(spm.bearers()) == 2, "nothing half-started"
    assert "api stays known" in spm("cleanup").stderr
    assert not is_running(pid)
    filler.unlink()
    eventually(lambda: spm.service("api")["status"] == "stopped", what="the record to be written")
    eventually(lambda: not spm.bearers(), what="the supervisor's end")
    spm("start", "other", "sleep 100")
    spm("cleanup")


def test_a_full_disk_does_not_keep_a_service_from_its_restart(spm: Spm, small_disk: Path) -> None:
    spm("start", "api", "sleep 100", "--restart", "always", "--backoff", "10ms")
    pid = spm.service("api")["pid"]
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(b"x" * 512):
            pass
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: spm.service("api")["pid"] not in (None, pid), what="another process")
    assert spm.service("api")["status"] == "running"
    filler.unlink()
    eventually(lambda: spm.record("api")["restarts"] == 1, what="the record to be written")
    spm("stop", "api")


def test_on_a_full_disk_list_and_explain_told_of_a_phase_that_was_over(
    spm: Spm, small_disk: Path
) -> None:
    flag = spm.cwd / "flag"
    check, often = f"exec:test -e {flag}", ("--health-interval", "50ms", "--health-retries", "1")
    spm("start", "api", "sleep 100", "--ready", check, "--health", check, *often)
    assert spm.service("api")["status"] == "running"
    with contextlib.suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as file:
        while file.write(b"x" * 512):
            pass
    flag.touch()
    eventually(lambda: spm.service("api")["status"] == "ready", what="it to be ready")
    assert spm.json("status", "api")["status"] == "ready"
    spm("wait-healthy", "api", "5")
    assert spm.record("api")["phase"] == "running", "nor is it known from state.json"
    flag.unlink()
    eventually(lambda: spm.service("api")["status"] == "unhealthy", what="it to be unhealthy")
    assert spm.json("explain", "api")["status"] == "unhealthy"
    (small_disk / "filler").unlink()
    eventually(lambda: spm.record("api")["phase"] == "unhealthy", what="that to be written")
    spm("stop", "api")


def test_a_service_that_fills_the_disk_with_its_log_is_told_that(
    spm: Spm, small_disk: Path
) -> None:
    # what it wrote of that was lost, so nothing said it: cause unknown, and list was silent
    spm("start", "noisy", "yes hello")
    eventually(lambda: spm.service("noisy")["status"] == "failed", what="its end")
    full = f"the disk of {spm.home} is full ("
    assert f"[WARN] {full}" in spm("list").stderr
    page = spm.json("explain", "noisy")
    assert page["cause"]["kind"] == "disk_full" and full in page["cause"]["message"], page
    assert "free some disk space" in page["cause"]["advice"]
    assert full in spm("logs", "noisy").stderr
    spm("cleanup", "--purge")
    assert "is full" not in spm("list").stderr


def test_what_was_started_with_the_last_room_on_a_disk_is_not_starting_for_ever(
    spm: Spm, small_disk: Path
) -> None:
    spm("start", "first", "true")  # the bytecode of the supervisor is there
    eventually(lambda: not spm.bearers(), what="its end")
    page, begun = os.sysconf("SC_PAGESIZE"), 0
    for pages in range(1, 12):
        filler = small_disk / "filler"
        free = shutil.disk_usage(small_disk).free
        filler.write_bytes(b"x" * (free - pages * page))
        if spm("start", "api", "sleep 100", code=None).returncode == 0:
            begun += 1
            one = spm.service("api")
            assert (one["status"], type(one["pid"])) == ("running", int), pages
        filler.unlink()
        spm("cleanup", "--purge", "--keep")
    assert begun


@pytest.mark.slow
@pytest.mark.parametrize("is_stopped", [True, False])
def test_a_purge_makes_room_on_a_disk_that_a_log_has_filled(
    spm: Spm, small_disk: Path, is_stopped: bool
) -> None:
    spm("start", "api", "--shell", "head -c 3000000 /dev/zero; sleep 100")
    # not 0: a temporary file of the supervisor's may have been there when the log met the end
    eventually(lambda: shutil.disk_usage(small_disk).free < 50_000, what="the full disk")
    if is_stopped:  # its supervisor waits for room to write that
        spm("stop", "api")
    assert "1 service forgotten; 1 log removed" in spm("cleanup", "--purge").stdout
    assert shutil.disk_usage(small_disk).free > 400_000


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this user that is nobody's service."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    assert process.poll() is None, "a stranger was signalled"
    process.kill()
    process.wait()


def identity_of(pid: int) -> dict[str, object]:
    """A forged identity, token and all."""
    import simple_process_manager

    look = simple_process_manager.stat_of(pid)
    assert look
    return {"pid": pid, "token": look.identity.token}


@pytest.mark.parametrize("supervised", [True, False])
@pytest.mark.parametrize("token", ["right", "wrong"])
def test_a_forged_record_that_names_a_stranger_is_refused(
    spm: Spm, stranger: subprocess.Popen[bytes], supervised: bool, token: str
) -> None:
    spm("start", "api", "sleep 100")
    pid = spm.service("api")["pid"]
    if not supervised:
        spm.kill_supervisor("api")
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not psutil.pid_exists(pid), what="its end")
    forge(spm, "api", stranger.pid, token)
    for words in (["stop", "api"], ["stop", "api", "--force"]):
        refused = spm(*words, code=8)
        assert str(stranger.pid) in refused.stderr and "nothing was signalled" in refused.stderr
        plan = spm.json("stop", "api", "--dry-run", code=0 if supervised else 8)
        assert str(stranger.pid) not in json.dumps(plan["services"])
        if supervised:
            forge(spm, "api", stranger.pid, token)
    if supervised:
        spm("stop", "api", code=8)
        spm("stop", "api")
        assert not is_running(pid)
    forge(spm, "api", stranger.pid, token)
    spm("restart", "api", code=None)
    spm("cleanup", code=None)
    spm("cleanup")


def test_cleanup_tells_of_a_record_that_names_a_stranger(
    spm: Spm, stranger: subprocess.Popen[bytes]
) -> None:
    spm("start", "api", "sleep 100")
    state = spm.state()
    ghost = {**state["services"]["api"], "name": "ghost", "instance": "ff" * 16, "supervisor": None}
    state["services"]["ghost"] = {**ghost, "main": identity_of(stranger.pid)}
    (spm.home / "state.json").write_text(json.dumps(state))
    done = spm("cleanup")
    assert (
        f"[WARN] ghost: pid {stranger.pid} " in done.stderr
        and "2 services forgotten" in done.stdout
    )
    assert stranger.poll() is None


def forge(spm: Spm, name: str, pid: int, token: str) -> None:
    """Have state.json say that another process is the service."""
    state = spm.state()
    record = state["services"][name]
    record["main"] = identity_of(pid)
    if token == "wrong":
        record["main"]["token"] = "12345@deadbeef"
    record["phase"], record["wanted"], record["exit"] = "running", "running", None
    (spm.home / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("place", "status"),
    [
        ({"boot": "0ld-b00t"}, "exited"),
        ({"host": "elsewhere"}, "lost"),
        ({"namespace": "pid:[42]"}, "lost"),
    ],
)
def test_state_from_elsewhere_is_recognised_and_nothing_of_it_signalled(
    spm: Spm, stranger: subprocess.Popen[bytes], place: dict[str, str], status: str
) -> None:
    spm("start", "api", "sleep 100")
    spm.json("stop", "api")
    forge(spm, "api", stranger.pid, "right")
    state = spm.state()
    state["services"]["api"]["place"].update(place)
    (spm.home / "state.json").write_text(json.dumps(state))
    row = spm.service("api")
    assert row["status"] == status
    assert row["why"].startswith("machine restarted" if status == "exited" else "recorded on host")
    spm("stop", "api", code=0 if status == "exited" else 8)
    spm("start", "api", "sleep 100")
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")


def test_a_host_that_has_got_another_name_still_has_its_services(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    state = spm.state()
    state["services"]["api"]["place"]["host"] = "MacBook-2.local"
    (spm.home / "state.json").write_text(json.dumps(state))
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")


def test_processes_with_an_empty_or_partial_cookie_match_nothing(
    spm: Spm, stranger: subprocess.Popen[bytes]
) -> None:
    spm("start", "api", "sleep 100")
    instance = spm.record("api")["instance"]
    environments = [
        {"SPM_INSTANCE": ""},
        {"SPM_INSTANCE": instance[:-1]},
        {"SPM_INSTANCE": "", "SPM_SERVICE": "api"},
        {"SPM_SERVICE": "api"},
    ]
    others = [subprocess.Popen(["sleep", "1000"], env=env) for env in environments]
    spm("cleanup")
    assert [other.poll() for other in others] == [None] * 4
    for other in others:
        other.kill()
        other.wait()


def test_a_supervisor_that_never_gets_its_order_goes_away(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    program = next(spm.home.glob("cache/*/simple_process_manager.pyc"))
    words = [sys.executable, "-S", "-E", str(program), "supervise", "x"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    code = program.read_bytes()
    assert b"supervise" in code and b"read_config" not in code, "it holds rooms it has no use for"
    spm("stop", "api")


def test_garbage_on_the_control_socket_disturbs_nobody(spm: Spm) -> None:
    import socket

    spm("start", "api", "sleep 100")
    path = spm.home / "services" / "api" / "control.sock"
    spm("touch", "api")  # by now it listens there
    silent = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    for one in silent:
        one.connect(str(path))
    for line in (b"garbage\n", b"{}\n", b"[1]\n", b'{"op": "nonsense"}\n', b"[" * 60000 + b"\n"):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(path))
            client.sendall(line)
            assert json.loads(client.makefile().readline())["error"]["kind"] == "usage"
    silent[0].sendall(b'{"op": "sta')
    assert spm.service("api")["status"] == "running"
    assert "touched" in spm("touch", "api").stdout
    for one in silent:
        one.close()
    assert os.stat(path).st_mode & 0o777 == 0o600
    spm("stop", "api")
    assert not path.exists()


def test_after_the_home_was_removed_a_restart_dropped_its_options_silently(
    spm: Spm, port: int
) -> None:
    spm("start", "api", "sleep 100", "--port", port, "--env", "MODE=test")
    spm.kill_supervisor("api")
    shutil.rmtree(spm.home)
    told = spm("list").stderr
    assert "state.json was missing: rebuilt from services/ and what runs" in told
    assert "; of api only command and directory are known: its options are lost" in told
    lost = "[WARN] api: its options were lost with its record (--port, --env, --ready …); "
    way = 'to have them again: start api "COMMAND" --replace, with them\n'
    assert lost + way in spm("restart", "api").stderr
    assert lost not in spm("restart", "api").stderr, "it is told once"
    spm("stop", "api")


def test_what_was_started_through_a_linked_directory_was_not_found_by_its_cookie(spm: Spm) -> None:
    (spm.base / "link").symlink_to(spm.home.parent)
    spm("start", "api", "sleep 100", "--home", spm.base / "link" / spm.home.name)
    spm.kill_supervisor("api")
    shutil.rmtree(spm.home)
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")
