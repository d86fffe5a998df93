"""What `up` applied is kept: compared, gone back to, and finished when `up` was killed."""

from __future__ import annotations

import copy
import json
import os
import pty
import shutil
import stat
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest
from conftest import Spm, eventually, free_port, nasty
from hypothesis import given, settings
from hypothesis import strategies as st
from test_up import FILES, PAGE, SERVER, config_of, documents, pids, running, worker, write

import simple_process_manager as spm_module

quick = settings(max_examples=60, deadline=None, database=None)


def versions(spm: Spm) -> list[dict[str, Any]]:
    """The history, oldest first."""
    found = spm.json("config", "history")["versions"]
    assert isinstance(found, list)
    return found[::-1]


def kept(spm: Spm, number: int = 0) -> dict[str, Any]:
    """A version's file, the newest one's."""
    paths = sorted((spm.home / "versions").glob("????.json"))
    document = json.loads(paths[number - 1].read_text())
    assert isinstance(document, dict)
    return document


@pytest.mark.skipif(not shutil.which("redis-server"), reason="redis-server isn't installed")
def test_five_real_services_are_edited_in_eight_ways_and_rolled_back(spm: Spm) -> None:
    (spm.cwd / "app.py").write_text(PAGE)
    uvicorn = [sys.executable, "-m", "uvicorn", "app:app", "--port", "{port}", "--no-access-log"]
    redis = {"command": "redis-server --port {port} --save ''", "port": free_port(), "ready": "tcp"}
    first: dict[str, Any] = {
        "redis": redis,
        "api": {"command": uvicorn, "port": "auto", "ready": "http", "depends_on": ["redis"]},
        "files": {
            "command": FILES,
            "port": "auto",
            "env": {"KEY": "s3cret", "USER_X": "${USER_X}"},
        },
        "echo": {"command": SERVER, "type": "stdio"},
        "worker": worker(depends_on=["api"], restart="always"),
    }
    spm.env["USER_X"] = "s3cr3t"
    write(spm, first)
    text = (spm.cwd / "spm.json").read_text().replace("{", "{ // as people write it\n", 1)
    (spm.cwd / "spm.json").write_text(text)
    spm("up", "--wait")
    began = pids(spm)
    assert [one["result"] for one in versions(spm)] == ["done"]
    assert spm.json("up")["version"] == 1
    assert len(versions(spm)) == 1, "nothing to do: no new version"
    path = spm.home / "versions" / "0001.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "s3cr3t" not in path.read_text(), "what ${NAME} stands for is never kept"

    then = copy.deepcopy(first)
    then["files"]["env"]["KEY"] = "s3cret2"  # 1
    then["worker"]["command"] = "sleep 300.2"  # 2
    then["redis"]["health_interval"] = "7s"  # 3
    then["worker"]["depends_on"] = {"api": "started"}  # 4
    then["api"]["environment"] = {"SPM_X": {"min_length": 3}}  # 5
    del then["echo"]  # 6
    then["new"] = worker("7")  # 7
    then["worker"]["idle_timeout"] = "1h"  # 8
    (spm.cwd / "new.json").write_text(json.dumps({"services": then}))
    felt = spm.json("config", "impact", "new.json")
    assert {key: sorted(felt[key]) for key in ("restart", "settings", "start", "stop")} == {
        "restart": ["files", "worker"],
        "settings": ["api", "redis"],
        "start": ["new"],
        "stop": ["echo"],
    }
    refused = spm.json("config", "import", "new.json", code=8)
    assert "--yes" in refused["error"]["advice"]
    assert (spm.cwd / "spm.json").read_text() == text
    told = spm("config", "import", "new.json", "--yes")
    assert "~ files.env.KEY: … → …" in told.stderr.replace('"', "")
    kept = next((spm.home / "versions").glob("0001-*.json"))
    assert kept.read_text() == text
    changes = spm.json("config", "diff")
    assert (changes["added"], changes["removed"]) == (["new"], ["echo"])
    assert {name: sorted(keys) for name, keys in changes["changed"].items()} == {
        "files": ["env.KEY"],
        "worker": ["command", "depends_on", "idle_timeout"],
        "redis": ["health_interval"],
        "api": ["environment"],
    }
    assert changes["changed"]["redis"]["health_interval"] == [10.0, 7.0]
    spm("up", "--wait")
    assert pids(spm)["api"] == began["api"]
    assert spm("config", "diff").stdout == "[OK] nothing differs\n"
    assert "+ new" in spm("config", "diff", "1", "2").stdout

    dry = spm.json("config", "rollback", "1", "--dry-run")
    assert {one["action"] for one in dry["plan"]} == {"stop", "start", "restart", "settings"}
    assert len(versions(spm)) == 2
    done = spm("config", "rollback", "1", "--wait")
    assert "stop new because removed" in done.stderr
    assert "back at version 1, as version 3" in done.stdout
    assert (spm.cwd / "spm.json").read_text() == text, "with its comments"
    after = pids(spm)
    assert after.keys() == began.keys()
    assert {name for name in after if after[name] == began[name]} == {"redis", "api"}
    assert spm("config", "diff").stdout == "[OK] nothing differs\n"
    assert {one["action"] for one in spm.json("up", "--dry-run")["plan"]} == {"keep"}
    assert [(one["of"], one["applied"]) for one in versions(spm)][1:] == [(None, False), (1, True)]
    shown = spm("config", "show").stdout
    assert '"KEY": "…"' in shown and '"USER_X": "${USER_X}"' in shown
    everything = [spm("config", *words).stdout for words in (["history"], ["show", "2"], ["diff"])]
    assert "s3cr" not in "".join(
        [*everything, told.stdout, told.stderr, shown, json.dumps(changes)]
    )
    spm("down")
    spm("cleanup")


def test_versions_go_along_with_a_project_that_is_copied(spm: Spm) -> None:
    del spm.env["SPM_HOME"]
    there = spm.cwd
    (there / ".git").touch()
    for number in (1, 2):
        write(spm, {"a": {"command": "true", "max_restarts": number}})
        spm("up")
    text = (there / "spm.json").read_text()
    spm.cwd = there.with_name("copy")
    shutil.copytree(there, spm.cwd, ignore=shutil.ignore_patterns("*.sock", "*.tmp"))
    assert [one["applied"] for one in versions(spm)] == [False, True]
    assert [*spm.json("config", "diff", "1")["changed"]["a"]] == ["max_restarts"]
    spm("config", "rollback", "1")
    assert (there / "spm.json").read_text() == text, "the other project's"
    assert '"max_restarts": 1' in (spm.cwd / "spm.json").read_text()
    assert spm("config", "diff").stdout == "[OK] nothing differs\n"


def test_an_export_can_be_imported_and_means_the_same(spm: Spm) -> None:
    spm.env["SPM_T"] = "s3cret"
    services = {
        "a": worker(
            "1",
            env={"A": "s3cret", "B": "${SPM_T}", "C": None, "D": "${SPM_D:-s3cret}"},
            lease="2h",
        ),
        "b": {
            "command": "echo ${SPM_T} | cat",
            "shell": True,
            "depends_on": ["a"],
            "disabled": True,
        },
    }
    write(spm, services)
    (spm.cwd / "sub").mkdir()
    told = spm("config", "export", "sub/all.json")
    assert "[WARN] sub/all.json has the values of A" in told.stderr
    assert stat.S_IMODE((spm.cwd / "sub" / "all.json").stat().st_mode) == 0o600
    exported = json.loads((spm.cwd / "sub" / "all.json").read_text())["services"]
    assert exported["a"]["env"] == services["a"]["env"]
    assert (exported["a"]["health_interval"], exported["a"]["type"]) == (10.0, "simple")
    assert exported["b"]["command"] == services["b"]["command"]
    printed = spm("config", "export", "-")
    names = {"A": "${A}", "B": "${SPM_T}", "C": None, "D": "${SPM_D}"}
    assert json.loads(printed.stdout)["services"]["a"]["env"] == names
    assert "s3cret" not in printed.stdout + printed.stderr
    assert "write to another file" in spm("config", "export", "spm.json", code=8).stderr
    (spm.cwd / "spm.json").unlink()
    spm("config", "import", "sub/all.json", "--yes")
    assert json.loads((spm.cwd / "spm.json").read_text())["services"] == exported
    (spm.cwd / "bad.json").write_text('{"services": {"a": {"comand": "x"}}}')
    assert "did you mean command" in spm("config", "import", "bad.json", "--yes", code=6).stderr
    assert "nothing was applied" in spm("config", "show", code=3).stderr


def test_an_export_overwrites_configurations_alone(spm: Spm) -> None:
    write(spm, {"a": worker("1")})
    spm("config", "export", "all.json")
    spm("config", "export", "all.json")
    path = spm.cwd / "notes.txt"
    path.write_text("mine")
    assert "is no configuration" in spm("config", "export", "notes.txt", code=8).stderr
    assert path.read_text() == "mine"
    agents = spm.cwd / ".mcp.json"  # it could be an spm.json, too
    agents.write_text('{"mcpServers": {"clock": {"command": "uvx", "args": ["clock"]}}}')
    assert "is no configuration" in spm("config", "export", ".mcp.json", code=8).stderr
    spm("config", "export", ".mcp.json", "--force")
    spm("config", "export", "notes.txt", "--force")
    assert json.loads(path.read_text())["services"]["a"]
    (spm.cwd / "link").symlink_to(path)
    os.mkfifo(spm.cwd / "fifo")
    for name in ("link", "fifo"):
        refused = spm("config", "export", name, "--force", code=8)
        assert f"{name} is no regular file" in refused.stderr
    assert (spm.cwd / "link").is_symlink() and stat.S_ISFIFO((spm.cwd / "fifo").stat().st_mode)


def test_a_person_at_a_terminal_is_asked(spm: Spm) -> None:
    write(spm, {"a": worker("1")})
    (spm.cwd / "new.json").write_text(json.dumps({"services": {"b": worker("2")}}))
    for answer, code in ((b"n", 8), (b"y", 0)):
        master, slave = pty.openpty()
        process = spm.popen("config", "import", "new.json", stdin=slave)
        assert process.stderr
        while "y/n" not in process.stderr.readline():
            assert process.poll() is None
        os.write(master, answer)
        process.communicate(timeout=20)
        assert process.returncode == code
        os.close(master)
        os.close(slave)
    assert "b" in json.loads((spm.cwd / "spm.json").read_text())["services"]


def test_what_has_failed_since_is_noted_while_others_are_waited_for(spm: Spm) -> None:
    # it was noted as done, and an `up` that was killed then left that
    dies = {"command": "sh -c 'sleep 0.3; exit 3'", "ready": ["log:never"]}
    write(spm, {"dies": dies, "slow": worker("1", ready=["log:never"])})
    process = spm.popen("up", "--wait", "20s")
    results = {"dies": "failed", "slow": "done"}
    eventually(lambda: [*spm.home.glob("versions/????.json")], what="the version")
    eventually(lambda: {one["name"]: one["result"] for one in kept(spm)["plan"]} == results)
    process.kill()
    process.communicate(timeout=10)
    assert kept(spm)["result"] == "applying"
    spm("cleanup")


def test_an_up_that_was_killed_is_finished_or_undone_by_the_next(spm: Spm) -> None:
    old = {"a": worker("1"), "b": worker("2")}
    write(spm, old)
    spm("up")
    before = pids(spm)
    slow = {"command": "sh -c 'test -e go || sleep 300'"}
    new = {
        "a": worker("9"),
        "slow": slow,
        "b": worker("8", depends_on={"slow": "exited"}),
        "c": worker("3", depends_on={"slow": "exited"}),
    }
    write(spm, new)
    for is_undone in (True, False):
        process = spm.popen("up")
        done = {"a": "done", "slow": "done", "b": "", "c": ""}
        eventually(lambda: {one["name"]: one["result"] for one in kept(spm)["plan"]} == done)  # noqa: B023
        process.kill()
        process.communicate(timeout=10)
        half = kept(spm)
        assert half["result"] == "applying"
        if is_undone:
            write(spm, old)
        else:
            (spm.cwd / "go").touch()
            spm("stop", "slow")
        lines = [line for line in spm("up", "b").stderr.splitlines() if "was cut off" in line]
        assert len(lines) == 1
        assert ("undone" in lines[0], "finished" in lines[0]) == (is_undone, not is_undone)
        assert f"version {half['number']} " in lines[0]
        assert (kept(spm, half["number"])["result"], kept(spm)["result"]) == ("cut off", "done")
        after = pids(spm)
        assert after.keys() == ({"a", "b"} if is_undone else {"a", "b", "c"})
        assert (after["b"] == before["b"]) is is_undone
        wanted = old if is_undone else new
        specs = {name: " ".join(spm.record(name)["spec"]["argv"]) for name in after}
        assert specs == {name: wanted[name]["command"] for name in after}
        before = after
        write(spm, new)
    spm("down")
    spm("cleanup")


def test_ups_wait_for_each_other_and_say_who_holds_them_up(spm: Spm) -> None:
    write(spm, {"slow": {"command": "sleep 300"}, "b": worker("2", depends_on={"slow": "exited"})})
    process = spm.popen("up", "--wait", "1m")
    eventually(lambda: "slow" in pids(spm))
    for words in (["up", "--wait", "300ms"], ["config", "rollback", "1", "--wait", "300ms"]):
        assert f"(pid {process.pid} since " in spm(*words, code=124).stderr
    write(spm, {"c": worker("3")})
    second = spm.popen("up")
    waits = psutil.Process(second.pid)
    eventually(lambda: waits.num_threads() == 2, what="its place in the lock's queue")
    before = waits.num_ctx_switches().voluntary
    time.sleep(0.3)
    assert waits.num_ctx_switches().voluntary < before + 10, "it doesn't poll, it is told"
    write(spm, {"d": worker("4")})
    spm("stop", "slow")
    process.communicate(timeout=20)
    _, told = second.communicate(timeout=20)
    assert second.returncode == 0, told
    assert pids(spm).keys() == {"d"}, "it took what was there when its turn came"
    spm("down")
    spm("cleanup")


def test_an_up_that_waited_for_a_down_said_that_another_up_was_under_way(spm: Spm) -> None:
    write(spm, {"stays": {"command": nasty("--ignore-term", "--say", "up"), "ready": "log:up"}})
    spm("up")
    eventually(lambda: "up" in spm.log("stays"), what="its deafness")
    down = spm.popen("down")
    eventually(lambda: (spm.home / "lock.up.by").read_text().startswith("`down`"))
    told = spm("up", "--wait", "100ms", code=124).stderr
    assert f"another `down` is under way (pid {down.pid} since " in told
    spm("stop", "stays", "--force")
    down.communicate(timeout=20)


def test_an_up_whose_service_went_from_the_file_while_it_waited_said_that_all_is_up(
    spm: Spm,
) -> None:
    write(spm, {"slow": {"command": "sleep 300"}, "b": worker("2", depends_on={"slow": "exited"})})
    first = spm.popen("up", "--wait", "1m")
    eventually(lambda: "slow" in pids(spm))
    second = spm.popen("up", "b")
    waits = psutil.Process(second.pid)
    eventually(lambda: waits.num_threads() == 2, what="its place in the lock's queue")
    write(spm, {"slow": worker("1")})
    spm("stop", "slow")
    first.communicate(timeout=20)
    _, told = second.communicate(timeout=20)
    assert second.returncode == 3 and "spm.json has no service 'b'" in told, told
    spm("cleanup")


def test_a_rollback_where_there_is_no_spm_json_ended_in_a_traceback(spm: Spm) -> None:
    (spm.cwd / "Procfile").write_text("worker: sleep 100\n")
    spm("up", "--procfile", "Procfile")
    before = pids(spm)
    done = spm("config", "rollback", "1")
    assert "[OK] back at version 1, as version" in done.stdout
    assert pids(spm) == before
    spm("down", "--procfile", "Procfile")


def test_a_part_that_is_applied_is_no_version_of_the_whole(spm: Spm) -> None:
    write(spm, {"a": worker("1"), "b": worker("2")})
    spm("up")
    then = {"a": worker("8"), "b": worker("9", env={"T": "${SPM_T}"}), "c": worker("3")}
    write(spm, then)
    spm.env["SPM_T"] = "x"
    spm("up", "b")
    assert "restart: 1, only b" in spm("config", "history").stdout
    changes = spm.json("config", "diff")
    assert (changes["added"], [*changes["changed"]]) == (["c"], ["a"]), "what isn't applied yet"
    assert spm.json("up", "b")["version"] == 2, "nothing is new"
    assert spm.json("up")["version"] == 3
    assert kept(spm)["document"]["services"] == then
    spm("config", "rollback", "2")
    assert {n: spm.record(n)["spec"]["argv"][1] for n in pids(spm)} == {"a": "300.1", "b": "300.9"}
    del spm.env["SPM_T"]
    error = spm.json("config", "rollback", "3", code=6)["error"]
    assert error["message"].startswith("version 3 can't be applied here: spm.json")
    assert "services.b.env.T: ${SPM_T} is not set here" in error["message"]
    spm("cleanup")


def test_what_looks_like_a_password_in_a_command_was_shown_by_diff_and_show(spm: Spm) -> None:
    words = ["sh", "-c", "exec sleep 300.1", "sh", "--token", "hunter2hunter2"]
    write(spm, {"a": {"command": words, "health": "exec:true --password=hunter2hunter2"}})
    spm("up")
    document = (spm.cwd / "spm.json").read_text().replace("hunter2", "hunter3")
    (spm.cwd / "new.json").write_text(document)
    for command in ("config show", "config diff 1 --config new.json", "config import new.json"):
        for more in ((), ("--json",)):
            done = spm(*command.split(), *more, code=None)
            told = done.stdout + done.stderr
            assert "--token" in told and "--password=" in told and "hunter" not in told, told
    spm("config", "import", "new.json", "--yes")
    assert (spm.cwd / "spm.json").read_text() == document
    changed = spm.json("config", "diff")["changed"]["a"]
    assert changed["command"] == [[*words[:-1], "…"]] * 2
    spm("down")


def test_a_damaged_version_is_named_and_the_others_stay(spm: Spm) -> None:
    write(spm, {"a": {"command": "true"}})
    for number in range(3):
        write(spm, {"a": {"command": "true", "max_restarts": number}})
        spm("up")
    folder = spm.home / "versions"
    (folder / "0002.json").write_text('{"number": 2')
    changed = json.loads((folder / "0003.json").read_text())
    changed["document"]["services"]["a"]["command"] = "false"
    (folder / "0003.json").write_text(json.dumps(changed))
    told = spm("config", "history")
    assert "version 2 can't be read" in told.stderr and "version 3 can't be read" in told.stderr
    assert told.stdout.splitlines()[1].startswith("1*")
    spm("config", "show", "2", code=9)
    changed.update(number=2, document={}, hash=spm_module.hash_of({}))
    (folder / "0002.json").write_text(json.dumps(changed))
    assert "document.services: an object was expected" in spm("config", "history").stderr
    assert "there is no version 9" in spm("config", "diff", "9", code=3).stderr
    assert spm.json("up")["version"] == 4
    write(spm, {"a": {"command": "false", "ready": "tcp:1"}})
    spm("up", "--wait", "--rollback-on-failure", code=1)
    newest = versions(spm)[-2:]
    assert [(one["result"], one["applied"]) for one in newest] == [
        ("done", True),
        ("rolled back", False),
    ]
    spm("cleanup")


def test_the_oldest_versions_go_but_never_the_applied_one(spm: Spm) -> None:
    write(spm, {"a": {"command": "true"}})
    spm("up")
    folder = spm.home / "versions"
    one = json.loads((folder / "0001.json").read_text())
    for number in range(2, 120):
        other = {**one, "number": number, "config": "/elsewhere/spm.json"}
        (folder / f"{number:04}.json").write_text(json.dumps(other))
    (folder / "0003-abc.json").touch()
    other_file = spm.cwd / "other.json"
    other_file.write_text(json.dumps({"services": {"b": {"command": "true"}}}))
    spm("up", "--config", other_file)
    numbers = sorted(int(path.stem) for path in folder.iterdir())
    assert numbers == [1, *range(21, 121)]
    spm("cleanup")


def test_nothing_is_applied_where_a_version_cannot_be_kept(spm: Spm) -> None:
    write(spm, {"a": worker("1")})
    spm("up")
    write(spm, {"a": worker("2")})
    before, folder = pids(spm), spm.home / "versions"
    shell = ["bash", "-c", 'ulimit -f 0; exec "$@"', "-"]  # no file may grow: as on a full disk
    argv, options = [*shell, *spm.argv("up")], {"cwd": spm.cwd, "env": spm.env, "timeout": 60}
    full = subprocess.run(argv, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert full.returncode == 9, full.stderr
    folder.rename(spm.home / "aside")
    folder.write_text("in the way")
    assert "versions" in spm("up", code=9).stderr
    assert pids(spm) == before
    folder.unlink()
    (spm.home / "aside").rename(folder)
    spm("down")
    spm("cleanup")


# -- as decisions


@quick
@given(old=documents, new=documents)
def test_a_diff_is_empty_for_the_same_and_only_then(old: Any, new: Any) -> None:
    one, other = (spm_module.spelled_out(config_of(services)) for services in (old, new))
    nothing: dict[str, object] = {"added": [], "removed": [], "changed": {}}
    assert spm_module.changes_of(one, one) == nothing
    assert (spm_module.changes_of(one, other) == nothing) == (one == other)
    back = spm_module.config_of(json.loads(json.dumps(one)), "/p/spm.json")
    assert spm_module.spelled_out(back) == one, "an export means what it was made of"
    plan = spm_module.plan_of(back, running(config_of(old)))
    assert {step.action for step in plan} <= {"keep"}


@quick
@given(applied=st.lists(documents, min_size=1, max_size=4), pick=st.integers(0, 3))
def test_after_a_rollback_nothing_differs(applied: list[Any], pick: int) -> None:
    kept = []
    for number, services in enumerate(applied, 1):
        document = config_of(services).document
        content = spm_module.hash_of(document)
        facts = (number, time.time(), "/p/spm.json", content, "done", (), (), document)
        data = json.loads(json.dumps(spm_module.Version(*facts)._asdict()))
        kept.append(spm_module.Version.from_json(data, number))
        assert kept[-1] == spm_module.Version(*facts), "it round trips"
    back = kept[pick % len(kept)]
    config = spm_module.config_of(back.document, back.config)
    assert config.document == back.document
    steps = spm_module.plan_of(config, running(config_of(applied[-1])))
    live = {**{step.name: step for step in steps if step.action != "stop"}}
    assert live.keys() == config.services.keys()
    assert {step.action for step in spm_module.plan_of(config, running(config))} <= {"keep"}


def test_a_part_of_a_procfile_became_an_spm_json_by_a_rollback(spm: Spm) -> None:
    (spm.cwd / "Procfile").write_text("a: sleep 300.1\nb: sleep 300.2\n")
    spm("up", "--procfile", "Procfile", "a")
    told = spm("config", "rollback", "1")
    assert "came from several files, which are as they were" in told.stderr
    assert not (spm.cwd / "spm.json").exists()
    spm("up", "--procfile", "Procfile")
    spm("down", "--procfile", "Procfile")


def test_who_waits_for_an_up_whose_name_is_damaged_is_told_so(spm: Spm) -> None:
    write(spm, {"slow": {"command": "sleep 300"}, "b": worker("2", depends_on={"slow": "exited"})})
    process = spm.popen("up", "--wait", "1m")
    eventually(lambda: "slow" in pids(spm))
    (spm.home / "lock.up.by").write_bytes(b"\xff\xfe")
    assert "waited 0.30 s" in spm("up", "--wait", "300ms", code=124).stderr
    spm("stop", "slow")
    process.communicate(timeout=20)
    spm("down")


def test_a_fifo_in_the_place_of_the_configuration_kept_an_import_waiting(spm: Spm) -> None:
    (spm.cwd / "new.json").write_text('{"services": {"a": {"command": "true"}}}')
    os.mkfifo(spm.cwd / "spm.json")
    told = spm("config", "import", "new.json", "--yes", code=8).stderr
    assert "spm.json is no regular file: left as it is" in told


def test_a_rollback_to_an_up_of_one_service_deleted_the_others_from_the_file(spm: Spm) -> None:
    write(spm, {"a": worker("1"), "b": worker("2")})
    path = spm.cwd / "spm.json"
    text = path.read_text().replace("{", "{ // as people write it\n", 1)
    path.write_text(text)
    spm("up", "a")
    write(spm, {"a": worker("1"), "b": worker("3")})
    spm("up")
    for version in (1, 3):  # that is what the first one made
        told = spm("config", "rollback", version).stderr
        assert f"version {version} is a part of its file: that is as it was then, whole" in told
        assert path.read_text() == text
        assert pids(spm).keys() == {"a"}, "what had been applied"
        assert spm.json("config", "diff")["added"] == ["b"]
        assert ("stop b because it wasn't applied then" in told) is (version == 1)
    spm("up")
    assert spm.record("b")["spec"]["argv"] == ["sleep", "300.2"]
    spm("down")


def test_an_import_of_what_differs_in_nothing_was_an_error_or_wrote_the_file(spm: Spm) -> None:
    write(spm, {"a": worker("1")})
    path = spm.cwd / "spm.json"
    before, text = path.stat().st_ino, path.read_text()
    spm("config", "export", "out.json")
    for more in ((), ("--yes",)):
        done = spm("config", "import", "out.json", *more)
        assert done.stdout == "[OK] nothing differs: spm.json is left as it is\n"
        assert not done.stderr
    assert (path.stat().st_ino, path.read_text()) == (before, text)
    path.write_text("{")
    (spm.cwd / "none.json").write_text('{"services": {}}')
    spm("config", "import", "none.json", "--yes")
    assert path.read_text() == '{"services": {}}', "a broken one differs from all"
