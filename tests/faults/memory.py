"""Memory of a process that predicts, or trains, for a long time: it must stay as it is.

python -m tests.faults.memory --predictions 10000 --steps 100000
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

import potloc_fast
from potloc_fast.config import load_config

ALLOWED_MIB = 8.0
STEPS_AN_EPOCH = 100  # of which each leaves a row in the log
TINY = (
    f"data.recordings={STEPS_AN_EPOCH * 3 // 2}",  # two thirds of them are trained on
    "data.length=50",
    "data.width=4",
    "data.classes=3",
    "base.model.hidden=4",
    "base.train.batch_size=1",
    "model.width=4",
    "model.heads=2",
    "model.levels=1",
    "train.batch_size=1",
    "engine.device=cpu",
)


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def watched(what: str) -> Iterator[None]:
    """Sample the memory, and say how far it rose from the second fifth of the time to the last."""
    samples: list[float] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.05):
            samples.append(resident_mib())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    fifth = max(1, len(samples) // 5)
    before, after = max(samples[fifth : 2 * fifth]), max(samples[-fifth:])
    print(f"{what}: {before:.1f} MiB in the second fifth, {after:.1f} MiB in the last", flush=True)
    if after - before > ALLOWED_MIB:
        sys.exit(f"{what}: grew by {after - before:.1f} MiB, more than {ALLOWED_MIB:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=100_000, help="training steps, of both models together")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    epochs = max(1, arguments.steps // (2 * STEPS_AN_EPOCH))
    with tempfile.TemporaryDirectory() as folder:
        long = [*TINY, f"base.train.epochs={epochs}", f"train.epochs={epochs}"]
        with watched(f"{2 * STEPS_AN_EPOCH * epochs} training steps"):
            run = potloc_fast.train(load_config("synthetic", long), Path(folder) / "run")
        features = np.random.default_rng(0).standard_normal((40, run.features), dtype=np.float32)
        with watched(f"{arguments.predictions} predictions"):
            for _ in range(arguments.predictions):
                potloc_fast.predict(run, {"recording": features})


if __name__ == "__main__":
    main()
