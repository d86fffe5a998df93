"""Random commands by four clients at once, faults meanwhile, and what must hold afterwards.

    python tests/faults/driver.py --rounds 5000 --seed 7
    python tests/faults/driver.py --seed 7 --only 123     # that very round again

Each round has a home of its own. Its clients run random commands on a few services; commands,
supervisors and services are killed, also at the steps that `reached()` names in the program; the
state is damaged, the disk full or read-only, supervisors stand still, the clock jumps. Then all of
that is healed, and INVARIANTS are looked at. The seed chooses what is done, not how long the
system takes for it: a violation prints the whole round, since a second run may go another way.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import heapq
import io
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "simple_process_manager.py"
SERVER = ROOT / "tests" / "rpc_server.py"
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402, F401  (so that a forked client has it)

import simple_process_manager as program  # noqa: E402

CODES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 124, 130}
# 30 s for another one's claim, 10 s for what ignores SIGTERM, twice 10 s for a supervisor
LONGEST_S = 75.0
# Who only looks or waits: what it was given (3 s at most), 3 s for each supervisor that stands
# still, and the slowness of a machine on which eight rounds run at once.
LIMITS_S = dict.fromkeys(("list", "status", "touch", "wait-healthy", "call"), 25.0)
SETTLE_S = 30.0  # on a busy machine a supervisor may take that long to begin
CLIENTS = 4
SHORT_PLACES = ("/dev/shm", "/tmp")
STEPS = re.findall(r'^ +reached\("(\w+)"\)', SCRIPT.read_text("utf-8"), re.M)
SUPERVISORS = ("launched", "exited", "restarting", "ended", "leaving", "noted")
COMMANDS = ("intended", "ordered", "stop_asked", "forgotten", "corrected", "moved_aside")
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 1, 32, 4096, 16384, 1 << 18, 2
CLONE_NEWNS, CLONE_NEWPID = 0x20000, 0x20000000
LIBC = ctypes.CDLL(None, use_errno=True)
# What libfaketime does, for the wall clock alone and with jumps while processes live: with the
# monotonic clock left alone libfaketime 0.9.10 has Python's time.sleep() fail with EINVAL.
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static long shift(void) {
  static volatile long *moved;
  if (!moved) {
    const char *path = getenv("TEST_CLOCK");
    void *page = mmap(0, 8, PROT_READ, MAP_SHARED, open(path ? path : "", O_RDONLY | O_CLOEXEC), 0);
    static long none;
    moved = page == MAP_FAILED ? &none : page;
  }
  return *moved;
}
int clock_gettime(clockid_t id, struct timespec *at) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real(id, at);
  if (!failed && id == CLOCK_REALTIME) at->tv_sec += shift();
  return failed;
}
int gettimeofday(struct timeval *at, void *zone) {
  struct timespec now;
  int failed = clock_gettime(CLOCK_REALTIME, &now);
  at->tv_sec = now.tv_sec, at->tv_usec = now.tv_nsec / 1000;
  return failed;
}
time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return at ? *at = now.tv_sec : now.tv_sec;
}
"""
PORT_SERVER = """import _socket, time
s = _socket.socket(); s.setsockopt(1, 2, 1); s.bind(("127.0.0.1", {port})); s.listen(9)
while True: s._accept()"""
KINDS: dict[str, list[str]] = {
    "sleeper": ["--", "sleep", "99"],
    "ready": ["--ready", "log:up", "--", "sh", "-c", "echo up; exec sleep 99"],
    "tree": ["--", "sh", "-c", "(setsid sleep 98 &); sleep 97 & exec sleep 99"],
    "stubborn": ["--", "sh", "-c", "trap '' TERM; sleep 98 & sleep 99"],
    "crasher": [
        *("--restart", "on-failure", "--max-restarts", "3", "--backoff", "20ms"),
        *("--cooldown", "50ms", "--", "sh", "-c", "exit 3"),
    ],
    "kept": ["--restart", "always", "--backoff", "10ms", "--", "sleep", "99"],
    "daemon": ["--type", "forking", "--", "sh", "-c", "setsid sleep 99 & exit 0"],
    "stdio": ["--type", "stdio", "--", sys.executable, "-S", "-E", str(SERVER)],
    "web": ["--port", "{port}", "--", sys.executable, "-S", "-E", "-c", PORT_SERVER],
}
STOP = ["--timeout", "200ms"]
CALLS: dict[str, tuple[int, list[str]]] = {  # how often, and the words
    "start": (30, []),
    "replace": (5, []),
    "stop": (14, STOP),
    "kill": (4, ["--force"]),
    "restart": (9, []),
    "call": (8, ["echo", "message=hi", "--timeout", "3s"]),
    "touch": (5, []),
    "wait-healthy": (7, ["400ms"]),
    "cleanup": (4, []),
    "up": (7, []),
    "down": (2, []),
    "list": (8, []),
    "status": (6, []),
}
FAULTS = {
    "kill_command": 4,
    "kill_supervisor": 5,
    "kill_service": 4,
    "kill_both": 2,
    "stand_still": 2,
    "corrupt": 2,
    "truncate": 2,
    "delete": 2,
    "fill": 2,  # where the home is a small disk
    "read_only": 2,
    "move_clock": 1,
    "forge": 1,
    "reuse": 1,
}


class Broken(AssertionError):
    """An invariant doesn't hold."""


class Process(NamedTuple):
    """A living process with the cookie of the home."""

    pid: int
    service: str
    instance: str  # "" for a supervisor
    supervises: str
    command: str


class Client:
    """A command under way: a forked copy of this process, or the real thing with another clock."""

    def __init__(self, words: list[str], pid: int, files: tuple[int, int], crash: str) -> None:
        self.words, self.pid, self.files, self.crash = words, pid, files, crash
        self.began, self.watch, self.was_killed = time.monotonic(), os.pidfd_open(pid), False
        self.limit_s = LIMITS_S.get(words[0], LONGEST_S)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    words = [os.fsencode(word) for word in (source, target, kind, data)]
    if LIBC.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]):
        raise OSError(ctypes.get_errno(), "mount", target)


def apart() -> None:
    """Go on in namespaces of our own, as their first process; OSError if we may not.

    /proc has our processes only, which makes looking at it cheap; what we mount nobody else sees;
    and when we end, everything ends.
    """
    if LIBC.unshare(CLONE_NEWNS | CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "unshare")
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", 0)


def is_possible(act: Callable[[], object]) -> bool:
    """Whether that works, tried in a process of its own."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(OSError):
            act()
            code = 0
        os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def choose_pid() -> None:
    """Have the next process get a certain number."""
    apart()
    Path("/proc/sys/kernel/ns_last_pid").write_text("100")


def build_clock(where: str) -> None:
    """Compile CLOCK."""
    Path(where, "clock.c").write_text(CLOCK)
    line = ["cc", "-shared", "-fPIC", "-o", f"{where}/clock.so", f"{where}/clock.c", "-ldl"]
    subprocess.run(line, check=True, stderr=subprocess.DEVNULL)


def token_of(pid: int) -> str:
    """What tells a living process from a later one with its number; "" if it is gone."""
    look = program.stat_of(pid)
    return look.identity.token if look and not look.is_dead else ""


class Round:
    """One home, its services, its clients, its faults."""

    def __init__(self, seed: str, base: Path, abilities: set[str], count: int) -> None:
        self.seed, self.base, self.abilities = seed, base, abilities
        self.rng = random.Random(seed)
        self.home, self.cwd = base / "h", base / "w"
        self.story: list[str] = []
        self.began = time.monotonic()
        self.running: list[Client] = []
        self.later: list[tuple[float, int, Callable[[], None]]] = []
        self.canaries: dict[int, str] = {}
        self.done: Counter[str] = Counter()
        self.slowest = (0.0, "")
        self.marred = False  # a record was forged or its pid is another's: stop may refuse once
        self.mounts: list[str] = []
        self.cwd.mkdir(parents=True)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("SPM_", "PORT"))}
        self.crashes = base / "crashes"
        self.env.update(HOME=str(base), SPM_HOME=str(self.home), SPM_TEST_CRASHES=str(self.crashes))
        self.is_small = "apart" in abilities and self.rng.random() < 0.15
        self.clock = base / "clock" if "clock" in abilities and self.rng.random() < 0.06 else None
        # The stubborn one is rare: a restart or cleanup gives it ten seconds.
        kinds = self.rng.sample(
            sorted({*KINDS} - ({"stubborn"} if self.rng.random() < 0.8 else set())), 3
        )
        self.kinds = dict(zip("abc", kinds))
        self.port = self.free_port() if "web" in kinds else 0
        self.write_configuration()
        self.left = [count // CLIENTS] * CLIENTS
        total, many = sum(self.left), self.rng.randrange(2, 6)
        self.faults = [self.rng.randrange(total) for _ in range(many)]
        self.started = 0

    def say(self, text: str) -> None:
        """A line of the story."""
        self.story.append(f"{time.monotonic() - self.began:7.3f} {text}")

    def free_port(self) -> int:
        while True:
            port = random.randrange(12000, 17000)
            with contextlib.suppress(OSError), socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
                return port

    def write_configuration(self) -> None:
        """The same services for `up` and `down`, among whose specs one differs."""
        services: dict[str, dict[str, object]] = {}
        for name, kind in self.kinds.items():
            words = [word.replace("{port}", str(self.port)) for word in KINDS[kind]]
            options, command = words[: words.index("--")], words[words.index("--") + 1 :]
            keys = (word[2:].replace("-", "_") for word in options[::2])
            services[name] = {**dict(zip(keys, options[1::2])), "command": command}
        services["b"]["env"] = {"A": "4"}
        text = json.dumps({"version": 1, "services": services})
        (self.cwd / "spm.json").write_text(text, "utf-8")

    # -- commands

    def prepare(self, compiled: Path) -> None:
        """A home whose supervisors needn't be compiled first."""
        self.home.mkdir(mode=0o700)
        if self.is_small:
            mount("none", str(self.home), "tmpfs", 0, "size=1100k,mode=700")
            self.mounts.append(str(self.home))
        target = Path(program.compiled_path(program.Store(str(self.home))))
        target.parent.mkdir(mode=0o700, parents=True)
        if self.is_small:
            shutil.copy(compiled, target)
        else:
            os.link(compiled, target)
        if self.clock:
            self.clock.write_bytes(bytes(8))
            library = str(compiled.with_name("clock.so"))
            self.env.update(LD_PRELOAD=library, TEST_CLOCK=str(self.clock))
            self.move_clock()
        self.add_canary()
        self.say(f"services {self.kinds}, small disk: {self.is_small}, clock: {self.clock}")

    def words(self) -> list[str]:
        """A random command."""
        names = list(CALLS)
        verb = self.rng.choices(names, [CALLS[name][0] for name in names])[0]
        if self.started < len(self.kinds) and self.rng.random() < 0.8:
            verb = "start"
        name, more = "abc"[self.started % 3], list(CALLS[verb][1])
        json_ = ["--json"] * (self.rng.random() < 0.5)
        if verb in ("start", "replace"):
            spec = [word.replace("{port}", str(self.port)) for word in KINDS[self.kinds[name]]]
            waits = ["--wait", "1s"] * (self.rng.random() < 0.2)
            if verb == "replace":  # with another spec
                waits += ["--replace", "--env", f"A={self.rng.randrange(3)}"]
            return ["start", name, *json_, *waits, *spec]
        if verb == "call":
            name = next((n for n, kind in self.kinds.items() if kind == "stdio"), name)
        verb = "stop" if verb == "kill" else verb
        if verb == "cleanup":
            more = [word for word in ("--keep", "--purge") if self.rng.random() < 0.3]
        if verb == "up" and self.rng.random() < 0.3:
            more = [self.rng.choice(("--wait", "--rollback-on-failure"))]
        is_for_all = verb in ("list", "cleanup") or (verb in ("up", "down") and json_)
        return [verb, *([] if is_for_all else [name]), *more, *json_]

    def crash_point(self, verb: str) -> str:
        """Where this command, or the supervisor that it starts, is to die."""
        starts = verb in ("start", "restart", "call", "up")
        if self.rng.random() > (0.25 if starts or verb in ("stop", "cleanup") else 0.05):
            return ""
        role = "supervisor" if starts and self.rng.random() < 0.6 else "command"
        steps = [s for s in STEPS if s not in (COMMANDS if role == "supervisor" else SUPERVISORS)]
        return f"{role}.{self.rng.choice(steps)}:{self.rng.choice((1, 1, 1, 2, 3))}"

    def launch(self, words: list[str], crash: str = "") -> Client:
        """A command, without waiting for it."""
        files = (os.memfd_create("out"), os.memfd_create("err"))
        env = {**self.env, **({"SPM_TEST_CRASH": crash} if crash else {})}
        pid = os.fork()
        if pid == 0:
            self.be(words, env, files)
        client = Client(words, pid, files, crash)
        self.say(f"{pid} begins: {' '.join(words)}{' crash: ' * bool(crash)}{crash}")
        return client

    def be(self, words: list[str], env: dict[str, str], files: tuple[int, int]) -> None:
        """In the forked process: become that command."""
        code = 97
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(files[0], 1)
            os.dup2(files[1], 2)
            os.closerange(3, 200)
            os.chdir(self.cwd)
            if self.clock:
                argv = [sys.executable, str(ROOT / "tests" / "spm.py"), *words]
                os.execve(sys.executable, argv, env)
            os.environ.clear()
            os.environ.update(env)
            sys.argv = ["spm", *words]
            sys.stdout, sys.stderr = (
                io.TextIOWrapper(io.FileIO(fd, "w", closefd=False), "utf-8") for fd in (1, 2)
            )
            program.main()  # it ends the process
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)

    def finish(self, client: Client, status: int) -> str:
        """What a command that ended has said; Broken if it may not have."""
        took, words = time.monotonic() - client.began, " ".join(client.words[:2])
        texts = [os.pread(file, 1 << 20, 0).decode("utf-8", "replace") for file in client.files]
        for file in (*client.files, client.watch):
            os.close(file)
        code = os.waitstatus_to_exitcode(status)
        told = " / ".join(text.strip().replace("\n", " | ")[:300] for text in texts)
        self.say(f"{client.pid} ended with {code}: {told}")
        self.slowest = max(self.slowest, (took, words))
        self.done[f"{client.words[0]} {code}"] += 1
        may_die = client.was_killed or client.crash.startswith("command.")
        if 'simple_process_manager.py", line' in "".join(texts):  # a traceback of ours
            raise Broken(f"a traceback of {words} ({client.pid}): {texts[0]}{texts[1]}")
        if code not in CODES and not (code == -9 and may_die):
            raise Broken(f"{words} ({client.pid}) ended with {code}: {texts[0]}{texts[1]}")
        return texts[0]

    def run_command(self, *words: str) -> tuple[int, str]:
        """A command, run to its end, in peace."""
        client = self.launch(list(words))
        self.running.append(client)
        status = None
        while status is None:
            status = self.reap(client)
        self.running.remove(client)
        return os.waitstatus_to_exitcode(status), self.finish(client, status)

    def reap(self, client: Client) -> int | None:
        """Its status if it has ended; a moment's wait otherwise. Broken if it takes too long."""
        select.select([client.watch], [], [], 0.05)
        pid, status = os.waitpid(client.pid, os.WNOHANG)
        if pid:
            return status
        if time.monotonic() > client.began + client.limit_s:
            raise Broken(f"{' '.join(client.words)} hasn't ended in {client.limit_s} s")
        self.reap_orphans()
        return None

    def reap_orphans(self) -> None:
        """Whoever lost its parent is our child: we are a subreaper."""
        waited = {client.pid for client in self.running} | set(self.canaries)
        with contextlib.suppress(ChildProcessError):
            while True:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if info is None or info.si_pid in waited:
                    return
                os.waitpid(info.si_pid, os.WNOHANG)

    # -- the round

    def act(self) -> None:
        """Clients and faults, until the last command has ended and every fault is healed."""
        while sum(self.left) or self.running or self.later:
            while self.later and self.later[0][0] <= time.monotonic():
                heapq.heappop(self.later)[2]()
            while sum(self.left) and len(self.running) < CLIENTS:
                self.begin_command()
            due = self.later[0][0] - time.monotonic() if self.later else 0.05
            watches = [client.watch for client in self.running]
            select.select(watches, [], [], max(0.0, min(due, 0.05)))
            for client in list(self.running):
                pid, status = os.waitpid(client.pid, os.WNOHANG)
                if pid:
                    self.running.remove(client)
                    self.finish(client, status)
                elif time.monotonic() > client.began + client.limit_s:
                    raise Broken(f"{' '.join(client.words)} hasn't ended in {client.limit_s} s")
            self.reap_orphans()

    def begin_command(self) -> None:
        """The next command, and the faults that come with it."""
        words = self.words()
        self.left[self.left.index(max(self.left))] -= 1
        self.running.append(self.launch(words, self.crash_point(words[0])))
        for _ in range(self.faults.count(self.started)):
            weights = {**FAULTS, "fill": 9 * self.is_small, "move_clock": 9 * bool(self.clock)}
            kind = self.rng.choices(list(weights), list(weights.values()))[0]
            self.after(self.rng.random() ** 2 * 0.15, getattr(self, kind))
        self.started += 1

    def after(self, wait_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.later, (time.monotonic() + wait_s, id(act) + len(self.later), act))

    # -- what lives

    def ours(self) -> list[Process]:
        """Every living process with the cookie of this home."""
        found, mark = [], os.fsencode(f"SPM_HOME={self.home}\0")
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                with open(f"/proc/{name}/environ", "rb", buffering=0) as file:
                    text = file.readall() or b""
                if mark not in text:
                    continue
                with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                    stat = file.readall() or b""
                with open(f"/proc/{name}/cmdline", "rb", buffering=0) as file:
                    line = (file.readall() or b"").replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            values = dict(os.fsdecode(one).partition("=")[::2] for one in text.split(b"\0"))
            service, instance = values.get("SPM_SERVICE", ""), values.get("SPM_INSTANCE", "")
            supervises = values.get("SPM_SUPERVISOR", "")
            is_dead = stat[stat.rindex(b")") + 2 :][:1] in b"ZX"
            if (instance or supervises) and not is_dead:
                found.append(Process(int(name), service, instance, supervises, line[:80]))
        return found

    def is_free(self, pid: int) -> bool:
        return pid not in self.canaries

    def pick(self, is_supervisor: bool) -> Process | None:
        """A random process of ours."""
        found = [one for one in self.ours() if (not one.instance) == is_supervisor]
        found = [one for one in found if self.is_free(one.pid)]
        return self.rng.choice(found) if found else None

    def kill(self, pid: int, number: int, why: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            self.say(f"FAULT {why} {pid}")
            self.done[why] += 1

    # -- the faults

    def kill_command(self) -> None:
        if self.running:
            client = self.rng.choice(self.running)
            client.was_killed = True
            self.kill(client.pid, signal.SIGKILL, "killed a command")

    def kill_supervisor(self) -> None:
        victim = self.pick(True)
        if victim:
            self.kill(victim.pid, signal.SIGKILL, f"killed the supervisor of {victim.service}")

    def kill_service(self) -> None:
        victim = self.pick(False)
        if victim:
            self.kill(victim.pid, signal.SIGKILL, f"killed a process of {victim.service}")

    def kill_both(self) -> None:
        victim = self.pick(True)
        for one in self.ours() if victim else ():
            if victim and one.service == victim.service and self.is_free(one.pid):
                self.kill(one.pid, signal.SIGKILL, f"killed all of {one.service}")

    def stand_still(self) -> None:
        victim = self.pick(True)
        if victim:
            pid, token = victim.pid, token_of(victim.pid)
            self.kill(pid, signal.SIGSTOP, "stopped a supervisor")

            def go_on() -> None:
                if token_of(pid) == token:
                    self.kill(pid, signal.SIGCONT, "continued a supervisor")

            self.after(self.rng.choice((0.05, 0.3, 1.0, 3.5)), go_on)

    def damage(self, what: str, change: Callable[[bytes], bytes | None]) -> None:
        path = self.home / "state.json"
        with contextlib.suppress(OSError):
            text = change(path.read_bytes())
            if text is None:
                path.unlink()
            else:
                path.write_bytes(text)
            self.say(f"FAULT {what} state.json")
            self.done[what] += 1

    def corrupt(self) -> None:
        def change(text: bytes) -> bytes:
            place = self.rng.randrange(len(text) or 1)
            return text[:place] + self.rng.randbytes(4) + text[place + 4 :]

        self.damage("corrupted", change)

    def truncate(self) -> None:
        self.damage("truncated", lambda text: text[: self.rng.randrange(len(text) or 1)])

    def delete(self) -> None:
        self.damage("deleted", lambda text: None)

    def fill(self) -> None:
        """The disk is full for a while."""
        if not self.is_small:
            return
        path = self.home / "lock.fill"
        with contextlib.suppress(OSError), open(path, "ab", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        self.say("FAULT disk full")
        self.done["disk full"] += 1

        def heal() -> None:
            try:
                path.unlink(missing_ok=True)
                self.say("disk has room again")
            except OSError:  # read-only as well
                self.after(0.02, heal)

        self.after(self.rng.choice((0.05, 0.2, 0.5)), heal)

    def read_only(self) -> None:
        """Everything in the home is read-only for a while, by another mount on top of it."""
        if "apart" not in self.abilities or len(self.mounts) > 2:
            return
        home = str(self.home)
        mount(home, home, "", MS_BIND)
        self.mounts.append(home)
        try:
            mount(home, home, "", MS_BIND | MS_REMOUNT | MS_RDONLY)
        except OSError:  # somebody writes there this very moment
            self.unmount()
            self.after(0.01, self.read_only)
            return
        self.say("FAULT read-only")
        self.done["read-only"] += 1

        def heal() -> None:
            self.unmount()
            self.say("writable again")

        self.after(self.rng.choice((0.05, 0.2, 0.5)), heal)

    def unmount(self) -> None:
        if LIBC.umount2(os.fsencode(self.mounts.pop()), MNT_DETACH):
            raise OSError(ctypes.get_errno(), "umount2")

    def move_clock(self) -> None:
        """Another time of day, from now on, for commands, supervisors and services alike."""
        if self.clock:
            seconds = self.rng.choice((3600, -3600, 400 * 86400, -400 * 86400, 2, -2, 0))
            with open(self.clock, "r+b", buffering=0) as file:
                file.write(seconds.to_bytes(8, sys.byteorder, signed=True))
            self.say(f"FAULT the clock is {seconds} s off")
            self.done["moved the clock"] += 1

    def forge(self) -> None:
        """A record that names a process that isn't the service's."""
        pid = self.add_canary()
        identity = program.stat_of(pid)
        assert identity

        def change(text: bytes) -> bytes:
            document = json.loads(text)
            record = document["services"][self.rng.choice(sorted(document["services"]))]
            record["main"] = identity.identity._asdict()
            record["phase"] = "running"
            return json.dumps(document).encode()

        with contextlib.suppress(ValueError, LookupError, TypeError):
            self.damage("forged", change)
            self.marred = True

    def reuse(self) -> None:
        """All of a service is killed, and its number becomes another process's."""
        if "pids" not in self.abilities:
            return
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            records = json.loads((self.home / "state.json").read_bytes())["services"]
            record = records[self.rng.choice(sorted(records))]
            pid, mine = record["main"]["pid"], self.ours()
            if pid not in [one.pid for one in mine] or not self.is_free(pid):
                return
            run = program.run_of(record["instance"])
            for one in sorted(mine, key=lambda one: bool(one.instance)):  # its supervisor first
                if run == program.run_of(one.instance or one.supervises):
                    self.kill(one.pid, signal.SIGKILL, "killed for its number")
            until = time.monotonic() + 0.3
            while time.monotonic() < until and os.path.exists(f"/proc/{pid}"):
                self.reap_orphans()
                time.sleep(0.001)
            time.sleep(0.03)  # a token counts ticks of 10 ms: nobody gets a number back within one
            for _ in range(20):
                Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
                other = self.add_canary()
                if other == pid:
                    self.marred = True
                    self.say(f"FAULT {pid} is another process now")
                    self.done["reused a number"] += 1
                    return
                self.end_canary(other)

    def add_canary(self) -> int:
        """A process that nobody may touch: it knows the home, as a developer's shell does."""
        null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
        argv = ["sleep", "300"]
        pid = os.posix_spawnp("sleep", argv, self.env, file_actions=null, setsigmask=[])
        self.canaries[pid] = token_of(pid)
        return pid

    def end_canary(self, pid: int) -> None:
        del self.canaries[pid]
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    # -- INVARIANTS

    def check(self) -> list[str]:
        """What must hold now; it may take a moment until supervisors have done their part."""
        until = time.monotonic() + SETTLE_S
        while True:
            wrong, names = self.wrong()
            if not wrong:
                return names
            if time.monotonic() > until:
                raise Broken("; ".join(wrong))
            if "; ".join(wrong) not in self.story[-1]:
                self.say("not yet: " + "; ".join(wrong))
            time.sleep(0.1)
            self.reap_orphans()

    def wrong(self) -> tuple[list[str], list[str]]:
        """What doesn't hold after a `list`, which may correct and rebuild; and the services."""
        told = len(self.story)
        code, text = self.run_command("list", "--json")
        self.story[told:] = [] if told > 500 else self.story[told:][-1:]
        if code:
            return [f"list ended with {code}: {text}"], []
        rows = {row["name"]: row for row in json.loads(text)["services"]}
        self.reap_orphans()
        mine = self.ours()
        wrong = self.wrong_about_canaries()
        records: dict[str, dict[str, object]] = {}
        with contextlib.suppress(FileNotFoundError):
            try:
                records = json.loads((self.home / "state.json").read_bytes())["services"]
            except (ValueError, LookupError, TypeError) as error:
                wrong.append(f"state.json can't be read: {error}")
        living = {one.pid for one in mine}
        for one in mine:
            record = records.get(one.service.lower(), {})
            known = str(record.get("instance", ""))
            if one.instance and one.instance != known:
                wrong.append(f"{one} isn't of the recorded instance {known or None}")
            if one.instance and record.get("phase") == "stopped":
                wrong.append(f"{one} lives, its record says stopped")
            if not one.instance and program.run_of(known) != program.run_of(one.supervises):
                wrong.append(f"{one} supervises what isn't recorded ({known or None})")
        for name, row in rows.items():
            guards = [one for one in mine if not one.instance and one.service == name]
            if len(guards) > 1:
                wrong.append(f"{name} has {len(guards)} supervisors: {guards}")
            is_up = row["status"] in ("running", "ready", "unhealthy")
            if is_up and row["pid"] not in living:
                wrong.append(f"{name} is {row['status']} with pid {row['pid']}, which isn't ours")
            if row["status"] in ("starting", "stopping"):
                wrong.append(f"{name} is still {row['status']}")
        return wrong, list(rows)

    def wrong_about_canaries(self) -> list[str]:
        touched = [pid for pid, token in self.canaries.items() if token_of(pid) != token]
        return [f"canary {pid} was ended" for pid in touched]

    def check_stop(self, names: list[str]) -> None:
        """After a stop of everything nothing is left."""
        if names:
            code, text = self.run_command("stop", *names, "--timeout", "500ms", "--json")
            errors = json.loads(text).get("errors", [])
            # the number of one that ended unseen may be a command's by now
            self.marred |= code == 8 and all("nothing_runs" in one for one in errors)
            if code and not (self.marred and code == 8):
                raise Broken(f"stop of {names} ended with {code}: {text}")
        if self.marred:  # what state.json said about a service was wrong: cleanup clears that up
            self.run_command("cleanup", "--keep", "--json")
        self.check_nothing("stop of everything")
        code, text = self.run_command("cleanup", "--json")
        if code:
            raise Broken(f"cleanup ended with {code}: {text}")
        self.check_nothing("cleanup")
        with contextlib.suppress(FileNotFoundError):
            text = (self.home / "state.json").read_text("utf-8")
            if json.loads(text)["services"]:
                raise Broken(f"after cleanup the state is: {text}")
        if self.wrong_about_canaries():
            raise Broken("; ".join(self.wrong_about_canaries()))
        extra = [path.name for path in self.home.glob("**/*.tmp")]
        if extra:
            self.done["temporary files left"] += len(extra)

    def check_nothing(self, what: str) -> None:
        until = time.monotonic() + SETTLE_S
        while True:
            self.reap_orphans()
            mine = [one for one in self.ours() if self.is_free(one.pid)]
            if not mine:
                return
            if time.monotonic() > until:
                raise Broken(f"after {what} there is still: {mine}")
            time.sleep(0.02)

    # -- the whole

    def run(self, compiled: Path) -> str:
        """All of it; what was wrong, "" if nothing."""
        problem = ""
        try:
            self.prepare(compiled)
            self.act()
            self.check_stop(self.check())
        except Exception as error:
            problem = str(error) if isinstance(error, Broken) else traceback.format_exc()
            problem = f"round {self.seed}: {problem}\n" + "\n".join([*self.story, *self.scene()])
        finally:
            self.end(keep=bool(problem))
        return problem

    def scene(self) -> list[str]:
        """What a violation leaves behind."""
        shown = ["--- alive", *map(str, self.ours())]
        for path in sorted([*self.home.glob("state.json*"), *self.home.glob("services/*/*.jsonl")]):
            if path.name not in ("metrics.jsonl", "exits.jsonl"):
                with contextlib.suppress(OSError):
                    text = path.read_text("utf-8", "replace")
                    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
                    shown += [f"--- {path}", *(brief(line) for line in lines[-40:])]
        return shown

    def end(self, keep: bool) -> None:
        for client in self.running:
            with contextlib.suppress(OSError):
                os.kill(client.pid, signal.SIGKILL)
                os.waitpid(client.pid, 0)
        self.running.clear()
        for one in sorted(self.ours(), key=lambda one: bool(one.instance)):
            if self.is_free(one.pid):
                with contextlib.suppress(OSError):
                    os.kill(one.pid, signal.SIGKILL)
        for pid in list(self.canaries):
            with contextlib.suppress(OSError):
                self.end_canary(pid)
        while self.mounts:
            self.unmount()
        self.reap_orphans()
        if self.crashes.exists():
            self.done.update(f"crashed at {step}" for step in self.crashes.read_text().split())
        shutil.rmtree(self.base, ignore_errors=True)


def brief(line: str) -> str:
    """A line of a journal without the spec."""
    with contextlib.suppress(ValueError, AttributeError, TypeError, LookupError):
        event = json.loads(line)
        record = event.get("record") or {}
        keys = ("instance", "phase", "wanted", "main", "supervisor", "exit")
        return f"{event['at']:.3f} {event['event']} {event['why']} " + str(
            {key: record.get(key) for key in keys}
        )
    return line[:3000]


def work(number: int, seed: str, numbers: int, results: int, options: argparse.Namespace) -> None:
    """A worker: rounds by the numbers that come over a pipe, results as JSON lines."""
    if "apart" in options.abilities:
        apart()
    else:
        LIBC.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    where = Path(options.where)
    gc.collect()
    gc.freeze()  # what a forked command doesn't touch needn't be copied for it
    while len(piece := os.read(numbers, 4)) == 4:
        if options.until and time.monotonic() > options.until:
            continue
        index = int.from_bytes(piece, "big")
        base = where / f"{number}-{index}"
        one = Round(f"{seed}:{index}", base, options.abilities, options.commands)
        began = time.monotonic()
        problem = one.run(Path(options.compiled))
        if problem:
            file = Path("/tmp", f"{where.name}-round-{index}.txt")
            file.write_text(problem, "utf-8")
            problem = str(file)
        line = {"problem": problem, "done": one.done, "slowest": one.slowest, "index": index}
        line["took"] = round(time.monotonic() - began, 2)
        line["story"] = "\n".join(one.story) if options.only is not None and not problem else ""
        os.write(results, json.dumps(line).encode() + b"\n")


def main() -> int:
    """All rounds; 1 if an invariant was violated."""
    parser = argparse.ArgumentParser(description="faults at random; see the file's beginning")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", default=str(random.randrange(10**6)))
    parser.add_argument("--only", type=int, help="this round of the seed alone")
    parser.add_argument("--jobs", type=int, default=4 * (os.cpu_count() or 1), help="at once")
    parser.add_argument("--commands", type=int, default=8, help="in each round")
    parser.add_argument("--seconds", type=float, help="begin no round after that time")
    options = parser.parse_args()
    options.until = options.seconds and time.monotonic() + options.seconds
    os.umask(0o077)
    # In memory: a round's commands wait for the disk (fsync) longer than for anything else.
    options.where = tempfile.mkdtemp(prefix="sf", dir=next(filter(os.path.isdir, SHORT_PLACES)))
    checks: dict[str, Callable[[], object]] = {"apart": apart, "pids": choose_pid}
    checks["clock"] = lambda: build_clock(options.where)
    reasons = {"apart": "full and read-only disks: no namespaces", "pids": "a reused number"}
    reasons["clock"] = "another clock: nothing to compile it with (cc)"
    options.abilities = {name for name, check in checks.items() if is_possible(check)}
    print(f"seed {options.seed}, {options.rounds} rounds, {options.jobs} at once", flush=True)
    for name in set(reasons) - options.abilities:
        print(f"left out: {reasons[name]}")
    options.compiled = f"{options.where}/compiled.pyc"
    program.compile_rooms(options.compiled, *program.SUPERVISES)
    try:
        return spread(options)
    finally:
        shutil.rmtree(options.where, ignore_errors=True)


def spread(options: argparse.Namespace) -> int:
    """The rounds among the workers, and what came of them."""
    began = time.monotonic()
    indices = [options.only] if options.only is not None else range(options.rounds)
    (numbers, feed), (results, tell) = os.pipe(), os.pipe()
    sys.stdout.flush()
    for number in range(min(options.jobs, len(indices))):
        if os.fork() == 0:
            os.close(feed)
            os.close(results)
            try:
                work(number, options.seed, numbers, tell, options)
                os._exit(0)
            finally:
                traceback.print_exc()
                os._exit(1)
    os.close(tell)
    os.close(numbers)
    feeder = os.fork()
    if feeder == 0:
        with contextlib.suppress(BrokenPipeError):
            for index in indices:
                os.write(feed, index.to_bytes(4, "big"))
        os._exit(0)
    os.close(feed)
    done: Counter[str] = Counter()
    rounds, problems, slowest, longest = 0, 0, [0.0, ""], [0.0, 0]
    with open(results, encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            rounds += 1
            done.update(line["done"])
            slowest = max(slowest, line["slowest"])
            longest = max(longest, [line["took"], line["index"]])
            if line["story"]:
                print(line["story"])
            if line["problem"]:
                problems += 1
                text = Path(line["problem"]).read_text("utf-8")
                print(f"VIOLATION, whole story in {line['problem']}\n{text}", flush=True)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    print(", ".join(f"{what}: {count}" for what, count in sorted(done.items())))
    print(f"slowest command: {slowest[1]} in {slowest[0]:.2f} s; longest round: {longest}")
    took = time.monotonic() - began
    print(f"seed {options.seed}: {rounds} rounds in {took:.1f} s, {problems} violations")
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
