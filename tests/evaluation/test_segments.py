from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potloc_fast.errors import InputError
from potloc_fast.evaluation import (
    Segments,
    read_ambiguous,
    read_detections,
    read_ground_truth,
    write_detections,
)
from potloc_fast.evaluation import segments as module
from potloc_fast.names import normalize

ENTRY = {"label": "a", "score": 0.5, "segment": [1.0, 2.0]}
NAMES = st.text(min_size=1, max_size=4).map(normalize)
TIMES = st.floats(-1e6, 1e6)
ENTRIES = st.builds(
    lambda label, score, times: {"label": label, "score": score, "segment": sorted(times)},
    NAMES,
    st.floats(allow_nan=False, allow_infinity=False),
    st.tuples(TIMES, TIMES),
)


@given(st.dictionaries(NAMES, st.lists(ENTRIES, max_size=4), max_size=4))
def test_results_survive_the_round_trip(results: dict[str, Any]) -> None:
    found = Segments.from_results({"results": results})
    text = json.dumps(found.to_results())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART", 3)
        assert "".join(found.to_json()) == f"{text}\n"
    value = json.loads(text)
    assert value["results"] == results
    assert list(value["results"]) == list(results)
    assert set(value) == {"version", "external_data", "results"}


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    found = Segments.from_results({"results": {"v": [ENTRY]}})
    found.score[0] = np.nan
    with pytest.raises(InputError, match=r"found.json: expected finite numbers to write"):
        write_detections(tmp_path / "found.json", found)
    assert not list(tmp_path.iterdir())


def test_a_table_of_detections(tmp_path: Path) -> None:
    results = {
        "z, 2": [{**ENTRY, "score": 0.25}, {"label": "b", "score": 0.5, "segment": [0.0, 61.23456]}],
        "y": [ENTRY],
    }
    write_detections(tmp_path / "d.csv", Segments.from_results({"results": results}))
    start, end = ENTRY["segment"]
    assert (tmp_path / "d.csv").read_text().splitlines() == [
        "recording,label,start_sec,end_sec,score",
        '"z, 2",b,0.000,61.235,0.5000',
        f'"z, 2",a,{start:.3f},{end:.3f},0.2500',
        f"y,a,{start:.3f},{end:.3f},{ENTRY['score']:.4f}",
    ]


def test_file_round_trip_keeps_file_order(tmp_path: Path) -> None:
    results = {"z": [{**ENTRY, "label": "late"}, ENTRY], "empty": [], "b": [{**ENTRY, "score": 0.1 + 0.2}]}
    write_detections(tmp_path / "d.json", Segments.from_results({"results": results}))
    segments = read_detections(tmp_path / "d.json")
    assert (segments.videos, segments.labels) == (("z", "empty", "b"), ("late", "a"))
    np.testing.assert_array_equal(segments.video, [0, 0, 2])
    np.testing.assert_array_equal(segments.label, [0, 1, 1])
    assert segments.score[2] == 0.1 + 0.2
    assert segments.to_results()["results"] == results


@pytest.mark.parametrize(
    "entry",
    [
        {"label": "a", "score": 0.5},
        {"label": "a", "segment": [1.0, 2.0]},
        {"score": 0.5, "segment": [1.0, 2.0]},
        {**ENTRY, "segment": [2.0, 1.0]},
        {**ENTRY, "segment": [1.0]},
        {**ENTRY, "segment": [1.0, 2.0, 3.0]},
        {**ENTRY, "segment": [1.0, None]},
        {**ENTRY, "segment": [1.0, float("inf")]},
        {**ENTRY, "segment": [float("nan"), 1.0]},
        {**ENTRY, "segment": 3.0},
        {**ENTRY, "segment": "12"},
        {**ENTRY, "segment": {"1": 0, "2": 0}},
        {**ENTRY, "score": float("nan")},
        {**ENTRY, "score": "high"},
        {**ENTRY, "score": 10**400},
        {**ENTRY, "label": ["a"]},
        "a",
    ],
)
def test_malformed_entry_is_named(tmp_path: Path, entry: Any) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"results": {"v1": [], "v2": [ENTRY, entry]}}))
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: results\['v2'\]\[1\]: expected a label, a score "):
        read_detections(path)


def test_the_first_malformed_entry_is_named() -> None:
    # Together the two have as many times as two good ones.
    entries = [ENTRY, {**ENTRY, "segment": [1.0]}, {**ENTRY, "segment": [1.0, 2.0, 3.0]}]
    with pytest.raises(InputError, match=r"^detections: results\['v'\]\[1\]: expected a label.* got \{'label': 'a'"):
        Segments.from_results({"results": {"u": [ENTRY], "v": entries}})


@pytest.mark.parametrize("value", [[], {}, {"results": []}, {"results": None}, 3])
def test_file_without_results_is_named(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: expected an object with 'results'"):
        read_detections(path)


def test_entries_of_a_video_must_be_a_list() -> None:
    with pytest.raises(InputError, match=r"^detections: results\['v'\]: expected a list, got"):
        Segments.from_results({"results": {"v": ENTRY}})


def database(**subsets: str | None) -> dict[str, Any]:
    annotations = [{"label": "a", "segment": ["18.6", "24.8"]}]
    return {
        "database": {
            video: {"annotations": annotations, **({} if subset is None else {"subset": subset})}
            for video, subset in subsets.items()
        }
    }


def test_ground_truth_reads_text_times_and_any_case_of_subset(tmp_path: Path) -> None:
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(database(v1="Validation", v2="test", v3="validation")))
    segments = read_ground_truth(path, "VALIDATION")
    assert segments.videos == ("v1", "v3")
    assert segments.start_sec.tolist() == [18.6, 18.6]
    assert segments.end_sec.tolist() == [24.8, 24.8]
    assert segments.score.tolist() == [1.0, 1.0]
    assert read_ground_truth(path).videos == ("v1", "v2", "v3")
    path.write_text(json.dumps(database(v1=" Pr\u00fcfung ")))
    assert read_ground_truth(path, "pru\u0308fung").videos == ("v1",)


def test_unknown_subset_names_those_that_exist(tmp_path: Path) -> None:
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(database(v1="train", v2="test")))
    with pytest.raises(InputError, match=r"gt\.json: expected one of the subsets test, train, got 'validation'$"):
        read_ground_truth(path, "validation")


def test_malformed_ground_truth_is_named() -> None:
    value = database(v1="test")
    for segment in (["1", "x"], "12", {"1": 0, "2": 0}):
        value["database"]["v1"]["annotations"][0]["segment"] = segment
        with pytest.raises(InputError, match=r"^ground truth: database\['v1'\]\.annotations\[0\]: expected a label"):
            Segments.from_ground_truth(value)
    with pytest.raises(InputError, match=r"^ground truth: database\['v1'\]: expected an object with a list of annot"):
        Segments.from_ground_truth({"database": {"v1": {"annotations": 3}}})


def test_labels_may_be_numbers_and_videos_without_annotations() -> None:
    truth = {"database": {"v1": {"annotations": [{"label": 0, "segment": [0, 1]}]}, "v2": {"subset": "testing"}}}
    found = {"results": {"v1": [{**ENTRY, "label": 0}, {**ENTRY, "label": "0"}, {**ENTRY, "label": 1}]}}
    assert Segments.from_ground_truth(truth).labels == ("0",)
    assert Segments.from_ground_truth(truth).videos == ("v1", "v2")
    segments = Segments.from_results(found)
    assert (segments.labels, segments.label.tolist()) == (("0", "1"), [0, 0, 1])


def test_ground_truth_leaves_out_what_has_no_length_and_what_stands_twice() -> None:
    spans = [[0, 1], [5, 5], ["0", "1.0"], [2, 3]]
    entry = {"annotations": [{"label": "a", "segment": span} for span in spans]}
    truth = Segments.from_ground_truth({"database": {"v1": entry}}, source="gt.json")
    assert truth.start_sec.tolist() == [0, 2]
    assert truth.notes == (
        "gt.json: instances left out, as they end where they start: 1, the first in v1",
        "gt.json: instances merged, as they stand twice: 1, the first in v1",
    )


def test_ambiguous_regions(tmp_path: Path) -> None:
    path = tmp_path / "Ambiguous_test.txt"
    path.write_text("v1  0.0 1.4\n\nv2 3\t4\nv1 5 6\n")
    regions = read_ambiguous(path)
    assert regions.to_results()["results"] == {
        "v1": [
            {"label": "Ambiguous", "score": 1.0, "segment": [0.0, 1.4]},
            {"label": "Ambiguous", "score": 1.0, "segment": [5.0, 6.0]},
        ],
        "v2": [{"label": "Ambiguous", "score": 1.0, "segment": [3.0, 4.0]}],
    }
    path.write_text("v1 0 1\nv1 0\n")
    with pytest.raises(InputError, match=r"Ambiguous_test\.txt: line 2: expected 'video start end', got 'v1 0'"):
        read_ambiguous(path)


def test_columns_must_have_one_length() -> None:
    ints, floats = np.zeros(2, dtype=np.int64), np.zeros(2)
    with pytest.raises(ValueError, match="columns of one length"):
        Segments(("v",), ("a",), ints, ints, floats, floats, floats[:1])


@pytest.mark.parametrize(
    ("name", "size", "videos"),
    [
        ("detections/autoloc_thumos14_detections.json", 20763, 213),
        ("detections/pmil_thumos14_test.json", 31587, 212),
        ("thumos14/base_proposals.json", 19384, 200),
    ],
)
def test_real_files_are_read_in_full(shared_data: Path, name: str, size: int, videos: int) -> None:
    segments = read_detections(shared_data / name)
    assert (len(segments), len(segments.videos)) == (size, videos)
    assert segments.to_results()["results"] == json.loads((shared_data / name).read_text())["results"]


@pytest.mark.parametrize(("name", "subset"), [("gtea/gt_full.json", "Validation"), ("thumos14/gt.json", "test")])
def test_real_ground_truth_is_read(shared_data: Path, name: str, subset: str) -> None:
    segments = read_ground_truth(shared_data / name, subset)
    every = read_ground_truth(shared_data / name)
    assert 0 < len(segments) < len(every)
    assert set(segments.videos) < set(every.videos)
