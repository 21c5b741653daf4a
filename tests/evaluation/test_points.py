"""Points against detections, held against the same counted one by one."""

from __future__ import annotations

import numpy as np
import pytest

from potloc_fast.evaluation import Segments
from potloc_fast.evaluation.points import Hits, PointHits, tiou
from potloc_fast.pseudo_labels import Points

VIDEOS, LABELS = ("v1", "v2", "v3"), ("a", "b")


def made(seed: int, size: int, count: int) -> tuple[Segments, Points]:
    """Detections and points on whole seconds, and scores in tenths: many are equal."""
    rng = np.random.default_rng(seed)
    start, length = rng.integers(0, 20, size).astype(float), rng.integers(0, 6, size)
    where = (rng.integers(0, 3, size), rng.integers(0, 2, size))
    found = Segments(VIDEOS, LABELS, *where, start, start + length, rng.integers(1, 9, size) / 10)
    where = (rng.integers(0, 3, count), rng.integers(0, 2, count))
    return found, Points(VIDEOS, LABELS, *where, rng.integers(0, 24, count).astype(float))


def count(found: Segments, points: Points, min_score: float, label: int | None = None) -> Hits:
    kept = [i for i in range(len(found)) if found.score[i] >= min_score and label in (None, found.label[i])]
    own = [p for p in range(len(points)) if label in (None, points.label[p])]

    def holds(i: int, p: int) -> bool:
        same = found.video[i] == points.video[p] and found.label[i] == points.label[p]
        return bool(same and found.start_sec[i] <= points.time_sec[p] < found.end_sec[i])

    of_point = {p: [i for i in kept if holds(i, p)] for p in own}
    of_detection = {i: [p for p in own if holds(i, p)] for i in kept}
    single = [of[0] for of in of_point.values() if len(of) == 1]
    once = sum(len(of_detection[i]) == 1 for i in single)
    doubled = sum(len(of) > 1 for of in of_point.values())
    missed = sum(not of for of in of_point.values())
    empty = sum(not of for of in of_detection.values())
    return Hits(len(own), once, len(single) - once, doubled, missed, len(kept), empty)


@pytest.mark.parametrize("seed", range(20))
def test_counts(seed: int) -> None:
    found, points = made(seed, 40, 15)
    hits = PointHits(found, points)
    for min_score in (0.0, 0.3, 0.31, 0.8, 2.0):
        for label in (None, 0, 1):
            assert hits.at(min_score, label) == count(found, points, min_score, label)
    scores, f1 = hits.f1()
    assert scores.tolist() == sorted({*found.score.tolist()})
    assert f1.tolist() == [count(found, points, score).f1 for score in scores]
    best, high = max(zip(f1, scores, strict=True))
    low = min(score for score, own in zip(scores, f1, strict=True) if own >= best - 0.01)
    assert np.log(1 / hits.fitting_score() - 1) == pytest.approx((np.log(1 / low - 1) + np.log(1 / high - 1)) / 2)


def test_nothing_there() -> None:
    for size, points in ((0, 0), (0, 4), (4, 0)):
        hits = PointHits(*made(1, size, points))
        assert hits.at(0.0) == Hits(points, 0, 0, 0, points, size, size)
        scores = hits.detections.score.tolist()
        assert 0 <= hits.fitting_score() <= max(scores, default=0)
        assert min(scores, default=0) <= hits.fitting_score()


def test_the_score_leaves_out_what_holds_no_point() -> None:
    """Three actions are found once, with 0.9, 0.5 and 0.4; 0.3 holds nothing, and 0.2 doubles the first."""
    start = np.array([0.0, 10.0, 20.0, 40.0, 1.0])
    row = np.zeros(5, dtype=np.int64)
    found = Segments(VIDEOS, LABELS, row, row, start, start + 5, np.array([0.9, 0.5, 0.4, 0.3, 0.2]))
    points = Points(VIDEOS, LABELS, row[:3], row[:3], np.array([2.0, 12.0, 22.0]))
    hits = PointHits(found, points)
    assert hits.fitting_score() == pytest.approx(0.4)
    assert hits.at(0.4) == Hits(points=3, once=3, shared=0, doubled=0, missed=0, detections=3, empty=0)
    assert hits.at(0.0) == Hits(points=3, once=2, shared=0, doubled=1, missed=0, detections=5, empty=1)
    assert hits.best.tolist() == [0, 1, 2]


def test_the_order_of_rows_does_not_matter() -> None:
    found, points = made(3, 40, 15)
    mixed = found.take(np.random.default_rng(0).permutation(40))
    assert PointHits(mixed, points).at(0.3) == PointHits(found, points).at(0.3)


def test_other_classes_are_refused() -> None:
    found, points = made(1, 4, 4)
    with pytest.raises(ValueError, match="same videos and labels"):
        PointHits(found, Points(VIDEOS, ("a",), points.video, points.label * 0, points.time_sec))


def test_tiou() -> None:
    start, end = np.array([0.0, 0.0, 3.0, 1.0]), np.array([4.0, 2.0, 3.0, 1.0])
    other = np.array([2.0, 2.0, 3.0, 0.0]), np.array([6.0, 4.0, 3.0, 2.0])
    assert tiou(start, end, *other).tolist() == [1 / 3, 0.0, 0.0, 0.0]


def test_the_score_leaves_a_margin() -> None:
    """A hundred actions are found; each of two false detections costs half a point of F1, a third one too much."""
    start = np.arange(103.0) * 10
    score = np.concatenate([np.linspace(0.99, 0.9, 100), [0.6, 0.5, 0.4]])
    row = np.zeros(103, dtype=np.int64)
    points = Points(VIDEOS, LABELS, row[:100], row[:100], start[:100] + 2)
    found = Segments(VIDEOS, LABELS, row, row, start, start + 5, score)
    assert PointHits(found, points).fitting_score() == pytest.approx(0.75)
    doubled = Segments(VIDEOS, LABELS, row, row, start, start + 5, 2 * score)  # no probabilities
    assert PointHits(doubled, points).fitting_score() == pytest.approx(1.4)
