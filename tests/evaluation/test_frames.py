"""F1 of time and of segments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from potloc_fast.evaluation.frames import f1


def entry(label: str, start: float, end: float, score: float) -> dict[str, Any]:
    return {"label": label, "segment": [start, end], "score": score}


def run(matched: Any) -> Any:
    return f1(matched.ranked, matched.truth, matched.taken[:, 1:])


def test_by_hand(matched: Any) -> None:
    # Class a: two overlapping detections cover 2 to 9 of 0 to 10, one more 20 to 30. Class b is never found.
    truth = {
        "database": {"v": {"annotations": [{"label": "a", "segment": [0, 10]}, {"label": "b", "segment": [0, 4]}]}}
    }
    found = [entry("a", 2, 7, 0.9), entry("a", 5, 9, 0.8), entry("a", 20, 30, 0.3)]
    result = run(matched.of({"results": {"v": found}}, truth))
    assert result.threshold == 0.8
    assert result.per_class == pytest.approx({"a": 100 * 14 / 17, "b": 0})
    assert (result.frame, result.precision, result.recall) == pytest.approx((100 * 7 / 17, 50, 35))
    # Two instances: one of n detections is right.
    assert result.segmental == pytest.approx({"F1@10": 200 / 3, "F1@25": 200 / 3, "F1@50": 200 / 3})


def test_one_threshold_for_all_classes(matched: Any) -> None:
    # Class a is best from 0.5 on, class b from 0.7 on; together 0.5 is better.
    truth = {
        "database": {"v": {"annotations": [{"label": "a", "segment": [0, 10]}, {"label": "b", "segment": [0, 10]}]}}
    }
    found = [entry("a", 0, 10, 0.5), entry("b", 0, 10, 0.7), entry("b", 10, 15, 0.6)]
    result = run(matched.of({"results": {"v": found}}, truth))
    assert result.threshold == 0.5
    assert result.per_class == pytest.approx({"a": 100, "b": 80})


def test_a_threshold_parts_no_equal_scores(matched: Any) -> None:
    truth = {"database": {"v": {"annotations": [{"label": "a", "segment": [0, 10]}]}}}
    found = [entry("a", 0, 10, 0.5), entry("a", 10, 30, 0.5)]
    for rows in (found, found[::-1]):
        result = run(matched.of({"results": {"v": rows}}, truth))
        assert result.frame == pytest.approx(50)
        assert result.segmental["F1@50"] == pytest.approx(200 / 3)
    found = [entry("a", 0, 6, 0.9), entry("a", 6, 10, 0.5), entry("a", 10, 30, 0.5)]
    result = run(matched.of({"results": {"v": found}}, truth))
    assert (result.frame, result.threshold) == (pytest.approx(75), 0.9)  # from 0.5 on 50


def test_videos_are_apart(matched: Any) -> None:
    truth = {"database": {v: {"annotations": [{"label": "a", "segment": [0, 10]}]} for v in ("v", "w")}}
    found = {"v": [entry("a", 0, 10, 0.5)], "nowhere": [entry("a", 0, 10, 0.9)]}
    result = run(matched.of({"results": found}, truth))
    assert (result.frame, result.precision, result.recall) == pytest.approx((50, 50, 50))


def test_instances_without_length_are_left_out(matched: Any) -> None:
    instances = [{"label": "a", "segment": segment} for segment in ([5, 5], [20, 30])]
    truth = {"database": {"v": {"annotations": instances}}}
    assert run(matched.of({"results": {"v": [entry("a", 20, 30, 0.5)]}}, truth)).frame == 100
    assert run(matched.of({"results": {"v": [entry("a", 5, 5, 0.5)]}}, truth)).frame == 0


def covered(segments: Any, rows: Any) -> list[tuple[float, float]]:
    """The union of some segments, in order."""
    union: list[list[float]] = []
    for start, end in sorted(zip(segments.start_sec[rows].tolist(), segments.end_sec[rows].tolist(), strict=True)):
        if union and start <= union[-1][1]:
            union[-1][1] = max(union[-1][1], end)
        else:
            union.append([start, end])
    return [(start, end) for start, end in union]


def naive(ranked: Any, truth: Any, threshold: float) -> list[tuple[float, float, float]]:
    """F1, precision and recall of each class, from unions of segments."""
    result = []
    for c in range(len(truth.labels)):
        true = predicted = hit = 0.0
        for video in set(truth.video[truth.label == c]) | set(ranked.video[ranked.label == c]):
            a = covered(truth, (truth.label == c) & (truth.video == video))
            b = covered(ranked, (ranked.label == c) & (ranked.video == video) & (ranked.score >= threshold))
            true += sum(end - start for start, end in a)
            predicted += sum(end - start for start, end in b)
            hit += sum(max(0.0, min(x[1], y[1]) - max(x[0], y[0])) for x in a for y in b)
        precision, recall = hit / predicted if predicted else 0.0, hit / true if true else 0.0
        total = precision + recall
        result.append((2 * precision * recall / total if total else 0.0, precision, recall))
    return result


def naive_segmental(ranked: Any, truth: Any, hit: Any) -> float:
    best = 0.0
    for threshold in set(ranked.score.tolist()):
        kept = ranked.score >= threshold
        best = max(best, 200 * hit[kept].sum() / (kept.sum() + len(truth)))
    return float(best)


def test_random_detections(random: Any) -> None:
    result = run(random)
    every = {s: np.mean(naive(random.ranked, random.truth, s), axis=0) for s in set(random.ranked.score.tolist())}
    if not every:
        assert (result.threshold, result.frame, set(result.segmental.values())) == (None, 0, {0})
        return
    assert result.frame == pytest.approx(100 * max(values[0] for values in every.values()))
    means = 100 * every[result.threshold]
    assert (result.frame, result.precision, result.recall) == pytest.approx(tuple(means))
    for k, value in enumerate(result.segmental.values()):
        assert value == pytest.approx(naive_segmental(random.ranked, random.truth, random.taken[:, k + 1] >= 0))


@pytest.mark.parametrize("detector", ["pmil", "autoloc"])
def test_real_detections(detector: str, request: pytest.FixtureRequest) -> None:
    matched = request.getfixturevalue(detector)
    ranked, truth, taken = matched
    result = run(matched)
    rows = naive(ranked, truth, result.threshold)
    assert list(result.per_class.values()) == pytest.approx([100 * row[0] for row in rows])
    assert (result.frame, result.precision, result.recall) == pytest.approx(tuple(100 * np.mean(rows, axis=0)))
    for threshold in (*np.quantile(ranked.score, [0.2, 0.5, 0.8, 0.9, 0.95]), result.threshold + 0.01):
        assert 100 * np.mean(naive(ranked, truth, threshold), axis=0)[0] <= result.frame
    order = np.argsort(-ranked.score)
    for k, value in enumerate(result.segmental.values()):
        # Scores are nearly all different here, so that each rank is a threshold.
        hits = np.cumsum(taken[order, k + 1] >= 0)
        best = max(2 * h / (n + len(truth)) for n, h in enumerate(hits.tolist(), start=1))
        assert value == pytest.approx(100 * best, abs=0.1)


def test_figures_of_pmil(pmil: Any) -> None:
    result = run(pmil)
    assert (result.frame, result.threshold) == (pytest.approx(60.2, abs=0.05), pytest.approx(0.227, abs=5e-4))
    assert list(result.segmental.values()) == pytest.approx([65.6, 60.2, 42.7], abs=0.05)


def test_a_perfect_detector(pmil: Any, matched: Any) -> None:
    result = run(matched.of(pmil.truth, pmil.truth))
    assert (result.frame, result.precision, result.recall) == pytest.approx((100, 100, 100))
    assert result.segmental == {"F1@10": 100, "F1@25": 100, "F1@50": 100}
