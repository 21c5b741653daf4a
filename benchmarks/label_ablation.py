"""What each part of `align` gives: `python -m benchmarks.label_ablation --seeds 3`.

Prints the table of benchmarks/results/label_ablation.md for data sets with true boundaries (see benchmarks.protocol),
training people alone: mAP of the labels at tIoU 0.1 to 0.7, the mean over the seeds and their deviation, and at 0.7 in
brackets.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.protocol import prepare
from potloc_fast.config import load_config
from potloc_fast.engine import align as alignment
from potloc_fast.engine.train import load_dataset
from potloc_fast.evaluation import Evaluation, Segments, evaluate
from potloc_fast.pseudo_labels import PseudoLabels, collect_points

ARMS: dict[str, dict[str, Any]] = {  # with the lambda that `align` takes
    "no shares": {"_log_shares": lambda targets, classes: np.zeros(classes + 1)},
    "no lengths": {"DURATION_WEIGHT": 0.0},
    "half the steps": {"STEPS": alignment.STEPS // 2},
    "sees one to either side": {"REACH": 1},
    "sees three": {"REACH": 3},
}


def score(
    root: Path, points: str, seed: int, level: float, changes: dict[str, Any]
) -> tuple[Evaluation, float, PseudoLabels]:
    """What the labels score on the training recordings, what other recordings tell of them in nats, and the labels."""
    dataset = load_dataset(load_config("own", [f"data.root={root}", f"data.points={points}", f"seed={seed}"]))
    trained = [recording for recording in dataset.recordings if recording.subset == "train"]
    entries = {
        recording.id: [
            {"label": item.label, "segment": [item.start_sec, item.end_sec], "score": 1.0}
            for item in recording.instances
        ]
        for recording in trained
    }
    with mock.patch.multiple(alignment, LEVELS=(level,), **changes):
        own = collect_points(trained, dataset.classes)
        labels = alignment.align(dataset, own, seed=seed, device=torch.device("cpu"))
    told = float(re.findall(r"tell (\S+) nats", labels.notes[0])[0])
    return evaluate(labels.segments, Segments.from_results({"results": entries})), told, labels


def row(root: Path, points: str, seeds: int) -> list[str]:
    """The cells of a data set."""
    columns: list[list[Evaluation]] = [[] for _ in heads()[1:]]
    for seed in range(seeds):
        levels = [score(root, points, seed, level, {}) for level in alignment.LEVELS]
        taken = alignment.choose([told for _, told, _ in levels], [labels for _, _, labels in levels])
        arms = [score(root, points, seed, alignment.LEVELS[taken], changes)[0] for changes in ARMS.values()]
        results = [levels[taken][0], *(found for found, _, _ in levels), *arms]
        for column, result in zip(columns, results, strict=True):
            column.append(result)
    cells = []
    for column in columns:
        mean, last = np.array([result.mean for result in column]), np.mean([result.map[-1] for result in column])
        cells.append(f"{mean.mean():.1f} ± {mean.std():.1f} ({last:.0f})")
    return cells


def heads() -> list[str]:
    """The columns of the table."""
    return ["data", "as it is", *(f"lambda = {level:g}" for level in alignment.LEVELS), *ARMS]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.label_ablation", description=__doc__)
    parser.add_argument("--data", nargs="+", default=["hapt", "tug", "ecg", "synthetic"], metavar="NAME[=FOLDER]")
    parser.add_argument("--points", default="own", help="own, gaussian, uniform, human, start, ...")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/protocol"), help="where data sets are kept")
    options = parser.parse_args()
    lines = ["| " + " | ".join(heads()) + " |", "| " + " | ".join("---" for _ in heads()) + " |"]
    for entry in options.data:
        name, _, folder = entry.partition("=")
        root = prepare(name, folder or None, False, options.out / "held_out")
        points = "file" if options.points == "own" else options.points
        lines.append(f"| {name} | {' | '.join(row(root, points, options.seeds))} |")
    print(*lines, sep="\n")  # at last, as training says how far it is


if __name__ == "__main__":
    main()
