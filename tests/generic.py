"""The program as it is on a system without /proc, pidfds, subreapers: macOS, forced on Linux.

SPM_TEST_GENERIC=1 python -m pytest …  runs any test with it; test_generic.py always does.
SPM_TEST_VENDORED=1 python -m pytest …  does with a copy as `vendor` makes it.

Nothing in the program knows of this. A copy of it is made whose words for the system say "darwin"
and whose paths under /proc and /sys lead nowhere; psutil goes on to read the true ones. And should
the copy itself open one of those all the same, an audit hook refuses with a traceback.
"""

from __future__ import annotations

import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PROGRAM = TESTS.parent / "simple_process_manager.py"
AFTER = "import time\n"
GUARD = """
def _refuse_proc(event, args):
    if event in ("open", "os.listdir", "os.scandir") and sys._getframe(1).f_globals is globals():
        if os.fsdecode(args[0] if isinstance(args[0], (str, bytes)) else "").startswith("/proc"):
            raise AssertionError(f"opened where there is no /proc: {args[0]}")


sys.addaudithook(_refuse_proc)
"""
CHANGES = {
    "sys.platform": '"darwin"',
    '"/proc': '"/nowhere/proc',
    '"/sys': '"/nowhere/sys',
    # the two questions to macOS's kernel that this one can't be asked
    "level, option = 0, 1": "level, option = socket.SOL_SOCKET, socket.SO_PEERCRED",
    "fcntl.fcntl(descriptor, fcntl.F_GETPATH,": 'os.readlink(b"/dev/fd/%d" % descriptor or',
}


def generic_copy(directory: Path) -> Path:
    """A copy of the program for the generic path, with tests/spm.py beside it as it is here."""
    source = PROGRAM.read_text(encoding="utf-8")
    assert "psutil.net_connections" not in source, "a normal user on macOS may not ask for these"
    for old, new in CHANGES.items():
        assert old in source, f"{old} doesn't occur any more"
        source = source.replace(old, new)
    assert source.count(f"\n{AFTER}") == 1
    source = source.replace(f"\n{AFTER}", f"\n{AFTER}{GUARD}")
    (directory / "tests").mkdir(parents=True, exist_ok=True)
    script = directory / PROGRAM.name
    script.write_text(source, encoding="utf-8")
    script.chmod(0o755)
    py_compile.compile(str(script))
    shutil.copy(TESTS / "spm.py", directory / "tests" / "spm.py")
    return script


def vendored_copy(directory: Path) -> Path:
    """A copy as `vendor` makes it, with tests/spm.py beside it as it is here."""
    (directory / "tests").mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, PROGRAM, "vendor", directory], check=True, capture_output=True)
    shutil.copy(TESTS / "spm.py", directory / "tests" / "spm.py")
    return directory / PROGRAM.name
