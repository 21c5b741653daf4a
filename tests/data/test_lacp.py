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
from potloc_fast.data.recording import Dataset, Instance, JoinedFeatures, Point
from potloc_fast.errors import InputError

TRAIN = ("video_validation_0000051", "video_validation_0000052")
TEST = ("video_test_0000004", "video_test_0000006")
TABLE = "point_gaussian/point_labels.csv"


def list_lacp(root: Path, **options: Any) -> Listing:
    return read_listing(FolderData(layout="lacp", root=root, **options))


def load_lacp(root: Path, **options: Any) -> Dataset:
    return list_lacp(root, **options).open()


@pytest.fixture
def thumos(real: Callable[..., Any], tmp_path: Path) -> Path:
    """The real annotations of THUMOS'14 with made-up features of four videos, 3 + 2 channels wide."""
    root: Path = real("thumos14").as_lacp(tmp_path / "thumos14")
    return root


def test_real_annotations(thumos: Path) -> None:
    dataset = load_lacp(thumos)
    assert dataset.name == "thumos14"
    assert [recording.id for recording in dataset.recordings] == [*TRAIN, *TEST]
    assert [recording.subset for recording in dataset.recordings] == ["train", "train", "test", "test"]
    first = dataset.recordings[0]
    assert first.grid == Grid(fps=25, window=16, stride=16)
    assert first.points[0] == Point("Billiards", 2151 / 30)
    assert len(first.points) == len(first.instances)
    database = json.loads((thumos / "gt.json").read_text())["database"]
    start, end = map(float, database[TRAIN[0]]["annotations"][0]["segment"])
    assert first.instances[0] == Instance("Billiards", start, end)
    assert dataset.recordings[2].points == ()
    assert dataset.recordings[2].instances
    labels = {item["label"] for video in (*TRAIN, *TEST) for item in database[video]["annotations"]}
    assert dataset.classes == tuple(sorted(labels))
    assert len(dataset.notes) == 1  # of the points of the other 198 videos


def test_all_real_annotations_are_listed_without_features(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    for name in ("gt.json", "fps_dict.json", "point_labels.csv", "split_train.txt", "split_test.txt"):
        shutil.copyfile(shared_data / "thumos14" / name, tmp_path / name)
    listing = list_lacp(tmp_path)
    assert len(listing.classes) == 20
    assert [sum(entry.subset == subset for entry in listing.entries) for subset in ("train", "test")] == [200, 210]
    assert sum(len(entry.instances) for entry in listing.entries) == 6318
    assert sum(len(entry.points) for entry in listing.entries if entry.subset == "train") == 3003
    assert listing.notes == ()


@pytest.mark.parametrize("name", ["features", "i3d_features"])
def test_streams_are_joined_as_they_are_read(thumos: Path, name: str) -> None:
    (thumos / "features").rename(thumos / name)
    features = load_lacp(thumos).recordings[1].features
    rgb, flow = (np.load(thumos / name / "train" / stream / f"{TRAIN[1]}.npy") for stream in ("rgb", "flow"))
    assert features.shape == (len(rgb), 5)
    np.testing.assert_array_equal(features[7:30], np.concatenate([rgb[7:30], flow[7:30]], axis=1))
    assert isinstance(features, JoinedFeatures)
    assert all(isinstance(part, np.memmap) for part in features.parts)


def test_one_stream_will_do(thumos: Path) -> None:
    for subset in ("train", "test"):
        shutil.rmtree(thumos / "features" / subset / "rgb")
    dataset = load_lacp(thumos)
    assert dataset.recordings[0].features.shape[1] == 2
    assert f"{thumos}/features: features of flow alone, without the other stream" in dataset.notes


def test_a_stream_that_only_test_lacks_is_missed(thumos: Path) -> None:
    shutil.rmtree(thumos / "features" / "test" / "rgb")
    with pytest.raises(InputError, match=rf"test/rgb/{TEST[0]}.npy: expected a feature file, found none$"):
        load_lacp(thumos)


def test_joined_features_will_do(thumos: Path) -> None:
    for subset, names in (("train", TRAIN), ("test", TEST)):
        for video in names:
            (thumos / "features" / subset / "rgb" / f"{video}.npy").rename(
                thumos / "features" / subset / f"{video}.npy"
            )
        for stream in ("rgb", "flow"):
            shutil.rmtree(thumos / "features" / subset / stream)
    assert load_lacp(thumos).recordings[3].features.shape[1] == 3


def test_features_and_annotations_can_lie_elsewhere(thumos: Path, tmp_path: Path) -> None:
    expected = load_lacp(thumos)
    (thumos / "features").rename(tmp_path / "far")
    (thumos / "gt.json").rename(tmp_path / "truth.json")
    dataset = load_lacp(thumos, features=tmp_path / "far", annotations=tmp_path / "truth.json", name="mine")
    assert dataset.name == "mine"
    for a, b in zip(dataset.recordings, expected.recordings, strict=True):
        np.testing.assert_array_equal(a.features, b.features)
        assert (a.instances, a.points) == (b.instances, b.points)


def test_a_grid_that_is_given_goes_first(thumos: Path) -> None:
    assert list_lacp(thumos, grid={"fps": 30}).entries[0].grid == Grid(fps=30, window=16, stride=16)
    assert list_lacp(thumos, grid={"stride": 4}).entries[0].grid == Grid(fps=25, window=16, stride=4)


def test_points_are_found_wherever_they_are(thumos: Path, tmp_path: Path) -> None:
    def points(**options: Path) -> list[tuple[Point, ...]]:
        return [entry.points for entry in list_lacp(thumos, **options).entries]

    expected = points()
    assert any(expected)
    (thumos / TABLE).rename(thumos / "point_labels.csv")
    assert points() == expected
    # HR-Pro's tables have no class_index.
    lines = (thumos / "point_labels.csv").read_text().splitlines()
    elsewhere = tmp_path / "points.csv"
    elsewhere.write_text("\n".join(re.sub(r"^(\w+),\w+,", r"\1,", line) for line in lines))
    (thumos / "point_labels.csv").unlink()
    assert points(points_file=elsewhere) == expected
    # Rates of the ground truth serve as well.
    content = json.loads((thumos / "gt.json").read_text())
    for video in TRAIN:
        content["database"][video]["fps"] = 30.0
    (thumos / "gt.json").write_text(json.dumps(content))
    (thumos / "fps_dict.json").unlink()
    assert points(points_file=elsewhere) == expected
    # Seconds are numbers or, as in gt.json, strings.
    in_sec = {v: [[p.label, str(p.time_sec)] for p in found] for v, found in zip(TRAIN, expected, strict=False)}
    (thumos / "point_dict.json").write_text(json.dumps(in_sec))
    assert points() == expected


def test_points_that_are_drawn_need_no_table(thumos: Path) -> None:
    (thumos / TABLE).unlink()
    (thumos / "fps_dict.json").unlink()
    listing = list_lacp(thumos, points="uniform")
    assert all(entry.points == () and entry.instances for entry in listing.entries)


def test_points_of_other_videos_are_counted(thumos: Path) -> None:
    (thumos / TABLE).write_text(f"class,video_id,point\nBilliards,v1,3\nBilliards,{TRAIN[0]},3\nBilliards,v1,5\n")
    listing = list_lacp(thumos)
    assert listing.notes == (f"{thumos / TABLE}: 2 rows are left out, of v1, which is not in the data set",)
    (thumos / TABLE).write_text(f"class,video_id,point\nBilliards,v1,3\nBilliards,{TRAIN[0]},3\nBilliards,v2,5\n")
    listing = list_lacp(thumos)
    others = "2 recordings such as v1 that are not in the data set"
    assert listing.notes == (f"{thumos / TABLE}: 2 rows are left out, of {others}",)


def test_byte_order_marks_and_line_ends_of_windows_do_no_harm(thumos: Path) -> None:
    expected = list_lacp(thumos)
    for name in (TABLE, "gt.json", "fps_dict.json", "split_train.txt", "split_test.txt"):
        text = (thumos / name).read_text()
        (thumos / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    listing = list_lacp(thumos)
    assert listing.classes == expected.classes
    for a, b in zip(listing.entries, expected.entries, strict=True):
        assert (a.id, a.subset, a.points, a.instances) == (b.id, b.subset, b.points, b.instances)


def test_blanks_in_split_files_and_tables_do_no_harm(thumos: Path) -> None:
    expected = list_lacp(thumos)
    (thumos / "split_train.txt").write_text(f"\n  {TRAIN[0]}  \n \n\n{TRAIN[1]}\t\n\n")
    (thumos / "split_test.txt").write_text("  ".join(TEST))
    table = (thumos / TABLE).read_text().replace(",", ", ").replace("\n", " \n\n")
    (thumos / TABLE).write_text(table)
    for a, b in zip(list_lacp(thumos).entries, expected.entries, strict=True):
        assert (a.id, a.subset, a.points, a.instances) == (b.id, b.subset, b.points, b.instances)


def test_classes_that_the_ground_truth_lacks_come_from_points(thumos: Path) -> None:
    # As where only the test videos were annotated in full.
    content = json.loads((thumos / "gt.json").read_text())
    for video in TRAIN:
        content["database"][video]["annotations"] = []
    (thumos / "gt.json").write_text(json.dumps(content))
    rows = "\n".join(f"{label},{video},300" for label, video in (("Snooker", TRAIN[0]), ("Billiards", TRAIN[1])))
    (thumos / TABLE).write_text(f"class,video_id,point\n{rows}\n")
    classes = load_lacp(thumos).classes
    assert {"Snooker", "Billiards"} < set(classes)


def npy(root: Path, subset: str, stream: str, video: str) -> Path:
    return root / "features" / subset / stream / f"{video}.npy"


@pytest.mark.parametrize(
    ("subset", "stream", "video", "shape", "message"),
    [
        ("test", "rgb", TEST[0], None, "expected a feature file, found none"),
        ("test", "rgb", TEST[0], (600, 4), "expected width 3 as in the other recordings, got 4"),
        ("train", "flow", TRAIN[1], (64, 3), "expected width 2 as in the other recordings, got 3"),
        ("train", "flow", TRAIN[0], (599, 2), "expected {length} snippets as in {rgb}, got 599"),
    ],
)
def test_each_fault_of_the_features_is_named(
    thumos: Path, subset: str, stream: str, video: str, shape: tuple[int, int] | None, message: str
) -> None:
    path, rgb = npy(thumos, subset, stream, video), npy(thumos, subset, "rgb", video)
    length = len(np.load(rgb))
    if shape is None:
        path.unlink()
    else:
        np.save(path, np.zeros((length if shape[0] != 599 else 599, shape[1]), np.float32))
    message = message.format(length=length, rgb=rgb)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {message}')}$"):
        load_lacp(thumos)


def test_features_that_are_not_finite_are_named(thumos: Path) -> None:
    path = npy(thumos, "test", "flow", TEST[1])
    features = np.load(path)
    features[40, 1] = np.nan
    np.save(path, features)
    message = f"{path}: expected finite features, got nan at snippet 40, channel 1"
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
NO_TIMES = "gt.json: database['v'].annotations[0]: expected a label and a segment [start, end], got"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("gt.json", None, "gt.json: expected a file, found none"),
        ("gt.json", "[]", 'gt.json: expected an object with a "database" of videos, got []'),
        (
            "gt.json",
            '{"database": {"v": {"annotations": [{"label": "x"}]}}}',
            f"{NO_TIMES} {{'label': 'x'}}",
        ),
        (
            "gt.json",
            '{"database": {"v": {"annotations": [{"label": "x", "segment": ["1", "b"]}]}}}',
            f"{NO_TIMES} {{'label': 'x', 'segment': ['1', 'b']}}",
        ),
        (
            "gt.json",
            '{"database": {"v": {"annotations": [{"label": "x", "segment": [1, 2, 3]}]}}}',
            f"{NO_TIMES} {{'label': 'x', 'segment': [1, 2, 3]}}",
        ),
        ("split_test.txt", None, "split_test.txt: expected a file, found none"),
        ("split_test.txt", "v9\n", "gt.json: expected v9, which split_test.txt lists, found no such video"),
        (
            "split_test.txt",
            f"{TEST[0]}\n{TEST[0]}\n",
            f"split_test.txt: expected each video once, found {TEST[0]} twice",
        ),
        (
            "split_test.txt",
            f"{TEST[0]}\n{TRAIN[0]}\n",
            f"split_test.txt: expected each video once, found {TRAIN[0]} in split_train.txt as well",
        ),
        (
            "fps_dict.json",
            None,
            f"point_labels.csv: expected the fps of {TRAIN[0]}, whose frames it counts, in fps_dict.json or gt.json, "
            "found none",
        ),
        (
            "fps_dict.json",
            "[]",
            "fps_dict.json: expected the fps of each video by its name, got something else at the top",
        ),
        (
            "fps_dict.json",
            '{"v": 30, "w": 0}',
            "fps_dict.json: expected the fps of each video by its name, got something else at w",
        ),
        (
            "fps_dict.json",
            "{}",
            f"point_labels.csv: expected the fps of {TRAIN[0]}, whose frames it counts, in fps_dict.json or gt.json, "
            "found none",
        ),
        (
            TABLE,
            None,
            "expected one of point_gaussian/point_labels.csv, point_labels/point_gaussian.csv, point_labels.csv, "
            "point_dict.json in it, found none",
        ),
        (TABLE, "", "point_labels.csv: expected a column class in the first line, found none"),
        (
            TABLE,
            "class,video_id\n",
            "point_labels.csv: expected a column point in the first line, found class,video_id",
        ),
        (TABLE, f"{HEAD}{ROW}30\n{ROW}x\n", "point_labels.csv: expected a number as point in line 3, got 'x'"),
        (TABLE, f"{HEAD}{ROW}30\n{ROW}nan\n", "point_labels.csv: expected a number as point in line 3, got 'nan'"),
        (TABLE, f"{HEAD}{ROW[:-1]}\n", "point_labels.csv: expected a number as point in line 2, got ''"),
        (TABLE, f"{HEAD},1,2,{TRAIN[0]},30\n", "point_labels.csv: expected a class in line 2, found none"),
        (TABLE, f"{HEAD}\na,{ROW}30\n", f"point_labels.csv: expected 5 cells in line 3, got 6: a,{ROW}30"),
        (
            TABLE,
            f"{HEAD}Billiards,1,2,v1,30\n",
            f"point_labels.csv: expected recordings of the data set, such as {TEST[0]}, found only v1",
        ),
        (
            TABLE,
            f"{HEAD}Chess,1,2,{TRAIN[0]},30\n",
            f"{TRAIN[0]}: expected a label among the 4 classes of thumos14, got 'Chess'",
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
