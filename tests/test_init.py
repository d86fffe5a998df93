"""`init`: what agents read, what ends their services, a first configuration; completion."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SCRIPT, Spm, eventually, free_port
from hypothesis import given, settings
from hypothesis import strategies as st

import simple_process_manager as module

STEERING = Path(".kiro/steering/process-manager-tool.md")
PLACES = [
    STEERING,
    Path("CLAUDE.md"),
    Path(".cursor/rules/process-manager-tool.mdc"),
    Path("AGENTS.md"),
]
PYTHON = f"{os.path.dirname(sys.executable)}{os.pathsep}"


@pytest.fixture
def project(spm: Spm) -> Spm:
    """A project that has a copy of the program, and a state directory of its own."""
    shutil.copy2(SCRIPT, spm.cwd)
    compiled = cache_from_source(str(SCRIPT))  # by conftest.py; good for the copy, of the same time
    shutil.copytree(os.path.dirname(compiled), spm.cwd / "__pycache__")
    (spm.cwd / ".git").mkdir()
    del spm.env["SPM_HOME"]
    spm.home = spm.cwd / ".spm"
    spm.env["PATH"] = PYTHON + spm.env["PATH"]
    return spm


def copied(spm: Spm, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The copy's command."""
    argv = [sys.executable, "-m", "simple_process_manager", *words]
    done = subprocess.run(
        argv, cwd=spm.cwd, env=spm.env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


# -- what an agent reads


def test_the_steering_document_here_is_what_init_writes(project: Spm) -> None:
    copied(project, "init", "--agent", "kiro")
    assert (project.cwd / STEERING).read_bytes() == (ROOT / STEERING).read_bytes()
    assert len((ROOT / STEERING).read_text("utf-8").splitlines()) <= 64


def test_init_keeps_what_people_wrote_and_writes_once(project: Spm) -> None:
    mine = "# Ours\r\nwrite tests\r\n"
    (project.cwd / "AGENTS.md").write_bytes(mine.encode())
    (project.cwd / "AGENTS.md").chmod(0o640)
    written = copied(project, "init", "--agent", "all").stdout
    assert written.count("written") == 4
    texts = {path: (project.cwd / path).read_bytes() for path in PLACES}
    ours = texts[Path("AGENTS.md")]
    assert ours.startswith(mine.encode() + b"\r\n<!-- ") and ours.count(b"\n") == ours.count(
        b"\r\n"
    )
    assert (project.cwd / "AGENTS.md").stat().st_mode & 0o777 == 0o640
    assert texts[STEERING].startswith(b"---\ninclusion: always\n---\n")
    assert texts[PLACES[2]].startswith(b"---\n") and b"alwaysApply: true" in texts[PLACES[2]][:80]
    again = copied(project, "init", "--agent", "all").stdout
    assert again.count("unchanged") == 4
    assert texts == {path: (project.cwd / path).read_bytes() for path in PLACES}
    edited = ours.replace(b"`nohup`", b"`nohop`") + b"and more\r\n"
    (project.cwd / "AGENTS.md").write_bytes(edited)
    copied(project, "init", "--agent", "agents-md")
    assert (project.cwd / "AGENTS.md").read_bytes() == ours + b"and more\r\n", "only its own part"


def test_without_a_name_init_writes_for_the_agents_that_are_in_use(project: Spm) -> None:
    assert "AGENTS.md written" in copied(project, "init").stdout
    inner = project.cwd / "inner"
    inner.mkdir()
    for words, file in (("--agent", "agents-md"), "AGENTS.md"), (("--config",), "spm.json"):
        told = project("init", *words, cwd=inner).stdout  # where it is, seen from there
        assert f"{(project.cwd / file).resolve()} " in told
    (project.cwd / "AGENTS.md").unlink()
    (project.cwd / "CLAUDE.md").write_text("")
    (project.cwd / ".kiro").mkdir()
    assert copied(project, "init", "--json").stdout.count('": "written"') == 2
    assert not (project.cwd / "AGENTS.md").exists()
    assert not project.home.exists(), "init needs no state"


def test_what_cant_be_written_is_said_in_one_line_each(project: Spm) -> None:
    outside = project.base / "outside.md"
    outside.write_text("theirs\n")
    (project.cwd / "CLAUDE.md").symlink_to(outside)
    (project.cwd / "AGENTS.md").write_text(f"{module.BEGINS}\nhalf\n")
    (project.cwd / PLACES[2]).parent.mkdir(parents=True)
    (project.cwd / PLACES[2]).write_text("mine\n")
    (project.cwd / PLACES[2]).chmod(0o444)
    done = copied(project, "init", "--agent", "all", code=8)
    assert "CLAUDE.md is a symbolic link to" in done.stderr and outside.read_text() == "theirs\n"
    assert "AGENTS.md isn't what was expected" in done.stderr and "one pair" in done.stderr
    assert "process-manager-tool.mdc is read-only" in done.stderr
    assert len(done.stderr.splitlines()) == 2 and (project.cwd / STEERING).exists()
    (project.cwd / "CLAUDE.md").unlink()
    (project.cwd / "AGENTS.md").write_text("ours\n")
    (project.cwd / "CLAUDE.md").symlink_to("AGENTS.md")
    copied(project, "init", "--agent", "claude")
    assert (project.cwd / "CLAUDE.md").is_symlink() and "ours" in (
        project.cwd / "AGENTS.md"
    ).read_text()
    assert "unchanged" in copied(project, "init", "--agent", "agents-md").stdout, "it is the same"


def test_a_file_where_a_directory_belongs_kept_the_others_from_being_written(
    project: Spm,
) -> None:
    (project.cwd / ".kiro").write_text("")
    done = copied(project, "init", "--agent", "all", code=8)
    assert "process-manager-tool.md: a file is in the way of a directory" in done.stderr
    assert (project.cwd / "AGENTS.md").exists() and (project.cwd / "CLAUDE.md").exists()


@pytest.mark.slow
def test_an_agent_that_follows_the_document_gets_every_example_to_work(project: Spm) -> None:
    pytest.importorskip("uvicorn")
    copied(project, "init", "--agent", "agents-md")
    (project.cwd / "main.py").write_text(
        "async def app(scope, receive, send):\n"
        "    if scope['type'] != 'http':\n        return\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': b'hello'})\n"
    )
    port = str(free_port())
    tests = project.cwd / "tests" / "integration"
    tests.mkdir(parents=True)
    (tests / "test_api.py").write_text(
        "import urllib.request\n\n\ndef test_it():\n"
        f"    assert urllib.request.urlopen('http://127.0.0.1:{port}').read() == b'hello'\n"
    )
    text = (project.cwd / "AGENTS.md").read_text("utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    lines = "".join(blocks).replace("8000", port).replace("0.0.0.0", "127.0.0.1").splitlines()
    one, first, look, *rest = lines
    start = first.partition(" && ")[0]
    try:
        importable = bool(__import__("mcp_server_time"))
    except ImportError:
        importable = False
    for line in (first, one, start, look, *rest):
        if "clock" in line and not importable:
            continue  # there is none for Python 3.9
        done = subprocess.run(
            ["/bin/sh", "-c", line],
            cwd=project.cwd,
            env=project.env,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout!r}\n{done.stderr!r}"
    copied(project, "cleanup")


# -- hooks


def test_the_hooks_are_added_to_what_is_there(project: Spm) -> None:
    theirs = '{\n\t"permissions": {"allow": ["Bash(x cleanup --session)"], "n": 1.0},\n'
    theirs += '\t"hooks": {"Stop": [1]}\n}\n'
    path = project.cwd / ".claude" / "settings.json"
    path.parent.mkdir()
    path.write_text(theirs)
    copied(project, "init", "--agent", "all", "--hooks")
    known = json.loads(path.read_text())
    hook = known["hooks"].pop("SessionEnd")[0]["hooks"][0]
    assert known == json.loads(theirs) and path.read_text().startswith('{\n\t"permissions"')
    assert hook["type"] == "command" and hook["timeout"] >= 15
    cursor = json.loads((project.cwd / ".cursor/hooks.json").read_text())
    assert (
        cursor["version"] == 1
        and "cleanup --session" in cursor["hooks"]["sessionEnd"][0]["command"]
    )
    kiro = json.loads((project.cwd / ".kiro/hooks/end-services.json").read_text())
    assert kiro["version"] == "v1" and kiro["hooks"][0]["trigger"] == "SessionEnd"
    button = json.loads((project.cwd / ".kiro/hooks/end-services.kiro.hook").read_text())
    assert button["when"] == {"type": "userTriggered"} and button["then"]["type"] == "runCommand"
    assert "written" not in copied(project, "init", "--agent", "all", "--hooks").stdout

    copied(project, "start", "mine", "--lease", "session", "sleep 60")
    copied(project, "start", "other", "sleep 60")
    env = {**project.env, "CLAUDE_PROJECT_DIR": str(project.cwd)}
    subprocess.run(["/bin/sh", "-c", hook["command"]], cwd="/", env=env, check=True, timeout=30)
    assert [one["name"] for one in project.json("list")["services"]] == ["other"]
    project("cleanup")


UNFIT = ['{\n  // ours\n  "hooks": {}\n}', "{", '{"hooks": []}', "[]"]
UNFIT += ["[" * 100_000, '{"a": "\\ud800"}', '{"a": "\\udc80"}']


@pytest.mark.parametrize("text", UNFIT, ids=range(len(UNFIT)))
def test_a_settings_file_that_isnt_plain_json_is_left_alone(project: Spm, text: str) -> None:
    path = project.cwd / ".claude" / "settings.json"
    path.parent.mkdir()
    path.write_text(text)
    done = project("init", "--agent", "claude", "--hooks", code=8)
    assert "settings.json isn't what was expected, left as it is" in done.stderr
    assert path.read_text() == text and len(done.stderr.splitlines()) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
HOOK = module.hooks_of("claude", "spm")[".claude/settings.json"]


@settings(max_examples=60, deadline=None, database=None)
@given(st.dictionaries(st.sampled_from(["hooks", "SessionEnd", "other"]), JSON))
def test_a_merge_loses_nothing_and_is_done_once(old: dict[str, Any]) -> None:
    try:
        text = module.with_hook(HOOK, json.dumps(old))
    except ValueError:
        assert "hooks" in old
        return
    assert module.with_hook(HOOK, text) == text
    new = json.loads(text)
    assert "cleanup --session" in json.dumps(new["hooks"]["SessionEnd"])
    assert {k: v for k, v in new.items() if k != "hooks"} == {
        k: v for k, v in old.items() if k != "hooks"
    }
    for key, value in (old.get("hooks") or {}).items():
        assert new["hooks"][key] == value or new["hooks"][key][: len(value)] == value


# -- a first configuration


def test_init_config_marks_its_guesses_and_overwrites_nothing(project: Spm) -> None:
    files = {
        "package.json": '{"scripts": {"dev": "vite --port 5173", "start": "node x"}}',
        "Procfile": "worker: celery -A app worker\nweb2: gunicorn app -b :$PORT\n",
        "pyproject.toml": 'dependencies = ["fastapi", "uvicorn"]',
        "app/main.py": "from fastapi import FastAPI\n\nserver = FastAPI()\n",
        "compose.yaml": "services:\n  db:\n    image: redis\n"
        '    ports:\n      - "127.0.0.1:6379:6379"\n',
    }
    for name, text in files.items():
        (project.cwd / name).parent.mkdir(exist_ok=True)
        (project.cwd / name).write_text(text)
    project("init", "--config")
    text = (project.cwd / "spm.json").read_text()
    assert not (project.cwd / "AGENTS.md").exists(), "only what was asked for"
    services = json.loads(re.sub(r"(?m)^\s*//.*$", "", text))["services"]
    assert text.count("// a guess, from ") == len(services) == 5
    assert services["web"] == {"command": "npm run dev", "port": 5173}
    assert services["web2"] == {"command": "gunicorn app -b :$PORT", "shell": True, "port": "auto"}
    assert services["api"]["command"] == "uvicorn app.main:server --port 8000"
    assert "6379" in services["db"]["ready"][0]
    (project.cwd / "spm.json").write_text("mine")
    assert "is there already, left as it is" in project("init", "--config").stdout
    assert (project.cwd / "spm.json").read_text() == "mine"


def test_ports_of_a_compose_file_on_one_line_were_not_seen(project: Spm) -> None:
    text = 'services:\n  db:\n    image: redis\n    ports: ["6379:6379"]\n  none:\n    image: x\n'
    (project.cwd / "compose.yaml").write_text(text)
    project("init", "--config")
    text = re.sub(r"(?m)^\s*//.*$", "", (project.cwd / "spm.json").read_text())
    services = json.loads(text)["services"]
    assert [*services] == ["db"] and "6379" in services["db"]["ready"][0]
    told = project("config", "import", "compose.yaml", code=6).stderr
    assert "Expecting value: a configuration is JSON, as `init --config` writes" in told


def test_init_config_of_nothing_is_valid(project: Spm) -> None:
    told = project("init", "--config").stderr
    assert told.startswith("[WARN] nothing was recognised: spm.json has only an example; write ")
    text = re.sub(r"(?m)^\s*//.*$", "", (project.cwd / "spm.json").read_text())
    assert json.loads(text) == {"version": 1, "services": {}}


def test_a_guessed_command_keeps_the_references_of_its_shell(project: Spm) -> None:
    # they were replaced before its port was chosen
    (project.cwd / "Procfile").write_text("web: echo is ${PORT:-none} && exec sleep 300\n")
    copied(project, "init", "--config")
    copied(project, "up")
    port = project.record("web")["spec"]["port"]
    eventually(lambda: project.log("web") == f"is {port}\n")
    copied(project, "cleanup")


def test_a_guessed_command_of_a_procfile_lost_the_env_file_beside_it(project: Spm) -> None:
    (project.cwd / ".env").write_text("GREETING=hello\n")
    (project.cwd / "Procfile").write_text("show: echo is $GREETING; exec sleep 300\n")
    copied(project, "init", "--config")
    copied(project, "up")
    eventually(lambda: project.log("show") == "is hello\n")
    copied(project, "cleanup")


def test_guesses_of_one_name_are_all_kept_and_found_in_one_look(project: Spm) -> None:
    files = {
        "Procfile": "web: gunicorn app" + " " * 200_000 + "-w 1\n",
        "package.json": '{"scripts": {"dev": "vite"}}',
        "main.py": "app: FastAPI" + " " * 200_000 + "\napp = FastAPI()\n",
        "compose.yaml": "services:\n  web:\n" + "\n" * 200_000 + '    ports:\n      - "80:80"\n',
    }
    for name, text in files.items():
        (project.cwd / name).write_text(text)
    known = {
        name.split('"')[1] for name in module.guessed_config(str(project.cwd)).split("\n    ")[2::2]
    }
    assert known == {"web", "dev", "api", "web-2"}
    (project.cwd / "package.json").write_text("[" * 100_000)
    project("init", "--config")


# -- completion


def completions(spm: Spm, line: str) -> set[str]:
    """What argcomplete offers to bash at the end of a line: it asks through descriptor 8."""
    spm.env.update(
        _ARGCOMPLETE="1", _ARGCOMPLETE_IFS="\n", COMP_TYPE="9", _ARGCOMPLETE_SHELL="bash"
    )
    spm.env.update(
        COMP_LINE=f"spm {line}", COMP_POINT=str(len(f"spm {line}")), _ARGCOMPLETE_SUPPRESS_SPACE="1"
    )
    script = '"$@" 8>answer 9>/dev/null 1>/dev/null 2>&1'
    subprocess.run(
        ["bash", "-c", script, "bash", *spm.argv()], cwd=spm.cwd, env=spm.env, timeout=30
    )
    spm.env = {k: v for k, v in spm.env.items() if not k.startswith(("_ARGCOMPLETE", "COMP_"))}
    return set((spm.cwd / "answer").read_text().split())


def test_the_shell_completes_commands_options_and_services(spm: Spm) -> None:
    pytest.importorskip("argcomplete")
    spm("start", "api", "sleep 60")
    spm("start", "apple", "sleep 60")
    assert {"start", "stop", "stats", "status"} == completions(spm, "st")
    assert {"--max-restarts", "--match"} == completions(spm, "start api --ma")
    assert {"api", "apple"} == completions(spm, "stop ap")
    (spm.cwd / "spm.json").write_text('{"services": {"apricot": {"command": "x ${SPM_NO}"}}}')
    assert {"api", "apple", "apricot"} == completions(spm, "up ap")
    (spm.cwd / "spm.json").write_text("{")
    assert {"apple"} == completions(spm, "restart appl")
    assert set() == completions(spm, f"--home {spm.base}/none stop ap")
    state = spm.home / "state.json"
    kept, damaged = state.read_bytes(), b"{"
    state.write_bytes(damaged)
    before = sorted(path.name for path in spm.home.iterdir())
    assert set() == completions(spm, "stop ap")
    assert state.read_bytes() == damaged and before == sorted(
        path.name for path in spm.home.iterdir()
    ), "who only presses TAB mends nothing"
    state.write_bytes(kept)
    assert "api" in spm("list").stdout, "nothing was stopped by asking"
    spm("cleanup")


def test_the_mark_for_completion_is_where_it_is_looked_for() -> None:
    assert b"PYTHON_ARGCOMPLETE_OK" in SCRIPT.read_bytes()[:1024]
