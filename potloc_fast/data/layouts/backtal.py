"""The layout of BackTAL.

```
val/<video>.npz, test/<video>.npz           THUMOS'14, 750 snippets
training/v_<video>.npz, validation/...      ActivityNet, 100 snippets
gt_thumos14.json                            or activity_net.v1-2.min.json, see `read_database`; the one .json file in
                                            the folder, or wherever `data.annotations` says
```

Each archive holds `feat_spa` and `feat_tem` ([channels, snippets]), `vid_name`, and either `point_label`, or
`duration`, `frame_num` and `fps`. The whole recording is resampled to the same number of snippets. `point_label` has a
number for each snippet: 0 to C - 1 are the classes in the order of the annotations' "activity_list", C is a click on
the background, and what is negative is no click. Those that are published are clicks on the background alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potloc_fast.config.schema import FolderData
from potloc_fast.data.annotations import SUBSETS, assign_subsets, choose_grid, read_database
from potloc_fast.data.layouts.signs import Signs
from potloc_fast.data.layouts.videos import only_one, read_points
from potloc_fast.data.listing import Entry, Listing
from potloc_fast.data.recording import Point
from potloc_fast.data.sources import NpzMember, read_npz
from potloc_fast.errors import InputError
from potloc_fast.files import listed
from potloc_fast.names import find_name, normalize

SIGNS = Signs(tuple(f"{name}/*.npz" for group in SUBSETS for name in group))
recognize = SIGNS.recognize
STREAMS = ("feat_spa", "feat_tem")
FACTS = ("vid_name", "point_label", "duration", "frame_num", "fps")


@dataclass(frozen=True)
class Stream:
    """One stream of features, kept as [channels, snippets].

    Attributes:
        member: the array.
        snippets: how many there are, where it is known.
    """

    member: NpzMember
    snippets: int | None

    @property
    def path(self) -> Path:
        """The archive with the name of the array."""
        return self.member.path

    def load(self) -> NDArray[np.float32]:
        """Read the array, `[T, F]`."""
        features = self.member.load()
        if self.snippets not in (None, features.shape[1]):
            raise InputError(
                f"{self.path}: expected an array [channels, snippets] of {self.snippets} snippets, as point_label has, "
                f"got shape {list(features.shape)}"
            )
        return features.T


def read(root: Path, options: FolderData) -> Listing:
    """List a data set in the layout of BackTAL; `assign_subsets` says what is trained on.

    Args:
        root: the folder that holds those of the subsets.
        options: where files lie that are not where the layout has them; `points_file` goes before `point_label`.

    Raises:
        InputError: a file is missing or can't be used.
    """
    folder = options.features or root
    database = read_database(options.annotations or only_one(listed(root, "*.json"), root, "data.annotations"))
    if database.activity_list is None:
        raise InputError(f'{database.path}: expected the names of the classes as "activity_list", found none')
    classes = database.activity_list
    table, notes = read_points(options, database)
    archives = sorted(path for group in SUBSETS for name in group for path in listed(folder / name, "*.npz"))
    subsets = assign_subsets({path.parent.name for path in archives}, folder)
    entries: list[Entry] = []
    unlisted: list[str] = []
    background = 0
    for path in archives:
        if path.parent.name not in subsets:
            continue
        facts = read_npz(path, FACTS, trusted=options.trusted)
        name = normalize(_text(facts["vid_name"]) if "vid_name" in facts else path.stem)
        video = find_name(name, database.videos)
        if video is None:
            unlisted.append(name)
            continue
        known = database.videos[video]
        duration = _duration(path, facts) or known.duration_sec
        points: tuple[Point, ...] = ()
        marks = facts.get("point_label")
        if options.points_file:
            points = table.get(video, ())
        elif marks is not None and options.points == "file":
            points, clicks = _read_marks(path, marks, classes, duration)
            background += clicks
        streams = tuple(
            Stream(NpzMember(path, stream, options.trusted), None if marks is None else marks.size)
            for stream in STREAMS
        )
        grid = choose_grid(options.grid, known.fps, None, None, video)
        entries.append(Entry(video, subsets[path.parent.name], streams, grid, known.instances, points, duration))
    if unlisted:
        notes += (f"{folder}: videos left out, as {database.path} lacks them: {len(unlisted)}, such as {unlisted[0]}",)
    if background:
        notes += (
            f"{folder}: clicks left out, as they are on the background: {background}; where there are no others, set "
            "data.points or data.points_file",
        )
    return Listing(options.name or root.resolve().name, classes, tuple(entries), notes)


def _text(array: NDArray[Any]) -> str:
    value = array.reshape(-1)[0] if array.size else ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _duration(path: Path, facts: dict[str, NDArray[Any]]) -> float | None:
    """The duration in seconds: as it is given, or that of the frames; None where neither is there."""
    try:
        duration, frames, fps = (float(_text(facts[key])) if key in facts else 0.0 for key in FACTS[2:])
    except ValueError:
        raise InputError(f"{path}: expected numbers as duration, frame_num and fps, got something else") from None
    return duration or (frames / fps if fps else None) or None


def _read_marks(
    path: Path, marks: NDArray[Any], classes: tuple[str, ...], duration: float | None
) -> tuple[tuple[Point, ...], int]:
    """The points, and the number of clicks on the background, of `point_label`."""
    count = len(classes)
    numbers = marks.ndim == 1 and marks.dtype.kind in "iuf"
    if not (numbers and (marks <= count).all()):
        got = f"one of {marks.max()}" if numbers else f"{marks.dtype} of shape {list(marks.shape)}"
        raise InputError(f"{path}: expected numbers of up to {count} as point_label, one for each snippet, got {got}")
    clicked = np.flatnonzero((marks >= 0) & (marks < count))
    if clicked.size and duration is None:
        raise InputError(f"{path}: expected a duration in it or in the annotations, as it has points, found none")
    points = tuple(Point(classes[int(marks[i])], (i + 0.5) / marks.size * (duration or 0.0)) for i in clicked.tolist())
    return points, int((marks == count).sum())
