"""Do figures that need no truth rank runs as mAP does? `python -m benchmarks.quality --data synthetic tug`.

Trains runs of different worth on the points of a data set, on purpose: with few steps, and from labels that are made
too short, too long, moved, of wrong classes or left out. Each is scored on held-out training people, by mAP and by the
figures of `potloc_fast.engine.quality`, and Spearman's rank correlation says how well the one follows the other. What
is done is kept: the same command goes on where it stopped. Writes quality.csv and quality.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.protocol import prepare
from potloc_fast.config import load_config
from potloc_fast.data.points import sample_points
from potloc_fast.engine.quality import assess
from potloc_fast.engine.run import Run
from potloc_fast.engine.train import load_dataset, train
from potloc_fast.evaluation import read_detections, read_ground_truth
from potloc_fast.evaluation.align import align
from potloc_fast.evaluation.average_precision import match, rank
from potloc_fast.files import read_json, write_json, write_text
from potloc_fast.pseudo_labels import PseudoLabels, read_pseudo_labels

Row = dict[str, float | None]
Change = Callable[[PseudoLabels, np.random.Generator], PseudoLabels]


def _bounded(labels: PseudoLabels, start: NDArray[np.float64], end: NDArray[np.float64]) -> PseudoLabels:
    """Labels with other boundaries, that still hold their points."""
    point = labels.point_sec
    start, end = np.minimum(start, point).clip(0), np.maximum(end, np.nextafter(point, np.inf))
    return replace(labels, segments=replace(labels.segments, start_sec=start, end_sec=end))


def stretched(factor: float, shift: float = 0.0) -> Change:
    """Labels `factor` times as long, moved by `shift` of their length, that still hold their points."""

    def change(labels: PseudoLabels, rng: np.random.Generator) -> PseudoLabels:
        own = labels.segments
        length = own.end_sec - own.start_sec
        centre = (own.start_sec + own.end_sec) / 2 + shift * length
        return _bounded(labels, centre - factor * length / 2, centre + factor * length / 2)

    return change


def jittered(deviation: float) -> Change:
    """Labels each of whose boundaries errs by a random part of the length."""

    def change(labels: PseudoLabels, rng: np.random.Generator) -> PseudoLabels:
        own = labels.segments
        length = own.end_sec - own.start_sec
        start = own.start_sec + deviation * length * rng.standard_normal(len(own))
        return _bounded(labels, start, own.end_sec + deviation * length * rng.standard_normal(len(own)))

    return change


def confused(share: float) -> Change:
    """Labels of which a random share gets the class of another label."""

    def change(labels: PseudoLabels, rng: np.random.Generator) -> PseudoLabels:
        own = labels.segments
        wrong = rng.random(len(own)) < share
        return replace(labels, segments=replace(own, label=np.where(wrong, rng.permutation(own.label), own.label)))

    return change


def thinned(share: float) -> Change:
    """A random share of the labels alone."""

    def change(labels: PseudoLabels, rng: np.random.Generator) -> PseudoLabels:
        kept = rng.random(len(labels)) < share
        return PseudoLabels(labels.segments.take(kept), labels.point_sec[kept])

    return change


ARMS: dict[str, tuple[float, Change | None]] = {  # share of the epochs, what is done to the labels
    "as it is": (1.0, None),
    "half the steps": (0.5, None),
    "a fifth of the steps": (0.2, None),
    "a fifteenth of the steps": (1 / 15, None),
    "labels half as long": (1.0, stretched(0.5)),
    "labels 1.6 times as long": (1.0, stretched(1.6)),
    "labels moved": (1.0, stretched(1.0, 0.3)),
    "labels that err": (1.0, jittered(0.3)),
    "a third of wrong class": (1.0, confused(1 / 3)),
    "half of the labels": (1.0, thinned(0.5)),
    "a quarter of the labels": (1.0, thinned(0.25)),
}


def runs(root: Path, arms: Sequence[str], overrides: Sequence[str], out: Path) -> dict[str, Run]:
    """Train the arms, or go on with them."""
    source = out / "labels"
    if not (source / "pseudo_labels.json").is_file():
        train(load_config("own", [f"data.root={root}", *overrides]), source, ["pseudo-labels"])
    labels, epochs = read_pseudo_labels(source / "pseudo_labels.json"), Run.open(source).config.train.epochs
    found = {}
    for arm in arms:
        share, change = ARMS[arm]
        folder = out / arm.replace(" ", "_")
        if not (folder / "potloc" / "evaluation.json").is_file():
            changed = labels if change is None else change(labels, np.random.default_rng(0))
            write_json(folder / "pseudo_labels.json", changed.to_results())
            config = load_config(source / "config.yaml", [f"train.epochs={max(1, round(share * epochs))}"])
            train(config, folder, ["potloc", "detect"], resume=(folder / "config.yaml").is_file())
        found[arm] = Run.open(folder)
    return found


def figures(run: Run) -> Row:
    """What a run scores on held-out people, and what is known without truth: from their points, and from training."""
    dataset = load_dataset(run.config)
    trained, tested = dataset.subset("train"), dataset.subset("test")
    held_out = [
        replace(item, points=sample_points(item.instances, "gaussian", seed=5, recording_id=item.id)) for item in tested
    ]
    cpu = torch.device("cpu")
    score = read_json(run.folder / "potloc" / "evaluation.json")
    row: Row = {"mAP": score["mean"], "mAP at 0.5": score["map"][4]}
    known = assess(run, trained, held_out, cpu)
    for where, own in (("held out", known), ("trained on", assess(run, trained, (), cpu))):
        hits = own.hits
        row[f"F1 of points, {where}"] = 100 * hits.f1
        row[f"points hit once, {where}"] = 100 * hits.once / hits.points
        row[f"detections without a point, {where}"] = -100 * hits.empty / max(hits.detections, 1)
        row[f"agreement, {where}"] = 100 * own.agreement
        row[f"boundary_sec, {where}"] = None if own.boundary_sec is None else -own.boundary_sec
    row["tIoU with labels, trained on"] = None if known.label_tiou is None else 100 * known.label_tiou
    return row | _by_truth(run, known.min_score)


def _by_truth(run: Run, min_score: float) -> Row:
    """With the truth of held-out people: errors of boundaries, and F1 at the score that was chosen and at the best."""
    truth = read_ground_truth(run.folder / "ground_truth.json", "test")
    found, truth, _ = align(read_detections(run.folder / "potloc" / "detections.json"), truth)
    found = found.take(rank(found))
    loose, right = match(found, truth, np.array([0.1, 0.5])).T
    kept = (loose >= 0) & (found.score >= min_score)
    own = truth.take(loose[kept])
    errors = np.concatenate([found.start_sec[kept] - own.start_sec, found.end_sec[kept] - own.end_sec])

    def f1(least: float) -> float:
        over = found.score >= least
        return float(200 * (over & (right >= 0)).sum() / (over.sum() + len(truth)))

    return {
        "true error of boundaries (s)": -float(np.median(np.abs(errors))) if len(errors) else None,
        "F1 at min_score": f1(min_score),
        "F1 at the best score": max(map(f1, np.unique(found.score)), default=0.0),
    }


def correlation(first: Sequence[float | None], second: Sequence[float | None]) -> float | None:
    """Spearman's rank correlation, over the runs that have both figures; None where one is the same in all of them."""
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    ranks = []
    for values in zip(*both, strict=True):
        _, number, count = np.unique(np.round(values, 9), return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[number])
    if len(both) < 3 or min(np.ptp(own) for own in ranks) == 0:
        return None
    return float(np.corrcoef(ranks)[0, 1])


def tables(name: str, rows: dict[str, Row]) -> str:
    """The runs of a data set, and how well each figure ranks them."""
    keys = list(next(iter(rows.values())))
    shown = ["mAP", "mAP at 0.5", *(key for key in keys if "held out" in key), *keys[-4:]]
    lines = [
        f"## {name}",
        "",
        *_table(["run", *shown], [[arm, *(row[key] for key in shown)] for arm, row in rows.items()]),
    ]
    aims = ("mAP", "mAP at 0.5", "true error of boundaries (s)")
    told = [key for key in keys if key not in aims and not key.startswith("F1 at")]
    columns = {key: [row[key] for row in rows.values()] for key in keys}
    ranked = [[key, *(correlation(columns[key], columns[aim]) for aim in aims)] for key in told]
    return "\n".join([*lines, "", *_table(["rank correlation with", *aims], ranked, digits=2), ""])


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], digits: int = 1) -> list[str]:
    # What is better when it is less is negative in the rows, so that all rank alike; people read it as it is.
    cells = [
        [
            cell if isinstance(cell, str) else "" if cell is None else f"{cell if digits > 1 else abs(cell):.{digits}f}"
            for cell in row
        ]
        for row in rows
    ]
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *cells)]


def main() -> None:
    """Read the arguments, train, and write the tables after each data set."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to every arm, before --data")
    parser.add_argument("--data", nargs="+", default=["synthetic", "tug"], metavar="NAME[=FOLDER]")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    options = parser.parse_args()
    for entry in options.data:
        name, _, folder = entry.partition("=")
        root = prepare(name, folder or None, False, options.out)
        found = {
            arm: figures(run) for arm, run in runs(root, options.arms, options.overrides, options.out / name).items()
        }
        text = tables(name, found)
        write_text(options.out / f"{name}.md", text)
        print(text)


if __name__ == "__main__":
    main()
