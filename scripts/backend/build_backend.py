"""The in-tree PEP 517 backend: setuptools, plus a search for the torch that the user already has.

Under build isolation the interpreter is the user's, but its site-packages are hidden. `sysconfig` still names the
folder, so a torch that lies there is found on disk and compiled against; only where there is none does the build ask
for one. The extension uses torch's stable ABI, so building against another torch than the one it runs under is safe.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 (a backend is a module that offers the PEP 517 hooks)


def _torch_requirement() -> list[str]:
    installed = any((Path(sysconfig.get_path(key)) / "torch" / "include").is_dir() for key in ("purelib", "platlib"))
    return [] if installed else ["torch>=2.10"]


def get_requires_for_build_wheel(config_settings: dict[str, str] | None = None) -> list[str]:
    """Ask for torch only where the environment has none."""
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings: dict[str, str] | None = None) -> list[str]:
    """As for a wheel."""
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()
