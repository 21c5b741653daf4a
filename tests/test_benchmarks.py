"""The benchmarks' harness on cases whose times and results are known."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("benchmarks/ is part of the repository, not of the package", allow_module_level=True)

# Ours takes 2 ms and 64 MiB, the peer 50 ms.
CASES = """
import sys, time
import numpy as np
import benchmarks.__main__ as command
from benchmarks.harness import Case, Scaling, Unavailable, Work

def same(a, b):
    np.testing.assert_array_equal(a, b)

def sleep(seconds, value):
    time.sleep(seconds)
    return np.full(2**23, value)

def absent():
    raise Unavailable("no data here")

def break_off():
    raise RuntimeError("no kernel here\\nand more")

def tell():
    tell.peak_bytes = 12345

def grow(size):
    return Work(lambda: time.sleep(size * 1e-3), {"peer": lambda: None} if size < 4 else {}, lambda a, b: None)

CASES = [
    Case("good", "sleeping", "2 ms", "float64",
         lambda: Work(lambda: sleep(2e-3, 1.0), {"peer": lambda: sleep(5e-2, 1.0)}, same, lambda: {"nap": 2e-3}),
         goals={"peer": 1000.0}, limit_s=10.0),
    Case("wrong", "sleeping", "2 ms", "float64", lambda: Work(lambda: 1.0, {"peer": lambda: 2.0}, same)),
    Case("absent", "nothing", "", "", absent),
    Case("broken", "nothing", "", "", break_off),
    Case("telling", "nothing", "", "", lambda: Work(tell, {}, same)),
    Case("ending", "nothing", "", "", lambda: sys.exit(3)),
    Scaling("grow", "sleeping", "size", "", (1, 2, 4, 8), grow, spread=0.5, steady=2),
]
command.discover = lambda: {case.id: case for case in CASES}
sys.exit(command.main())
"""


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CASES, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_ratio_memory_and_parts_are_measured() -> None:
    done = benchmarks("--quick", "--id", "good", "--json", "-")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["id"] == "good"
    assert value["equal"] is True
    assert 0.002 <= value["ours_s"] < 0.04 < value["peers"]["peer"]
    assert value["ratio"]["peer"] == pytest.approx(value["peers"]["peer"] / value["ours_s"])
    assert value["parts_s"] == {"nap": 2e-3}
    assert value["peak_bytes"]["potloc_fast"] == pytest.approx(2**26, rel=0.05)
    assert f"good: {value['ratio']['peer']:.3g}x of peer, aimed at 1000x" in done.stderr


def test_a_result_that_differs_is_not_timed() -> None:
    done = benchmarks("--quick", "--id", "wrong", "good", "--json", "-")
    assert done.returncode == 1
    wrong, good = json.loads(done.stdout)
    assert wrong["equal"] is False
    assert wrong["ours_s"] is None
    assert wrong["peers"] == wrong["ratio"] == {}
    assert good["equal"] is True
    assert "wrong, 2 ms:" in done.stderr


def test_what_is_not_there_is_said() -> None:
    done = benchmarks("--quick", "--id", "absent")
    assert done.returncode == 1
    assert "absent: not measured: no data here" in done.stderr
    done = benchmarks("--id", "other")
    assert done.returncode == 2
    assert "expected one of good, wrong, absent, broken, telling, ending, grow, got other" in done.stderr


def test_what_breaks_leaves_the_others_measured_and_written(tmp_path: Path) -> None:
    done = benchmarks("--quick", "--id", "telling", "broken", "good", "--json", "-", "--out", str(tmp_path))
    assert done.returncode == 1
    telling, broken, good = json.loads(done.stdout)
    assert broken == {"id": "broken", "error": "RuntimeError: no kernel here"}
    assert done.stderr.endswith("broken: RuntimeError: no kernel here\n")
    assert good["equal"] is True
    assert telling["peak_bytes"] == {"potloc_fast": 12345}
    with next(tmp_path.glob("*.csv")).open(encoding="utf-8", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["telling", "good", "good"]


def test_what_was_measured_is_kept_if_the_process_ends(tmp_path: Path) -> None:
    done = benchmarks("--quick", "--id", "telling", "ending", "--out", str(tmp_path))
    assert done.returncode == 3
    with next(tmp_path.glob("*.csv")).open(encoding="utf-8", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["telling"]


def test_a_scaling_tells_time_and_memory_of_each_size(tmp_path: Path) -> None:
    done = benchmarks("--quick", "--id", "grow", "--json", "-", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert [size["size"] for size in value["sizes"]] == [1, 2, 4, 8]
    assert [sorted(size["seconds"]) for size in value["sizes"]] == [["peer", "potloc_fast"]] * 2 + [["potloc_fast"]] * 2
    assert value["ours_s"] == value["sizes"][-1]["seconds"]["potloc_fast"]
    assert value["peers"]["peer"] == value["sizes"][1]["seconds"]["peer"]
    per_item = [size["seconds"]["potloc_fast"] / size["size"] for size in value["sizes"][1:]]
    assert value["spread"] == pytest.approx(max(per_item) / min(per_item) - 1)
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".md", ".png"}


PRODUCTS = """
import torch
from benchmarks.bench_train import product_flops

def step():
    a, b = torch.ones(2, 3), torch.ones(3, 4)
    (a @ b).addmm_(a, b)
    weight = torch.ones(4, 5, 3, requires_grad=True)
    torch.conv1d(torch.ones(1, 5, 7), weight).sum().backward()

print(product_flops(step))
"""


def test_operations_of_a_step_are_those_of_its_matrix_products() -> None:
    done = subprocess.run([sys.executable, "-c", PRODUCTS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(2 * (2 * 2 * 3 * 4) + 2 * (2 * 5 * 4 * 5 * 3))], done.stderr


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The rows of a CSV that was measured."""
    folder = tmp_path_factory.mktemp("earlier")
    done = benchmarks("--quick", "--id", "good", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    with next(folder.glob("*.csv")).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["provider"] for row in rows] == ["potloc_fast", "peer"]
    return rows


@pytest.mark.parametrize(
    ("factor", "key", "value", "status"),
    [
        (0.9, None, "", 0),
        (100.0, None, "", 1),
        (100.0, "device", "other", 0),
        (100.0, "capability", "other", 0),
        (100.0, "threads", "99", 0),
    ],
)
def test_compare(
    factor: float, key: str | None, value: str, status: int, earlier: list[dict[str, str]], tmp_path: Path
) -> None:
    rows = [dict(row) for row in earlier]
    rows[1]["ratio"] = str(factor * float(rows[1]["ratio"]))
    if key is not None:
        rows[1][key] = value
    path = tmp_path / "earlier.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    done = benchmarks("--quick", "--id", "good", "--compare", str(path), "--max-regression", "60%")
    assert done.returncode == status, done.stderr
    assert ("x of peer, was" in done.stderr) == (status == 1)
    assert f"comparing {0 if key else 1} ratios; {1 if key else 0} are of another" in done.stderr
