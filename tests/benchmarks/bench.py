"""How fast and how lean it is: `python tests/benchmarks/bench.py [--rounds N] [--json]`.

Measured is what users run: a copy of simple_process_manager.py in a fresh directory (TMPDIR says
where), with a state directory of its own, as `python simple_process_manager.py …`. `vendor` makes
the copy; with --plain it is copied byte for byte, as `cp` does. The floor F is
`python -c "import argparse, json, psutil"` with the same interpreter. Every row measures it anew,
turn and turn about with what the row is about, so that whatever else the machine does hits both
alike: compare ratios, not milliseconds. Each figure is a median unless it says otherwise.

Not a test: nothing here is collected by pytest, and a missed target is shown, not an error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

SOURCE = Path(__file__).resolve().parents[2] / "simple_process_manager.py"
FLOOR = ("-c", "import argparse, json, psutil")
SERVICE = "sleep 1000"
SETTLE_S = 0.1  # what the last command left to do must not disturb the next measurement
IDLE_AFTER_S = 2.0
IDLE_S = 10.0
GONE_WITHIN_S = 3.0
KEPT_VARIABLES = ("PYTHONPATH", "PYTHONHOME")  # without them the interpreter may not find psutil
SERVER = """\
import socket, sys, time

server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
time.sleep(float(sys.argv[3]))
server.bind(("127.0.0.1", int(sys.argv[1])))
stamp = time.monotonic()
server.listen()
with open(sys.argv[2], "w") as file:
    file.write(repr(stamp))
while True:
    server.accept()[0].close()
"""


class Row(NamedTuple):
    """One line of the report; with a floor, the limit is a multiple of it."""

    what: str
    value: float
    unit: str = "ms"
    floor_ms: float | None = None
    limit: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many floors it took."""
        return self.value / self.floor_ms if self.floor_ms else None

    @property
    def is_reached(self) -> bool | None:
        """Whether the target is reached, None if there is none."""
        return None if self.limit is None else (self.ratio or self.value) <= self.limit

    @property
    def target(self) -> str:
        """The target as text."""
        return (
            "" if self.limit is None else f"≤ {self.limit:g} {'F' if self.floor_ms else self.unit}"
        )


def plain_environment(home: Path) -> dict[str, str]:
    """The environment of a normal shell: nothing in it changes how Python starts."""
    values = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "SPM_")) or key in KEPT_VARIABLES
    }
    return {**values, "SPM_HOME": str(home)}


def timed(argv: list[str], cwd: Path, env: dict[str, str]) -> tuple[float, str]:
    """How many milliseconds a command took until its pipes were closed, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(
        argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    took_ms = (time.perf_counter() - began) * 1000
    if done.returncode != 0:
        sys.exit(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return took_ms, done.stdout


class Copy:
    """The copied file and its state directory."""

    def __init__(self, directory: Path, is_plain: bool = False) -> None:
        self.directory, self.home = directory, directory / ".spm"
        self.program = str(directory / SOURCE.name)
        self.env = plain_environment(self.home)
        self.env["XDG_CACHE_HOME"] = str(directory / "cache")
        if is_plain:
            shutil.copy(SOURCE, directory)
        else:
            timed([sys.executable, str(SOURCE), "vendor", str(directory)], directory, self.env)

    def argv(self, *words: str) -> list[str]:
        """The words that run a command."""
        return [sys.executable, self.program, *words]

    def run(self, *words: str) -> str:
        """What a command prints."""
        return timed(self.argv(*words), self.directory, self.env)[1]

    def run_ms(self, *words: str) -> float:
        """How long a command takes."""
        return timed(self.argv(*words), self.directory, self.env)[0]

    def python_ms(self, *words: str) -> float:
        """How long the bare interpreter takes for something."""
        return timed([sys.executable, *words], self.directory, self.env)[0]

    def clean_up(self) -> None:
        """End all services and forget them."""
        self.run("cleanup", "--purge")
        time.sleep(SETTLE_S)

    def left_pids(self) -> list[int]:
        """The processes that still belong to this state directory."""
        pids = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):  # gone, a zombie, or not ours to read
                if process.environ().get("SPM_HOME") == str(self.home):
                    pids.append(process.pid)
        return pids

    def verify_nothing_left(self) -> None:
        """Exit with an error, and leave the directory for a look, if something still runs."""
        deadline = time.monotonic() + GONE_WITHIN_S
        while self.left_pids():
            if time.monotonic() > deadline:
                sys.exit(f"still running: {self.left_pids()}; see {self.directory}")
            time.sleep(0.05)


# -- what is measured


def measure_start_and_stop(copy: Copy, rounds: int) -> list[Row]:
    """A start of a fresh name, and the stop of it when it has settled; one service at a time."""
    floors, starts, stops = [], [], []
    for number in range(rounds):
        floors.append(copy.python_ms(*FLOOR))
        starts.append(copy.run_ms("start", f"s{number}", SERVICE))
        time.sleep(SETTLE_S)
        floors.append(copy.python_ms(*FLOOR))
        stops.append(copy.run_ms("stop", f"s{number}"))
        copy.clean_up()
    floor = statistics.median(floors)
    return [
        Row("start returns", statistics.median(starts), floor_ms=floor, limit=1.8),
        Row("stop of a service that obeys", statistics.median(stops), floor_ms=floor, limit=1.7),
    ]


def measure_list(copy: Copy, rounds: int) -> list[Row]:
    """A list of 10 running services, then of 100."""
    rows, started = [], 0
    for count, limit in ((10, 1.6), (100, 2.0)):
        for number in range(started, count):
            copy.run("start", f"l{number}", SERVICE)
        started = count
        time.sleep(IDLE_AFTER_S)
        pairs = [(copy.python_ms(*FLOOR), copy.run_ms("list")) for _ in range(rounds)]
        floor, value = (statistics.median(column) for column in zip(*pairs))
        running = copy.run("list").count("running")
        rows.append(Row(f"list, {running} services running", value, floor_ms=floor, limit=limit))
    copy.clean_up()
    return rows


def free_port() -> int:
    """A free port below the ephemeral range: a probe's own end can't come to lie on it."""
    while True:
        port = random.randrange(20000, 30000)
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", port))
            return port


def wait_lag_ms(copy: Copy, name: str, server: Path) -> float:
    """From the call of listen() in a service to the return of the wait-healthy for it."""
    port, stamp, delay_s = (
        str(free_port()),
        copy.directory / f"{name}.stamp",
        random.uniform(0.3, 0.8),
    )
    command = (sys.executable, str(server), port, str(stamp), f"{delay_s:.6f}")
    copy.run("start", name, "--port", port, "--", *command)
    # time.monotonic() is the same clock in every process of a machine.
    waiting = subprocess.Popen(
        copy.argv("wait-healthy", port, "10"),
        cwd=copy.directory,
        env=copy.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    code = waiting.wait()  # blocks in the kernel: no polling that would add to the lag
    returned = time.monotonic()
    output = waiting.communicate()[0]
    if code != 0:
        sys.exit(f"wait-healthy {port}: exit code {code}\n{output}")
    time.sleep(SETTLE_S)
    lag_ms = (returned - float(stamp.read_text())) * 1000
    copy.run("stop", name)
    return lag_ms


def measure_wait(copy: Copy, rounds: int) -> list[Row]:
    """The lag of wait-healthy behind a server that begins to listen at some moment."""
    server = copy.directory / "server.py"
    server.write_text(SERVER)
    lags = sorted(wait_lag_ms(copy, f"w{number}", server) for number in range(rounds))
    copy.clean_up()
    p95 = lags[math.ceil(0.95 * len(lags)) - 1]
    what = "listen() to the return of wait-healthy"
    return [
        Row(f"{what}, median", statistics.median(lags), limit=5.0),
        Row(f"{what}, p95", p95, limit=12.0),
    ]


def proc_number(pid: int, file: str, field: str) -> int:
    """A number behind a name in a file of /proc/PID."""
    match = re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    return int(match[1]) if match else 0


class Spent(NamedTuple):
    """What a process has spent so far."""

    switches: int
    ticks: int  # whole ones, mostly of 10 ms: a wake that a tick falls on counts as one
    cpu_ms: float | None  # exact, where the kernel keeps /proc/PID/schedstat

    @classmethod
    def of(cls, pid: int) -> Spent:
        """One look at it: proc_pid_status(5), proc_pid_stat(5)."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        exact = Path(f"/proc/{pid}/schedstat")
        return cls(
            switches=proc_number(pid, "status", "voluntary_ctxt_switches"),
            ticks=int(fields[11]) + int(fields[12]),
            cpu_ms=int(exact.read_text().split()[0]) / 1e6 if exact.exists() else None,
        )


def measure_idle_supervisor(copy: Copy) -> list[Row]:
    """What a supervisor costs while nothing happens; where there is no /proc, nothing is said."""
    if not os.path.exists("/proc/self/smaps_rollup"):
        return []
    copy.run("start", "idle", SERVICE)
    pid = int(json.loads(copy.run("status", "idle", "--json"))["supervisor"])
    time.sleep(IDLE_AFTER_S)
    pss_mb, rss_mb = (proc_number(pid, "smaps_rollup", k) * 1024 / 1e6 for k in ("Pss", "Rss"))
    before = Spent.of(pid)
    time.sleep(IDLE_S)
    after = Spent.of(pid)
    copy.clean_up()
    span = f"idle supervisor, {IDLE_S:.0f} s"
    switches = after.switches - before.switches
    rows = [
        # Other Python processes, this one too, share the interpreter's pages and lower the PSS;
        # it can't be more than the RSS.
        Row(f"idle supervisor {IDLE_AFTER_S:.0f} s after its start, PSS", pss_mb, "MB", limit=12.0),
        Row("the same, RSS", rss_mb, "MB"),
        Row(f"{span}: voluntary context switches", switches, "times", limit=IDLE_S / 5 + 1),
        Row(f"{span}: utime + stime", after.ticks - before.ticks, "ticks"),
    ]
    if after.cpu_ms is None or before.cpu_ms is None:
        return rows
    cpu_ms = after.cpu_ms - before.cpu_ms
    return [*rows, Row(f"{span}: CPU, exactly", cpu_ms, limit=IDLE_S)]  # a thousandth of a CPU


def measure_context(copy: Copy, rounds: int) -> list[Row]:
    """What helps to judge the rest."""
    compiling, source = [], SOURCE.read_text(encoding="utf-8")
    for _ in range(5):
        began = time.perf_counter()
        compile(source, str(SOURCE), "exec", dont_inherit=True)
        compiling.append((time.perf_counter() - began) * 1000)
    words = (("-c", "pass"), (copy.program, "--version"))
    cases = [(copy.python_ms(*FLOOR), *(copy.python_ms(*w) for w in words)) for _ in range(rounds)]
    floor, bare, version = (statistics.median(column) for column in zip(*cases))
    return [
        Row("the interpreter alone: python -c pass", bare, floor_ms=floor),
        Row("the file alone: --version", version, floor_ms=floor),
        Row(f"compile() of its {source.count(chr(10))} lines", statistics.median(compiling)),
    ]


# -- the report


def file_system(path: Path) -> str:
    """The type of the file system that holds a path: what fsync costs depends on it."""
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    above = [str(parent) for parent in (path, *path.parents)]
    return next((mounts[place] for place in above if place in mounts), "?")


def machine(directory: Path) -> str:
    """What it ran on, in one line."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{os.cpu_count()} CPUs{load}, {platform.python_implementation()} "
        f"{platform.python_version()}, psutil {psutil.__version__}, "
        f"{platform.system()} {platform.release()}, {file_system(directory.resolve())}"
    )


def table_line(row: Row) -> str:
    """A row of the Markdown table."""
    value = f"{row.value:.1f} {row.unit}" if row.unit in ("ms", "MB") else f"{row.value} {row.unit}"
    floor = f"{row.floor_ms:.1f} ms" if row.floor_ms else ""
    ratio = f"{row.ratio:.2f} F" if row.ratio else ""
    reached = {True: "yes", False: "**no**", None: ""}[row.is_reached]
    return f"| {row.what} | {value} | {floor} | {ratio} | {row.target} | {reached} |"


def report(rows: list[Row], on: str, rounds: int, as_json: bool) -> str:
    """The rows as a Markdown table, or as JSON."""
    if as_json:
        derived = ("ratio", "is_reached")
        shown = [{**row._asdict(), **{key: getattr(row, key) for key in derived}} for row in rows]
        return json.dumps({"machine": on, "rounds": rounds, "rows": shown}, indent=2)
    head = ["| what | measured | floor F | ratio | target | reached |", "| --- " * 6 + "|"]
    return "\n".join([*head, *map(table_line, rows), "", f"{on}; {rounds} rounds"])


def measure(copy: Copy, rounds: int) -> list[Row]:
    """All rows, in the order of the report."""
    copy.python_ms(*FLOOR)  # once for the bytecode of what it imports
    first_ms = copy.run_ms("start", "first", SERVICE)
    copy.clean_up()
    return [
        *measure_start_and_stop(copy, rounds),
        *measure_list(copy, rounds),
        *measure_wait(copy, rounds),
        *measure_idle_supervisor(copy),
        *measure_context(copy, rounds),
        Row("the very first start in a state directory, once", first_ms),
    ]


def main() -> None:
    """Measure, report, leave nothing behind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30, help="samples of each kind (30)")
    parser.add_argument("--plain", action="store_true", help="a copy as cp makes it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    directory = Path(tempfile.mkdtemp(prefix="spm-bench-"))
    on = machine(directory)
    copy = Copy(directory, args.plain)
    try:
        rows = measure(copy, args.rounds)
    finally:
        copy.clean_up()
        copy.verify_nothing_left()
        shutil.rmtree(directory)
    print(report(rows, on, args.rounds, args.json))


if __name__ == "__main__":
    main()
