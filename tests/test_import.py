"""What is imported when: each use waits only for the packages that it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import potloc_fast

HEAVY = {"torch", "numba", "pydantic", "matplotlib", "rich", "typer", "tensorboard"}


@pytest.mark.parametrize(
    ("code", "needed"),
    [
        ("import potloc_fast", set()),
        ("import potloc_fast.ops", {"torch"}),
        ("import potloc_fast; potloc_fast.evaluate", {"numba"}),
        ("import potloc_fast.pseudo_labels", {"numba"}),
    ],
)
def test_nothing_heavy_is_imported_in_vain(code: str, needed: set[str], tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(potloc_fast.__file__).resolve().parents[1])}
    command = [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert HEAVY & set(done.stdout.split()) == needed


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'potloc_fast' has no attribute 'trian'"):
        potloc_fast.trian  # noqa: B018
