"""The study of figures without truth: how runs are made worse, and rank correlations."""

from __future__ import annotations

import numpy as np
import pytest

from potloc_fast.evaluation import Segments
from potloc_fast.pseudo_labels import PseudoLabels

study = pytest.importorskip("benchmarks.quality", reason="benchmarks/ is part of the repository")


def test_rank_correlation() -> None:
    assert study.correlation([1.0, 2.0, 9.0], [0.1, 0.2, 0.3]) == pytest.approx(1)
    assert study.correlation([1.0, 2.0, 9.0], [3.0, 2.0, 1.0]) == pytest.approx(-1)
    # Equal values have the mean of their ranks: 1.5, 1.5, 3, 4 beside 1, 2, 3, 4.
    assert study.correlation([5.0, 5.0, 6.0, 7.0], [1.0, 2.0, 3.0, 4.0]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert study.correlation([1.0, None, 2.0, 9.0], [1.0, 5.0, 2.0, 3.0]) == pytest.approx(1)
    assert study.correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None


def test_worse_labels_hold_their_points() -> None:
    rows = (np.zeros(2, int), np.array([0, 1]), np.array([0.0, 10.0]), np.array([4.0, 20.0]), np.ones(2))
    labels = PseudoLabels(Segments(("v",), ("jump", "turn"), *rows), np.array([3.5, 12.0]))
    rng = np.random.default_rng(0)
    short = study.stretched(0.5)(labels, rng).segments
    assert short.start_sec.tolist() == [1.0, 12.0]
    assert short.end_sec == pytest.approx([3.5, 17.5])
    for _, change in study.ARMS.values():
        made = labels if change is None else change(labels, rng)
        assert (made.segments.start_sec <= made.point_sec).all()
        assert (made.point_sec < made.segments.end_sec).all()
