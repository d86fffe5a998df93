"""start: what it executes, what it refuses, what it says."""

from __future__ import annotations

import json
import os
import py_compile
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import GENERIC, SCRIPT, Spm, eventually, is_running, nasty

import simple_process_manager as program


@pytest.mark.smoke
def test_a_started_service_runs_and_is_listed(spm: Spm) -> None:
    done = spm("start", "api", nasty("--say", "hello"))
    assert done.stdout.startswith("[OK] api started (pid ")
    row = spm.service("api")
    assert (row["status"], row["supervised"]) == ("running", True)
    assert is_running(row["pid"])
    eventually(lambda: spm.log("api") == "hello\n", what="its output in the log")
    spm("stop", "api")


def test_no_interpreter_is_started_for_what_runs_already(
    spm: Spm, monkeypatch: pytest.MonkeyPatch
) -> None:
    spm("start", "api", "sleep 100")
    monkeypatch.setenv("SPM_HOME", str(spm.home))
    words = ["start", "API", "sleep 100"]
    assert program.boot_early(words) is None
    for wanted in ([*words, "--replace"], ["start", "web", "sleep 100"]):
        booted = program.boot_early(wanted)
        assert booted is not None
        program.dismiss(booted.pid)
        os.close(booted.order)
        os.close(booted.answer)
    spm("stop", "api")


@pytest.mark.smoke
def test_starting_what_runs_is_success_and_a_heartbeat(spm: Spm) -> None:
    spm("start", "api", nasty())
    before = spm.record("api")
    again = spm("start", "api", nasty())
    assert "already running" in again.stdout
    after = spm.record("api")
    assert after["main"] == before["main"]
    assert after["last_active"] > before["last_active"]
    spm("stop", "api")


def test_another_spec_under_a_running_name_is_refused_and_told(spm: Spm, port: int) -> None:
    spm("start", "api", nasty(), "--env", "MODE=one")
    refused = spm("start", "api", nasty("--port", port), "--env", "MODE=one", code=8)
    assert "command: " in refused.stderr and f"port: none → {port}" in refused.stderr
    asked = ("start", "api", "sleep 100", "--shell")
    assert "shell: no → yes" in spm(*asked, code=8).stderr
    assert "--replace" in refused.stderr
    other_value = spm("start", "api", nasty(), "--env", "MODE=two", code=8)
    assert "--env MODE: another value" in other_value.stderr
    assert "two" not in other_value.stderr
    error = spm.json("start", "api", nasty(), "--cwd", "/", code=8)["error"]
    assert error["kind"] == "refused" and "cwd" in " ".join(error["differences"])
    assert error["advice"].endswith("; to have both, give this one another name")
    assert "another name" not in refused.stderr
    spm("stop", "api")


def test_replace_ends_the_old_one_first(spm: Spm) -> None:
    spm("start", "api", nasty())
    old = spm.service("api")["pid"]
    spm("start", "api", nasty("--say", "new"), "--replace")
    assert not is_running(old)
    assert spm.service("api")["pid"] != old
    spm("stop", "api")


def test_start_with_the_name_alone_repeats_the_last_start(spm: Spm) -> None:
    spm("start", "api", nasty("--say", "again"), "--env", "SECRET=s3cr3t")
    spm("stop", "api")
    spm("start", "api")
    assert spm.service("api")["command"] == nasty("--say", "again")
    environ = psutil.Process(spm.service("api")["pid"]).environ()
    assert environ["SECRET"] == "s3cr3t"
    spm("stop", "api")
    told = spm("start", "apo", code=2).stderr
    assert "no service 'apo' is known" in told
    assert 'did you mean api? A new one: start apo "COMMAND"' in told
    assert "the name of the service is missing" in spm("start", code=2).stderr
    told = spm("start", "uvicorn main:app", code=2).stderr
    assert "is missing\n  → write: start NAME 'uvicorn main:app'\n" in told
    told = spm("start", "uvicorn main:app", "api", code=2).stderr
    assert "comes first, then the command\n  → write: start api 'uvicorn main:app'\n" in told


def test_what_would_be_sent_into_the_background_is_told_as_it_is_to_be_typed(spm: Spm) -> None:
    # one error for each of & > nohup, and "leave the & out" for a >
    for typed in ("sleep 100 &", "nohup sleep 100 > out.log 2>&1 &", "sleep 100 &>/dev/null &"):
        told = spm("start", "api", typed, code=2).stderr
        advice = "start returns at once anyway, and logs api has its output: start api 'sleep 100'"
        assert told.endswith(f"  → leave the & out: {advice}\n"), told
    for typed in ("sleep 1 && sleep 100 &", "sh -c 'true > x' &", "env A=secret sleep 100 &"):
        told = spm("start", "api", typed, code=2).stderr
        assert told.endswith("  → leave the & out: start returns at once anyway\n"), told


def test_the_advice_for_a_command_of_two_lines_showed_backslash_n(spm: Spm) -> None:
    told = spm("start", "api", "sleep 100\nsleep 200", code=2).stderr
    assert "needs a shell for a line break" in told and "\\n" not in told
    assert "→ add --shell to have its lines run as a script, or write it in one line" in told


def test_a_program_taken_for_the_name_was_a_file_that_is_not_found(spm: Spm) -> None:
    (spm.cwd / "app.py").write_text("")
    told = spm("start", "python3", "app.py", code=4).stderr
    way = "python3 was taken for the service's name: write start NAME 'python3 app.py'"
    assert f"  → {way}\n" in told
    here = "app.py is here, where no program is looked for: write ./app.py, or its interpreter"
    assert f"  → {here} before it\n" in spm("start", "api", "app.py", code=4).stderr


def test_a_service_with_the_name_of_a_program_that_ended_too_soon_was_to_be_called_NAME(
    spm: Spm,
) -> None:
    script = spm.cwd / "run.sh"
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o755)
    told = spm("start", "test", "./run.sh", "--start-seconds", "5s", code=4).stderr
    assert "exit code 3" in told and "taken for" not in told
    assert "see whether it has a log file of its own" in told


@pytest.mark.parametrize(
    ("command", "reason", "advice"),
    [
        ("no-such-program-here x", "No such file", "PATH"),
        ("./not-here", "No such file", "there is no "),
        ("./plain.txt", "Permission denied", "chmod +x"),
        ("./no-first-line", "Exec format error", "#!"),
        ("./bad-first-line", "No such file", "#!"),
        ("pyhton3 -V", "No such file", "did you mean python3?"),
        ("only-in-venv", "No such file", ".venv/bin/only-in-venv"),
    ],
)
def test_what_cannot_be_executed_fails_at_once_and_says_why(
    spm: Spm, command: str, reason: str, advice: str
) -> None:
    (spm.cwd / "plain.txt").write_text("text")
    for name, first in (("no-first-line", ""), ("bad-first-line", "#!/no/such/shell\n")):
        (spm.cwd / name).write_text(first + "\x00binary" * (first == ""))
        (spm.cwd / name).chmod(0o755)
    (spm.cwd / ".venv" / "bin").mkdir(parents=True)
    (spm.cwd / ".venv" / "bin" / "only-in-venv").write_text("")
    failed = spm("start", "api", command, code=4)
    assert reason in failed.stderr and failed.stderr.count(advice) == 1
    assert command.split()[0] in failed.stderr
    assert spm.service("api")["status"] == "failed"
    assert not spm.bearers()
    spm("status", "api", code=3)


def test_a_service_that_was_named_by_digits_alone_could_not_be_waited_for(spm: Spm) -> None:
    for words in (["start", "8000", "sleep 100"], ["run", "8000", "sleep 100", "--", "true"]):
        told = spm(*words, code=2).stderr
        how = "write a name with a letter in it, and declare the port: --port N"
        assert told == f"[ERROR] '8000' is no service name but a port\n  → {how}\n"
    (spm.cwd / "spm.json").write_text('{"services": {"8000": {"command": "sleep 100"}}}')
    told = spm("up", code=6).stderr
    assert "spm.json: services.8000: that is no name: a port\n" in told
    (spm.cwd / "spm.json").unlink()
    spm("start", "api", "sleep 100")
    spm("stop", "api")
    earlier = spm.state()
    earlier["services"]["8000"] = {**earlier["services"].pop("api"), "name": "8000"}
    (spm.home / "services" / "api").rename(spm.home / "services" / "8000")
    (spm.home / "state.json").write_text(json.dumps(earlier))
    spm("start", "8000")
    assert "8000 stopped" in spm("stop", "8000").stdout
    spm("cleanup")
    assert spm.json("list")["services"] == []


def test_a_missing_pnpm_was_taken_for_a_misspelt_npm(spm: Spm) -> None:
    path = spm.base / "bin"
    path.mkdir()
    for name in ("npm", "mysql"):
        (path / name).write_text("#!/bin/sh\n")
        (path / name).chmod(0o755)
    env = {**spm.env, "PATH": str(path)}
    advice = "check the spelling and PATH, or give the whole path"
    told = spm("start", "web", "pnpm dev", env=env, code=4).stderr
    how = "enable it: corepack enable pnpm, or: npm install -g pnpm"
    assert f"  → {how}. Otherwise {advice}\n" in told
    told = spm("start", "db", "mysqld", env=env, code=4).stderr
    assert "→ mysqld isn't installed: " in told and "did you mean" not in told
    assert "→ did you mean npm? " in spm("start", "x", "nmp start", env=env, code=4).stderr


def test_a_command_of_which_only_a_part_was_quoted_is_shown_whole(spm: Spm) -> None:
    told = spm("start", "api", "sleep 60", "extra", "words", code=4).stderr
    assert "→ quote the command as a whole: 'sleep 60 extra words'\n" in told
    program = spm.cwd / "My App" / "run"
    program.parent.mkdir()
    program.write_text("#!/no/such/shell\n")
    program.chmod(0o755)
    told = spm("start", "api", "--", program, "--flag", code=4).stderr
    assert f"→ its first line (#!) names a program that doesn't exist: {program}\n" in told


def test_a_missing_directory_fails_before_anything_is_recorded(spm: Spm) -> None:
    failed = spm("start", "api", "sleep 5", "--cwd", spm.cwd / "nowhere", code=4)
    assert "no such directory" in failed.stderr
    spm("status", "api", code=3)


def test_a_current_directory_that_was_removed_is_told_as_that(spm: Spm) -> None:
    gone = spm.cwd / "gone"
    home = f"--home {spm.base}/h"
    named = [f"{home} {each}" for each in ("config validate x.json", "up --procfile x")]
    for words in ("list", "start api 'sleep 100'", f"{home} start api 'sleep 100'", *named):
        gone.mkdir()
        line = f"cd {gone} && rmdir {gone} && {sys.executable} {SCRIPT} {words}"
        env = {key: value for key, value in spm.env.items() if key != "SPM_HOME"}
        done = subprocess.run(line, shell=True, env=env, capture_output=True, text=True)
        assert done.returncode == 9
        assert done.stderr.startswith("[ERROR] the current directory can't be told: No such file")


def test_in_a_removed_directory_no_port_could_be_waited_for(spm: Spm, port: int) -> None:
    gone = spm.cwd / "gone"
    gone.mkdir()
    line = f"cd {gone} && rmdir {gone} && {sys.executable} {SCRIPT} wait-healthy {port} 100ms"
    done = subprocess.run(line, shell=True, env=spm.env, capture_output=True, text=True)
    assert done.returncode == 124, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is above it any more")
def test_in_a_removed_directory_a_script_beside_it_ended_in_a_traceback(spm: Spm) -> None:
    shutil.copy(SCRIPT, spm.cwd / "copied.py")
    spm("vendor", "vendored.py")
    gone = spm.cwd / "gone"
    for name in ("copied.py", "vendored.py"):
        gone.mkdir()
        line = f"cd {gone} && rmdir {gone} && {sys.executable} ../{name} start a 'sleep 9'"
        done = subprocess.run(line, shell=True, env=spm.env, capture_output=True, text=True)
        assert done.returncode == 9, done.stderr
        assert done.stderr.startswith("[ERROR] the current directory can't be told: No such file")


def test_a_failed_start_keeps_nobody_from_trying_again(spm: Spm) -> None:
    spm("start", "api", "slep 100", code=4)
    spm("start", "api", "sleep 100")
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")


def test_bare_words_work_as_long_as_they_are_unambiguous(spm: Spm) -> None:
    spm("start", "a", "sleep", "100")
    spm("start", "--cwd", "/", "b", "sleep", "100")
    assert spm.record("b")["spec"]["cwd"] == "/"
    spm("start", "c", "--", "sleep", "100")
    assert [spm.service(name)["command"] for name in "abc"] == ["sleep 100"] * 3
    spm("cleanup")


@pytest.mark.parametrize(
    "words",
    [
        ["uvicorn", "main:app", "--port", "8000"],
        ["uvicorn", "main:app", "--reload"],
        ["node", "--inspect", "server.js"],
    ],
)
def test_options_behind_bare_words_are_refused_with_both_ways(spm: Spm, words: list[str]) -> None:
    refused = spm("start", "api", *words, code=2)
    assert "quote" in refused.stderr and " -- " in refused.stderr
    assert not (spm.home / "state.json").exists()


@pytest.mark.parametrize("command", ["a && b", "a | b", "echo $HOME", "X=1 run", "a > b", "`a`"])
def test_what_needs_a_shell_is_refused_with_that_advice(spm: Spm, command: str) -> None:
    refused = spm("start", "api", command, code=2)
    assert "--shell" in refused.stderr


def test_a_tilde_or_a_glob_that_was_taken_literally_was_advised_as_a_typing_error(
    spm: Spm,
) -> None:
    told = "was taken literally, ~ and * need a shell: give the full path, or "
    for word in ("~/bin/foo", "*.py"):
        assert f"  → {word} {told}add" in spm("start", "a", f"{word} x", code=4).stderr
    assert f"  → ~/t {told}write -- sh -c" in spm("run", "a", "true", "--", "~/t", code=2).stderr
    for command, word in (("ls *.nosuch", "*.nosuch"), ("cat ~/nosuch/x", "~/nosuch/x")):
        spm("start", "a", command)
        assert f"  → {word} {told}add --shell; mend" in spm("wait-healthy", "a", code=1).stderr
    spm("start", "a", "sh -c 'echo \"*** fatal\"; exit 1' *")
    assert "literally" not in spm("wait-healthy", "a", code=1).stderr, "a * that was meant"
    spm("start", "a", "printf %s *.literal")
    assert "literally" not in spm("wait-healthy", "a", code=1).stderr
    assert spm.log("a") == "*.literal"


def test_a_shell_runs_what_needs_one(spm: Spm) -> None:
    spm("start", "api", "--shell", "echo $GREETING && exec sleep 100", "--env", "GREETING=hi")
    eventually(lambda: spm.log("api") == "hi\n", what="the shell's output")
    spm("stop", "api")


def test_quotes_and_unicode_reach_the_program_unharmed(spm: Spm) -> None:
    show = "import sys; print(sys.argv[1:])"
    words = ["a b", "it's", 'say "x"', "grüße 世界", "", "*"]
    spm("start", "api", "--", sys.executable, "-c", show, *words)
    eventually(lambda: spm.log("api") == f"{words}\n", what="the program's arguments")


def test_the_environment_is_caller_then_files_then_options(spm: Spm) -> None:
    file = spm.cwd / "my.env"
    file.write_text('# comment\nexport A=file\nB="file \\"b\\""\nC=file # c\nD=\n')
    spm.env.update(A="caller", B="caller", E="caller")
    options = ("--env-file", "my.env", "--env", "C=option", "--env", "E")
    spm("start", "api", nasty(), *options, "--port", 18999)
    environ = psutil.Process(spm.service("api")["pid"]).environ()
    assert [environ[key] for key in "ABCDE"] == ["file", 'file "b"', "option", "", "caller"]
    assert environ["PORT"] == "18999"
    assert environ["SPM_SERVICE"] == "api" and environ["SPM_HOME"] == str(spm.home)
    spm("stop", "api")


def test_bad_environment_is_told_all_at_once_and_nothing_starts(spm: Spm) -> None:
    (spm.cwd / "bad.env").write_text("GOOD=1\nthis is s3cr3t\n")
    options = ("--env-file", "bad.env", "--env-file", "missing.env", "--env", "UNSET_VARIABLE")
    failed = spm("start", "api", "sleep 5", *options, code=6)
    for part in ("bad.env, line 2", "missing.env: No such file", "UNSET_VARIABLE"):
        assert part in failed.stderr
    assert "→ export UNSET_VARIABLE, or give --env UNSET_VARIABLE=VALUE; " in failed.stderr
    assert "s3cr3t" not in failed.stderr
    missing = spm("start", "api", "sleep 5", "--env-file", "missing.env", code=6).stderr
    assert f"→ write {spm.cwd}/missing.env, or leave that env file out; " in missing
    assert "api" not in json.dumps(spm.json("list"))


def test_values_of_variables_are_nowhere_but_in_their_file(spm: Spm) -> None:
    spm.env["FROM_CALLER"] = "caller-s3cr3t"
    (spm.cwd / "my.env").write_text("FROM_FILE=file-s3cr3t\n")
    spm("start", "api", nasty(), "--env", "TOKEN=given-s3cr3t", "--env-file", "my.env")
    shown = [spm(*words).stdout for words in (["list"], ["status", "api"], ["logs", "api"])]
    spm("stop", "api")
    files = [path for path in spm.home.rglob("*") if path.is_file()]
    texts = {str(path): path.read_bytes().decode("utf-8", "replace") for path in files}
    holders = [path for path, text in texts.items() if "s3cr3t" in text]
    assert holders == [str(spm.home / "services" / "api" / "env.json")]
    assert os.stat(holders[0]).st_mode & 0o777 == 0o600
    assert "s3cr3t" not in "".join(shown)


def test_a_declared_port_is_exported_and_put_into_the_command(spm: Spm, port: int) -> None:
    spm("start", "api", nasty("--port", "{port}"), "--port", port)
    assert spm.service("api")["port"] == port
    assert spm.service("api")["port_origin"] == "declared"
    spm("wait-healthy", "api", 10)
    spm("stop", "api")


def test_a_port_in_the_command_is_recognised_not_declared(spm: Spm, port: int) -> None:
    spm("start", "api", nasty("--port", port))
    row = spm.service("api")
    assert (row["port"], row["port_origin"]) == (port, "recognised")
    assert "PORT" not in psutil.Process(row["pid"]).environ()
    spm("stop", "api")


def test_a_held_port_is_refused_naming_who_holds_it(spm: Spm, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        refused = spm("start", "api", nasty(), "--port", port, code=5)
        assert f"pid {os.getpid()}" in refused.stderr and "--force" in refused.stderr
        warned = spm("start", "api", nasty("--port", port))
        assert f"[WARN] port {port} is held already: pid {os.getpid()}" in warned.stderr
        spm("stop", "api")
        spm("start", "api", nasty(), "--port", port, "--force")
        spm("stop", "api")


@pytest.mark.parametrize("name", ["", "-x", "a/b", "a b", "ä", "..", ".x", "x" * 65])
def test_a_bad_name_is_one_line_and_exit_2(spm: Spm, name: str) -> None:
    spm.forget_home()
    refused = spm("start", "--cwd", "/", name, "sleep 5", code=2)
    assert refused.stderr.count("\n") == 2
    assert not spm.home.exists()


def test_names_are_compared_without_case(spm: Spm) -> None:
    spm("start", "Api", "sleep 100")
    assert "already running" in spm("start", "API", "sleep 100").stdout
    assert "Api stopped" in spm("stop", "aPI").stdout
    told = spm.json("events")["events"]  # which named its directory
    assert {event["name"] for event in told} == {"Api"}


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "8e3", "\uff11\uff12"])
def test_a_bad_port_is_exit_2(spm: Spm, port: str) -> None:
    assert "is not a port" in spm("start", "api", "sleep 5", f"--port={port}", code=2).stderr
    assert "→ add --port N or --port auto" in spm("start", "api", "x --port={port}", code=2).stderr


def test_what_stands_behind_a_quoted_command_is_not_taken_for_an_unquoted_one(spm: Spm) -> None:
    told = spm("start", "api", "sleep 5", "--wait", "30sec", code=2).stderr
    assert "--wait: '30sec' is not a duration above 0\n  → write 500ms, 30s" in told
    told = spm("start", "api", "sleep 5", "--wait", "much", "TOKEN=s3cr3t", code=2).stderr
    assert told.startswith("[ERROR] much 'TOKEN=…' stands behind the quoted command\n")
    assert 'start api "COMMAND"' in told and "unquoted" not in told
    told = spm("start", "api", "sleep 5", "--envv", "TOKEN=my s3cr3t", code=2).stderr
    assert told.startswith("[ERROR] start: unrecognized arguments: --envv TOKEN=…\n")


def test_the_first_start_of_a_copied_file_leaves_the_project_clean(spm: Spm) -> None:
    project = spm.base / "project"
    project.mkdir()
    shutil.copy(SCRIPT, project)
    subprocess.run(["git", "init", "-q", str(project)], check=True)
    env = {key: value for key, value in spm.env.items() if key != "SPM_HOME"}
    for words in (["start", "x", "sleep 100"], ["list"], ["cleanup"]):
        command = [sys.executable, "simple_process_manager.py", *words]
        subprocess.run(command, cwd=project, env=env, check=True, stdout=subprocess.DEVNULL)
    git = ["git", "-C", str(project), "status", "--porcelain", "-uall"]
    assert subprocess.check_output(git, text=True) == "?? simple_process_manager.py\n"
    assert (project / ".spm").stat().st_mode & 0o777 == 0o700


def test_bytecode_alone_starts_services_too(spm: Spm) -> None:
    made = spm.cwd / "pm.pyc"
    py_compile.compile(str(SCRIPT), str(made), doraise=True)
    spm.program = made
    shutil.rmtree(spm.home / "cache")
    assert "x started" in spm("start", "x", "sleep 100").stdout
    assert "x stopped" in spm("stop", "x").stdout


def test_modules_of_the_project_do_not_shadow_the_standard_library(spm: Spm) -> None:
    shutil.copy(SCRIPT, spm.cwd)
    for module in ("json", "queue", "select", "signal", "socket", "subprocess", "re", "typing"):
        (spm.cwd / f"{module}.py").write_text("raise SystemExit('the wrong module')\n")
    for words in (["start", "x", "sleep 100"], ["list"], ["stop", "x"]):
        command = [sys.executable, "simple_process_manager.py", *words]
        subprocess.run(command, cwd=spm.cwd, env=spm.env, check=True, stdout=subprocess.DEVNULL)


def test_a_service_can_start_services_that_live_on_without_it(spm: Spm) -> None:
    inner = f"{sys.executable} {SCRIPT} start inner 'sleep 100' && exec sleep 100"
    spm("start", "outer", "--shell", inner)
    eventually(lambda: "inner started" in spm.log("outer"), what="the inner start")
    pid = spm.service("inner")["pid"]
    spm("stop", "outer")
    assert is_running(pid)
    assert spm.service("inner")["supervised"] is True
    spm("stop", "inner")
    assert not is_running(pid)


def test_the_home_is_found_from_a_directory_below(spm: Spm) -> None:
    env = {key: value for key, value in spm.env.items() if key != "SPM_HOME"}
    (spm.cwd / "package.json").write_text("{}")
    below = spm.cwd / "a" / "b"
    below.mkdir(parents=True)
    spm("start", "x", "sleep 100", env=env)
    assert (spm.cwd / ".spm" / "state.json").exists()
    assert "x" in spm("list", env=env, cwd=below).stdout
    worktree = spm.cwd / "worktree"
    worktree.mkdir()
    (worktree / ".git").write_text("gitdir: elsewhere\n")
    assert "no services" in spm("list", env=env, cwd=worktree).stdout
    spm("stop", "x", env=env, cwd=below)


def test_from_a_part_of_a_project_its_spm_json_was_not_found(spm: Spm) -> None:
    env = {key: value for key, value in spm.env.items() if key != "SPM_HOME"}
    (spm.cwd / ".git").mkdir()
    (spm.cwd / "spm.json").write_text('{"services": {"x": {"command": "sleep 100"}}}')
    backend, worktree = spm.cwd / "backend" / "src", spm.cwd / "worktree"
    for inner in (backend, worktree):
        inner.mkdir(parents=True)
    (backend.parent / "pyproject.toml").write_text("")
    (worktree / ".git").write_text("gitdir: elsewhere\n")
    assert "spm.json is up" in spm("up", env=env, cwd=backend).stdout
    assert (spm.cwd / ".spm" / "state.json").exists()
    assert "x stopped" in spm("down", env=env, cwd=backend).stdout
    assert "there is no spm.json in" in spm("up", env=env, cwd=worktree, code=6).stderr
    shutil.rmtree(spm.cwd / ".spm")
    (spm.cwd / ".git").rmdir()  # it may be anybody's, as in /tmp
    assert "there is no spm.json in" in spm("up", env=env, cwd=backend, code=6).stderr


def test_a_home_with_a_very_long_path_works(spm: Spm) -> None:
    home = spm.base / ("long" * 30) / "home"
    home.parent.mkdir()
    spm("--home", home, "start", "x", "sleep 100")
    assert "x stopped" in spm("stop", "x", "--home", home, cwd="/").stdout
    assert Path(home, "services", "x").is_dir()


def test_a_port_held_by_a_service_of_ours_is_told_by_its_name(spm: Spm, port: int) -> None:
    spm("start", "web", nasty("--port", port))
    spm("wait-healthy", "web", 10)
    refused = spm("start", "other", nasty(), "--port", port, code=5)
    assert f"service web of {spm.home}" in refused.stderr and "→ stop web" in refused.stderr
    spm("stop", "web")


def test_an_env_file_that_can_be_read_but_once_is_read_once(spm: Spm) -> None:
    start = spm.argv("start", "api", "--port", "auto", "--shell", "echo the $WORD; exec sleep 100")
    line = f"{shlex.join(start)} --env-file <(echo WORD=secret)"
    env = {**spm.env, "SPM_HOME": str(spm.home)}
    subprocess.run(["bash", "-c", line], cwd=spm.cwd, env=env, check=True, capture_output=True)
    eventually(lambda: spm.log("api") == "the secret\n", what="its word")
    spm("cleanup")


def test_a_successor_that_is_not_executable_is_told_so(spm: Spm) -> None:
    (spm.cwd / "new.sh").write_text("#!/bin/sh\nexec sleep 100\n")
    spm("start", "api", "sleep 100")
    told = spm("start", "api", "./new.sh", "--replace", code=4)
    assert "chmod +x" in told.stderr and "what runs was left alone" in told.stderr
    spm("cleanup")


def test_what_a_relative_path_leads_to_is_found_at_a_restart_from_elsewhere_too(spm: Spm) -> None:
    # PATH=node_modules/.bin:…: the start found it, the look before a restart did not
    tools = spm.cwd / "bin"
    tools.mkdir()
    (tools / "server").write_text("#!/bin/sh\nexec sleep 100\n")
    (tools / "server").chmod(0o755)
    spm.env["PATH"] = f"bin{os.pathsep}{spm.env['PATH']}"
    spm("start", "api", "server")
    spm("restart", "api", cwd=spm.base)
    told = spm("start", "api", "servr", "--cwd", spm.cwd, "--replace", code=4, cwd=spm.base)
    assert "did you mean server?" in told.stderr
    spm("stop", "api")


HAS_EXE = os.path.exists("/proc/self/exe") and not GENERIC


@pytest.mark.skipif(not HAS_EXE, reason="nothing there tells which it is")
def test_a_python_that_was_found_without_path_could_start_nothing(spm: Spm) -> None:
    modules = os.path.dirname(os.path.dirname(psutil.__file__))
    bare = {"PYTHONPATH": modules, "HOME": str(spm.base), "SPM_HOME": str(spm.home)}
    for words in (["start", "a", "sleep 0.5"], ["logs", "a", "-f"]):
        argv = ["python", *spm.argv(*words)[1:]]
        subprocess.run(argv, executable=sys.executable, env=bare, cwd=spm.cwd, check=True)


def test_a_variable_of_the_shell_that_is_called_port_became_a_number_behind_a_dollar(
    spm: Spm, port: int
) -> None:
    spm("start", "api", "--shell", "--port", port, 'port=7; echo "${port} {port}"; sleep 300')
    eventually(lambda: f"7 {port}" in spm.log("api"))
    spm("stop", "api")
