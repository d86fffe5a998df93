"""Every example of README.md and of the steering document does what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import COMPILED, GENERIC, ROOT, SCRIPT, Spm, free_port

README = (ROOT / "README.md").read_text("utf-8")
STEERING = (ROOT / ".kiro" / "steering" / "process-manager-tool.md").read_text("utf-8")
NUMBER = re.compile(r"\d+(?:\.\d+)?|N m N")
PLACE = re.compile(r"user \S+, in [^\s,)]+(, service \S+ of) [^\s,)]+")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def transcript() -> list[tuple[str, str]]:
    """(command, output) of each console block, in order."""
    parts = "".join(blocks(README, "console")).split("$ python ")[1:]
    return [(part.partition("\n")[0], part.partition("\n")[2]) for part in parts]


def normal(text: str) -> str:
    """The text without what differs from run to run: numbers, bars, and how wide columns are."""
    text = re.sub("[▁-█][▁-█ ]*", "▁", text)
    text = re.sub(r" +", " ", NUMBER.sub("N", PLACE.sub(r"user U, in D\1 H", text))).strip()
    return re.sub(r" $", "", text, flags=re.MULTILINE)


@pytest.mark.slow
def test_the_transcripts_print_what_they_show(spm: Spm) -> None:
    # The same program, compiled: that the copied file works shows the command for a fresh machine.
    shutil.copy(COMPILED.with_name("spm.py"), spm.cwd / SCRIPT.name)
    spm.env["PYTHONPATH"] = str(SCRIPT.parent)
    del spm.env["SPM_HOME"]
    spm.home = spm.cwd / ".spm"  # what is left there at the end is found, too
    spm.env["PATH"] = f"{os.path.dirname(sys.executable)}{os.pathsep}{spm.env['PATH']}"
    ports = {"8000": str(free_port()), "8001": str(free_port())}
    assert len(transcript()) > 15
    for command, expected in transcript():
        if "clock" in command and find_spec("mcp_server_time") is None:
            continue  # there is none for Python 3.9
        if re.search(" (up|config)", command) and not (spm.cwd / "spm.json").exists():
            text = blocks(README, "json")[0].replace("8000", ports["8000"])
            (spm.cwd / "spm.json").write_text(text, "utf-8")
        if GENERIC and "stats" in command:
            continue  # the page's has open files, of which macOS doesn't tell
        if GENERIC and "stop editor cache" in command:
            expected = expected.replace("killed by SIGTERM", "exit code not known")
        line = re.sub(r"800[01]", lambda match: ports[match[0]], command)
        done = subprocess.run(
            ["/bin/sh", "-c", f"python {line} 2>&1"],
            cwd=spm.cwd,
            env=spm.env,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            timeout=60,
        )
        # which lines of source a traceback has is another matter in 3.9, and in 3.13
        output = re.sub(r"  \|   +\S.*\n", "", done.stdout)
        assert normal(output) == normal(expected), command
    spm("cleanup")


def test_every_command_has_an_example_that_is_run() -> None:
    import simple_process_manager as spm

    shown = "\n".join(command for command, _ in transcript())
    assert not [name for name in spm.COMMANDS if f"simple_process_manager.py {name}" not in shown]


def test_the_line_that_copies_the_program_makes_a_copy_that_works(spm: Spm) -> None:
    shutil.copy(SCRIPT, spm.cwd)
    repository = spm.base / "repository"
    repository.mkdir()
    line = blocks(README, "sh")[0].replace("YOUR_REPOSITORY", str(repository))
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{spm.env['PATH']}"
    told = []
    for command, cwd in ((line, spm.cwd), ("python simple_process_manager.py list", repository)):
        argv, env = ["/bin/sh", "-c", command], {**spm.env, "PATH": path}
        told.append(subprocess.check_output(argv, cwd=cwd, env=env, text=True))
    assert "simple_process_manager.py written" in told[0]
    assert told[1].startswith("[INFO] no services")


@pytest.mark.slow
def test_the_command_for_a_fresh_machine_does_the_main_job(spm: Spm) -> None:
    command = next(block for block in blocks(README, "sh") if "urllib" in block)
    shutil.copy(SCRIPT, spm.cwd)
    del spm.env["SPM_HOME"]
    command = command.replace("8000", str(free_port())).replace("python3 -m venv", "$PY -m venv")
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=spm.cwd,
        env={**spm.env, "PY": getattr(sys, "_base_executable", sys.executable)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "No matching distribution" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["[OK]", "[OK]", "200", "[OK]"], lines


def test_the_steering_document_is_always_included_and_its_commands_parse() -> None:
    import simple_process_manager as spm

    assert STEERING.startswith("---\ninclusion: always\n---\n")
    lines = "".join(blocks(STEERING, "sh")).splitlines()
    commands = [part for line in lines for part in line.split(" && ") if "simple_pro" in part]
    assert len(commands) >= 9
    for command in commands:
        spm.parse(spm.split_command(command)[2:])


def test_the_first_screen_is_short() -> None:
    first = README[: README.index("## ")].splitlines()
    assert len(first) <= 45


def test_the_exit_codes_are_those_of_the_program() -> None:
    import simple_process_manager as spm

    table = dict(re.findall(r"^\| (\d+) \| (\w+) \|", README, re.MULTILINE))
    codes = {str(cls.exit_code): kind for kind, cls in spm.ERRORS.items()}
    assert table == {"0": "ok", "1": "failed", **codes}


def test_the_files_that_are_named_exist() -> None:
    for path in re.findall(r"`((?:tests|\.kiro|\.ci)/[\w./-]+)`", README):
        assert Path(ROOT, path).exists(), path
