"""Real servers, started, waited for, asked and stopped, with nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, Spm, eventually, is_running

APP = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"VERSION 1"})
"""
WSGI = """
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"VERSION 1"]
"""
BIN = Path(sys.executable).parent


def needs(program: str) -> pytest.MarkDecorator:
    found = shutil.which(program) or (BIN / program).exists()
    return pytest.mark.skipif(not found, reason=f"{program} is not installed")


def get(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
        body = response.read()
        assert isinstance(body, bytes)
        return body.decode()


def stop_and_check(spm: Spm, name: str, port: int) -> list[int]:
    """Stop it; the pids of its tree, all of which are gone, as is its port."""
    pids = [one["pid"] for one in spm.json("status", name)["tree"]]
    done = spm.json("stop", name)["services"][0]
    assert done["port_free"] is True and done["killed"] is False
    assert not [pid for pid in pids if is_running(pid)]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    return pids


def test_uvicorn_with_reload_and_its_worker(spm: Spm, port: int) -> None:
    app = spm.cwd / "main.py"
    app.write_text(APP)
    spm("start", "api", f"{sys.executable} -m uvicorn main:app --reload --port {port}")
    spm("wait-healthy", port, 30)
    assert get(port) == "VERSION 1"

    def reloaded() -> bool:
        app.write_text(APP.replace("VERSION 1", "VERSION 2"))  # again: it may not watch yet
        return "VERSION 2" in _try_get(port)

    eventually(reloaded, within=20, what="the reload")
    assert len(stop_and_check(spm, "api", port)) >= 2


def _try_get(port: int) -> str:
    try:
        return get(port)
    except OSError:
        return ""


def test_uvicorn_whose_port_is_taken_fails_with_its_own_words(spm: Spm, port: int) -> None:
    (spm.cwd / "main.py").write_text(APP)
    with socket.create_server(("127.0.0.1", port)):
        started = spm("start", "api", f"{sys.executable} -m uvicorn main:app --port {port}")
        assert "[WARN] port" in started.stderr
        failed = spm("wait-healthy", port, 30, code=1)
    assert "(exit code " in failed.stderr and "address already in use" in failed.stderr


@needs("gunicorn")
def test_gunicorn_with_its_workers(spm: Spm, port: int) -> None:
    (spm.cwd / "main.py").write_text(WSGI)
    spm("start", "api", f"{BIN}/gunicorn -w 2 -b 127.0.0.1:{port} main:app")
    assert spm.service("api")["port"] == port
    spm("wait-healthy", "api", 30)
    assert get(port) == "VERSION 1"
    eventually(lambda: len(spm.json("status", "api")["tree"]) == 3, what="two workers")
    assert len(stop_and_check(spm, "api", port)) == 3


@needs("redis-server")
def test_redis(spm: Spm, port: int) -> None:
    spm("start", "redis", f"redis-server --port {port} --save ''")
    spm("wait-healthy", port, 30)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"PING\r\n")
        assert client.recv(100) == b"+PONG\r\n"
    spm.kill_supervisor("redis")  # it overwrites its environment: the journal is the witness
    assert "redis stopped" in spm("stop", "redis").stdout


@needs("redis-server")
def test_redis_is_found_after_its_state_directory_was_removed(spm: Spm, port: int) -> None:
    # as `git clean -fdx` does: without a cookie of its own, only its supervisor says whose it is
    spm("start", "redis", f"redis-server --port {port} --save ''")
    spm("wait-healthy", "redis", 10)
    pid = spm.service("redis")["pid"]
    spm.forget_home()
    found = spm.service("redis")
    assert (found["status"], found["pid"]) == ("running", pid)
    assert "redis stopped in" in spm("stop", "redis").stdout and not spm.bearers()
    assert not is_running(pid)
    assert not spm.bearers()


@needs("nginx")
def test_nginx_with_its_workers(spm: Spm, port: int) -> None:
    config = spm.cwd / "nginx.conf"
    config.write_text(
        f"daemon off; pid {spm.cwd}/nginx.pid; error_log stderr; worker_processes 2;\n"
        "events {}\n"
        f"http {{ access_log off; server {{ listen 127.0.0.1:{port}; return 200 nginx; }} }}\n"
    )
    spm("start", "web", f"nginx -p {spm.cwd} -c {config}", "--port", port)
    spm("wait-healthy", "web", 30)
    assert get(port) == "nginx"
    assert len(stop_and_check(spm, "web", port)) == 3


@needs("npm")
def test_npm_run_dev_with_everything_below_it(spm: Spm, port: int) -> None:
    server = f"require('http').createServer((q, r) => r.end('node')).listen({port}, '127.0.0.1')"
    (spm.cwd / "server.js").write_text(server)
    package = {"name": "x", "version": "1.0.0", "scripts": {"dev": "node server.js"}}
    (spm.cwd / "package.json").write_text(json.dumps(package))
    spm("start", "web", "npm run dev", "--port", port)
    spm("wait-healthy", "web", 60)
    assert get(port) == "node"
    assert len(stop_and_check(spm, "web", port)) >= 2


def taught(page: str) -> list[str]:
    """The lines of a page that run tests with a server."""
    text = (ROOT / page).read_text("utf-8")
    return re.findall(r"^python .* pytest tests/integration/.*$", text, re.MULTILINE)


@pytest.mark.parametrize("line", taught("README.md"), ids=["run", "chain"])
def test_the_lines_that_agents_are_taught_run_as_they_stand(spm: Spm, port: int, line: str) -> None:
    assert line in taught(".kiro/steering/process-manager-tool.md")
    (spm.cwd / "main.py").write_text(APP)
    tests = spm.cwd / "tests" / "integration"
    tests.mkdir(parents=True)
    request = f"urllib.request.urlopen('http://127.0.0.1:{port}/').read() == b'VERSION 1'"
    (tests / "test_it.py").write_text(f"import urllib.request\ndef test_it(): assert {request}\n")
    spm.env["PATH"] = f"{BIN}{os.pathsep}{spm.env['PATH']}"
    shutil.copy(ROOT / "simple_process_manager.py", spm.cwd)
    here = line.replace("8000", str(port)).replace("0.0.0.0", "127.0.0.1")
    argv = ["/bin/sh", "-c", here]
    done = subprocess.run(
        argv, cwd=spm.cwd, env=spm.env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout and "api stopped" in done.stdout + done.stderr
