"""What an attack found: each a defect once, named after its symptom."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from conftest import Spm, eventually, is_running, nasty


def test_purge_leaves_directories_alone_that_are_not_ours(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    theirs = spm.home / "services" / "billing" / "main.py"
    theirs.parent.mkdir()
    theirs.write_text("precious")
    spm("cleanup", "--purge")
    assert theirs.read_text() == "precious"
    assert not (spm.home / "services" / "api").exists()


def test_cleanup_keeps_what_it_could_not_stop(spm: Spm) -> None:
    script = f"{' '.join(spm.argv('cleanup', '--home', spm.home))}; echo exit $?; exec sleep 100"
    spm("start", "api", "--", "env", "-i", f"PATH={os.environ['PATH']}", "sh", "-c", script)
    eventually(lambda: "exit 8" in spm.log("api"), what="the refusal")
    assert spm.service("api")["status"] == "running"
    spm("stop", "api")


@pytest.mark.parametrize("variable", ["SPM_SUPERVISOR=1", "SPM_INSTANCE=other"])
def test_a_main_process_belongs_whatever_its_environment_says(spm: Spm, variable: str) -> None:
    spm("start", "api", "--", "env", variable, "sleep", "100")
    pid = spm.service("api")["pid"]
    assert spm.json("stop", "api")["services"][0]["processes"] == 1
    assert not is_running(pid)


def test_one_service_by_two_spellings_is_stopped_without_waiting_for_itself(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    began = time.monotonic()
    spm("stop", "api", "API")
    assert time.monotonic() - began < 5


def test_a_directory_that_is_gone_is_one_line(spm: Spm) -> None:
    gone = spm.base / "gone"
    gone.mkdir()
    env = {key: value for key, value in spm.env.items() if key != "SPM_HOME"}
    line = f"cd {gone} && rmdir {gone} && exec {' '.join(spm.argv('list'))}"
    import subprocess

    done = subprocess.run(["sh", "-c", line], env=env, capture_output=True, text=True)
    assert done.returncode == 9 and "Traceback" not in done.stderr


def test_an_unknown_option_is_named_without_its_value(spm: Spm) -> None:
    done = spm("start", "api", "sleep 1", "--evn", "TOKEN=hunter2", code=2)
    assert "hunter2" not in done.stderr


def test_forgetting_a_service_forgets_its_values(spm: Spm) -> None:
    spm("start", "api", nasty(), "--env", "TOKEN=hunter2")
    spm("cleanup")
    assert not Path(spm.home, "services", "api", "env.json").exists()
