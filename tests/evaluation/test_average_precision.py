from __future__ import annotations

import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from potloc_fast.errors import InputError
from potloc_fast.evaluation import Segments, evaluate, read_ambiguous, read_detections, read_ground_truth
from potloc_fast.evaluation.average_precision import _sorts_after

TIOU = (0.1, 0.25, 0.5, 0.75, 1.0)


# A second evaluator, written loop by loop from the descriptions of the two protocols.


def network_order(values: list[float]) -> list[int]:
    """Ascending order of a bitonic network, by recursion over lists padded to a power of two."""
    size = 1
    while size < len(values):
        size *= 2
    padded = [*values, *[np.inf] * (size - len(values))]

    def exchange(order: list[int], pairs: list[tuple[int, int]]) -> None:
        for low, high in pairs:
            if padded[order[high]] < padded[order[low]]:
                order[low], order[high] = order[high], order[low]

    def clean(order: list[int]) -> list[int]:
        half = len(order) // 2
        if half == 0:
            return order
        exchange(order, [(i, i + half) for i in range(half)])
        return clean(order[:half]) + clean(order[half:])

    def sort(order: list[int]) -> list[int]:
        half = len(order) // 2
        if half == 0:
            return order
        order = sort(order[:half]) + sort(order[half:])
        exchange(order, [(i, len(order) - 1 - i) for i in range(half)])
        return clean(order[:half]) + clean(order[half:])

    return [i for i in sort(list(range(size))) if i < len(values)]


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    intersection = min(a[1], b[1]) - max(a[0], b[0])
    if intersection <= 0:
        return 0.0
    return intersection / ((b[1] - b[0]) + (a[1] - a[0]) - intersection)


def naive(found: Segments, truth: Segments, protocol: str, regions: Segments | None) -> np.ndarray:
    def rows(segments: Segments) -> list[tuple[str, str, float, tuple[float, float]]]:
        return [
            (segments.labels[segments.label[i]], segments.videos[segments.video[i]], segments.score[i], span)
            for i, span in enumerate(zip(segments.start_sec, segments.end_sec, strict=True))
        ]

    unclear = defaultdict(list)
    for _, video, _, span in rows(regions) if regions else []:
        unclear[video].append(span)
    truth_rows, found_rows = rows(truth), rows(found)
    result = []
    for label in (name for name in truth.labels if any(row[0] == name for row in truth_rows)):
        instances = defaultdict(list)
        for _, video, _, span in (row for row in truth_rows if row[0] == label):
            instances[video].append(span)
        mine = [
            (score, video, span, any(overlap(span, region) > 0 for region in unclear[video]))
            for name, video, score, span in found_rows
            if name == label
        ]
        size = sum(map(len, instances.values()))
        aps = []
        for t in TIOU:
            outcome = []  # (score, is a true positive), best first
            if protocol == "activitynet":
                taken = set()
                for score, video, span, dropped in sorted(mine, key=lambda row: -row[0]):
                    if dropped:
                        continue
                    tious = [overlap(span, instance) for instance in instances.get(video, [])]
                    match = None
                    for j in reversed(network_order(tious)):
                        if tious[j] < t:
                            break
                        if (video, j) not in taken:
                            match = (video, j)
                            break
                    taken.add(match)
                    outcome.append((score, match is not None))
            else:
                for video in sorted({row[1] for row in mine}):
                    here = sorted((row for row in mine if row[1] == video), key=lambda row: -row[0])
                    hits: set[int] = set()
                    for instance in instances.get(video, []):
                        free = [j for j in range(len(here)) if j not in hits]
                        best = max(free, key=lambda j: overlap(here[j][2], instance), default=None)
                        if best is not None and overlap(here[best][2], instance) > t:
                            hits.add(best)
                    outcome += [(row[0], j in hits) for j, row in enumerate(here) if j in hits or not row[3]]
                outcome.sort(key=lambda row: -row[0])
            hit = np.array([row[1] for row in outcome], dtype=bool)
            precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
            recall = np.cumsum(hit) / size
            ap = 0.0
            for i in range(len(hit)):
                step = recall[i] - (recall[i - 1] if i else 0.0)
                ap += step * (precision[i:].max() if protocol == "activitynet" else precision[i])
            aps.append(100 * ap)
        result.append(aps)
    return np.array(result)


def random_segments(rng: np.random.Generator, size: int, videos: int, labels: int, grid: int) -> Segments:
    """Segments on a coarse grid with coarse scores: ties of both kinds, touching and empty segments."""
    start = rng.integers(0, grid, size).astype(float)
    return Segments(
        videos=tuple(f"v{i}" for i in rng.permutation(videos)),
        labels=tuple(f"c{i}" for i in rng.permutation(labels)),
        video=rng.integers(0, videos, size),
        label=rng.integers(0, labels, size),
        start_sec=start,
        end_sec=start + rng.integers(0, grid // 2, size),
        score=rng.integers(0, 8, size) / 8,
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    protocol=st.sampled_from(("activitynet", "thumos")),
    with_regions=st.booleans(),
    sizes=st.tuples(st.integers(0, 80), st.integers(1, 60)),
    grid=st.sampled_from((6, 30, 1000)),
)
def test_equals_the_naive_evaluator(
    seed: int, protocol: Any, with_regions: bool, sizes: tuple[int, int], grid: int
) -> None:
    rng = np.random.default_rng(seed)
    truth = random_segments(rng, sizes[1], 2, 2, grid)
    # One video and one class more than the ground truth.
    found = random_segments(rng, sizes[0], 3, 3, grid)
    regions = random_segments(rng, 4, 3, 1, grid) if with_regions else None
    if len(found) and not {found.labels[i] for i in found.label} & {truth.labels[i] for i in truth.label}:
        return
    evaluation = evaluate(found, truth, tiou=TIOU, protocol=protocol, ambiguous=regions)
    expected = naive(found, truth, protocol, regions)
    got = np.array([result["ap"] for result in evaluation.per_class.values()])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(evaluation.map, expected.mean(axis=0), rtol=0, atol=1e-9)
    assert evaluation.mean == pytest.approx(expected.mean(), abs=1e-9)


@settings(deadline=None)  # the first example compiles
@given(st.lists(st.sampled_from((0.0, 0.25, 0.5)), min_size=2, max_size=40), st.randoms())
def test_order_of_equal_values_is_that_of_the_network(values: list[float], random: Any) -> None:
    i, j = random.sample(range(len(values)), 2)
    order = network_order(values)
    assert _sorts_after(np.array(values), i, j) == (order.index(i) > order.index(j))


# Figures of the official evaluator, and what facts are known of the real files.

FIGURES = [
    (
        "detections/autoloc_thumos14_detections.json",
        "detections/autoloc_thumos14_gt.json",
        None,
        [46.6737, 41.7076, 35.7702, 29.0167, 21.2054, 13.3954, 5.7969, 1.5566, 0.2086],
        21.7035,
    ),
    (
        "detections/pmil_thumos14_test.json",
        "thumos14/gt.json",
        "test",
        [69.0908, 63.1278, 54.2449, 44.5892, 33.9444, 23.2795, 12.4661],
        42.9632,
    ),
    (
        "thumos14/base_proposals.json",
        "thumos14/gt.json",
        "train",
        [89.2173, 85.7934, 80.0063, 69.9087, 57.0428, 39.7247, 23.0425],
        63.5337,
    ),
]


@pytest.mark.parametrize(("detections", "ground_truth", "subset", "figures", "mean"), FIGURES)
def test_figures_of_the_official_evaluator(
    shared_data: Path, detections: str, ground_truth: str, subset: str | None, figures: list[float], mean: float
) -> None:
    tiou = [round(0.1 * (i + 1), 1) for i in range(len(figures))]
    evaluation = evaluate(shared_data / detections, shared_data / ground_truth, tiou=tiou, subset=subset)
    assert np.round(evaluation.map, 4).tolist() == figures
    assert round(evaluation.mean, 4) == mean
    assert len(evaluation.per_class) == 20


def test_pmil_equals_the_naive_thumos_kit(shared_data: Path) -> None:
    found = read_detections(shared_data / "detections/pmil_thumos14_test.json")
    truth = read_ground_truth(shared_data / "thumos14/gt.json", "test")
    regions = read_ambiguous(shared_data / "thumos14/Ambiguous_test.txt")
    truth = truth.take(truth.label == truth.labels.index("FrisbeeCatch"))
    evaluation = evaluate(found, truth, tiou=TIOU, protocol="thumos", ambiguous=regions)
    np.testing.assert_allclose(evaluation.map, naive(found, truth, "thumos", regions)[0], rtol=0, atol=1e-9)
    unfiltered = evaluate(found, truth, tiou=TIOU, protocol="thumos")
    assert evaluation.mean > unfiltered.mean > 0


# Small cases, worked out by hand.


def results(*entries: tuple[str, str, float, float, float]) -> dict[str, Any]:
    value: dict[str, list[Any]] = {}
    for video, label, score, start, end in entries:
        value.setdefault(video, []).append({"label": label, "score": score, "segment": [start, end]})
    return {"results": value}


def database(*entries: tuple[str, str, float, float]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for video, label, start, end in entries:
        video_entry = value.setdefault(video, {"subset": "test", "annotations": []})
        video_entry["annotations"].append({"label": label, "segment": [start, end]})
    return {"database": value}


def test_threshold_is_met_by_equality_except_in_the_thumos_kit() -> None:
    found, truth = results(("v", "a", 1, 0, 5)), database(("v", "a", 0, 10))
    assert evaluate(found, truth, tiou=[0.5]).map == (100.0,)
    assert evaluate(found, truth, tiou=[0.5], protocol="thumos").map == (0.0,)


def test_interpolation_belongs_to_activitynet_alone() -> None:
    found = results(("v", "a", 0.9, 50, 60), ("v", "a", 0.8, 0, 10), ("v", "a", 0.7, 20, 30))
    truth = database(("v", "a", 0, 10), ("v", "a", 20, 30))
    assert evaluate(found, truth, tiou=[0.5]).mean == pytest.approx(100 * 2 / 3)
    assert evaluate(found, truth, tiou=[0.5], protocol="thumos").mean == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)


def test_kit_gives_an_instance_its_best_detection_not_the_most_confident() -> None:
    found = results(("v", "a", 0.9, 0, 6), ("v", "a", 0.8, 0, 10))
    truth = database(("v", "a", 0, 10))
    assert evaluate(found, truth, tiou=[0.5]).mean == 100
    assert evaluate(found, truth, tiou=[0.5], protocol="thumos").mean == 50


def test_ambiguous_regions_drop_all_or_only_false_positives(tmp_path: Path) -> None:
    found = results(("v", "a", 0.9, 20, 30), ("v", "a", 0.8, 0, 10), ("w", "a", 0.7, 20, 30))
    truth = database(("v", "a", 0, 10))
    regions = tmp_path / "regions.txt"
    regions.write_text("v 25 40\n")
    assert evaluate(found, truth, tiou=[0.5]).mean == 50
    assert evaluate(found, truth, tiou=[0.5], ambiguous=regions).mean == 100
    assert evaluate(found, truth, tiou=[0.5], protocol="thumos", ambiguous=regions).mean == 100
    regions.write_text("v 5 40\n")
    assert evaluate(found, truth, tiou=[0.5], ambiguous=regions).mean == 0
    assert evaluate(found, truth, tiou=[0.5], protocol="thumos", ambiguous=regions).mean == 100
    regions.write_text("v 30 40\n")
    assert evaluate(found, truth, tiou=[0.5], ambiguous=regions).mean == 50


def test_class_without_detections_counts_as_zero() -> None:
    evaluation = evaluate(results(("v", "a", 1, 0, 9)), database(("v", "a", 0, 9), ("v", "b", 0, 9), ("v", "b", 1, 2)))
    assert evaluation.mean == 50
    assert evaluation.per_class["b"] == {"ap": [0.0] * 7, "mean": 0.0, "instances": 2}


@pytest.mark.parametrize("protocol", ["activitynet", "thumos"])
def test_no_detections_give_zero(protocol: Any) -> None:
    evaluation = evaluate({"results": {}}, database(("v", "a", 0, 9)), protocol=protocol)
    assert (evaluation.map, evaluation.mean, evaluation.warnings) == ((0.0,) * 7, 0.0, ())


def test_oddities_are_told() -> None:
    found = results(("v", "a", 0.5, 0, 9), ("v", "x", 0.9, 0, 9), ("w", "a", 0.9, 0, 9))
    evaluation = evaluate(found, database(("v", "a", 0, 9)), tiou=[0.5])
    assert evaluation.mean == 50  # the video that the ground truth lacks counts, the label doesn't
    assert evaluation.warnings == (
        "1 of 3 detections ignored: the ground truth lacks their labels, x",
        "1 of 3 detections taken as false positives: the ground truth lacks their videos, w",
    )


def test_no_label_in_common_names_both_sides() -> None:
    with pytest.raises(InputError, match=r"expected labels of the ground truth \(a\), got x$"):
        evaluate(results(("v", "x", 1, 0, 9)), database(("v", "a", 0, 9)))


def test_empty_ground_truth_is_refused() -> None:
    with pytest.raises(InputError, match="ground truth: expected at least one annotated instance"):
        evaluate(results(("v", "x", 1, 0, 9)), {"database": {"v": {"subset": "test", "annotations": []}}})


@pytest.mark.parametrize("tiou", [[], [0.0], [1.1], [float("nan")], [[0.5]]])
def test_bad_thresholds_are_refused(tiou: Any) -> None:
    with pytest.raises(InputError, match="tiou: expected one or more thresholds"):
        evaluate(results(("v", "a", 1, 0, 9)), database(("v", "a", 0, 9)), tiou=tiou)


def test_bad_protocol_is_refused() -> None:
    protocol: Any = "coco"
    with pytest.raises(InputError, match="protocol: expected one of activitynet, thumos, got 'coco'"):
        evaluate(results(("v", "a", 1, 0, 9)), database(("v", "a", 0, 9)), protocol=protocol)


def test_subset_is_for_files_not_for_segments() -> None:
    truth = Segments.from_ground_truth(database(("v", "a", 0, 9)))
    with pytest.raises(ValueError, match="subset"):
        evaluate(results(("v", "a", 1, 0, 9)), truth, subset="test")


def test_json_and_table() -> None:
    evaluation = evaluate(results(("v", "[a]", 1, 0, 5)), database(("v", "[a]", 0, 10)), tiou=[0.3, 0.7])
    assert json.loads(json.dumps(evaluation.to_json())) == {
        "tiou": [0.3, 0.7],
        "map": [100.0, 0.0],
        "mean": 50.0,
        "per_class": {"[a]": {"ap": [100.0, 0.0], "mean": 50.0, "instances": 1}},
    }
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(evaluation.table())
    lines = [line.replace("│", " ").replace("┃", " ").split() for line in console.export_text().splitlines()]
    assert ["[a]", "1", "100.0", "0.0", "50.0"] in lines
    assert ["mAP", "1", "100.0", "0.0", "50.0"] in lines
