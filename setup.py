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


def run(*command: str) -> None:
    """Run a step of the build, or stop with its status: what went wrong has been printed by then."""
    if status := subprocess.run(command).returncode:
        sys.exit(status)


def first_error(command: list[str]) -> str | None:
    """Run a step that may fail, its output passed on; return the first line of an error, None without one."""
    error = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            if error is None and re.search(r"\b(error|fatal)\b( #\S+)?\s*:", line):
                error = " ".join(line.replace(f"{ROOT}/", "").split())[:120]
    return None if process.returncode == 0 else error or f"{command[0]} ended with status {process.returncode}"


class CMakeBuild(build_ext):
    """Build `potloc_fast._C` with CMake and ninja."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build into the place where setuptools wants the library."""
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        cuda = os.environ.get("POTLOC_FAST_CUDA", "auto")
        strict = os.environ.get("POTLOC_FAST_STRICT") == "1"
        configure = [
            # --fresh: what an earlier isolated build found of ninja and pybind11 is gone by now. Objects are kept.
            *("cmake", "--fresh", "-G", "Ninja", "-S", str(ROOT), "-B", str(build)),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPOTLOC_FAST_TORCH={find_torch()}",
            f"-DPOTLOC_FAST_CUDA={cuda}",
            f"-DPOTLOC_FAST_STRICT={int(strict)}",
            f"-DPOTLOC_FAST_SANITIZE={os.environ.get('POTLOC_FAST_SANITIZE', '')}",
        ]
        build_all = ["cmake", "--build", str(build), "--parallel", str(parallel_jobs())]
        run(*configure)
        # Kernels that nvcc refuses are a pity, not the end: the rest serves without them. Tests are to stumble over it.
        if (
            cuda == "auto"
            and not strict
            and (error := first_error([*build_all, "--target", "cuda_kernels_if_any"])) is not None
        ):
            print(
                f"\npotloc_fast: built without CUDA kernels, as nvcc failed ({error}). For kernels, mend that and "
                "install it again with `POTLOC_FAST_CUDA=1 pip install .`\n",
                file=sys.stderr,
            )
            run(*configure, f"-DPOTLOC_FAST_WITHOUT_CUDA=nvcc failed: {error}")
        run(*build_all)


setup(ext_modules=[Extension("potloc_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
