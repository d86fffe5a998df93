"""The Windows side for real: a Windows Python runs the file, through the command line.

On Windows itself, or elsewhere under Wine (tests/windows/setup.sh, then `pytest -m windows`). What
Wine 8 can't do, and which test covers that branch with a stand-in instead:

    CTRL_BREAK: no shared console        test_a_polite_stop_is_ctrl_break_to_a_child_of_ours_only
    pids of listening sockets            all that wait for a port, with wine/psutil.py
    a job that lets nobody go            test_a_supervisor_starts_also_where_no_job_lets_it_go
    refusing a connection after 2 s      test_a_free_port_is_known_without_a_connection
    the X of a window, Ctrl-C from apart the two tests that close and interrupt, with console.py
    cpu time, name() of another process none: they need real Windows

Nobody has run these tests on Windows itself yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import COMPILED, ROOT, free_port, is_running
from conftest import eventually as _eventually

pytestmark = pytest.mark.windows

NATIVE = sys.platform == "win32"
HERE = Path(__file__).resolve().parent
CACHE = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
WINE = Path(os.environ.get("SPM_WINE") or os.path.join(CACHE, "spm-wine"))
PYTHON = sys.executable if NATIVE else "python.exe"
SERVICE, RPC = HERE / "service.py", HERE.parent / "rpc_server.py"
eventually = partial(_eventually, within=30.0)  # a Windows process takes its time under Wine
PIPE, NULL = subprocess.PIPE, subprocess.DEVNULL


def windows_environment() -> dict[str, str]:
    dropped = ("SPM_", "NO_COLOR", "PYTHON", "PORT", "DISPLAY", "WAYLAND_DISPLAY")
    env = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    if not NATIVE:
        env.update(WINEPREFIX=str(WINE / "prefix"), WINEDEBUG="-all", WINEARCH="win64")
        env.update(WINEDLLOVERRIDES="mscoree,mshtml=;winemenubuilder.exe=d")
        env.update(WINEPATH=path(WINE / "py"), PYTHONPATH=path(HERE / "wine"))
    return env


def path(local: Path) -> str:
    """How Windows writes a path of this machine."""
    return str(local) if NATIVE else "Z:" + str(local).replace("/", "\\")


@pytest.fixture(scope="session", autouse=True)
def wine() -> None:
    """Wine's own server and services, started before any pipe of ours that they could hold."""
    if NATIVE:
        return
    if not (WINE / "prefix" / ".ok").exists():
        pytest.skip("Wine isn't set up: tests/windows/setup.sh")
    env = windows_environment()
    for argv in (["/usr/lib/wine/wineserver64", "-p60"], ["wine", "cmd", "/c", "exit"]):
        subprocess.run(argv, env=env, stdin=NULL, stdout=NULL, stderr=NULL, timeout=120)


class Win:
    """The command line, run by the Windows Python in a directory and a home of its own."""

    def __init__(self, base: Path) -> None:
        self.base, self.home, self.cwd = base, base / "höme", base / "wörk 日本"
        self.cwd.mkdir()
        self.env = {**windows_environment(), "PYTHONIOENCODING": "utf-8"}
        self.env["SPM_HOME"] = path(self.home)

    def popen(
        self, *words: object, program: Path = COMPILED, **env: str
    ) -> subprocess.Popen[bytes]:
        """The command, running."""
        given = [path(word) if isinstance(word, Path) else str(word) for word in words]
        python = [PYTHON] if NATIVE else ["wine", str(WINE / "py" / "python.exe")]
        argv = [*python, path(program), *given]
        environ = {**self.env, **env}
        return subprocess.Popen(
            argv, cwd=self.cwd, env=environ, stdin=NULL, stdout=PIPE, stderr=PIPE
        )

    def finish(self, process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
        """Its exit code and what it printed, within a minute.

        To the end of its stdout, which nobody else may hold. Its stderr under Wine is kept by what
        it started, whatever we do: to its own end.
        """
        streams = {one: bytearray() for one in (process.stdout, process.stderr) if one}
        open_ = list(streams)

        def is_over() -> bool:
            has_ended = process.poll() is not None
            for stream in list(open_):
                with contextlib.suppress(BlockingIOError):
                    while chunk := os.read(stream.fileno(), 1 << 16):
                        streams[stream] += chunk
                    open_.remove(stream)
            return has_ended and process.stdout not in open_

        with process, contextlib.ExitStack() as closing:
            closing.callback(process.kill)
            if NATIVE:
                texts: tuple[bytes, ...] = process.communicate(timeout=60)
            else:
                for stream in open_:
                    os.set_blocking(stream.fileno(), False)
                eventually(is_over, within=60, what=f"the end of {process.args!r}")
                texts = tuple(map(bytes, streams.values()))
        out, err = (text.decode("utf-8", "replace").replace("\r\n", "\n") for text in texts)
        return process.returncode, out, err

    def __call__(self, *words: object, code: int = 0, **options: Any) -> str:
        """Run the command; what it printed, stdout and stderr."""
        ended, out, err = self.finish(self.popen(*words, **options))
        assert ended == code, f"exit {ended}: {words}\n{out}\n{err}\n{self}"
        assert "Traceback" not in out + err, out + err
        return out + err

    def json(self, *words: object, code: int = 0, **options: Any) -> dict[str, Any]:
        """The document that it prints with --json."""
        ended, out, err = self.finish(self.popen("--json", *words, **options))
        assert ended == code, f"exit {ended}: {words}\n{out}\n{err}\n{self}"
        document = json.loads(out)
        assert isinstance(document, dict)
        return document

    def start(self, name: str, *options: object, script: Path = SERVICE, code: int = 0) -> str:
        """Start service.py (or another script); the words after -- are its own."""
        at = options.index("--") if "--" in options else len(options)
        words = (PYTHON, script, "--mark", self.base, *options[at + 1 :])
        return self("start", name, *options[:at], "--", *words, code=code)

    def log(self, name: str) -> str:
        file = self.home / "services" / name / "output.log"
        return file.read_bytes().decode("utf-8", "replace") if file.exists() else ""

    def record(self, name: str) -> dict[str, Any]:
        record = json.loads((self.home / "state.json").read_text("utf-8"))["services"][name]
        assert isinstance(record, dict)
        return record

    def processes(self, *words: str) -> list[psutil.Process]:
        """The living processes of this machine with our directory, and these words, in argv."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                line = " ".join(process.cmdline())
                marks = (self.base.name, *words)
                if all(mark in line for mark in marks) and is_running(process.pid):
                    found.append(process)
        return found

    def __str__(self) -> str:
        shown = [f"{one.pid} {one.cmdline()}" for one in self.processes()]
        for file in sorted(self.home.glob("services/*/*.[lj]*")):
            shown += [f"--- {file.name} of {file.parent.name}", file.read_text("utf-8", "replace")]
        return "\n".join(shown)


@pytest.fixture
def win(base: Path) -> Iterator[Win]:
    """The command line; a process left alive at the end fails the test."""
    one = Win(base)
    yield one
    deadline = time.monotonic() + 5
    while one.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    left, shown = one.processes(), str(one)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    assert not left, f"left running:\n{shown}"


def test_a_service_from_start_to_cleanup_in_a_path_with_any_letters(win: Win) -> None:
    assert "[OK] web started (pid " in win.start("web", "--", "--say", "grüße 日本")
    eventually(lambda: "grüße 日本" in win.log("web"), what="its output")
    (row,) = win.json("list")["services"]
    assert (row["name"], row["status"], row["supervised"]) == ("web", "running", True)
    assert row["command"].endswith('--say "grüße 日本"')
    assert "already running" in win.start("web", "--", "--say", "grüße 日本")
    assert "gr\ufffd\ufffde ??" in win("status", "web", PYTHONIOENCODING="cp1252")
    assert win.json("logs", "web")["lines"] == ["grüße 日本"]
    members = win.json("status", "web")["tree"]
    assert [one["why"] for one in members] == ["main process"], "no console host among them"
    first = row["pid"]
    assert "[OK] web" in win("restart", "web")
    assert win.json("status", "web")["pid"] != first
    assert "[OK] web stopped" in win("stop", "web", "--timeout", "1s")
    assert not win.processes()
    assert "[OK] web was not running" in win("stop", "web")
    win("status", "web", code=3)
    win("cleanup", "--purge")
    assert win.json("list")["services"] == []


def test_stop_ends_the_whole_tree_through_its_job(win: Win) -> None:
    win.start("tree", "--", "--child", "--orphan", "--scrubbed", "--mark", win.base)
    eventually(lambda: "orphaned" in win.log("tree"), what="the orphan")
    why = {one["command"].split()[-1]: one["why"] for one in win.json("status", "tree")["tree"]}
    assert why["orphan"] == "in its job object", "it has another parent, and no cookie"
    told = win("stop", "tree", "--force")
    assert "[OK] tree stopped" in told and "3 processes ended, TerminateProcess was used" in told
    assert not win.processes()


def test_a_killed_supervisor_is_noticed_and_start_takes_its_service_back(win: Win) -> None:
    win.start("web", "--", "--orphan", "--scrubbed", "--mark", win.base)
    eventually(lambda: "orphaned" in win.log("web"), what="the orphan")
    for back in (True, False):
        (supervisor,) = win.processes("supervise", "web")
        supervisor.kill()
        eventually(lambda: not win.processes("supervise"), what="its end")
        (row,) = win.json("list")["services"]
        assert (row["status"], row["supervised"]) == ("running", False)
        members = win.json("status", "web")["tree"]
        assert "in its job object" in [one["why"] for one in members], "its name outlives us"
        if back:
            win("start", "web")
            assert win.json("list")["services"][0]["supervised"] is True
    win("stop", "web")
    assert not win.processes()


def test_starts_at_the_same_time_start_one_service(win: Win) -> None:
    words = ("--json", "start", "web", "--", PYTHON, SERVICE, "--mark", win.base)
    several = [win.popen(*words) for _ in range(4)]
    ends = [win.finish(one) for one in several]
    assert [code for code, _, _ in ends] == [0] * 4, ends
    assert len({json.loads(out)["pid"] for _, out, _ in ends}) == 1
    assert len(win.processes("service.py", "--mark")) >= 1
    win("stop", "web")


NASTY_WORDS = ["a b", 'c"d', "é 日本 😀", "", "back\\slash\\", "tr ail\\", "%PATH%", "a&b|c^"]


def test_words_arrive_as_they_were_given(win: Win, port: int) -> None:
    def heard() -> Any:
        lines = win.json("logs", "args")["lines"]
        return lines and json.loads(lines[-1])

    win.start("args", "--port", port, "--", "--argv", *NASTY_WORDS, "{port}")
    expected = [
        ["--mark", path(win.base), "--argv", *NASTY_WORDS, str(port)],
        path(win.cwd),
        str(port),
    ]
    assert eventually(heard) == expected
    win("restart", "args")
    assert eventually(heard) == expected
    win("stop", "args")
    line = f'"{PYTHON}" "{path(SERVICE)}" --argv "x y" c\\d \'e'
    win("start", "args", line, "--replace")
    assert eventually(heard)[0] == ["--argv", "x y", "c\\d", "'e"]
    win("stop", "args")
    assert "--shell" in win("start", "two", "echo a && echo b", code=2)
    win("start", "two", "--shell", f'echo "a b"&& "{PYTHON}" "{path(SERVICE)}" --argv "x y"')
    eventually(lambda: win.log("two").count("\n") == 2)
    assert win.log("two").startswith('"a b"') and '["--argv", "x y"]' in win.log("two")
    win("stop", "two")


def test_a_program_is_found_as_the_shell_finds_it(win: Win) -> None:
    tools = win.cwd / "tools"
    tools.mkdir()
    script = f'@"{PYTHON}" "{path(SERVICE)}" --argv %*\r\n'
    (tools / "mytool.cmd").write_text(script, encoding="utf-8")
    win("start", "npm", "--cwd", tools, "--", ".\\mytool", "1")
    eventually(lambda: '["--argv", "1"]' in win.log("npm"))
    win("stop", "npm")
    assert not win.processes(), "the batch file's program belongs to it"
    failed = win("start", "nope", "--", "no-such-program", code=4)
    assert "no-such-program" in failed and "PATH" in failed


def test_how_a_service_ended_is_known(win: Win) -> None:
    win.start("short", "--", "--say", "bye", "--exit", "7")
    row = eventually(lambda: [r for r in win.json("list")["services"] if r["exit"]])[0]
    assert (row["status"], row["exit"]["code"]) == ("failed", 7)
    assert "exit code 7" in win("explain", "short") and "bye" in win("explain", "short")
    policy = ("--restart", "on-failure", "--backoff", "0.1", "--max-restarts", "2")
    win.start("again", *policy, "--", "--exit", "3")
    eventually(lambda: win.record("again")["phase"] == "failed")
    assert [one["event"] for one in win.json("events", "again")["events"]].count("restarted") == 2


def test_bytes_of_another_code_page_and_line_ends_are_shown(win: Win) -> None:
    win.start("old", "--", "--bytes", "e9740d0a1a7a0d0a")
    eventually(lambda: len(win.log("old")) > 5)
    assert win.json("logs", "old")["lines"] == ["\ufffdt", "\x1az"]
    assert win("logs", "old", PYTHONIOENCODING="cp1252").splitlines()[0] == "?t"
    win("stop", "old")


def test_a_log_is_rotated_while_the_service_holds_it_open(win: Win) -> None:
    win.start("chat", "--log-size", "10kB", "--", "--lines", "3000")
    log = win.home / "services" / "chat" / "output.log"
    older = log.with_name("output.log.1")
    eventually(lambda: older.exists() and "line 2999" in win.log("chat"), what="a rotation")
    assert log.stat().st_size < 30_000 and b"\0" not in log.read_bytes()
    assert win.json("logs", "chat", "-n", "2")["lines"] == ["line 2998", "line 2999"]
    win("stop", "chat")


def test_readiness_by_log_and_http_and_a_death_while_waiting(win: Win, port: int) -> None:
    words = ("--port", port, "--", "--after", "0.3", "--say", "up and listening", "--port", port)
    checks = ("--ready", "log:listening", "--ready", f"http://127.0.0.1:{port}/")
    assert "ready" in win.start("web", "--wait", "40s", *checks, "--expect", "501", *words)
    assert win("wait-healthy", f"http://127.0.0.1:{port}/", "5s", "--expect", "501")
    win("wait-healthy", free_port(), "0.3s", code=124)
    win("stop", "web")
    death = ("--after", "0.5", "--say", "oops", "--exit", "3")
    died = win.start("dead", "--ready", "log:never", "--wait", "40s", "--", *death, code=1)
    assert "exit code 3" in died and "oops" in died


def test_wait_healthy_believes_only_the_services_own_port(win: Win, port: int) -> None:
    win.start("web", "--port", port, "--", "--port", port)
    seen = win("wait-healthy", "web", "40s")
    assert "[OK] web" in seen and str(port) in seen
    win.start("other", "--port", port, "--force", "--", "--say", "no port")
    assert "service web of" in win("wait-healthy", "other", "1s", code=5)
    win("cleanup")


def test_a_port_and_its_holder(win: Win, port: int) -> None:
    assert "free" in win("port", port)
    win.start("web", "--port", port, "--", "--port", port)
    win("wait-healthy", port, "40s")
    (held,) = win.json("port", port, code=5)["error"]["holders"]
    assert held["service"] == "web"
    conflict = win("start", "two", "--port", port, "--", PYTHON, SERVICE, code=5)
    assert f"port {port}" in conflict
    moved = win.json("start", "two", "--port", port, "--on-conflict", "next", "--", PYTHON, SERVICE)
    assert moved["port"] == port + 1
    win("cleanup")


def test_run_starts_waits_tests_and_stops(win: Win, port: int) -> None:
    test = (
        "import os, sys, urllib.request as u\ntry: u.urlopen('http://127.0.0.1:' + "
        "os.environ['PORT'])\nexcept u.HTTPError as e: sys.exit(e.code - 500 + 41)"
    )
    line = f'"{PYTHON}" "{path(SERVICE)}" --port {port}'
    check = f"http://127.0.0.1:{port}/"
    words = ("--port", port, "--ready", check, "--expect", "501", "--timeout", "40s")
    told = win("run", "web", line, *words, "--", PYTHON, "-c", test, code=42)
    assert "web stopped" in told
    assert not win.processes()


def test_leases_end_with_their_time_their_owner_or_without_use(win: Win) -> None:
    win.start("owner")
    owner = win.json("status", "owner")["pid"]
    win.start("owned", "--lease", owner)
    win.start("brief", "--lease", "1s")
    win.start("idle", "--idle-timeout", "1s")

    def running() -> set[str]:
        rows = win.json("list")["services"]
        return {row["name"] for row in rows if row["status"] == "running"}

    eventually(lambda: running() == {"owner", "owned"}, what="the end of two leases")
    assert "lease" in win("status", "brief", code=3)
    win("stop", "owner")
    eventually(lambda: not running(), what="the end of what it owned")
    eventually(lambda: not win.processes(), what="the end of their supervisors")


def test_calls_of_a_stdio_service(win: Win) -> None:
    win("start", "rpc", "--type", "stdio", "--", PYTHON, RPC)
    assert "hällo" in win("call", "rpc", "echo", "message=hällo")
    pids = {win("call", "rpc", "pid") for _ in range(2)}
    assert len(pids) == 1, "the same process answers"
    assert "echo" in win("tools", "rpc")
    assert win.json("call", "rpc", "nothing", code=1)["error"]["kind"] == "failed"
    assert "exit code 3" in win("call", "rpc", "die", code=1)
    assert "hi" in win("call", "rpc", "echo", "message=hi"), "it is started again"
    win("stop", "rpc")
    assert not win.processes()


def test_two_homes_and_the_copied_file(win: Win) -> None:
    copied = win.cwd / "simple_process_manager.py"
    copied.write_bytes((ROOT / "simple_process_manager.py").read_bytes())
    (win.cwd / "json.py").write_text("raise SystemExit('shadowed')", "utf-8")
    (win.cwd / ".git").mkdir()
    win("start", "web", "--", PYTHON, SERVICE, program=copied, SPM_HOME="")
    assert (win.cwd / ".spm" / "state.json").exists()
    assert "web" in win("list", program=copied, SPM_HOME="")
    assert win.json("list")["services"] == []
    win("cleanup", "--purge", program=copied, SPM_HOME="")


def test_a_damaged_state_file_is_rebuilt(win: Win) -> None:
    win.start("web", "--", "--mark", win.base)
    (win.home / "state.json").write_text("{bad", "utf-8")
    assert "state.json.corrupt" in win("list")
    assert [row["name"] for row in win.json("list")["services"]] == ["web"]
    win("stop", "web")
    assert not win.processes()


def inside(win: Win, code: str) -> str:
    """What a few lines print, run by the Windows Python with the file as `spm`."""
    script = win.cwd / "inside.py"
    imports = f"import os, sys, subprocess, signal\nsys.path.insert(0, {path(ROOT)!r})\n"
    script.write_text(f"{imports}import simple_process_manager as spm\n{code}", "utf-8")
    ended, out, err = win.finish(win.popen(program=script))
    assert ended == 0, out + err
    return out


def test_a_polite_stop_is_ctrl_break_to_a_child_of_ours_only(win: Win) -> None:
    told = inside(
        win,
        """
sent = []
os.kill = lambda *words: sent.append(words)
child, other = (subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) for _ in "12")
spm._children.append(child)
looks = [spm.stat_of(one.pid).identity for one in (child, other)]
assert [spm.send_signal(one, False) for one in looks] == [True, False]
assert sent == [(child.pid, signal.CTRL_BREAK_EVENT)], sent
def fails(*words): raise OSError(87, "no console")
os.kill = fails
assert not spm.send_signal(looks[0], False), "not delivered: it is ended by force"
assert not spm.send_signal(looks[0]._replace(token="1.00"), True), "another process by now"
assert child.poll() is None
assert all(spm.send_signal(one, True) for one in looks)
print(child.wait(), other.wait())
""",
    )
    assert told.split() == ["15", "15"]


def test_the_number_of_a_dead_parent_that_a_younger_process_has_is_no_ancestor(win: Win) -> None:
    told = inside(
        win,
        """
def look(pid, began, parent):
    return spm.Stat(spm.Identity(pid, began), parent, 0, "R", 0.0, 1, True)
looks = {9: look(9, "5.00", 8), 8: look(8, "4.00", 7), 7: look(7, "6.00", 1), 1: look(1, "1.00", 0)}
spm.stat_of, spm.psutil.pids = looks.get, lambda: list(looks)
print(spm.lineage(9), [look.parent for look in spm.all_stats().values()])
""",
    )
    assert told.strip() == "(9, 8) [8, 0, 1, 0]"


def test_a_supervisor_starts_also_where_no_job_lets_it_go(win: Win) -> None:
    told = inside(
        win,
        """
popen, tried = subprocess.Popen, []
def refuses(*words, creationflags, **named):
    tried.append(bool(creationflags & subprocess.CREATE_BREAKAWAY_FROM_JOB))
    if tried[-1]:
        raise PermissionError(13, "Access is denied")
    return popen(*words, creationflags=creationflags, **named)
subprocess.Popen = refuses
argv = [sys.executable, "-c", "print(1)"]
pid, order, answer = spm.launch_supervisor(argv, dict(os.environ), False)
print(spm.read_answer(answer, 5).decode().strip(), tried)
""",
    )
    assert told.split("\n")[0] == "1 [True, False]"


def test_a_free_port_is_known_without_a_connection(win: Win, port: int) -> None:
    told = inside(
        win,
        f"""
import socket, time
spm.probe_tcp = None
for family, address in ((2, "127.0.0.1"), (2, "0.0.0.0"), (23, "::1")):
    held = socket.socket(family)
    held.bind((address, {port}))
    assert not spm.has_listener({port}), "it is bound, but nobody listens"
    held.listen()
    assert spm.has_listener({port}) and not spm.is_free({port}), address
    held.close()
for looks in (spm.is_free, spm.has_listener):
    times = []
    for _ in range(5):
        began = time.perf_counter()
        looks({port})
        times.append(time.perf_counter() - began)
    print(min(times))
""",
    )
    bound_s, listed_s = map(float, told.split())
    assert bound_s < 0.05
    assert listed_s < (0.05 if NATIVE else 0.25), "Wine looks for the process of each row: 30 ms"
    assert win.json("port", port)["free"]


def test_a_look_at_what_a_supervisor_could_not_write_took_a_second_for_each_service(
    win: Win,
) -> None:
    # a directory isn't opened there, which was taken for somebody else who has it open
    win("list")
    code = """
import time
store, began = spm.Store(os.environ["SPM_HOME"]), time.perf_counter()
os.makedirs(store.path("web"))
print(store.is_behind("web"), time.perf_counter() - began)
"""
    is_behind, took_s = inside(win, code).split()
    assert (is_behind, float(took_s) < 0.5) == ("False", True), took_s


def test_a_descriptor_was_lost_with_each_end_of_a_stdio_service(win: Win) -> None:
    told = inside(
        win,
        """
import threading
ours, _, *ends = spm.service_pipes()
threads = [one for one in threading.enumerate() if one is not threading.main_thread()]
for end in ends:
    os.close(end)
ours.close()
for one in threads:
    one.join(10)
opened = []
for end in range(3, 20):
    try:
        os.fstat(end)
        opened.append(end)
    except OSError:
        pass
print(len(threads), opened)
""",
    )
    assert told.strip() == "2 []"


@pytest.fixture
def window(win: Win, request: pytest.FixtureRequest) -> Win:
    """A command line whose windows are on a screen: Wine's on one that nobody sees."""
    if not NATIVE:
        if not shutil.which("Xvfb"):
            pytest.skip("Xvfb isn't here: apt-get install xvfb")
        win.env["DISPLAY"] = request.getfixturevalue("display")
    return win


def at_window(win: Win, *words: str) -> str:
    """What somebody at the window of `tool` does, or sees."""
    pid = win.record("tool")["supervisor"]["pid"]
    ended, out, err = win.finish(win.popen(pid, *words, program=HERE / "console.py"))
    assert ended == 0, err
    return out


def status_of(win: Win, name: str) -> dict[str, Any]:
    (row,) = win.json("list")["services"]
    assert isinstance(row, dict) and row["name"] == name
    return row


def test_a_tool_in_a_window_is_typed_at_and_its_exit_code_is_known(window: Win) -> None:
    told = window.start("tool", "--terminal", "auto", "--", "--ask")
    assert "in its window: console" in told and "already" in window("start", "tool")
    eventually(lambda: "True True?" in at_window(window, "shown"), what="the tool, on a terminal")
    assert "goes to its window" in window("logs", "tool")
    members = window.json("status", "tool")["tree"]
    assert [one["why"] for one in members] == ["main process"]
    at_window(window, "type", "7\r")
    eventually(lambda: status_of(window, "tool")["status"] == "failed", what="its end")
    assert window.record("tool")["exit"]["code"] == 7
    eventually(lambda: "exit code 7] press a key" in at_window(window, "shown"), what="the pause")
    assert window.processes("supervise")
    at_window(window, "type", "x")
    eventually(lambda: not window.processes(), what="the window to close")


def test_stop_closes_a_window_and_a_failure_closes_it_with_no_pause(window: Win) -> None:
    window.start("tool", "--terminal", "auto", "--", "--child")
    assert "[OK] tool" in window("restart", "tool")
    told = window("stop", "tool", "--timeout", "1s")
    assert "[OK] tool stopped" in told and not window.processes()
    window.start("tool", "--terminal", "auto", "--no-pause", "--", "--exit", "3")
    eventually(lambda: not window.processes(), what="the window to close")
    assert window.record("tool")["exit"]["code"] == 3
    window.start("tool", "--terminal", "auto", "--", "--say", "here")
    eventually(lambda: "here" in at_window(window, "shown"), what="the tool")
    at_window(window, "interrupt")
    eventually(lambda: "press a key" in at_window(window, "shown"), what="the pause")
    assert window.record("tool")["exit"]["code"] == 0xC000013A, "Ctrl-C was for the tool alone"
    window("stop", "tool")
    assert not window.processes(), "a stop doesn't wait for the key"


def test_a_window_that_is_closed_has_stopped_its_tool(window: Win) -> None:
    window.start("tool", "--terminal", "auto", "--", "--child", "--orphan", "--mark", window.base)
    eventually(lambda: "orphaned" in at_window(window, "shown"), what="the orphan")
    began = time.monotonic()
    at_window(window, "close")
    eventually(lambda: not window.processes(), what="the end of the whole tree")
    assert time.monotonic() - began < 5, "then Windows would have ended the supervisor"
    row = status_of(window, "tool")
    assert (row["status"], row["why"]) == ("stopped", "its window was closed (CTRL_CLOSE)")


def test_a_window_that_cannot_be_opened_is_refused_with_what_can_be_done(win: Win) -> None:
    refused = win.start("tool", "--terminal", "xterm", code=4)
    assert "no window can be opened here" in refused and "--terminal auto" in refused
    if not NATIVE:  # without a display
        assert "there is no window" in win.start("tool", "--terminal", "auto", code=4)
    assert not win.processes()


def test_a_vendored_copy_keeps_its_code_in_the_users_cache(win: Win) -> None:
    cache: dict[str, Any] = {
        "XDG_CACHE_HOME": path(win.base / "Öwn")
    }  # Wine sets LOCALAPPDATA by itself
    copy = win.cwd / "simple_process_manager.py"
    assert "simple_process_manager.py written (version" in win("vendor", win.cwd)
    assert "no services" in win("list", program=copy, **cache)
    (kept,) = (win.base / "Öwn" / "simple_process_manager").iterdir()
    before = kept.stat().st_mtime_ns
    assert "x started" in win("start", "x", "--", PYTHON, SERVICE, program=copy, **cache)
    assert "x stopped" in win("stop", "x", program=copy, **cache)
    assert kept.stat().st_mtime_ns == before
