"""An archive detected in twice: once undisturbed, once by two workers of which five are killed; and what it costs.

    python -m benchmarks.archive RUN RECORDINGS [--out FOLDER]

prints a table, and ends with an error where the results of the two differ. Times are those of the machine as it is,
with whatever else it does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from potloc_fast.evaluation import read_detections

KILLS = 5


class Worker:
    """A process that detects in an archive."""

    def __init__(self, run: Path, recordings: Path, into: Path) -> None:
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it lives as long as the worker)
        command = [sys.executable, "-m", "potloc_fast", "predict", run, recordings, "--into", into, "--device", "cpu"]
        self.process = subprocess.Popen(list(map(str, command)), stdout=self.output)

    def wait(self) -> tuple[int, float, str]:
        """Its exit status, peak memory in MiB, and what it printed."""
        _, status, usage = os.wait4(self.process.pid, 0)
        self.output.seek(0)
        return os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024, self.output.read()


def rows(into: Path) -> list[dict[str, float]]:
    """The manifest, without a line that a killed worker left unfinished."""
    lines = [line for path in (into / "manifest").iterdir() for line in path.read_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def results(into: Path) -> dict[str, Path]:
    """Results by what they are called."""
    return {str(path.relative_to(into)): path for path in into.glob("*/*.json")} | {
        path.name: path for path in into.glob("*.json") if path.name != "archive.json"
    }


def undisturbed(run: Path, recordings: Path, into: Path) -> dict[str, str]:
    """One worker, and a row of the table."""
    status, memory, printed = Worker(run, recordings, into).wait()
    found = re.search(r"([\d]+) snippets in ([\d.]+) s", printed)
    if status or found is None:
        sys.exit(f"the undisturbed worker ended with {status}: {printed}")
    snippets, seconds = int(found[1]), float(found[2])
    model = sum(row["model_sec"] for row in rows(into))
    return {
        "workers": "1",
        "snippets": f"{snippets:,}",
        "seconds": f"{seconds:.0f}",
        "snippets a second": f"{snippets / seconds:,.0f}",
        "peak memory (MiB)": f"{memory:.0f}",
        "outside the model (%)": f"{100 * (1 - model / seconds):.1f}",
    }


def disturbed(run: Path, recordings: Path, into: Path, seconds: float, seed: int) -> dict[str, str]:
    """Two workers; five times one of them is killed at a random moment, and another begins."""
    rng, begin, most = random.Random(seed), time.monotonic(), 0.0
    workers = [Worker(run, recordings, into) for _ in range(2)]
    for _ in range(KILLS):
        time.sleep(rng.uniform(0.05, 0.2) * seconds)
        victim = rng.randrange(2)
        workers[victim].process.send_signal(signal.SIGKILL)
        status, _, _ = workers[victim].wait()
        if status != -signal.SIGKILL:
            sys.exit("a worker was through before it was killed: take more recordings")
        workers[victim] = Worker(run, recordings, into)
    for worker in workers:
        status, memory, printed = worker.wait()
        most = max(most, memory)
        if status:
            sys.exit(f"a worker ended with {status}: {printed}")
    took, done = time.monotonic() - begin, rows(into)
    snippets = sum(row["snippets"] for row in done)
    return {
        "workers": f"2, {KILLS} killed",
        "snippets": f"{snippets:,.0f}",
        "seconds": f"{took:.0f}",
        "snippets a second": f"{snippets / took:,.0f}",
        "peak memory (MiB)": f"{most:.0f}",
        "outside the model (%)": "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/archive"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    whole, shared = arguments.out / "whole", arguments.out / "shared"
    table = [undisturbed(arguments.run, arguments.recordings, whole)]
    seconds = float(table[0]["seconds"].replace(",", ""))
    table.append(disturbed(arguments.run, arguments.recordings, shared, seconds / 2, arguments.seed))
    print("| " + " | ".join(table[0]) + " |")
    print("| " + " | ".join("---" for _ in table[0]) + " |")
    for row in table:
        print("| " + " | ".join(row.values()) + " |")
    one, other = results(whole), results(shared)
    if one.keys() != other.keys():
        sys.exit(f"{len(one.keys() ^ other.keys())} results are in one alone")
    different = [name for name in one if one[name].read_bytes() != other[name].read_bytes()]
    print(f"{len(one)} results, {len(different)} of them not byte for byte the same")
    for name in different:
        a, b = read_detections(one[name]).to_results()["results"], read_detections(other[name]).to_results()["results"]
        [a], [b] = a.values(), b.values()
        numbers = [[(row["score"], *row["segment"]) for row in rows] for rows in (a, b)]
        same = [row["label"] for row in a] == [row["label"] for row in b]
        if not (same and np.allclose(*numbers, rtol=0, atol=1e-4)):
            sys.exit(f"{name}: other detections")


if __name__ == "__main__":
    main()
