"""How long a new process takes to its first result, with machine code that an earlier process left on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from subprocess import PIPE

import potloc_fast
from benchmarks.harness import Case, Scaling, Work

# What a process does, step by step.
TORCH = "import torch"
OPERATORS = {TORCH: TORCH, "import potloc_fast": "import potloc_fast", "operators": "import potloc_fast.ops"}
EVALUATION = {
    "import": """
import numpy as np
from potloc_fast.evaluation import Segments, evaluate
from potloc_fast.pseudo_labels import Points, generate
""",
    "first mAP": """
entry = {"label": "a", "score": 1.0, "segment": [0, 9]}
results = {"results": {"v": [entry]}}
evaluate(results, {"database": {"v": {"annotations": [entry]}}})
""",
    "first Algorithm 1": """
zero = np.zeros(1, dtype=np.int64)
generate(Segments.from_results(results), Points(("v",), ("a",), zero, zero, np.ones(1)))
""",
}


def timed(steps: Mapping[str, str]) -> str:
    """Code that runs the steps and prints the seconds of each."""
    return f"""
import json, time
seconds = {{}}
for name, step in {steps!r}.items():
    begin = time.perf_counter()
    exec(step)
    seconds[name] = time.perf_counter() - begin
print(json.dumps(seconds))
"""


def process(*arguments: str) -> str:
    """Run Python in an empty folder, with the package that this process has; returns what it printed."""
    environment = dict(os.environ)
    home = Path(potloc_fast.__file__).resolve().parents[1]
    if home != Path(sysconfig.get_path("platlib")).resolve():
        environment["PYTHONPATH"] = str(home)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=folder, env=environment, check=True, stdout=PIPE, text=True).stdout


def steps_of_a_process(steps: Mapping[str, str], alone: str | None = None) -> Work:
    """All steps, beside a process that does one of them alone."""
    return Work(
        ours=lambda: process("-c", timed(steps)),
        peers={f"{alone} alone": lambda: process("-c", steps[alone])} if alone else {},
        check=lambda *_: None,
        parts=lambda: json.loads(process("-c", timed(steps))),
    )


def command_line() -> Work:
    """To the help of the command line."""
    return Work(lambda: process("-m", "potloc_fast.cli", "--help"), {}, lambda *_: None)


CASES: list[Case | Scaling] = [
    Case(
        "import",
        "new process to first results",
        "mAP and Algorithm 1, which need no torch",
        "",
        partial(steps_of_a_process, EVALUATION),
        limit_s=2.5,
    ),
    Case(
        "import-torch",
        "new process to the operators",
        "import torch, potloc_fast.ops",
        "",
        partial(steps_of_a_process, OPERATORS, TORCH),
    ),
    Case("import-cli", "potloc-fast --help", "new process", "", command_line, limit_s=0.5),
]
