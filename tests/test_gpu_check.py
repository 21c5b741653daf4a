"""scripts/gpu_check.sh, with stand-ins for a GPU and its tools: what it makes of what they answer."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "gpu_check.sh"
PARTS = [
    *("build", "usable", "attention", "kernels", "steps", "memory", "races", "capture", "training", "benchmarks", "two")
]
# Every tool notes how it was called, and its environment; the file `fail` has words that make a call fail.
TOOL = """#!/bin/bash
line="$(basename "$0") $*"
echo "caching=$PYTORCH_NO_CUDA_MEMORY_CACHING $line" >> {folder}/calls
case "$line" in
  nvidia-smi*--list-gpus*) echo "GPU 0: a GPU"; exit;;
  nvidia-smi*) echo "a GPU, 580.1"; exit;;
  python3*get_device_capability*) echo 9.0; exit;;
  "python3 -c "*) cat > /dev/null; cat {folder}/missing; exit;;
  "python3 -") exec {python} -;;
  potloc-fast*--json) echo '{{"usable": true}}';;
esac
while read -r status words; do [[ "$line" != *"$words"* ]] || exit "$status"; done < {folder}/fail
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    for name in (*("python3", "nvcc", "nvidia-smi", "compute-sanitizer", "pytest", "potloc-fast", "torchrun"),):
        tool = tmp_path / "bin" / name
        tool.write_text(TOOL.format(folder=tmp_path, python=sys.executable))
        tool.chmod(0o755)
    for name in ("missing", "fail", "calls"):
        (tmp_path / name).touch()
    return tmp_path


def check(folder: Path, *parts: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "RESULTS": str(folder / "results"),
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "",
    }
    return subprocess.run([str(SCRIPT), *parts], capture_output=True, text=True, check=False, env=environment)


def outcomes(folder: Path) -> dict[str, str]:
    with (folder / "results" / "gpu_check.csv").open() as file:
        return {row["part"]: row["outcome"] for row in csv.DictReader(file)}


def test_all_that_passes_is_a_verdict(folder: Path) -> None:
    done = check(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    want = dict.fromkeys(PARTS, "passed") | {"two": "skipped", "verdict": "passed"}  # one GPU is there
    assert outcomes(folder) == want
    calls = (folder / "calls").read_text().splitlines()
    assert [c for c in calls if "caching=1 compute-sanitizer" in c] == [c for c in calls if "memcheck" in c][:1]
    assert all("--report-api-errors no" in call for call in calls if "compute-sanitizer" in call)
    # A second call repeats nothing but what was skipped, unless it is asked to.
    (folder / "calls").write_text("")
    assert check(folder).returncode == 0
    assert "pytest" not in (folder / "calls").read_text()
    check(folder, "steps")
    assert (folder / "calls").read_text().count("pytest") == 1


@pytest.mark.parametrize(
    ("call", "status", "part", "outcome"),
    [
        ("test_step.py", 1, "steps", "failed: status 1"),
        ("--tool racecheck", 99, "races", "failed: compute-sanitizer found something"),
        ("-m benchmarks", 2, "benchmarks", "failed: status 2"),
    ],
)
def test_a_failure_fails(folder: Path, call: str, status: int, part: str, outcome: str) -> None:
    (folder / "fail").write_text(f"{status} {call}\n")
    assert check(folder).returncode == 1
    found = outcomes(folder)
    assert found[part] == outcome
    assert found["verdict"] == f"not passed: {part}"
    (folder / "fail").write_text("")  # mended, that part alone is done again
    (folder / "calls").write_text("")
    assert check(folder).returncode == 0
    assert outcomes(folder)["verdict"] == "passed"
    assert "-k attention" not in (folder / "calls").read_text()


def test_a_build_that_fails_ends_it(folder: Path) -> None:
    (folder / "fail").write_text("1 -m pip\n")
    assert check(folder).returncode == 1
    assert outcomes(folder) == {"build": "failed: status 1", "verdict": f"not passed: {' '.join(PARTS)}"}


def test_what_is_missing_is_named_first(folder: Path) -> None:
    (folder / "missing").write_text("the package rich>=14.3\n")
    (folder / "bin" / "compute-sanitizer").unlink()
    done = check(folder)
    assert done.returncode == 2
    assert "the program compute-sanitizer" in done.stderr
    assert "the package rich>=14.3" in done.stderr
    assert not (folder / "results").exists()
    assert check(folder, "speed").returncode == 2


def test_the_packages_to_collect_are_those_of_the_project(folder: Path) -> None:
    check(folder, "wheels", "there")
    (call,) = [line for line in (folder / "calls").read_text().splitlines() if "pip download" in line]
    assert "--dest there" in call
    for name in ("pybind11>=", "numba>=", "pytest>=", "setuptools>="):
        assert name in call
    assert "torch>=" not in call
