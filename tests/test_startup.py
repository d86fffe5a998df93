"""What a command imports: each module takes milliseconds, and agents call commands all day.

What a command needs beside what all of them need stands in a table; and what costs time in each
is left out where it isn't needed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import GENERIC, ROOT, Spm

import simple_process_manager as spm_module

# Modules of a millisecond and more, with those that bring such ones in. All others are free.
HEAVY = (
    "asyncio base64 bz2 concurrent copy ctypes curses dataclasses datetime difflib dis email glob "
    "graphlib hashlib heapq http importlib.metadata inspect logging lzma multiprocessing pathlib "
    "pickle platform pprint psutil pty random secrets selectors shlex shutil signal socket ssl "
    "statistics string struct subprocess tempfile termios textwrap threading tokenize traceback "
    "tty typing unittest urllib uuid weakref xml zipfile"
)
SOCKET = {"socket", "selectors"}
# shutil.which(), and what comes with it: before 3.10 bz2 imports threading
WHICH = {"shutil", "bz2", "lzma", *(["threading"] if sys.version_info < (3, 10) else [])}
CONFIG = {"graphlib", "shlex"}
NEEDED: dict[str, set[str]] = {  # by the first words of a command line
    "--version": set(),
    "--help": set(),
    "list": {"shlex"},
    "list --json": {"shlex"},
    "status web": {*SOCKET, "shlex"},
    "logs web": set(),
    "events": set(),
    "stats web": set(),
    "touch web": SOCKET,
    "wait-healthy web 5": {*SOCKET, "struct"},
    "start web": {*SOCKET, *CONFIG, "signal"},
    "start other true": {"shlex", "signal"},
    "call rpc ping": SOCKET,
    "up --dry-run": CONFIG,
    "explain web": {*SOCKET, "shlex", "struct"},
    "alerts": set(),
    "notify web alive": SOCKET,
    "port 9": {*SOCKET, "struct"},
    "tools rpc": SOCKET,
    "config validate": CONFIG,
    "config rules": CONFIG,
    "config impact spm.json": CONFIG,
    "config export -": CONFIG,
    "config history": set(),
    "config show": set(),
    "config diff": set(),
    "config schema": set(),
    "export systemd web": {*CONFIG, *WHICH},
    "init": {"shlex"},
    "vendor v.py": set(),
    "restart web": {*SOCKET, *CONFIG, *WHICH, "signal", "struct"},
    "down": CONFIG,
    "stop web": SOCKET,
    "cleanup": {*SOCKET, "shutil"},
}


def imported(trace: str) -> set[str]:
    """Those of the heavy modules that -X importtime tells of."""
    names = re.findall(r"^import time:.*\| +([\w.]+)$", trace, re.MULTILINE)
    return {*names} & {*HEAVY.split(), "argparse"}


@pytest.mark.skipif(GENERIC, reason="without /proc a look takes psutil")
@pytest.mark.skipif(sys.platform == "win32", reason="its event loop and paths need others")
def test_a_command_imports_what_it_needs_and_no_more(spm: Spm, port: int) -> None:
    """No psutil, no subprocess, no asyncio where a file, /proc and a socket will do."""
    server = Path(__file__).with_name("rpc_server.py")
    spm("start", "web", "--port", port, "--", sys.executable, "-m", "http.server", port)
    spm("start", "rpc", "--type", "stdio", "--", sys.executable, server)
    (spm.cwd / "spm.json").write_text('{"services": {"web": {"command": "true"}}}')
    spm("wait-healthy", "web", "20")
    spm.env["PYTHONPROFILEIMPORTTIME"] = "1"
    bare = [sys.executable, "-X", "importtime", "-c", "pass"]
    done = subprocess.run(bare, capture_output=True, text=True, check=True)
    everywhere = imported(done.stderr)  # some environments start with a finder of their own
    more = {}
    for line, needed in NEEDED.items():
        parser = set() if line.startswith("--") else {"argparse"}
        found = imported(spm(*line.split(), code=None).stderr)
        assert parser <= found, "-X importtime tells nothing"
        more[line] = found - needed - parser - everywhere
    assert not {line: names for line, names in more.items() if names}


def test_only_the_parser_of_the_command_that_was_called_is_built() -> None:
    """The others' options aren't declared, and the import itself declares none."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import simple_process_manager as program; "
        "assert 'argparse' not in sys.modules; from argparse import ArgumentParser as Parser; "
        "built, init = [], Parser.__init__; "
        "Parser.__init__ = lambda *a, **k: built.append(a[1]) or init(*a, **k); "
        "program.parse(['list']); print(*built)"
    )
    done = subprocess.run([sys.executable, "-c", code, ROOT], capture_output=True, check=True)
    assert done.stdout.split() == [spm_module.PROGRAM.encode(), b"list"]


SUSPICIOUS = (  # one for each word that a pattern needs
    "--token abc",
    "db_secret=hunter2",
    "PASSWORD: hunter2",
    "pwd='hunter2'",
    "apikey=1234",
    "Access-Key = 1234",
    "Authorization: Bearer abcdef",
    "basic dXNlcjpwYXNz",
    "postgres://me:hunter2@db/x",
    *(f"{start}{'a1' * 9}" for start in ("sk-", "pk-", "ghp_", "github_pat_", "glpat-", "xoxb-")),
    *(f"{start}{'a1' * 9}" for start in ("AKIA", "AIza", "npm_", "eyJ")),
)


@pytest.mark.parametrize("text", SUSPICIOUS)
def test_the_patterns_of_secrets_are_tried_where_one_could_fit(text: str) -> None:
    """They are compiled only for a text with one of the words that they need."""
    assert "…" in spm_module.mask_secrets(f"serve {text} now")
