"""list, status, logs, touch, help: what people and agents read."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import GENERIC, SCRIPT, Spm, eventually, nasty

import simple_process_manager as program


def test_an_empty_home_says_what_to_do(spm: Spm) -> None:
    spm.forget_home()
    assert 'start one: start NAME "COMMAND"' in spm("list").stdout
    assert spm.json("list")["services"] == []
    assert not spm.home.exists(), "looking leaves nothing behind"


def test_list_is_a_table_that_keeps_whole_commands_in_a_pipe(spm: Spm, port: int) -> None:
    command = nasty("--port", port, "--say", "x" * 200)
    spm("start", "web", command)
    head, row = spm("list").stdout.splitlines()
    assert head.split() == ["name", "status", "pid", "port", "uptime", "cpu", "memory", "command"]
    assert row.split()[:4] == ["web", "running", str(spm.service("web")["pid"]), f"{port}?"]
    assert row.endswith(command)
    assert row.index("running") == head.index("status")
    spm("stop", "web")


def test_a_command_of_100_kb_flooded_who_looked_at_it(spm: Spm) -> None:
    command = nasty("--say", "x" * 100_000)
    spm("start", "web", command)
    for words in (("list",), ("status", "web"), ("explain", "web")):
        told = spm(*words).stdout
        assert len(told) < 5_000 and "x" * 50 + "…" in told, words
        assert command in json.dumps(spm.json(*words)), words
    spm("stop", "web")


def in_terminal(spm: Spm, *words: str, columns: int = 60, **env: str) -> str:
    """What a command writes to a terminal of this width."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(spm.cwd)
        size = subprocess.run(["stty", "cols", str(columns)], check=True)
        assert size.returncode == 0
        os.execve(sys.executable, spm.argv(*words), {**spm.env, **env})
    output = b""
    try:
        while chunk := os.read(terminal, 4096):
            output += chunk
    except OSError:
        pass  # EIO: the other end is closed
    os.waitpid(pid, 0)
    os.close(terminal)
    return output.decode()


def test_a_terminal_gets_lines_that_fit_and_colour_unless_unwanted(spm: Spm) -> None:
    spm("start", "web", nasty("--say", "x" * 200))
    assert all(len(line) <= 60 for line in in_terminal(spm, "list").splitlines())
    spm("start", "wide", "--", "sh", "-c", "sleep 100 # \t\x1b[1m", "世" * 60)
    shown = in_terminal(spm, "list", columns=110).splitlines()
    cells = [sum(1 + (char > "\u2e80") for char in line) for line in shown]
    assert max(cells) in (109, 110) and "\t" not in shown[-1], "世 takes two of them"
    spm("stop", "wide")
    long = "a-long-name-of-a-service-of-which-there-are-three-2"
    spm("start", long, "sleep 100")
    shown = in_terminal(spm, "list", columns=80).splitlines()
    assert any("…ree-2  running" in line and line.endswith("sleep 100") for line in shown)
    assert long in spm("list").stdout
    assert long in in_terminal(spm, "list", columns=0), "a terminal that doesn't know its width"
    assert long[:30] in in_terminal(spm, "list", columns=30), "to cut it would gain nothing"
    spm("stop", long)
    assert "\033[32m[OK]\033[0m" in in_terminal(spm, "touch", "web")
    assert "\033[" not in in_terminal(spm, "touch", "web", NO_COLOR="1")
    assert "\033[" not in spm("touch", "web").stdout
    spm("stop", "web")


def test_the_colours_that_python_3_14_gives_a_help_were_written_out(spm: Spm) -> None:
    page = in_terminal(spm, "touch", "--help", FORCE_COLOR="1")
    assert "usage: " in page and "\\x1b" not in page and "\033[" not in page


@pytest.mark.smoke
def test_status_tells_everything(spm: Spm, port: int) -> None:
    spm("start", "web", nasty("--port", port, "--child"), "--env", "TOKEN=abc")
    eventually(lambda: len(spm.json("status", "web")["tree"]) == 2, what="the child")
    status = spm.json("status", "web")
    assert status["supervisor"] == spm.supervisor("web")
    assert status["identity"]["pid"] == status["pid"]
    assert status["env"] == ["TOKEN"] and status["cwd"] == str(spm.cwd)
    assert status["log"] == str(spm.home / "services" / "web" / "output.log")
    assert [event["event"] for event in status["events"]] == ["started"]
    text = spm("status", "web").stdout
    for part in ("running", str(status["pid"]), status["log"], "main process", "token"):
        assert part in text
    spm("stop", "web")


def test_status_of_what_does_not_run_is_exit_3_with_the_whole_page(spm: Spm) -> None:
    spm("start", "web", nasty("--exit", 3))
    eventually(lambda: spm.service("web")["status"] == "failed", what="its end")
    done = spm("status", "web", code=3)
    assert "exit code 3" in done.stdout and "events:" in done.stdout
    assert "web is not running: failed (exit code 3)" in done.stderr
    assert spm.json("status", "web", code=3)["exit"]["code"] == 3
    spm("status", "nobody", code=3)


@pytest.mark.parametrize(
    ("switches", "status", "told"),
    [
        (("--exit", 0), "exited", "exit code 0"),
        (("--exit", 3), "failed", "exit code 3"),
        (("--signal", int(signal.SIGSEGV)), "failed", "killed by SIGSEGV"),
        (("--signal", int(signal.SIGKILL)), "failed", "killed by SIGKILL"),
    ],
)
def test_an_end_is_recorded_with_code_or_signal(
    spm: Spm, switches: tuple[object, ...], status: str, told: str
) -> None:
    spm("start", "web", nasty(*switches))
    eventually(lambda: spm.service("web")["status"] == status, what="its end")
    assert spm.service("web")["why"] == told
    assert not spm.bearers()
    assert "web was not running" in spm("stop", "web").stdout


def test_uptime_cpu_and_memory_are_of_the_process(spm: Spm) -> None:
    busy = "while True: pass"
    spm("start", "busy", "--", sys.executable, "-c", busy)
    row = eventually(
        lambda: [row for row in [spm.service("busy")] if (row["cpu_percent"] or 0) > 5], 10
    )[0]
    assert row["uptime_s"] > 0
    assert 10**6 < row["memory_bytes"] < 10**9
    spm("stop", "busy")


def test_logs_shows_the_last_lines_of_this_instance_only(spm: Spm) -> None:
    spm("start", "web", nasty("--say", "first"))
    eventually(lambda: spm.log("web"), what="output")
    spm("restart", "web")
    spm("stop", "web")
    spm("start", "web", "--shell", "seq 1 500; exec sleep 100")
    eventually(lambda: "500" in spm.log("web"), what="output")
    assert spm("logs", "web").stdout.split() == [str(n) for n in range(401, 501)]
    assert spm("logs", "web", "-n", 2).stdout == "499\n500\n"
    assert spm.json("logs", "web", "-n", 1)["lines"] == ["500"]
    assert spm("logs", "web", "-n", 0).stdout == ""
    spm("stop", "web")
    assert spm("logs", "web", "-n", 1).stdout == "500\n", "what is stopped keeps its log"
    spm("logs", "web", "-n", "-3", code=2)


def test_bytes_that_are_not_utf8_break_nothing(spm: Spm) -> None:
    spm("start", "web", nasty("--garbage"))
    eventually(lambda: "after" in spm.log("web"), what="output")
    assert re.fullmatch("before \ufffd+ after\n", spm("logs", "web").stdout)
    assert "before" in spm.json("logs", "web")["lines"][0]
    spm.env["PYTHONIOENCODING"] = "ascii"
    assert "before" in spm("logs", "web").stdout
    spm("stop", "web")


@pytest.mark.parametrize(("count", "shown"), [(9, "one\ncafé au lait\n"), (1, "café au lait\n")])
def test_a_line_that_is_being_written_is_not_torn_by_who_begins_to_follow(
    spm: Spm, count: int, shown: str
) -> None:
    # nor is a letter: it became two that can't be shown
    rest = "until test -e go; do sleep 0.01; done; printf '\\251 au lait\\n'"
    spm("start", "web", "--shell", f"echo one; printf 'caf\\303'; {rest}")
    eventually(lambda: "caf" in spm.log("web"), what="the beginning of its line")
    follower = spm.popen("logs", "web", "-f", "-n", count)
    assert follower.stdout
    begun = follower.stdout.read(shown.index("é"))
    (spm.cwd / "go").touch()
    assert begun + follower.stdout.read() == shown
    follower.communicate(timeout=10)


@pytest.mark.smoke
def test_follow_goes_on_until_the_service_ends(spm: Spm) -> None:
    spm("start", "web", "--shell", "echo early; sleep 0.4; echo late; sleep 0.3; echo last")
    done = spm("logs", "web", "-f")
    assert done.stdout == "early\nlate\nlast\n"
    spm("logs", "web", "-f", "--json", code=2)


def test_follow_goes_through_a_rotation(spm: Spm) -> None:
    rounds = 'for i in $(seq 1 60); do seq -f "$i-%g" 1 1000; sleep 0.05; done; echo done'
    spm("start", "web", "--shell", rounds, "--log-size", "100kB")
    followed = spm("logs", "web", "-f", "-n", 0, timeout=60).stdout.splitlines()
    assert followed[-1] == "done"
    assert (spm.home / "services" / "web" / "output.log.1").exists()
    seen = int(next(line for line in followed if line.endswith("-1000")).partition("-")[0])
    rest = [f"{i}-{n}" for i in range(seen + 1, 61) for n in range(1, 1001)]
    assert followed[-len(rest) - 1 : -1] == rest, "each line after the first round that is seen"


def test_follow_goes_on_where_the_older_half_of_a_log_cannot_be_kept(base: Path) -> None:
    # no room for it: what was read was counted from before it, and nothing was new for as long
    store = program.Store(str(base / "home"))
    store.prepare()
    record = program.new_record("web", program.Spec(("x",), str(base)), "i")
    older = Path(store.path("web", "output.log.1"))
    older.mkdir(parents=True)
    most = 100_000
    log = program.Log(store, "web", most)
    log.open(anew=False)
    output = program.Output(store, record)
    for _ in range(3):
        os.write(log.descriptor, b"x" * most)
        assert output.read() == b"x" * most
        log.check(time.monotonic())
        assert os.fstat(log.descriptor).st_size == 0, "it is bounded all the same"
        os.write(log.descriptor, b"new")
        assert output.read() == b"new"
    os.close(log.descriptor)


def test_since_shows_only_what_is_young(spm: Spm) -> None:
    spm("start", "web", "--shell", "echo old; sleep 100")
    eventually(lambda: spm.log("web"), what="output")
    assert spm("logs", "web", "--since", "1h").stdout == "old\n"
    samples = spm.home / "services" / "web" / "metrics.jsonl"
    eventually(lambda: '"size": 4' in samples.read_text(), within=8, what="a sample of the log")
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 3.2, what="three seconds to pass")
    with open(spm.home / "services" / "web" / "output.log", "a", encoding="utf-8") as log:
        log.write("young\n")
    assert spm("logs", "web", "--since", "3s").stdout == "young\n"
    spm("stop", "web")


def test_since_was_cut_to_100_lines_without_a_word(spm: Spm) -> None:
    spm("start", "web", "seq 500")
    eventually(lambda: spm.log("web").endswith("500\n"), what="output")
    every = [*map(str, range(1, 501))]
    assert spm("logs", "web", "--since", "60s").stdout.split() == every
    assert spm("logs", "web", "--since", "60s", "-n", 7).stdout.split() == every[-7:]
    assert spm.json("logs", "web")["lines"] == every[-100:]


def test_touch_renews_last_active(spm: Spm) -> None:
    spm("start", "web", "sleep 100")
    before = spm.record("web")["last_active"]
    spm("touch", "web")
    assert spm.record("web")["last_active"] > before
    before = spm.record("web")["last_active"]
    for words in (["list"], ["status", "web"], ["logs", "web"]):
        spm(*words)
    assert spm.record("web")["last_active"] == before, "looking is no activity"
    spm("stop", "web")
    spm("touch", "web", code=3)


def test_the_log_is_rotated_while_the_service_writes_and_the_disk_stays_bounded(spm: Spm) -> None:
    spm("start", "web", nasty("--spam", 200), "--log-size", "2MB")
    directory = spm.home / "services" / "web"
    sizes = []

    def last_line() -> bool:
        files = [directory / name for name in ("output.log", "output.log.1")]
        sizes.append(sum(file.stat().st_size for file in files if file.exists()))
        return "spam is over" in spm("logs", "web", "-n", 1).stdout

    eventually(last_line, within=60, what="the end of 200 MB")
    assert max(sizes) < 100e6, "far less than was written"
    took_s = float(spm("logs", "web", "-n", 1).stdout.split()[-2])
    assert 1.9 < took_s < 3.5, "at 100 MB/s, which it isn't kept from"
    eventually(lambda: (directory / "output.log").stat().st_size < 2e6, what="the last rotation")
    assert spm.service("web")["status"] == "running"
    spm("stop", "web")


def test_a_daemon_of_a_service_that_has_exited_is_told_in_the_list(spm: Spm) -> None:
    spm("start", "api", "--shell", "setsid sleep 100 & exit 0")
    eventually(lambda: spm.service("api")["status"] == "exited", what="the launcher's end")
    told = "[WARN] api: exit code 0; 1 process of its tree left alive (a daemon? start it with"
    assert told in spm("list").stderr
    spm("stop", "api")
    assert "[WARN]" not in spm("list").stderr


@pytest.mark.slow
@pytest.mark.skipif(GENERIC, reason="psutil reads a lot of each process: it counts as no sleep")
def test_an_idle_supervisor_is_small_and_sleeps(spm: Spm) -> None:
    spm("start", "web", "sleep 100")
    pid = spm.supervisor("web")
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss <= 12 * 1024, f"{pss} kB"

    def wakeups() -> int:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)

    def wakeups_in(seconds: float) -> int:
        began, before = time.monotonic(), wakeups()
        eventually(lambda: time.monotonic() - began > seconds, what="time to pass")
        return wakeups() - before

    # the log is looked at every 5 s once the service has shown to be quiet
    eventually(lambda: wakeups_in(4) <= 1, within=20, what="an idle supervisor")
    spm("stop", "web")


def test_help_and_version_need_no_psutil_and_everything_else_says_how_to_get_it(spm: Spm) -> None:
    bare = [sys.executable, "-S", str(SCRIPT)]
    for words in (["--help"], ["--version"], ["start", "--help"]):
        done = subprocess.run([*bare, *words], capture_output=True, text=True, env=spm.env)
        assert done.returncode == 0 and done.stdout, done.stderr
    told = [*bare, "--version", "--json"]
    answer = json.loads(subprocess.check_output(told, env=spm.env))
    assert answer == {"ok": True, "version": "1.0.0"}
    for words in (["list"], ["start", "x", "sleep 5"], ["stop", "x"]):
        done = subprocess.run([*bare, *words], capture_output=True, text=True, env=spm.env)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1 and "psutil is missing: run `" in done.stderr
        assert "pip install psutil" in done.stderr and "uv run" in done.stderr


def test_a_command_of_another_tool_was_taken_for_one_that_ends_services(spm: Spm) -> None:
    for typed, meant in {"top": "list --watch", "import": "config import", "tail": "logs"}.items():
        assert f"did you mean {meant}? All commands: --help\n" in spm(typed, code=2).stderr
    told = "did you mean stop NAME, or cleanup, which ends them all? "
    assert told in spm("rm", "api", code=2).stderr


def test_a_name_that_no_service_has_is_looked_for_as_a_port_and_in_other_homes(
    spm: Spm, port: int
) -> None:
    spm("start", "api", nasty(), "--port", port)
    told = f"  → port {port} is that of api: write the name instead\n"
    assert spm("stop", port, code=3).stderr.endswith(told)
    pid = spm.service("api")["pid"]
    told = f"  → {pid} is the pid of api: write the name instead\n"
    assert spm("stop", pid, code=3).stderr.endswith(told)
    assert spm("wait-healthy", pid, "0.1", code=124).stderr.endswith(told)
    (spm.cwd / ".git").mkdir()
    here = ("--home", spm.cwd / ".spm")
    spm("start", "web", nasty(), *here)
    told = "  → it runs in another home: add --home .spm\n"
    assert spm("stop", "web", "--home", "other", code=3).stderr.endswith(told)
    spm("stop", "web", "--home", ".spm")
    spm("stop", "api")


def test_of_two_hundred_services_every_name_was_told(spm: Spm) -> None:
    names = [f"s{number:03}" for number in range(200)]
    told = program.services_here("x", names)
    assert told.startswith("services here: s000, ") and told.endswith("s019 and 180 more: list")
    assert program.services_here("x", names[:20]).endswith(", s019")


def test_usage_errors_are_one_line_and_advice(spm: Spm) -> None:
    typos = {"strat": "start", "pu": "up", "stpo": "stop", "halthy": "wait-healthy"}
    for typed, meant in {**typos, "ps": "list", "config vlidate": "config validate"}.items():
        told = spm(*typed.split(), code=2).stderr
        assert f"did you mean {meant}? All commands: --help\n" in told
    for typed, meant in (
        ("stop x --fre", "--force"),
        ("up --dryrun", "--dry-run"),
        ("logs x --tail 5", "--lines"),
        ("logs --tail 5", "--lines"),
        ("wait-healthy x --timeout 10", "wait-healthy NAME 10"),
        ("stop --all", "cleanup"),
        ("start x --wiat true", "--wait"),
        ("start x python -V --wiat", "--wait"),
        ("start x true --timeout 5", "--wait"),
        ("start x true --daemon", "start alone, which returns at once"),
        ("start --name x true", "start NAME, without an option"),
        ("logs x 50", "logs NAME -n 50"),
        ("cleanup x", "stop NAME, which ends one"),
        ("restart x y", "restart NAME, one after the other"),
        ("restart x --wait", "restart NAME, then wait-healthy NAME"),
        ("down --dry-run", "stop NAME --dry-run"),
    ):
        assert f"  → did you mean {meant}" in spm(*typed.split(), code=2).stderr
    assert "did you mean" not in spm("start", "x", "--reload", "true", code=2).stderr
    assert "  → the names are in: list; see: " in spm("logs", code=2).stderr
    assert '  → write: run NAME "COMMAND" -- TESTS; see: ' in spm("run", code=2).stderr
    assert "the commands are: start, port, stop" in spm("xyzzy", code=2).stderr
    spm("start", "x", "true")
    assert "services here: x; cleanup ends them all\n" in spm("stop", "all", code=3).stderr
    spm("cleanup", "--purge")
    assert "the command is missing" in spm("--home", "list", code=2).stderr, "list is the directory"
    assert "usage: " in spm().stdout and "usage: " in spm("--home", "x", "--help").stdout
    for words in (["list", "extra"], ["stop"], ["stop", "x", "--timeout", "0"], ["logs"], ["-x"]):
        done = spm(*words, code=2)
        assert done.stderr.startswith("[ERROR] ") and done.stderr.count("\n") <= 2, done.stderr
        assert spm.json(*words, code=2)["error"]["kind"] == "usage"


def test_json_and_home_may_stand_before_or_behind_the_command(spm: Spm) -> None:
    for words in (
        ["--json", "list"],
        ["list", "--json"],
        ["--home", str(spm.home), "--json", "list"],
    ):
        assert '"services": []' in spm(*words).stdout


def test_json_carries_the_warnings_too(spm: Spm) -> None:
    spm("start", "web", "sleep 100")
    spm.kill_supervisor("web")
    assert "its supervisor is gone" in spm.json("list")["warnings"][0]
    spm("stop", "web")


def test_an_interrupted_command_prints_its_json_document_all_the_same(spm: Spm, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as asked:
        asked.settimeout(10)
        wait = spm.popen("wait-healthy", f"http://127.0.0.1:{port}/", "30", "--json")
        with asked.accept()[0]:  # the wait has begun
            wait.send_signal(signal.SIGINT)
            stdout, _ = wait.communicate(timeout=10)
    assert wait.returncode == 130
    assert json.loads(stdout)["error"]["kind"] == "interrupted"


def test_output_that_cannot_be_written_is_one_line(spm: Spm) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = spm("list", code=1, stdout=full)
    told = "[ERROR] the output can't be written: No space left on device\n"
    assert done.stderr == f"{told}  → what was asked for is done all the same: see list\n"
