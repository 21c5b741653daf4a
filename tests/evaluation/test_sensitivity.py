"""mAP_N and misses by characteristics of the instances."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from potloc_fast.evaluation.sensitivity import sensitivity


def figures(groups: Any) -> list[tuple[float, float, int]]:
    return [(group.low, group.high, group.instances) for group in groups]


def test_groups_are_fifths(matched: Any) -> None:
    lengths = [3, 1, 2, 4, 5, 6, 7, 8, 10, 9]
    truth = {"database": {f"v{x}": {"annotations": [{"label": "a", "segment": [2, 2 + x]}]} for x in lengths}}
    ranked, truth, taken = matched.of({"results": {}}, truth)
    result = sensitivity(ranked, truth, taken[:, 0], np.full(10, 20.0))
    assert figures(result.characteristics["length"]) == [(1, 2, 2), (3, 4, 2), (5, 6, 2), (7, 8, 2), (9, 10, 2)]
    assert figures(result.characteristics["coverage"])[0] == (5, 10, 2)
    assert figures(result.characteristics["instances"]) == [(1, 1, 10)]
    assert (result.map_n, result.missed) == (0, 100)
    assert {(group.map_n, group.missed) for group in result.characteristics["length"]} == {(0, 100)}
    assert "coverage" not in sensitivity(ranked, truth, taken[:, 0]).characteristics


def test_equal_lengths_stay_together_whatever_their_last_digit(matched: Any) -> None:
    # In floating point the lengths are 5.7, 5.6999999999999975 and 5.700000000000003.
    segments = [[0, 5.7], [29.1, 34.8], [100.3, 106.0], [200, 201], [300, 301]]
    truth = {"database": {"v": {"annotations": [{"label": "a", "segment": s} for s in segments]}}}
    ranked, truth, taken = matched.of({"results": {}}, truth)
    groups = sensitivity(ranked, truth, taken[:, 0]).characteristics["length"]
    assert figures(groups) == [(1, 1, 2), (5.7, 5.7, 3)]


def test_instances_are_those_of_the_class_in_the_video(matched: Any) -> None:
    annotations = {
        "v": [{"label": "a", "segment": [i, i + 1]} for i in range(3)] + [{"label": "b", "segment": [0, 1]}],
        "w": [{"label": "a", "segment": [0, 1]}],
    }
    truth = {"database": {video: {"annotations": rows} for video, rows in annotations.items()}}
    ranked, truth, taken = matched.of({"results": {}}, truth)
    assert figures(sensitivity(ranked, truth, taken[:, 0]).characteristics["instances"]) == [(1, 1, 2), (3, 3, 3)]


def test_a_group_by_hand(matched: Any) -> None:
    # The long instance is found first, then a false positive, then a short one of two. N = 3.
    truth = {"database": {"v": {"annotations": [{"label": "a", "segment": s} for s in ([0, 1], [5, 6], [10, 19])]}}}
    found = [
        {"label": "a", "segment": segment, "score": score}
        for segment, score in (([10, 18], 0.9), ([30, 40], 0.8), ([0, 1], 0.7))
    ]
    ranked, truth, taken = matched.of({"results": {"v": found}}, truth)
    result = sensitivity(ranked, truth, taken[:, 0])
    short, long = result.characteristics["length"]
    assert result.map_n == pytest.approx(100 * (1 + 2 / 3) / 3)
    assert short.map_n == pytest.approx(100 * (1.5 / 2.5) / 2)  # R = 1/2 at one false positive
    assert long.map_n == 100
    assert (result.missed, short.missed, long.missed) == (pytest.approx(100 / 3), 50, 0)


def test_what_is_found_too_late_is_missed(matched: Any) -> None:
    truth = {"database": {"v": {"annotations": [{"label": "a", "segment": [0, 1]}]}}}
    for wrong, missed in ((18, 0), (19, 100)):  # precision 1/19 and 1/20
        found = [{"label": "a", "segment": [5, 6], "score": 0.9}] * wrong
        found = [*found, {"label": "a", "segment": [0, 1], "score": 0.1}]
        ranked, instances, taken = matched.of({"results": {"v": found}}, truth)
        assert sensitivity(ranked, instances, taken[:, 0]).missed == missed


def naive(ranked: Any, truth: Any, taken: Any, members: set[int]) -> tuple[float, float]:
    """mAP_N and misses of some instances, one detection at a time."""
    n = len(truth) / len(truth.labels)
    aps, seen = [], set()
    for c in range(len(truth.labels)):
        every = int((truth.label == c).sum())
        size = sum(truth.label[i] == c for i in members)
        found = own = wrong = 0
        precision = []
        for i in taken[ranked.label == c]:
            found += i >= 0
            wrong += i < 0
            if i >= 0 and n * found / every / (n * found / every + wrong) > 0.05:
                seen.add(int(i))
            if i in members:
                own += 1
                precision.append(n * own / size / (n * own / size + wrong))
        if size:
            aps.append(sum(max(precision[k:]) for k in range(own)) / size)
    return 100 * float(np.mean(aps)), 100 * len(members - seen) / len(members)


@pytest.mark.parametrize("detector", ["pmil", "autoloc"])
def test_real_detections(detector: str, request: pytest.FixtureRequest) -> None:
    ranked, truth, taken = request.getfixturevalue(detector)
    result = sensitivity(ranked, truth, taken[:, 0])
    assert (result.map_n, result.missed) == pytest.approx(naive(ranked, truth, taken[:, 0], set(range(len(truth)))))
    values = {
        "length": np.round(truth.end_sec - truth.start_sec, 6),
        "instances": np.array(
            [((truth.video == v) & (truth.label == c)).sum() for v, c in zip(truth.video, truth.label, strict=True)]
        ),
    }
    for name, value in values.items():
        groups = result.characteristics[name]
        assert sum(group.instances for group in groups) == len(truth)
        assert all(0.15 < group.instances / len(truth) < 0.25 for group in groups)
        for group in groups:
            members = np.flatnonzero((value >= group.low) & (value <= group.high)).tolist()
            assert group.instances == len(members)
            assert (group.map_n, group.missed) == pytest.approx(naive(ranked, truth, taken[:, 0], set(members)))


def test_figures_of_pmil(pmil: Any) -> None:
    result = sensitivity(pmil.ranked, pmil.truth, pmil.taken[:, 0])
    assert (result.map_n, result.missed) == (pytest.approx(35.9, abs=0.05), pytest.approx(36.5, abs=0.05))
    short = result.characteristics["length"][0]
    assert (short.low, short.high) == (0.2, 1.5)
    assert (short.map_n, short.missed) == (pytest.approx(11.9, abs=0.05), pytest.approx(70.1, abs=0.05))


def test_a_perfect_detector(pmil: Any, matched: Any) -> None:
    ranked, truth, taken = matched.of(pmil.truth, pmil.truth)
    result = sensitivity(ranked, truth, taken[:, 0])
    groups = [group for groups in result.characteristics.values() for group in groups]
    assert {(group.map_n, group.missed) for group in (result, *groups)} == {(100, 0)}


def test_properties(random: Any) -> None:
    ranked, truth, taken = random
    result = sensitivity(ranked, truth, taken[:, 0])
    for groups in result.characteristics.values():
        assert sum(group.instances for group in groups) == len(truth)
        assert all(a.high < b.low for a, b in pairwise(groups))
        missed = sum(group.missed * group.instances for group in groups)
        assert missed == pytest.approx(result.missed * len(truth))
