"""Side by side with other tools, run by hand: python tests/benchmarks/peers.py [--rounds N]

Everything is installed from npm and PyPI into one temporary directory, measured turn and turn
about (in an order that moves on by one each round), and removed. The program is there three times:
as a copy by `vendor`, as a copy by `cp`, which Python compiles at every call, and installed, as
`spm`. F is
`python -c "import argparse, json, psutil"` with the same interpreter in the same rounds: compare
ratios. Each figure is a median. --only says which tables, --keep DIR keeps what was installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil
from bench import FLOOR, SERVER, SOURCE, file_system, free_port, proc_number

NPM = "pm2 bgproc wait-on start-server-and-test mcporter @modelcontextprotocol/server-everything"
PYPI = "psutil supervisor hapless"
COUNT = 10  # services that run while something is measured
SETTLE_S = 0.2
KEEPS_PIPES = ">{directory}/pipes 2>&1"  # else its caller's are open until the service ends
INSTALL_S, COMMAND_S = 300.0, 60.0
DELAYS_S = (0.5, 1.0)  # until a server listens, and START_F floors: its waiter runs by then
START_F = 25
OURS = {
    "copy by vendor": ["python", "{copy}/simple_process_manager.py"],
    "copy by cp": ["python", "{plain}/simple_process_manager.py"],
    "spm": ["spm"],
}
# what each tool calls what is measured; {name}: of the service
ACTS = {
    "ours": {
        "start": ["start", "{name}", "sleep 1000"],
        "list": ["list"],
        "stop": ["stop", "{name}"],
    },
    "pm2": {
        "start": ["pm2", "start", "sleep", "--name", "{name}", "--", "1000"],
        "list": ["pm2", "list"],
        "stop": ["pm2", "stop", "{name}"],
        "after": ["pm2", "delete", "{name}"],
        "end": ["pm2", "kill"],
    },
    "bgproc": {
        "start": ["bgproc", "start", "-n", "{name}", "--", "sleep", "1000"],
        "list": ["bgproc", "list"],
        "stop": ["bgproc", "stop", "{name}"],
    },
    "supervisor": {
        "begin": ["supervisord", "-c", "{directory}/supervisord.conf"],
        "start": ["supervisorctl", "-c", "{directory}/supervisord.conf", "start", "{name}"],
        "list": ["supervisorctl", "-c", "{directory}/supervisord.conf", "status"],
        "stop": ["supervisorctl", "-c", "{directory}/supervisord.conf", "stop", "{name}"],
        "end": ["supervisorctl", "-c", "{directory}/supervisord.conf", "shutdown"],
    },
    "hapless": {
        "start": ["sh", "-c", f"exec hap run -n {{name}} -- sleep 1000 {KEEPS_PIPES}"],
        "list": ["hap", "status"],
        "stop": ["hap", "kill", "{name}"],
    },
}
CODES = {"supervisor": (0, 3)}  # `supervisorctl status` says 3 when one of them is stopped
# programs have to be declared; without startsecs=0 a start takes a second
SUPERVISORD = """\
[supervisord]
logfile={directory}/supervisord.log
pidfile={directory}/supervisord.pid
childlogdir={directory}
[unix_http_server]
file={directory}/supervisor.sock
[supervisorctl]
serverurl=unix://{directory}/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""
PROGRAM = "[program:{name}]\ncommand=sleep 1000\nautostart=false\nstartsecs=0\n"
INITIALIZE = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "bench", "version": "1"},
}
ECHO = {"name": "echo", "arguments": {"message": "hi"}}
Samples = dict[str, list[float]]


class Stage:
    """The temporary directory, what is installed in it, and the environment of it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.mark = directory, uuid.uuid4().hex
        self.versions: dict[str, str] = {}
        self.missing: list[str] = []
        venv, npm = directory / "venv", directory / "npm"
        places = [venv / "bin", npm / "node_modules" / ".bin", os.environ.get("PATH", os.defpath)]
        home = directory / "home"
        kept = {key: os.environ[key] for key in ("LANG", "TMPDIR") if key in os.environ}
        self.env = {
            **kept,
            "PATH": os.pathsep.join(map(str, places)),
            "HOME": str(home),
            "PM2_HOME": str(home / "pm2"),
            "HAPLESS_DIR": str(home / "hapless"),
            "SPM_BENCH": self.mark,  # all that a tool starts inherits it
        }
        shutil.rmtree(home, ignore_errors=True)  # of a run before, with --keep
        home.mkdir()
        self.copy, self.plain = directory / "copy", directory / "plain"
        for place in (self.copy, self.plain):
            place.mkdir(exist_ok=True)
        shutil.copy(SOURCE, self.plain)
        vendor = [sys.executable, str(SOURCE), "vendor", str(self.copy), "--force"]
        subprocess.run(vendor, check=True, stdout=subprocess.DEVNULL)
        if not venv.exists():
            self.install()
        self.read_versions()

    def install(self) -> None:
        """Everything from its registry; what can't be had is missing from the tables."""
        venv, npm, ours = (self.directory / name for name in ("venv", "npm", "project"))
        subprocess.run([sys.executable, "-m", "venv", venv], check=True, timeout=INSTALL_S)
        ours.mkdir()
        for name in ("simple_process_manager.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(SOURCE.parent / name, ours)
        for package in (*PYPI.split(), str(ours)):
            self.try_to([str(venv / "bin" / "pip"), "install", "-q", package], package)
        for package in NPM.split():
            words = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(npm)]
            self.try_to([*words, package], package)

    def try_to(self, argv: list[str], package: str) -> None:
        """Install one package, from where the user's settings say; what fails is remembered."""
        try:
            done = subprocess.run(argv, timeout=INSTALL_S, capture_output=True)
            reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        else:
            if done.returncode == 0:
                return
        self.missing.append(f"{package} could not be installed: {reason}")

    def read_versions(self) -> None:
        """The versions of what is there."""
        for package in NPM.split():
            file = self.directory / "npm" / "node_modules" / package / "package.json"
            if file.exists():
                self.versions[package] = json.loads(file.read_text())["version"]
        for info in (self.directory / "venv").glob("lib/python*/site-packages/*.dist-info"):
            name, _, version = info.name[: -len(".dist-info")].partition("-")
            self.versions[name] = version
        if shutil.which("node", path=self.env["PATH"]):
            self.versions["node"] = self.run(["node", "--version"])[1].strip().lstrip("v")

    def run(
        self,
        argv: Iterable[str],
        codes: Iterable[int] = (0,),
        values: Mapping[str, object] | None = None,
    ) -> tuple[float, str]:
        """How many milliseconds a command takes until its pipes are closed, and its output."""
        places = {"directory": self.directory, "copy": self.copy, "plain": self.plain}
        given = {**places, "home": None, **(values or {})}
        words = [re.sub(r"\{(\w+)\}", lambda found: str(given[found[1]]), w) for w in argv]
        # Found here: the search for the program isn't what is measured.
        words[0] = shutil.which(words[0], path=self.env["PATH"]) or words[0]
        began = time.perf_counter()
        done = subprocess.run(
            words,
            cwd=self.directory,
            env={**self.env, "SPM_HOME": str(given["home"] or self.directory / "spm")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        took_ms = (time.perf_counter() - began) * 1000
        if done.returncode not in codes:
            raise RuntimeError(
                f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return took_ms, done.stdout

    def floor_ms(self) -> float:
        """The floor, once."""
        return self.run(["python", *FLOOR])[0]

    def bearers(self) -> list[psutil.Process]:
        """The processes that were started from here and still run."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SPM_BENCH") == self.mark:
                    found.append(process)
            except (psutil.Error, OSError):
                continue  # gone, a zombie, or not ours to read
        return found

    def end_all(self) -> None:
        """Nothing that was started from here stays."""
        for process in self.bearers():
            process.kill()
        psutil.wait_procs(self.bearers(), timeout=5)


class Tool(NamedTuple):
    """One line of a table and the words of its commands."""

    name: str
    acts: Mapping[str, list[str]]
    home: Path | None = None  # of ours
    codes: tuple[int, ...] = (0,)

    def act(self, stage: Stage, what: str, name: str = "") -> float:
        """How long one of its commands takes; 0 where it has none of this kind."""
        argv = self.acts.get(what)
        return stage.run(argv, self.codes, {"name": name, "home": self.home})[0] if argv else 0.0


class Table(NamedTuple):
    """One table of the report: a line for each tool, a column for each thing measured."""

    title: str
    floor_ms: float
    columns: Mapping[str, Mapping[str, float]]  # by what was measured, then by tool
    units: Mapping[str, str] = {}  # of a column that isn't of milliseconds


def tools(stage: Stage) -> list[Tool]:
    """Those that manage services and could be installed; ours first."""
    found = [
        Tool(
            label,
            {what: [*words, *given] for what, given in ACTS["ours"].items()},
            stage.directory / f"home-{number}",
        )
        for number, (label, words) in enumerate(OURS.items())
    ]
    return found + [
        Tool(f"{name} {stage.versions[name]}", acts, codes=CODES.get(name, (0,)))
        for name, acts in ACTS.items()
        if name in stage.versions
    ]


def rounds_of(
    stage: Stage, rounds: int, cases: Mapping[str, Callable[[], float]]
) -> tuple[float, Samples]:
    """Each case once a round, the first of one round being the last of the next, and the floor."""
    floors: list[float] = []
    samples: Samples = {name: [] for name in cases}
    order = list(cases)
    for number in range(rounds):
        print(f"\r{number + 1}/{rounds} of {', '.join(order[:3])} … ", end="", file=sys.stderr)
        floors += [stage.floor_ms(), stage.floor_ms()]
        for name in order:
            samples[name].append(cases[name]())
        order.append(order.pop(0))
    print(file=sys.stderr)
    return statistics.median(floors), samples


def medians(samples: Samples) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(values) for name, values in samples.items()}


def keepers_mb(stage: Stage, before: Iterable[int]) -> float:
    """The memory (PSS) of what a tool keeps running beside the services."""
    kept = [p.pid for p in stage.bearers() if p.pid not in before and p.name() != "sleep"]
    return sum(proc_number(pid, "smaps_rollup", "Pss") for pid in kept) * 1024 / 1e6


def measure_services(stage: Stage, rounds: int) -> Table:
    """Start, list and stop, with ten other services running under each tool."""
    names = [f"s{number}" for number in range(rounds)]
    text = SUPERVISORD.format(directory=stage.directory)
    programs = [*names, *(f"l{number}" for number in range(COUNT))]
    text += "".join(PROGRAM.format(name=name) for name in programs)
    (stage.directory / "supervisord.conf").write_text(text)
    managers, memory = [], {}
    for tool in tools(stage):
        before = {process.pid for process in stage.bearers()}
        try:
            tool.act(stage, "begin")
            time.sleep(SETTLE_S * 5 * ("begin" in tool.acts))
            for number in range(COUNT):
                tool.act(stage, "start", f"l{number}")
            tool.act(stage, "list")
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            stage.missing.append(
                f"{tool.name} did not work here: {' '.join(str(error).split())[:300]}"
            )
            continue
        time.sleep(SETTLE_S * 5)
        memory[tool.name] = keepers_mb(stage, before)
        managers.append(tool)

    def stopped(tool: Tool, starts: Samples) -> float:
        name = names[len(starts.setdefault(tool.name, []))]
        starts[tool.name].append(tool.act(stage, "start", name))
        time.sleep(SETTLE_S)
        took_ms = tool.act(stage, "stop", name)
        tool.act(stage, "after", name)
        return took_ms

    def listing(tool: Tool) -> Callable[[], float]:
        return lambda: tool.act(stage, "list")

    def stopping(tool: Tool, starts: Samples) -> Callable[[], float]:
        return lambda: stopped(tool, starts)

    starts: Samples = {}
    floor_ms, lists = rounds_of(stage, rounds, {one.name: listing(one) for one in managers})
    floors, stops = rounds_of(stage, rounds, {one.name: stopping(one, starts) for one in managers})
    for tool in managers:
        tool.act(stage, "end")
    keeping = f"memory of what keeps {COUNT} services"
    found = {"start": medians(starts), f"list, {COUNT} services": medians(lists)}
    found |= {"stop": medians(stops), keeping: memory}
    return Table("Services", (floor_ms + floors) / 2, found, {keeping: "MB"})


def wait_lag_ms(stage: Stage, argv: list[str], is_runner: bool, home: Path) -> float:
    """From listen() to the return of the one who waits, or to the first moment of its command."""
    port, stamp, reached = free_port(), stage.directory / "stamp", stage.directory / "reached"
    delay_s = f"{random.uniform(*DELAYS_S) + START_F * stage.floor_ms() / 1000:.6f}"
    file = stage.directory / "server.py"
    # The wall clock: `date` knows no other, and starts in a millisecond.
    file.write_text(SERVER.replace("time.monotonic()", "time.time()"))
    words = ["python", str(file), str(port), str(stamp), delay_s]
    reached.unlink(missing_ok=True)
    values = {"port": port, "server": " ".join(words), "home": home}
    values["reached"] = f"date +%s.%N > {reached}"
    if is_runner:
        stage.run(argv, values=values)
        return (float(reached.read_text()) - float(stamp.read_text())) * 1000
    with subprocess.Popen(words, env=stage.env) as server:
        try:
            stage.run(argv, values=values)
            returned = time.time()
            time.sleep(SETTLE_S)  # the server writes its stamp after it listens
            return (returned - float(stamp.read_text())) * 1000
        finally:
            server.kill()


def measure_wait(stage: Stage, rounds: int) -> Table:
    """How long after a server began to listen its waiter knows."""
    waiters = {name: [*words, "wait-healthy", "{port}", "50"] for name, words in OURS.items()}
    wait_on = ["wait-on", "tcp:127.0.0.1:{port}"]
    runners = {}
    if "wait-on" in stage.versions:
        name = f"wait-on {stage.versions['wait-on']}"
        waiters[name], waiters[f"{name} -i 5"] = wait_on, [*wait_on, "-i", "5"]
    if "start-server-and-test" in stage.versions:
        name = f"start-server-and-test {stage.versions['start-server-and-test']}"
        runners[name] = ["start-server-and-test", "{server}", "tcp:127.0.0.1:{port}", "{reached}"]

    def lag(argv: list[str], is_runner: bool) -> Callable[[], float]:
        return lambda: wait_lag_ms(stage, argv, is_runner, stage.directory / "home-wait")

    cases = {name: lag(argv, False) for name, argv in waiters.items()}
    cases |= {name: lag(argv, True) for name, argv in runners.items()}
    floor_ms, samples = rounds_of(stage, rounds, cases)
    worst = {name: max(values) for name, values in samples.items()}
    return Table(
        "Waiting", floor_ms, {"from listen() to its return": medians(samples), "the worst": worst}
    )


def direct_ms(stage: Stage, command: list[str]) -> float:
    """A server of its own for one call, by nobody's help: how long until its answer is there."""
    began = time.perf_counter()
    with subprocess.Popen(
        command,
        env=stage.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        bufsize=1,
    ) as server:
        assert server.stdin and server.stdout
        try:
            for number, (method, params) in enumerate(
                (("initialize", INITIALIZE), ("tools/call", ECHO)), 1
            ):
                message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
                server.stdin.write(json.dumps(message) + "\n")
                while json.loads(server.stdout.readline()).get("id") != number:
                    pass  # a notification
                if number == 1:
                    server.stdin.write('{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
            return (time.perf_counter() - began) * 1000
        finally:
            server.kill()


def measure_calls(stage: Stage, rounds: int) -> Table | None:
    """A tool call to a warm server, and to one that has to be started for it."""
    package = "@modelcontextprotocol/server-everything"
    if package not in stage.versions:
        return None
    main = stage.directory / "npm" / "node_modules" / package / "dist" / "index.js"
    command = [shutil.which("node", path=stage.env["PATH"]) or "node", str(main), "stdio"]
    home = stage.directory / "home-call"

    def warm(words: list[str]) -> Callable[[], float]:
        return lambda: stage.run(
            [*words, "call", "echo", "echo", "message=hi"], values={"home": home}
        )[0]

    def first() -> float:
        stage.run(["spm", "stop", "echo"], values={"home": home})
        return warm(["spm"])()

    stage.run(["spm", "start", "echo", "--type", "stdio", "--", *command], values={"home": home})
    cases: dict[str, Callable[[], float]] = {
        f"warm: {name}": warm(words) for name, words in OURS.items()
    }
    cases["a server of its own: spm, first call"] = first
    cases["a server of its own: nobody between"] = lambda: direct_ms(stage, command)
    if "mcporter" in stage.versions:
        entry = {"command": command[0], "args": command[1:]}
        servers = {
            name: {**entry, "lifecycle": name.replace("_", "-")}
            for name in ("keep_alive", "ephemeral")
        }
        file = stage.directory / "mcporter.json"
        file.write_text(json.dumps({"mcpServers": servers, "imports": []}))
        porter = ["mcporter", "--config", str(file), "call"]

        def ported(name: str) -> Callable[[], float]:
            return lambda: stage.run([*porter, f"{name}.echo", "message=hi"])[0]

        label = f"mcporter {stage.versions['mcporter']}"
        ported("keep_alive")()
        cases[f"warm: {label} with its daemon"] = ported("keep_alive")
        cases[f"a server of its own: {label}"] = ported("ephemeral")
    for case in cases.values():
        case()  # the first one of each isn't counted
    floor_ms, samples = rounds_of(stage, rounds, cases)
    return Table("Calls", floor_ms, {"tools/call echo": medians(samples)})


def in_markdown(table: Table) -> str:
    """The table: milliseconds, and how many floors that is."""

    def cell(what: str, tool: str) -> str:
        value = table.columns[what].get(tool)
        if value is None:
            return ""
        if what in table.units:
            return f"{value:.0f} {table.units[what]}"
        shown = f"{value:.0f}" if value >= 20 else f"{value:.1f}"
        return f"{shown} ms, {value / table.floor_ms:.2f} F"

    names = list(next(iter(table.columns.values())))
    head = f"| {table.title} | {' | '.join(table.columns)} |"
    rows = [[one, *(cell(what, one) for what in table.columns)] for one in names]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "| --- " * (len(table.columns) + 1) + "|", *lines])


def machine(stage: Stage) -> str:
    """What it ran on, in one line."""
    return (
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
        f", node {stage.versions.get('node', 'missing')}, {platform.system()} "
        f"{platform.release()}, {file_system(stage.directory.resolve())}"
    )


MEASURES: dict[str, Callable[[Stage, int], Table | None]] = {
    "services": measure_services,
    "wait": measure_wait,
    "calls": measure_calls,
}


def main() -> None:
    """Install, measure, report, leave nothing behind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="samples of each kind (20)")
    parser.add_argument("--only", choices=MEASURES, action="append", help="this table")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="install into DIR, keep it")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    directory = args.keep or Path(tempfile.mkdtemp(prefix="spm-peers-"))
    directory.mkdir(exist_ok=True)
    stage = Stage(directory.resolve())
    began, parts = machine(stage), []
    try:
        for name in args.only or MEASURES:
            table = MEASURES[name](stage, args.rounds)
            if table:
                floor = f"F = {table.floor_ms:.0f} ms; {machine(stage)}"
                parts.append(f"{in_markdown(table)}\n\n{floor}")
    finally:
        stage.end_all()
        if not args.keep:
            shutil.rmtree(directory, ignore_errors=True)
    print("\n\n".join([*parts, *stage.missing, f"{began}; {args.rounds} rounds, medians"]))


if __name__ == "__main__":
    main()
