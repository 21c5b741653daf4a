"""The random operator calls, in their short form; and that they find what they are there to find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from potloc_fast import ops

ROOT = Path(__file__).resolve().parents[1]

FAULTS = """
import ctypes, os, sys, torch
import tests.faults.operators as faults

def beside(draw, step):
    x = draw.guard(torch.zeros(7, dtype=torch.float64))
    ctypes.string_at(x.data_ptr() + 8 * (7 if draw.at_end else -1) * step, 8)

def write(draw):
    draw.guard(torch.zeros(7)).add_(1)

def wrong(draw):
    faults.equal([torch.ones(1)], [torch.zeros(1)])

def end(draw):
    os._exit(3)

faults.OPERATORS = {"beside": lambda draw: beside(draw, 1), "inside": lambda draw: beside(draw, 0), "write": write,
                    "wrong": wrong, "end": end}
sys.exit(faults.main())
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_random_calls_of_every_operator() -> None:
    done = run("-m", "tests.faults.operators", "--count", "2000")
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert sorted(said) == sorted(ops.__all__), done.stdout


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("beside", "ended by SIGSEGV"),
        ("write", "ended by SIGSEGV"),
        ("wrong", "Tensor-likes are not equal"),
        ("end", "ended with status 3"),
        ("inside", None),
    ],
)
def test_a_fault_is_found_and_the_next_case_goes_on(fault: str, what: str | None) -> None:
    done = run("-c", FAULTS, "--operator", fault, "--count", "3")
    if what is None:
        assert done.returncode == 0, done.stdout
    else:
        assert done.returncode == 1, done.stdout
        assert done.stdout.count("  case ") == done.stdout.count(what) == 3, done.stdout
