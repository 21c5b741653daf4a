"""Kinds of errors, and what each costs."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from potloc_fast.evaluation.errors import KINDS, error_kinds, error_profile, normalized_map


def entry(label: str, start: float, end: float, score: float) -> dict[str, Any]:
    return {"label": label, "segment": [start, end], "score": score}


TRUTH = {
    "database": {
        "v": {"annotations": [{"label": "a", "segment": [0, 10]}, {"label": "b", "segment": [20, 30]}]},
        "w": {"annotations": [{"label": "a", "segment": [0, 10]}]},
    }
}


def test_one_of_each_kind(matched: Any) -> None:
    found = {
        "v": [
            entry("a", 0, 10, 0.9),
            entry("a", 0, 8, 0.8),  # tIoU 0.8 with an instance that is taken
            entry("b", 0, 5, 0.7),  # tIoU 0.5 with the other class
            entry("a", 0, 4.9, 0.6),
            entry("b", 0, 1, 0.5),  # tIoU 0.1
            entry("a", 0, 0.9, 0.4),
            entry("a", 12, 18, 0.3),
        ],
        "nowhere": [entry("a", 0, 10, 0.2)],
    }
    ranked, truth, taken = matched.of({"results": found}, TRUTH)
    kinds = error_kinds(ranked, truth, taken[:, 0], 0.5)
    named = {(float(score), KINDS[kind]) for score, kind in zip(ranked.score, kinds, strict=True)}
    assert named == {
        (0.9, "true positive"),
        (0.8, "double detection"),
        (0.7, "wrong label"),
        (0.6, "localization"),
        (0.5, "confusion"),
        (0.4, "background"),
        (0.3, "background"),
        (0.2, "background"),
    }


def test_of_two_classes_that_overlap_alike_the_own_one_counts(matched: Any) -> None:
    both = [{"label": label, "segment": [0, 10]} for label in ("dive", "cliff dive")]
    for instances in (both, both[::-1]):
        ranked, truth, taken = matched.of(
            {"results": {"v": [entry("dive", 0, 10, 0.9), entry("dive", 0, 10, 0.8), entry("dive", 0, 3, 0.7)]}},
            {"database": {"v": {"annotations": instances}}},
        )
        kinds = error_kinds(ranked, truth, taken[:, 0], 0.5)
        assert [KINDS[kind] for kind in kinds] == ["true positive", "double detection", "localization"]


def test_gains_by_hand(matched: Any) -> None:
    # Class a, G = 2: background, true positive, localization, true positive. Class b, G = 1: nothing.
    # N = 1.5: precision N R / (N R + FP) is 0.75 / 1.75 at the first, 1.5 / 3.5 at the second.
    found = {
        "v": [entry("a", 40, 50, 0.9), entry("a", 0, 10, 0.8), entry("a", 0, 4, 0.7)],
        "w": [entry("a", 0, 9, 0.6)],
    }
    profile = error_profile(*(m := matched.of({"results": found}, TRUTH))[:2], m.taken[:, 0], 0.5)
    assert profile.map_n == pytest.approx(100 * (3 / 7) / 2)
    assert profile.gains["background"] == pytest.approx(100 * (0.5 + 0.5 * 0.6 - 3 / 7) / 2)
    assert profile.gains["localization"] == pytest.approx(100 * (0.6 - 3 / 7) / 2)
    assert [profile.gains[kind] for kind in ("double detection", "wrong label", "confusion")] == [0, 0, 0]
    assert profile.map_n_without_errors == 50.0
    assert profile.counts["background"] == (1, *[0] * 9)
    assert profile.counts["localization"] == (0, 1, *[0] * 8)
    assert profile.counts["true positive"] == (1, 1, *[0] * 8)


def test_only_ten_groups_count(matched: Any) -> None:
    found = [entry("a", 40, 50, 1 - i / 100) for i in range(25)] + [entry("a", 0, 10, 0.1)]
    ranked, truth, taken = matched.of({"results": {"v": found}}, TRUTH)
    profile = error_profile(ranked, truth, taken[:, 0], 0.5)
    assert profile.counts["background"] == (2,) * 10
    assert profile.counts["true positive"] == (0,) * 10
    assert profile.map_n_without_errors == 0.0


def test_properties(random: Any) -> None:
    ranked, truth, taken = random
    profile = error_profile(ranked, truth, taken[:, 0], 0.5)
    sizes = [(int((ranked.label == c).sum()), int((truth.label == c).sum())) for c in range(len(truth.labels))]
    assert sum(map(sum, profile.counts.values())) == sum(min(n, 10 * g) for n, g in sizes)
    assert sum(profile.counts["true positive"]) <= len(truth)
    assert min(profile.gains.values()) >= 0
    assert max(profile.gains.values()) + profile.map_n <= profile.map_n_without_errors + 1e-9
    found = np.array([((taken[ranked.label == c, 0] >= 0)[: 10 * g]).sum() / g for c, (_, g) in enumerate(sizes)])
    assert profile.map_n_without_errors == pytest.approx(100 * found.mean())


def test_a_perfect_detector(pmil: Any, matched: Any) -> None:
    ranked, truth, taken = matched.of(pmil.truth, pmil.truth)
    profile = error_profile(ranked, truth, taken[:, 0], 0.5)
    assert sum(profile.counts["true positive"]) == profile.counts["true positive"][0] == len(truth)
    assert set(profile.gains.values()) == {0.0}
    assert profile.map_n == 100.0


def naive_profile(ranked: Any, truth: Any, taken: Any, limit: int) -> tuple[dict[str, list[int]], dict[str, float]]:
    """Kinds by rank, and mAP_N with each kind removed (and none: ""), class by class and one detection at a time."""
    classes = range(len(truth.labels))
    sizes = [int((truth.label == c).sum()) for c in classes]
    n = len(truth) / len(sizes)
    rows = defaultdict(list)
    for i in range(len(ranked)):
        c = ranked.label[i]
        if len(rows[c]) == limit * sizes[c]:
            continue
        here = np.flatnonzero(truth.video == ranked.video[i])
        shared = np.minimum(ranked.end_sec[i], truth.end_sec[here]) - np.maximum(
            ranked.start_sec[i], truth.start_sec[here]
        )
        shared = shared.clip(0)
        lengths = (truth.end_sec[here] - truth.start_sec[here]) + (ranked.end_sec[i] - ranked.start_sec[i])
        tiou = shared / (lengths - shared)
        best = tiou.max(initial=0.0)
        own = c in truth.label[here[tiou == best]]
        if taken[i] >= 0:
            kind = "true positive"
        elif best >= 0.5:
            kind = "double detection" if own else "wrong label"
        elif best >= 0.1:
            kind = "localization" if own else "confusion"
        else:
            kind = "background"
        rows[c].append(kind)
    counts = {kind: [0] * 10 for kind in KINDS}
    for c in classes:
        for r, kind in enumerate(rows[c]):
            counts[kind][r // sizes[c]] += 1
    scores = {}
    for removed in ("", *KINDS[1:]):
        aps = []
        for c in classes:
            precision, found, wrong = [], 0, 0
            for kind in rows[c]:
                if kind == "true positive":
                    found += 1
                    recall = found / sizes[c]
                    precision.append(n * recall / (n * recall + wrong))
                elif kind != removed:
                    wrong += 1
            aps.append(sum(max(precision[k:]) for k in range(found)) / sizes[c])
        scores[removed] = 100 * float(np.mean(aps))
    return counts, scores


@pytest.mark.parametrize("detector", ["pmil", "autoloc"])
def test_real_detections(detector: str, request: pytest.FixtureRequest) -> None:
    ranked, truth, taken = request.getfixturevalue(detector)
    profile = error_profile(ranked, truth, taken[:, 0], 0.5)
    counts, scores = naive_profile(ranked, truth, taken[:, 0], 10)
    assert {kind: list(values) for kind, values in profile.counts.items()} == counts
    assert profile.map_n == pytest.approx(scores.pop(""))
    assert profile.gains == pytest.approx({kind: score - profile.map_n for kind, score in scores.items()}, abs=1e-9)


def test_figures_of_pmil(pmil: Any) -> None:
    profile = error_profile(pmil.ranked, pmil.truth, pmil.taken[:, 0], 0.5)
    assert {kind: sum(counts) for kind, counts in profile.counts.items()} == {
        "true positive": 2102,
        "double detection": 7662,
        "wrong label": 449,
        "localization": 8248,
        "confusion": 577,
        "background": 8321,
    }
    assert profile.gains["localization"] == pytest.approx(10.5, abs=0.05)
    # With as many instances in each class, mAP_N is mAP.
    alike = np.concatenate([np.flatnonzero(pmil.truth.label == c)[:30] for c in range(20)])
    truth = pmil.truth.take(alike)
    ranked = pmil.ranked
    hit = np.isin(pmil.taken[:, 0], alike)
    order = [np.flatnonzero(hit[ranked.label == c]) for c in range(20)]
    ap = [sum(max((k + 1) / (r[k] + 1) for k in range(j, len(r))) for j in range(len(r))) / 30 for r in order]
    assert normalized_map(ranked, truth, hit, np.zeros(len(ranked), bool)) == pytest.approx(100 * np.mean(ap))
