"""What it costs with more and more services: python tests/benchmarks/growth.py [--counts 1,10,100]

`up` of a spm.json with that many `sleep`s, `up` again, then list, status, start and stop of one
more, memory and `cleanup`, of a copy by `vendor`. F is as in bench.py, measured turn and turn
about with the short commands. 500 services take about 4 GB.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench import FLOOR, IDLE_AFTER_S, Copy, machine, proc_number

BAR = 40  # characters of the longest one
MEMORY = "memory a service, MB"
WHOLE = ("up", "up again", "cleanup")  # of all services at once


def measured(copy: Copy, count: int, rounds: int) -> dict[str, float]:
    """Each figure with that many services; milliseconds, and memory in MB."""
    services = {f"g{number}": {"command": "sleep 10000"} for number in range(count)}
    (copy.directory / "spm.json").write_text(json.dumps({"services": services}))
    found = {"up": copy.run_ms("up"), "up again": copy.run_ms("up")}
    time.sleep(IDLE_AFTER_S)
    shorts: dict[str, list[float]] = {}
    for number in range(rounds):
        shorts.setdefault("F", []).append(copy.python_ms(*FLOOR))
        for words in (
            ("list",),
            ("status", "g0"),
            ("start", f"more{number}", "sleep 1000"),
            ("stop", f"more{number}"),
        ):
            shorts.setdefault(words[0], []).append(copy.run_ms(*words))
    found.update({what: statistics.median(values) for what, values in shorts.items()})
    known = json.loads(copy.run("list", "--json"))["services"]
    running = [one["name"] for one in known if one["status"] == "running"]
    if len(running) != count:
        sys.exit(f"{len(running)} of {count} services run")
    keepers = [
        pid
        for pid in copy.left_pids()
        if Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0] != b"sleep"
    ]
    kept = sum(proc_number(pid, "smaps_rollup", "Pss") for pid in keepers) * 1024 / 1e6
    found[MEMORY] = kept / count
    began = time.perf_counter()
    copy.run("cleanup", "--purge")
    found["cleanup"] = (time.perf_counter() - began) * 1000
    return found


def curve(what: str, points: dict[int, float]) -> list[str]:
    """A bar for each count, and how the cost grows: the exponent between the last two."""
    most = max(points.values()) or 1.0
    lines = [what]
    for count, value in points.items():
        bar = "█" * max(round(BAR * value / most), 1)
        lines.append(f"  {count:>4}  {bar:{BAR}}  {value:.1f}  ({value / count:.2f} a service)")
    if len(points) > 1:
        (n, a), (m, b) = list(points.items())[-2:]
        lines.append(f"  ~ count^{math.log(b / a) / math.log(m / n):.2f} between {n} and {m}")
    return lines


def cell(what: str, row: dict[str, float]) -> str:
    """A figure of the table: the short commands in floors too."""
    if what == MEMORY:
        return f"{row[what]:.1f}"
    ratio = "" if what in (*WHOLE, "F") else f", {row[what] / row['F']:.2f} F"
    return f"{row[what]:.0f} ms{ratio}"


def main() -> None:
    """Measure, report, leave nothing behind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--counts", default="1,10,100,500", help="how many services (1,10,100,500)")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each short command (9)")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="spm-growth-"))
    copy = Copy(directory)
    found: dict[int, dict[str, float]] = {}
    try:
        for count in map(int, args.counts.split(",")):
            found[count] = measured(copy, count, args.rounds)
            print(f"{count}: {json.dumps(found[count])}", file=sys.stderr)
            copy.verify_nothing_left()
    finally:
        copy.clean_up()
        copy.verify_nothing_left()
        shutil.rmtree(directory)
    names = list(next(iter(found.values())))
    print(f"| services | {' | '.join(names)} |\n" + "| --- " * (len(names) + 1) + "|")
    for count, row in found.items():
        print(f"| {count} | {' | '.join(cell(what, row) for what in names)} |")
    for what in names:
        if what != "F" and len(found) > 1:
            points = {count: row[what] for count, row in found.items()}
            print("\n".join(["", *curve(what, points)]))
    print(f"\n{machine(directory.parent)}; {args.rounds} rounds, medians; bars: ms (memory: MB)")


if __name__ == "__main__":
    main()
