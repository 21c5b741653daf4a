"""Labels of `align` for each of its levels lambda, and which it takes: `python -m benchmarks.label_levels`.

Prints a Markdown table for data sets with true boundaries (see benchmarks.protocol), training people alone: mAP of the
labels at tIoU 0.1 to 0.7, at 0.7 in brackets, and what other recordings tell of them in nats a snippet; of 0 and 1/2
what tells more is taken, in bold. 1 is there to show why it is not tried.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from benchmarks.protocol import prepare
from potloc_fast.config import load_config
from potloc_fast.engine import align as alignment
from potloc_fast.engine.train import load_dataset
from potloc_fast.evaluation import Segments, evaluate
from potloc_fast.pseudo_labels import collect_points

LEVELS = (0.0, 0.5, 1.0)


def row(root: Path, points: str, seed: int) -> list[str]:
    """The cells of a data set."""
    dataset = load_dataset(load_config("own", [f"data.root={root}", f"data.points={points}", f"seed={seed}"]))
    trained = [recording for recording in dataset.recordings if recording.subset == "train"]
    entries = {
        recording.id: [
            {"label": item.label, "segment": [item.start_sec, item.end_sec], "score": 1.0}
            for item in recording.instances
        ]
        for recording in trained
    }
    truth, found = Segments.from_results({"results": entries}), []
    for level in LEVELS:
        alignment.LEVELS = (level,)
        own = collect_points(trained, dataset.classes)
        labels = alignment.align(dataset, own, seed=seed, device=torch.device("cpu"))
        score = evaluate(labels.segments, truth)
        told = re.findall(r"tell (\S+) nats", labels.notes[0])[0]
        found.append((float(told), f"{score.mean:.1f} ({score.map[-1]:.0f}), {told}"))
    best = max(told for told, _ in found[:2])
    return [f"**{cell}**" if told == best else cell for told, cell in found]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.label_levels", description=__doc__)
    parser.add_argument("--data", nargs="+", default=["hapt", "tug", "ecg", "synthetic"], metavar="NAME[=FOLDER]")
    parser.add_argument("--points", default="own", help="own, gaussian, uniform, human, start, ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/protocol"), help="where data sets are kept")
    options = parser.parse_args()
    lines = [f"| data | {' | '.join(f'lambda = {level:g}' for level in LEVELS)} |", "| --- " * (1 + len(LEVELS)) + "|"]
    for entry in options.data:
        name, _, folder = entry.partition("=")
        root = prepare(name, folder or None, False, options.out / "held_out")
        points = "file" if options.points == "own" else options.points
        lines.append(f"| {name} | {' | '.join(row(root, points, options.seed))} |")
    print(*lines, sep="\n")  # at last, as training says how far it is


if __name__ == "__main__":
    main()
