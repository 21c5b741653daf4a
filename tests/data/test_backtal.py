from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potloc_fast.config.schema import FolderData
from potloc_fast.data.grid import Grid
from potloc_fast.data.layouts import read_listing
from potloc_fast.data.listing import Listing
from potloc_fast.data.recording import Instance, JoinedFeatures, Point
from potloc_fast.errors import InputError

TRAIN = ("video_validation_0000051", "video_validation_0000052")
TEST = "video_test_0000004"
BACKGROUND = 20
NOTHING = -100
rng = np.random.default_rng(0)


def listing(root: Path, **options: object) -> Listing:
    return read_listing(FolderData(layout="backtal", root=root, **options))


def save(path: Path, snippets: int = 750, widths: tuple[int, int] = (3, 2), **facts: object) -> None:
    streams = [rng.standard_normal((width, snippets)).astype(np.float32) for width in widths]
    path.parent.mkdir(parents=True, exist_ok=True)
    members = {"feat_spa": streams[0], "feat_tem": streams[1], "vid_name": path.stem, **facts}
    np.savez(path, **{name: value for name, value in members.items() if value is not None})


@pytest.fixture
def real(thumos14: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The real annotations of THUMOS'14 as BackTAL has them."""
    videos, labels = {}, {}
    for name, video in thumos14.items():
        labels |= {item["label_id"]: item["label"] for item in video["annotations"]}
        found = [
            {"segment": item["segment"], "label": item["label"], "idx": item["label_id"]}
            for item in video["annotations"]
        ]
        videos[name] = {
            **video,
            "subset": {"train": "val", "test": "test"}[video["subset"]],
            "annotations": found,
            "vid_idx": sorted({item["idx"] for item in found}),
        }
    return {"database": videos, "activity_list": [label for _, label in sorted(labels.items())]}


@pytest.fixture
def thumos(real: dict[str, Any], shared_data: Path, tmp_path: Path) -> Path:
    """Three of these videos: one with the real points, one with clicks on the background alone, one to test."""
    root = tmp_path / "THUMOS14"
    videos = {name: real["database"][name] for name in (*TRAIN, TEST)}
    with (shared_data / "thumos14" / "point_labels.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["video_id"] == TRAIN[0]]
    marks = np.full(750, NOTHING)
    for row in rows:
        snippet = float(row["point"]) / videos[TRAIN[0]]["fps"] / videos[TRAIN[0]]["duration"] * 750
        marks[int(snippet)] = real["activity_list"].index(row["class"])
    save(root / "val" / f"{TRAIN[0]}.npz", cls_label=np.zeros(20), point_label=marks)
    marks = np.full(750, NOTHING)
    marks[[43, 127]] = BACKGROUND
    save(root / "val" / f"{TRAIN[1]}.npz", cls_label=np.zeros(20), point_label=marks)
    facts = {"frame_num": 1008, "fps": 30, "duration": 33.6}
    save(root / "test" / f"{TEST}.npz", cls_label=np.zeros(20), **facts)
    (root / "gt_thumos14.json").write_text(json.dumps({**real, "database": videos}))
    return root


def change(root: Path, **changes: object) -> None:
    content = json.loads((root / "gt_thumos14.json").read_text())
    content["database"][TRAIN[0]].update(changes)
    (root / "gt_thumos14.json").write_text(json.dumps(content))


def test_real_annotations(thumos: Path, real: dict[str, Any], shared_data: Path) -> None:
    (thumos / "gt_thumos14.json").write_text(json.dumps(real))
    found = read_listing(FolderData(layout="auto", root=thumos))
    assert found.notes == (
        f"{thumos}: layout backtal, seen from val/{TRAIN[0]}.npz",
        f"{thumos}: clicks left out, as they are on the background: 2; where there are no others, set data.points or "
        "data.points_file",
    )
    assert found.classes == tuple(real["activity_list"])
    assert [(entry.id, entry.subset) for entry in found.entries] == [
        (TEST, "test"),
        (TRAIN[0], "train"),
        (TRAIN[1], "train"),
    ]
    test, first, second = found.entries
    assert first.instances[0] == Instance("Billiards", 67.5, 75.9)
    assert (test.duration_sec, second.duration_sec) == (33.6, real["database"][TRAIN[1]]["duration"])
    assert second.points == test.points == ()
    with (shared_data / "thumos14" / "point_labels.csv").open() as file:
        clicked = [float(row["point"]) / 30 for row in csv.DictReader(file) if row["video_id"] == TRAIN[0]]
    assert len(first.points) == len(clicked) == len(first.instances)
    # The middle of the snippet that was clicked: half a snippet off at most.
    half = first.duration_sec / 750 / 2
    np.testing.assert_allclose([point.time_sec for point in first.points], sorted(clicked), atol=half * 1.001)


def test_streams_are_joined_with_time_first(thumos: Path) -> None:
    for recording in listing(thumos).open().recordings:
        subset = "test" if recording.id == TEST else "val"
        stored = np.load(thumos / subset / f"{recording.id}.npz")
        assert isinstance(recording.features, JoinedFeatures)
        assert recording.features.shape == (750, 5)
        np.testing.assert_array_equal(recording.features, np.concatenate([stored["feat_spa"], stored["feat_tem"]]).T)


def test_snippets_divide_the_duration(thumos: Path) -> None:
    found = listing(thumos)
    for entry, recording in zip(found.entries, found.open().recordings, strict=True):
        assert recording.duration_sec == pytest.approx(entry.duration_sec)
        assert recording.grid.to_sec(0.0) == 0
        assert recording.grid.snippet_sec == pytest.approx(entry.duration_sec / 750)
    given = listing(thumos, grid={"fps": 30, "stride": 16}).entries
    assert {entry.grid for entry in given} == {Grid(30, 16, 16)}


def test_features_of_real_width(thumos: Path) -> None:
    for path, facts in ((thumos / "val" / f"{TRAIN[0]}.npz", {}), (thumos / "test" / f"{TEST}.npz", {"duration": 33})):
        save(path, widths=(1024, 1024), **facts)
    (thumos / "val" / f"{TRAIN[1]}.npz").unlink()
    assert {recording.features.shape for recording in listing(thumos).open().recordings} == {(750, 2048)}


def test_features_are_not_read_to_list_them(thumos: Path) -> None:
    for path in thumos.glob("*/*.npz"):
        stored = dict(np.load(path))
        content = bytearray(path.read_bytes())
        for stream in ("feat_spa", "feat_tem"):
            content[content.index(stored[stream].tobytes())] ^= 255
        path.write_bytes(content)
    found = listing(thumos)
    assert len(found.entries) == 3
    message = rf"{TEST}\.npz: expected an \.npz archive of plain arrays, got a damaged file, .* \(Bad CRC-32 .*\)$"
    with pytest.raises(InputError, match=message):
        found.open()


def test_a_table_of_points_goes_first(thumos: Path, shared_data: Path) -> None:
    table = shared_data / "thumos14" / "point_labels.csv"
    points = {entry.id: entry.points for entry in listing(thumos, points_file=table).entries}
    assert points[TRAIN[0]][0] == Point("Billiards", 2151 / 30)
    assert points[TRAIN[1]]
    drawn = listing(thumos, points="gaussian")
    assert drawn.notes == ()
    assert not any(entry.points for entry in drawn.entries)


@pytest.mark.parametrize(
    "name",
    [np.array(TRAIN[0]), np.array(TRAIN[0].encode()), np.array([TRAIN[0]]), np.array(f"v_{TRAIN[0]}"), None],
    ids=["text", "bytes", "list", "prefix", "none"],
)
def test_names_in_any_form(name: np.ndarray | None, thumos: Path) -> None:
    path = thumos / "val" / f"{TRAIN[0]}.npz"
    if name is not None:
        path = path.rename(path.with_name("0001.npz"))
    save(path, vid_name=name)
    assert TRAIN[0] in [entry.id for entry in listing(thumos).entries]


@pytest.mark.parametrize(
    ("facts", "duration"),
    [
        ({"duration": 40}, 40),
        ({"duration": np.array(b"40.5"), "fps": 25}, 40.5),
        ({"frame_num": np.array([900]), "fps": 30.0}, 30),
        ({"frame_num": 900}, 77.5),
        ({"duration": 0.0, "fps": 0}, 77.5),
        ({}, 77.5),
    ],
)
def test_durations_in_any_form(facts: dict[str, object], duration: float, thumos: Path) -> None:
    change(thumos, duration="77.5")
    save(thumos / "val" / f"{TRAIN[0]}.npz", **facts)
    assert next(entry.duration_sec for entry in listing(thumos).entries if entry.id == TRAIN[0]) == duration


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.float32])
def test_marks_are_classes_in_the_order_of_the_annotations(dtype: type, thumos: Path) -> None:
    change(thumos, duration=200.0)
    marks = np.full(100, -1, dtype)
    marks[[0, 50, 99]] = 0, BACKGROUND, 19
    save(thumos / "val" / f"{TRAIN[0]}.npz", snippets=100, point_label=marks)
    [entry] = [entry for entry in listing(thumos).entries if entry.id == TRAIN[0]]
    assert entry.points == (Point("BaseballPitch", 1.0), Point("VolleyballSpiking", 199.0))


@pytest.fixture
def activitynet(shared_data: Path, tmp_path: Path) -> Path:
    """Real ids and classes of ActivityNet in the shape of version 1.2: 100 snippets, ids with v_ but in the JSON."""
    with (shared_data / "activitynet13" / "point_labels.csv").open() as file:
        rows = list(csv.DictReader(file))[:2]
    tested = (shared_data / "activitynet13" / "split_test.txt").read_text().split()[0]
    root = tmp_path / "ActivityNet1.2"
    classes = sorted(row["class"] for row in rows)
    videos = {"-1K773_2MIY": {"annotations": [], "duration": 72.24, "subset": "testing", "fps": 30}}
    for index, name in enumerate([*(row["video_id"] for row in rows), tested]):
        items = [{"label": rows[index % 2]["class"], "segment": [1, 9.5], "idx": 1 - index % 2}]
        subset = "validation" if name == tested else "training"
        videos[name.removeprefix("v_")] = {"annotations": items, "duration": 20.5, "subset": subset, "fps": 30}
        marks = np.full(100, NOTHING)
        marks[33] = 1 - index % 2
        facts = {"duration": 20.5} if name == tested else {"point_label": marks}
        save(root / subset / f"{name}.npz", snippets=100, vid_name=name.removeprefix("v_").encode(), **facts)
    save(root / "validation" / "v_gone.npz", snippets=100, vid_name=np.array("gone"))
    save(root / "testing" / "v_-1K773_2MIY.npz", snippets=100)
    content = {"database": videos, "activity_list": classes}
    (root / "activity_net.v1-2.min.json").write_text(json.dumps(content))
    return root


def test_activitynet(activitynet: Path) -> None:
    dataset = listing(activitynet).open()
    assert dataset.classes == ("Dodgeball", "Drinking beer")
    assert [recording.subset for recording in dataset.recordings] == ["train", "train", "test"]
    assert {recording.id: recording.points for recording in dataset.recordings}["---9CpRcKoU"] == (
        Point("Drinking beer", pytest.approx(33.5 / 100 * 20.5)),
    )
    json_file = activitynet / "activity_net.v1-2.min.json"
    assert dataset.notes == (f"{activitynet}: videos left out, as {json_file} lacks them: 1, such as gone",)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"point_label": np.full(750, 21)}, "of up to 20 as point_label, one for each snippet, got one of 21"),
        ({"point_label": np.zeros((750, 20))}, "as point_label, one for each snippet, got float64 of shape [750, 20]"),
        ({"point_label": np.full(750, np.nan)}, "as point_label, one for each snippet, got one of nan"),
        ({"point_label": np.array(["x"])}, "as point_label, one for each snippet, got <U1 of shape [1]"),
        ({"duration": "long"}, "expected numbers as duration, frame_num and fps, got something else"),
        ({"point_label": np.zeros(750, int)}, "expected a duration in it or in the annotations, as it has points"),
        (
            {"point_label": np.array([None])},
            "expected an .npz archive of plain arrays, got pickled Python objects, which can run any",
        ),
    ],
)
def test_each_fault_of_a_file_is_named(facts: dict[str, object], message: str, thumos: Path) -> None:
    path = thumos / "val" / f"{TRAIN[0]}.npz"
    save(path, **facts)
    change(thumos, duration=None)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: [^\n]*{re.escape(message)}"):
        listing(thumos)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"feat_tem": None}, "{0}/feat_tem: expected an array of this name in the archive, found none"),
        (
            {"snippets": 5, "widths": (750, 750)},
            "{0}/feat_spa: expected an array [channels, snippets] of 750 snippets, as point_label has, got shape [750",
        ),
        ({"feat_tem": np.zeros((2, 0), np.float32), "point_label": None}, "{0}/feat_tem: expected 750 snippets as in"),
        ({"feat_tem": np.zeros((2, 750), int)}, "{0}/feat_tem: expected an array of floats, got int64"),
        ({"widths": (4, 2)}, "{0}/feat_spa: expected width 3 as in the other recordings, got 4"),
    ],
)
def test_each_fault_of_the_features_is_named(facts: dict[str, object], message: str, thumos: Path) -> None:
    path = thumos / "val" / f"{TRAIN[0]}.npz"
    save(path, **{"point_label": np.full(750, NOTHING), **facts})
    with pytest.raises(InputError, match=f"^{re.escape(message.format(path))}"):
        listing(thumos).open()


def test_an_unknown_duration_is_named(thumos: Path) -> None:
    change(thumos, duration=None)
    save(thumos / "val" / f"{TRAIN[0]}.npz")
    with pytest.raises(InputError, match=f"^{TRAIN[0]}: expected its duration in seconds, .*, got None$"):
        listing(thumos).open()


def test_annotations_of_another_kind_are_named(thumos: Path) -> None:
    path = thumos / "gt_thumos14.json"
    content = json.loads(path.read_text())
    del content["activity_list"]
    path.write_text(json.dumps(content))
    message = f'{path}: expected the names of the classes as "activity_list", found none'
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        listing(thumos)
    path.rename(thumos.parent / path.name)
    with pytest.raises(InputError, match=r"THUMOS14: expected one to read, found none: set data\.annotations$"):
        listing(thumos)


def test_a_missing_subset_is_named(thumos: Path) -> None:
    (thumos / "test" / f"{TEST}.npz").unlink()
    with pytest.raises(InputError, match=r"expected subsets for training and testing .*, found val$"):
        listing(thumos)


def test_a_truncated_file_is_named(thumos: Path) -> None:
    path = thumos / "val" / f"{TRAIN[0]}.npz"
    path.write_bytes(path.read_bytes()[:5000])
    message = "expected an .npz archive of plain arrays, got a damaged file, or something else (File is not a zip file)"
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {message}')}$"):
        listing(thumos)
