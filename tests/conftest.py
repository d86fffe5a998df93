"""What every test needs: a home of its own, free ports, bounded waiting, nothing left over."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import py_compile
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from forkserver import limit_memory, request
from generic import generic_copy, vendored_copy

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "simple_process_manager.py"
# The whole suite on the path of macOS, see generic.py; what tests import is the usual program.
GENERIC = bool(os.environ.get("SPM_TEST_GENERIC"))
# The whole suite on a copy as `vendor` makes it; what tests import is the usual program, too.
VENDORED = bool(os.environ.get("SPM_TEST_VENDORED"))
if GENERIC:
    SCRIPT = generic_copy(Path(tempfile.mkdtemp(prefix="spm-generic-")))
elif VENDORED:
    SCRIPT = vendored_copy(Path(tempfile.mkdtemp(prefix="spm-vendored-")))
if SCRIPT.parent != ROOT:
    atexit.register(shutil.rmtree, SCRIPT.parent, ignore_errors=True)
COMPILED = SCRIPT.parent / "tests" / "spm.py"
NASTY = Path(__file__).resolve().parent / "nasty.py"
sys.path.insert(0, str(ROOT))
# COMPILED needs something to run, whatever Python may write; workers have it from their controller.
if SCRIPT.parent != ROOT or "PYTEST_XDIST_WORKER_COUNT" not in os.environ:
    py_compile.compile(str(SCRIPT))

# In the background of a script, or behind nohup, they are ignored, and would be in every command.
signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.platform != "win32":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# There each look asks psutil of every process: what is to happen in between needs longer.
PACE = 4 if GENERIC else 1

# Everything, at every byte and every few milliseconds: minutes instead of seconds.
THOROUGH = bool(os.environ.get("SPM_TEST_THOROUGH"))

# Where the same program is imported already: starting interpreters was half of the suite's time.
PROC = Path("/proc/self").parent
FORKABLE = {"env", "cwd", "timeout", "memory_bytes"}  # options of a command that can be forked
CAN_FORK = hasattr(os, "pidfd_open") and hasattr(socket, "send_fds")
FORKSERVER: list[str] = []
SERVERS: list[int] = []  # its pid
COMPILED_ONCE: list[Path] = []

T = TypeVar("T")
Completed = subprocess.CompletedProcess[str]


def eventually(check: Callable[[], T], within: float = 10.0, what: str = "") -> T:
    """The first truthy value of check(); AssertionError with the last value after `within` s."""
    deadline = time.monotonic() + within
    while True:
        began = time.monotonic()
        value = check()
        if value:
            return value
        ended = time.monotonic()
        if ended > deadline:
            raise AssertionError(f"not within {within} s: {what or check} (last value: {value!r})")
        # A look that is a command leaves others two thirds of the time.
        time.sleep(min(max(0.005, 2 * (ended - began)), 0.1))


def forkserver() -> str:
    """The socket of this worker's fork server, which ends when the worker does."""
    if not FORKSERVER:
        directory = tempfile.mkdtemp(prefix="spm-forks-")
        path = os.path.join(directory, "s")
        script = str(Path(__file__).with_name("forkserver.py"))
        env = {key: value for key, value in os.environ.items() if not key.startswith("SPM_HOME")}
        server = subprocess.Popen([sys.executable, script, str(SCRIPT), path], env=env)
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        atexit.register(server.wait)
        atexit.register(server.kill)  # the last that is registered is the first to run
        eventually(lambda: os.path.exists(path) or server.poll() is not None)
        SERVERS.append(server.pid)
        FORKSERVER.append(path)
    return FORKSERVER[0]


def run_forked(
    words: list[str],
    cwd: str,
    env: dict[str, str],
    timeout_s: float,
    memory_bytes: int | None = None,
) -> Completed:
    """A command, run to its end by a fork; subprocess.TimeoutExpired after it was killed."""
    null, pipes = os.open(os.devnull, os.O_RDONLY), [os.pipe(), os.pipe()]
    pieces: dict[int, list[bytes]] = {read: [] for read, _ in pipes}
    given = [null, *(write for _, write in pipes)]
    with request(forkserver(), words, cwd, env, given, memory_bytes) as connection:
        for file in given:
            os.close(file)
        pid, deadline, is_over = int(connection.recv(99)), time.monotonic() + timeout_s, False
        open_ = [*pieces]
        while open_:
            ready = select.select(open_, [], [], max(0.0, deadline - time.monotonic()))[0]
            if not ready and is_over:
                break
            if not ready:
                is_over, deadline = True, time.monotonic() + 1.0
                os.kill(pid, signal.SIGKILL)
            for file in ready:
                pieces[file].append(os.read(file, 1 << 20))
                if not pieces[file][-1]:
                    open_.remove(file)
        code = int(connection.recv(99))
    for file in pieces:
        os.close(file)
    texts = [b"".join(read).decode("utf-8") for read in pieces.values()]
    out, err = (text.replace("\r\n", "\n").replace("\r", "\n") for text in texts)
    if is_over:
        raise subprocess.TimeoutExpired(words, timeout_s, out, err)
    return Completed(words, code, out, err)


def compiled() -> Path:
    """A home in which a service was started once: what supervisors start from is compiled there."""
    if not COMPILED_ONCE:
        home = Path(tempfile.mkdtemp(prefix="spm-compiled-"))
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        argv = [sys.executable, str(COMPILED), "start", "--home", str(home), "once", "true"]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        COMPILED_ONCE.extend(home.glob("cache/*/*.pyc"))
    return COMPILED_ONCE[0]


class Spm:
    """The command line in a directory and a home of its own."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.program = COMPILED
        self.forks = CAN_FORK  # not where it matters whose child a command is
        self.cwd = base / "work"
        self.home = base / "home"
        self.cwd.mkdir()
        dropped = ("SPM_", "NO_COLOR", "PYTHONUNBUFFERED", "PORT", "XDG_CACHE_HOME")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        self.env.update(HOME=str(base), SPM_HOME=str(self.home))
        if VENDORED:  # it has been compiled for the first test
            self.env["XDG_CACHE_HOME"] = str(SCRIPT.parent / "cache")
        self.use_compiled()

    def forget_home(self) -> None:
        """For who starts with no state directory at all."""
        shutil.rmtree(self.home)

    def use_compiled(self) -> None:
        """Have what the first start in a home would compile: a second for the whole suite."""
        target = self.home / compiled().relative_to(compiled().parents[2])
        for directory in reversed([*target.parents][:3]):
            directory.mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(compiled(), target)  # no link: tests damage it

    def argv(self, *words: object) -> list[str]:
        return [sys.executable, str(self.program), *map(str, words)]

    def popen(self, *words: object, **options: Any) -> subprocess.Popen[str]:
        """The command, running."""
        pipe = subprocess.PIPE
        options = {"cwd": self.cwd, "env": self.env, "stdout": pipe, "stderr": pipe, **options}
        return subprocess.Popen(self.argv(*words), text=True, encoding="utf-8", **options)

    def __call__(self, *words: object, code: int | None = 0, **options: Any) -> Completed:
        """The command, run to its end (60 s at most); it must have ended with `code`."""
        env = options.get("env", self.env)
        is_plain = self.program == COMPILED and {*options} <= FORKABLE
        own = [key for key in env if key.startswith("PYTHON") and env[key] != os.environ.get(key)]
        if self.forks and is_plain and not own:
            where, timeout_s = str(options.get("cwd", self.cwd)), options.get("timeout", 60)
            memory_bytes = options.get("memory_bytes")
            done = run_forked([*map(str, words)], where, env, timeout_s, memory_bytes)
        else:
            memory_bytes = options.pop("memory_bytes", None)
            if memory_bytes:
                options["preexec_fn"] = functools.partial(limit_memory, memory_bytes)
            pipe, null = subprocess.PIPE, subprocess.DEVNULL
            options = {"cwd": self.cwd, "env": self.env, "stdout": pipe, "stderr": pipe, **options}
            options = {"stdin": null, "timeout": 60, **options}
            done = subprocess.run(self.argv(*words), text=True, encoding="utf-8", **options)
        text = f"{words}\n{done.stdout}\n{done.stderr}"
        assert code is None or done.returncode == code, f"exit {done.returncode}: {text}\n{self}"
        assert "Traceback" not in f"{done.stdout}{done.stderr}", text
        return done

    def json(self, *words: object, code: int | None = 0) -> dict[str, Any]:
        """The one JSON document that the command prints with --json."""
        document = json.loads(self(*words, "--json", code=code).stdout)
        assert isinstance(document, dict)
        assert document["ok"] is (code == 0)
        return document

    def service(self, name: str) -> dict[str, Any]:
        """What `list` says of a service."""
        rows = self.json("list")["services"]
        found = [row for row in rows if row["name"] == name]
        assert found, f"{name} isn't among {rows}"
        assert isinstance(found[0], dict)
        return found[0]

    def state(self) -> dict[str, Any]:
        """state.json, read directly."""
        document = json.loads((self.home / "state.json").read_text("utf-8"))
        assert isinstance(document, dict)
        return document

    def record(self, name: str) -> dict[str, Any]:
        """The record of a service in state.json."""
        record = self.state()["services"][name]
        assert isinstance(record, dict)
        return record

    def supervisor(self, name: str) -> int:
        """The pid of a service's supervisor."""
        return int(self.record(name)["supervisor"]["pid"])

    def kill_supervisor(self, name: str) -> None:
        """kill -9 it, and wait until the kernel has taken it away."""
        process = psutil.Process(self.supervisor(name))
        os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: not is_running(process.pid), what="the supervisor's end")

    def log(self, name: str) -> str:
        """The output of a service."""
        path = self.home / "services" / name / "output.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def bearers(self) -> list[psutil.Process]:
        """Every living process with this home's cookie, supervisors too."""
        found, mark = [], f"SPM_HOME={self.home}".encode()
        for pid in psutil.pids():
            try:
                if PROC.is_dir():  # what psutil makes of it takes a while, and each test looks
                    is_ours = mark in Path(PROC, str(pid), "environ").read_bytes().split(b"\0")
                else:
                    is_ours = psutil.Process(pid).environ().get("SPM_HOME") == str(self.home)
                found += [psutil.Process(pid)] * is_ours
            except (psutil.Error, OSError):
                continue
        return [one for one in found if is_running(one.pid)]  # some are just leaving

    def left(self, before: set[int]) -> list[psutil.Process]:
        """Bearers, who works below this test's directory (without a cookie?), new children."""
        found = {one.pid: one for one in self.bearers()}
        new = [pid for pid in children() - before if is_running(pid)]
        found.update({pid: psutil.Process(pid) for pid in new})
        for pid in psutil.pids() if PROC.is_dir() else ():
            with contextlib.suppress(psutil.Error, OSError):
                if os.readlink(f"/proc/{pid}/cwd").startswith(str(self.base)) and is_running(pid):
                    found.setdefault(pid, psutil.Process(pid))
        return [*found.values()]

    def __str__(self) -> str:
        """What a failed test wants to show."""
        shown = [f"{p.pid} {p.as_dict(['name', 'cmdline'])}" for p in self.bearers()]
        for path in sorted(self.home.glob("services/*/*.[lj]*")):
            shown.append(f"--- {path.name} of {path.parent.name}")
            if path.is_file():
                shown.append(path.read_text("utf-8", "replace")[-2000:])
        return "\n".join(shown)


def children() -> set[int]:
    """The processes that this one has started, but for its fork server."""
    lists = [path.read_text() for path in PROC.glob("self/task/*/children")]
    return {int(pid) for pid in " ".join(lists).split()} - {*SERVERS}


def is_running(pid: int) -> bool:
    """Whether a process lives and isn't a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def cmdline(pid: int) -> list[str]:
    """The command line of a process; empty where it has ended."""
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def end(processes: list[psutil.Process]) -> None:
    """Kill these very processes."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why each test was run again: what passes then may hide a defect."""
    for report in terminalreporter.stats.get("rerun", ()):
        terminalreporter.write_line(f"{report.nodeid}\n{report.longreprtext[-2000:]}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow ones: each worker would wait for one that it begins last."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = [item for item in items if item not in slow]
    share = len(items) // workers + 1  # worksteal gives each an equal part, in this order
    ordered = []
    for number in range(workers):
        ordered += slow[number::workers]
        taken = max(0, share - len(slow[number::workers]))
        ordered, others = ordered + others[:taken], others[taken:]
    items[:] = ordered + others


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory with a short path: a Unix socket's address has room for 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="spm-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def spm(base: Path) -> Iterator[Spm]:
    """The command line; a process left alive at the end fails the test."""
    one, before = Spm(base), children()
    yield one
    settled = time.monotonic() + PACE  # a supervisor whose service has just ended is about to leave
    left = one.left(before)
    while left and time.monotonic() < settled:
        time.sleep(0.01)
        left = one.left(before)
    if left:
        shown = f"{left}\n{one}"
        end(left)
        eventually(lambda: not one.left(before), what="the end of what the test left")
        raise AssertionError(f"left running:\n{shown}")
    journals = [path for path in one.home.glob("services/*/events.jsonl") if path.is_file()]
    died = [path for path in journals if b'"event": "supervisor_failed"' in path.read_bytes()]
    assert not died, f"a supervisor died of an error of its own:\n{died[0].read_text()[-2000:]}"


def _ports() -> Iterator[int]:
    # below the ephemeral range, so that nobody is given one of them by chance
    for first in range(18000, 32000, 700):
        # it is held for as long as this runs, so that nobody else's tests take the same
        with contextlib.suppress(OSError), socket.socket() as mine:
            mine.bind(("127.0.0.1", first))
            while True:
                yield from filter(_is_free, range(first + 1, first + 700))


def _is_free(port: int) -> bool:
    try:
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family) as probe:
                probe.bind((host, port))
    except OSError:
        return False
    return True


PORTS = _ports()


@pytest.fixture
def port() -> int:
    """A TCP port that nobody listens on."""
    return next(PORTS)


def free_port() -> int:
    """Another one."""
    return next(PORTS)


def nasty(*switches: object) -> str:
    """The command line of the test service with the bad manners."""
    return shlex.join([sys.executable, "-S", str(NASTY), *map(str, switches)])


@pytest.fixture
def display(base: Path) -> Iterator[str]:
    """A screen that nobody sees."""
    reader, writer = os.pipe()
    asked = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "640x480x8", "-nolisten", "tcp"]
    null = subprocess.DEVNULL
    server = subprocess.Popen(asked, pass_fds=[writer], stdout=null, stderr=null)
    os.close(writer)
    with open(reader, "rb") as file:
        number = file.readline().decode().strip()
    yield f":{number}"
    server.terminate()
    server.wait()
