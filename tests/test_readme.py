"""Every example of README.md and of the steering document does what it says."""

from __future__ import annotations

import json
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
        if re.search(r"\.py (up|config)", command) and not (spm.cwd / "spm.json").exists():
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


COMPLETE = """
complete_line() {
    COMP_LINE=$2 COMP_POINT=${#2} COMP_TYPE=9 COMP_WORDS=($2) COMP_CWORD=$(($(wc -w <<< "$2") - 1))
    "$1" "${COMP_WORDS[0]}"
    echo "${COMPREPLY[@]}"
}
"""


@pytest.mark.parametrize(
    ("line", "function", "typed"),
    [
        (0, "_python_argcomplete", "spm st"),
        (1, "_python_argcomplete_global", f"python {SCRIPT.name} st"),
    ],
)
def test_the_lines_that_switch_completion_on_do(
    spm: Spm, line: int, function: str, typed: str
) -> None:
    bin_directory = os.path.dirname(sys.executable)
    for program in ("bash", "register-python-argcomplete", "spm"):
        if not shutil.which(program, path=f"{bin_directory}{os.pathsep}{os.environ['PATH']}"):
            pytest.skip(f"{program} isn't here")
    shutil.copy(SCRIPT, spm.cwd)
    home = spm.cwd / "user"  # the second line writes into the user's own files
    home.mkdir()
    switched_on = next(b for b in blocks(README, "sh") if "argcomplete" in b).splitlines()[line]
    read = "[ ! -e ~/.bash_completion ] || . ~/.bash_completion"
    script = f"{switched_on}\n{read}\n{COMPLETE}complete_line {function} '{typed}'"
    env = {**spm.env, "HOME": str(home), "PATH": f"{bin_directory}{os.pathsep}{spm.env['PATH']}"}
    output = subprocess.check_output(["bash", "-c", script], cwd=spm.cwd, env=env, text=True)
    assert {"start", "stop", "status", "stats"} == {*output.splitlines()[-1].split()}


def test_the_line_that_writes_the_schema_writes_the_one_that_the_example_keeps(spm: Spm) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    shutil.copy(COMPILED.with_name("spm.py"), spm.cwd / SCRIPT.name)
    line = next(block for block in blocks(README, "sh") if "config schema" in block)
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{spm.env['PATH']}"
    env = {**spm.env, "PYTHONPATH": str(SCRIPT.parent), "PATH": path}
    subprocess.run(["/bin/sh", "-c", line], cwd=spm.cwd, env=env, check=True, timeout=60)
    schema = json.loads((spm.cwd / "spm.schema.json").read_text("utf-8"))
    example = json.loads(re.sub(r"\s//.*", "", blocks(README, "json")[0]))
    jsonschema.validate(example, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"services": {"web": {"comand": "x"}}}, schema)


@pytest.mark.slow
def test_the_two_lines_for_an_agents_rules_run_the_tests_and_stop_the_service(spm: Spm) -> None:
    pytest.importorskip("uvicorn")
    shutil.copy(COMPILED.with_name("spm.py"), spm.cwd / SCRIPT.name)
    port = str(free_port())
    (spm.cwd / "main.py").write_text(SERVED)
    (spm.cwd / "tests" / "integration").mkdir(parents=True)
    (spm.cwd / "tests" / "integration" / "test_it.py").write_text(REQUESTED.format(port=port))
    lines = next(block for block in blocks(README, "sh") if "run api" in block).splitlines()
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{spm.env['PATH']}"
    env = {**spm.env, "PYTHONPATH": str(SCRIPT.parent), "PATH": path}
    for line in lines:
        command = line.replace("8000", port).replace("0.0.0.0", "127.0.0.1")
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=spm.cwd,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 passed" in done.stdout and "[OK] api stopped" in done.stdout + done.stderr
    spm("cleanup")


SERVED = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"from main"})
"""
REQUESTED = """
from urllib.request import urlopen


def test_it():
    assert urlopen("http://127.0.0.1:{port}/").read() == b"from main"
"""


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
