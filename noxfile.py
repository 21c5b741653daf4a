"""What is supported, tested: `nox -l` lists the sessions, `nox -s "tests-3.12(torch='2.10')"` runs one.

Each session needs its Python and installs its own torch; TORCH_ARGS can name an index of CPU-only builds, as for
`make`. Nothing here is for a GPU.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
TORCHES = ["2.10", "2.11", "2.13", "2.14", "2.15"]
OLDEST, NEWEST = TORCHES[0], TORCHES[-1]
TORCH_ARGS = os.environ.get("TORCH_ARGS", "").split()
ROOT = Path(__file__).parent
BUILD = ("setuptools>=77", "cmake>=3.24", "ninja>=1.11", "pybind11>=2.13,<4")

nox.needs_version = ">=2025.5.1"
nox.options.sessions = ["tests"]


def install_torch(session: nox.Session, version: str) -> None:
    """Install a torch, by its minor version."""
    session.install(*TORCH_ARGS, f"torch=={version}.*")


def install_package(session: nox.Session, *constraints: str) -> None:
    """Build and install the package, with what its tests need, under the torch that is there."""
    session.install(*BUILD)
    session.install("--no-build-isolation", ".[dev]", *constraints, env={"POTLOC_FAST_CUDA": "0"})


@nox.session(python=PYTHONS)
@nox.parametrize("torch", TORCHES)
def tests(session: nox.Session, torch: str) -> None:
    """All tests, for a Python and a torch."""
    install_torch(session, torch)
    install_package(session)
    session.run("pytest", *session.posargs)


@nox.session(python=PYTHONS[1])
@nox.parametrize("built", [OLDEST, NEWEST])
def another_torch(session: nox.Session, built: str) -> None:
    """The extension built under one torch, the operators' tests under every other."""
    install_torch(session, built)
    install_package(session)
    for version in TORCHES:
        if version != built:
            install_torch(session, version)
            session.run("pytest", "tests/ops", "tests/test_import.py", *session.posargs)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """All tests with the lowest version of each dependency that pyproject.toml allows."""
    listed = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert listed is not None
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)', listed[1]))
    install_torch(session, bounds.pop("torch"))
    install_package(session, *(f"{name}=={version}" for name, version in bounds.items()))
    session.run("pytest", *session.posargs)
