"""run: services for a test command, always stopped afterwards, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from conftest import GENERIC, Spm, eventually, free_port, is_running, nasty

WAIT_FOR_GO = "touch up; while [ ! -e go ]; do sleep 0.02; done"
AGAIN = "  → run it again; what is left: list\n"
Process = subprocess.Popen[str]


def shell(script: str) -> list[str]:
    """The words behind `--` that run a script."""
    return ["--", "sh", "-c", script]


class Chains:
    """Runs that go on while the test looks at them, each in a session of its own."""

    def __init__(self, spm: Spm) -> None:
        self.spm = spm
        self.running: list[Process] = []

    def begin(self, *words: object, **options: Any) -> Process:
        """A run whose test command has begun: it has touched `up`."""
        process = self.spm.popen("run", *words, start_new_session=True, **options)
        self.running.append(process)
        up = self.spm.cwd / "up"
        eventually(lambda: up.exists() or process.poll() is not None, what="the test command")
        assert up.exists(), process.communicate()
        return process


@pytest.fixture
def chains(spm: Spm) -> Iterator[Chains]:
    """Ends what is left of them, test commands too."""
    one = Chains(spm)
    yield one
    for process in one.running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in filter(None, (process.stdin, process.stdout, process.stderr)):
            stream.close()


def document_of(spm: Spm, *words: object, code: int = 0) -> dict[str, Any]:
    """The one JSON document of a run."""
    document = json.loads(spm("run", "--json", *words, code=code).stdout)
    assert isinstance(document, dict) and document["ok"] is (code == 0)
    return document


def stopped(spm: Spm, *names: str) -> bool:
    """Whether these are stopped and nothing of them lives."""
    return {spm.service(name)["status"] for name in names} == {"stopped"} and not spm.bearers()


# -- the way it should go


def test_tests_that_pass(spm: Spm, port: int) -> None:
    script = f"""{sys.executable} -c "
import os, urllib.request as u
print(u.urlopen('http://127.0.0.1:' + os.environ['PORT']).status, os.environ['MY_API_PORT'])" """
    done = spm("run", "my-api", nasty("--port", port, "--slow", 0.2), *shell(script))
    assert done.stdout == f"200 {port}\n", "stdout is the tests' own"
    assert "[OK] my-api started (pid " in done.stderr
    assert f"[OK] my-api answers on 127.0.0.1:{port} after " in done.stderr
    assert done.stderr.endswith("[OK] the tests passed; stopped: my-api\n")
    assert stopped(spm, "my-api")


@pytest.mark.smoke
def test_tests_that_fail_give_their_exit_code(spm: Spm, port: int) -> None:
    done = spm("run", "api", nasty("--port", port), *shell("exit 42"), code=42)
    told = (
        "[ERROR] the tests failed: exit code 42; stopped: api\n  → see what they printed; what api"
    )
    assert done.stderr.endswith(f"{told} wrote: logs api\n")
    assert "did you mean sleep? " in spm("run", "api", "true", "--", "slepe", "1", code=2).stderr
    for tests, advice in (
        (["cd . && true"], "have a shell run it: -- sh -c 'cd . && true'"),
        (["A=b", "true"], "have env set it: -- env A=… COMMAND"),
        (["export", "A=b"], "only a shell has export: -- sh -c 'export …'"),
        (["true x"], "leave the quotes of the test command out: -- true x"),
    ):
        told = spm("run", "api", "true", "--", *tests, code=2).stderr
        assert told.endswith(f"  → {advice}\n"), told
    assert stopped(spm, "api")


def test_tests_killed_by_a_signal_give_128_and_its_number(spm: Spm, port: int) -> None:
    done = spm("run", "api", nasty("--port", port), *shell("kill -SEGV $$"), code=128 + 11)
    assert "the tests failed: killed by signal 11; stopped: api\n" in done.stderr
    assert stopped(spm, "api")


def test_the_tests_read_the_callers_stdin(spm: Spm, port: int) -> None:
    run = spm.popen("run", "api", nasty("--port", port), "--", "cat", stdin=subprocess.PIPE)
    assert run.communicate("hello\n", timeout=20)[0] == "hello\n"
    assert run.returncode == 0


def test_words_and_options_of_the_tests_are_theirs(spm: Spm, port: int) -> None:
    show = [sys.executable, "-c", "import sys; print(sys.argv[1:])", "--json", "--home", "x", "--"]
    done = spm("run", "api", nasty("--port", port), "--", *show)
    assert done.stdout == "['--json', '--home', 'x', '--']\n"


def test_no_port_is_needed_if_it_listens_on_any(spm: Spm, port: int) -> None:
    script = f"x={port}; exec {nasty('--port', 'PORT').replace('PORT', '$x')}"
    done = spm("run", "api", "--shell", script.replace("'$x'", "$x"), *shell("echo $PORT"))
    assert done.stdout == f"{port}\n"


def test_options_of_start_are_those_of_run(spm: Spm, port: int) -> None:
    words = [sys.executable, str(nasty().split()[2]), "--port", "{port}"]
    command = shlex.join(words)
    options = ("--port", port, "--env", "SAY=hello", "--cwd", spm.base)
    spm("run", "api", command, *options, *shell("exit 0"))
    spec = spm.record("api")["spec"]
    assert (spec["port"], spec["env_given"], spec["cwd"]) == (port, ["SAY"], str(spm.base))
    assert spec["lease"] == "forever", "what run does about its life isn't what was asked for"
    done = spm("run", "api", *shell("echo again on $PORT"))
    assert done.stdout == f"again on {port}\n"


def test_several_services_start_in_order_and_stop_in_reverse(spm: Spm, port: int) -> None:
    ports = [port, free_port(), free_port()]
    more = [f"db={nasty('--port', ports[1])}", f"cache-1={nasty('--port', ports[2])}"]
    words = ["run", "api", nasty("--port", port), "--with", more[0], "--with", more[1]]
    done = spm(*words, *shell("echo $PORT $API_PORT $DB_PORT $CACHE_1_PORT"))
    assert done.stdout.split() == list(map(str, [port, *ports]))
    told = [line.split()[1:3] for line in done.stderr.splitlines() if line.startswith("[OK]")]
    names = ("db", "cache-1", "api")
    begun = [[name, how] for name in names for how in ("started", "answers")]
    assert told[:-1] == begun + [[name, "stopped"] for name in reversed(names)]
    assert done.stderr.endswith("[OK] the tests passed; stopped: db, cache-1, api\n")
    assert stopped(spm, *names)


def test_a_name_alone_is_a_service_that_is_known(spm: Spm, port: int) -> None:
    other = free_port()
    spm("start", "db", nasty("--port", other))
    spm("stop", "db")
    words = ["run", "api", nasty("--port", port), "--with", "db"]
    assert spm(*words, *shell("echo $DB_PORT")).stdout == f"{other}\n"
    told = spm(*words[:-1], "dbs", *shell("true"), code=2).stderr
    assert "no service 'dbs' is known" in told and "did you mean db? " in told
    assert '--with dbs="COMMAND"' in told
    assert 'run web "COMMAND" -- …' in spm("run", "web", "--", "true", code=2).stderr
    assert stopped(spm, "db")


@pytest.mark.parametrize(
    ("with_", "told"),
    [
        ("db=sleep {port}", "db (--with): {port} stands in its command, and it is given no port"),
        ("sleep --port=9", "--with: the name of the service is missing"),
        ("WEB=sleep 9", "WEB is named twice"),
    ],
)
def test_what_can_not_be_right_of_with_was_started_or_sent_to_start(
    spm: Spm, with_: str, told: str
) -> None:
    words = ["run", "web", "sleep {port}", "--port", "auto", "--with", "first=sleep 100"]
    told_all = spm(*words, "--with", with_, *shell("true"), code=2).stderr
    assert told in told_all and "started" not in told_all
    assert "start NAME" not in told_all and "--port auto" not in told_all


def test_json_is_one_document_and_the_tests_speak_on_stderr(spm: Spm, port: int) -> None:
    words = ["run", "api", nasty("--port", port), "--json", *shell("echo hello; exit 3")]
    done = spm(*words, code=3)
    document = json.loads(done.stdout)
    assert (document["ok"], document["exit_code"]) == (False, 3)
    assert document["tests"] == ["sh", "-c", "echo hello; exit 3"]
    service = document["services"][0]
    assert (service["name"], service["port"], service["stopped"]) == ("api", port, True)
    assert service["status"] == "stopped" and service["exit"]["signal"] == "SIGTERM"
    assert service["died"] is None and service["already_running"] is False
    assert document["error"]["message"] == "the tests failed: exit code 3; stopped: api"
    assert "\nhello\n" in done.stderr
    passed = document_of(spm, "api", *shell("true"))
    assert (passed["exit_code"], passed["services"][0]["port"]) == (0, port)


# -- what runs already


def test_what_runs_already_is_used_and_left_running(spm: Spm, port: int) -> None:
    spm("start", "api", nasty("--port", port), "--lease", "1h")
    pid = spm.service("api")["pid"]
    done = spm("run", "api", nasty("--port", port), *shell("exit 1"), code=1)
    assert "exit code 1; left running, as it was before: api\n" in done.stderr
    record = spm.record("api")
    assert (record["main"]["pid"], record["spec"]["lease"]) == (pid, "1h")
    assert record["owner"] is None and spm.service("api")["status"] == "running"
    refused = spm("run", "api", nasty("--port", port, "--child"), *shell("true"), code=8)
    assert "api runs already with another spec" in refused.stderr
    assert spm.service("api")["pid"] == pid
    spm("stop", "api")


def test_what_it_uses_is_not_idle(spm: Spm, port: int) -> None:
    idle_s = 4 if GENERIC else 0.9  # there each look takes a while
    spm("start", "api", nasty("--port", port), "--idle-timeout", f"{idle_s}s")
    done = spm("run", "api", *shell(f"sleep {idle_s + 0.4}; {shlex.join(spm.argv('list'))}"))
    assert "[WARN]" not in done.stderr and "running" in done.stdout
    spm("stop", "api")


def test_a_service_that_the_tests_restart_is_stopped_all_the_same(spm: Spm, port: int) -> None:
    restart = shlex.join(spm.argv("restart", "api")) + " > /dev/null"
    done = spm("run", "api", nasty("--port", port), *shell(f"{restart}; {restart}"))
    assert "[WARN]" not in done.stderr
    assert done.stderr.endswith("[OK] the tests passed; stopped: api\n")
    assert stopped(spm, "api")


# -- what goes wrong before the tests


def test_a_service_that_is_not_ready_in_time_is_stopped_and_nothing_is_tested(spm: Spm) -> None:
    words = ["run", "api", nasty("--say", "no port"), "--timeout", "900ms"]
    done = spm(*words, *shell("touch tested"), code=124)
    assert "[ERROR] api did not become healthy in 0.90 s (it listens on no port" in done.stderr
    assert "stopped: api\n  | no port\n" in done.stderr
    assert "--ready log:REGEX" in done.stderr
    assert "notify" not in done.stderr and "wait-healthy" not in done.stderr, "it has been stopped"
    assert stopped(spm, "api") and not (spm.cwd / "tested").exists()
    failed = document_of(spm, *words[1:], *shell("touch tested"), code=124)
    assert failed["error"]["kind"] == "timeout" and failed["exit_code"] is None


def test_a_service_that_dies_before_it_is_ready_ends_the_run(spm: Spm, port: int) -> None:
    other = free_port()
    words = ["run", "api", nasty("--exit", 3, "--after", 0.1), "--port", port]
    words += ["--with", f"db={nasty('--port', other)}"]
    began = time.monotonic()
    done = spm(*words, *shell("touch tested"), code=1)
    assert time.monotonic() - began < 10
    assert "api is not running: failed" in done.stderr and "exit code 3" in done.stderr
    assert "; stopped: db\n  | last words\n" in done.stderr
    assert spm.service("db")["status"] == "stopped"
    eventually(lambda: not spm.bearers(), what="its supervisor's end")
    assert not (spm.cwd / "tested").exists()


def test_a_start_that_fails_gives_its_own_code(spm: Spm, port: int) -> None:
    with_db = ["--with", f"db={nasty('--port', port)}"]
    done = spm("run", "api", "nosuchprogram", *with_db, *shell("touch tested"), code=4)
    assert "api could not be started: No such file" in done.stderr
    assert not (spm.cwd / "tested").exists()
    eventually(lambda: not spm.bearers(), what="its supervisor's end")
    with_bad = ["--with", "db=nosuchprogram"]
    spm("run", "api", nasty("--port", port), *with_bad, *shell("touch tested"), code=4)
    assert {one["name"] for one in spm.json("list")["services"]} == {"api", "db"}
    eventually(lambda: not spm.bearers(), what="its supervisor's end")


def test_what_does_not_become_ready_is_stopped_and_said_to_be(spm: Spm) -> None:
    words = ["run", "x", "--ready", "log:never", "--wait", "300ms", "sleep 60"]
    told = spm(*words, *shell("true"), code=124).stderr
    assert (
        "mend the cause, then: run this again"
        in spm("run", "y", "false", *shell("true"), code=1).stderr
    )
    assert ") was alive; stopped: x\n" in told and "left running" not in told
    assert "read logs x; more time: --timeout 60s" in told and "stop x" not in told


def test_a_test_command_that_does_not_exist_starts_nothing(spm: Spm, port: int) -> None:
    words = ["run", "api", nasty("--port", port)]
    assert (
        "the test command 'pytset' can't be found or executed"
        in spm(*words, "--", "pytset", code=2).stderr
    )
    told = spm("run", "sleep 60", *shell("true"), code=2).stderr
    assert "the name of the service is missing\n  → write: run NAME 'sleep 60'" in told
    for more in ((), ("--",)):
        told = spm(*words, *more, code=2).stderr
        assert "there is no test command" in told and "put it behind --" in told
    spm("run", "a/b", nasty("--port", port), *shell("true"), code=2)
    assert not spm.home.exists() or not spm.json("list")["services"]


def test_a_test_command_of_the_projects_environment_got_advice_that_led_nowhere(spm: Spm) -> None:
    local = spm.cwd / ".venv" / "bin"
    local.mkdir(parents=True)
    (local / "slepe").symlink_to("/bin/true")
    told = spm("run", "api", "true", "--", "slepe", "1", code=2).stderr
    assert "  → it is in .venv/bin: write .venv/bin/slepe, or activate that environment\n" in told
    assert "did you mean" not in told and "write: run" not in told
    whole = spm("run", "api", "true", "--", "sleep 1", code=2).stderr
    assert "  → leave the quotes of the test command out: -- sleep 1\n" in whole
    (spm.cwd / "tests.sh").write_text("true")
    assert "chmod +x" in spm("run", "api", "true", "--", "./tests.sh", code=2).stderr


# -- what goes wrong meanwhile


def test_a_service_that_dies_during_the_tests_is_told_at_once(
    spm: Spm, port: int, chains: Chains
) -> None:
    run = chains.begin("api", nasty("--port", port), *shell(f"{WAIT_FOR_GO}; exit 5"))
    lines: list[str] = []
    assert run.stderr
    reader = threading.Thread(target=lines.extend, args=(run.stderr,), daemon=True)
    os.kill(spm.service("api")["pid"], signal.SIGSEGV)
    seen: list[str] = []
    while not any(line.startswith("[WARN]") for line in seen):
        seen.append(run.stderr.readline())
        assert seen[-1], seen
    assert run.poll() is None, "the tests go on"
    assert "[WARN] api is not running: failed " in seen[-1]
    assert seen[-1].endswith("(killed by SIGSEGV); the tests go on\n")
    reader.start()
    (spm.cwd / "go").touch()
    assert run.wait(10) == 5
    reader.join(5)
    assert lines[-2] == "[ERROR] the tests failed: exit code 5\n"


def test_a_service_that_is_restarted_during_the_tests_is_told_too(spm: Spm) -> None:
    crash = "until test -e tested; do sleep 0.02; done; touch again; exit 7"
    line = f"echo I was up; test -e again || {{ {crash}; }}; exec sleep 100"
    asked = ("--ready", "log:up", "--restart", "on-failure", "--backoff", "1ms", "--shell", line)
    tests = "touch tested; until test -e again; do sleep 0.1; done; sleep 0.5"
    told = spm("run", "api", *asked, *shell(tests))
    assert told.stderr.count("[WARN]") == 1 and "the tests go on\n  | I was up\n" in told.stderr
    assert "[WARN] api ended: exit code 7 (restart 1 of 5 in" in told.stderr


def test_each_of_many_quick_restarts_is_told_once(spm: Spm) -> None:
    crash = "test $n -ge 5 || { echo $((n + 1)) > n; exit 7; }"
    wait = "until test -e tested; do sleep 0.02; done"
    line = f"echo I was up; n=$(cat n || echo 0); {wait}; {crash}; exec sleep 100"
    asked = ("--ready", "log:up", "--restart", "on-failure", "--backoff", "1ms", "--shell", line)
    tests = 'touch tested; until test "$(cat n)" = 5; do sleep 0.02; done; sleep 0.5'
    told = spm("run", "api", *asked, *shell(tests)).stderr
    assert re.findall(r"\[WARN\] api ended: exit code 7 \(restart (\d)", told) == [*"12345"]


def test_a_death_at_the_very_end_is_told_too(spm: Spm, port: int) -> None:
    # else a stop that comes before the kernel ends it is what is told
    kills = "kill -9 $(cat pids); while kill -0 $(cat pids) 2>&-; do sleep 0.01; done"
    command = nasty("--port", port, "--pids", spm.cwd / "pids", "--say", "I was up")
    done = spm("run", "api", command, *shell(f"{kills}; exit 1"), code=1)
    told = next(line for line in done.stderr.splitlines() if line.startswith("[WARN] api "))
    assert "killed by SIGKILL" in told, "by the last look, or by the stop that came too late"
    (spm.cwd / "pids").unlink()
    document = document_of(spm, "api", command, *shell(kills))
    service = document["services"][0]
    assert "killed by SIGKILL" in service["died"] and service["status"] == "failed"
    assert service["exit"]["signal"] == "SIGKILL" and service["stopped"] is False


# A module of that name is imported first: the lock of a Popen that is taken as Ctrl-C comes.
INTERRUPTS = """
import os, signal, subprocess, threading, types
class Lock:
    def __init__(self):
        self.lock, self.count = threading.Lock(), 0
    def acquire(self, *given):
        is_ours, self.count = self.lock.acquire(*given), self.count + 1
        if self.count == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return is_ours
    def release(self):
        self.lock.release()
    def __enter__(self):
        self.acquire()
    def __exit__(self, *_):
        self.release()
subprocess.threading = types.SimpleNamespace(**{**vars(threading), "Lock": Lock})
"""


def test_ctrl_c_while_its_tests_were_asked_whether_they_live_made_run_wait_for_ever(
    spm: Spm, port: int, chains: Chains
) -> None:
    (spm.base / "sitecustomize.py").write_text(INTERRUPTS)
    paths = [str(spm.base), *filter(None, [spm.env.get("PYTHONPATH")])]
    spm.env["PYTHONPATH"] = os.pathsep.join(paths)
    run = chains.begin("api", nasty("--port", port), *shell("touch up; sleep 0.5"))
    _, err = run.communicate(timeout=8)
    assert run.returncode == 130 and "interrupted by SIGINT; stopped: api" in err, err


def test_ctrl_c_reaches_the_tests_and_then_everything_stops(
    spm: Spm, port: int, chains: Chains
) -> None:
    script = "trap 'echo tidy; touch tidied; exit 0' INT; touch up; while :; do sleep 0.05; done"
    run = chains.begin("api", nasty("--port", port), *shell(script))
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=15)
    assert run.returncode == 130 and out == "tidy\n"
    assert err.endswith("[ERROR] interrupted by SIGINT; stopped: api\n" + AGAIN), err
    assert (spm.cwd / "tidied").exists() and stopped(spm, "api")


def test_a_second_ctrl_c_ends_tests_that_do_not_listen(spm: Spm, port: int, chains: Chains) -> None:
    deaf = "import signal, time; signal.signal(2, signal.SIG_IGN); open('up', 'w'); time.sleep(60)"
    run = chains.begin("api", nasty("--port", port), "--", sys.executable, "-c", deaf)
    began = time.monotonic()
    while run.poll() is None and time.monotonic() - began < 5:
        os.killpg(run.pid, signal.SIGINT)
        time.sleep(0.1)
    _, err = run.communicate(timeout=15)
    assert run.returncode == 130 and stopped(spm, "api"), err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_run_reaches_the_tests_and_then_everything_stops(
    spm: Spm, port: int, chains: Chains, name: str
) -> None:
    trap, loop = "trap 'touch $0; exit 0' TERM", "while :; do sleep 0.05; done"
    below = shlex.quote(f"{trap}; touch up; {loop}")  # what its first process started
    script = f"sh -c {below} below & {trap}; {loop}"
    run = chains.begin("api", nasty("--port", port), "--", "sh", "-c", script, "tidied")
    number = signal.Signals[name]
    run.send_signal(number)
    _, err = run.communicate(timeout=15)
    assert run.returncode == 128 + number
    assert err.endswith(f"[ERROR] interrupted by {name}; stopped: api\n{AGAIN}"), err
    assert (spm.cwd / "tidied").exists() and (spm.cwd / "below").exists()
    assert stopped(spm, "api")


def test_what_a_shell_ran_in_the_background_does_not_outlive_ctrl_c(
    spm: Spm, port: int, chains: Chains
) -> None:
    # such a job ignores SIGINT (POSIX, sh: asynchronous lists), and kept the caller's output open
    script = "trap 'sleep 0.3; exit 3' INT; sleep 987 & echo $! >job; touch up; wait"
    run = chains.begin("api", nasty("--port", port), *shell(script))
    job = int((spm.cwd / "job").read_text())
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=15)
    assert run.returncode == 130 and not is_running(job) and stopped(spm, "api")


def test_a_signal_to_run_alone_is_answered_at_once(spm: Spm, port: int, chains: Chains) -> None:
    run = chains.begin("api", nasty("--port", port), *shell(WAIT_FOR_GO))
    run.send_signal(signal.SIGINT)
    assert run.stderr
    told = next(line for line in run.stderr if "interrupted" in line)
    assert (
        told == "[INFO] interrupted by SIGINT: sh has 10 s to end, then the services are stopped\n"
    )
    assert run.poll() is None, "it waits for the tests"
    (spm.cwd / "go").touch()
    run.communicate(timeout=15)
    assert run.returncode == 130 and stopped(spm, "api")


@pytest.mark.parametrize("is_taken_back", [False, True])
def test_a_service_that_two_runs_use_lives_until_both_are_over(
    spm: Spm, port: int, chains: Chains, is_taken_back: bool
) -> None:
    words = ["api", nasty("--port", port)]
    first = chains.begin(*words, *shell(WAIT_FOR_GO))
    if is_taken_back:
        guard = spm.supervisor("api")
        os.kill(guard, signal.SIGKILL)
        eventually(lambda: not is_running(guard), what="its supervisor's end")
    second = chains.begin(*words, *shell(WAIT_FOR_GO.replace("up", "up2").replace("go", "go2")))
    eventually((spm.cwd / "up2").exists, what="the second's tests")
    pid = spm.service("api")["pid"]
    (spm.cwd / "go").touch()
    _, err = first.communicate(timeout=15)
    assert err.endswith("[OK] the tests passed; left to another run: api\n"), err
    eventually(lambda: spm.record("api")["owner"]["pid"] == second.pid, what="its next owner")
    assert (spm.service("api")["pid"], second.poll()) == (pid, None)
    (spm.cwd / "go2").touch()
    _, err = second.communicate(timeout=15)
    assert err.endswith("[OK] the tests passed; stopped: api\n"), err
    assert stopped(spm, "api")


def test_a_signal_while_it_waits_stops_what_was_started(
    spm: Spm, port: int, chains: Chains
) -> None:
    db = f"db={nasty('--port', port)}"
    run = spm.popen("run", "api", nasty(), "--with", db, *shell("touch tested"))
    eventually(lambda: spm.log("api") is not None and spm.home.exists() and _main(spm, "api"))
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=15)
    assert run.returncode == 143
    assert err.endswith("[ERROR] interrupted by SIGTERM; stopped: db, api\n" + AGAIN), err
    assert stopped(spm, "db", "api") and not (spm.cwd / "tested").exists()


def _main(spm: Spm, name: str) -> int:
    """The pid of a service that is or was running, 0 if there is none yet."""
    try:
        return int(spm.record(name)["main"]["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def test_nohup_is_respected(spm: Spm, port: int, chains: Chains) -> None:
    argv = spm.argv("run", "api", nasty("--port", port), *shell(WAIT_FOR_GO))
    line = f"trap '' HUP; exec {shlex.join(argv)}"
    run = subprocess.Popen(["sh", "-c", line], cwd=spm.cwd, env=spm.env, start_new_session=True)
    eventually((spm.cwd / "up").exists, what="the test command")
    os.killpg(run.pid, signal.SIGHUP)
    (spm.cwd / "go").touch()
    assert run.wait(10) == 0 and stopped(spm, "api")


def test_a_run_killed_leaves_no_service(spm: Spm, port: int, chains: Chains) -> None:
    spm("start", "db", nasty("--port", free_port()))
    with_db = ["--with", "db"]
    run = chains.begin("api", nasty("--port", port, "--child"), *with_db, *shell(WAIT_FOR_GO))
    tests = psutil.Process(run.pid).children()
    run.kill()
    run.wait(5)
    eventually(lambda: spm.service("api")["status"] == "stopped", 3.0, "the end of its service")
    assert f"its owner is gone: pid {run.pid} (run)" in spm.service("api")["why"]
    assert spm.service("db")["status"] == "running", "it was there before"
    (spm.cwd / "go").touch()
    eventually(lambda: not any(is_running(one.pid) for one in tests), what="the tests' end")
    spm("start", "api")
    assert spm.record("api")["owner"] is None
    spm("stop", "api", "db")


def test_a_test_command_that_cannot_be_executed_stops_everything(spm: Spm, port: int) -> None:
    (spm.cwd / "no-program").write_text("no first line")
    (spm.cwd / "no-program").chmod(0o755)
    done = spm("run", "api", nasty("--port", port), "--", "./no-program", code=2)
    assert "Exec format error; stopped: api\n  → give it a first line" in done.stderr
    assert stopped(spm, "api")


def test_with_nobody_reading_its_messages_everything_is_done_all_the_same(
    spm: Spm, port: int
) -> None:
    read, write = os.pipe()
    os.close(read)
    done = spm("run", "api", nasty("--port", port), *shell("exit 7"), stderr=write, code=None)
    os.close(write)
    assert done.returncode in (7, 141) and stopped(spm, "api")


def test_the_lease_of_a_run_is_its_process(spm: Spm) -> None:
    ask = [sys.executable, spm.program, "status", "web", "--json"]
    told = json.loads(spm("run", "web", "sleep 90", "--ready", "exec:true", "--", *ask).stdout)
    assert told["lease"] == str(told["owner"]["pid"])


def test_an_unquoted_command_of_a_run_was_sent_to_start_and_behind_its_tests(spm: Spm) -> None:
    for words in (["uvicorn", "main:app", "--port", "80", "x"], ["uvicorn", "--reload"]):
        told = spm("run", "api", *words, "--", "true", code=2).stderr
        assert "-- TESTS" in told and "start" not in told and "behind --: " not in told
        assert "quote the command: run api 'uvicorn " in told or 'run NAME "COMMAND' in told
    told = spm("run", "api", "uvicorn x", "--port", "80", "x", "--", "true", code=2).stderr
    assert 'one string is all of it: run api "COMMAND" with' in told


def test_run_told_of_a_service_by_its_name_in_lower_case(spm: Spm) -> None:
    said = spm("run", "Api", nasty("--say", "up"), "--ready", "log:up", "--", "false", code=1)
    assert "; stopped: Api\n" in said.stderr and "what Api wrote: logs Api" in said.stderr
