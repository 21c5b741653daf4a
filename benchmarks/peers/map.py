"""Average precision as the ActivityNet challenge's official evaluator takes it, in plain NumPy.

Written from the description of its protocol: a class at a time, detections in order of falling score, each against all
instances of its class and video in order of falling tIoU, a threshold at a time. Times are exact, and equal scores
keep the order of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Row(NamedTuple):
    """A detection or an instance."""

    video: str
    label: str
    start: float
    end: float
    score: float = 1.0


def rows_of_results(content: Any) -> list[Row]:
    """Take the detections out of a file's content."""
    return [
        Row(video, entry["label"], *map(float, entry["segment"]), float(entry["score"]))
        for video, entries in content["results"].items()
        for entry in entries
    ]


def rows_of_database(content: Any, subset: str | None) -> list[Row]:
    """Take the instances of a subset, or of all, out of a ground truth's content."""
    return [
        Row(video, entry["label"], *map(float, entry["segment"]))
        for video, content_of_video in content["database"].items()
        if subset is None or content_of_video["subset"] == subset
        for entry in content_of_video["annotations"]
    ]


def average_precisions(found: Sequence[Row], truth: Sequence[Row], tiou: Sequence[float]) -> dict[str, list[float]]:
    """Give the average precision of each class of the truth at each threshold, in percent."""
    return {
        label: _average_precisions_of_class(
            [row for row in found if row.label == label], [row for row in truth if row.label == label], tiou
        )
        for label in dict.fromkeys(row.label for row in truth)
    }


def _average_precisions_of_class(found: list[Row], truth: list[Row], tiou: Sequence[float]) -> list[float]:
    by_video: dict[str, list[int]] = {}
    for index, row in enumerate(truth):
        by_video.setdefault(row.video, []).append(index)
    spans = {video: np.array([truth[index][2:4] for index in indices]) for video, indices in by_video.items()}
    found = sorted(found, key=lambda row: -row.score)
    free = np.ones((len(tiou), len(truth)), dtype=bool)
    hit = np.zeros((len(tiou), len(found)))
    for rank, row in enumerate(found):
        if row.video not in spans:
            continue
        overlap = _overlap(row, spans[row.video])
        indices = by_video[row.video]
        for best in overlap.argsort()[::-1]:
            for k, threshold in enumerate(tiou):
                if overlap[best] >= threshold and free[k, indices[best]] and not hit[k, rank]:
                    hit[k, rank] = 1
                    free[k, indices[best]] = False
            if overlap[best] < min(tiou):
                break
    true, count = np.cumsum(hit, axis=1), np.arange(1, len(found) + 1)
    return [100 * _area(true[k] / count, true[k] / len(truth)) for k in range(len(tiou))]


def _overlap(row: Row, spans: NDArray[np.float64]) -> NDArray[np.float64]:
    intersection = np.clip(np.minimum(row.end, spans[:, 1]) - np.maximum(row.start, spans[:, 0]), 0, None)
    union = (spans[:, 1] - spans[:, 0]) + (row.end - row.start) - intersection
    return np.divide(intersection, union, out=np.zeros(len(spans)), where=union > 0)


def _area(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> float:
    """Area under the curve of precision made monotone."""
    precision = np.concatenate(([0.0], precision, [0.0]))
    recall = np.concatenate(([0.0], recall, [1.0]))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    step = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(np.sum((recall[step] - recall[step - 1]) * precision[step]))
