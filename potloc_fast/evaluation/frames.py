"""F1 of detections: of the time that they cover, and of the segments themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potloc_fast.compiled import compiled
from potloc_fast.evaluation.segments import Segments

OVERLAPS = (0.1, 0.25, 0.5)


@dataclass(frozen=True)
class F1:
    """F1 of the detections whose score is at least a threshold, the one threshold that is best for it.

    The frame-level figures are exact: frames are infinitely short. At a moment of a video, a class is predicted where a
    detection of it holds the moment, and true where an instance does; precision and recall are ratios of such time over
    all videos, F1 their harmonic mean, each taken class by class. A class that is predicted nowhere has precision 0.

    Attributes:
        frame: frame-level F1, the mean over classes, in percent.
        precision: the mean of the precisions at the same threshold, in percent.
        recall: the mean of the recalls at the same threshold, in percent.
        threshold: that score; None where nothing was detected.
        per_class: F1 of each class at the same threshold, in percent.
        segmental: F1@10, F1@25 and F1@50 (Lea et al., CVPR 2017), in percent, over all classes at once: of n detections
            and M instances, 2 TP / (n + M), where TP are the true positives at tIoU 0.1, 0.25 and 0.5 as in mAP.
            Each is taken at the threshold that is best for it.
    """

    frame: float
    precision: float
    recall: float
    threshold: float | None
    per_class: dict[str, float]
    segmental: dict[str, float]


def f1(ranked: Segments, truth: Segments, taken: NDArray[np.int64]) -> F1:
    """Measure F1 at the best thresholds.

    Args:
        ranked: aligned detections in the order of `rank`.
        truth: the instances.
        taken: int64[N, 3], the instance that each detection took at each of `OVERLAPS`, -1 where none (see `match`).

    Returns:
        The figures.
    """
    label, score, seconds, true = _pieces(ranked, truth)
    classes = len(truth.labels)
    total = np.bincount(label[true], seconds[true], classes)
    threshold = _best_threshold(label, score, seconds, true, total)
    above = score >= (np.inf if threshold is None else threshold)
    predicted = np.bincount(label[above], seconds[above], classes)
    hit = np.bincount(label[above & true], seconds[above & true], classes)
    frame = 100 * _ratio(2 * hit, predicted + total)
    return F1(
        frame=float(frame.mean()),
        precision=100 * float(_ratio(hit, predicted).mean()),
        recall=100 * float(_ratio(hit, total).mean()),
        threshold=threshold,
        per_class=dict(zip(truth.labels, frame.tolist(), strict=True)),
        segmental={f"F1@{100 * t:g}": _segmental(ranked, truth, taken[:, k] >= 0) for k, t in enumerate(OVERLAPS)},
    )


def _best_threshold(
    label: NDArray[np.int64],
    score: NDArray[np.float64],
    seconds: NDArray[np.float64],
    true: NDArray[np.bool_],
    total: NDArray[Any],
) -> float | None:
    """Give the score from which on the mean F1 of the classes is highest; `total` is the true time of each class."""
    detected = np.flatnonzero(score > -np.inf)
    if not len(detected):
        return None
    # F1 of a class changes where the threshold passes its own scores; the mean is the sum of all changes so far.
    order = detected[np.lexsort((-score[detected], label[detected]))]
    label, score, seconds, hit = label[order], score[order], seconds[order], (seconds * true)[order]
    first = np.searchsorted(label, label)
    predicted, hit = (np.cumsum(time) - np.append(0.0, np.cumsum(time))[first] for time in (seconds, hit))
    value = _ratio(2 * hit, predicted + total[label])
    change = np.where(np.arange(len(label)) == first, value, np.diff(value, prepend=0.0))
    falling = np.argsort(-score, kind="stable")
    means = np.where(_last_of_equal(score[falling]), np.cumsum(change[falling]), -np.inf)
    return float(score[falling[means.argmax()]])


def _segmental(ranked: Segments, truth: Segments, hit: NDArray[np.bool_]) -> float:
    order = np.argsort(-ranked.score, kind="stable")
    values = 2 * np.cumsum(hit[order]) / (np.arange(1, len(order) + 1) + len(truth))
    return 100 * float(values[_last_of_equal(ranked.score[order])].max(initial=0.0))


def _pieces(
    ranked: Segments, truth: Segments
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Cut time at each start and end of a class and video: label, highest score (-inf: none), length and truth."""
    videos = len(truth.videos)
    key = np.concatenate([s.label * videos + s.video for s in (ranked, truth)])
    start, end = (np.concatenate([getattr(s, name) for s in (ranked, truth)]) for name in ("start_sec", "end_sec"))
    keys, times = np.tile(key, 2), np.concatenate([start, end])
    order = np.lexsort((times, keys))
    new = np.append(True, (np.diff(keys[order]) != 0) | (np.diff(times[order]) != 0))
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.cumsum(new) - 1
    first, last = position.reshape(2, -1)
    cuts = order[new]
    # The piece between the last cut of a class and video and the first one of the next is covered by nothing.
    seconds = np.diff(times[cuts], append=0.0)
    # Within a class, and so within what can overlap here, scores fall.
    score = _paint(first[: len(ranked)], last[: len(ranked)], ranked.score, len(cuts))
    true = _paint(first[len(ranked) :], last[len(ranked) :], truth.score, len(cuts)) > -np.inf
    covered = true | (score > -np.inf)
    return keys[cuts][covered] // videos, score[covered], seconds[covered], true[covered]


@compiled
def _paint(first, last, values, size):  # type: ignore[no-untyped-def]
    """Give each of `size` cells the value of the first range [first, last) that holds it, -inf where none does."""
    cells = np.full(size, -np.inf)
    blank = np.arange(size + 1)  # a chain from each cell to the next blank one
    for i in range(len(first)):
        j = first[i]
        while j < last[i]:
            if blank[j] == j:
                cells[j] = values[i]
                blank[j] = j + 1
            elif blank[blank[j]] != blank[j]:
                blank[j] = blank[blank[j]]
            j = blank[j]
    return cells


def _last_of_equal(falling: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell where a threshold can lie: it parts no equal scores."""
    return np.append(falling[1:] != falling[:-1], True)[: len(falling)]


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Divide, 0 / 0 being 0."""
    ratio: NDArray[np.float64] = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return ratio
