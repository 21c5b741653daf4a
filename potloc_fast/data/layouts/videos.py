"""What layouts share that have a database of videos and their features in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from potloc_fast.config.schema import FolderData
from potloc_fast.data.annotations import Database, assign_subsets, choose_grid, read_marks
from potloc_fast.data.listing import Entry, Source
from potloc_fast.data.recording import Point
from potloc_fast.data.tables import group_by_recording, read_table
from potloc_fast.errors import InputError
from potloc_fast.files import read_text


def list_videos(
    database: Database,
    sources: Mapping[str, Source],
    options: FolderData,
    fps: float | None,
    window: int | None,
    stride: int | None,
) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """List the videos of a database; `assign_subsets` says what is trained on.

    Args:
        database: the videos.
        sources: the features of each.
        options: `points`, `points_file` and `grid` are read.
        fps: frames a second of what snippets were cut from; None takes those of each video.
        window: frames in a snippet.
        stride: frames from one snippet to the next; None for features that were resampled.

    Returns:
        The videos of the subsets for training and testing, and notes.

    Raises:
        InputError: the points can't be used, or a video has no grid.
    """
    subsets = assign_subsets({video.subset for video in database.videos.values()}, database.path)
    points, notes = read_points(options, database)
    entries = tuple(
        Entry(
            id=name,
            subset=subsets[video.subset],
            sources=(sources[name],),
            grid=choose_grid(options.grid, fps or video.fps, window, stride, name),
            instances=video.instances,
            points=points.get(name, ()),
            duration_sec=video.duration_sec,
        )
        for name, video in database.videos.items()
        if video.subset in subsets
    )
    left_out = len(database.videos) - len(entries)
    if left_out:
        others = sorted({video.subset for video in database.videos.values()} - set(subsets))
        notes += (f"{database.path}: videos left out, as their subset is {' or '.join(map(repr, others))}: {left_out}",)
    if any(entry.grid is None for entry in entries):
        notes += (f"{database.path}: snippets divide the duration evenly, as no stride is known: see data.grid",)
    return entries, notes


def read_points(options: FolderData, database: Database) -> tuple[dict[str, tuple[Point, ...]], tuple[str, ...]]:
    """Read the table of points, where there is one and points are not to be drawn.

    It has columns recording, label and time_sec; or, as LACP and HR-Pro have it, class, video_id and point, which is a
    frame at the native rate of the video; or it is what an annotation tool wrote.

    Returns:
        The points of each video that has any, and notes.

    Raises:
        InputError: the table can't be used, or the rate of a video is not known.
    """
    path = options.points_file
    if path is None or options.points != "file":
        return {}, ()
    marks = read_marks(path)
    if marks is not None:
        marked, notes = group_by_recording(path, marks[0], database.videos)
        return {video: tuple(own) for video, own in marked.items()}, marks[1] + notes
    in_seconds = "time_sec" in read_text(path).partition("\n")[0]
    columns = ("recording", "label", "time_sec") if in_seconds else ("video_id", "class", "point")
    rows = [(row[columns[0]], (row[columns[1]], row.number(columns[2]))) for row in read_table(path, columns)]
    found, notes = group_by_recording(path, rows, database.videos)
    points = {}
    for name, times in found.items():
        fps = 1.0 if in_seconds else database.videos[name].fps
        if fps is None:
            raise InputError(
                f"{path}: expected the fps of {name}, whose frames it counts, in {database.path}, found none"
            )
        points[name] = tuple(Point(label, time / fps) for label, time in times)
    return points, notes


def only_one(found: Sequence[Path], where: Path, key: str) -> Path:
    """The one file or folder that there should be.

    Args:
        found: those that there are.
        where: names the place in errors.
        key: the key of the configuration that would choose.

    Raises:
        InputError: there is none, or more than one.
    """
    if len(found) != 1:
        names = ", ".join(sorted(path.name for path in found)) or "none"
        raise InputError(f"{where}: expected one to read, found {names}: set {key}")
    return found[0]
