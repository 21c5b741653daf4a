"""The quality of each variant's pseudo-labels, for points elsewhere too: `python -m benchmarks.pseudo_label_variants`.

Prints a Markdown table for THUMOS'14: mean mAP at tIoU 0.1 to 0.7 and, in brackets, the mean tIoU of labels with the
instances of their points (in percent; 0 without a label), on the training videos. The points are what two people
clicked, the published ones, which were drawn, and others that are drawn here; "start" and "end" are the first and the
last moment of an instance. The proposals are always the published ones, of a base model that was trained on the
published points.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potloc_fast.data.points import Distribution, sample_points
from potloc_fast.data.recording import Instance
from potloc_fast.evaluation import Segments, evaluate, read_detections, read_ground_truth
from potloc_fast.files import read_json
from potloc_fast.pseudo_labels import Points, PseudoLabels, generate, read_points

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "thumos14"
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"variant": "paper"},
    "released": {"variant": "released"},
    "fused": {"variant": "fused"},
}
# Points and the spans of their instances: float64[N, 2], NaN for clicks that lie in none.
Labelled = tuple[Points, NDArray[np.float64]]


def clicked(truth: Segments, annotator: int) -> Labelled:
    """What a person clicked: lines of video,seconds,label, some empty."""
    with (DATA / "clicks" / f"annotator_{annotator}.txt").open(newline="") as file:
        rows = [(video, label, float(time)) for video, time, label in filter(None, csv.reader(file))]
    names, classes = (tuple(dict.fromkeys(column)) for column in ([row[0] for row in rows], [row[1] for row in rows]))
    instances: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for video, label, *span in zip(truth.video, truth.label, truth.start_sec, truth.end_sec, strict=True):
        instances.setdefault((truth.videos[video], truth.labels[label]), []).append((span[0], span[1]))
    spans = [
        next((span for span in instances.get((video, label), []) if span[0] <= time <= span[1]), (np.nan, np.nan))
        for video, label, time in rows
    ]
    video, label = (
        np.array([among.index(row[column]) for row in rows]) for column, among in enumerate((names, classes))
    )
    return Points(names, classes, video, label, np.array([row[2] for row in rows])), np.array(spans)


def published() -> Labelled:
    """The published points; their file has the frames of the instances beside them."""
    rates = read_json(DATA / "fps_dict.json")
    with (DATA / "point_labels.csv").open(newline="") as file:
        spans = [
            [float(row[column]) / rates[row["video_id"]] for column in ("start_frame", "stop_frame")]
            for row in csv.DictReader(file)
        ]
    return read_points(DATA / "point_labels.csv", DATA / "fps_dict.json"), np.array(spans)


def drawn(truth: Segments, distribution: Distribution, seed: int) -> Labelled:
    """A point in each instance."""
    order = np.argsort(truth.video, kind="stable")
    spans = np.stack((truth.start_sec, truth.end_sec), axis=1)[order]
    times = []
    for number, video in enumerate(truth.videos):
        inside = np.flatnonzero(truth.video == number)
        instances = [Instance("", truth.start_sec[i], truth.end_sec[i]) for i in inside]
        points = sample_points(instances, distribution, seed=seed, recording_id=video)
        times += [point.time_sec for point in points]
    return Points(truth.videos, truth.labels, truth.video[order], truth.label[order], np.array(times)), spans


def mean_tiou(labels: PseudoLabels, labelled: Labelled) -> float:
    """Mean tIoU of each point's label with its instance, where it has one."""
    points, spans = labelled
    segments = labels.segments
    found = iter(
        zip(segments.video, segments.label, labels.point_sec, segments.start_sec, segments.end_sec, strict=True)
    )
    entry = next(found, None)
    total = 0.0
    # Labels are in the order of the points, some of which may have none.
    for *point, (start, end) in zip(points.video, points.label, points.time_sec, spans, strict=True):
        if entry is not None and [*entry[:3]] == point:
            overlap = max(0.0, min(end, entry[4]) - max(start, entry[3]))
            total += np.nan_to_num(overlap / (end - start + entry[4] - entry[3] - overlap))
            entry = next(found, None)
    assert entry is None
    return total / np.isfinite(spans[:, 0]).sum()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pseudo_label_variants", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="draws of gaussian and uniform points")
    seeds = parser.parse_args().seeds
    proposals, truth = read_detections(DATA / "base_proposals.json"), read_ground_truth(DATA / "gt.json", "train")
    columns = {
        "annotator 1": [clicked(truth, 1)],
        "annotator 3": [clicked(truth, 3)],
        "published": [published()],
        "gaussian": [drawn(truth, "gaussian", seed) for seed in range(seeds)],
        "uniform": [drawn(truth, "uniform", seed) for seed in range(seeds)],
        "start": [drawn(truth, "start", 0)],
        "end": [drawn(truth, "end", 0)],
    }
    print(f"| variant | {' | '.join(columns)} |")
    print("| --- " * (1 + len(columns)) + "|")
    for name, options in VARIANTS.items():
        cells = []
        for draws in columns.values():
            results = [generate(proposals, points, **options) for points, _ in draws]
            scores = [evaluate(labels.segments, truth).mean for labels in results]
            tiou = [mean_tiou(labels, labelled) for labels, labelled in zip(results, draws, strict=True)]
            deviation = f" ± {np.std(scores, ddof=1):.1f}" if len(scores) > 1 else ""
            cells.append(f"{np.mean(scores):.1f}{deviation} ({100 * np.mean(tiou):.1f})")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
