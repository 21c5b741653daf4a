from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
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


def list_hrpro(root: Path, **options: Any) -> Listing:
    return read_listing(FolderData(layout="hrpro", root=root, **options))


@pytest.fixture
def gtea(real: Callable[..., Any], tmp_path: Path) -> Path:
    root: Path = real("gtea").as_hrpro(tmp_path / "gtea")
    return root


@pytest.mark.parametrize(
    ("name", "videos", "instances", "classes"),
    [("gtea", (21, 7), (367, 130), 7), ("beoid", (46, 12), (594, 148), 34), ("activitynet13", (9032, 4427), None, 200)],
)
def test_all_real_annotations_are_listed_without_features(
    shared_data: Path,
    tmp_path: Path,
    name: str,
    videos: tuple[int, int],
    instances: tuple[int, int] | None,
    classes: int,
) -> None:
    shutil.copytree(shared_data / name, tmp_path / name)
    (tmp_path / name / "features").mkdir()
    if instances is None:
        names = (tmp_path / name / "split_train.txt").read_text().split()
        (tmp_path / name / "fps_dict.json").write_text(json.dumps(dict.fromkeys(names, 30.0)))
    listing = list_hrpro(tmp_path / name)
    train, test = ([entry for entry in listing.entries if entry.subset == s] for s in ("train", "test"))
    assert (len(train), len(test)) == videos
    assert len(listing.classes) == classes
    if instances is None:
        assert sum(len(entry.points) for entry in train) == 13903  # one of the published points stands twice
        assert not any(entry.instances for entry in listing.entries)
    else:
        assert tuple(sum(len(entry.instances) for entry in subset) for subset in (train, test)) == instances
        assert all(len(entry.points) == len(entry.instances) for entry in train)
        assert all(entry.duration_sec for entry in listing.entries)
    assert listing.notes == ()


def test_recordings_are_what_the_files_say(gtea: Path) -> None:
    dataset = list_hrpro(gtea, grid={"fps": 15}).open()
    assert [recording.id for recording in dataset.recordings] == [
        "S1_Cheese_C1",
        "S1_CofHoney_C1",
        "S1_Peanut_C1",
        "S1_Tea_C1",
    ]
    assert [recording.subset for recording in dataset.recordings] == ["train", "train", "test", "test"]
    content = json.loads((gtea / "gt_full.json").read_text())["database"]["S1_Peanut_C1"]
    peanut = dataset.recordings[2]
    assert peanut.instances[0] == Instance("take", *content["annotations"][0]["segment"])
    assert peanut.grid == Grid(fps=15, window=16, stride=16)
    np.testing.assert_array_equal(peanut.features, np.load(gtea / "features" / "test" / "S1_Peanut_C1.npy"))
    assert isinstance(peanut.features, np.memmap)
    # 15 frames a second, and no column class_index.
    first = (gtea / "point_labels" / "point_gaussian.csv").read_text().split("S1_Cheese_C1,")[1].split("\n")[0]
    assert dataset.recordings[0].points[0] == Point("take", float(first) / 15)


def test_features_have_the_grid_of_thumos14_unless_another_is_given(gtea: Path) -> None:
    assert {entry.grid for entry in list_hrpro(gtea).entries} == {Grid(fps=25, window=16, stride=16)}


def test_points_in_the_root_are_found(gtea: Path) -> None:
    expected = [entry.points for entry in list_hrpro(gtea).entries]
    (gtea / "point_labels" / "point_gaussian.csv").rename(gtea / "point_labels.csv")
    assert [entry.points for entry in list_hrpro(gtea).entries] == expected


def test_without_ground_truth_classes_are_those_of_the_points(real: Callable[..., Any], tmp_path: Path) -> None:
    taken = real("activitynet13", train=3)
    root = taken.as_hrpro(tmp_path / "anet")
    dataset = list_hrpro(root).open()
    labels = {row["class"] for video in taken.videos["train"] for row in taken.points[video]}
    assert dataset.classes == tuple(sorted(labels))
    assert sum(len(recording.points) for recording in dataset.recordings) > 0
    (root / "fps_dict.json").unlink()
    message = "whose frames it counts, in fps_dict.json or gt_full.json, found none"
    with pytest.raises(InputError, match=rf"point_gaussian.csv: expected the fps of v_\S+, {message}$"):
        list_hrpro(root)


def test_prefixes_of_ids_may_differ(real: Callable[..., Any], tmp_path: Path) -> None:
    taken = real("activitynet13")
    root = taken.as_hrpro(tmp_path / "anet")
    expected = list_hrpro(root).open()
    # ActivityNet's own annotations, and many features, come without v_.
    videos = taken.videos["train"] + taken.videos["test"]
    for path in root.glob("features/*/v_*.npy"):
        path.rename(path.with_name(path.name.removeprefix("v_")))
    database = {video.removeprefix("v_"): {"fps": 30.0, "annotations": []} for video in videos}
    (root / "gt_full.json").write_text(json.dumps({"database": database}))
    (root / "fps_dict.json").unlink()
    dataset = list_hrpro(root).open()
    assert [recording.id for recording in dataset.recordings] == videos
    for a, b in zip(dataset.recordings, expected.recordings, strict=True):
        np.testing.assert_array_equal(a.features, b.features)
        assert a.points == b.points
    # And the other way round.
    for subset, names in taken.videos.items():
        (root / f"split_{subset}.txt").write_text("\n".join(name.removeprefix("v_") for name in names))
    (root / "gt_full.json").write_text(
        json.dumps({"database": {f"v_{name}": entry for name, entry in database.items()}})
    )
    dataset = list_hrpro(root).open()
    assert [recording.points for recording in dataset.recordings] == [r.points for r in expected.recordings]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("gt_full.json", "{", "gt_full.json: expected JSON, but line 1, column 2: .*"),
        ("gt_full.json", '{"database": {}}', "gt_full.json: expected S1_Cheese_C1, which split_train.txt lists, .*"),
        ("split_train.txt", None, "split_train.txt: expected a file, found none"),
        ("point_labels/point_gaussian.csv", "class,point\n", "expected a column video_id in the first line, found .*"),
    ],
)
def test_each_fault_is_named(gtea: Path, file: str, content: str | None, message: str) -> None:
    (gtea / file).unlink() if content is None else (gtea / file).write_text(content)
    with pytest.raises(InputError, match=f"{message}$"):
        list_hrpro(gtea)


def test_annotations_that_are_named_must_be_there(gtea: Path) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(str(gtea / 'x.json'))}: expected a file, found none$"):
        list_hrpro(gtea, annotations=gtea / "x.json")


def test_points_of_a_wrong_grid_are_named(gtea: Path) -> None:
    # Features at 15 fps that are taken for 25 fps end too early.
    with pytest.raises(InputError, match=r"^S1_Cheese_C1: expected points inside the recording"):
        list_hrpro(gtea).open()
