from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from potloc_fast.config.schema import FolderData
from potloc_fast.data.grid import Grid
from potloc_fast.data.layouts import read_listing
from potloc_fast.data.listing import Listing
from potloc_fast.data.points import draw_points
from potloc_fast.data.recording import Instance, Point
from potloc_fast.errors import InputError

TRAIN, TEST = "video_validation_0000051", "video_test_0000004"
ANNOTATIONS = Path("annotations", "thumos14.json")
rng = np.random.default_rng(0)


def listing(root: Path, **options: object) -> Listing:
    return read_listing(FolderData(layout="actionformer", root=root, **options))


@pytest.fixture
def real(thumos14: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The real videos of THUMOS'14 as ActionFormer describes them."""
    return {
        name: {
            **video,
            "subset": {"train": "Validation", "test": "Test"}[video["subset"]],
            "annotations": [
                {**item, "segment(frames)": [sec * video["fps"] for sec in item["segment"]]}
                for item in video["annotations"]
            ],
        }
        for name, video in thumos14.items()
    }


@pytest.fixture
def thumos(real: dict[str, dict[str, Any]], tmp_path: Path) -> Path:
    """Two of these videos with features that are 5 channels wide."""
    root = tmp_path / "thumos"
    (root / "annotations").mkdir(parents=True)
    write(root, {name: real[name] for name in (TRAIN, TEST)})
    (root / "i3d_features").mkdir()
    for name in (TRAIN, TEST):
        snippets = int((real[name]["duration"] * real[name]["fps"] - 16) / 4) + 1
        np.save(root / "i3d_features" / f"{name}.npy", rng.standard_normal((snippets, 5)).astype(np.float32))
    return root


def write(root: Path, videos: dict[str, dict[str, Any]]) -> None:
    (root / ANNOTATIONS).write_text(json.dumps({"version": "Thumos14-30fps", "database": videos}))


def change(root: Path, **changes: object) -> None:
    """Change or, with None, remove what the annotations say of the training video."""
    content = json.loads((root / ANNOTATIONS).read_text())
    content["database"][TRAIN].update(changes)
    for key in [key for key, value in changes.items() if value is None]:
        del content["database"][TRAIN][key]
    (root / ANNOTATIONS).write_text(json.dumps(content))


def test_real_annotations(thumos: Path, real: dict[str, dict[str, Any]], shared_data: Path) -> None:
    write(thumos, real)
    for path in (thumos / "i3d_features").glob("*.npy"):
        path.write_bytes(b"")  # features are not looked at
    found = read_listing(FolderData(layout="auto", root=thumos))
    assert found.notes == (f"{thumos}: layout actionformer, seen from annotations/thumos14.json",)
    assert found.name == "thumos"
    assert len(found.classes) == 20
    assert found.classes[:3] == ("BaseballPitch", "BasketballDunk", "Billiards")
    assert sum(entry.subset == "train" for entry in found.entries) == 200
    assert sum(entry.subset == "test" for entry in found.entries) == 210
    first = next(entry for entry in found.entries if entry.id == TRAIN)
    assert first.instances[0] == Instance("Billiards", 67.5, 75.9)
    assert first.grid == Grid(fps=30, window=16, stride=4)
    rates = {entry.grid.fps for entry in found.entries if entry.grid}
    assert {24, 25, 30} <= rates  # each video has its own

    table = shared_data / "thumos14" / "point_labels.csv"
    found = listing(thumos, points_file=table)
    assert found.notes == ()
    points = {entry.id: entry.points for entry in found.entries}
    assert sum(map(len, points.values())) == len(table.read_text().splitlines()) - 1 == 3003
    assert points[TRAIN][0] == Point("Billiards", 2151 / 30)
    # Nothing is read where points are to be drawn.
    assert not any(entry.points for entry in listing(thumos, points_file=table, points="gaussian").entries)


def test_features_lie_where_actionformer_says(thumos: Path) -> None:
    dataset = listing(thumos).open()
    assert [recording.id for recording in dataset.recordings] == [TRAIN, TEST]
    for recording in dataset.recordings:
        assert isinstance(recording.features, np.memmap)
        stored = np.load(thumos / "i3d_features" / f"{recording.id}.npy")
        np.testing.assert_array_equal(recording.features, stored)
        # Feature i is of frames [4 i, 4 i + 16): position (sec * fps - 8) / 4 of theirs is the centre of our cell i.
        assert recording.grid.to_grid(10.0) - 0.5 == pytest.approx((10.0 * recording.grid.fps - 8) / 4)
        assert recording.duration_sec == pytest.approx(max(i.end_sec for i in recording.instances) + 5.5, abs=0.4)
    drawn = draw_points(dataset, "gaussian", seed=0)
    assert all(len(recording.points) == len(recording.instances) > 0 for recording in drawn.recordings)


def test_features_of_real_width(thumos: Path) -> None:
    for path in (thumos / "i3d_features").glob("*.npy"):
        np.save(path, rng.standard_normal((len(np.load(path)), 2048)).astype(np.float32))
    assert {recording.features.shape[1] for recording in listing(thumos).open().recordings} == {2048}


@pytest.mark.parametrize(
    "text",
    [
        "recording,label,time_sec\n{0},Billiards,71.7\n",
        "\ufeffrecording, label,  time_sec\r\n\r\n v_{0}, Billiards,  71.7\r\n\r\n",
        "time_sec,note,label,recording\n71.7,x,Billiards,{0}\n",
    ],
)
def test_points_in_seconds(text: str, thumos: Path) -> None:
    table = thumos / "points.csv"
    table.write_bytes(text.format(TRAIN).encode())
    points = {entry.id: entry.points for entry in listing(thumos, points_file=table).entries if entry.points}
    assert points == {TRAIN: (Point("Billiards", 71.7),)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "points.csv: expected a column video_id in the first line, found none"),
        ("recording,time_sec\n", "points.csv: expected a column label in the first line, found recording,time_sec"),
        (f"class,video_id,point\nBilliards,{TRAIN},x\n", "points.csv: expected a number as point in line 2, got 'x'"),
        (
            f"class,video_id,point\nBilliards,{TRAIN},30\n",
            f"points.csv: expected the fps of {TRAIN}, whose frames it counts, in ",
        ),
    ],
)
def test_each_fault_of_the_points_is_named(text: str, message: str, thumos: Path) -> None:
    change(thumos, fps=None)
    (thumos / "points.csv").write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        listing(thumos, points_file=thumos / "points.csv", grid={"fps": 30})


def test_numbers_may_be_text_and_annotations_missing(thumos: Path) -> None:
    path = thumos / ANNOTATIONS
    change(thumos, fps="29.97", duration=" 140.5 ", annotations=[{"segment": ["1", " 2.5"], "label": "Diving"}])
    path.write_bytes(path.read_text().replace("}, ", "},\r\n\r\n  ").encode("utf-8-sig"))
    first = next(entry for entry in listing(thumos).entries if entry.id == TRAIN)
    assert first.grid == Grid(29.97, 16, 4)
    assert first.duration_sec == 140.5
    assert first.instances == (Instance("Diving", 1.0, 2.5),)
    path.write_text(path.read_text(encoding="utf-8-sig"))
    change(thumos, annotations=None, duration=None)
    first = next(entry for entry in listing(thumos).entries if entry.id == TRAIN)
    assert first.instances == ()
    assert first.duration_sec is None


def test_a_missing_fps_is_named_or_given(thumos: Path) -> None:
    change(thumos, fps=None)
    message = f"{TRAIN}: expected its fps in the annotations or in data.grid.fps, found none"
    with pytest.raises(InputError, match=f"^{message}$"):
        listing(thumos)
    assert {entry.grid for entry in listing(thumos, grid={"fps": 30, "stride": 8}).entries} == {Grid(30, 16, 8)}
    # It is what "frame" over "duration" gives, where both are there.
    change(thumos, frame=2997, duration=100)
    assert next(entry.grid for entry in listing(thumos).entries if entry.id == TRAIN) == Grid(29.97, 16, 4)


@pytest.mark.parametrize(
    ("numbers", "classes"),
    [((2, 0, 1), ("b", "c", "a")), ((10, 9, "8"), ("c", "b", "a")), ((0, 0, 0), ("a", "b", "c"))],
)
def test_classes_are_in_the_order_of_their_numbers(
    numbers: tuple[object, ...], classes: tuple[str, ...], thumos: Path
) -> None:
    items = [
        {"label": label, "segment": [1, 2], "label_id": number} for label, number in zip("abc", numbers, strict=True)
    ]
    videos = {"v": {"subset": "Validation", "fps": 30, "annotations": items}, "w": {"subset": "Test", "fps": 30}}
    write(thumos, videos)
    assert listing(thumos).classes == classes


def test_a_missing_feature_file_is_named_when_it_is_opened(thumos: Path) -> None:
    (thumos / "i3d_features" / f"{TRAIN}.npy").unlink()
    found = listing(thumos)
    with pytest.raises(InputError, match=rf"/i3d_features/{TRAIN}\.npy: expected a feature file, found none$"):
        found.open()


def test_transposed_features_are_named(thumos: Path) -> None:
    path = thumos / "i3d_features" / f"{TRAIN}.npy"
    features = np.load(path)
    np.save(path, features.T.copy())
    message = rf"{TRAIN}\.npy: expected an array \[snippets, channels\] of about \d+ snippets, got shape \[5, "
    with pytest.raises(InputError, match=message + rf"{len(features)}\], which looks transposed$"):
        listing(thumos).open()


@pytest.fixture
def activitynet(shared_data: Path, tmp_path: Path) -> Path:
    """Two real training videos of ActivityNet-1.3 with their classes, and one each for validation and testing."""
    with (shared_data / "activitynet13" / "point_labels.csv").open() as file:
        rows = list(csv.DictReader(file))[:2]
    videos = {}
    for row, fps in zip(rows, (29.97002997, 25.0), strict=True):
        segment = [float(row["start_frame"]) / fps, float(row["stop_frame"]) / fps]
        name = row["video_id"].removeprefix("v_")
        items = [{"label": row["class"], "segment": segment, "label_id": 7 - len(videos)}]
        videos[name] = {"subset": "training", "duration": segment[1] + 3, "fps": fps, "annotations": items}
    tested = (shared_data / "activitynet13" / "split_test.txt").read_text().split()[0].removeprefix("v_")
    items = [{"label": rows[0]["class"], "segment": [1, 9.5], "label_id": 7}]
    videos[tested] = {"subset": "validation", "duration": 40.0, "fps": 30, "annotations": items}
    videos["-nobody-knows"] = {"subset": "testing", "duration": 12.0, "fps": 30, "annotations": []}
    root = tmp_path / "anet_1.3"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "cuhk_val_simp_share.json").write_text("{}")
    for kind, rate, width in (("tsp", 15, 4), ("i3d", 25, 6)):
        (root / "annotations" / f"anet1.3_{kind}_filtered.json").write_text(json.dumps({"database": videos}))
        (root / f"{kind}_features").mkdir()
        for name, video in videos.items():
            features = rng.standard_normal((int(video["duration"] * rate / 16), width)).astype(np.float32)
            np.save(root / f"{kind}_features" / f"v_{name}.npy", features)
    return root


@pytest.mark.parametrize(("kind", "rate", "width"), [("tsp", 15, 4), ("i3d", 25, 6)])
def test_activitynet(kind: str, rate: int, width: int, activitynet: Path, shared_data: Path) -> None:
    annotations = activitynet / "annotations" / f"anet1.3_{kind}_filtered.json"
    points = shared_data / "activitynet13" / "point_labels.csv"
    dataset = listing(activitynet, annotations=annotations, points_file=points).open()
    assert dataset.classes == ("Dodgeball", "Drinking beer")
    assert [recording.subset for recording in dataset.recordings] == ["train", "train", "test"]
    assert {recording.grid for recording in dataset.recordings} == {Grid(rate, 16, 16)}
    assert dataset.recordings[0].id == "---9CpRcKoU"
    stored = np.load(activitynet / f"{kind}_features" / "v_---9CpRcKoU.npy")
    np.testing.assert_array_equal(dataset.recordings[0].features, stored)
    assert stored.shape[1] == width
    assert dataset.recordings[0].points[0] == Point("Drinking beer", pytest.approx(196 / 29.97002997))
    assert dataset.notes[0].startswith(f"{points}: ")
    assert dataset.notes[1] == f"{annotations}: videos left out, as their subset is 'testing': 1"


def test_two_annotations_have_to_be_chosen_from(activitynet: Path) -> None:
    message = "expected one to read, found anet1.3_i3d_filtered.json, anet1.3_tsp_filtered.json: set data.annotations"
    with pytest.raises(InputError, match=re.escape(f"/annotations: {message}")):
        listing(activitynet)


def test_one_hdf5_file_for_all(activitynet: Path) -> None:
    folder = activitynet / "i3d_features"
    with h5py.File(activitynet / "i3d_features.hdf5", "w") as file:
        for path in folder.glob("*.npy"):
            file.create_dataset(path.stem, data=np.load(path).astype(np.float64), compression="gzip")
    annotations = activitynet / "annotations" / "anet1.3_i3d_filtered.json"
    expected = [
        recording.features
        for recording in listing(activitynet, annotations=annotations, features=folder).open().recordings
    ]
    with pytest.raises(InputError, match=r"found i3d_features, i3d_features\.hdf5: set data\.features$"):
        listing(activitynet, annotations=annotations)
    shutil.rmtree(folder)
    found = listing(activitynet, annotations=annotations)
    for recording, features in zip(found.open().recordings, expected, strict=True):
        np.testing.assert_array_equal(recording.features, features)
    with h5py.File(activitynet / "i3d_features.hdf5", "a") as file:
        del file["v_---9CpRcKoU"]
    with pytest.raises(InputError, match=r"hdf5/---9CpRcKoU: expected a dataset of this name in the file, found none$"):
        listing(activitynet, annotations=annotations).open()


def test_resampled_features_of_other_annotations(activitynet: Path) -> None:
    path = activitynet / "annotations" / "anet1.3_tsp_filtered.json"
    mine = path.rename(path.with_name("mine.json"))
    found = listing(activitynet, annotations=mine, features=activitynet / "tsp_features")
    note = f"{mine}: snippets divide the duration evenly, as no stride is known: see data.grid"
    assert found.notes[-1] == note
    for entry, recording in zip(found.entries, found.open().recordings, strict=True):
        assert recording.duration_sec == pytest.approx(entry.duration_sec)
    given = listing(
        activitynet, annotations=mine, features=activitynet / "tsp_features", grid={"stride": 16, "fps": 15}
    )
    assert {entry.grid for entry in given.entries} == {Grid(15, 16, 16)}
    with pytest.raises(InputError, match=r"^key data\.grid\.stride: expected one beside data\.grid\.fps"):
        listing(activitynet, annotations=mine, features=activitynet / "tsp_features", grid={"fps": 15})


NO_DATABASE = 'expected an object with a "database" of videos, got'
NO_TIMES = "database['v'].annotations[0]: expected a label and a segment [start, end], got"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", f"{NO_DATABASE} []"),
        ("{}", f"{NO_DATABASE} {{}}"),
        ('{"database": {"v": 3}}', "database['v']: expected an object with a list of annotations, got 3"),
        ('{"database": {"v": {"annotations": [{"label": "x"}]}}}', f"{NO_TIMES} {{'label': 'x'}}"),
        ('{"database": {"v": {"annotations": [{"segment": [1, 2]}]}}}', f"{NO_TIMES} {{'segment': [1, 2]}}"),
        (
            '{"database": {"v": {"annotations": [{"label": "x", "segment": [1, 2], "label_id": "x"}]}}}',
            f"{NO_TIMES} {{'label': 'x', 'label_id': 'x', 'segment': [1, 2]}}",
        ),
        ('{"database": {"v": {"duration": "long"}}}', "database['v'].duration: expected a number above 0, got 'long'"),
        (
            '{"database": {"v": {"subset": "Test"}}}',
            "expected subsets for training and testing among training, validation and testing, found test",
        ),
        (
            '{"database": {"v": {}, "w": {}}}',
            "expected subsets for training and testing among training, validation and testing, found none",
        ),
        ('{"database": ', "expected JSON, but line 1, column 14: Expecting value"),
        (None, "expected a file, found none"),
    ],
)
def test_each_fault_of_the_annotations_is_named(content: str | None, message: str, thumos: Path) -> None:
    path = thumos / ANNOTATIONS
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {message}')}$"):
        listing(thumos, annotations=path)


def test_missing_places_are_named(thumos: Path) -> None:
    shutil.rmtree(thumos / "i3d_features")
    with pytest.raises(InputError, match=r"/thumos: expected one to read, found none: set data\.features$"):
        listing(thumos)
    (thumos / ANNOTATIONS).unlink()
    with pytest.raises(InputError, match=r"annotations: expected one to read, found none: set data\.annotations$"):
        listing(thumos)
