"""What the driver of random faults found: each a defect once, named after its symptom."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest
from conftest import Spm, end, eventually, is_running

import simple_process_manager as program


@pytest.fixture
def stranger() -> Iterator[program.Identity]:
    """A process that isn't ours."""
    with subprocess.Popen(["sleep", "100"]) as process:
        look = program.stat_of(process.pid)
        assert look
        yield look.identity
        process.kill()


def kill_all_but(spm: Spm, kept: str) -> list[psutil.Process]:
    """kill -9 the supervisor and every process of a service but those with this word in their line.

    Returns those.
    """
    mine = {process: " ".join(process.cmdline()) for process in spm.bearers()}
    guard = spm.supervisor("api")
    for process in sorted(mine, key=lambda one: one.pid != guard):  # it would see the others end
        if process.pid == guard or not kept or kept not in mine[process]:
            process.send_signal(signal.SIGKILL)
            eventually(lambda gone=process: not is_running(gone.pid), what="its end")  # type: ignore[misc]
    return [process for process in mine if is_running(process.pid)]


def forge(spm: Spm, **fields: object) -> None:
    document = spm.state()
    document["services"]["api"].update(fields)
    (spm.home / "state.json").write_text(json.dumps(document))


@pytest.mark.parametrize("step", ["launched", "journalled", "noted"])
def test_a_supervisor_that_dies_before_it_answers_leaves_no_service_behind(
    spm: Spm, step: str
) -> None:
    # each of the two supervisors that a start tries; the first one's service went on for ever
    spm.env["SPM_TEST_CRASH"] = f"supervisor.{step}"
    spm("start", "api", "sleep 100", code=4)
    del spm.env["SPM_TEST_CRASH"]
    assert not spm.bearers()
    assert spm.service("api")["status"] in ("failed", "exited")


def test_a_compiled_form_that_another_start_has_just_removed_is_made_anew(spm: Spm) -> None:
    spm("start", "api", "sleep 100")
    spm("stop", "api")
    (compiled,) = spm.home.glob("cache/*/*.pyc")
    store = program.Store(str(spm.home))
    assert program.forget_compiled(store) and not compiled.exists()
    assert program.forget_compiled(store), "gone already: no reason not to try again"


def test_start_takes_no_stranger_back_whom_a_forged_record_names(
    spm: Spm, stranger: program.Identity
) -> None:
    spm("start", "api", "sleep 100")
    kill_all_but(spm, "")
    forge(spm, main=stranger._asdict(), phase="running")
    done = spm("start", "api", "sleep 100")
    assert "isn't api; nothing was signalled" in done.stderr
    assert spm.service("api")["pid"] != stranger.pid and spm.service("api")["supervised"]
    spm("stop", "api")
    assert is_running(stranger.pid)


def test_what_is_left_of_a_service_is_ended_though_its_number_is_another_ones_now(
    spm: Spm, stranger: program.Identity
) -> None:
    spm("start", "api", "--", "sh", "-c", "sleep 98 & exec sleep 99")
    (child,) = kill_all_but(spm, "98")
    forge(spm, main={**spm.record("api")["main"], "pid": stranger.pid}, phase="running")
    assert spm.service("api")["status"] == "lost"
    spm("start", "api", "sleep 100")
    assert not is_running(child.pid), "two instances"
    assert is_running(stranger.pid)
    spm("stop", "api")
    end([child])


def test_a_crash_at_a_named_step_is_only_that_of_who_is_meant(spm: Spm) -> None:
    spm.env["SPM_TEST_CRASH"] = "command.intended"
    spm("start", "api", "sleep 100", code=-signal.SIGKILL)
    assert spm.service("api")["status"] == "failed", "the intent was written, nothing ran"
    spm.env["SPM_TEST_CRASH"] = "command.ordered:2"
    spm("start", "api", "sleep 100")
    os.kill(spm.service("api")["pid"], 0)
    del spm.env["SPM_TEST_CRASH"]
    spm("stop", "api")
