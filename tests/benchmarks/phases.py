"""Where a command's processor time goes: `python tests/benchmarks/phases.py [--rounds N]`.

A copy as `vendor` makes it gets stamps between its phases; a bare `python -c pass` is the first
one. Processor time of the command's own process is shown, the median of all rounds in milliseconds
and its share: what other processes do meanwhile (a supervisor that boots) isn't in it.
"""

from __future__ import annotations

import argparse
import ast
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "simple_process_manager.py"
PHASES = ("Python itself", "reading the text", "loading its code", "definitions", "the command")
COMMANDS = (["start", "a", "sleep 100"], ["list"], ["stop", "a"])
NOW = "import time; print(time.process_time())"
LAST = "    exec(cached_code(__file__, PROGRAM_TEXT))"


def stamped(directory: Path) -> Path:
    """A vendored copy that writes its stamps into the file `stamps`."""
    copy, stamps = directory / "simple_process_manager.py", directory / "stamps"
    argv = [sys.executable, str(SOURCE), "vendor", str(copy)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    text = f"import time as _t; _at = [_t.process_time()]\n{copy.read_text('utf-8')}"
    above, _, _ = text.rpartition(LAST)
    ends = {
        "    code = 0\n    try:\n": "    _at.append(_t.process_time())\n",
        "    # Nothing of ours waits": f"    _at.append(_t.process_time())\n"
        f"    open({str(stamps)!r}, 'w').write(repr(_at))\n",
    }
    for end, stamp in ends.items():
        assert above.count(f"\n{end}") == 1, end
        above = above.replace(f"\n{end}", f"\n{stamp}{end}")
    load = ("_code = cached_code(__file__, PROGRAM_TEXT)", "_at.append(_t.process_time())")
    lines = "".join(f"    {line}\n" for line in (*load, "exec(_code)"))
    copy.write_text(f"{above}{lines}finally:\n    pass\n", "utf-8")
    return copy


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    found: dict[str, list[list[float]]] = {words[0]: [] for words in COMMANDS}
    with tempfile.TemporaryDirectory() as place:
        copy = stamped(Path(place))
        env = {**os.environ, "SPM_HOME": f"{place}/home", "XDG_CACHE_HOME": f"{place}/cache"}
        for number in range(rounds + 1):  # the first one fills the cache
            for words in COMMANDS:
                bare = float(subprocess.check_output([sys.executable, "-c", NOW]))
                argv = [sys.executable, str(copy), *words]
                subprocess.run(argv, env=env, check=True, stdout=subprocess.DEVNULL)
                stamps = [0.0, bare, *ast.literal_eval(Path(place, "stamps").read_text())]
                if number:
                    found[words[0]].append([b - a for a, b in zip(stamps, stamps[1:])])
        subprocess.run([sys.executable, str(copy), "cleanup"], env=env, stdout=subprocess.DEVNULL)
    print(f"| processor time | {' | '.join(found)} |\n| --- |{' --- |' * len(found)}")
    medians = {name: [*map(statistics.median, zip(*rows))] for name, rows in found.items()}
    for index, phase in enumerate(PHASES):
        cells = [
            f"{one[index] * 1e3:.1f} ms, {one[index] / sum(one):.0%}" for one in medians.values()
        ]
        print(f"| {phase} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
