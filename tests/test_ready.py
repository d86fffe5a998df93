"""Readiness and liveness: a service is ready when what was declared holds, and says so."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Spm, eventually, free_port, is_running, nasty
from hypothesis import given
from hypothesis import strategies as st

import simple_process_manager as program

SERVER = """
import http.server, os, ssl, sys, threading, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name, _, where = open("answer").read().strip().partition(" ")
        code = int(name if self.path != "/ok" else 200)
        self.send_response(code)
        if where:
            self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
if len(sys.argv) > 2:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2])
    server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


def answer(spm: Spm, text: str) -> None:
    """What the server of the test answers from now on: a status, and where it redirects to."""
    (spm.cwd / "answer.new").write_text(text)
    os.replace(spm.cwd / "answer.new", spm.cwd / "answer")


def server(spm: Spm, port: int, *more: object) -> str:
    (spm.cwd / "server.py").write_text(SERVER)
    return f"{sys.executable} server.py {port} {' '.join(map(str, more))}"


def events(spm: Spm, name: str) -> list[tuple[str, str]]:
    """The events of a service with their reasons."""
    return [(one["event"], one["why"]) for one in spm.json("status", name)["events"]]


def status(spm: Spm, name: str, expected: str) -> None:
    eventually(lambda: spm.service(name)["status"] == expected, what=f"{name} {expected}")


# -- values


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("tcp", ("tcp", "", "", None)),
        ("tcp:8000", ("tcp", "", "", 8000)),
        ("http", ("http", "/", "", None)),
        ("http:/health?a=b", ("http", "/health?a=b", "", None)),
        ("http:health", ("http", "/health", "", None)),
        ("http://localhost", ("http", "/", "localhost", 80)),
        ("https://[::1]:8443/x#y", ("https", "/x", "::1", 8443)),
        ("http://0.0.0.0:8000/", ("http", "/", "localhost", 8000)),
        ("http://10.0.0.1:81?q", ("http", "/?q", "10.0.0.1", 81)),
        ("log:ready in \\d+ ms", ("log", "ready in \\d+ ms", "", None)),
        ("exec:pg_isready -q", ("exec", "pg_isready -q", "", None)),
    ],
)
def test_a_check_is_read_from_its_text(text: str, check: tuple[object, ...]) -> None:
    assert program.parse_check(text) == program.Check._make(check)


BAD = (
    "",
    "udp",
    "tcp:",
    "tcp:0",
    "tcp:x",
    "log:",
    "log:(",
    "exec:",
    "exec: ",
    "ftp://x",
    "http://",
)
EVIL = ("http://user:pw@x/", "http:/a b", "http:/a\r\nX: y", "http://x:70000/", "TCP", "8000")


@pytest.mark.parametrize("text", [*BAD, *EVIL])
def test_a_bad_check_is_exit_2(text: str) -> None:
    with pytest.raises(program.UsageError):
        program.parse_check(text)


@given(text=st.text())
def test_any_text_is_a_check_or_a_usage_error(text: str) -> None:
    for kind in ("", "http:", "http://", "log:", "tcp:"):
        try:
            program.parse_check(kind + text)
        except program.UsageError:
            continue


def test_expected_statuses_are_codes_and_ranges() -> None:
    assert program.parse_expect("200, 204,300-399") == "200, 204,300-399"
    good = [code for code in range(100, 600) if program.is_expected(code, "200,204,300-302")]
    assert good == [200, 204, 300, 301, 302]
    for text in ("", "20", "200-", "600", "ok", "200,,204"):
        with pytest.raises(program.UsageError):
            program.parse_expect(text)


def test_bad_values_of_the_options_are_exit_2_and_start_nothing(spm: Spm) -> None:
    for option in ("--ready=log:(", "--health=maybe", "--expect=fine", "--health-interval=0"):
        spm("start", "web", nasty(), option, code=2)
    spm("start", "web", "--ready", "tcp", code=2)  # the command is missing
    spm("wait-healthy", "web", code=3)


@pytest.mark.parametrize(
    ("words", "wait_s", "command"),
    [
        (["--wait", "sleep 1"], 30.0, ["sleep 1"]),
        (["--wait", "5s", "sleep 1"], 5.0, ["sleep 1"]),
        (["--wait=2m", "sleep 1"], 120.0, ["sleep 1"]),
        (["sleep 1", "--wait"], 30.0, ["sleep 1"]),
        (["sleep 1", "--wait", "500ms"], 0.5, ["sleep 1"]),
        (["sleep 1"], None, ["sleep 1"]),
        (["--wait"], 30.0, []),
    ],
)
def test_wait_takes_a_duration_but_never_the_command(
    words: list[str], wait_s: float | None, command: list[str]
) -> None:
    args = program.parse(["start", "api", *words])[1]
    assert (args.wait, args.command) == (wait_s, command)


@given(
    phase=st.sampled_from([*program.LIVE_PHASES, *program.ENDED_PHASES]),
    is_ok=st.booleans(),
    failures=st.integers(0, 9),
    retries=st.integers(1, 9),
)
def test_a_probe_changes_the_phase_of_what_runs_only(
    phase: str, is_ok: bool, failures: int, retries: int
) -> None:
    after = program.phase_after(phase, is_ok, failures, retries)
    if phase not in ("running", "ready", "unhealthy"):
        assert after == phase
    else:
        assert after == phase or after in program.NEXT_PHASES[phase]
        assert after == ("ready" if is_ok else "unhealthy" if failures >= retries else phase)


# -- start --wait and wait-healthy


@pytest.mark.smoke
def test_start_with_wait_returns_when_every_check_holds(spm: Spm, port: int) -> None:
    began = time.monotonic()
    done = spm.json(
        *("start", "web", nasty("--port", port, "--slow", 0.5, "--say", "up")),
        *("--ready", "http", "--ready", "log:^up$", "--ready", "exec:test -n $PORT", "--wait"),
    )
    assert time.monotonic() - began >= 0.5
    assert (done["name"], done["status"], done["port"]) == ("web", "ready", port)
    assert spm.service("web")["status"] == "ready", "as soon as the wait is over"
    assert len(done["seen"]) == 3 and f"http://localhost:{port}/: status 200" in done["seen"]
    assert [name for name, _ in events(spm, "web")] == ["started", "ready"]
    again = spm("start", "web", "--wait", "5s").stdout
    assert "web already running" in again and "web is ready after" in again
    spm("wait-healthy", port, 5)
    spm("stop", "web")


def test_start_with_wait_has_the_answers_of_wait_healthy(spm: Spm, port: int) -> None:
    late = spm("start", "late", nasty(), "--port", port, "--wait", "300ms", code=124)
    assert "late started" in late.stdout and "connection refused" in late.stderr
    dead = spm("start", "dead", nasty("--exit", 3, "--after", 0.2), "--wait", code=1)
    assert "exit code 3" in dead.stderr and "  | last words" in dead.stderr
    assert spm.json("start", "late", "--wait", "0.2", code=124)["error"]["kind"] == "timeout"
    spm("stop", "late")


def test_the_supervisor_makes_it_ready_without_anybody_waiting(spm: Spm, port: int) -> None:
    spm("start", "web", nasty("--port", port, "--slow", 0.3), "--ready", "tcp")
    assert spm.service("web")["status"] == "running"
    status(spm, "web", "ready")
    spm.kill_supervisor("web")
    assert spm.service("web")["status"] == "running"
    spm("start", "web")
    status(spm, "web", "ready")
    assert [name for name, _ in events(spm, "web")] == ["started", "ready", "adopted", "ready"]
    spm("stop", "web")


def test_without_checks_there_is_no_thread_and_no_other_status(spm: Spm, port: int) -> None:
    spm("start", "web", nasty("--port", port))
    spm("wait-healthy", "web", 10)
    assert spm.service("web")["status"] == "running"
    assert psutil.Process(spm.supervisor("web")).num_threads() == 1
    spm("stop", "web")


def test_several_targets_are_waited_for_within_one_timeout(spm: Spm, port: int) -> None:
    ports = [port, free_port(), free_port()]
    spm("start", "a", nasty("--port", ports[0], "--slow", 0.4))
    spm("start", "b", nasty("--port", ports[1], "--slow", 0.4))
    with socket.create_server(("127.0.0.1", ports[2])):
        done = spm("wait-healthy", "a", "b", ports[2], "10")
        assert done.stdout.count("[OK] ") == 3 and "no service here claims" in done.stdout
        url = f"http://127.0.0.1:{ports[0]}/"
        data = spm.json("wait-healthy", "b", url)
        assert [one["name"] for one in data["targets"]] == ["b", "a"]
    late = spm("wait-healthy", "a", ports[2], "300ms", code=124)
    assert f"port {ports[2]} didn't answer" in late.stderr and "a did" not in late.stderr
    spm("wait-healthy", "a", "nobody", code=2)
    began = time.monotonic()
    spm("start", "c", nasty("--exit", 4, "--after", 0.3))
    assert "c is not running" in spm("wait-healthy", "a", ports[2], "c", 30, code=1).stderr
    assert time.monotonic() - began < 5
    spm("stop", "a", "b")


def test_a_restart_during_the_wait_is_followed(spm: Spm, port: int) -> None:
    second = free_port()
    slow = "trap 'sleep .4; exit' TERM; while :; do sleep 60 & wait; done"
    spm("start", "web", "--shell", slow, "--port", port)
    wait = spm.popen("wait-healthy", "web", "20")
    spm("start", "web", nasty("--port", second), "--port", second, "--replace", "--log-size=2MB")
    stdout, stderr = wait.communicate(timeout=30)
    assert wait.returncode == 0, stderr
    assert f"127.0.0.1:{second}" in stdout
    spm("stop", "web")


def test_a_hung_supervisor_does_not_use_up_the_time(spm: Spm, port: int) -> None:
    spm("start", "web", nasty("--port", port))
    spm("wait-healthy", "web", 10)
    guard = spm.supervisor("web")
    os.kill(guard, signal.SIGSTOP)
    try:
        began = time.monotonic()
        spm("wait-healthy", "web", 5)
        assert time.monotonic() - began < program.HUNG_S
    finally:
        os.kill(guard, signal.SIGCONT)
    spm("stop", "web")


def test_progress_is_one_line_on_a_terminal_and_nothing_elsewhere(spm: Spm, port: int) -> None:
    spm("start", "web", nasty(), "--port", port)
    failed = spm("wait-healthy", "web", "300ms", code=124)
    assert "waiting for" not in failed.stderr
    master, slave = pty.openpty()
    wait = spm.popen("wait-healthy", "web", "500ms", stderr=slave)
    os.close(slave)
    shown = b""
    try:
        while b"did not become healthy" not in shown:
            shown += os.read(master, 4096)
    finally:
        wait.communicate(timeout=10)
        os.close(master)
    line = f"waiting for web: port {port}: 127.0.0.1: connection refused"
    assert line in shown.decode() and "of 0.50 s)" in shown.decode()
    assert b"\n" not in shown.partition(b"[")[0]
    spm("stop", "web")


# -- whose listener it is


def test_a_foreign_listener_on_the_other_loopback_is_not_the_service(spm: Spm, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        spm(
            "start",
            "web",
            nasty("--port", port, "--ipv6", "--slow", 0.3),
            "--port",
            port,
            "--force",
        )
        done = spm("wait-healthy", "web", 10)
        assert f"web answers on [::1]:{port} after" in done.stdout
        failed = spm("wait-healthy", f"http://127.0.0.1:{port}/", "500ms", code=5)
        assert f"pid {os.getpid()} (" in failed.stderr
        for host in ("[::1]", "localhost"):
            done = spm("wait-healthy", f"http://{host}:{port}", 5)
            assert f"http://{host}:{port}/: status 200" in done.stdout
    spm("stop", "web")


def test_an_http_server_on_ipv6_only(spm: Spm, port: int) -> None:
    command = f"{sys.executable} -m http.server {port} --bind ::1"
    spm("start", "web", command, "--ready", "http", "--wait", "20s")
    assert spm.json("wait-healthy", port, 5)["address"] == "::1"
    spm("stop", "web")


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_a_listener_on_every_address_is_reached_on_loopback(
    spm: Spm, port: int, address: str
) -> None:
    spm("start", "web", f"{sys.executable} -m http.server {port} --bind {address}", "--wait", "20s")
    spm("stop", "web")


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="127.0.0.2 is Linux's alone")
def test_each_of_two_checks_finds_a_server_off_loopback(spm: Spm, port: int) -> None:
    server = f"{sys.executable} -m http.server {port} --bind 127.0.0.2"
    checks = ("--ready=tcp", "--health=tcp", "--health=http:/", "--health-interval=20ms")
    spm("start", "web", server, *checks, "--health-retries=2")
    spm("wait-healthy", "web", 10)
    wait = "until grep -c GET output.log | grep -q ..; do sleep 0.05; done"  # ten looks
    subprocess.run(["sh", "-c", wait], cwd=spm.home / "services" / "web", timeout=20, check=True)
    assert "unhealthy" not in spm("events", "web").stdout
    assert spm.service("web")["status"] == "ready"
    spm("cleanup")


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="127.0.0.2 is Linux's alone")
def test_a_service_on_another_address_is_probed_there(spm: Spm, port: int) -> None:
    spm("start", "web", f"{sys.executable} -m http.server {port} --bind 127.0.0.2", "--ready=http")
    assert spm.json("wait-healthy", "web", 10)["address"] == "127.0.0.2"
    spm("stop", "web")


def test_uvicorn_with_reload_is_ready_by_http(spm: Spm, port: int) -> None:
    (spm.cwd / "main.py").write_text(
        "async def app(scope, receive, send):\n"
        "    assert scope['type'] == 'http'\n"
        "    await send({'type': 'http.response.start', 'status': 204, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': b''})\n"
    )
    command = f"{sys.executable} -m uvicorn main:app --reload --port {port}"
    done = spm.json("start", "api", command, "--ready", "http:/x", "--expect", "204", "--wait")
    assert done["seen"] == [f"http://localhost:{port}/x: status 204"]
    spm("stop", "api")


# -- http


def test_what_lost_its_supervisor_was_said_to_wait_for_a_check_that_holds(
    spm: Spm, port: int
) -> None:
    answer(spm, "200")
    spm("start", "web", server(spm, port), "--port", port, "--ready", "http:/health", "--wait")
    os.kill(spm.supervisor("web"), signal.SIGKILL)
    assert spm.json("explain", "web")["waits_for"] == []
    spm("stop", "web")


def test_a_status_that_fails_and_then_is_good(spm: Spm, port: int) -> None:
    answer(spm, "503")
    spm("start", "web", server(spm, port), "--port", port, "--ready", "http:/health")
    eventually(lambda: program.probe_tcp(port)[0], what="its port")
    failed = spm("wait-healthy", "web", "500ms", code=124)
    seen = f"http://localhost:{port}/health: status 503"
    assert seen in failed.stderr
    assert "status 503 is an answer: are path and --expect right? Or read logs" in failed.stderr
    assert spm.json("explain", "web")["waits_for"] == [f"http:/health: {seen}, expected 200-399"]
    assert spm.service("web")["status"] == "running"
    wait = spm.popen("wait-healthy", "web", "10")
    answer(spm, "200")
    assert wait.wait(10) == 0
    wait.communicate()
    assert spm("wait-healthy", port, 5, "--expect", "200,204", "--http", "/").returncode == 0
    told = spm("wait-healthy", port, "0.3", "--expect", "204", code=124).stderr
    assert "status 200, expected 204" in told
    status(spm, "web", "ready")
    spm("stop", "web")


def test_a_redirect_that_was_expected_by_its_status_was_followed(spm: Spm, port: int) -> None:
    answer(spm, "302 /ok")
    url = f"http://127.0.0.1:{port}/"
    spm("start", "web", server(spm, port), "--port", port)
    ready = spm("wait-healthy", url, 10, "--expect", "204,302").stdout
    assert f"{url}: status 302, which leads to /ok\n" in ready
    failed = spm("wait-healthy", url, "0.3", "--expect", "300-399", code=124).stderr
    assert f"{url}ok: status 200, expected 300-399" in failed
    spm("stop", "web")


def test_redirects_are_followed_on_the_same_host_only(spm: Spm, port: int) -> None:
    answer(spm, "302 /ok")
    url = f"http://127.0.0.1:{port}/"
    spm("start", "web", server(spm, port), "--port", port)
    assert f"{url}ok: status 200" in spm("wait-healthy", url, 10, "--expect", "200").stdout
    other = free_port()
    with socket.create_server(("127.0.0.1", other)) as elsewhere:
        elsewhere.setblocking(False)
        answer(spm, f"302 http://127.0.0.1:{other}/ok")
        failed = spm("wait-healthy", url, "0.5", "--expect", "200", code=124)
        assert (
            f"status 302, expected 200, which leads to http://127.0.0.1:{other}/ok" in failed.stderr
        )
        with pytest.raises(BlockingIOError):
            elsewhere.accept()
    answer(spm, "302 /again")
    assert "more than 5 redirects" in spm("wait-healthy", url, "0.5", code=124).stderr
    spm("stop", "web")


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_a_certificate_of_its_own_is_good_with_insecure_only(spm: Spm, port: int) -> None:
    answer(spm, "200")
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout k -out c"
    subprocess.run(["openssl", *words.split()], cwd=spm.cwd, check=True, capture_output=True)
    pem = (spm.cwd / "k").read_text() + (spm.cwd / "c").read_text()
    (spm.cwd / "both.pem").write_text(pem)
    url = f"https://localhost:{port}/"
    spm("start", "web", server(spm, port, "both.pem"), "--port", port, "--ready", url)
    failed = spm("wait-healthy", "web", 1, code=124)
    assert "certificate" in failed.stderr and "--insecure" in failed.stderr
    assert f"{url}: status 200" in spm("wait-healthy", "web", 10, "--insecure").stdout
    assert spm.service("web")["status"] == "running"
    spm("stop", "web")


def seen_of(*answers: bytes) -> tuple[bool, str, int]:
    """What a probe says of a server that answers so, one connection after the other."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        url = program.Check("http", "/", "127.0.0.1", server.getsockname()[1])
        spec = program.Spec(("x",), "/", expect="200")
        return program.probe_http(url, "127.0.0.1", spec, time.monotonic() + 5)


def test_an_early_hint_was_taken_for_the_answer() -> None:
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    hints = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    assert seen_of(hints + ok)[2] == 200
    assert seen_of(hints)[1].endswith("no HTTP answer")


def test_a_redirect_to_a_path_in_utf_8_was_followed_as_far_as_its_ascii() -> None:
    ok, away = b"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 302 Found\r\nLocation: /ü\r\n\r\n"
    is_good, seen, status = seen_of(away.encode(), ok)
    assert (is_good, status) == (True, 200) and seen.endswith("/ü: status 200")
    assert seen_of(away.encode("latin-1"), ok)[0]


class Dripping(BaseHTTPRequestHandler):
    """Answers, byte for byte, for ever."""

    def do_GET(self) -> None:
        while not self.server.over.wait(0.05):  # type: ignore[attr-defined]
            self.wfile.write(b"H")

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def dripping(port: int) -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", port), Dripping)
    server.over = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield port
    server.over.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_answer_that_never_ends_does_not_outlast_the_timeout(spm: Spm, dripping: int) -> None:
    began = time.monotonic()
    spm("wait-healthy", f"http://127.0.0.1:{dripping}/", "500ms", code=124)
    assert time.monotonic() - began < 8


def test_a_check_in_a_directory_that_is_gone_said_that_its_command_is(base: Path) -> None:
    gone, over = str(base / "gone"), time.monotonic() + 5
    assert program.probe_exec("true", gone, {}, over, lambda: False) == (
        False,
        f"exec 'true': {gone}: No such file or directory",
    )
    assert not program.probe_exec("\ud800", "/", {}, over, lambda: False)[0]  # of a forged state


# -- log


def test_the_log_is_read_in_both_streams_and_from_the_beginning(spm: Spm) -> None:
    words = "echo on stdout; echo 'Ready in 12 ms' >&2; printf prompt\\>; exec sleep 60"
    spm("start", "job", "--shell", words, "--ready", r"log:^Ready in \d+ ms$")
    status(spm, "job", "ready")
    assert "its log matches" in spm("wait-healthy", "job", 10).stdout
    spm("wait-healthy", "job", 10, "--log", "^prompt>$")
    failed = spm("wait-healthy", "job", "0.3", "--log", "on stderr", code=124)
    assert "no match of 'on stderr' in 2 lines of its log" in failed.stderr
    assert "has no log" in spm("wait-healthy", 8000, "--log", "x", code=2).stderr
    spm("stop", "job")


def test_what_an_earlier_instance_wrote_does_not_count(spm: Spm) -> None:
    (spm.cwd / "text").write_text("it is ready")
    command = "cat text; exec sleep 60"
    spm("start", "job", "--shell", command, "--ready", "log:ready", "--wait")
    spm("stop", "job")
    (spm.cwd / "text").write_text("not yet")
    spm("start", "job", "--wait", "400ms", code=124)
    assert spm.service("job")["status"] == "running"
    spm("stop", "job")


def test_the_log_is_read_on_through_a_rotation(spm: Spm) -> None:
    code = "import time; print(*['x' * 99] * 50, 'early', sep='\\n', flush=True); time.sleep(.4)\n"
    code += "print(*['x' * 99] * 180, sep='\\n', flush=True); time.sleep(1)\n"
    code += "print('the end', flush=True); time.sleep(60)"
    argv = (sys.executable, "-c", code)
    spm("start", "job", "--log-size", "20kB", "--ready=log:the end", "--", *argv)
    rotated = spm.home / "services" / "job" / "output.log.1"
    eventually(rotated.exists, what="the rotation")
    spm("wait-healthy", "job", 10, "--log", "^early$")
    assert spm("wait-healthy", "job", 10).returncode == 0
    status(spm, "job", "ready")
    spm("stop", "job")


def test_a_pattern_that_takes_for_ever_ends_with_the_timeout(spm: Spm) -> None:
    spm("start", "job", nasty("--say", "a" * 40 + "b"))
    eventually(lambda: spm.log("job"), what="its line")
    began = time.monotonic()
    spm("wait-healthy", "job", "300ms", "--log", "^(a+)+$", code=124)
    assert time.monotonic() - began < 8
    spm("stop", "job")


def test_a_pattern_that_takes_for_ever_does_not_hold_the_supervisor(spm: Spm) -> None:
    evil, line = "^(a+)+$", ("--shell", f"echo {'a' * 40}b; echo bad; exec sleep 100")
    judged = ("--success-log", evil, "--start-seconds", "1")
    spm("start", "job", *line, "--ready", f"log:{evil}", *judged)
    began = time.monotonic()
    eventually(lambda: ("pattern_failed") in dict(events(spm, "job")), what="its use to end")
    status(spm, "job", "running")
    assert spm.json("touch", "job")["ok"] and time.monotonic() - began < 8
    assert "takes too long" in spm("wait-healthy", "job", "1500ms", code=124).stderr
    spm("stop", "job")


# -- liveness counts for who waits


def test_an_unhealthy_service_is_not_healthy_though_its_readiness_holds(spm: Spm) -> None:
    checks = ("--ready", "exec:true", "--ready", "log:up", "--health", "exec:test -e good")
    (spm.cwd / "good").touch()
    asked = (*checks, "--health-interval", "50ms", "--health-retries", 1, "--shell")
    spm("start", "job", *asked, "echo up; exec sleep 100")
    (spm.cwd / "good").unlink()
    status(spm, "job", "unhealthy")
    failed = spm("wait-healthy", "job", "200ms", code=124).stderr
    assert "job is unhealthy: exec 'test -e good': exit code 1" in failed
    wait = spm.popen("wait-healthy", "job", "20")
    (spm.cwd / "good").touch()
    assert wait.wait(20) == 0 and wait.communicate()
    spm("stop", "job")


# -- exec


def test_a_command_decides_in_the_directory_of_the_service(spm: Spm) -> None:
    (spm.cwd / "there").mkdir()
    check = 'exec:test -e flag && test $MOOD = good && test -z "$SPM_SERVICE"'
    spm.env["MOOD"] = "good"
    spm("start", "job", nasty(), "--cwd", "there", "--ready", check)
    assert "exit code 1" in spm("wait-healthy", "job", "0.5", code=124).stderr
    (spm.cwd / "there" / "flag").touch()
    spm("wait-healthy", "job", 5)
    status(spm, "job", "ready")
    spm("stop", "job")


def test_a_command_that_hangs_is_killed_with_its_children(spm: Spm) -> None:
    script = "echo $$ >> pids; sleep 61 & echo $! >> pids; wait"
    spm("start", "job", nasty())
    spm("stop", "job")
    (spm.cwd / "pids").touch()
    spm("start", "job", nasty(), "--ready", f"exec:{script}", "--health-timeout", "300ms")
    failed = spm("wait-healthy", "job", "500ms", code=124)
    assert "did not end in time and was killed" in failed.stderr
    # in the middle of its exec a command shows no cookie, and is taken for the service's
    eventually(lambda: len(spm.json("status", "job")["tree"]) == 1, what="the service alone")
    began = time.monotonic()
    assert "[OK] job stopped" in spm("stop", "job").stdout
    assert time.monotonic() - began < 2
    pids = [int(line) for line in (spm.cwd / "pids").read_text().split()]
    assert len(pids) >= 4
    eventually(lambda: not any(map(is_running, pids)), what="the end of its commands")


def test_an_interrupted_wait_takes_its_command_along(spm: Spm) -> None:
    spm("start", "job", nasty())
    spm("wait-healthy", "job", "0.1", code=124)
    spm("start", "job", nasty(), "--replace", "--ready", "exec:echo $PPID $$ >> pids; sleep 62")
    wait = spm.popen("wait-healthy", "job", "30")
    pids = spm.cwd / "pids"

    def its_own() -> list[str]:
        rows = [line.split() for line in pids.read_text().splitlines()] if pids.exists() else []
        return [row[1] for row in rows if row[0] == str(wait.pid)]

    found, began = eventually(its_own, what="its command"), time.monotonic()
    eventually(lambda: time.monotonic() - began > 0.3, what="it to wait for the command")
    wait.send_signal(signal.SIGINT)
    wait.communicate(timeout=10)
    assert wait.returncode == 130 and not is_running(int(found[0]))
    spm("stop", "job")


# -- liveness


def test_ready_becomes_unhealthy_and_ready_again(spm: Spm, port: int) -> None:
    answer(spm, "200")
    spm(
        *("start", "web", server(spm, port), "--port", port, "--health", "http:/health"),
        *("--ready", "tcp", "--health-interval", "50ms", "--health-retries", 2, "--wait"),
    )
    status(spm, "web", "ready")
    answer(spm, "500")
    status(spm, "web", "unhealthy")
    shown = spm.json("status", "web")
    assert f"http://localhost:{port}/health: status 500" in shown["why"]
    assert "[WARN] web: http" in spm("list").stderr
    spm("start", "web")
    answer(spm, "200")
    status(spm, "web", "ready")
    found = events(spm, "web")
    assert [name for name, _ in found] == ["started", "ready", "unhealthy", "ready"]
    assert "status 500" in found[2][1] and "status 200" in found[3][1]
    spm("stop", "web")


def test_one_failure_is_not_yet_unhealthy(spm: Spm) -> None:
    count = "exec:echo >> looks; test $(wc -l < looks) -ne 3"
    spm("start", "job", nasty(), "--health", count, "--health-interval", "20ms")
    looks = spm.cwd / "looks"
    eventually(lambda: looks.exists() and looks.read_text().count("\n") > 4, what="five looks")
    assert [name for name, _ in events(spm, "job")] == ["started", "ready"]
    spm("stop", "job")


def test_a_port_that_no_longer_answers_and_a_stopped_process_are_named(spm: Spm, port: int) -> None:
    code = f"import socket, os, time\ns = socket.create_server(('127.0.0.1', {port}))\n"
    code += "while not os.path.exists('close'): time.sleep(.01)\ns.close(); time.sleep(60)"
    spm(
        *("start", "web", "--port", port, "--ready", "tcp", "--health", "tcp", "--wait"),
        *("--health-interval", "50ms", "--", sys.executable, "-c", code),
    )
    status(spm, "web", "ready")
    (spm.cwd / "close").touch()
    status(spm, "web", "unhealthy")
    assert f"port {port}: 127.0.0.1: connection refused" in spm.json("status", "web")["why"]
    pid = spm.service("web")["pid"]
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: "is stopped (SIGSTOP)" in spm.service("web")["why"], what="the reason")
    failed = spm("wait-healthy", "web", "300ms", code=124)
    assert "its main process is stopped (SIGSTOP)" in failed.stderr
    spm("stop", "web")


def test_a_stopped_process_is_not_healthy_though_its_port_accepts(spm: Spm, port: int) -> None:
    spm("start", "web", nasty("--port", port), "--wait")
    process = psutil.Process(spm.service("web")["pid"])
    process.suspend()
    eventually(lambda: process.status() == psutil.STATUS_STOPPED, what="it takes its time")
    failed = spm("wait-healthy", port, "300ms", code=124)
    assert "(its main process is stopped (SIGSTOP)" in failed.stderr
    spm("stop", "web")


def test_a_supervisor_that_stands_still_is_named(spm: Spm) -> None:
    spm("start", "web", nasty())
    guard = spm.supervisor("web")
    os.kill(guard, signal.SIGSTOP)
    try:
        advice = f"its supervisor is stopped (SIGSTOP): kill -CONT {guard} has it go on"
        eventually(lambda: advice in spm("list").stderr, what="list to name it")
        assert spm.json("status", "web")["why"] == advice
        assert spm.service("web")["status"] == "running"
    finally:
        os.kill(guard, signal.SIGCONT)
    eventually(lambda: "WARN" not in spm("list").stderr, what="nothing to warn of")
    spm("stop", "web")


def test_a_zombie_main_process_is_named(spm: Spm) -> None:
    spm("start", "web", nasty())
    pid, guard = spm.service("web")["pid"], spm.supervisor("web")
    os.kill(guard, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not is_running(pid), what="its end")
        assert "is a zombie" in spm.json("status", "web", code=3)["why"]
        assert "is a zombie" in spm("wait-healthy", "web", 1, code=1).stderr
    finally:
        os.kill(guard, signal.SIGCONT)
    eventually(lambda: not spm.bearers(), what="the end of its supervisor")
    assert "killed by SIGKILL" in spm("wait-healthy", "web", 1, code=1).stderr


def test_a_probe_that_hangs_does_not_block_the_supervisor(spm: Spm, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):  # accepts, never answers
        spm("start", "web", nasty(), "--ready", f"http://127.0.0.1:{port}/")
        began = time.monotonic()
        spm("touch", "web")
        assert "1 process ended" in spm("stop", "web").stdout
        assert time.monotonic() - began < 4


def test_the_state_of_an_older_version_has_the_defaults(spm: Spm) -> None:
    document: dict[str, Any] = program.Spec(("x",), "/").to_json()
    old = {key: document[key] for key in ("argv", "cwd", "shell", "port", "log_bytes")}
    read = program.Spec.from_json(json.loads(json.dumps(old)))
    assert (read.ready, read.expect, read.health_retries) == ((), "200-399", 3)
    bad = {"expect": 1, "health_interval_s": -1, "ready": [1], "health_retries": 0.5}
    for key, value in bad.items():
        with pytest.raises(program.RecordError, match=key):
            program.Spec.from_json(json.loads(json.dumps({**old, key: value})))


@given(
    ready=st.lists(st.sampled_from(["tcp", "http:/x", "log:a|b"])),
    health=st.lists(st.sampled_from(["tcp:80", "exec:true"])),
    seconds=st.floats(0.001, 1e6),
    retries=st.integers(0, 99),
    insecure=st.booleans(),
)
def test_what_was_declared_comes_back_from_the_state(
    ready: list[str], health: list[str], seconds: float, retries: int, insecure: bool
) -> None:
    spec = program.Spec(
        ("x",),
        "/",
        ready=tuple(ready),
        expect="200,204",
        insecure=insecure,
        health=tuple(health),
        health_interval_s=seconds,
        health_timeout_s=seconds,
        health_retries=retries,
    )
    assert program.Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_pattern_line_is_cut() -> None:
    class Fake(program.Output):
        def __init__(self, *chunks: bytes) -> None:
            self.chunks = list(chunks)

        def read(self) -> bytes:
            return self.chunks.pop(0) if self.chunks else b""

    long = program.LogProbe(Fake(b"x" * 70000, b"needle\nnext\n"), "needle|next")
    assert long.look(time.monotonic() + 9) == ("needle|next", "its log matches 'needle|next'")
    cut = program.LogProbe(Fake(b"x" * 70000 + b"needle", b"\n"), "needle")
    assert cut.look(time.monotonic() + 9)[0] is None
    assert len(cut.rest) <= program.LONGEST_LINE
    late = program.LogProbe(Fake(b"needle\n"), "needle")  # what was read too late was lost
    assert late.look(time.monotonic() - 1)[0] is None
    assert late.look(time.monotonic() + 9)[0] == "needle"
    assert Path(program.__file__).exists()


def test_a_slow_pattern_and_a_long_log_were_taken_for_a_pattern_that_takes_for_ever() -> None:
    class Fake(program.Output):
        def __init__(self) -> None:
            self.chunks = [b"x" * 500 + b"\n"] * 6000 + [b"it is UP now\n"]

        def read(self) -> bytes:
            chunk, self.chunks[:2000] = b"".join(self.chunks[:2000]), []
            return chunk

    probe = program.LogProbe(Fake(), ".*is UP.*")
    assert probe.look(time.monotonic() + 0.05)[0] is None
    assert probe.left  # once a look lasted until all that was read had been matched
    assert probe.look(time.monotonic() + 20)[0] == ".*is UP.*"
