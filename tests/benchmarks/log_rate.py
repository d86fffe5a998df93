"""Is a service that writes fast slowed by us? `python tests/benchmarks/log_rate.py [DIR…]`.

The same writer, at 100 MB/s and as fast as it can, once with a plain file as its output and once
as a service, turn and turn about, on the file system of each DIR (/tmp). Shown are medians: how
long it took, how long it was in write(2), its longest write(2), the most the logs took on the disk.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "simple_process_manager.py"
ROUNDS = 5
MEGABYTES = 500
WRITER = """\
import json, os, sys, time

path, count, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
line, spent, longest, began = (b"x" * 99 + b"\\n") * 600, 0.0, 0.0, time.perf_counter()
for number in range(count * 1_000_000 // len(line)):
    if rate:
        due = began + number * len(line) / rate / 1e6
        time.sleep(max(0.0, due - time.perf_counter()))
    before = time.perf_counter()
    os.write(1, line)
    took = time.perf_counter() - before
    spent, longest = spent + took, max(longest, took)
with open(path + ".new", "w") as file:
    json.dump({"s": time.perf_counter() - began, "write_s": spent, "longest_s": longest}, file)
os.rename(path + ".new", path)
"""


def measured(base: Path, rate: int, as_service: bool) -> dict[str, float]:
    """One run of the writer; what it said, and the most that was on the disk."""
    report, log, env = base / "report", base / "plain.log", {**os.environ, "SPM_HOME": f"{base}/h"}
    argv = [sys.executable, "-S", "-c", WRITER, str(report), str(MEGABYTES), str(rate)]
    spm, null = [sys.executable, str(SOURCE)], subprocess.DEVNULL
    if as_service:
        log = base / "h" / "services" / "writer" / "output.log"
        subprocess.run([*spm, "start", "writer", "--", *argv], env=env, check=True, stdout=null)
    else:
        with open(log, "ab", buffering=0) as file:
            writer = subprocess.Popen(argv, stdin=null, stdout=file, start_new_session=True)
    most = 0
    while not report.exists():
        parts = [path for path in (log, Path(f"{log}.1")) if path.exists()]
        most = max(most, sum(path.stat().st_size for path in parts))
        time.sleep(0.02)
    if as_service:
        subprocess.run([*spm, "cleanup", "--purge"], env=env, check=True, stdout=null)
    else:
        writer.wait()
        log.unlink()
    said = {str(key): float(value) for key, value in json.loads(report.read_text()).items()}
    report.unlink()
    return {**said, "most_mb": most / 1e6}


def main() -> None:
    for directory in sys.argv[1:] or [tempfile.gettempdir()]:
        for rate in (100, 0):
            print(f"{directory}: {MEGABYTES} MB at {rate or 'any'} MB/s, {ROUNDS} rounds")
            runs: dict[str, list[dict[str, float]]] = {"plain file": [], "service": []}
            with tempfile.TemporaryDirectory(dir=directory) as base:
                for _ in range(ROUNDS):
                    for kind, rows in runs.items():
                        rows.append(measured(Path(base), rate, kind == "service"))
            for kind, rows in runs.items():
                medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
                shown = ", ".join(f"{key} {value:.4g}" for key, value in medians.items())
                print(f"  {kind:10}  {shown}", flush=True)


if __name__ == "__main__":
    main()
