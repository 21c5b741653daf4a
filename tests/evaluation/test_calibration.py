"""Whether scores are probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from potloc_fast.evaluation.calibration import calibration


def test_by_hand() -> None:
    score = np.array([0.70, 0.72, 0.10, 0.12, 0.95])
    result = calibration(score, np.array([True, False, False, False, True]))
    filled = [row for row in zip(result.counts, result.score, result.precision, strict=True) if row[0]]
    assert filled == [
        (2, pytest.approx(0.11), 0),
        (2, pytest.approx(0.71), 0.5),
        (1, pytest.approx(0.95), 1),
    ]
    assert result.error == pytest.approx(100 * (2 * 0.11 + 2 * 0.21 + 0.05) / 5)
    assert [row for row in zip(result.score, result.precision, strict=True) if row[0] is None] == [(None, None)] * 12


def test_bounds_of_the_bins() -> None:
    score = np.array([-0.5, 0.0, 1 / 15, 14 / 15, 1.0, 1.5])
    result = calibration(score, np.zeros(6, bool))
    assert result.counts == (2, 1, *[0] * 12, 3)
    assert result.score[-1] == pytest.approx((14 / 15 + 2) / 3)


def test_nothing_detected() -> None:
    result = calibration(np.zeros(0), np.zeros(0, bool))
    assert result.error is None
    assert sum(result.counts) == 0


def test_probabilities_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    score = rng.random(200_000)
    hit = rng.random(200_000) < score
    assert calibration(score, hit).error < 0.5
    assert calibration(score**2, hit).error == pytest.approx(100 / 6, abs=0.5)  # the mean of p - p^2


@pytest.mark.parametrize(("detector", "error"), [("pmil", 4.0), ("autoloc", 46.3)])
def test_real_detections(detector: str, error: float, request: pytest.FixtureRequest) -> None:
    matched: Any = request.getfixturevalue(detector)
    hit = matched.taken[:, 0] >= 0
    result = calibration(matched.ranked.score, hit)
    score = np.minimum(np.maximum(matched.ranked.score, 0), 1)
    total = 0.0
    for b in range(15):
        rows = [i for i, s in enumerate(score.tolist()) if min(int(15 * s), 14) == b]
        assert result.counts[b] == len(rows)
        if rows:
            total += len(rows) * abs(score[rows].mean() - hit[rows].mean())
    assert result.error == pytest.approx(100 * total / len(score))
    assert result.error == pytest.approx(error, abs=0.05)
