from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potloc_fast.config.schema import FolderData
from potloc_fast.data.grid import Grid
from potloc_fast.data.layouts import read_listing
from potloc_fast.data.listing import Listing
from potloc_fast.data.points import draw_points
from potloc_fast.data.recording import Instance, Point
from potloc_fast.errors import InputError

TRAIN, TEST = "video_validation_0000051", "video_test_0000004"
ANNOTATIONS = Path("annotations", "thumos_14_anno.json")
FEATURES = Path("features", "i3d_actionformer_stride4_thumos")
rng = np.random.default_rng(0)


def listing(root: Path, **options: object) -> Listing:
    return read_listing(FolderData(layout="opentad", root=root, **options))


@pytest.fixture
def real(thumos14: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The real videos of THUMOS'14 as OpenTAD describes them: without 270 and 1292, as published."""
    assert not {"video_test_0000270", "video_test_0001292"} & set(thumos14)
    return {
        name: {
            "subset": {"train": "training", "test": "validation"}[video["subset"]],
            "duration": video["duration"],
            "frame": round(video["duration"] * video["fps"]),
            "annotations": [{"label": item["label"], "segment": item["segment"]} for item in video["annotations"]],
        }
        for name, video in thumos14.items()
    }


@pytest.fixture
def thumos(real: dict[str, dict[str, Any]], tmp_path: Path) -> Path:
    """Two of these videos, with features that are 5 channels wide; a third one has none."""
    root = tmp_path / "thumos-14"
    (root / FEATURES).mkdir(parents=True)
    (root / "annotations").mkdir()
    gone = "video_test_0001496"
    write(root, {name: real[name] for name in (TRAIN, TEST)} | {gone: {**real[TEST], "annotations": []}})
    labels = sorted({item["label"] for video in real.values() for item in video["annotations"]})
    (root / "annotations" / "category_idx.txt").write_text("\n".join(labels) + "\n")
    (root / FEATURES / "missing_files.txt").write_text(f"{gone}\nvideo_test_0000270")
    for name in (TRAIN, TEST):
        features = rng.standard_normal((int((real[name]["frame"] - 16) / 4) + 1, 5)).astype(np.float32)
        np.save(root / FEATURES / f"{name}.npy", features)
    return root


def write(root: Path, videos: dict[str, dict[str, Any]]) -> None:
    (root / ANNOTATIONS).write_text(json.dumps({"database": videos}))


def change(root: Path, **changes: object) -> None:
    content = json.loads((root / ANNOTATIONS).read_text())
    content["database"][TRAIN].update(changes)
    (root / ANNOTATIONS).write_text(json.dumps(content))


def test_real_annotations(thumos: Path, real: dict[str, dict[str, Any]], shared_data: Path) -> None:
    write(thumos, real)
    found = read_listing(FolderData(layout="auto", root=thumos))
    assert found.notes == (f"{thumos}: layout opentad, seen from annotations/category_idx.txt",)
    assert found.name == "thumos-14"
    assert len(found.classes) == 20
    assert sum(entry.subset == "train" for entry in found.entries) == 200
    assert sum(entry.subset == "test" for entry in found.entries) == 210
    first = next(entry for entry in found.entries if entry.id == TRAIN)
    assert first.instances[0] == Instance("Billiards", 67.5, 75.9)
    assert first.grid == Grid(fps=real[TRAIN]["frame"] / real[TRAIN]["duration"], window=16, stride=4)
    table = shared_data / "thumos14" / "point_labels.csv"
    points = {entry.id: entry.points for entry in listing(thumos, points_file=table).entries}
    assert sum(map(len, points.values())) == 3003
    assert points[TRAIN][0] == Point("Billiards", pytest.approx(2151 / 30, abs=0.02))


def test_videos_without_features_are_left_out(thumos: Path) -> None:
    found = listing(thumos)
    assert [entry.id for entry in found.entries] == [TRAIN, TEST]
    missing = thumos / FEATURES / "missing_files.txt"
    assert found.notes == (f"{missing}: videos left out, as they have no features: 1",)
    missing.write_bytes(b"\xef\xbb\xbf\r\nv_video_test_0001496 \r\n\r\n")
    assert [entry.id for entry in listing(thumos).entries] == [TRAIN, TEST]
    missing.unlink()
    found = listing(thumos)
    assert len(found.entries) == 3
    with pytest.raises(InputError, match=r"/video_test_0001496\.npy: expected a feature file, found none$"):
        found.open()


def save_npz(path: Path, array: np.ndarray) -> None:
    np.savez(path.with_suffix(".npz"), feats=array)


def save_pt(path: Path, array: np.ndarray) -> None:
    torch.save(torch.from_numpy(array), path.with_suffix(".pt"))


def save_csv(path: Path, array: np.ndarray) -> None:
    head = ",".join(map(str, range(array.shape[1])))
    np.savetxt(path.with_suffix(".csv"), array, fmt="%.9g", delimiter=",", header=head, comments="")


def save_pkl(path: Path, array: np.ndarray) -> None:
    path.with_suffix(".pkl").write_bytes(pickle.dumps(array))


@pytest.mark.parametrize("save", [save_npz, save_pt, save_csv, save_pkl])
@pytest.mark.parametrize("prefix", ["", "v_"])
def test_features_in_every_format(save: Callable[[Path, np.ndarray], None], prefix: str, thumos: Path) -> None:
    expected = {}
    for path in (thumos / FEATURES).glob("*.npy"):
        expected[path.stem] = np.load(path)
        save(path.with_stem(prefix + path.stem), expected[path.stem])
        path.unlink()
    dataset = listing(thumos, trusted=True).open()
    assert len(dataset.recordings) == 2
    for recording in dataset.recordings:
        np.testing.assert_array_equal(recording.features, expected[recording.id])
    if save is save_pkl:
        with pytest.raises(InputError, match=rf"{TRAIN}\.pkl: expected an array, got pickled Python objects"):
            listing(thumos).open()
    drawn = draw_points(dataset, "gaussian", seed=0)
    assert all(recording.points for recording in drawn.recordings)


def test_features_of_real_width(thumos: Path) -> None:
    for path in (thumos / FEATURES).glob("*.npy"):
        np.save(path, rng.standard_normal((len(np.load(path)), 2048)).astype(np.float32))
    assert {recording.features.shape[1] for recording in listing(thumos).open().recordings} == {2048}


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("i3d_actionformer_stride4_thumos", Grid(25, 16, 4)),
        ("videomaev2-giant_k710_16x4x1_img224_stride4_len16_interval1_thumos", Grid(25, 16, 4)),
        ("slowfast101_15fps_stride8_len32_hacs", Grid(15, 32, 8)),
        ("videomae_b_stride8_len16_interval4_anet", Grid(25, 64, 8)),
        ("tsn_gtad_stride1_thumos", Grid(25, 1, 1)),
        ("anet_tsp_npy_unresize", None),
        ("thumos14_6b", None),
        ("thumos_stride0_0fps", None),
    ],
)
def test_names_of_features_say_how_they_were_made(name: str, grid: Grid | None, thumos: Path) -> None:
    content = json.loads((thumos / ANNOTATIONS).read_text())
    for video in content["database"].values():
        video["frame"] = video["duration"] * 25
    (thumos / ANNOTATIONS).write_text(json.dumps(content))
    (thumos / FEATURES).rename(thumos / "features" / name)
    found = listing(thumos)
    assert [entry.grid for entry in found.entries] == [grid, grid]
    note = f"{thumos / ANNOTATIONS}: snippets divide the duration evenly, as no stride is known: see data.grid"
    assert (note in found.notes) == (grid is None)
    given = listing(thumos, grid={"fps": 15, "window": 16, "stride": 16}).entries
    assert {entry.grid for entry in given} == {Grid(15, 16, 16)}


def test_several_features_have_to_be_chosen_from(thumos: Path) -> None:
    shutil.copytree(thumos / FEATURES, thumos / "features" / "tsn_stride1")
    message = f"expected one to read, found {FEATURES.name}, tsn_stride1: set data.features"
    with pytest.raises(InputError, match=f"/features: {message}$"):
        listing(thumos)
    assert listing(thumos, features=thumos / "features" / "tsn_stride1").entries[0].grid.stride == 1


def test_classes_are_in_the_order_of_their_file(thumos: Path) -> None:
    path = thumos / "annotations" / "category_idx.txt"
    names = path.read_text().split()
    path.write_bytes(("\ufeff" + "\r\n".join([*reversed(names), "", ""])).encode())
    assert listing(thumos).classes == tuple(reversed(names))
    path.write_text("\n".join(name for name in names if name != "Billiards"))
    message = r"category_idx\.txt: expected the class Billiards of thumos_14_anno\.json, found no such line$"
    with pytest.raises(InputError, match=message):
        listing(thumos)
    path.unlink()
    found = read_listing(FolderData(layout="auto", root=thumos))
    assert found.notes[0].endswith("seen from annotations/thumos_14_anno.json")
    assert found.classes == tuple(sorted({item.label for entry in found.entries for item in entry.instances}))


def test_ambiguous_instances_are_left_out(thumos: Path) -> None:
    items = [{"label": "Ambiguous", "segment": [1, 2]}, {"label": "Diving", "segment": ["3", "4"]}]
    change(thumos, annotations=items)
    assert listing(thumos).entries[0].instances == (Instance("Diving", 3.0, 4.0),)
    (thumos / "annotations" / "category_idx.txt").unlink()
    assert "Ambiguous" not in listing(thumos).classes


def test_missing_frames_are_named(thumos: Path) -> None:
    for changes in ({"frame": None}, {"frame": 0}, {"duration": None}):
        change(thumos, frame=3000, duration=100.0)
        change(thumos, **changes)
        message = f"^{TRAIN}: expected its fps in the annotations or in data.grid.fps, found none$"
        with pytest.raises(InputError, match=message):
            listing(thumos)


def test_transposed_features_are_named(thumos: Path) -> None:
    path = thumos / FEATURES / f"{TEST}.npy"
    np.save(path, np.load(path).T)
    with pytest.raises(InputError, match=re.escape(f"{TEST}.npy: expected an array [snippets, channels] of about")):
        listing(thumos).open()


def test_annotations_are_read_from_another_data_set(shared_data: Path, tmp_path: Path) -> None:
    """GTEA, whose real annotations have the same form: training and validation, as in ActivityNet."""
    root = tmp_path / "gtea"
    folder = root / "features" / "i3d_15fps_stride16_len16"
    folder.mkdir(parents=True)
    (root / "annotations").mkdir()
    shutil.copyfile(shared_data / "gtea" / "gt_full.json", root / "annotations" / "gtea_anno.json")
    (root / "annotations" / "blocked.json").write_text("{}")
    database = json.loads((shared_data / "gtea" / "gt_full.json").read_text())["database"]
    for name, video in database.items():
        snippets = (video["num_frames"] - 16) // 16 + 1
        np.save(folder / f"{name}.npy", rng.standard_normal((snippets, 4)).astype(np.float16))
    dataset = listing(root, points_file=shared_data / "gtea" / "point_labels.csv").open()
    assert dataset.notes == ()
    subsets = [recording.subset for recording in dataset.recordings]
    assert (subsets.count("train"), subsets.count("test"), len(dataset.classes)) == (21, 7, 7)
    assert {recording.grid for recording in dataset.recordings} == {Grid(15, 16, 16)}
    train = [recording for recording in dataset.recordings if recording.subset == "train"]
    assert all(len(recording.points) == len(recording.instances) for recording in train)
    for recording in train:
        for point in recording.points:
            assert any(
                instance.label == point.label and instance.start_sec - 0.1 <= point.time_sec <= instance.end_sec + 0.1
                for instance in recording.instances
            )
