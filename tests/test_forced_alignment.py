"""Forced alignment against all segments that there are, one after the other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from potloc_fast.forced_alignment import force_align


def worth(
    gain: NDArray[np.float64],
    segments: NDArray[np.int64],
    classes: NDArray[np.int64],
    duration: NDArray[np.float64],
    precision: NDArray[np.float64],
) -> float:
    """What `force_align` maximises."""
    return sum(
        gain[s:e, c].sum() - precision[c] * (e - s - duration[c]) ** 2
        for (s, e), c in zip(segments, classes, strict=True)
    )


def allowed(length: int, snippets: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Every choice of segments that hold their points and don't overlap."""
    edges = [0, *(p + 1 for p in snippets[:-1])], [*snippets[1:], length]
    of_each = [
        [(s, e) for s in range(low, p + 1) for e in range(p + 1, high + 1)]
        for low, p, high in zip(edges[0], snippets, edges[1], strict=True)
    ]
    return [
        np.array(choice)
        for choice in itertools.product(*of_each)
        if all(before[1] <= after[0] for before, after in itertools.pairwise(choice))
    ]


@pytest.mark.parametrize("seed", range(40))
def test_it_finds_the_best_of_all_segments(seed: int) -> None:
    rng = np.random.default_rng(seed)
    length, count, names = int(rng.integers(3, 11)), int(rng.integers(1, 4)), 2
    snippets = np.sort(rng.choice(length, min(count, length), replace=False))
    classes = rng.integers(names, size=len(snippets))
    gain = rng.standard_normal((length, names)) * 2
    duration = rng.uniform(0, 6, names)
    precision = rng.choice([0.0, 0.05, 0.5, 5.0], names)
    found = force_align(gain, snippets, classes, duration, precision)
    values = [worth(gain, choice, classes, duration, precision) for choice in allowed(length, snippets)]
    assert any((found == choice).all() for choice in allowed(length, snippets))
    assert worth(gain, found, classes, duration, precision) == pytest.approx(max(values), abs=1e-9)


def test_without_evidence_the_usual_duration_decides() -> None:
    found = force_align(np.zeros((40, 1)), np.array([10, 30]), np.zeros(2, np.int64), np.array([7.0]), np.ones(1))
    assert (found[:, 1] - found[:, 0]).tolist() == [7, 7]


def test_equal_values_go_to_the_earlier_boundary() -> None:
    found = force_align(np.zeros((9, 1)), np.array([2, 6]), np.zeros(2, np.int64), np.zeros(1), np.zeros(1))
    assert found.tolist() == [[0, 3], [3, 7]]


def test_no_point_has_no_segment() -> None:
    assert force_align(np.zeros((5, 2)), np.zeros(0, np.int64), np.zeros(0, np.int64), np.ones(2), np.ones(2)).size == 0


@pytest.mark.parametrize("snippets", [[3, 3], [4, 2], [-1], [5]])
def test_points_out_of_order_or_outside_are_refused(snippets: list[int]) -> None:
    classes = np.zeros(len(snippets), np.int64)
    with pytest.raises(ValueError, match="strictly ascending"):
        force_align(np.zeros((5, 1)), np.array(snippets), classes, np.ones(1), np.ones(1))
