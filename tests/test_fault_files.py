"""Mutated files, in the form that takes a minute."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_mutated_files_are_read_or_refused() -> None:
    command = [sys.executable, "-m", "tests.faults.files", "--count", "3000"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"(\d+) read, (\d+) refused in a sentence, 0 faults", done.stdout)
    assert counts is not None, done.stdout
    assert min(map(int, counts.groups())) > 300  # neither mostly unharmed nor harmed beyond recognition
