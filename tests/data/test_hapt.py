from __future__ import annotations

import re
import shutil
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from potloc_fast.config.schema import FolderData
from potloc_fast.data.layouts import read_listing
from potloc_fast.data.layouts.hapt import HaptRecording
from potloc_fast.data.recording import Dataset, Instance
from potloc_fast.errors import InputError


def load_hapt(root: Path, **grid: int) -> Dataset:
    return read_listing(FolderData(layout="hapt", root=root, grid=grid)).open()


def pack(folder: Path, archive: Path, top: str) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, f"{top}{path.relative_to(folder)}")
    return archive


def test_counts_of_the_real_recordings(hapt: Dataset) -> None:
    assert len(hapt.recordings) == 61
    assert len(hapt.subset("train")) == 42
    assert sum(len(recording.instances) for recording in hapt.recordings) == 1214
    assert sum(len(recording.instances) for recording in hapt.subset("train")) == 849
    assert len(hapt.classes) == 12
    assert hapt.classes[0] == "WALKING"
    assert hapt.classes[11] == "LIE_TO_STAND"
    assert sum(recording.duration_sec for recording in hapt.recordings) / 3600 == pytest.approx(6.2, abs=0.05)


def test_the_split_is_by_user(hapt: Dataset) -> None:
    users = {subset: {recording.id.split("_")[1] for recording in hapt.subset(subset)} for subset in ("train", "test")}
    assert len(users["train"]) == 21
    assert users["test"] == {f"user{user:02}" for user in (2, 4, 9, 10, 12, 13, 18, 20, 24)}
    assert not users["train"] & users["test"]


def test_values_of_the_first_recording(hapt: Dataset, shared_data: Path) -> None:
    first = hapt.recordings[0]
    assert first.id == "exp01_user01"
    assert first.instances[:2] == (Instance("STANDING", 4.98, 24.64), Instance("STAND_TO_SIT", 24.64, 27.84))
    with zipfile.ZipFile(shared_data / "hapt" / "hapt_uci.zip") as archive:
        acc, gyro = (
            np.array(archive.read(f"RawData/{sensor}_exp01_user01.txt").split(), dtype=np.float64).reshape(-1, 3)
            for sensor in ("acc", "gyro")
        )
    assert first.features.shape == (len(acc) // 25, 150)
    assert first.features[0, 0] == np.float32(0.9180555898766518)
    last = len(first.features) - 1
    for snippet in (0, 1, 400, last):
        rows = slice(25 * snippet, 25 * snippet + 25)
        expected = np.concatenate([acc[rows].T.ravel(), gyro[rows].T.ravel()]).astype(np.float32)
        np.testing.assert_array_equal(first.features[snippet], expected)
    assert first.features.flags.c_contiguous


def test_there_is_a_point_inside_every_real_instance(hapt: Dataset) -> None:
    for recording in hapt.recordings:
        assert len(recording.points) == len(recording.instances)
        for point, instance in zip(recording.points, recording.instances, strict=True):
            assert point.label == instance.label
            assert instance.start_sec <= point.time_sec < instance.end_sec


def test_window_and_stride(small_hapt: Path) -> None:
    dataset = load_hapt(small_hapt, window=40, stride=30)
    assert [recording.features.shape for recording in dataset.recordings] == [(4, 240), (2, 240)]
    first = dataset.recordings[0]
    assert (first.grid.fps, first.grid.window, first.grid.stride) == (50, 40, 30)
    assert first.instances == (Instance("SITTING", 0.2, 1.2), Instance("WALKING", 1.2, 2.6))
    assert first.points == ()
    assert [recording.subset for recording in dataset.recordings] == ["train", "test"]


def test_every_way_of_packing_gives_the_same(small_hapt: Path, tmp_path: Path) -> None:
    plain = pack(small_hapt, tmp_path / "plain.zip", "")
    topped = pack(small_hapt, tmp_path / "topped.zip", "HAPT Data Set/")
    nested = tmp_path / "nested.zip"
    with zipfile.ZipFile(nested, "w") as file:
        file.write(topped, "HAPT Data Set.zip")
        file.writestr("names.txt", "x")
    expected = load_hapt(small_hapt)
    for root in (tmp_path, str(plain), topped, nested):
        got = load_hapt(root)
        assert got.classes == expected.classes
        for a, b in zip(got.recordings, expected.recordings, strict=True):
            assert (a.id, a.subset, a.instances, a.points, a.grid) == (b.id, b.subset, b.instances, b.points, b.grid)
            np.testing.assert_array_equal(a.features, b.features)


ACC = "RawData/acc_exp01_user07.txt"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (ACC, None, f"{ACC}: expected a file, found none"),
        ("RawData/gyro_exp02_user03.txt", None, "RawData/gyro_exp02_user03.txt: expected a file, found none"),
        ("activity_labels.txt", None, "activity_labels.txt: expected a file, found none"),
        ("Train/subject_id_train.txt", None, "Train/subject_id_train.txt: expected a file, found none"),
        (ACC, "1 2 3\n1 2\n1 2 3\n", f"{ACC}: expected 3 numbers in line 2, got '1 2'"),
        (ACC, "1 2 3\n\n1 2 3\n1 x 3\n", f"{ACC}: expected 3 numbers in line 4, got '1 x 3'"),
        (ACC, "1 2\n1 2\n", f"{ACC}: expected 3 numbers in line 1, got '1 2'"),
        (ACC, "1 2 3\n# 2 3\n", f"{ACC}: expected 3 numbers in line 2, got '# 2 3'"),
        (ACC, " \n", f"{ACC}: expected rows of 3 numbers, found an empty file"),
        (ACC, "1 2 3\n" * 120, "RawData/gyro_exp01_user07.txt: expected 120 rows as in acc_exp01_user07.txt, got 130"),
        (
            "RawData/labels.txt",
            f"1 7 2 {'9' * 20} 5\n",
            f"RawData/labels.txt: expected 5 numbers in line 1, got '1 7 2 {'9' * 20} 5'",
        ),
        (
            "activity_labels.txt",
            "1 WALKING\n1 SITTING\n",
            "activity_labels.txt: expected each number of an activity once, found one twice",
        ),
        ("RawData/labels.txt", "1 7 2 11\n", "RawData/labels.txt: expected 5 numbers in line 1, got '1 7 2 11'"),
        (
            "RawData/labels.txt",
            "1 7 2 11 2.5\n",
            "RawData/labels.txt: expected 5 numbers in line 1, got '1 7 2 11 2.5'",
        ),
        (
            "RawData/labels.txt",
            "1 7 9 11 60\n",
            "RawData/labels.txt: expected activities of activity_labels.txt, got 9",
        ),
        ("RawData/labels.txt", "8 7 1 11 60\n", "RawData/acc_exp08_user07.txt: expected a file, found none"),
        (
            "RawData/labels.txt",
            "1 7 1 60 11\n",
            "exp01_user07: expected an instance to end after its start, got [1.18, 0.22) s of WALKING",
        ),
        ("Test/subject_id_test.txt", "4\n", "expected user 3 of experiment 2 in the split, found it in none"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_each_fault_is_named(
    small_hapt: Path, tmp_path: Path, packed: bool, file: str, content: str | None, message: str
) -> None:
    (small_hapt / file).unlink() if content is None else (small_hapt / file).write_text(content)
    root = pack(small_hapt, tmp_path / "a.zip", "") if packed else small_hapt
    with pytest.raises(InputError, match=f"{re.escape(message)}$") as caught:
        load_hapt(root)
    # Files are named with the folder or archive that they lie in.
    assert str(caught.value).startswith((str(root), "exp01"))


def test_too_short_a_recording_is_named(small_hapt: Path) -> None:
    with pytest.raises(InputError, match=r"exp02_user03.txt: expected at least one window of 100 rows, got 99$"):
        load_hapt(small_hapt, window=100)


def test_what_is_no_archive_is_named(tmp_path: Path, small_hapt: Path) -> None:
    with pytest.raises(InputError, match=r"missing.zip: expected the folder or archive of a data set, found none$"):
        load_hapt(tmp_path / "missing.zip")
    (tmp_path / "page.zip").write_text("<html>")
    with pytest.raises(InputError, match=r"page.zip: expected a zip archive, got: File is not a zip file$"):
        load_hapt(tmp_path / "page.zip")
    archive = pack(small_hapt, tmp_path / "a.zip", "")
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"a.zip: expected a zip archive, got: File is not a zip file$"):
        load_hapt(archive)
    shutil.rmtree(small_hapt / "RawData")
    for root in (small_hapt, pack(small_hapt, tmp_path / "b.zip", "")):
        with pytest.raises(InputError, match=r"archive or its folder, found no RawData/labels.txt in it$"):
            load_hapt(root)


def test_a_damaged_member_is_named(tmp_path: Path, small_hapt: Path) -> None:
    archive = pack(small_hapt, tmp_path / "a.zip", "")
    with zipfile.ZipFile(archive) as file:
        offset = file.getinfo(ACC).header_offset + 200
    content = bytearray(archive.read_bytes())
    content[offset : offset + 8] = bytes(8)
    archive.write_bytes(content)
    with pytest.raises(InputError, match=f"{ACC}: expected readable text, got: "):
        load_hapt(archive)


class SlowLock:
    """Lets others go first whenever it is released."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()
        time.sleep(1e-4)


def test_threads_may_read_an_archive_together(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "hapt.zip", "w") as file:
        for number in range(50):
            for sensor in ("acc", "gyro"):
                info = zipfile.ZipInfo(f"{sensor}_{number}.txt")
                info.extra = b"UT\x05\x00\x01time"  # which zipfile skips from where anybody read last
                file.writestr(info, f"{number} 0 0\n")
    archive = zipfile.ZipFile(tmp_path / "hapt.zip")
    archive._lock = SlowLock()
    with ThreadPoolExecutor(8) as readers:
        recordings = [HaptRecording(zipfile.Path(archive), str(number), 1, 1) for number in range(50)]
        loaded = list(readers.map(HaptRecording.load, recordings))
    assert [float(features[0, 0]) for features in loaded] == [float(number) for number in range(50)]


def repack(small_hapt: Path, target: Path, **changed: bytes) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(small_hapt.rglob("*.txt")):
            archive.writestr(path.relative_to(small_hapt).as_posix(), changed.get(path.stem, path.read_bytes()))
    return target


def harm(content: bytes, offset: int, value: int) -> bytes:
    """Change a field of every header of an archive, in both places where it stands."""
    changed = bytearray(content)
    for mark, place in ((b"PK\x03\x04", offset), (b"PK\x01\x02", offset + 2)):
        start = changed.find(mark)
        while start >= 0:
            changed[start + place] = value
            start = changed.find(mark, start + 4)
    return bytes(changed)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [(6, 1, "is encrypted"), (8, 99, "compression method"), (8, 12, "expected readable text"), (8, 14, "expected")],
)
def test_archives_that_cannot_be_unpacked_are_refused(
    small_hapt: Path, tmp_path: Path, offset: int, value: int, message: str
) -> None:
    path = repack(small_hapt, tmp_path / "a.zip")
    path.write_bytes(harm(path.read_bytes(), offset, value))
    with pytest.raises(InputError, match=message):
        read_listing(FolderData(layout="hapt", root=path)).open()


def test_archives_that_would_fill_the_memory_are_refused(small_hapt: Path, tmp_path: Path) -> None:
    path = repack(small_hapt, tmp_path / "a.zip", labels=b"1 7 1 1 2\n" * (7 << 20))
    message = r"a.zip: expected files packed to a 100th at most, got RawData/labels.txt of \d+ bytes in \d+$"
    with pytest.raises(InputError, match=message):
        read_listing(FolderData(layout="hapt", root=path))
    deep = path
    for depth in range(5):
        outer = tmp_path / f"{depth}.zip"
        with zipfile.ZipFile(outer, "w") as archive:
            archive.write(deep, "x.zip")
        deep = outer
    with pytest.raises(InputError, match=r"4.zip: expected the HAPT archive"):
        read_listing(FolderData(layout="hapt", root=deep))


def test_what_macos_adds_to_archives_is_left_out(small_hapt: Path, tmp_path: Path) -> None:
    inner = repack(small_hapt, tmp_path / "inner.zip")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr("__MACOSX/._inner.zip", b"\0")
        archive.write(inner, "inner.zip")
    listing = read_listing(FolderData(layout="hapt", root=tmp_path / "outer.zip"))
    assert len(listing.entries) == 2
