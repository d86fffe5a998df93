"""Who holds a port: told and classified; leftovers are taken back, nobody else is touched."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import GENERIC, Spm, eventually, free_port, is_running, nasty
from hypothesis import given
from hypothesis import strategies as st

import simple_process_manager as program

LISTEN = """
import os, signal, socket, sys, time
host, port, stubborn = sys.argv[1], int(sys.argv[2]), "stubborn" in sys.argv
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
family = socket.AF_INET6 if ":" in host else socket.AF_INET
server = socket.create_server((host, port), family=family)
if "nobody" in sys.argv:
    os.setgid(65534)
    os.setuid(65534)
print("listening", flush=True)
while True:
    time.sleep(60)
"""
Hold = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Have a process of its own listen on a port; whoever is left is ended."""
    holders: list[subprocess.Popen[str]] = []

    def start(port: int, cwd: Path, *words: str, host: str = "127.0.0.1") -> subprocess.Popen[str]:
        argv = [sys.executable, "-S", "-c", LISTEN, host, str(port), *words]
        holder = subprocess.Popen(argv, cwd=cwd, stdout=subprocess.PIPE, text=True)
        holders.append(holder)
        assert holder.stdout and holder.stdout.readline() == "listening\n"
        return holder

    yield start
    for holder in holders:
        holder.kill()
        holder.wait()
        assert holder.stdout
        holder.stdout.close()


@pytest.fixture
def elsewhere(base: Path) -> Path:
    """A directory that isn't inside the project of `spm`."""
    path = base / "elsewhere"
    path.mkdir()
    return path


@pytest.fixture
def other(base: Path) -> Iterator[Spm]:
    """Another home; what is left in it is ended."""
    (base / "other").mkdir()
    one = Spm(base / "other")
    yield one
    one("cleanup", code=None)


def events(spm: Spm, name: str) -> list[str]:
    """The events of a service, oldest first."""
    lines = (spm.home / "services" / name / "events.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["event"] for line in lines]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# -- port N


def test_port_says_who_listens_and_what_would_be_done(
    spm: Spm, port: int, hold: Hold, elsewhere: Path
) -> None:
    assert f"[OK] port {port} is free" in spm("port", port).stdout
    assert spm.json("port", port)["free"] is True
    holder = hold(port, elsewhere)
    said = spm("port", port, code=5)
    assert f"port {port} is held: pid {holder.pid}" in said.stderr
    assert "another process of yours" in said.stderr and f"kill {holder.pid}" in said.stderr
    assert f"port {port} --free --on-conflict kill" in said.stderr
    assert f"in {elsewhere}" in said.stderr and "would: fail" in said.stdout
    error = spm.json("port", port, code=5)["error"]
    (facts,) = error["holders"]
    assert (facts["pid"], facts["kind"], facts["cwd"]) == (holder.pid, "foreign", str(elsewhere))
    assert facts["user"] == psutil.Process().username() and LISTEN in facts["command"]
    assert (facts["addresses"], facts["service"]) == (["127.0.0.1"], None)
    assert (error["kind"], error["decision"], error["port"]) == ("port_conflict", "fail", port)


def test_port_names_the_service_and_home_of_who_listens(spm: Spm, other: Spm, port: int) -> None:
    spm("start", "web", nasty("--port", port))
    spm("wait-healthy", "web", 10)
    (here,) = spm.json("port", port, code=5)["error"]["holders"]
    assert (here["kind"], here["service"]) == ("another service of this home", "web")
    said = other("port", port, "--free", "--on-conflict", "kill", code=5).stderr
    assert "a service of another home" in said and f"stop web --home {spm.home}" in said
    spm("stop", "web")


def test_port_free_ends_a_leftover_and_nobody_else(
    spm: Spm, port: int, hold: Hold, elsewhere: Path
) -> None:
    spm.forget_home()
    leftover = hold(port, spm.cwd)
    assert spm.json("port", port, code=5)["error"]["decision"] == "take back"
    spm("port", port, "--free", code=8, env={**spm.env, "ENVIRONMENT": "production"})
    assert not spm.home.exists(), "a state directory is made only for what was ended"
    freed = spm("port", port, "--free")
    assert f"[WARN] port {port} was held: pid {leftover.pid}" in freed.stderr
    assert "1 process ended" in freed.stderr and f"[OK] port {port} is free" in freed.stdout
    assert leftover.wait(5) == -15
    held, ended = spm("events").stdout.splitlines()
    assert f" port-{port} port_held: port {port} is held: pid {leftover.pid}" in held
    assert held.endswith(": take back")
    assert f" port-{port} port_freed: port {port} was held: pid {leftover.pid}" in ended
    foreign = hold(port, elsewhere)
    assert "--on-conflict kill" in spm("port", port, "--free", code=5).stderr
    assert foreign.poll() is None
    told = spm("events", f"port-{port}").stdout.splitlines()
    assert told[:2] == [held, ended] and told[2].endswith(": fail")
    spm("start", "api", "sleep 100", "--port", port, "--force")
    spm("port", port, "--free", "--on-conflict", "kill")
    assert foreign.wait(5) == -15
    assert events(spm, "api") == ["port_held", "started", "port_held", "port_freed"]
    assert f"pid {foreign.pid}" in spm("events", "api").stdout
    spm("stop", "api")


def test_of_two_that_declare_a_port_and_start_at_once_one_is_refused(spm: Spm, port: int) -> None:
    spm("start", "dead", "false", "--port", port, code=None)
    eventually(lambda: spm.service("dead")["status"] == "failed", what="its end")
    starts = [
        spm.popen("start", name, "sleep 100", "--port", port, "--json") for name in ("a", "b")
    ]
    told = [json.loads(one.communicate(timeout=30)[0]) for one in starts]
    assert sorted(one.returncode for one in starts) == [0, 5], told
    first, second = ("a", "b") if told[0]["ok"] else ("b", "a")
    error = next(one["error"] for one in told if not one["ok"])
    assert (error["kind"], error["service"]) == ("port_conflict", first)
    assert f"port {port} is kept for {first}, which is " in error["message"]
    assert second not in spm.state()["services"], "it left a record"
    spm("start", second, "sleep 100", "--port", port, "--force")
    moved = spm.json("start", "c", "sleep 100", "--port", port, "--on-conflict", "next")
    assert moved["port"] > port
    assert f"port {port} is another service's, or can't be bound" in moved["warnings"][0]
    spm("cleanup")


def test_a_client_of_a_port_isnt_its_holder(spm: Spm, port: int) -> None:
    server = socket.create_server(("127.0.0.1", port))
    client = socket.create_connection(("127.0.0.1", port))
    accepted, _ = server.accept()
    server.close()
    with client, accepted:
        assert spm.json("port", port)["free"] is True
        assert spm.json("port", client.getsockname()[1])["free"] is True


def test_the_look_at_a_free_port_takes_no_time(port: int, base: Path) -> None:
    store = program.Store(str(base / "home"))
    began = time.perf_counter()
    for _ in range(10):
        assert program.held_port(store, port, "api") is None
    assert (time.perf_counter() - began) / 10 < 0.05


# -- start --port N on a held port


UNSEEN = "where each process has to be asked for its sockets, only a port that answers is looked at"
AWAY = pytest.param("127.0.0.9", marks=pytest.mark.skipif(GENERIC, reason=UNSEEN))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", AWAY])
def test_a_leftover_of_this_project_is_taken_back_and_that_is_told(
    spm: Spm, port: int, hold: Hold, host: str
) -> None:
    leftover = hold(port, spm.cwd, host=host)
    started = spm("start", "api", nasty("--port", "{port}"), "--port", port)
    assert leftover.wait(5) == -15
    assert f"[WARN] port {port} was held: pid {leftover.pid}" in started.stderr
    assert "a leftover of this project" in started.stderr and "ended in" in started.stderr
    spm("wait-healthy", "api", 10)
    assert events(spm, "api") == ["port_held", "port_freed", "started"]
    spm("stop", "api")


def test_a_start_that_fails_tells_what_it_ended_before(spm: Spm, port: int, hold: Hold) -> None:
    spm("start", "api", "sleep 100", "--port", port)
    stranger = hold(port, Path("/"))
    done = spm("start", "api", "sleep 101", "--replace", "--port", port, code=5)
    assert "[WARN] api: 1 process of its former instance ended\n" in done.stderr
    stranger.kill()
    eventually(lambda: not listens(port))
    hold(port, spm.cwd)
    done = spm("start", "api", "no-such-program", "--port", port, code=4)
    assert f"[WARN] port {port} was held: pid " in done.stderr


def test_a_leftover_that_ignores_sigterm_is_killed_with_its_children(spm: Spm, port: int) -> None:
    pids = spm.base / "pids"
    argv = spm.argv()[:1] + nasty("--port", port, "--child", "--pids", pids).split()[1:]
    leftover = subprocess.Popen(argv, cwd=spm.cwd)
    eventually(lambda: listens(port))
    both = list(map(int, pids.read_text().split()))
    spm("start", "api", nasty(), "--port", port)
    assert leftover.wait(5) == -15 and len(both) == 2
    eventually(lambda: not any(map(is_running, both)), what="the end of the child too")
    spm("stop", "api")


@pytest.mark.parametrize("inner", [".git", ".spm"])
def test_what_runs_in_a_project_within_the_project_is_no_leftover(
    spm: Spm, port: int, hold: Hold, inner: str
) -> None:
    spm.home = spm.cwd / ".spm"
    del spm.env["SPM_HOME"]
    nested, plain = spm.cwd / "nested" / "src", spm.cwd / "src"
    nested.mkdir(parents=True)
    plain.mkdir()
    (spm.cwd / "nested" / inner).mkdir()
    foreign = hold(port, nested)
    assert "process of yours" in spm("start", "api", nasty(), "--port", port, code=5).stderr
    assert foreign.poll() is None
    second = free_port()
    leftover = hold(second, plain)
    spm("start", "api", nasty(), "--port", second)
    assert leftover.wait(5) == -15
    spm("stop", "api")


def test_in_the_users_own_directory_nothing_is_a_leftover(spm: Spm, port: int, hold: Hold) -> None:
    spm.env.update(HOME=str(spm.cwd), SPM_HOME=str(spm.cwd / ".spm"))
    spm.home = spm.cwd / ".spm"
    hold(port, spm.cwd)
    assert spm.json("port", port, code=5)["error"]["holders"][0]["kind"] == "foreign"


def test_a_foreign_process_is_left_alone_and_ended_by_kill(
    spm: Spm, port: int, hold: Hold, elsewhere: Path
) -> None:
    foreign = hold(port, elsewhere)
    for flags in ((), ("--on-conflict", "auto"), ("--on-conflict", "fail")):
        refused = spm("start", "api", nasty(), "--port", port, *flags, code=5)
        assert "process of yours" in refused.stderr and "--on-conflict kill" in refused.stderr
    assert foreign.poll() is None
    assert "api" not in spm("list").stdout
    spm("start", "api", nasty(), "--port", port, "--on-conflict", "kill")
    assert foreign.wait(5) == -15
    spm("stop", "api")


def test_fail_leaves_even_a_leftover_alone_and_force_starts_beside_it(
    spm: Spm, port: int, hold: Hold
) -> None:
    leftover = hold(port, spm.cwd)
    refused = spm("start", "api", nasty(), "--port", port, "--on-conflict", "fail", code=5)
    assert "a leftover of this project" in refused.stderr
    warned = spm("start", "api", nasty(), "--port", port, "--force")
    assert "[WARN]" in warned.stderr and leftover.poll() is None
    spm("stop", "api")


@pytest.mark.parametrize("flag", ["auto", "kill"])
def test_another_service_is_never_ended_for_a_port(
    spm: Spm, other: Spm, port: int, flag: str
) -> None:
    spm("start", "web", nasty("--port", port), "--port", port)
    spm("wait-healthy", "web", 10)
    start = ("start", "api", nasty(), "--port", port, "--on-conflict", flag)
    assert "→ stop web" in spm(*start, code=5).stderr
    assert f"→ stop web --home {spm.home}" in other(*start, code=5).stderr
    assert spm.service("web")["status"] == "running"
    spm("stop", "web")


def test_an_ancestor_of_the_caller_is_never_touched(spm: Spm, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        start = ("start", "api", nasty(), "--port", port, "--on-conflict", "kill")
        refused = spm(*start, code=5)
        assert "not ours to touch" in refused.stderr and f"pid {os.getpid()}" in refused.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_a_process_of_another_user_is_never_touched(spm: Spm, port: int, hold: Hold) -> None:
    theirs = hold(port, spm.cwd, "nobody")
    refused = spm("start", "api", nasty(), "--port", port, "--on-conflict", "kill", code=5)
    assert "not ours to touch" in refused.stderr and f"pid {theirs.pid}" in refused.stderr
    assert theirs.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_to_stop_another_users_service_was_advised_though_that_is_refused(
    spm: Spm, port: int, hold: Hold, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = base / "theirs"
    home.mkdir()
    os.chown(home, 65534, 65534)
    for name, value in (("INSTANCE", "ab" * 16), ("SERVICE", "a"), ("HOME", str(home))):
        monkeypatch.setenv(f"SPM_{name}", value)
    hold(port, base, "nobody")
    told = spm("port", port, code=5).stderr
    assert f"service a of {home}), not ours to touch\n  → leave it to its owner\n" in told
    spm("stop", "a", "--home", home, code=9)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_without_the_rights_to_see_the_holder_that_is_what_is_said(port: int, base: Path) -> None:
    base.chmod(0o711)
    ask = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); import simple_process_manager as p\n"
        "look = lambda: p.held_port(p.Store(sys.argv[2]), int(sys.argv[3]), 'api')\n"
        "look()  # imports what it needs\n"
        "os.setgid(65534); os.setuid(65534); p.my_user_id = os.geteuid()\n"
        "print(look(), look().holders[0].identity)\n"
    )
    argv = [sys.executable, "-c", ask, str(Path(program.__file__).parent), str(base / "h")]
    with socket.create_server(("127.0.0.1", port)):
        said = subprocess.check_output([*argv, str(port)], cwd="/", text=True)
    who = "a process of user root that this user can't see"
    assert said == f"port {port} is held: {who}, not ours to touch None\n"


def test_what_an_instance_of_this_service_left_is_taken_back(spm: Spm, port: int) -> None:
    spm("start", "api", nasty("--port", port), "--port", port)
    spm("wait-healthy", "api", 10)
    stale = psutil.Process(spm.service("api")["pid"])
    # Its record is lost and its supervisor gone: only the cookie tells whose it is.
    spm.kill_supervisor("api")
    (spm.home / "services" / "api" / "control.sock").unlink()
    (spm.home / "state.json").write_text('{"schema": 1, "services": {}}', "utf-8")
    assert spm.json("port", port, code=5)["error"]["holders"][0]["service"] == "api"
    started = spm("start", "api", nasty("--port", port), "--port", port)
    assert ", this service: " in started.stderr and f"pid {stale.pid}" in started.stderr
    assert not is_running(stale.pid)
    spm("wait-healthy", "api", 10)
    spm("stop", "api")


def test_for_a_recognised_port_only_what_this_service_left_is_ended(
    spm: Spm, port: int, hold: Hold
) -> None:
    leftover = hold(port, spm.cwd)
    warned = spm("start", "api", f"sleep 100 --port {port}", code=None)
    assert f"[WARN] port {port} is held already: pid {leftover.pid}" in warned.stderr
    assert leftover.poll() is None
    spm("cleanup")


# -- production


@pytest.mark.parametrize("flag", list(program.ON_CONFLICT))
@pytest.mark.parametrize("name", ["ENVIRONMENT", "SPM_ENVIRONMENT"])
def test_in_production_nothing_is_ended_for_a_port(
    spm: Spm, port: int, hold: Hold, flag: str, name: str
) -> None:
    leftover = hold(port, spm.cwd)
    env = {**spm.env, name: "Production"}
    start = ("start", "api", nasty(), "--port", port, "--on-conflict", flag)
    refused = spm(*start, code=8, env=env)
    assert f"pid {leftover.pid}" in refused.stderr and f"kill {leftover.pid}" in refused.stderr
    free = spm("port", port, "--free", "--on-conflict", flag, code=8, env=env)
    assert "production" in free.stderr and leftover.poll() is None
    assert spm("port", port, code=5, env=env).stderr


def test_the_environment_given_to_a_service_can_be_production_too(
    spm: Spm, port: int, hold: Hold
) -> None:
    leftover = hold(port, spm.cwd)
    start = ("start", "api", nasty(), "--port", port)
    spm(*start, "--env", "ENVIRONMENT=production", code=8)
    assert leftover.poll() is None
    spm(*start, "--env", "ENVIRONMENT=prod")
    assert leftover.wait(5) == -15
    spm("stop", "api")


# -- another port


def test_next_takes_the_next_free_port_and_keeps_it(spm: Spm, port: int, hold: Hold) -> None:
    holder = hold(port, spm.cwd)
    start = ("start", "api", nasty("--port", "{port}"), "--port", port, "--on-conflict", "next")
    started = spm.json(*start)
    chosen = started["port"]
    assert chosen > port and started["port_origin"] == "chosen" and holder.poll() is None
    assert f"port {port} is held" in started["warnings"][0]
    assert psutil.Process(started["pid"]).environ()["PORT"] == str(chosen)
    assert spm.json("wait-healthy", "api", 10)["port"] == chosen
    assert f"port {chosen} chosen" in spm(*start).stdout, "the same spec runs already"
    assert events(spm, "api") == ["port_held", "port_chosen", "started"]
    spm("restart", "api")
    assert spm.service("api")["port"] == chosen
    spm(*start, "--replace", "--env", "MODE=other")
    assert spm.service("api")["port"] == chosen
    plain = spm("start", "api", nasty("--port", "{port}"), "--port", port, code=8).stderr
    assert f"port: {chosen} → {port}" in plain
    spm("stop", "api")
    holder.kill()
    holder.wait()
    assert spm.json(*start)["port"] == port, "what was asked for is free again"
    spm("stop", "api")


def test_auto_gives_the_same_port_from_start_to_start(spm: Spm) -> None:
    start = ("start", "api", nasty("--port", "{port}"), "--port", "auto")
    first = spm.json(*start)
    port = first["port"]
    assert port in program.AUTO_PORTS and first["port_origin"] == "chosen"
    assert spm.json("wait-healthy", "api", 10)["pid"] == first["pid"]
    assert psutil.Process(first["pid"]).environ()["PORT"] == str(port)
    assert spm.json(*start)["already_running"] is True
    assert f"--port {port}" in spm.service("api")["command"]
    for again in (("restart", "api"), (*start, "--env", "MODE=a", "--replace"), ("stop", "api")):
        spm(*again)
        assert spm.service("api")["port"] == port
    assert spm.json("start", "api")["port"] == port
    spm("cleanup", "--purge")
    assert spm.json(*start)["port"] == port, "the choice comes from home and name"
    spm("stop", "api")
    with socket.create_server(("127.0.0.1", port)):
        moved = spm.json("start", "api")
        assert moved["port"] != port
        assert psutil.Process(moved["pid"]).cmdline()[-1] == str(moved["port"])
    spm("stop", "api")


@pytest.mark.parametrize(
    ("count", "flags"), [(20, ("auto",)), (6, ("{port}", "--on-conflict", "next"))]
)
def test_twenty_starts_at_once_get_twenty_ports(
    spm: Spm, port: int, count: int, flags: tuple[str, ...]
) -> None:
    words = [word.format(port=port) for word in flags]
    starts = [
        spm.popen("start", f"s{n}", "sleep 100", "--json", "--port", *words) for n in range(count)
    ]
    answers = [start.communicate(timeout=60) for start in starts]
    ports = [json.loads(out)["port"] for out, _ in answers]
    assert len(set(ports)) == count, sorted(ports)
    assert {row["port"] for row in spm.json("list")["services"]} == set(ports)
    spm("cleanup")


def test_two_homes_in_the_same_project_get_different_ports(spm: Spm, other: Spm) -> None:
    start = ("start", "api", nasty("--port", "{port}"), "--port", "auto")
    ports = {one.json(*start)["port"] for one in (spm, other)}
    assert len(ports) == 2
    for one in (spm, other):
        assert one.json("wait-healthy", "api", 10)["port"] in ports
        one("stop", "api")


def test_of_two_homes_that_fight_for_a_port_one_is_told_who_won(
    spm: Spm, other: Spm, port: int
) -> None:
    start = ("start", "api", nasty("--port", port), "--port", port, "--json")
    for command in [one.popen(*start) for one in (spm, other)]:
        command.communicate(timeout=30)
    eventually(lambda: listens(port))
    (pid,) = [one["pid"] for one in spm.json("port", port, code=5)["error"]["holders"]]
    rows = spm.json("list")["services"]  # who lost early has no record
    winner, loser = (spm, other) if pid in [row["pid"] for row in rows] else (other, spm)
    winner("wait-healthy", "api", 10)
    loser("stop", "api", code=None)
    refused = loser(*start[:-1], code=5)
    assert f"stop api --home {winner.home}" in refused.stderr
    winner("stop", "api")


def test_a_wrong_word_for_a_conflict_is_told(spm: Spm) -> None:
    said = spm("start", "api", "sleep 9", "--port", 80, "--on-conflict", "ask", code=2).stderr
    assert "auto, kill, fail, next" in said
    assert "not a port" in spm("start", "api", "sleep 9", "--port", "any", code=2).stderr


# -- decisions

SEEN = program.Holder(program.Identity(812, "1@b"), "ann", True, "python3", cwd="/p")
OURS = program.Cookie("i", "api", "/h")


@pytest.mark.parametrize(
    ("holder", "in_project", "kind"),
    [
        (SEEN._replace(cookie=OURS), True, "this service"),
        (SEEN._replace(cookie=OURS._replace(service="web")), True, "another service of this home"),
        (SEEN._replace(cookie=OURS._replace(home="/x")), True, "a service of another home"),
        (SEEN, True, "a leftover of this project"),
        (SEEN, False, "foreign"),
        (SEEN._replace(is_ours=False), True, "not ours to touch"),

        (SEEN._replace(identity=None), True, "not ours to touch"),
        (SEEN._replace(identity=program.Identity(1, "1@b")), True, "not ours to touch"),
        (SEEN._replace(user="root", cwd="/"), False, "not ours to touch"),
        *((SEEN._replace(name=name), True, "not ours to touch") for name in (
            "docker-proxy", "containerd-shim", "rootlessport", "slirp4netns", "conmon", "podman",
            "systemd", "com.docker.backend",
        )),
    ],
)  # fmt: skip
def test_the_kind_of_a_holder(holder: program.Holder, in_project: bool, kind: str) -> None:
    assert program.classify_holder(holder, "API", "/h", in_project) == kind


@given(
    kind=st.sampled_from(list(program.HOLDER_KINDS)),
    flag=st.sampled_from(list(program.ON_CONFLICT)),
    production=st.booleans(),
)
def test_only_what_may_be_ended_is_ended(kind: str, flag: str, production: bool) -> None:
    decision = program.port_decision(kind, flag, production)
    ends = decision in ("take back", "end")
    assert not (ends and (production or flag in ("fail", "next")))
    assert not (ends and kind in ("not ours to touch", program.HERE, program.ELSEWHERE))
    assert not (ends and kind == "foreign" and flag != "kill")


def test_only_the_word_production_is_production() -> None:
    for value in ("production", "PRODUCTION", "Production"):
        assert program.is_production({"ENVIRONMENT": value})
        assert program.is_production({"SPM_ENVIRONMENT": value, "ENVIRONMENT": "test"})
    for value in ("prod", "", "staging", "development"):
        assert not program.is_production({"ENVIRONMENT": value})


# -- servers of several processes


PREFORK = """
import os, signal, socket, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
workers = [os.fork() for _ in range(3) if os.getpid() == int(os.environ["LEADER"])]
print("ready", flush=True)
time.sleep(60)
"""


def test_all_who_share_a_listening_socket_are_its_holders(spm: Spm, port: int) -> None:
    argv = [sys.executable, "-S", "-c", "import os; os.environ['LEADER'] = str(os.getpid())"]
    argv[-1] += PREFORK
    with subprocess.Popen([*argv, str(port)], cwd=spm.cwd, stdout=subprocess.PIPE) as master:
        assert master.stdout
        for _ in range(4):
            master.stdout.readline()
        everybody = [master.pid, *(one.pid for one in psutil.Process(master.pid).children())]
        os.kill(master.pid, 9)
        eventually(lambda: not is_running(master.pid))
        workers = {one["pid"] for one in spm.json("port", port, code=5)["error"]["holders"]}
        assert workers == set(everybody[1:]) and len(workers) == 3
        assert "3 processes ended" in spm("port", port, "--free").stderr
        eventually(lambda: not any(map(is_running, everybody)))


def test_a_reloading_server_left_over_is_ended_with_its_watcher(
    spm: Spm, port: int, hold: Hold
) -> None:
    (spm.cwd / "app.py").write_text(
        "async def app(scope, receive, send):\n"
        "    await send({'type': 'http.response.start', 'status': 200})\n"
        "    await send({'type': 'http.response.body', 'body': b'ok'})\n",
        "utf-8",
    )
    argv = [sys.executable, "-m", "uvicorn", "app:app", "--reload", "--port", str(port)]
    null = subprocess.DEVNULL
    with subprocess.Popen(argv, cwd=spm.cwd, stdout=null, stderr=null) as watcher:
        eventually(lambda: listens(port))
        started = spm("start", "api", nasty("--port", port), "--port", port)
        assert "a leftover of this project" in started.stderr
        assert watcher.wait(10) is not None
    assert spm.json("wait-healthy", "api", 10)["pid"] == spm.service("api")["pid"]
    spm("stop", "api")


def test_a_service_that_cleared_its_environment_is_still_known_as_one(spm: Spm, port: int) -> None:
    clean = f"/usr/bin/env -i {sys.executable} -S {nasty('--port', port).split(maxsplit=1)[1]}"
    spm("start", "web", clean, "--cwd", spm.cwd)
    spm("wait-healthy", "web", 10)
    (holder,) = spm.json("port", port, code=5)["error"]["holders"]
    assert (holder["kind"], holder["service"]) == ("another service of this home", "web")
    spm.kill_supervisor("web")
    (holder,) = spm.json("port", port, code=5)["error"]["holders"]
    assert (holder["kind"], holder["service"]) == ("another service of this home", "web")
    assert "→ stop web" in spm("start", "api", nasty(), "--port", port, code=5).stderr
    spm("stop", "web")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can")
def test_a_port_of_a_service_that_became_another_user_is_freed_by_its_stop(
    spm: Spm, port: int
) -> None:
    # nginx does: its workers listen as nobody
    server = f"import os, socket, time; one = socket.create_server(('127.0.0.1', {port})); "
    spm("start", "web", "--", sys.executable, "-c", f"{server}os.setuid(65534); time.sleep(90)")
    told = eventually(lambda: spm("port", port, code=None).stderr, what="a listener")
    assert "not ours to touch" in told
    assert f"→ stop web --home {spm.home}" in told
    spm("stop", "web")
