from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from potloc_fast.config.schema import FolderData
from potloc_fast.data.layouts import read_listing
from potloc_fast.data.recording import Dataset, Instance, Point
from potloc_fast.errors import InputError

TRAIN = ("video_validation_0000051", "video_validation_0000052")
TEST = ("video_test_0000004", "video_test_0000006")


def load_lacp(root: Path, points_file: Path | None = None) -> Dataset:
    return read_listing(FolderData(layout="lacp", root=root, points_file=points_file)).open()


@pytest.fixture
def thumos(shared_data: Path, tmp_path: Path) -> Path:
    """The real annotations of THUMOS'14 with made-up features of four videos, 3 + 2 channels wide."""
    root = tmp_path / "thumos14"
    (root / "point_gaussian").mkdir(parents=True)
    for name in ("gt.json", "fps_dict.json"):
        shutil.copyfile(shared_data / "thumos14" / name, root / name)
    shutil.copyfile(shared_data / "thumos14" / "point_labels.csv", root / "point_gaussian" / "point_labels.csv")
    rng = np.random.default_rng(0)
    for subset, videos in (("train", TRAIN), ("test", TEST)):
        assert set(videos) <= set((shared_data / "thumos14" / f"split_{subset}.txt").read_text().split())
        (root / f"split_{subset}.txt").write_text("\n".join(videos) + "\n\n")
        for stream, width in (("rgb", 3), ("flow", 2)):
            (root / "features" / subset / stream).mkdir(parents=True)
            for index, video in enumerate(videos):
                features = rng.standard_normal((600 + index, width)).astype(np.float32)
                np.save(root / "features" / subset / stream / f"{video}.npy", features)
    return root


def test_real_annotations(thumos: Path) -> None:
    dataset = load_lacp(thumos)
    assert dataset.name == "thumos14"
    assert len(dataset.classes) == 20
    assert dataset.classes == tuple(sorted(dataset.classes))
    assert [recording.id for recording in dataset.recordings] == [*TRAIN, *TEST]
    assert [recording.subset for recording in dataset.recordings] == ["train", "train", "test", "test"]
    first = dataset.recordings[0]
    assert first.points[0] == Point("Billiards", 2151 / 30)
    assert len(first.points) == len(first.instances)
    database = json.loads((thumos / "gt.json").read_text())["database"]
    start, end = map(float, database[TRAIN[0]]["annotations"][0]["segment"])
    assert first.instances[0] == Instance("Billiards", start, end)
    assert dataset.recordings[2].points == ()
    assert dataset.recordings[2].instances
    assert first.duration_sec == pytest.approx(600 * 0.64)


@pytest.mark.parametrize("name", ["features", "i3d_features"])
def test_streams_are_joined_as_they_are_read(thumos: Path, name: str) -> None:
    (thumos / "features").rename(thumos / name)
    features = load_lacp(thumos).recordings[1].features
    rgb, flow = (np.load(thumos / name / "train" / stream / f"{TRAIN[1]}.npy") for stream in ("rgb", "flow"))
    assert features.shape == (601, 5)
    np.testing.assert_array_equal(features[7:30], np.concatenate([rgb[7:30], flow[7:30]], axis=1))
    assert all(isinstance(part, np.memmap) for part in features.parts)


def test_points_are_found_wherever_they_are(thumos: Path, tmp_path: Path) -> None:
    expected = [recording.points for recording in load_lacp(thumos).recordings]
    table = thumos / "point_gaussian" / "point_labels.csv"
    table.rename(thumos / "point_labels.csv")
    assert [recording.points for recording in load_lacp(thumos).recordings] == expected
    # HR-Pro's tables have no class_index.
    lines = (thumos / "point_labels.csv").read_text().splitlines()
    elsewhere = tmp_path / "points.csv"
    elsewhere.write_text("\n".join(re.sub(r"^(\w+),\w+,", r"\1,", line) for line in lines))
    (thumos / "point_labels.csv").unlink()
    assert [r.points for r in load_lacp(thumos, points_file=elsewhere).recordings] == expected
    points = {video: [[p.label, p.time_sec] for p in found] for video, found in zip(TRAIN, expected, strict=False)}
    (thumos / "point_dict.json").write_text(json.dumps(points))
    (thumos / "fps_dict.json").unlink()
    assert [recording.points for recording in load_lacp(thumos).recordings] == expected


def npy(root: Path, subset: str, stream: str, video: str) -> Path:
    return root / "features" / subset / stream / f"{video}.npy"


@pytest.mark.parametrize(
    ("subset", "stream", "video", "shape", "message"),
    [
        ("test", "rgb", TEST[0], None, "expected a feature file, found none"),
        ("test", "rgb", TEST[0], (600, 4), "expected width 3 as in the other recordings, got 4"),
        ("train", "flow", TRAIN[1], (601, 3), "expected width 2 as in the other recordings, got 3"),
        ("train", "flow", TRAIN[0], (599, 2), "expected 600 snippets as in {rgb}, got 599"),
    ],
)
def test_each_fault_of_the_features_is_named(
    thumos: Path, subset: str, stream: str, video: str, shape: tuple[int, int] | None, message: str
) -> None:
    path = npy(thumos, subset, stream, video)
    path.unlink() if shape is None else np.save(path, np.zeros(shape, np.float32))
    message = message.format(rgb=npy(thumos, subset, "rgb", video))
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {message}')}$"):
        load_lacp(thumos)


def test_features_that_are_not_finite_are_named(thumos: Path) -> None:
    features = np.zeros((601, 2), np.float32)
    features[400, 1] = np.nan
    np.save(npy(thumos, "test", "flow", TEST[1]), features)
    message = f"{npy(thumos, 'test', 'flow', TEST[1])}: expected finite features, got nan at snippet 400, channel 1"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load_lacp(thumos)


def test_points_after_the_end_of_the_features_are_named(thumos: Path) -> None:
    for stream, width in (("rgb", 3), ("flow", 2)):
        np.save(npy(thumos, "train", stream, TRAIN[0]), np.zeros((100, width), np.float32))
    message = "expected points inside the recording, which lasts 64.00 s, got one of Billiards at 71.70 s"
    with pytest.raises(InputError, match=f"^{TRAIN[0]}: {message}$"):
        load_lacp(thumos)


HEAD = "class,start_frame,stop_frame,video_id,point\n"
ROW = f"Billiards,1,2,{TRAIN[0]},"
NO_TIMES = 'expected a "database" of videos with "annotations" that have a "label" and a "segment" of two times'


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("gt.json", None, "gt.json: expected a file, found none"),
        ("gt.json", "[]", f"gt.json: {NO_TIMES}, got something else at the top"),
        (
            "gt.json",
            '{"database": {"v": {"annotations": [{"label": "x"}]}}}',
            f"gt.json: {NO_TIMES}, got something else at v",
        ),
        (
            "gt.json",
            '{"database": {"v": {"annotations": [{"label": "x", "segment": ["1", "b"]}]}}}',
            f"gt.json: {NO_TIMES}, got something else at v",
        ),
        (
            "gt.json",
            '{"database": {"v": {"annotations": [{"label": "x", "segment": [1, 2, 3]}]}}}',
            f"gt.json: {NO_TIMES}, got something else at v",
        ),
        ("split_test.txt", None, "split_test.txt: expected a file, found none"),
        ("split_test.txt", "v9\n", "gt.json: expected v9, which split_test.txt lists, found no such video"),
        (
            "split_test.txt",
            f"{TEST[0]}\n{TEST[0]}\n",
            f"{TEST[0]}: expected each recording once, found it twice in thumos14",
        ),
        ("fps_dict.json", None, "fps_dict.json: expected a file, found none"),
        ("fps_dict.json", "[]", "fps_dict.json: expected the fps of each video by its name, got something else"),
        (
            "fps_dict.json",
            "{}",
            f"fps_dict.json: expected the fps of {TRAIN[0]}, which point_labels.csv names, found none",
        ),
        (
            "point_gaussian/point_labels.csv",
            None,
            "expected one of point_gaussian/point_labels.csv, point_labels.csv, point_dict.json in it, found none",
        ),
        (
            "point_gaussian/point_labels.csv",
            "",
            "point_labels.csv: expected a column class in the first line, found none",
        ),
        (
            "point_gaussian/point_labels.csv",
            "class,video_id\n",
            "point_labels.csv: expected a column point in the first line, found class, video_id",
        ),
        (
            "point_gaussian/point_labels.csv",
            f"{HEAD}{ROW}30\n{ROW}x\n",
            "point_labels.csv: expected a frame number in line 3, got 'x' at 30.0 fps",
        ),
        (
            "point_gaussian/point_labels.csv",
            f"{HEAD}{ROW[:-1]}\n",
            "point_labels.csv: expected a frame number in line 2, got None at 30.0 fps",
        ),
        (
            "point_gaussian/point_labels.csv",
            f"{HEAD}Chess,1,2,{TRAIN[0]},30\n",
            f"{TRAIN[0]}: expected a label among the 20 classes of thumos14, got 'Chess'",
        ),
    ],
)
def test_each_fault_of_the_annotations_is_named(thumos: Path, file: str, content: str | None, message: str) -> None:
    (thumos / file).unlink() if content is None else (thumos / file).write_text(content)
    with pytest.raises(InputError, match=f"{re.escape(message)}$"):
        load_lacp(thumos)


@pytest.mark.parametrize(
    ("content", "where"), [("[]", "the top"), ('{"v": 3}', "v"), ('{"v": [["a", "b"]]}', "v"), ('{"v": [["a"]]}', "v")]
)
def test_a_bad_point_dict_is_named(thumos: Path, tmp_path: Path, content: str, where: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(content)
    message = f"{path}: expected a list of [label, seconds] for each video, got something else at {where}"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load_lacp(thumos, points_file=path)


def test_a_missing_feature_folder_is_named(thumos: Path) -> None:
    shutil.rmtree(thumos / "features")
    with pytest.raises(InputError, match=r"thumos14: expected one of features, i3d_features in it, found none$"):
        load_lacp(thumos)
