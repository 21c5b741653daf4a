"""Hand CMake the torch that was found; everything else is in pyproject.toml and CMakeLists.txt."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MINIMUM_TORCH = (2, 10)
GIB = 2**30


def find_torch() -> Path:
    """Return the torch package's folder, without importing it, and refuse one that is too old."""
    spec = importlib.util.find_spec("torch")
    # Under build isolation the user's site-packages are not on sys.path, but sysconfig names them.
    candidates = [Path(spec.origin).parent] if spec and spec.origin else []
    candidates += [Path(sysconfig.get_path(key)) / "torch" for key in ("purelib", "platlib")]
    for folder in candidates:
        version = folder / "version.py"
        if not version.is_file():
            continue
        match = re.search(r"__version__\s*=\s*['\"](\d+)\.(\d+)([^'\"]*)", version.read_text())
        if match is None:
            continue
        found = (int(match[1]), int(match[2]))
        if found < MINIMUM_TORCH:
            sys.exit(
                f"potloc_fast needs torch 2.10 or newer, found {match[1]}.{match[2]}{match[3]} in {folder.parent}: "
                "upgrade it with `pip install -U torch`, then install potloc_fast again."
            )
        return folder
    sys.exit("potloc_fast needs torch 2.10 or newer to build, found none: install torch first.")


def parallel_jobs() -> int:
    """Bound compile jobs by cores and by memory (1 GiB each), so that a build never freezes the machine."""
    if "MAX_JOBS" in os.environ:
        return max(1, int(os.environ["MAX_JOBS"]))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // GIB))


class CMakeBuild(build_ext):
    """Build `potloc_fast._C` with CMake and ninja."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build into the place where setuptools wants the library."""
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [
                # --fresh: what an earlier isolated build found of ninja and pybind11 is gone by now. Objects are kept.
                *("cmake", "--fresh", "-G", "Ninja", "-S", str(ROOT), "-B", str(build)),
                "-DCMAKE_BUILD_TYPE=Release",
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DPOTLOC_FAST_TORCH={find_torch()}",
                f"-DPOTLOC_FAST_CUDA={os.environ.get('POTLOC_FAST_CUDA', 'auto')}",
                f"-DPOTLOC_FAST_SANITIZE={os.environ.get('POTLOC_FAST_SANITIZE', '')}",
            ],
            check=True,
        )
        subprocess.run(["cmake", "--build", str(build), "--parallel", str(parallel_jobs())], check=True)


setup(ext_modules=[Extension("potloc_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
