"""All figures together: what is read, what is refused, and what is printed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from potloc_fast.errors import InputError
from potloc_fast.evaluation import analyse, evaluate, read_ground_truth

TRUTH = {
    "database": {
        "v": {"subset": "test", "duration": 20.0, "annotations": [{"label": "a", "segment": [0, 10]}]},
        "w": {"subset": "test", "duration": "40", "annotations": [{"label": "b", "segment": ["0", "10"]}]},
        "x": {"subset": "train", "annotations": [{"label": "b", "segment": [0, 10]}]},
    }
}
FOUND = {"results": {"v": [{"label": "a", "score": 0.9, "segment": [0, 9]}]}}


def with_duration(value: Any) -> dict[str, Any]:
    return {"database": {"v": {**TRUTH["database"]["v"], "duration": value}}}


@pytest.mark.parametrize("tiou", [0.1, 0.5, 0.75])
def test_map_is_that_of_evaluate(shared_data: Path, tiou: float) -> None:
    files = (shared_data / "detections" / "pmil_thumos14_test.json", shared_data / "thumos14" / "gt.json")
    assert analyse(*files, subset="test", tiou=tiou).map == evaluate(*files, subset="test", tiou=(tiou,)).map[0]


def test_who_took_which_instance(random: Any) -> None:
    ranked, truth, taken = random
    for column, tiou in zip(taken.T, (0.5, 0.1, 0.25, 0.5), strict=True):
        hit = np.flatnonzero(column >= 0)
        own = column[hit]
        assert len(set(own.tolist())) == len(own)
        assert (ranked.label[hit] == truth.label[own]).all()
        assert (ranked.video[hit] == truth.video[own]).all()
        start = np.maximum(ranked.start_sec[hit], truth.start_sec[own])
        end = np.minimum(ranked.end_sec[hit], truth.end_sec[own])
        union = np.maximum(ranked.end_sec[hit], truth.end_sec[own]) - np.minimum(
            ranked.start_sec[hit], truth.start_sec[own]
        )
        assert ((end - start) / union >= tiou).all()


def test_durations_give_coverage(tmp_path: Path) -> None:
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(TRUTH))
    for truth in (TRUTH, path):
        groups = analyse(FOUND, truth, subset="test").sensitivity.characteristics["coverage"]
        assert [(group.low, group.missed) for group in groups] == [(25, 100), (50, 0)]
        assert "coverage" not in analyse(FOUND, truth).sensitivity.characteristics  # one video has no duration
    segments = read_ground_truth(path, "test")
    assert "coverage" not in analyse(FOUND, segments).sensitivity.characteristics


def test_coverage_on_real_annotations(shared_data: Path) -> None:
    path = shared_data / "gtea" / "gt_full.json"
    truth = read_ground_truth(path)
    groups = analyse(truth, path).sensitivity.characteristics["coverage"]
    database = json.loads(path.read_text())["database"].values()
    values = sorted(
        100 * (float(row["segment"][1]) - float(row["segment"][0])) / entry["duration"]
        for entry in database
        for row in entry["annotations"]
    )
    assert (groups[0].low, groups[-1].high) == pytest.approx((values[0], values[-1]), abs=1e-6)
    assert sum(group.instances for group in groups) == len(values)


@pytest.mark.parametrize("value", [0, -1.0, "long", [3], float("inf")])
def test_an_impossible_duration_is_refused(value: Any) -> None:
    message = r"^ground truth: database\['v'\]\.duration: expected a number above 0, got "
    with pytest.raises(InputError, match=message):
        analyse(FOUND, with_duration(value))


@pytest.mark.parametrize("tiou", [0, -0.1, 1.5, float("nan")])
def test_an_impossible_threshold_is_refused(tiou: float) -> None:
    with pytest.raises(InputError, match=r"^tiou: expected a threshold in \(0, 1\], got"):
        analyse(FOUND, TRUTH, tiou=tiou)


def test_inputs_are_answered_as_by_evaluate(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"results": {"v": [{"label": "a"}]}}')
    alien = {"results": {"v": [{"label": "z", "score": 1, "segment": [0, 9]}]}}
    empty = {"database": {"v": {"subset": "test", "annotations": []}}}
    cases: list[tuple[Any, Any, str | None]] = [
        (broken, TRUTH, None),
        (tmp_path / "nowhere.json", TRUTH, None),
        (FOUND, tmp_path / "nowhere.json", None),
        (FOUND, {"database": 3}, None),
        (FOUND, empty, None),
        (FOUND, TRUTH, "validation"),
        (alien, TRUTH, None),
    ]
    for found, truth, subset in cases:
        with pytest.raises(InputError) as ours:
            analyse(found, truth, subset=subset)
        with pytest.raises(InputError) as theirs:
            evaluate(found, truth, subset=subset)
        assert str(ours.value) == str(theirs.value)


def test_oddities_are_told() -> None:
    found = {
        "results": {
            "v": [*FOUND["results"]["v"], {"label": "z", "score": 0.5, "segment": [0, 9]}],
            "y": [{"label": "a", "score": 1.5, "segment": [0, 9]}],
        }
    }
    result = analyse(found, TRUTH)
    assert result.warnings == (
        "1 of 3 detections ignored: the ground truth lacks their labels, z",
        "1 of 3 detections taken as false positives: the ground truth lacks their videos, y",
        "1 of 2 scores outside 0 to 1: calibration takes them as 0 or 1",
    )
    assert result.errors.counts["background"] == (1, *[0] * 9)


def test_nothing_detected() -> None:
    result = analyse({"results": {}}, TRUTH)
    assert (result.map, result.errors.map_n, result.recall.area, result.f1.frame) == (0, 0, 0, 0)
    assert (result.sensitivity.missed, result.f1.threshold, result.calibration.error) == (100, None, None)
    assert printed(result)
    json.dumps(result.to_json(), allow_nan=False)


def printed(result: Any, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in result.tables():
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_json_and_tables(shared_data: Path) -> None:
    files = (shared_data / "detections" / "pmil_thumos14_test.json", shared_data / "thumos14" / "gt.json")
    result = analyse(*files, subset="test")
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert set(content) == {"tiou", "map", "errors", "sensitivity", "recall", "f1", "calibration", "boundaries"}
    assert content["errors"]["gains"] == result.errors.gains
    assert content["sensitivity"]["characteristics"]["length"][0]["instances"] == 722
    rows = [line.split() for line in printed(result).splitlines()]
    assert ["mAP", "at", "tIoU", "0.5", "33.9"] in rows
    assert ["AR@100", "36.1"] in rows
    assert ["frame-level", "F1,", "scores", "from", "0.227", "60.2"] in rows
    assert ["expected", "calibration", "error", "4.0"] in rows
    assert ["true", "positive", "2102", "7.7", "44.9"] in rows
    assert ["localization", "8248", "30.1", "33.9", "+10.5"] in rows
    assert ["no", "errors", "+26.1"] in rows
    assert ["length", "(s)", "0.2", "-", "1.5", "722", "11.9", "70.1"] in rows
    assert ["all", "3311", "35.9", "36.5"] in rows
    assert ["all", "2934", "-0.08", "-0.90", "to", "+0.90", "+0.04", "-0.62", "to", "+0.82"] in rows
