"""Average recall against the number of proposals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from potloc_fast.evaluation.recall import average_recall


def proposal(start: float, end: float, score: float, label: str = "a") -> dict[str, Any]:
    return {"label": label, "segment": [start, end], "score": score}


def test_by_hand(matched: Any) -> None:
    # At AN 1 each video keeps half of its two proposals, at AN 2 both.
    truth = {"database": {v: {"annotations": [{"label": "a", "segment": [0, 10]}]} for v in ("v", "w")}}
    found = {"v": [proposal(0, 8, 0.2), proposal(0, 5, 0.9)], "w": [proposal(20, 30, 0.9), proposal(0, 6, 0.1)]}
    ranked, truth, _ = matched.of({"results": found}, truth)
    result = average_recall(ranked, truth)
    # tIoU 0.5 recalls at one threshold of ten, 0.8 at seven, 0.6 at three.
    assert result.recall[:2] == pytest.approx((100 * 1 / 20, 100 * 10 / 20))
    assert set(result.recall[1:]) == {result.recall[1]}
    assert result.area == pytest.approx(((5 + 50) / 2 + 98 * 50) / 100)


def test_the_class_of_a_proposal_does_not_matter(matched: Any) -> None:
    annotations = [{"label": "a", "segment": [0, 10]}, {"label": "b", "segment": [20, 30]}]
    ranked, truth, _ = matched.of(
        {"results": {"v": [proposal(0, 10, 0.9, "b"), proposal(20, 30, 0.8, "a")]}},
        {"database": {"v": {"annotations": annotations}}},
    )
    assert average_recall(ranked, truth).recall[:3] == (50, 100, 100)


def test_one_proposal_can_recall_two_instances(matched: Any) -> None:
    annotations = [{"label": "a", "segment": [0, 10]}, {"label": "b", "segment": [0, 10]}]
    ranked, truth, _ = matched.of(
        {"results": {"v": [proposal(0, 10, 0.9)]}}, {"database": {"v": {"annotations": annotations}}}
    )
    result = average_recall(ranked, truth)
    assert result.recall[0] == 100
    assert result.area == pytest.approx(99)


def test_more_than_a_hundred_proposals_a_video(matched: Any) -> None:
    found = [proposal(50 + i, 51 + i, 1 - i / 1000) for i in range(199)]
    for rank, recall in ((98, 100), (99, 100), (100, 0), (198, 0)):
        rows = [*found[:rank], proposal(0, 10, found[rank]["score"]), *found[rank + 1 :], proposal(400, 401, 0.01)]
        ranked, truth, _ = matched.of(
            {"results": {"v": rows}}, {"database": {"v": {"annotations": [{"label": "a", "segment": [0, 10]}]}}}
        )
        curve = average_recall(ranked, truth).recall
        assert curve[-1] == recall
        assert sum(value > 0 for value in curve) == max(0, 100 - rank)


def naive(found: Any, truth: Any) -> list[float]:
    """AR from a matrix of tIoU for each video."""
    videos = sorted(set(truth.video.tolist()))
    matrices = []
    for video in videos:
        i, j = np.flatnonzero(truth.video == video), np.flatnonzero(found.video == video)
        j = j[np.argsort(-found.score[j], kind="stable")]
        j = j[: len(j) * 100 * len(videos) // max(len(found), 1)]
        start = np.maximum(truth.start_sec[i, None], found.start_sec[j])
        end = np.minimum(truth.end_sec[i, None], found.end_sec[j])
        shared = (end - start).clip(0)
        lengths = (truth.end_sec - truth.start_sec)[i, None] + (found.end_sec - found.start_sec)[j]
        matrices.append(np.divide(shared, lengths - shared, out=np.zeros_like(shared), where=shared > 0))
    total = max(sum(m.shape[1] for m in matrices), 1)
    curve = []
    for an in range(1, 101):
        kept = [m[:, : m.shape[1] * an * len(videos) // total] for m in matrices]
        best = np.concatenate([m.max(axis=1, initial=0.0) for m in kept])
        curve.append(100 * float(np.mean([(best >= k / 20).mean() for k in range(10, 20)])))
    return curve


@pytest.mark.parametrize("detector", ["pmil", "autoloc"])
def test_real_detections(detector: str, request: pytest.FixtureRequest) -> None:
    ranked, truth, _ = request.getfixturevalue(detector)
    result = average_recall(ranked, truth)
    assert result.recall == pytest.approx(naive(ranked, truth))
    assert result.area == pytest.approx(np.mean(result.recall) - (result.recall[0] + result.recall[-1]) / 200)


def test_figures_of_pmil(pmil: Any) -> None:
    result = average_recall(pmil.ranked, pmil.truth)
    assert [result.recall[n - 1] for n in (1, 10, 50, 100)] == pytest.approx([1.5, 16.8, 31.3, 36.1], abs=0.05)
    assert result.area == pytest.approx(28.5, abs=0.05)


def test_properties(random: Any) -> None:
    result = average_recall(random.ranked, random.truth)
    assert result.proposals == tuple(range(1, 101))
    assert list(result.recall) == sorted(result.recall)
    assert 0 <= result.recall[0] <= result.recall[-1] <= 100
    assert result.recall == pytest.approx(naive(random.ranked, random.truth))


def test_a_perfect_detector(pmil: Any, matched: Any) -> None:
    ranked, truth, _ = matched.of(pmil.truth, pmil.truth)
    assert average_recall(ranked, truth).recall[-1] == 100
