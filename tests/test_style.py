"""The code is as its formatters, linters and type checker want it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CLANG_FORMAT = str(Path(sysconfig.get_path("scripts")) / "clang-format")
SOURCES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*"))


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "ruff", "check"],
        [sys.executable, "-m", "ruff", "format", "--check"],
        [sys.executable, "-m", "mypy"],
        [CLANG_FORMAT, "--dry-run", "-Werror", *SOURCES],
    ],
    ids=["ruff check", "ruff format", "mypy", "clang-format"],
)
def test_style(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
