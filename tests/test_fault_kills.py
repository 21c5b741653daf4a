"""Kills at file events, in the form that takes a minute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_training_that_is_killed_ends_as_undisturbed() -> None:
    command = [sys.executable, "-m", "tests.faults.kills", "--count", "40"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 did not" in done.stdout
