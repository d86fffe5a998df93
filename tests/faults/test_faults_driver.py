"""A few rounds of the driver; .ci/run has it run 300."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the driver needs Linux")
def test_random_faults_violate_no_invariant() -> None:
    argv = [sys.executable, str(Path(__file__).with_name("driver.py")), "--rounds", "4"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
