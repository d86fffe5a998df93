"""`up` brings the services to what spm.json says, and touches nothing else."""

from __future__ import annotations

import argparse
import json
import os
import pty
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest
from conftest import PACE, ROOT, Spm, eventually, free_port, nasty
from hypothesis import given, settings
from hypothesis import strategies as st

import simple_process_manager as spm_module

SERVER = [sys.executable, str(ROOT / "tests" / "rpc_server.py")]
FILES = [sys.executable, "-u", "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
PAGE = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x"})
"""


def write(spm: Spm, services: dict[str, Any], **more: object) -> None:
    """Write spm.json, whole."""
    path = spm.cwd / "spm.json"
    path.with_suffix(".new").write_text(json.dumps({"version": 1, "services": services, **more}))
    os.replace(path.with_suffix(".new"), path)


def pids(spm: Spm) -> dict[str, int]:
    """The pids of the services that run."""
    rows = spm.json("list")["services"]
    return {row["name"]: row["pid"] for row in rows if row["pid"] and row["status"] != "exited"}


def actions(plan: list[dict[str, Any]]) -> dict[str, str]:
    return {step["name"]: f"{step['action']} {step['why']}".strip() for step in plan}


def worker(text: str = "1", **keys: object) -> dict[str, Any]:
    return {"command": f"sleep 300.{text}", **keys}


@pytest.mark.skipif(not shutil.which("redis-server"), reason="redis-server isn't installed")
def test_five_real_services_are_brought_up_edited_and_taken_down(spm: Spm) -> None:
    (spm.cwd / "app.py").write_text(PAGE)
    uvicorn = [sys.executable, "-m", "uvicorn", "app:app", "--port", "{port}", "--no-access-log"]
    redis = {"command": "redis-server --port {port} --save ''", "port": free_port(), "ready": "tcp"}
    services: dict[str, Any] = {
        "worker": worker(depends_on={"api": "ready", "prepare": "exited"}),
        "api": {"command": uvicorn, "port": "auto", "ready": "http", "depends_on": ["redis"]},
        "prepare": {"command": "sh -c 'echo prepared'", "depends_on": ["redis"]},
        "redis": redis,
        "files": {"command": FILES, "port": "auto", "ready": "http", "env": {"A": "s3cret"}},
    }
    services["files"]["environment"] = {"PORT": {"required": True}}  # though it is chosen later
    servers = {"echo": {"command": SERVER[0], "args": SERVER[1:]}}
    write(spm, services, mcpServers=servers)
    spm("start", "mine", nasty())
    dry = spm.json("up", "--dry-run")
    assert not pids(spm).keys() - {"mine"}, "a dry run starts nothing"
    assert {*actions(dry["plan"]).values()} == {"start"}
    spm("up", "--wait")
    first = pids(spm)
    assert first.keys() == {"worker", "api", "redis", "files", "echo", "mine"}
    assert [spm.service(name)["status"] for name in ("api", "redis", "files")] == ["ready"] * 3
    began = {name: spm.record(name)["started_at"] for name in services}
    assert began["redis"] < began["api"] < began["worker"] > began["prepare"] > began["redis"]
    assert "message" in spm("call", "echo", "echo", "message=message").stdout

    again = spm.json("up", "--wait")
    assert {one["action"] for one in again["services"]} == {"keep"}
    assert pids(spm) == first

    services["files"]["env"] = {"A": "s3cr3t"}
    services["worker"].update(restart="always", idle_timeout="1h", alert="memory_mb>900: stop")
    services["redis"]["environment"] = {"SPM_X": {"pattern": "^x"}}
    del services["prepare"], services["worker"]["depends_on"]["prepare"]
    services["new"] = worker("7")
    write(spm, services)
    done = spm.json("up")
    assert "s3cr" not in json.dumps(done)
    told = actions(done["services"])
    keys = {one["name"]: set(one["keys"]) for one in done["services"]}
    assert told.pop("worker").startswith("settings because")
    assert keys["worker"] == {"restart", "idle_timeout", "cooldown", "alert"}
    assert told == {
        "echo": "stop because removed",
        "redis": "settings because environment changed",
        "files": "restart because env changed",
        "new": "start",
        "api": "keep",
    }
    second = pids(spm)
    assert {name for name in second if second[name] == first.get(name)} == {*first} - {
        "files",
        "echo",
    }
    spec = spm.record("worker")["spec"]
    assert (spec["restart"], spec["idle_timeout_s"]) == ("always", 3600)
    os.kill(second["worker"], signal.SIGKILL)
    eventually(lambda: pids(spm).get("worker", second["worker"]) != second["worker"])
    assert "redis" in spm("config", "rules").stdout

    removed = ("redis", "api", "worker")
    write(spm, {name: keys for name, keys in services.items() if name not in removed})
    lines = spm("up").stderr.splitlines()
    names = [line.split()[1] for line in lines if " stopped in " in line]
    assert names == ["worker", "api", "redis"], "in reverse"
    write(spm, services)
    spm("up")

    lines = spm("down").stdout.splitlines()
    names = [line.split()[1] for line in lines]
    assert sorted(names) == ["api", "files", "new", "redis", "worker"]
    assert names.index("worker") < names.index("api") < names.index("redis")
    assert pids(spm).keys() == {"mine"}, "what was started by hand is let be"
    spm("cleanup")


def test_what_was_started_by_hand_is_touched_only_when_it_is_named(spm: Spm) -> None:
    write(spm, {"a": worker("1"), "b": worker("2", depends_on=["a"]), "c": worker("3")})
    spm("start", "a", "sleep 300.9")
    mine = pids(spm)["a"]
    plan = spm.json("up", "b")["services"]
    assert actions(plan)["a"].startswith("keep because it was started by hand")
    assert pids(spm).keys() == {"a", "b"}, "b and what it needs, not c"
    assert pids(spm)["a"] == mine
    assert actions(spm.json("up", "a")["services"])["a"] == "restart because command changed"
    assert pids(spm)["a"] != mine
    assert "did you mean" in spm("up", "cc", code=3).stderr
    spm("down", "b", "a")
    assert not pids(spm)
    assert "nothing of it was running" in spm("down").stdout
    assert spm.json("up", "a")["services"][0]["result"] == "done"
    spm("cleanup")


def test_what_was_last_started_by_hand_was_repeated_though_the_file_says_otherwise(
    spm: Spm,
) -> None:
    write(spm, {"api": worker()})
    told = "[WARN] api was last started by hand, otherwise than spm.json says (command); "
    told += "to apply that: up api\n"
    spm("start", "api", worker()["command"])
    assert "[WARN]" not in spm("start", "api").stderr, "it is the same"
    spm("start", "api", "sleep 100", "--replace")
    assert told in spm("start", "api").stderr and told in spm("restart", "api").stderr
    spm("stop", "api")
    assert told in spm("run", "api", "--timeout", "50ms", "--", "true", code=124).stderr
    spm("up", "api")
    assert "[WARN]" not in spm("start", "api").stderr
    spm("down")


def test_start_by_name_alone_says_that_the_configuration_has_changed(spm: Spm) -> None:
    write(spm, {"api": worker()})
    spm("up")
    assert "[WARN]" not in spm("start", "api").stderr
    write(spm, {"api": worker("2")})
    told = "[WARN] api: command changed in spm.json since it was applied; to apply that: up api\n"
    assert spm("start", "api").stderr == told
    assert spm("restart", "api").stderr.startswith(told), "that runs the former one again"
    (spm.cwd / "spm.json").write_text("{")  # a broken file is for `up` to tell
    assert "[WARN]" not in spm("start", "api").stderr
    spm("stop", "api")


def test_a_start_alone_left_out_what_the_service_depends_on_without_a_word(spm: Spm) -> None:
    ready, job = {"ready": "exec:true"}, {"command": "sh -c 'exit 3'"}
    api = worker("1", depends_on={"db": "started", "mig": "exited"}, **ready)
    web, db = worker("3", depends_on=["db"], **ready), worker("2", **ready)
    write(spm, {"api": api, "db": db, "mig": job, "web": web})
    told = "[WARN] api needs db to run (it was never started), mig to have ended well (it was "
    told += "never started); to start what it needs, too: up api\n"
    assert spm("start", "api").stderr == told
    assert "to run (it was never" in spm.json("start", "api", "--wait", "1s")["warnings"][0]
    told = "[WARN] web needs db to run (it was never started); "
    told += "add --with db, or before it: up db --wait\n"
    assert spm("run", "web", "--", "true").stderr.startswith(told)
    assert "[WARN]" not in spm("run", "web", "--with", "db", "--", "true").stderr
    spm("start", "mig")
    eventually(lambda: spm.service("mig")["status"] == "failed")
    spm("start", "db")
    told = "[WARN] api needs mig to have ended well (it is failed); before it: up mig --wait\n"
    assert told in spm("run", "api", "--", "true").stderr
    write(spm, {"api": {"command": "no-such", "depends_on": ["db"]}, "db": db})
    spm("cleanup")
    assert "api needs db" in spm("start", "api", code=4).stderr, "it may be why"
    write(spm, {"api": worker("1", depends_on=["db"], **ready), "db": db})
    spm("up")
    assert not spm("start", "api").stderr
    spm("cleanup")


def test_a_failure_names_the_service_and_leaves_the_others(spm: Spm) -> None:
    services = {
        "good": worker("1"),
        "bad": {"command": "sh -c 'echo no; exit 3'", "ready": "log:yes"},
        "after": worker("2", depends_on={"bad": "ready"}),
        "later": worker("3", depends_on=["after"]),
    }
    write(spm, services)
    failed = spm.json("up", "--wait", "5s", code=1)
    assert "bad is not running" in failed["error"]["message"]
    results = {one["name"]: one["result"] for one in failed["services"]}
    assert results == {"good": "done", "bad": "failed", "after": "skipped", "later": "skipped"}
    assert pids(spm).keys() == {"good"}
    write(spm, {**services, "too": {"command": "sh -c 'echo oops; exit 4'"}})  # it has no checks
    told = spm("up", "--wait", code=1).stderr
    assert "after was not started: it depends on bad\n  → mend that, then: up" in told
    assert told.count("bad is not running") == 1, "once is enough"
    for name, tail in (("bad", "no"), ("too", "oops")):
        lines = told[told.index(f"[ERROR] {name} is not running") :].splitlines()
        again = "up" if name == "bad" else "restart too"  # others wait for it
        advice = f"  → read its last lines above; mend the cause, then: {again} (or, if the "
        advice += f"command is wrong: correct it in spm.json, then: up {name})"
        assert lines[1:3] == [f"  | {tail}", advice], "each failure tells all of it"
    dies = {"command": ["sh", "-uc", ": $SPM_NOT"], "start_seconds": 2}
    write(spm, {"good": services["good"], "none": {"command": "/no/such/program"}, "dies": dies})
    error = spm.json("up", code=4)["error"]
    assert error["name"] == "none"
    spm("cleanup")
    write(spm, {"good": services["good"], "dies": dies})
    error = spm.json("up", code=4)["error"]
    advice = "set it with env or env_file; require_env checks before the start"
    assert error["cause"]["advice"] == f"{advice} (services.dies in spm.json)"
    assert error["advice"].startswith("mend the cause, then: restart dies (or, if the command is")
    missing = {"environment": {"SPM_NOT": {"required": True}}, "env": {"SPM_X": None}}
    write(
        spm,
        {"good": worker("4"), "x": worker("5", **missing), "y": worker("6", env_file=".env")},
        defaults={"require_env": ["SPM_Y"]},
    )
    before = pids(spm)
    for words in (["up"], ["up", "--dry-run"], ["config", "validate"]):
        error = spm.json(*words, code=6)["error"]
        assert {one["path"]: one["message"] for one in error["problems"]} == {
            "services.x.environment.SPM_NOT": "SPM_NOT is not set",
            "services.x.env.SPM_X": "SPM_X is not set",
            "services.y.env_file": f"{spm.cwd / '.env'}: No such file or directory",
            "defaults.require_env": "SPM_Y is not set",
        }
    assert "  start x\n" in spm("up", "--dry-run", code=6).stdout
    nope, bad = spm.cwd / "nope.env", spm.cwd / "bad.env"
    bad.write_text("A=1\n!\n")
    write(  # what can't be expanded hides none of it
        spm,
        {
            "x": worker("5", **missing, cwd="${SPM_NOT}"),
            "y": worker("6", env_file=["nope.env", "bad.env"], env={"A": "${HOME}"}),
            "p": worker("7", port=8000),
            "q": worker("8", port=8000),
            "r": worker("9", port=8001, on_conflict="next"),
            "s": worker("10", port=8001, disabled=True),
            "once": {"command": "true", "port": 8001},
            "t": worker("11", port=8001, depends_on={"once": "exited"}),
        },
    )
    problems = spm.json("up", code=6)["error"]["problems"]
    assert f"{bad}, line 2: not NAME=value" in [one["message"] for one in problems]
    assert {one["path"]: one["message"] for one in problems[::-1]} == {
        "services.x.cwd": "${SPM_NOT} is not set here, and it has no :-default",
        "services.x.environment.SPM_NOT": "SPM_NOT is not set",
        "services.x.env.SPM_X": "SPM_X is not set",
        "services.y.env_file": f"{nope}: No such file or directory",
        "services.q.port": "p and q both want port 8000: give one of them another",
    }
    assert pids(spm) == before
    spm("cleanup")


@pytest.mark.parametrize("words", [["up"], ["up", "--dry-run"], ["up", "--wait"]])
def test_a_plan_was_told_that_two_services_of_one_port_had_refused(
    spm: Spm, words: list[str]
) -> None:
    write(spm, {"p": worker("1", port=8000), "q": worker("2", port=8000), "r": worker("3")})
    done = spm(*words, code=6)
    assert not done.stdout and "start p" not in done.stderr
    assert "services.q.port: p and q both want port 8000" in done.stderr
    assert done.stderr.rstrip().endswith("→ mend that: nothing was changed")


def test_rollback_on_failure_goes_back_to_what_ran(spm: Spm) -> None:
    old = {
        "a": worker("1", env={"K": "old"}),
        "b": worker("2", restart="always"),
        "gone": worker("3"),
    }
    write(spm, old)
    spm("up")
    before, specs = pids(spm), {name: spm.record(name)["spec"] for name in old}
    new = {"a": worker("8", env={"K": "new"}), "b": worker("2", max_restarts=9), "new": worker("9")}
    new["bad"] = {"command": "sh -c 'exit 3'", "ready": "tcp:1", "depends_on": ["a", "b", "new"]}
    write(spm, new)
    failed = spm.json("up", "--wait", "--rollback-on-failure", code=1)
    assert failed["rolled_back"]
    assert failed["error"]["message"].endswith("rolled back to what ran before")
    after = pids(spm)
    assert after.keys() == before.keys()
    assert after["b"] == before["b"]
    assert {name: spm.record(name)["spec"] for name in old} == specs
    assert psutil.Process(after["a"]).environ()["K"] == "old"
    write(spm, old)
    assert {one["action"] for one in spm.json("up", "--dry-run")["plan"]} == {"keep"}
    (spm.cwd / ".env").write_text("A=1")
    write(spm, {"a": worker("1", env_file=".env")})
    spm("up")
    (spm.cwd / ".env").write_text("A=2")
    write(spm, {"a": worker("1", env_file=".env"), "bad": {"command": "false", "ready": "tcp:1"}})
    told = spm("up", "--wait", "--rollback-on-failure", code=1).stderr
    assert "[WARN] a takes .env as it is now: the old one isn't kept" in told
    spm("cleanup")


def test_waits_overlap_and_independent_ones_are_started_side_by_side(spm: Spm) -> None:
    slow = shlex.join(
        [
            sys.executable,
            "-c",
            "import time; time.sleep(1); print('up', flush=True); time.sleep(300)",
        ]
    )
    keys = {"command": slow, "ready": "log:up", "start_seconds": 0.8}
    services = dict.fromkeys(("a", "b", "c", "d"), keys)
    write(spm, services)
    began = time.monotonic()
    spm("up", "--wait")
    took = time.monotonic() - began
    assert took < 3.5 + PACE / 2, "each has to live for 0.8 s, all at the same time"
    assert [row["status"] for row in spm.json("list")["services"]] == ["ready"] * 4
    moments = [spm.record(name)["started_at"] for name in services]
    assert max(moments) - min(moments) < took - 1, "all were started before the first was ready"
    spm("cleanup")


def test_a_port_is_handed_on(spm: Spm) -> None:
    port = free_port()
    server = {"command": nasty("--port", port), "port": port, "ready": "tcp"}
    write(spm, {"a": server, "b": worker("1")})
    spm("up", "--wait")
    write(spm, {"a": worker("2"), "b": server})
    assert spm.json("up", "--wait")["services"][1]["name"] == "b"
    assert spm.service("b")["status"] == "ready"
    write(spm, {"b": server, "e": server})
    told = spm("up", code=5).stderr
    assert f"[ERROR] e: port {port} is held: " in told and "service b of" in told
    spm("down")
    one, other = (
        {"command": nasty("--port", port), "port": port, "ready": "tcp"}
        for port in (port, free_port())
    )
    write(spm, {"a": one, "b": other, "c": worker("3")})
    spm("up", "--wait")
    write(spm, {"a": other, "b": one, "c": worker("3")})  # they change places
    spm("up", "--wait")
    ports = {name: spm.service(name)["port"] for name in ("a", "b")}
    assert ports == {"a": other["port"], "b": one["port"]}
    write(spm, {"a": one, "b": other, "c": {"command": "false", "ready": "tcp:1"}})
    assert spm.json("up", "--wait", "--rollback-on-failure", code=1)["rolled_back"]
    assert {name: spm.service(name)["port"] for name in ("a", "b")} == ports
    assert [spm.service(name)["pid"] > 0 for name in ("a", "b", "c")] == [True] * 3
    spm("cleanup")


def test_start_by_force_is_advised_where_it_does_what_the_file_says(spm: Spm) -> None:
    # of a changed service it was advised as well, and started what was before the change
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        write(spm, {"a": worker("1", port=free_port())})
        spm("up")
        write(spm, {"a": worker("1", port=taken)})
        for _ in "runs", "stopped":
            told = spm("up", "a", code=5).stderr
            assert f"port {taken} is held" in told and "another port (on_conflict next" in told
            assert "--force" not in told, told
            spm("down", "a")
        write(spm, {"b": worker("2", port=taken)})
        told = spm("up", code=5).stderr
        assert "or start anyway with `start b --force` (services.b in spm.json)" in told, told
        spm("start", "b", "--force")
        assert spm.service("b")["port"] == taken
    write(spm, {"c": {"command": "false", "cooldown": "1h"}})
    assert spm("up", "--wait", code=1).stderr
    assert "then wait, or `start c --force`" in spm("up", code=7).stderr
    spm("cleanup")


def test_down_where_nothing_is_configured_says_so(spm: Spm) -> None:
    spm("start", "mine", "sleep 60")
    told = spm("down").stderr
    assert f"[WARN] there is no {spm.cwd / 'spm.json'}: nothing was stopped" in told
    write(spm, {"a": worker()})
    assert spm("down").stdout == "[OK] nothing of it was running\n"
    assert pids(spm).keys() == {"mine"}
    spm("cleanup")


def test_an_interrupted_up_leaves_what_the_next_one_finishes(spm: Spm) -> None:
    services = {f"w{n}": worker(n, start_seconds=1) for n in "123"}
    write(spm, {**services, "w4": worker("4", depends_on=["w3"])})
    process = spm.popen("up")
    eventually(lambda: pids(spm).keys() == {"w1", "w2", "w3"})
    before = pids(spm)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=10)
    assert process.returncode == 130 and "goes on without this command" in told
    assert "it is finished now" in spm("up").stderr
    after = pids(spm)
    assert after.keys() == {"w1", "w2", "w3", "w4"} and {**after, **before} == after
    spm("cleanup")


def test_what_an_env_file_says_is_compared_and_not_kept(spm: Spm) -> None:
    env_file = spm.cwd / ".env"
    env_file.write_text("TOKEN=s3cret\n")
    write(spm, {"a": worker("1", env_file=".env", env={"A": "b"}), "b": worker("2")})
    spm("up")
    before = pids(spm)
    os.utime(env_file, (1, 1))
    assert {*actions(spm.json("up", "--dry-run")["plan"]).values()} == {"keep"}
    assert "already running" in spm("start", "a").stdout
    env_file.write_text("TOKEN=s3cr3t\n")
    assert "--env-file" in spm.json("start", "a", code=8)["error"]["differences"][0]
    done = actions(spm.json("up")["services"])
    assert done == {"a": "restart because env_file .env changed", "b": "keep"}
    after = pids(spm)
    assert (after["a"] != before["a"], after["b"]) == (True, before["b"])
    assert psutil.Process(after["a"]).environ()["TOKEN"] == "s3cr3t"
    assert {*actions(spm.json("up", "--dry-run")["plan"]).values()} == {"keep"}
    kept = [path.read_bytes() for path in spm.home.rglob("*") if path.is_file()]
    assert not [text for text in kept if b"s3cr" in text]
    spm("cleanup")


def test_on_a_terminal_each_service_has_a_line(spm: Spm) -> None:
    write(
        spm,
        {
            "db": worker("1", ready="exec:false"),
            "slow": worker("2", start_seconds=0.3),
            "api": worker("3", depends_on=["db"]),
        },
    )
    master, slave = pty.openpty()
    process = spm.popen("up", "--wait", "500ms", stderr=slave)
    os.close(slave)
    shown = b""
    try:
        while b"[ERROR]" not in shown:
            shown += os.read(master, 4096)
    finally:
        process.communicate(timeout=10)
        os.close(master)
    for line in ("slow: is being started", "db: exec 'false'", "api: waits for db"):
        assert line in shown.decode().replace("\x1b[31m", ""), shown
    assert b"\x1b[2A\x1b[J" in shown, "three lines, written over"
    assert "waits for" not in spm("up", "--wait", "100ms", code=124).stderr
    spm("cleanup")


def test_watch_applies_valid_edits_and_keeps_the_state_on_broken_ones(spm: Spm) -> None:
    write(spm, {"a": worker("1")})
    process = spm.popen("up", "--watch")
    try:
        assert process.stdout
        assert "is up (start: 1)" in process.stdout.readline()
        assert "watching spm.json; q or Ctrl-C ends that" in process.stdout.readline()
        first = pids(spm)["a"]
        write(spm, {"a": worker("1"), "b": worker("2")})
        eventually(lambda: pids(spm).keys() == {"a", "b"})
        (spm.cwd / "spm.json").write_text('{"services": {"a"')
        told = ""
        while "ERROR" not in told:
            told = process.stdout.readline()
            assert "watching" not in told
        assert "line 1, column" in told
        assert process.stdout.readline() == "  → mend that: nothing was changed\n"
        assert pids(spm).keys() == {"a", "b"}
        (spm.cwd / ".env").write_text("A=1")
        write(spm, {"a": worker("1"), "c": worker("3", env_file=".env")})
        eventually(lambda: pids(spm).keys() == {"a", "c"})
        then = pids(spm)["c"]
        (spm.cwd / ".env").write_text("A=2")
        eventually(lambda: pids(spm).get("c", then) != then)
        write(spm, {"a": worker("1"), "c": worker("3", start_seconds=1), "x": {"command": "/no"}})
        while "could not be started" not in told:
            told = process.stdout.readline()
        assert "nothing" not in told and "left as" not in told, "c was restarted"
        assert pids(spm)["a"] == first
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert process.returncode == 0
    assert pids(spm).keys() == {"a", "c"}, "it leaves them running"
    spm("cleanup")


def test_watch_sees_an_env_file_change_while_what_names_it_first_is_applied(spm: Spm) -> None:
    # it noted what the file looked like only when all was up, and never saw that it had changed
    write(spm, {"a": worker("1")})
    process = spm.popen("up", "--watch")
    try:
        eventually(lambda: pids(spm).keys() == {"a"})
        (spm.cwd / ".env").write_text("A=1")
        slow = {"b": worker("2", start_seconds=1), "d": worker("4", depends_on=["b"])}
        write(spm, {"a": worker("1"), "c": worker("3", env_file=".env"), **slow})
        eventually(lambda: "c" in pids(spm))
        then = pids(spm)["c"]
        assert "d" not in pids(spm), "it is still being applied"
        (spm.cwd / ".env").write_text("A=2")
        eventually(lambda: pids(spm).get("c", then) != then)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    spm("cleanup")


# -- the plan, as a decision


names = st.sampled_from(["a", "b", "c", "d"])
bodies = st.fixed_dictionaries(
    {"command": st.sampled_from(["x", "y"])},
    optional={"restart": st.sampled_from(["no", "always"]), "env": st.just({"A": "b"})},
)
documents = st.dictionaries(names, bodies)


def config_of(services: dict[str, Any], path: str = "/p/spm.json") -> spm_module.Config:
    return spm_module.config_of({"services": services}, path)


def running(config: spm_module.Config) -> dict[str, spm_module.Known]:
    """What is known when all of a configuration runs."""
    known = {}
    for name, one in config.services.items():
        record = spm_module.new_record(name, one.spec, "i")._replace(config=config.path)
        known[name] = spm_module.Known(record, "running", True, True, one.given_env)
    return known


@settings(max_examples=60, deadline=None, database=None)
@given(old=documents, new=documents)
def test_a_plan_changes_what_differs_and_nothing_else(old: Any, new: Any) -> None:
    was, wanted = config_of(old), config_of(new)
    assert {step.action for step in spm_module.plan_of(was, running(was))} <= {"keep"}
    plan = {step.name: step.action for step in spm_module.plan_of(wanted, running(was))}
    for name in {*old, *new}:
        expected = "keep"
        if name not in old or name not in new:
            expected = "start" if name in new else "stop"
        elif old[name] != new[name]:
            is_small = {**old[name], "restart": 0} == {**new[name], "restart": 0}
            expected = "settings" if is_small else "restart"
            usual = [one[name].get("restart", "no") for one in (old, new)]
            if is_small and usual[0] == usual[1]:
                expected = "keep"
        assert plan[name] == expected
    other = config_of(new, "/q/spm.json")
    foreign = {step.name: step.action for step in spm_module.plan_of(other, running(was))}
    assert all(foreign.get(name, "keep") == "keep" for name in old)


def test_a_service_that_was_started_by_hand_is_taken_over_when_it_is_named(spm: Spm) -> None:
    write(spm, {"a": {"command": "sleep 600"}})
    spm("start", "a", "sleep 600")
    pid = spm.record("a")["main"]["pid"]
    spm("up")
    assert "nothing of it was running" in spm("down").stdout
    spm("up", "a")
    assert spm.record("a")["main"]["pid"] == pid
    assert "a stopped" in spm("down").stdout


def test_down_waits_for_an_up_that_is_under_way(spm: Spm) -> None:
    db = {"command": "sleep 600", "ready": "exec:sleep 1"}
    write(spm, {"db": db, "api": {"command": "sleep 600", "depends_on": ["db"]}})
    going = spm.popen("up")
    eventually(lambda: "db" in pids(spm), 10)
    down = spm("down").stdout
    going.communicate(timeout=20)
    assert "api stopped" in down and "db stopped" in down


def test_a_procfile_alone_is_brought_up_and_named(spm: Spm) -> None:
    (spm.cwd / "Procfile").write_text("worker: sleep 100\n")
    assert "[OK] Procfile is up (start: 1)" in spm("up", "--procfile", "Procfile").stdout
    spm("down", "--procfile", "Procfile")


def test_who_ends_at_once_is_not_up(spm: Spm) -> None:
    # it had no checks, and was looked at before its end was known
    write(spm, {"bad": {"command": ["sh", "-c", "exit 3"]}, "good": {"command": "sleep 300"}})
    failed = spm.json("up", "--wait", "5s", code=1)
    assert {one["name"]: one["result"] for one in failed["services"]} == {
        "bad": "failed",
        "good": "done",
    }
    spm("down")


def test_a_server_that_ended_at_once_with_code_0_was_called_up(spm: Spm) -> None:
    web = {"command": "sh -c 'echo no config, bye'"}
    write(spm, {"web": web, "seed": {**web, "restart": "on-failure"}})
    done = spm("up", "--wait", code=1)
    assert "[ERROR] web is not running: exited" in done.stderr
    advice = "a daemon: type forking; a job, which may end well: restart on-failure (services.web"
    assert f"\n  | no config, bye\n  → {advice} in spm.json)\n" in done.stderr
    assert "[INFO] seed has exited (exit code 0)" in done.stderr
    assert spm.json("up", "seed", "--wait")["services"][0]["result"] == "done"
    write(spm, {"web": {"command": "false", "disabled": True}})
    spm("start", "web", "false")
    eventually(lambda: spm.service("web")["status"] == "failed")
    spm("up", "--wait")
    spm("cleanup")


def test_a_job_that_was_brought_up_by_its_name_was_not_waited_for(spm: Spm) -> None:
    slow = {"command": "sleep 0.4"}
    write(spm, {"mig": slow, "api": worker("1", depends_on={"mig": "exited"})})
    assert "[OK] mig has done its work" in spm("up", "mig", "--wait").stderr
    spm("cleanup")


def test_a_job_that_failed_was_told_without_its_last_lines(spm: Spm) -> None:
    job = {"command": "sh -c 'echo boom; exit 3'"}
    write(spm, {"mig": job, "api": worker("1", depends_on={"mig": "exited"})})
    told = spm("up", "--wait", code=1).stderr
    told = told[told.index("[ERROR] mig is not running: failed") :]
    assert "(exit code 3)\n  | boom\n  → read its last lines above; mend the cause" in told
    assert "then: up (or, if the command is wrong: correct it in spm.json" in told
    spm("cleanup")


def test_a_job_was_done_for_ever_though_a_down_stopped_what_needs_it(spm: Spm) -> None:
    needs = {"depends_on": {"mig": "exited"}}
    job = {"command": "sh -c 'echo migrated >> done'"}
    write(spm, {"mig": job, "api": worker("1", **needs), "web": worker("2", **needs)})

    def times() -> int:
        return (spm.cwd / "done").read_text().count("migrated")

    for count in (1, 2):
        spm("up")
        assert times() == count
        assert actions(spm.json("up")["services"])["mig"] == "keep because it has done its work"
        spm("down", "web")
        spm("up")
        assert times() == count, "api runs on with what it has done"
        spm("down")
    spm("up")
    spm("down", "api", "web")
    spm("up")
    assert times() == 4
    for name in ("api", "web"):  # one after the other is both, too
        spm("down", name)
    spm("up")
    assert times() == 5
    spm("down")


@pytest.mark.skipif(sys.platform == "win32", reason="no directory with open files is renamed")
def test_the_services_of_a_renamed_project_were_those_of_another_file(spm: Spm) -> None:
    env = {key: value for key, value in spm.env.items() if key != "SPM_HOME"}
    old, new = spm.cwd / "old", spm.cwd / "new"
    (old / ".spm").mkdir(parents=True, mode=0o700)
    (old / "spm.json").write_text(json.dumps({"services": {"web": worker("1"), "db": worker("2")}}))
    spm("up", cwd=old, env=env)
    old.rename(new)
    told = spm("up", "--dry-run", cwd=new, env=env).stdout
    assert told.count("because cwd changed") == 2 and "taken over" not in told
    told = spm("down", cwd=new, env=env).stdout
    assert "web stopped" in told and "db stopped" in told and "[WARN]" not in told


@pytest.mark.skipif(sys.platform == "win32", reason="no directory with open files is removed")
def test_what_one_of_two_projects_with_one_home_left_was_stopped_as_the_others(spm: Spm) -> None:
    # once its directory was gone, as if that had been renamed to the other's
    one, two = spm.base / "one", spm.base / "two"
    for path, name in ((one, "web"), (two, "db")):
        (path / ".git").mkdir(parents=True)
        (path / "spm.json").write_text(json.dumps({"services": {name: worker()}}))
        spm("up", cwd=path)
    shutil.rmtree(one)
    assert "stop web" not in spm("up", "--dry-run", cwd=two).stdout
    assert "web" not in spm("down", cwd=two).stdout
    assert spm.service("web")["status"] == "running"
    spm("cleanup")


@pytest.mark.skipif(sys.platform == "win32", reason="no current directory is removed")
def test_up_in_a_directory_that_is_gone_failed_though_home_and_file_were_named(spm: Spm) -> None:
    gone, path = spm.base / "gone", spm.cwd / "spm.json"
    path.write_text(json.dumps({"services": {"web": worker()}}))
    spm("up")
    gone.mkdir()
    words = shlex.join(spm.argv("up", "--config", path))
    line = f"cd {gone} && rmdir {gone} && exec {words}"
    done = subprocess.run(["sh", "-c", line], env=spm.env, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()) == (0, ["  keep web"])
    spm("down")


def test_a_restart_in_a_moved_project_sent_for_an_option_that_it_does_not_have(spm: Spm) -> None:
    env = {key: value for key, value in spm.env.items() if key != "SPM_HOME"}
    old, new = spm.cwd / "old", spm.cwd / "new"
    (old / ".spm").mkdir(parents=True, mode=0o700)
    (old / "spm.json").write_text(json.dumps({"services": {"web": worker("1")}}))
    spm("up", cwd=old, env=env)
    spm("start", "api", "sleep 300.2", cwd=old, env=env)
    spm("stop", "web", "api", cwd=old, env=env)
    old.rename(new)
    told = spm("restart", "api", cwd=new, env=env, code=4).stderr
    advice = '  → from the directory that it shall run in: start api "COMMAND" --replace'
    assert told == f"[ERROR] api: no such directory: {old}\n{advice}\n"
    told = spm("restart", "web", cwd=new, env=env, code=4).stderr
    assert told.endswith(f"  → {old} was renamed or moved to {new}: up web starts it there\n")
    spm("up", "web", cwd=new, env=env)
    spm("start", "api", "sleep 300.2", "--replace", cwd=new, env=env)
    assert "check --cwd" in spm("start", "x", "true", "--cwd", "no", code=4).stderr
    spm("cleanup", cwd=new, env=env)


def test_what_is_restarted_again_and_again_is_not_up(spm: Spm) -> None:
    loops = {"command": "sh -c 'exit 3'", "restart": "on-failure", "backoff": "5s"}
    (spm.cwd / "next.json").write_text(json.dumps({"services": {"worker": loops}}))
    for _ in range(2):  # started, then kept
        done = spm("up", "--wait", "5s", "--config", "next.json", code=1)
        assert "worker doesn't stay: restarting in" in done.stderr
        assert "→ see why: explain worker" in done.stderr
    spm("cleanup")


def test_what_lives_for_a_while_between_its_restarts_is_not_up(spm: Spm) -> None:
    # up --wait looked at it once more, in the end: as a rule while it ran
    soon = {"restart": "on-failure", "backoff": "10ms", "max_restarts": 100}
    loops = {"command": "sh -c 'sleep 0.3; exit 3'", **soon}
    flag = spm.cwd / "flag"
    comes = f"sh -c 'test -e {flag} && exec sleep 300.1; touch {flag}; sleep 0.1; exit 3'"
    late = {"command": "sh -c 'sleep 0.8; echo up; exec sleep 300.2'", "ready": "log:up"}
    write(spm, {"worker": loops, "comes": {"command": comes, **soon}, "late": late})
    done = spm("up", "--wait", "9s", code=1)
    assert "worker doesn't stay: restarting in" in done.stderr
    assert done.stderr.count("[ERROR]") == 1, done.stderr
    assert spm.service("comes")["restarts"] == 1, "but it stays"
    spm("cleanup")


def test_what_depends_on_a_failure_says_how_to_bring_up_the_same_file(spm: Spm) -> None:
    services = {"db": {"command": "no-such-program"}, "web": {"command": "sleep 9"}}
    services["web"]["depends_on"] = ["db"]  # type: ignore[assignment]
    (spm.cwd / "next.json").write_text(json.dumps({"services": services}))
    done = spm("up", "--config", "next.json", code=None)
    assert "→ mend that, then: up --config next.json" in done.stdout + done.stderr


def test_what_up_started_was_started_by_hand_once_its_record_was_lost(spm: Spm) -> None:
    write(spm, {"api": worker()})
    spm("up")
    for path in spm.home.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    plan = actions(spm.json("up", "--dry-run")["plan"])
    assert plan["api"] == "keep because its record was lost: name it to have it taken over"
    told = "[WARN] api runs, but its record was lost: left alone; stop api\n"
    assert told in spm("down").stderr
    spm("stop", "api")


def test_down_tells_of_what_it_leaves_alone(spm: Spm) -> None:
    (spm.cwd / "spm.json").write_text('{"services": {"worker": {"command": "sleep 90"}}}')
    spm("start", "worker", "sleep 91")
    done = spm("down")
    told = "worker runs, but was started by hand or from another file: left alone; stop worker"
    assert f"[WARN] {told}" in done.stdout + done.stderr
    spm("stop", "worker")
    assert "left alone" not in spm("down").stdout


def test_a_secret_that_is_masked_in_the_error_stood_in_clear_beside_it(spm: Spm) -> None:
    check = "exec:PGPASSWORD=hunter2secret false"
    write(spm, {"a": worker("1", ready=check), "b": worker("2", ready=check)})
    done = spm.json("up", "--wait", "200ms", code=124)
    told = [done["error"], *(one["error"] for one in done["services"])]
    assert ["PGPASSWORD=…" in one["message"] for one in told] == [True] * 3
    assert "hunter2" not in json.dumps(done)
    assert "hunter2" not in spm("up", "--wait", "200ms", code=124).stderr
    spm("cleanup")


def test_a_down_that_failed_said_that_nothing_was_running(spm: Spm) -> None:
    write(spm, {"a": worker("1"), "b": worker("2", depends_on=["a"])})
    spm("up")
    copied = spm.base / "copied"  # nothing is signalled from there
    shutil.copytree(spm.home, copied, ignore=shutil.ignore_patterns("*.sock"))
    failed = spm.json("down", "--home", copied, code=8)
    assert [one["name"] for one in failed["errors"]] == ["b", "a"]
    done = spm("down", "--home", copied, code=8)
    assert (done.stdout, done.stderr.count("[ERROR] ")) == ("", 2)
    spm("down")


def test_a_rollback_that_changed_nothing_back_said_that_it_did(spm: Spm) -> None:
    write(spm, {"a": worker("1")})
    spm("up")
    kill = {"command": f"sh -c 'kill -9 {spm.supervisor('a')}; exit 3'", "depends_on": ["a"]}
    write(spm, {"a": worker("1", max_restarts=9), "bad": kill})
    done = spm("up", "--wait", "--rollback-on-failure", code=1)
    assert "[ERROR] a is not what it was before: its supervisor took nothing over" in done.stderr
    assert "; not wholly rolled back to what ran before" in done.stderr
    spm("down")


def test_after_a_rollback_a_down_stopped_what_was_started_by_hand(spm: Spm) -> None:
    write(spm, {"a": worker("1"), "bad": {"command": "false", "depends_on": ["a"]}})
    spm("start", "a", "sleep 300.1")
    before = pids(spm)
    assert spm.json("up", "a", "bad", "--wait", "--rollback-on-failure", code=1)["rolled_back"]
    spm("down")
    assert pids(spm) == before
    spm("stop", "a")


def test_what_a_cleanup_forgot_before_an_up_could_stop_it_is_no_surprise(spm: Spm) -> None:
    write(spm, {"a": worker("1"), "b": worker("2")})
    spm("up")
    store = spm_module.Store(str(spm.home))
    known = spm_module.known_services(store)
    spm("cleanup")
    args = argparse.Namespace(wait=None, names=[], say=print, progress=print)
    steps = [spm_module.Step("stop", name) for name in known]
    done = spm_module.Application(spm_module.Store(str(spm.home)), steps, known, args).run()
    assert {(one.result, one.error) for one in done} == {("done", None)}


def test_a_configuration_that_is_named_and_not_there_was_passed_over(spm: Spm) -> None:
    (spm.cwd / "Procfile").write_text("worker: sleep 100\n")
    done = spm("up", "--config", "typo.json", "--procfile", "Procfile", code=6)
    assert "there is no typo.json" in done.stderr and not pids(spm)


def test_watch_sees_files_that_come_later_and_those_of_a_broken_edit(spm: Spm) -> None:
    write(spm, {"a": worker("1")}, include=["later.json"])
    process = spm.popen("up", "--watch")
    server = {"command": SERVER[0], "args": SERVER[1:]}
    try:
        eventually(lambda: pids(spm).keys() == {"a"})
        (spm.cwd / "later.json").write_text(json.dumps({"mcpServers": {"b": server}}))
        eventually(lambda: pids(spm).keys() == {"a", "b"})
        (spm.cwd / "new.json").write_text("{")
        write(spm, {"a": worker("1")}, include=["later.json", "new.json"])
        assert process.stdout
        told = ""
        while "new.json: line 1" not in told:
            told = process.stdout.readline()
        (spm.cwd / "new.json").write_text(json.dumps({"mcpServers": {"c": server}}))
        eventually(lambda: pids(spm).keys() == {"a", "b", "c"})
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    spm("cleanup")


def test_a_service_whose_name_is_written_otherwise_was_ended_for_one_that_cant_start(
    spm: Spm,
) -> None:
    write(spm, {"api": worker("1", port=free_port()), "b": worker("2")})
    spm("up")
    before = pids(spm)
    write(spm, {"Api": {"command": "no-such-program"}, "b": worker("2")})
    assert "what runs was left alone" in spm("up", code=4).stderr
    assert pids(spm) == before
    spm("down")


def test_down_names_what_never_ran(spm: Spm) -> None:
    write(spm, {"a": worker("1"), "b": worker("2")})
    spm("up", "a")
    assert "nothing of it was running" in spm("down", "B").stdout
    assert "a stopped" in spm("down", "a", "b").stdout
    assert "no service 'c'" in spm("down", "c", code=3).stderr
    spm("start", "b", "sleep 300.2")
    assert "b runs" not in spm("down", "a").stderr, "nobody asked for it"
    spm("stop", "b")


def test_what_was_taken_over_from_a_dead_supervisor_stayed_somebody_elses(spm: Spm) -> None:
    spm("start", "a", "sleep 300.1")
    spm.kill_supervisor("a")
    write(spm, {"a": worker("1")})
    spm("up", "a")
    assert spm.record("a")["config"] == str(spm.cwd / "spm.json")
    assert spm("up").stderr.split() == ["keep", "a"]
    assert "a stopped" in spm("down").stdout


def test_what_a_rollback_forgot_was_to_be_restarted(spm: Spm) -> None:
    write(spm, {"bad": {"command": "false", "ready": "tcp:1"}})
    told = spm("up", "--wait", "--rollback-on-failure", code=1).stderr
    assert "then: up" in told and "restart bad" not in told


def test_what_a_run_had_started_belongs_to_it_again_after_a_rollback(spm: Spm) -> None:
    command = nasty("--say", "up")
    words = ("a", command, "--ready", "log:up", "--", "cat")
    tests = spm.popen("run", *words, stdin=subprocess.PIPE)
    eventually(lambda: "a" in pids(spm))
    other = {"command": command, "ready": "log:up", "max_restarts": 9, "env": {"K": "v"}}
    write(spm, {"a": other, "bad": {"command": "false", "ready": "tcp:1", "depends_on": ["a"]}})
    spm("up", "a", "bad", "--wait", "--rollback-on-failure", code=1)
    assert spm.record("a")["owner"]["pid"] == tests.pid
    tests.communicate(timeout=10)
    eventually(lambda: not pids(spm), what="the end of what has no owner any more")


def test_an_up_said_ok_of_a_service_that_waited_for_its_restart(spm: Spm) -> None:
    dies = {"command": "sh -c 'exit 3'", "restart": "on-failure", "backoff": "20s"}
    write(spm, {"a": dies, "b": worker()})
    spm("up")
    eventually(lambda: spm.service("a")["status"] == "backoff")
    assert actions(spm.json("up", "--dry-run")["plan"]) == {
        "a": "start because it waits for its restart",
        "b": "keep",
    }
    write(spm, {"a": {**dies, "command": "sleep 300", "backoff": "21s"}, "b": worker()})
    spm("up", "--wait")
    assert spm.service("a")["status"] == "running"
    spm("down")


def test_a_service_that_waited_for_its_restart_is_started_anew_by_up(spm: Spm) -> None:
    command = "sh -c 'test -e go && exec sleep 300; exit 3'"
    write(spm, {"a": {"command": command, "restart": "on-failure", "backoff": "20s"}})
    for more in ({}, {"backoff_max": "70s"}):
        spm("up")
        eventually(lambda: spm.service("a")["status"] == "backoff")
        (spm.cwd / "go").touch()
        keys = {"command": command, "restart": "on-failure", "backoff": "20s", **more}
        write(spm, {"a": keys})
        spm("up")
        assert spm.service("a")["status"] == "running"
        assert spm.record("a")["spec"]["backoff_max_s"] == (70 if more else 60)
        spm("down")
        (spm.cwd / "go").unlink()


def test_a_down_of_a_procfile_that_is_not_there_stopped_services(spm: Spm) -> None:
    (spm.cwd / "Procfile").write_text("worker: sleep 100\n")
    spm("up", "--procfile", "Procfile")
    before = pids(spm)
    for option in ("--procfile", "--mcp-config"):
        error = spm.json("down", option, "TYPO", code=6)["error"]
        assert "TYPO: No such file" in error["message"]
        assert pids(spm) == before
    (spm.cwd / "Procfile").write_text("no line of one\n")
    spm("down", "--procfile", "Procfile")
    assert not pids(spm), "a broken one is no reason to keep what is recorded"


def test_a_job_of_a_procfile_got_advice_that_it_could_not_follow(spm: Spm) -> None:
    (spm.cwd / "Procfile").write_text("release: echo migrated\n")
    told = spm("up", "--procfile", "Procfile", "--wait", code=1).stderr
    assert "which has no such keys: have an spm.json made of it first, init --config" in told


def test_a_procfile_alone_that_is_valid_was_called_spm_json(spm: Spm) -> None:
    (spm.cwd / "Procfile").write_text("worker: sleep 100\n")
    told = spm("up", "zzz", "--procfile", "Procfile", code=3).stderr
    assert told.startswith("[ERROR] Procfile has no service 'zzz'\n")
    words = ("config", "validate", "--procfile", "Procfile")
    assert spm(*words).stdout == "[OK] Procfile is valid: 1 service\n"
    write(spm, {"a": worker()})
    assert spm(*words).stdout == "[OK] spm.json, Procfile is valid: 2 services\n"


def test_an_spm_json_below_the_home_was_said_not_to_be_there(spm: Spm) -> None:
    del spm.env["SPM_HOME"]
    (spm.cwd / ".spm").mkdir(mode=0o700)
    (spm.cwd / "x").mkdir()
    (spm.cwd / "x" / "spm.json").write_text('{"services": {}}')
    told = spm("up", code=6, cwd=spm.cwd / "x").stderr
    home = os.path.realpath(spm.cwd / ".spm")
    assert f"the home is {home}; for the spm.json here: --config spm.json" in told
    spm("up", "--config", "spm.json", cwd=spm.cwd / "x")


def test_who_names_no_service_is_told_which_there_are(spm: Spm) -> None:
    write(spm, {"web": worker(), "queue": worker()})
    told = spm("up", "wbe", code=3).stderr
    assert "did you mean web? services there: web, queue" in told
    told = spm("export", "compose", "nosuch", code=3).stderr
    assert "services here: web, queue" in told
