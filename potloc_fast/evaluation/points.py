"""What points say of detections where nobody knows the true boundaries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from potloc_fast.evaluation.segments import Segments
from potloc_fast.pseudo_labels import Points

ALIKE = 0.01  # of F1: scores less apart can't be told from each other

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Hits:
    """Points and detections from a score on, held against each other. A detection holds points of its class alone.

    Attributes:
        points: how many there are: the sum of the four kinds that follow.
        once: points in exactly one detection, which holds no other point.
        shared: points in exactly one detection, which holds other points, too.
        doubled: points in several detections.
        missed: points in no detection.
        detections: how many there are.
        empty: detections that hold no point.
    """

    points: int
    once: int
    shared: int
    doubled: int
    missed: int
    detections: int
    empty: int

    @property
    def f1(self) -> float:
        """Twice the points hit once, over points and detections together: 1 where each belongs to one of the other."""
        return 2 * self.once / max(self.points + self.detections, 1)


def pairs(detections: Segments, points: Points) -> tuple[Integers, Integers]:
    """Find which detections hold which points of their video and class: start <= point < end.

    Args:
        detections: D of them.
        points: P of them, with the same `videos` and `labels`.

    Returns:
        The point and the detection of each pair, int64[K] each, by point and then by falling score.
    """
    if (detections.videos, detections.labels) != (points.videos, points.labels):
        raise ValueError("expected detections and points of the same videos and labels")
    # Times become ranks, so that video, class and time are one whole number that sorts as they do.
    times = np.concatenate([points.time_sec, detections.start_sec, detections.end_sec])
    rank = np.unique(times, return_inverse=True)[1].astype(np.int64)
    at, start, end = np.split(rank, np.cumsum([len(points), len(detections)]))
    classes = max(len(points.labels), 1)
    group = (points.video * classes + points.label) * (len(times) + 1)
    own = (detections.video * classes + detections.label) * (len(times) + 1)
    order = np.argsort(group + at, kind="stable")
    key = (group + at)[order]
    low, high = np.searchsorted(key, own + start), np.searchsorted(key, own + end)
    count = high - low
    detection = np.repeat(np.arange(len(detections)), count)
    point = order[np.arange(count.sum()) - np.repeat(np.cumsum(count) - count - low, count)]
    by_point = np.lexsort((-detections.score[detection], point))
    return point[by_point], detection[by_point]


class PointHits:
    """Which points detections hold, for every score from which one might keep them.

    Args:
        detections: D of them.
        points: P of them, with the same `videos` and `labels`.

    Attributes:
        best: int64[P], the best detection that holds each point, -1 where there is none.
        held: int64[D], how many points each detection holds.
    """

    def __init__(self, detections: Segments, points: Points) -> None:
        self.detections, self.points = detections, points
        point, detection = pairs(detections, points)
        self.held: Integers = np.bincount(detection, minlength=len(detections))
        count = np.bincount(point, minlength=len(points))
        first = np.cumsum(count) - count
        self.best: Integers = np.full(len(points), -1)
        self.best[count > 0] = detection[first[count > 0]]
        # The scores of the best and of the next detection: between them a point is hit once.
        self._first, self._second = np.full((2, len(points)), -np.inf)
        self._first[count > 0] = detections.score[detection[first[count > 0]]]
        self._second[count > 1] = detections.score[detection[first[count > 1] + 1]]
        self._alone = (count > 0) & (self.held[self.best] == 1) if len(detections) else np.zeros(len(points), bool)

    def at(self, min_score: float, label: int | None = None) -> Hits:
        """Count among the detections that score at least `min_score`, of one class or of all."""
        own = np.full(len(self.points), True) if label is None else self.points.label == label
        kept = self.detections.score >= min_score
        if label is not None:
            kept &= self.detections.label == label
        hit, several = own & self.hit(min_score), own & (self._second >= min_score)
        single = hit & ~several
        return Hits(
            points=int(own.sum()),
            once=int((single & self._alone).sum()),
            shared=int((single & ~self._alone).sum()),
            doubled=int(several.sum()),
            missed=int((own & ~hit).sum()),
            detections=int(kept.sum()),
            empty=int((kept & (self.held == 0)).sum()),
        )

    def hit(self, min_score: float) -> NDArray[np.bool_]:
        """Which points a detection that scores at least `min_score` holds, bool[P]."""
        return self._first >= min_score

    def f1(self) -> tuple[Floats, Floats]:
        """F1 (`Hits.f1`) for every score that a detection has: scores, ascending, and F1, float64[S] each."""
        scores, count = np.unique(self.detections.score, return_counts=True)
        kept = count[::-1].cumsum()[::-1]
        # Of the points that can be hit once those are whose best detection is kept, and not the next one.
        first, second = np.sort(self._first[self._alone]), np.sort(self._second[self._alone])
        once = np.searchsorted(second, scores) - np.searchsorted(first, scores)
        return scores, 2 * once / (kept + len(self.points))

    def fitting_score(self) -> float:
        """A score that fits the points, with a margin for recordings that nobody learned from.

        Scores of these are lower than those of the recordings that were learned: the score from which F1 is best would
        leave out much. It is half-way, in log-odds, from the highest such score down to the lowest one whose F1 is at
        most ALIKE lower.

        Returns:
            It, or the middle of the two where they are no probabilities; 0 where there is no detection.
        """
        scores, f1 = self.f1()
        if not len(f1):
            return 0.0
        high = scores[len(f1) - 1 - f1[::-1].argmax()]
        low = scores[(f1 >= f1.max() - ALIKE).argmax()]
        if low <= 0 or high >= 1:
            return float((low + high) / 2)
        odds = np.sqrt(low / (1 - low) * high / (1 - high))
        return float(odds / (1 + odds))

    def average_precision(self) -> float:
        """The mean over classes of the average precision of detections that are the best one of a single point."""
        correct = np.zeros(len(self.detections), bool)
        correct[self.best[self._alone]] = True
        values = []
        for label in np.unique(self.points.label):
            own = np.flatnonzero(self.detections.label == label)
            right = correct[own[np.argsort(-self.detections.score[own], kind="stable")]]
            precision = right.cumsum() / np.arange(1, len(right) + 1)
            values.append(precision[right].sum() / (self.points.label == label).sum())
        return float(np.mean(values)) if values else 0.0


def tiou(start: Floats, end: Floats, other_start: Floats, other_end: Floats) -> Floats:
    """The temporal intersection over union of segments, one by one; 0 where both are empty."""
    common = (np.minimum(end, other_end) - np.maximum(start, other_start)).clip(0)
    union = (end - start) + (other_end - other_start) - common
    return common / np.where(union > 0, union, 1.0)
