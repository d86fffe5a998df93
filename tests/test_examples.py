"""The demos in tests/examples/, run as a user would run them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SCRIPT, Spm

EXAMPLES = Path(__file__).resolve().parent / "examples"


def demo(spm: Spm, script: str, port: int) -> str:
    """What the script printed; it must have succeeded."""
    path = f"{Path(sys.executable).parent}:{spm.env['PATH']}"
    env = {**spm.env, "PATH": path, "SPM": f"python {shlex.quote(str(SCRIPT))}"}
    done = subprocess.run(
        ["sh", str(EXAMPLES / script), str(port)],
        env=env,
        cwd=spm.cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{spm}"
    return done.stdout


def test_the_basic_workflow(spm: Spm, port: int) -> None:
    shown = demo(spm, "basic_workflow.sh", port)
    assert "the server answered with status 200" in shown
    assert "[OK] web stopped" in shown and f"port {port} is free" in shown


@pytest.mark.slow
def test_fastapi_uvicorn_and_pytest(spm: Spm, port: int) -> None:
    pytest.importorskip("fastapi")
    shown = demo(spm, "fastapi_app/demo.sh", port)
    assert shown.count("2 passed") == 2, "step by step, and as one command"
    assert "[OK] api stopped" in shown
