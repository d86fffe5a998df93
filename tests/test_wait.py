"""wait-healthy: healthy only when it is the service's own process that answers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import GENERIC, SCRIPT, VENDORED, Spm, eventually, free_port, nasty

from simple_process_manager import is_sound

SERVER = Path(__file__).with_name("rpc_server.py")


@pytest.mark.smoke
@pytest.mark.parametrize("target", ["name", "port"])
@pytest.mark.parametrize("family", [(), ("--ipv6",)])
def test_it_returns_when_the_service_answers(
    spm: Spm, port: int, target: str, family: tuple[str, ...]
) -> None:
    spm("start", "web", nasty("--port", port, "--slow", 0.3, *family))
    done = spm("wait-healthy", port if target == "port" else "web", 10)
    address = f"[::1]:{port}" if family else f"127.0.0.1:{port}"
    assert f"[OK] web answers on {address} after " in done.stdout
    data = spm.json("wait-healthy", "web")
    assert (data["port"], data["pid"]) == (port, spm.service("web")["pid"])
    spm("stop", "web")


def test_it_fails_at_once_when_the_service_dies(spm: Spm, port: int) -> None:
    spm("start", "web", nasty("--exit", 3, "--after", 0.3, "--say", "boom"), "--port", port)
    began = time.monotonic()
    failed = spm("wait-healthy", port, 30, code=1)
    assert time.monotonic() - began < 10
    assert "web is not running: failed" in failed.stderr and "exit code 3" in failed.stderr
    assert "  | boom\n  | last words\n" in failed.stderr
    error = spm.json("wait-healthy", "web", 30, code=1)["error"]
    assert error["exit"]["code"] == 3 and error["log_tail"] == ["boom", "last words"]


@pytest.mark.parametrize("target", ["name", "port"])
def test_what_was_being_stopped_was_healthy_as_long_as_it_answered(
    spm: Spm, port: int, target: str
) -> None:
    spm("start", "web", nasty("--port", port, "--ignore-term"), "--port", port, "--wait")
    with spm.popen("stop", "web", "--timeout", "1.5") as stop:
        eventually(lambda: spm.service("web")["status"] == "stopping", what="the stop")
        word = port if target == "port" else "web"
        late = spm("wait-healthy", word, 0.3, code=124).stderr
        assert "(web is stopping: stop was asked for; " in late and "see how it ends" in late
        over = spm("wait-healthy", word, 10, code=1).stderr
        assert "web is not running: stopped" in over and "start web" in over
        stop.communicate()


def test_it_fails_at_once_when_the_service_is_dead_already(spm: Spm, port: int) -> None:
    spm("start", "web", nasty("--signal", int(signal.SIGSEGV)), "--port", port)
    eventually(lambda: spm.service("web")["status"] == "failed", what="its end")
    for target in ("web", port):
        assert "killed by SIGSEGV" in spm("wait-healthy", target, 30, code=1).stderr


def test_a_process_killed_without_its_supervisor_is_noticed_too(spm: Spm, port: int) -> None:
    spm("start", "web", nasty(), "--port", port)
    pid = spm.service("web")["pid"]
    spm.kill_supervisor("web")
    wait = spm.popen("wait-healthy", "web", "30")
    eventually(lambda: wait.poll() is None, what="the wait")
    os.kill(pid, signal.SIGKILL)
    _, stderr = wait.communicate(timeout=5)
    assert wait.returncode == 1 and "its end was not seen" in stderr


def test_somebody_elses_listener_is_never_healthy(spm: Spm, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        spm("start", "web", nasty(), "--port", port, "--force")
        began = time.monotonic()
        failed = spm("wait-healthy", port, 1, code=5)
        assert time.monotonic() - began >= 1
        assert f"pid {os.getpid()} (" in failed.stderr and os.getcwd() in failed.stderr
        assert "left running" in failed.stderr
        assert spm.json("wait-healthy", "web", 1, code=5)["error"]["kind"] == "port_conflict"
    spm("stop", "web")


def test_who_lost_its_port_to_another_service_was_told_to_end_a_process(
    spm: Spm, port: int
) -> None:
    spm("start", "first", nasty("--port", port), "--wait")
    other = free_port()  # as vite does: the next one, and goes on
    script = f"exec {nasty('--port', other)}"
    spm("start", "vite", "--port", port, "--force", "--", "sh", "-c", script)
    eventually(lambda: spm("port", other, code=None).returncode == 5, what="its own listener")
    failed = spm("wait-healthy", "vite", 0.5, code=5).stderr
    assert f"is alive and left running (it listens on {other})\n" in failed
    assert "  → stop first, or give vite another port; or go on with the one it took" in failed
    assert f"the one it took: wait-healthy {other}\n" in failed
    assert "service vite of this home answers there" in spm("wait-healthy", other, 5).stdout
    spm("stop", "vite")
    options = ("--port", port, "--force", "--timeout", "2s", "--", "true")
    told = spm("run", "again", script, "--shell", *options, code=5).stderr
    assert told.endswith("  → stop first, or give again another port\n"), "it was stopped"
    spm("stop", "first")


def test_a_port_that_somebody_else_has_was_taken_for_the_first_one_it_waits_for(
    spm: Spm, port: int
) -> None:
    spm("start", "other", nasty("--port", port), "--wait")
    own = free_port()
    checks = ("--ready", f"tcp:{own}", "--ready", f"tcp:{port}")
    spm("start", "web", nasty("--port", own), *checks)
    error = spm.json("wait-healthy", "web", "500ms", code=5)["error"]
    assert error["message"].startswith(f"port {port} isn't web's") and error["port"] == port
    assert error["advice"].startswith("stop other, or give web another port")
    spm("stop", "other", "web")


def test_it_goes_on_waiting_while_a_stranger_answers(spm: Spm, port: int) -> None:
    stranger = socket.create_server(("127.0.0.1", port))
    script = f"sleep 1; exec {nasty('--port', port)}"
    spm("start", "web", "--shell", script, "--port", port, "--force")
    wait = spm.popen("wait-healthy", "web", "15")
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 0.5, what="half a second to pass")
    stranger.close()
    stdout, stderr = wait.communicate(timeout=20)
    assert wait.returncode == 0, stderr
    assert "web answers" in stdout
    spm("stop", "web")


def test_a_child_that_listens_is_the_service(spm: Spm, port: int) -> None:
    spm("start", "web", "--shell", f"{nasty('--port', port)} & wait")
    done = spm.json("wait-healthy", port, 10)
    assert done["name"] == "web" and done["pid"] != spm.service("web")["pid"]
    spm("stop", "web")


def test_without_a_known_port_any_port_it_listens_on_will_do(spm: Spm, port: int) -> None:
    program = f"import runpy, sys; sys.argv[1:] = ['--port', '{port}']; runpy.run_path('NASTY')"
    program = program.replace("NASTY", str(nasty().split()[2]).replace("'", ""))
    spm(
        "start",
        "web",
        "--",
        sys.executable,
        "-c",
        program.replace("run_path(", "run_path(run_name='__main__', path_name="),
    )
    assert spm.service("web")["port"] is None
    assert spm.json("wait-healthy", "web", 10)["port"] == port
    way = f"(pid {spm.service('web')['pid']}; declare that with --port {port})\n"
    told = spm("wait-healthy", port, 10).stdout
    assert told.endswith(f"; service web of this home answers there {way}")
    spm("stop", "web")


def test_the_timeout_is_124_with_what_was_tried_and_leaves_it_running(spm: Spm, port: int) -> None:
    spm("start", "web", nasty("--say", "not listening"), "--port", port)
    failed = spm("wait-healthy", "web", "700ms", code=124)
    assert "127.0.0.1: connection refused, ::1: connection refused" in failed.stderr
    assert "alive and left running" in failed.stderr and "  | not listening" in failed.stderr
    assert spm.service("web")["status"] == "running"
    assert spm.json("wait-healthy", "web", "0.1", code=124)["error"]["retryable"] is True
    spm("stop", "web")


def test_a_port_that_nobody_here_claims_is_simply_waited_for(spm: Spm, port: int) -> None:
    spm.forget_home()
    told = spm("wait-healthy", port, "0.2", code=124).stderr
    assert f"port {port} didn't answer in 0.20 s (127.0.0.1: connection refused, ::1:" in told
    with socket.create_server(("127.0.0.1", port)):
        who = f"no service here claims this port: pid {os.getpid()} ("
        assert who in spm("wait-healthy", port, 5).stdout
        (warning,) = spm.json("wait-healthy", port, 5)["warnings"]
        assert warning.startswith(f"port {port}: {who}"), "its pid is null, and nothing said why"
    with socket.create_server(("::1", port), family=socket.AF_INET6):
        assert f"[::1]:{port}" in spm("wait-healthy", port, 5).stdout
    assert not spm.home.exists()


def test_a_stopped_service_no_longer_claims_its_port(spm: Spm, port: int) -> None:
    spm("start", "web", nasty("--port", port))
    spm("stop", "web")
    told = spm("wait-healthy", "web", 5, code=1).stderr
    assert "\n  → it was stopped (stop was asked for): start web\n" in told
    with socket.create_server(("127.0.0.1", port)):
        assert "no service here claims" in spm("wait-healthy", port, 5).stdout


@pytest.mark.parametrize("timeout", ["0", "-1", "inf", "nan", "soon", "1e400", "9" * 400])
def test_a_bad_timeout_is_exit_2(spm: Spm, timeout: str) -> None:
    done = spm("wait-healthy", 8000, f"{timeout}", code=2)
    assert done.stderr.startswith("[ERROR] ")


@pytest.mark.parametrize("target", ["0", "65536", "99999999999", "a/b"])
def test_a_bad_target_is_exit_2_and_an_unknown_name_3(spm: Spm, target: str) -> None:
    spm("wait-healthy", target, 1, code=2)
    spm("wait-healthy", "nobody", 1, code=3)
    for words in (("localhost:80",), (8000, "localhost:80")):
        assert "→ write 80 or http://localhost:80/" in spm("wait-healthy", *words, code=2).stderr


@pytest.mark.parametrize(
    ("target", "advice"),
    [
        ("redis://localhost:6379", "write 6379 or http://localhost:6379/"),
        ("ftp://there:21/", "write http://there:21/"),
        ("http://localhost:99999/", "write http://HOST:PORT/, the port from 1 to 65535"),
        ("localhost:99999", "write http://HOST:PORT/, the port from 1 to 65535"),
    ],
)
def test_the_advice_for_an_address_that_is_none_named_another_that_is_none(
    spm: Spm, target: str, advice: str
) -> None:
    assert spm("wait-healthy", target, code=2).stderr.endswith(f"\n  → {advice}\n")


def test_waiting_by_name_renews_last_active(spm: Spm, port: int) -> None:
    spm("start", "web", nasty("--port", port))
    before = spm.record("web")["last_active"]
    spm("wait-healthy", "web", 10)
    assert spm.record("web")["last_active"] > before
    spm("stop", "web")


def test_a_connection_to_itself_is_nobody_answering() -> None:
    import simple_process_manager

    with socket.socket() as probe:  # a free port of the ephemeral range
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.monotonic()
    tries = 0
    while time.monotonic() - began < 0.5:
        tries += 1
        address, seen = simple_process_manager.probe_tcp(port)
        assert address is None, f"try {tries}: {seen}"


def test_the_lines_of_steering_documents_work_unchanged(spm: Spm) -> None:
    (spm.cwd / "main.py").write_text(
        "async def app(scope, receive, send):\n"
        "    assert scope['type'] == 'http'\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': b'ok'})\n"
    )
    port = free_port()
    spm.env["PATH"] = f"{os.path.dirname(sys.executable)}{os.pathsep}{spm.env['PATH']}"
    spm("start", "api", f"uvicorn main:app --host 0.0.0.0 --port {port}")
    spm("wait-healthy", port, 30)
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b"200 OK" in client.recv(4096)
    assert f"port {port} is free" in spm("stop", "api").stdout


def test_a_service_that_listens_on_another_port_is_told_so(spm: Spm, port: int) -> None:
    other = free_port()
    way = f"declare --port {other}, or write {{port}} instead of {other} there\n"
    told = f"[WARN] port {port} is declared, but the command names {other}: {way}"
    assert spm("start", "web", "--shell", nasty("--port", other), "--port", port).stderr == told
    spm("wait-healthy", other, 10)
    failed = spm("wait-healthy", "web", "0.2", code=124).stderr
    assert f"it listens on {other}" in failed and failed.endswith(f": {way}")
    spm("stop", "web")


def test_whose_port_it_was_is_told_when_nobody_answers(spm: Spm, port: int) -> None:
    spm("start", "api", "sleep 100", "--port", port)
    spm("stop", "api")
    assert "→ start api, whose port it is\n" in spm("wait-healthy", port, "100ms", code=124).stderr
    elsewhere = f"http://127.0.0.2:{port}/"
    assert "whose port" not in spm("wait-healthy", elsewhere, "100ms", code=124).stderr


def test_a_service_that_answered_otherwise_was_said_not_to_answer_by_its_port(
    spm: Spm, port: int
) -> None:
    serve = "from http.server import *; HTTPServer(('127.0.0.1', {}), {}).serve_forever()"
    code = serve.format(port, "SimpleHTTPRequestHandler")
    spm("start", "site", "--", sys.executable, "-c", code)
    spm("wait-healthy", port, 10)
    for words in ((f"http://127.0.0.1:{port}/nosuch",), (port, "--http", "/nosuch")):
        told = spm("wait-healthy", words[0], "0.2", *words[1:], code=124).stderr
        assert "didn't answer as expected in 0.20 s (" in told and "start one" not in told
        why = "status 404 is an answer: are path and --expect right? service site of this home"
        assert f"  → {why} answers there (pid {spm.service('site')['pid']}; declare" in told
    spm("stop", "site")


def test_a_second_port_that_is_taken_for_the_time_is_told(spm: Spm, port: int) -> None:
    note = "[INFO] {0} is the time to wait ({1}); for two ports: wait-healthy {2} {0} 30s\n"
    with socket.create_server(("127.0.0.1", port)):
        told = spm("wait-healthy", port, 8001).stderr
        assert told == note.format(8001, "2 h 13 m", port)
        assert spm.json("wait-healthy", port, 1024)["port"] == port
        for time_ in ("1023", "8001s", "30"):
            assert not spm("wait-healthy", port, time_).stderr


def test_an_expected_status_of_what_is_not_asked_by_http_was_ignored(spm: Spm, port: int) -> None:
    spm("start", "web", nasty("--port", port))
    for word in ("web", port):
        told = spm("wait-healthy", word, "--expect", "404", code=2).stderr
        assert "[ERROR] --expect: nothing here is asked by http\n  → add --http PATH\n" in told
    spm("stop", "web")


def test_what_has_no_port_was_advised_to_notify_alone_even_if_it_was_stopped(spm: Spm) -> None:
    spm("start", "quiet", "sleep 99")
    told = spm("wait-healthy", "quiet", "0.1", code=124).stderr
    for way in ("notify quiet ready", "--ready exec:", "wait-healthy quiet --log REGEX"):
        assert way in told
    pid = spm.service("quiet")["pid"]
    os.kill(pid, signal.SIGSTOP)
    told = spm("wait-healthy", "quiet", "0.1", code=124).stderr
    assert f"  → it is stopped (SIGSTOP): continue it with kill -CONT {pid}\n" in told
    spm("stop", "quiet")


def test_who_waits_for_what_went_into_the_background_is_told_how_to_start_it(spm: Spm) -> None:
    # "a command that returns by itself needs no start", though its daemon ran
    spm("start", "api", "--shell", "sleep 100 & exit 0")
    told = spm("wait-healthy", "api", 10, code=1).stderr
    advice = "start api --type forking --shell 'sleep 100 & exit 0'"
    assert f"→ it went into the background: {advice}; or have it stay in the for" in told, told
    spm("start", "api", "--type", "forking", "--shell", "sleep 100 & exit 0")
    spm("wait-healthy", "api", 0.2, code=124)
    spm("stop", "api")


def test_who_ends_well_or_in_silence_is_told_what_that_means(spm: Spm) -> None:
    spm("start", "once", "true")
    told = spm("wait-healthy", "once", 10, code=1).stderr
    assert "a command that returns by itself needs no start" in told and "--type forking" in told
    assert "mend the cause" not in told
    spm("start", "mute", "false")
    told = spm("wait-healthy", "mute", 10, code=1).stderr
    assert "→ see whether it has a log file of its own, " in told
    assert spm.json("status", "mute", code=3)["cause"]["advice"] in told
    spm("start", "big", "--", sys.executable, "-c", "print('a' * 300000); exit(1)")
    failed, line = spm("wait-healthy", "big", 10, code=1), "a" * 500 + "… 299500 more characters"
    assert f"  | {line}\n" in failed.stderr and len(failed.stderr) < 2000
    assert spm.json("wait-healthy", "big", 10, code=1)["error"]["log_tail"] == [line]
    assert "a" * 300000 in spm("logs", "big").stdout


lean = pytest.mark.skipif(
    VENDORED or sys.version_info < (3, 10),
    reason="Python 3.9 doesn't tell its options; a vendored copy has nothing to let go of",
)


@lean
@pytest.mark.parametrize("harm", ["", "cut off", "header", "in the way"])
def test_a_long_wait_of_the_copied_file_lets_go_of_its_source(
    spm: Spm, port: int, harm: str
) -> None:
    # its syntax tree, some 30 MB, would have to be given back at the very end of the wait
    wait, whole = lean_wait(spm, port)
    if harm:
        wait.kill()
        wait.communicate()
        data = whole.read_bytes()
        whole.write_bytes(data[:9999] if harm == "cut off" else b"\0" + data[1:])
        wait = lean_wait(spm, port)[0]
        assert is_sound(str(whole))
    if harm == "in the way":  # then it stays as it is, and works all the same
        wait.kill()
        wait.communicate()
        whole.unlink()
        whole.mkdir()
        wait = spm.popen("wait-healthy", port, "20", "--json")
    with socket.create_server(("127.0.0.1", port)):
        out, err = wait.communicate(timeout=20)
    assert (json.loads(out)["port"], err, wait.returncode) == (port, "", 0)


@lean
def test_what_lasts_lets_go_of_its_source_and_still_starts_services(spm: Spm) -> None:
    # an editor keeps a connection to each server all day long; the first one starts it
    spm.program = SCRIPT
    shutil.rmtree(spm.home / "cache")  # nothing is compiled yet: the source has to be found
    server = {"type": "stdio", "command": [sys.executable, str(SERVER)]}
    config = {"version": 1, "services": {"rpc": server, "api": {"command": "sleep 100"}}}
    (spm.cwd / "spm.json").write_text(json.dumps(config))
    connection = spm.popen("connect", "rpc", stdin=subprocess.PIPE)
    eventually(lambda: whole_of(connection.pid), 30, "the connection")
    out, err = connection.communicate('{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n', 20)
    assert (json.loads(out)["id"], connection.returncode) == (1, 0), err
    watch = spm.popen("up", "--watch")
    eventually(lambda: " running " in spm("list").stdout, what="the other service")
    assert whole_of(watch.pid) and "SPM_LEAN" not in environ_of(spm.service("api")["pid"])
    watch.send_signal(signal.SIGINT)
    watch.communicate(timeout=20)
    spm("cleanup")


def environ_of(pid: int) -> dict[str, str]:
    """The environment of a process."""
    return dict(psutil.Process(pid).environ())


def test_a_wait_that_a_debugger_runs_stays_as_it_is(spm: Spm, port: int) -> None:
    # what lies outermost there is another program, and must not be kept as ours
    run = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    words = [sys.executable, "-c", run, "wait-healthy", str(port), "1"]
    done = subprocess.run(words, env=spm.env, cwd=spm.cwd, capture_output=True, text=True)
    assert done.returncode == 124 and "didn't answer" in done.stderr
    assert not list(spm.home.glob("cache/*/*-whole.pyc"))


@lean
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_long_wait_says_so(spm: Spm, port: int, number: int, code: int) -> None:
    for pause_s in (0.0, 0.02, 0.5):  # in the first ones Python itself just begins
        wait = lean_wait(spm, port)[0]
        with contextlib.suppress(subprocess.TimeoutExpired):
            wait.wait(pause_s)
        wait.send_signal(number)
        out, err = wait.communicate(timeout=20)
        assert (json.loads(out)["error"]["kind"], err, wait.returncode) == ("interrupted", "", code)


def lean_wait(spm: Spm, port: int) -> tuple[subprocess.Popen[str], Path]:
    """A wait that went on from bytecode, and that."""
    spm.program = SCRIPT
    wait = spm.popen("wait-healthy", port, "60", "--json")
    return wait, Path(eventually(lambda: whole_of(wait.pid), 30, "the wait"))  # it is compiled


def whole_of(pid: int) -> str:
    """What it was compiled to, if it runs from that."""
    return next((word for word in psutil.Process(pid).cmdline() if "-whole.pyc" in word), "")


def test_a_path_for_a_url_that_has_one_is_refused(spm: Spm, port: int) -> None:
    told = spm("wait-healthy", f"http://localhost:{port}/", "--http", "/health", code=2)
    assert "write the path into it" in told.stderr
    assert f"http://localhost:{port}/\n" in spm("wait-healthy", f":{port}", code=2).stderr


HEADLESS = """
import ctypes, socket, sys, threading, time
def serve():
    server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    time.sleep(100)
threading.Thread(target=serve).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.mark.skipif(sys.platform != "linux" or GENERIC, reason="its ports are seen by /proc")
def test_the_port_of_a_program_whose_first_thread_has_ended_was_somebody_elses(
    spm: Spm, port: int
) -> None:
    (spm.cwd / "headless.py").write_text(HEADLESS)
    spm("start", "web", f"{sys.executable} headless.py {port}", "--port", port)
    assert "web answers on" in spm("wait-healthy", "web", 5).stdout
    spm("stop", "web")


# What a module of that name says is done before the program: here as its last act.
LAST_LOOK = """
import gc, os
leave = os._exit
def left(code):
    gc.collect()
    leave(code)
os._exit = left
"""


def test_who_had_waited_left_its_connection_to_the_garbage_collector(spm: Spm, port: int) -> None:
    # with warnings shown a collection in the wrong moment printed "Exception ignored in: <socket…"
    (spm.base / "sitecustomize.py").write_text(LAST_LOOK)
    paths = [str(spm.base), *filter(None, [spm.env.get("PYTHONPATH")])]
    spm.env.update(PYTHONPATH=os.pathsep.join(paths), PYTHONWARNINGS="always::ResourceWarning")
    services = {"web": {"command": nasty("--port", port), "ready": "tcp", "port": port}}
    (spm.cwd / "spm.json").write_text(json.dumps({"services": services}))
    for words in (
        ("start", "web", "--wait"),
        ("wait-healthy", "web", "5s"),
        ("wait-healthy", port, "5s"),
        ("restart", "web"),
        ("stop", "web"),
        ("up", "--wait", "5s"),
        ("run", "web", "--", "true"),
        ("down",),
    ):
        told = spm(*words).stderr
        assert "ResourceWarning" not in told, (words, told)


def test_what_up_had_waited_for_never_became_idle_while_up_watched(spm: Spm, port: int) -> None:
    service = {"command": nasty("--port", port), "ready": "tcp", "idle_timeout": "1500ms"}
    (spm.cwd / "spm.json").write_text(json.dumps({"services": {"web": {**service, "port": port}}}))
    watch = spm.popen("up", "--watch", "--wait", "5s")
    assert watch.stdout and "is up (start: 1)" in watch.stdout.readline()
    eventually(lambda: spm.service("web")["status"] == "stopped", 8, "its idle end")
    watch.send_signal(signal.SIGINT)
    watch.communicate(timeout=10)
