"""The protocol over data sets: windows, people held out, shares of the ceiling."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

protocol = pytest.importorskip("benchmarks.protocol", reason="benchmarks/ is part of the repository")


def test_people_are_held_out_whole_and_test_people_are_left(tmp_path: Path) -> None:
    dataset = protocol.read("synthetic", None, 0)
    trained = [item.id for item in dataset.recordings if item.subset == "train"]
    people = {name: f"person{number // 2}" for number, name in enumerate(trained)}
    protocol.write(dataset, protocol.held_out(people), False, tmp_path)
    with (tmp_path / "recordings.csv").open() as file:
        subsets = {row["recording"]: row["subset"] for row in csv.DictReader(file)}
    assert set(subsets) == set(trained)
    tested = {people[name] for name, subset in subsets.items() if subset == "test"}
    assert tested == {"person1", "person5"}
    assert tested.isdisjoint(people[name] for name, subset in subsets.items() if subset == "train")
    written = protocol.load_dataset(protocol.load_config("own", [f"data.root={tmp_path}"]))
    for recording in written.recordings:
        [origin] = [item for item in dataset.recordings if item.id == recording.id]
        expected = origin.points if subsets[recording.id] == "train" else ()
        assert [point.label for point in recording.points] == [point.label for point in expected]
        assert [point.time_sec for point in recording.points] == pytest.approx([point.time_sec for point in expected])
        assert [item.start_sec for item in recording.instances] == pytest.approx(
            [item.start_sec for item in origin.instances]
        )


def test_raw_signals_keep_their_files_and_leave_the_test_people(tmp_path: Path, shared_data: Path) -> None:
    root = protocol.prepare("tug", None, False, tmp_path)
    rows = {row["recording"]: row for row in protocol.read_rows(shared_data / "tug" / "recordings.csv")}
    written = protocol.read_rows(root / "recordings.csv")
    assert {row["recording"] for row in written} == {name for name, row in rows.items() if row["subset"] == "train"}
    tested = {row["person"] for row in written if row["subset"] == "test"}
    assert len(tested) == 4
    assert tested.isdisjoint(row["person"] for row in written if row["subset"] == "train")
    pointed = {row["recording"] for row in protocol.read_rows(root / "points.csv")}
    assert pointed == {row["recording"] for row in written if row["subset"] == "train"}
    assert {row["recording"] for row in protocol.read_rows(root / "instances.csv")} == {
        row["recording"] for row in written
    }
    name = written[0]["recording"]
    assert (root / "signals" / f"{name}.npy").read_bytes() == (
        shared_data / "tug" / "signals" / f"{name}.npy"
    ).read_bytes()


def test_a_summary_has_the_share_of_the_ceiling() -> None:
    def row(arm: str, seed: int, score: float) -> dict[str, object]:
        labels = None if arm == "ceiling" else 50.0
        own = {"map": score, "last": score / 2, "labels": labels, "minutes": 1.0}
        return {"data": "d", "points": "own", "arm": arm, "seed": seed, **own}

    table = protocol.summary([row("own", 0, 60.0), row("own", 1, 70.0), row("ceiling", 0, 80.0)])
    assert [(line["arm"], line["map"], line["share"], line["labels"]) for line in table] == [
        ("own", 65.0, 81.25, 50.0),
        ("ceiling", 80.0, 100.0, None),
    ]
    assert "| d | own | own | 2 | 65.0 | 32.5 | 50.0 | 1.0 | 81.2 |" in protocol.markdown(table)
