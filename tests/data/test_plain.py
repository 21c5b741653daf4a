from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potloc_fast.config.schema import FolderData
from potloc_fast.data.grid import Grid
from potloc_fast.data.layouts import read_listing
from potloc_fast.data.listing import Listing
from potloc_fast.data.recording import Instance, Point
from potloc_fast.errors import InputError

CLICKS = "recording,label,time_sec\nv1,jump,2.5\nv1,dive,8\nv2,jump,4\n"


def list_plain(root: Path, **options: Any) -> Listing:
    return read_listing(FolderData(layout="plain", root=root, **options))


def write(root: Path, **tables: str) -> None:
    for name, text in tables.items():
        (root / f"{name}.csv").write_text(text)


@pytest.fixture
def mine(mine: Path) -> Path:
    """Three recordings, and points in the first two."""
    write(mine, points=CLICKS)
    return mine


def test_arrays_and_a_table_of_points_are_enough(mine: Path) -> None:
    dataset = list_plain(mine, grid={"fps": 2}).open()
    assert dataset.name == "mine"
    assert dataset.classes == ("dive", "jump")
    assert [(recording.id, recording.subset) for recording in dataset.recordings] == [
        ("v1", "train"),
        ("v2", "train"),
        ("v3", "test"),
    ]
    assert dataset.recordings[0].points == (Point("jump", 2.5), Point("dive", 8.0))
    assert [recording.duration_sec for recording in dataset.recordings] == [10, 10, 10]
    np.testing.assert_array_equal(dataset.recordings[2].features, np.full((20, 4), 2))
    assert dataset.notes == ()


def test_every_table_and_column_is_read(mine: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "elsewhere.npy", np.zeros((10, 4), np.float16))
    write(
        mine,
        recordings=f"recording,subset,snippet_sec,duration_sec,features,note\n"
        f"v3,train,0.5,,,first\nv1,test,,8,,\nv2,,0.25,5,{tmp_path / 'elsewhere.npy'},\n",
        instances="recording,label,start_sec,end_sec\nv1,jump,2,3\nv1,swim,4,5.5\n",
        points="label,time_sec,recording\njump,1.5,v3\ndive,2,v2\n",
    )
    dataset = list_plain(mine).open()
    assert [(recording.id, recording.subset) for recording in dataset.recordings] == [
        ("v3", "train"),
        ("v1", "test"),
        ("v2", "train"),
    ]
    third, first, second = dataset.recordings
    assert third.grid == Grid(fps=2, window=1, stride=1)
    assert (first.grid.snippet_sec, first.duration_sec) == (pytest.approx(8 / 20), pytest.approx(8))
    assert second.grid.snippet_sec == 0.25
    assert second.features.shape == (10, 4)
    assert first.instances == (Instance("jump", 2, 3), Instance("swim", 4, 5.5))
    assert dataset.classes == ("dive", "jump", "swim")


def test_paths_of_features_start_at_the_folder(mine: Path) -> None:
    (mine / "features" / "v1.npy").rename(mine / "walk.npy")
    write(mine, recordings="recording,features\nv1,walk.npy\nv2,\n")
    assert list_plain(mine, grid={"fps": 1}).open().recordings[0].features[0, 0] == 0


def test_the_configuration_goes_before_the_table(mine: Path) -> None:
    write(mine, recordings="recording,snippet_sec\nv1,0.5\nv2,0.5\n")
    grid = {"fps": 25, "window": 32, "stride": 16}
    assert {entry.grid for entry in list_plain(mine, grid=grid).entries} == {Grid(25, 32, 16)}
    assert {entry.grid for entry in list_plain(mine, grid={"fps": 25, "stride": 8}).entries} == {Grid(25, 8, 8)}


def test_files_that_lie_elsewhere(mine: Path, tmp_path: Path) -> None:
    expected = list_plain(mine, grid={"fps": 2})
    (mine / "features").rename(tmp_path / "arrays")
    (mine / "points.csv").rename(tmp_path / "clicks.csv")
    (tmp_path / "truth.csv").write_text("recording,label,start_sec,end_sec\nv3,dive,1,2\n")
    listing = list_plain(
        mine,
        features=tmp_path / "arrays",
        points_file=tmp_path / "clicks.csv",
        annotations=tmp_path / "truth.csv",
        grid={"fps": 2},
    )
    assert [entry.points for entry in listing.entries] == [entry.points for entry in expected.entries]
    assert listing.entries[2].instances == (Instance("dive", 1, 2),)
    assert len(listing.open().recordings) == 3


def test_points_drawn_from_instances(mine: Path) -> None:
    write(mine, instances="recording,label,start_sec,end_sec\nv1,jump,2,3\nv3,jump,2,3\n")
    listing = list_plain(mine, grid={"fps": 2}, points="uniform")
    assert [(entry.subset, entry.points) for entry in listing.entries] == [("train", ()), ("test", ()), ("train", ())]
    (mine / "points.csv").unlink()
    assert [entry.subset for entry in list_plain(mine, grid={"fps": 2}).entries] == ["train", "test", "train"]


def test_tables_of_spreadsheets(mine: Path) -> None:
    expected = list_plain(mine, grid={"fps": 2})
    text = 'recording,label,time_sec\r\n v1 , jump,2.5,,\r\n,,,,\r\nv1, "dive",8,,\r\n\r\nv2,jump,4,,\r\n'
    (mine / "points.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    listing = list_plain(mine, grid={"fps": 2})
    assert [entry.points for entry in listing.entries] == [entry.points for entry in expected.entries]


def test_points_of_recordings_without_features_are_counted(mine: Path) -> None:
    write(mine, points=CLICKS + "v9,jump,4\n")
    note = f"{mine / 'points.csv'}: 1 row is left out, of v9, which is not in the data set"
    assert list_plain(mine, grid={"fps": 2}).notes == (note,)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {},
            "mine: expected how long a snippet of v1 lasts, as snippet_sec or duration_sec in recordings.csv or as "
            "data.grid.fps (snippets a second), found none",
        ),
        (
            {"recordings": "recording,snippet_sec,duration_sec\nv1,0.5,\nv2,,\n"},
            "mine: expected how long a snippet of v2 lasts, as snippet_sec or duration_sec in recordings.csv or as "
            "data.grid.fps (snippets a second), found none",
        ),
        ({"recordings": "name\nv1\n"}, "recordings.csv: expected a column recording in the first line, found name"),
        (
            {"recordings": "recording\n"},
            "mine: expected recordings in recordings.csv or as .npy files in {root}/features, found none",
        ),
        (
            {"recordings": "recording,subset\nv1,training\n"},
            "recordings.csv: expected subset train or test in line 2, got 'training'",
        ),
        (
            {"recordings": "recording,snippet_sec\nv1,0.5\nv2,-1\n"},
            "recordings.csv: expected snippet_sec over 0 in line 3, got -1",
        ),
        (
            {"recordings": "recording,duration_sec\nv1,long\n"},
            "recordings.csv: expected a number as duration_sec in line 2, got 'long'",
        ),
        ({"recordings": "recording,snippet_sec\n,0.5\n"}, "recordings.csv: expected a recording in line 2, found none"),
        (
            {"recordings": "recording,snippet_sec\nv1,1\nv1,1\nv2,1\n"},
            "v1: expected each recording once, found it twice in mine",
        ),
        (
            {"recordings": "recording,snippet_sec\nv1,1\nv2,1\nv4,1\n"},
            "v4.npy: expected a feature file, found none",
        ),
        (
            {"points": "recording;label;time_sec\n"},
            "points.csv: expected a column recording in the first line, found recording;label;time_sec: "
            "cells are separated by commas",
        ),
        (
            {"points": "recording,label,time_sec\nv1,jump,2:30\n"},
            "points.csv: expected a number as time_sec in line 2, got '2:30'",
        ),
        ({"points": "recording,label,time_sec\nv1,,2\n"}, "points.csv: expected a label in line 2, found none"),
        (
            {"points": "recording,label,time_sec\nv1.mp4,jump,2\n"},
            "points.csv: expected recordings of the data set, such as v1, found only v1.mp4",
        ),
        (
            {"instances": "recording,label,start_sec,end_sec\nv1,jump,2\n"},
            "instances.csv: expected a number as end_sec in line 2, got ''",
        ),
    ],
)
def test_each_fault_is_named(mine: Path, tables: dict[str, str], message: str) -> None:
    write(mine, **tables)
    with pytest.raises(InputError, match=f"{re.escape(message.format(root=mine))}$"):
        list_plain(mine).open()


def test_points_or_instances_must_be_there(mine: Path) -> None:
    (mine / "points.csv").unlink()
    with pytest.raises(InputError, match=r"points.csv: expected a file, found none$"):
        list_plain(mine, grid={"fps": 2})


def test_a_stride_without_fps_is_named(mine: Path) -> None:
    with pytest.raises(InputError, match=r"^v1: expected its fps in the annotations or in data.grid.fps, found none$"):
        list_plain(mine, grid={"stride": 16})
