"""HAPT: smartphone recordings of human activities and postural transitions (UCI data set 341).

`RawData/` holds `{acc,gyro}_exp<E>_user<U>.txt`, 50 samples a second and three columns, and `labels.txt` (experiment,
user, activity, first and last sample; samples count from 1, the last one belongs to the activity). Beside it stand
`activity_labels.txt` and, for the official split of users, `Train/subject_id_train.txt` and `Test/subject_id_test.txt`.
"""

from __future__ import annotations

import io
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from potloc_fast.config.schema import FolderData
from potloc_fast.data.grid import Grid
from potloc_fast.data.layouts.signs import Signs
from potloc_fast.data.listing import Entry, Listing
from potloc_fast.data.recording import Instance
from potloc_fast.errors import InputError, quote
from potloc_fast.files import check_kind, check_members, is_hidden, listed

FPS = 50
DEPTH = 3  # archives within one another: the published one lies in a second
SIGNS = Signs(("RawData/labels.txt",))

Folder: TypeAlias = Path | zipfile.Path

_reading = threading.Lock()  # several threads read recordings, and zipfile (Python 3.12, 3.13) confuses their places


@dataclass(frozen=True, eq=False)
class HaptRecording:
    """The features of a recording: windows of raw samples, channel by channel.

    `[T, 6 * window]`: acc x, y, z (g) and gyro x, y, z (rad/s) one channel after the other, as recorded.
    """

    raw: Folder
    name: str
    window: int
    stride: int

    @property
    def path(self) -> Path:
        """The file of accelerations."""
        return Path(str(self.raw / f"acc_{self.name}.txt"))

    def load(self) -> NDArray[np.float32]:
        """Cut the recording into windows."""
        acc, gyro = (_read_table(self.raw / f"{sensor}_{self.name}.txt", 3, np.float32) for sensor in ("acc", "gyro"))
        if len(acc) != len(gyro):
            raise InputError(
                f"{self.raw / f'gyro_{self.name}.txt'}: expected {len(acc)} rows as in acc_{self.name}.txt, "
                f"got {len(gyro)}"
            )
        if len(acc) < self.window:
            raise InputError(f"{self.path}: expected at least one window of {self.window} rows, got {len(acc)}")
        samples = np.concatenate([acc, gyro], axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(samples, self.window, axis=0)[:: self.stride]
        return windows.reshape(len(windows), 6 * self.window)  # from [T, 6, window]


def recognize(root: Path) -> str | None:
    """Say what of the layout is there, if it is."""
    try:
        folder = open_hapt(root)
    except InputError:
        return None
    return f"{folder / 'RawData' / 'labels.txt'}"


def read(root: Path, options: FolderData) -> Listing:
    """List the HAPT recordings, without points.

    Args:
        root: the archive (also a zip inside a zip) or a folder it was unpacked to; `RawData` may lie anywhere inside.
        options: `grid.stride` in samples, by default 25, and `grid.window`, by default a stride.

    Raises:
        InputError: a file is missing or has a bad row.
    """
    folder = open_hapt(root)
    stride = options.grid.stride or 25
    window = options.grid.window or stride
    listed = re.findall(r"^\s*(\d+)\s+(\S+)", _read_text(folder / "activity_labels.txt"), re.MULTILINE)
    names = {int(number): name for number, name in listed}
    if len(names) < len(listed):
        raise InputError(f"{folder / 'activity_labels.txt'}: expected each number of an activity once, found one twice")
    train, test = (
        set(_read_table(folder / subset / f"subject_id_{subset.lower()}.txt", 1, np.int64)[:, 0].tolist())
        for subset in ("Train", "Test")
    )
    instances: dict[tuple[int, int], list[Instance]] = {
        (int(match[1]), int(match[2])): []
        for path in (folder / "RawData").iterdir()  # whatever has another name is left out
        if (match := re.fullmatch(r"(?:acc|gyro)_exp(\d+)_user(\d+)\.txt", path.name))
    }
    labels = folder / "RawData" / "labels.txt"
    for experiment, user, activity, first, last in _read_table(labels, 5, np.int64).tolist():
        if activity not in names:
            raise InputError(f"{labels}: expected activities of activity_labels.txt, got {activity}")
        instance = Instance(names[activity], (first - 1) / FPS, last / FPS)
        instances.setdefault((experiment, user), []).append(instance)

    entries = []
    for (experiment, user), found in sorted(instances.items()):
        if user not in train | test:
            raise InputError(
                f"{folder}: expected user {user} of experiment {experiment} in the split, found it in none"
            )
        name = f"exp{experiment:02}_user{user:02}"
        entries.append(
            Entry(
                id=name,
                subset="train" if user in train else "test",
                sources=(HaptRecording(folder / "RawData", name, window, stride),),
                grid=Grid(FPS, window, stride),
                instances=tuple(found),
            )
        )
    return Listing("hapt", tuple(names.values()), tuple(entries))


def open_hapt(root: str | Path) -> Folder:
    """The folder that holds `RawData`, wherever it lies in a folder, an archive, or an archive in an archive.

    Raises:
        InputError: there is none.
    """
    root = Path(root)
    missing = InputError(f"{root}: expected the HAPT archive or its folder, found no RawData/labels.txt in it")
    if root.is_dir():
        found = next(iter(listed(root, "**/RawData/labels.txt")), None)
        if found is None:
            raise missing
        return found.parent.parent
    with _refusing(root, "a zip archive"):
        archive = zipfile.ZipFile(root)
        for _ in range(DEPTH):
            check_members(archive, root)
            members = sorted(name for name in archive.namelist() if not is_hidden(name))
            for name in members:
                if f"/{name}".endswith("/RawData/labels.txt"):
                    return zipfile.Path(archive, name.removesuffix("RawData/labels.txt"))
            nested = next((name for name in members if name.lower().endswith(".zip")), None)
            if nested is None:
                break
            outer, archive = archive, zipfile.ZipFile(io.BytesIO(archive.read(nested)))
            archive.filename = f"{outer.filename}/{nested}"
    raise missing


def _read_text(path: Folder) -> str:
    with _refusing(path, "readable text"), _reading:
        return path.read_bytes().decode()


@contextmanager
def _refusing(path: Folder, expected: str) -> Iterator[None]:
    """Answer whatever a reader raises in one sentence: what is damaged, encrypted or packed in an unknown way."""
    if isinstance(path, Path):
        check_kind(path)
    try:
        yield
    except InputError:
        raise
    except (FileNotFoundError, KeyError):
        raise InputError(f"{path}: expected a file, found none") from None
    except Exception as error:
        raise InputError(f"{path}: expected {expected}, got: {error or type(error).__name__}") from None


def _read_table(path: Folder, columns: int, dtype: type[np.generic]) -> NDArray[Any]:
    """Read numbers separated by blanks, `[rows, columns]`."""
    text = _read_text(path)
    if not text.strip():
        raise InputError(f"{path}: expected rows of {columns} numbers, found an empty file")
    try:
        table = np.loadtxt(io.StringIO(text), dtype=dtype, comments=None, ndmin=2)
        if table.shape[1] == columns:
            return table
    except (ValueError, OverflowError):
        pass
    # numpy's messages count rows differently from case to case; look again for the line that a user can open.
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            good = np.array(line.split(), dtype).size in (0, columns)
        except (ValueError, OverflowError):
            good = False
        if not good:
            raise InputError(f"{path}: expected {columns} numbers in line {number}, got {quote(line.strip())}")
    raise InputError(f"{path}: expected rows of {columns} numbers, got something else")
