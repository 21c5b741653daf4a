"""The layout of LACP and POTLoc, with I3D features of two streams.

```
gt.json                           {"database": {video: {"annotations": [{"segment": ["18.6", "24.8"], "label"}]}}}
split_train.txt, split_test.txt   one video a line: these alone decide what belongs to the data set
point_gaussian/point_labels.csv   columns class, video_id and point (native frames); or point_labels.csv in the root
fps_dict.json                     {video: native fps}, for the table of points
point_dict.json                   {video: [[label, seconds], ...]}, read where there is no table
features/{train,test}/{rgb,flow}/<video>.npy    T x 1024 each; or i3d_features/...
```

HR-Pro's files have other names and are read by the same functions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from potloc_fast.config.schema import FolderData
from potloc_fast.data.annotations import Video, choose_grid, read_database, read_marks
from potloc_fast.data.layouts.signs import Signs
from potloc_fast.data.listing import Entry, Listing, NpyFile, collect_classes
from potloc_fast.data.recording import Point
from potloc_fast.data.tables import group_by_recording, read_table
from potloc_fast.errors import InputError, shorten
from potloc_fast.files import listed, read_json, read_lines
from potloc_fast.names import by_name, find_name, find_names
from potloc_fast.numbers import to_number

SIGNS = Signs(("gt.json",), ("split_train.txt",), ("features/train", "i3d_features/train"))
recognize = SIGNS.recognize
POINTS = (
    "point_gaussian/point_labels.csv",
    "point_labels/point_gaussian.csv",
    "point_labels.csv",
    "point_dict.json",
)
NOTHING_KNOWN = Video(subset="", instances=(), duration_sec=None, fps=None)


def read(root: Path, options: FolderData) -> Listing:
    """List a data set in the layout of LACP and POTLoc.

    Args:
        root: its folder, whose name becomes the name of the data set.
        options: where files lie that are not where the layout has them, and `grid`, by default that of I3D features.

    Raises:
        InputError: a file is missing or can't be used.
    """
    truth = read_database(options.annotations or root / "gt.json")
    return list_splits(root, options, truth.path, truth.videos)


def list_splits(root: Path, options: FolderData, truth: Path, known: Mapping[str, Video] | None) -> Listing:
    """List a data set whose videos are named in split_train.txt and split_test.txt.

    Args:
        root: its folder.
        options: see `read`.
        truth: the file of the ground truth.
        known: what it says of each video, those of the splits and perhaps others; None where there is no such file.

    Raises:
        InputError: a file is missing or can't be used.
    """
    subsets = _read_splits(root)
    videos = {}
    for video, listed_as in find_names(subsets, subsets if known is None else known, root).items():
        if known is not None and listed_as not in known:
            raise InputError(f"{truth}: expected {video}, which split_{subsets[video]}.txt lists, found no such video")
        videos[video] = NOTHING_KNOWN if known is None else known[listed_as]
    points: dict[str, tuple[Point, ...]] = {}
    notes: tuple[str, ...] = ()
    if options.points == "file":
        points, notes = _read_points(options.points_file or _first(root, *POINTS), root, truth, videos)
    folder = options.features or _first(root, "features", "i3d_features")
    streams = tuple(stream for stream in ("rgb", "flow") if (folder / "train" / stream).is_dir())
    if len(streams) == 1:
        notes += (f"{folder}: features of {streams[0]} alone, without the other stream",)
    files = {
        (subset, stream): by_name(
            ((path.stem, path) for path in listed(folder / subset / stream, "*.npy")), folder / subset / stream
        )
        for subset in ("train", "test")
        for stream in streams or ("",)  # both streams joined in one file
    }
    entries = []
    for video, subset in subsets.items():
        sources = []
        for stream in streams or ("",):
            name = find_name(video, files[subset, stream])
            missing = folder / subset / stream / f"{video}.npy"
            sources.append(NpyFile(missing if name is None else files[subset, stream][name]))
        grid = choose_grid(options.grid, fps=25, window=16, stride=16, video=video)
        found = videos[video]
        entries.append(
            Entry(video, subset, tuple(sources), grid, found.instances, points.get(video, ()), found.duration_sec)
        )
    return Listing(options.name or root.resolve().name, collect_classes(entries), tuple(entries), notes)


def _first(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).exists():
            return root / name
    raise InputError(f"{root}: expected one of {', '.join(names)} in it, found none")


def _read_splits(root: Path) -> dict[str, str]:
    """The subset of each video."""
    subsets: dict[str, str] = {}
    for subset in ("train", "test"):
        path = root / f"split_{subset}.txt"
        for video in filter(None, re.split(r"[ \t\n]+", "\n".join(read_lines(path)))):
            if video in subsets:
                where = "twice" if subsets[video] == subset else "in split_train.txt as well"
                raise InputError(f"{path}: expected each video once, found {video} {where}")
            subsets[video] = subset
    return subsets


def _read_points(
    path: Path, root: Path, truth: Path, videos: Mapping[str, Video]
) -> tuple[dict[str, tuple[Point, ...]], tuple[str, ...]]:
    """The points of each video, and notes."""
    marks = read_marks(path)
    if marks is not None:
        marked, notes = group_by_recording(path, marks[0], videos)
        return {video: tuple(points) for video, points in marked.items()}, marks[1] + notes
    if path.suffix == ".json":
        in_sec, notes = group_by_recording(path, _read_point_dict(path), videos)
        return {video: tuple(points) for video, points in in_sec.items()}, notes
    rows = [
        (row.text("video_id"), (row.text("class"), row.number("point")))
        for row in read_table(path, ("class", "video_id", "point"))
    ]
    in_frames, notes = group_by_recording(path, rows, videos)
    rates = root / "fps_dict.json"
    known = _read_rates(rates) if rates.exists() else {}
    found = {}
    for video, frames in in_frames.items():
        fps = known.get(find_name(video, known) or "", videos[video].fps)
        if fps is None:
            raise InputError(
                f"{path}: expected the fps of {video}, whose frames it counts, in {rates.name} or {truth.name}, "
                "found none"
            )
        found[video] = tuple(Point(label, frame / fps) for label, frame in frames)
    return found, notes


def _read_rates(path: Path) -> dict[str, float]:
    content = read_json(path)
    video = "the top"
    try:
        found = {}
        for video, fps in content.items():
            found[video] = to_number(fps)
            if not 0 < found[video] < math.inf:
                raise ValueError
    except (AttributeError, TypeError, ValueError):
        raise InputError(
            f"{path}: expected the fps of each video by its name, got something else at {shorten(video)}"
        ) from None
    return found


def _read_point_dict(path: Path) -> list[tuple[str, Point]]:
    content = read_json(path)
    video = "the top"
    try:
        found = []
        for video, points in content.items():
            found += [(video, Point(str(label), to_number(sec))) for label, sec in points]
    except (AttributeError, TypeError, ValueError):
        raise InputError(
            f"{path}: expected a list of [label, seconds] for each video, got something else at {shorten(video)}"
        ) from None
    return found
