"""Data sets shared by the tests of this folder."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from potloc_fast.config.schema import FolderData
from potloc_fast.data.layouts import read_listing
from potloc_fast.data.points import draw_points
from potloc_fast.data.recording import Dataset


@pytest.fixture(scope="session")
def hapt(shared_data: Path) -> Dataset:
    """The real HAPT recordings, loaded once."""
    listing = read_listing(FolderData(layout="hapt", root=shared_data / "hapt" / "hapt_uci.zip"))
    return draw_points(listing.open(), "gaussian", seed=0)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Somebody's folder: three recordings of 20 snippets and 4 channels, without tables."""
    root = tmp_path / "mine"
    (root / "features").mkdir(parents=True)
    for index, name in enumerate(("v1", "v2", "v3")):
        np.save(root / "features" / f"{name}.npy", np.full((20, 4), index, np.float32))
    return root


@pytest.fixture
def small_hapt(tmp_path: Path) -> Path:
    """A folder in the layout of HAPT with two recordings of 130 and 99 samples."""
    root = tmp_path / "HAPT Data Set"
    for name in ("RawData", "Train", "Test"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, length in (("exp01_user07", 130), ("exp02_user03", 99)):
        for sensor in ("acc", "gyro"):
            np.savetxt(root / "RawData" / f"{sensor}_{name}.txt", rng.standard_normal((length, 3)))
    (root / "RawData" / "labels.txt").write_text("1 7 2 11 60\n1 7 1 61 130\n2 3 1 1 50\n")
    (root / "activity_labels.txt").write_text("1 WALKING   \n2 SITTING\n")
    (root / "Train" / "subject_id_train.txt").write_text("7\n7\n")
    (root / "Test" / "subject_id_test.txt").write_text("3\n")
    return root


@pytest.fixture(scope="session")
def thumos14(shared_data: Path) -> dict[str, dict[str, Any]]:
    """The real videos of THUMOS'14 with their fps; "label_id" is the place of a label in the alphabet.

    Durations are made up: a video goes on for 5.5 s after its last action.
    """
    rates = json.loads((shared_data / "thumos14" / "fps_dict.json").read_text())
    known = json.loads((shared_data / "thumos14" / "gt.json").read_text())["database"]
    labels = sorted({item["label"] for video in known.values() for item in video["annotations"]})
    videos = {}
    for name, video in known.items():
        found = [
            {
                "label": item["label"],
                "segment": [float(sec) for sec in item["segment"]],
                "label_id": labels.index(item["label"]),
            }
            for item in video["annotations"]
        ]
        videos[name] = {
            "subset": video["subset"],
            "duration": max(item["segment"][1] for item in found) + 5.5,
            "fps": rates[name],
            "annotations": found,
        }
    return videos


SNIPPET_SEC = {"thumos14": 16 / 25, "gtea": 16 / 15, "beoid": 16 / 30, "activitynet13": 16 / 25}
ACTIVITYNET_FPS = 30.0  # made up: its annotations come without


class PythonTwoPickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings."""

    dispatch: ClassVar[dict[type, Callable[..., None]]] = dict(pickle._Pickler.dispatch)

    def save_string(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)

    dispatch[bytes] = save_string


def save_objects(path: Path, rows: list[Any]) -> None:
    """Save an object array with an entry for each row, as Python 2 did."""
    array = np.empty(len(rows), object)
    for index, row in enumerate(rows):
        array[index] = row
    buffer = BytesIO()
    PythonTwoPickler(buffer, protocol=2).dump(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": array.shape})
        file.write(buffer.getvalue())


@cache
def read_annotations(source: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, str]]]]:
    """The ground truth of a data set, where there is one, and the rows of points of each video."""
    truth = next((path for name in ("gt.json", "gt_full.json") if (path := source / name).exists()), None)
    points: dict[str, list[dict[str, str]]] = {}
    with (source / "point_labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            points.setdefault(row["video_id"], []).append(row)
    return {} if truth is None else json.loads(truth.read_text())["database"], points


class RealAnnotations:
    """The first videos of the splits of a data set, with their real annotations and features made up for them."""

    def __init__(self, source: Path, train: int, test: int, width: int) -> None:
        self.source = source
        self.name = source.name
        self.videos = {
            subset: (source / f"split_{subset}.txt").read_text().split()[:count]
            for subset, count in (("train", train), ("test", test))
        }
        self.database, self.points = read_annotations(source)
        rng = np.random.default_rng(0)
        self.features = {
            video: rng.standard_normal((self._length(video), width)).astype(np.float32)
            for names in self.videos.values()
            for video in names
        }

    def _length(self, video: str) -> int:
        """As many snippets as hold all that is annotated."""
        ends = [float(item["segment"][1]) for item in self.database.get(video, {"annotations": []})["annotations"]]
        ends += [float(row["stop_frame"]) / ACTIVITYNET_FPS for row in self.points.get(video, ())]
        return int(max(ends, default=60.0) / SNIPPET_SEC[self.name]) + 2

    def _write_splits(self, root: Path) -> None:
        for subset, names in self.videos.items():
            (root / f"split_{subset}.txt").write_text("\n".join(names) + "\n\n")

    def as_lacp(self, root: Path) -> Path:
        (root / "point_gaussian").mkdir(parents=True)
        self._write_splits(root)
        shutil.copyfile(self.source / "gt.json", root / "gt.json")
        shutil.copyfile(self.source / "fps_dict.json", root / "fps_dict.json")
        shutil.copyfile(self.source / "point_labels.csv", root / "point_gaussian" / "point_labels.csv")
        for subset, names in self.videos.items():
            for stream, part in (("rgb", np.s_[:, :3]), ("flow", np.s_[:, 3:])):
                (root / "features" / subset / stream).mkdir(parents=True)
                for video in names:
                    np.save(root / "features" / subset / stream / f"{video}.npy", self.features[video][part])
        return root

    def as_hrpro(self, root: Path) -> Path:
        (root / "point_labels").mkdir(parents=True)
        self._write_splits(root)
        if (self.source / "gt_full.json").exists():
            shutil.copyfile(self.source / "gt_full.json", root / "gt_full.json")
        else:
            rates = dict.fromkeys(self.videos["train"] + self.videos["test"], ACTIVITYNET_FPS)
            (root / "fps_dict.json").write_text(json.dumps(rates))
        shutil.copyfile(self.source / "point_labels.csv", root / "point_labels" / "point_gaussian.csv")
        for subset, names in self.videos.items():
            (root / "features" / subset).mkdir(parents=True)
            for video in names:
                np.save(root / "features" / subset / f"{video}.npy", self.features[video])
        return root

    def as_wtalc(self, root: Path) -> Path:
        name = self.name.upper()
        folder = root / f"{name}-Annotations"
        (folder / "single_frames").mkdir(parents=True)
        videos = self.videos["train"] + self.videos["test"]
        entries = [self.database[video] for video in videos]
        labels = [[item["label"].encode() for item in entry["annotations"]] for entry in entries]
        np.save(folder / "videoname.npy", np.array([video.encode() for video in videos]))
        np.save(folder / "subset.npy", np.array([entry["subset"].encode() for entry in entries]))
        np.save(folder / "duration.npy", np.array([[entry["duration"]] for entry in entries]))
        every = sorted({item["label"].encode() for entry in self.database.values() for item in entry["annotations"]})
        np.save(folder / "classlist.npy", np.array([*every, b"Nothing"]))
        save_objects(folder / "labels.npy", labels)
        save_objects(folder / "labels_all.npy", [sorted(set(row)) for row in labels])
        save_objects(folder / "segments.npy", [[item["segment"] for item in entry["annotations"]] for entry in entries])
        save_objects(root / f"{name}-I3D-JOINTFeatures.npy", [self.features[video] for video in videos])
        for person in (1, 2):
            lines = [
                f"{video},{float(row['point']) / self.database[video]['fps'] + person / 100:.6f},{row['class']}"
                for video in self.videos["train"]
                for row in self.points[video]
            ]
            (folder / "single_frames" / f"{name}{person}.txt").write_text("\n\n".join(lines))
        return root


@pytest.fixture
def real(shared_data: Path) -> Callable[..., RealAnnotations]:
    """Take the first videos of a data set."""

    def take(name: str, train: int = 2, test: int = 2, width: int = 5) -> RealAnnotations:
        return RealAnnotations(shared_data / name, train, test, width)

    return take
