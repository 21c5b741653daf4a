from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potloc_fast.config.schema import FolderData
from potloc_fast.data.grid import Grid
from potloc_fast.data.layouts import read_listing, wtalc
from potloc_fast.data.listing import Listing
from potloc_fast.data.recording import Instance, Point
from potloc_fast.errors import InputError

POINTS = "GTEA-Annotations/single_frames/GTEA1.txt"


def list_wtalc(root: Path, *, trusted: bool = True, **options: Any) -> Listing:
    options.setdefault("grid", {"fps": 15})
    return read_listing(FolderData(layout="wtalc", root=root, trusted=trusted, **options))


@pytest.fixture
def taken(real: Callable[..., Any]) -> Any:
    return real("gtea")


@pytest.fixture
def gtea(taken: Any, tmp_path: Path) -> Path:
    root: Path = taken.as_wtalc(tmp_path / "data")
    return root


def test_recordings_are_what_the_files_say(gtea: Path, taken: Any) -> None:
    dataset = list_wtalc(gtea).open()
    assert dataset.name == "GTEA"
    assert [recording.id for recording in dataset.recordings] == taken.videos["train"] + taken.videos["test"]
    assert [recording.subset for recording in dataset.recordings] == ["train", "train", "test", "test"]
    # In the order of classlist.npy, without "Nothing", which no video has.
    assert dataset.classes == ("close", "open", "pour", "put", "scoop", "stir", "take")
    for recording in dataset.recordings:
        annotations = taken.database[recording.id]["annotations"]
        assert recording.instances == tuple(Instance(item["label"], *item["segment"]) for item in annotations)
        assert recording.grid == Grid(fps=15, window=16, stride=16)
        np.testing.assert_array_equal(recording.features, taken.features[recording.id])
    [row, *_] = taken.points["S1_Cheese_C1"]
    assert dataset.recordings[0].points[0] == Point("take", pytest.approx(int(row["point"]) / 15 + 0.01))
    assert not dataset.recordings[2].points
    listed = list_wtalc(gtea).entries[0].duration_sec
    assert listed == taken.database["S1_Cheese_C1"]["duration"]


def test_all_real_annotations(real: Callable[..., Any], tmp_path: Path) -> None:
    listing = list_wtalc(real("beoid", train=99, test=99, width=1).as_wtalc(tmp_path), name="BEOID")
    assert len(listing.classes) == 34
    assert [sum(entry.subset == subset for entry in listing.entries) for subset in ("train", "test")] == [46, 12]
    assert sum(len(entry.instances) for entry in listing.entries) == 742
    assert sum(len(entry.points) for entry in listing.entries) == 594


def test_features_are_read_once_and_only_when_asked_for(gtea: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = list_wtalc(gtea)
    load, opened = np.load, []
    monkeypatch.setattr(np, "load", lambda file, **options: (opened.append(file.name), load(file, **options))[1])
    listing.open()
    assert opened == [str(gtea / "GTEA-I3D-JOINTFeatures.npy")]


def test_features_are_read_once_by_several_threads(gtea: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = list_wtalc(gtea)
    load, opened = wtalc.load_entries, []

    def load_slowly(path: Path, *rest: Any) -> np.ndarray:
        opened.append(path)
        time.sleep(0.05)
        return load(path, *rest)

    monkeypatch.setattr(wtalc, "load_entries", load_slowly)
    with ThreadPoolExecutor(4) as threads:
        lengths = list(threads.map(lambda entry: len(entry.open().features), listing.entries))
    assert lengths == [len(recording.features) for recording in listing.open().recordings]
    assert opened == [gtea / "GTEA-I3D-JOINTFeatures.npy"]


@pytest.mark.parametrize("file", ["GTEA-Annotations/segments.npy", "GTEA-I3D-JOINTFeatures.npy"])
def test_what_is_pickled_must_be_trusted(gtea: Path, file: str) -> None:
    for name in ("segments", "labels"):
        if file.startswith("GTEA-I3D"):  # an array of strings is not pickled
            np.save(gtea / "GTEA-Annotations" / f"{name}.npy", np.zeros((4, 0, 2)))
    message = (
        f"{gtea / file}: expected data.trusted=true, as it holds pickled Python objects, which can run any code: "
        "set it if you trust the source of the file"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        list_wtalc(gtea, trusted=False).open()


def test_unpickling_runs_nothing_unless_trusted(gtea: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    for file in ("segments.npy", "videoname.npy"):
        np.save(gtea / "GTEA-Annotations" / file, np.array([Bomb(), None], object), allow_pickle=True)
        with pytest.raises(InputError, match=r"expected data\.trusted=true"):
            list_wtalc(gtea, trusted=False)
    assert not (tmp_path / "ran").exists()


def test_subsets_of_thumos14(gtea: Path) -> None:
    np.save(gtea / "GTEA-Annotations" / "subset.npy", np.array([b"validation", b"test", b"validation", b"test"]))
    assert [entry.subset for entry in list_wtalc(gtea).entries] == ["train", "test", "train", "test"]


def test_testing_videos_of_activitynet_are_left_out(gtea: Path) -> None:
    np.save(gtea / "GTEA-Annotations" / "subset.npy", np.array([b"training", b"testing", b"validation", b"training"]))
    assert [entry.subset for entry in list_wtalc(gtea).entries] == ["train", "test", "train"]


def test_points_by_several_people(gtea: Path) -> None:
    first, second = (
        list_wtalc(gtea, points_file=gtea / "GTEA-Annotations" / "single_frames" / f"GTEA{n}.txt") for n in (1, 2)
    )
    time = first.entries[0].points[0].time_sec
    assert second.entries[0].points[0].time_sec == pytest.approx(time + 0.01)
    assert first.notes == second.notes == ()
    listing = list_wtalc(gtea)
    assert listing.entries[0].points == first.entries[0].points
    note = f"{gtea / POINTS}: the points of one person out of 2, data.points_file chooses"
    assert listing.notes == (note,)
    (gtea / "GTEA-Annotations" / "single_frames" / "GTEA2.txt").unlink()
    assert list_wtalc(gtea).notes == ()


def test_points_of_several_sets_in_one_folder(gtea: Path) -> None:
    (gtea / "GTEA-Annotations" / "single_frames").rename(gtea / "single_frames")
    (gtea / "single_frames" / "BEOID1.txt").write_text("v,1,take\n")
    expected = list_wtalc(gtea).entries[0].points
    assert len(expected) == 16
    # SF-Net's THUMOS1.txt belongs to Thumos14.
    for path in list(gtea.glob("GTEA*")):
        path.rename(gtea / path.name.replace("GTEA", "Gtea14"))
    assert list_wtalc(gtea, name="Gtea14").entries[0].points == expected


def test_without_points(gtea: Path) -> None:
    shutil.rmtree(gtea / "GTEA-Annotations" / "single_frames")
    listing = list_wtalc(gtea)
    assert not any(entry.points for entry in listing.entries)
    assert listing.notes == (f"{gtea / 'GTEA-Annotations'}: no point labels, as there is no single_frames/GTEA1.txt",)
    assert list_wtalc(gtea, points="gaussian").notes == ()


def test_odd_tables_of_points(gtea: Path) -> None:
    expected = list_wtalc(gtea)
    text = (gtea / POINTS).read_text()
    odd = b"\xef\xbb\xbf" + text.replace(",", " , ").replace("\n", "\r\n").encode() + b"\r\n \r\nv9, 3.0, take"
    (gtea / POINTS).write_bytes(odd)
    listing = list_wtalc(gtea)
    assert [entry.points for entry in listing.entries] == [entry.points for entry in expected.entries]
    assert listing.notes[-1] == f"{gtea / POINTS}: 1 row is left out, of v9, which is not in the data set"


def test_one_of_several_sets(gtea: Path) -> None:
    shutil.copytree(gtea / "GTEA-Annotations", gtea / "BEOID-Annotations")
    with pytest.raises(InputError, match=r"<set>-Annotations, found BEOID, GTEA: set data.name$"):
        list_wtalc(gtea)
    assert list_wtalc(gtea, name="GTEA").name == "GTEA"


def test_python_3_arrays_and_arrays_that_are_not_pickled(gtea: Path, taken: Any) -> None:
    expected = list_wtalc(gtea)
    labels = np.empty(4, object)
    labels[:] = [[item["label"] for item in taken.database[entry.id]["annotations"]] for entry in expected.entries]
    np.save(gtea / "GTEA-Annotations" / "labels.npy", labels)
    np.save(gtea / "GTEA-Annotations" / "videoname.npy", np.array([entry.id for entry in expected.entries]))
    # Features of equal length need no list.
    stacked = np.stack([np.resize(array, (150, 5)) for array in taken.features.values()])
    np.save(gtea / "GTEA-I3D-JOINTFeatures.npy", stacked)
    dataset = list_wtalc(gtea).open()
    assert [recording.instances for recording in dataset.recordings] == [entry.instances for entry in expected.entries]
    np.testing.assert_array_equal(dataset.recordings[3].features, stacked[3])


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        ("GTEA-Annotations/duration.npy", Path.unlink, "expected a readable .npy file, got: No such file or directory"),
        (
            "GTEA-Annotations/subset.npy",
            lambda path: path.write_text("training"),
            "expected a .npy file, got one that starts with b'traini'",
        ),
        (
            "GTEA-Annotations/labels.npy",
            lambda path: path.write_bytes(path.read_bytes()[:-9]),
            "expected a .npy file, got a truncated or damaged one",
        ),
        (
            "GTEA-Annotations/subset.npy",
            lambda path: np.save(path, np.array([b"training"])),
            "expected 4 entries as in videoname.npy, got an array of shape [1]",
        ),
        (
            "GTEA-Annotations/subset.npy",
            lambda path: np.save(path, np.array([b"training"] * 4)),
            "expected subsets for training and testing among training, validation and testing, found training",
        ),
        (
            "GTEA-Annotations/duration.npy",
            lambda path: np.save(path, np.array([b"1.5", b"2", b"x", b"3"])),
            "expected seconds for S1_Peanut_C1, got 'x'",
        ),
        (
            POINTS,
            lambda path: path.write_text("S1_Cheese_C1,1.5,take\n\nS1_Cheese_C1,take\n"),
            "expected video,seconds,label in line 3, got 'S1_Cheese_C1,take'",
        ),
        (
            POINTS,
            lambda path: path.write_text("S1_Cheese_C1,soon,take\n"),
            "expected video,seconds,label in line 1, got 'S1_Cheese_C1,soon,take'",
        ),
    ],
)
def test_each_fault_is_named(gtea: Path, file: str, spoil: Callable[[Path], object], message: str) -> None:
    spoil(gtea / file)
    with pytest.raises(InputError, match=f"^{re.escape(f'{gtea / file}: {message}')}$"):
        list_wtalc(gtea).open()


def test_features_of_another_shape_are_named(gtea: Path) -> None:
    np.save(gtea / "GTEA-I3D-JOINTFeatures.npy", np.zeros((4, 9)))
    name = f"{gtea / 'GTEA-I3D-JOINTFeatures.npy'}/S1_Cheese_C1"
    message = f"{name}: expected an array of shape [snippets, channels], got shape [9]"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        list_wtalc(gtea).open()


def test_labels_and_segments_that_do_not_match_are_named(gtea: Path) -> None:
    segments = np.load(gtea / "GTEA-Annotations" / "segments.npy", allow_pickle=True)
    segments[1] = segments[1][:-1]
    np.save(gtea / "GTEA-Annotations" / "segments.npy", segments)
    with pytest.raises(InputError, match=r"for each label of labels.npy, got .* for S1_CofHoney_C1$"):
        list_wtalc(gtea)


def test_a_label_that_classlist_lacks_is_named(gtea: Path) -> None:
    np.save(gtea / "GTEA-Annotations" / "classlist.npy", np.array([b"take"]))
    with pytest.raises(InputError, match=r"^S1_Cheese_C1: expected a label among the 1 classes of GTEA, got 'open'$"):
        list_wtalc(gtea).open()
