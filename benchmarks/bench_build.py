"""How long the extension takes to build, all instruction sets, from nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Case, Scaling, Unavailable, Work


def build() -> Work:
    """The build, in a folder of its own."""
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not on the path")
    root = Path(__file__).resolve().parents[1]

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "setup.py", "build_ext", "--build-lib", folder, "--build-temp", folder]
            subprocess.run(command, cwd=root, check=True, capture_output=True)

    return Work(ours, {}, lambda *_: None)


CASES: list[Case | Scaling] = [
    Case("build", "build of the extension", "all operators and instruction sets", "", build, slow=True)
]
