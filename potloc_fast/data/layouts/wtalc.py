"""The layout of W-TALC, SF-Net and P-MIL: one file with the features of all videos.

```
<set>-I3D-JOINTFeatures.npy       one T x 2048 array a video, pickled
<set>-Annotations/                an array each, one entry a video, as byte strings or pickled lists:
    videoname.npy, subset.npy     b"training", b"validation" or b"test"
    segments.npy, labels.npy      [[start, end], ...] in seconds, and the label of each
    classlist.npy                 names of the classes; more than the labels have, in SF-Net's THUMOS'14
    duration.npy                  seconds
<set>-Annotations/single_frames/  points by several people, a file each: video,seconds,label; or single_frames/
```
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potloc_fast.config.schema import FolderData
from potloc_fast.data.annotations import assign_subsets, choose_grid, read_marks
from potloc_fast.data.layouts.signs import Signs
from potloc_fast.data.listing import Entry, Listing, collect_classes
from potloc_fast.data.recording import Instance, Point, to_features
from potloc_fast.data.tables import group_by_recording
from potloc_fast.errors import InputError, quote
from potloc_fast.files import check_kind, listed, read_lines
from potloc_fast.names import normalize
from potloc_fast.numbers import to_number

FEATURES = "-I3D-JOINTFeatures.npy"
ANNOTATIONS = "-Annotations"
SIGNS = Signs((f"*{ANNOTATIONS}/videoname.npy",), (f"*{FEATURES}",))
recognize = SIGNS.recognize


@dataclass(frozen=True, eq=False)
class JointFeatures:
    """The features of all videos in one file, read when the first of them is asked for.

    Attributes:
        path: the file.
        videos: how many it must hold.
        trusted: whether it may be unpickled.
    """

    path: Path
    videos: int
    trusted: bool
    _lock: Lock = field(default_factory=Lock, init=False)

    def load(self) -> NDArray[Any]:
        """Read an array a video, once."""
        with self._lock:  # `check` reads in several threads, of which cached_property would let each read the file
            return self._arrays

    @cached_property
    def _arrays(self) -> NDArray[Any]:
        return load_entries(self.path, self.videos, self.trusted)


@dataclass(frozen=True, eq=False)
class JointEntry:
    """The features of one video among those of all.

    Attributes:
        file: what all videos share.
        index: which of them this is.
        name: its name.
    """

    file: JointFeatures
    index: int
    name: str

    @property
    def path(self) -> Path:
        """The file with the name of the video."""
        return self.file.path / self.name

    def load(self) -> NDArray[np.float32]:
        """Take the features from those of all videos."""
        return to_features(np.asarray(self.file.load()[self.index]), self.path)


def read(root: Path, options: FolderData) -> Listing:
    """List a data set in the layout of W-TALC, SF-Net and P-MIL.

    Args:
        root: the folder.
        options: `name`, the set, where there are several; `trusted`, as most of the files are pickled; where files lie
            that are not where the layout has them; `grid`, by default that of I3D features, 25 fps and 16 frames.

    Raises:
        InputError: a file is missing, is pickled and not trusted, or can't be used.
    """
    name = options.name or _find_set(root)
    folder = options.annotations or root / f"{name}{ANNOTATIONS}"

    def load(column: str) -> NDArray[Any]:
        return load_entries(folder / f"{column}.npy", len(videos), options.trusted)

    videos = [_text(video) for video in load_entries(folder / "videoname.npy", None, options.trusted)]
    written = [_text(subset).lower() for subset in load("subset")]
    subsets = assign_subsets(written, folder / "subset.npy")
    instances = [
        _read_instances(folder, video, segments, labels)
        for video, segments, labels in zip(videos, load("segments"), load("labels"), strict=True)
    ]
    durations = load("duration")
    points: dict[str, list[Point]] = {}
    notes: tuple[str, ...] = ()
    if options.points == "file":
        points, notes = _read_points(root, folder, name, options.points_file, videos)
    file = JointFeatures(options.features or root / f"{name}{FEATURES}", len(videos), options.trusted)
    entries = [
        Entry(
            id=video,
            subset=subsets[subset],
            sources=(JointEntry(file, index, video),),
            grid=choose_grid(options.grid, fps=25, window=16, stride=16, video=video),
            instances=instances[index],
            points=tuple(points.get(video, ())),
            duration_sec=_seconds(durations[index], folder / "duration.npy", video),
        )
        for index, (video, subset) in enumerate(zip(videos, written, strict=True))
        if subset in subsets
    ]
    listed = [_text(label) for label in load_entries(folder / "classlist.npy", None, options.trusted)]
    used = collect_classes(entries)
    return Listing(name, tuple(label for label in listed if label in used), tuple(entries), notes)


def load_entries(path: Path, count: int | None, trusted: bool) -> NDArray[Any]:
    """Load an array with an entry for each video.

    Args:
        path: a .npy file, perhaps pickled by Python 2.
        count: how many entries it must have, if that is known.
        trusted: whether it may be unpickled.

    Raises:
        InputError: the file is missing or damaged, is pickled and not trusted, or has another number of entries.
    """
    check_kind(path)
    try:
        with open(path, "rb") as file:
            magic = file.read(6)
            if magic != b"\x93NUMPY":
                raise InputError(f"{path}: expected a .npy file, got one that starts with {quote(magic)}")
            file.seek(0)
            array: NDArray[Any] = np.load(file, allow_pickle=trusted, encoding="bytes")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: expected a readable .npy file, got: {error.strerror}") from None
    except Exception as error:  # unpickling can raise anything
        if not trusted and "allow_pickle" in str(error):
            raise InputError(
                f"{path}: expected data.trusted=true, as it holds pickled Python objects, which can run any code: "
                "set it if you trust the source of the file"
            ) from None
        raise InputError(f"{path}: expected a .npy file, got a truncated or damaged one") from None
    if array.ndim == 0 or (count is not None and len(array) != count):
        expected = "a list" if count is None else f"{count} entries as in videoname.npy"
        raise InputError(f"{path}: expected {expected}, got an array of shape {list(array.shape)}")
    return array


def _find_set(root: Path) -> str:
    found = sorted(path.parent.name.removesuffix(ANNOTATIONS) for path in listed(root, f"*{ANNOTATIONS}/videoname.npy"))
    if len(found) != 1:
        raise InputError(
            f"{root}: expected one folder <set>{ANNOTATIONS}, found {', '.join(found) or 'none'}"
            + (": set data.name" if found else "")
        )
    return found[0]


def _text(value: Any) -> str:
    return normalize(value.decode(errors="replace") if isinstance(value, bytes) else str(value))


def _seconds(value: Any, path: Path, video: str) -> float:
    try:
        return float(np.asarray(value).reshape(()))
    except (TypeError, ValueError):
        raise InputError(f"{path}: expected seconds for {video}, got {quote(_text(value))}") from None


def _read_instances(folder: Path, video: str, segments: Any, labels: Any) -> tuple[Instance, ...]:
    try:
        return tuple(
            Instance(_text(label), *map(float, segment)) for segment, label in zip(segments, labels, strict=True)
        )
    except (TypeError, ValueError):
        raise InputError(
            f"{folder}: expected in segments.npy a [start, end] for each label of labels.npy, "
            f"got {quote(segments)} and {quote(labels)} for {video}"
        ) from None


def _read_points(
    root: Path, folder: Path, name: str, chosen: Path | None, videos: list[str]
) -> tuple[dict[str, list[Point]], tuple[str, ...]]:
    """The points of each video, and notes."""
    path = chosen
    note: tuple[str, ...] = ()
    if path is None:
        found = [*listed(folder, "single_frames/*.txt"), *listed(root, "single_frames/*.txt")]
        # THUMOS1.txt belongs to Thumos14.
        found = [file for file in found if name.lower().startswith(file.stem.rstrip("0123456789").lower())]
        if not found:
            return {}, (f"{folder}: no point labels, as there is no single_frames/{name}1.txt",)
        path = found[0]
        if len(found) > 1:
            note = (f"{path}: the points of one person out of {len(found)}, data.points_file chooses",)
    marks = read_marks(path)
    if marks is not None:
        points, notes = group_by_recording(path, marks[0], videos)
        return points, note + marks[1] + notes
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        cells = [cell.strip() for cell in line.split(",", maxsplit=2)]
        if cells == [""]:
            continue
        try:
            video, sec, label = cells
            rows.append((video, Point(label, to_number(sec))))
        except ValueError:
            raise InputError(f"{path}: expected video,seconds,label in line {number}, got {quote(line)}") from None
    points, notes = group_by_recording(path, rows, videos)
    return points, note + notes
