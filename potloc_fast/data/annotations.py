"""Annotations as several layouts have them: a JSON database of videos."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potloc_fast.data.grid import Grid
from potloc_fast.data.recording import Instance, Point
from potloc_fast.errors import InputError, quote
from potloc_fast.formats import Events, Source, format_of, read
from potloc_fast.names import by_name, normalize
from potloc_fast.numbers import to_number

if TYPE_CHECKING:  # pydantic is not for those who only evaluate
    from potloc_fast.config.schema import GridConfig

SUBSETS = (("training", "train"), ("validation", "val"), ("testing", "test"))


@dataclass(frozen=True)
class Video:
    """What a database says of a video.

    Attributes:
        subset: as it is written, in lower case; "" where it is not.
        instances: the ground truth.
        duration_sec: its length, where it is known.
        fps: its native frame rate, where it is known.
    """

    subset: str
    instances: tuple[Instance, ...]
    duration_sec: float | None
    fps: float | None


@dataclass(frozen=True)
class Database:
    """A JSON file of videos.

    Attributes:
        path: names it in errors.
        videos: the videos, in the order of the file.
        classes: the labels by their numbers, by name where they have none.
        activity_list: the names of all classes as the file lists them, where it does.
    """

    path: Path
    videos: dict[str, Video]
    classes: tuple[str, ...]
    activity_list: tuple[str, ...] | None


def read_events(path: str | Path | Source, tables: bool = True) -> Events | None:
    """Read the file of an annotation tool, or a folder of files.

    Args:
        path: a file, or a folder of files.
        tables: whether a .csv counts that no tool is known to have written.

    Returns:
        The events; None where a file is of no format that `formats` knows, as JSON in the ActivityNet form.

    Raises:
        InputError: there is no such file, or it is malformed.
    """
    source = path if isinstance(path, Source) else Source(path)
    if not os.path.isdir(source.path):
        form = format_of(source)
        if form is None or (form == "csv" and not tables):
            return None
    return read(source)


def read_marks(path: Path) -> tuple[list[tuple[str, Point]], tuple[str, ...]] | None:
    """Read points from the files of annotation tools: segments stand for their middles.

    Returns:
        The recording and the point of each event, and notes; None where a file is none of those, but perhaps a table.
    """
    events = read_events(path, tables=False)
    if events is None:
        return None
    lasting = sum(start < end for start, end in zip(events.start_sec, events.end_sec, strict=True))
    notes = tuple(events.notes)
    if lasting:
        notes += (f"{path}: segments among the points, of which the middles are taken: {lasting}",)
    columns = (events.recording, events.label, events.start_sec, events.end_sec)
    return [(name, Point(label, (start + end) / 2)) for name, label, start, end in zip(*columns, strict=True)], notes


def as_database(events: Events) -> Database:
    """Take the events of annotation tools as ground truth, of no subset."""
    instances: dict[str, list[Instance]] = {name: [] for name in events.recordings}
    columns = (events.recording, events.label, events.start_sec, events.end_sec)
    for name, label, start, end in zip(*columns, strict=True):
        instances[name].append(Instance(label, start, end))
    videos = {name: Video("", tuple(own), None, None) for name, own in instances.items()}
    return Database(events.path, videos, tuple(sorted(set(events.label))), None)


def read_database(path: str | Path) -> Database:
    """Read a database from a JSON file, see `parse_database`; or from what `read_events` takes."""
    source = Source(path)
    events = read_events(source)
    return parse_database(source.json, path) if events is None else as_database(events)


def parse_database(content: Any, source: str | Path) -> Database:
    """Take a database from the form that ActivityNet gave it.

    `{"database": {video: {"subset", "duration", "fps", "annotations": [{"segment": [start, end], "label",
    "label_id"}]}}}`, times in seconds, numbers also as strings, labels also as numbers. Only the labels and segments of
    annotations must be there. Where "fps" is missing it is "frame" over "duration"; `label_id` is also called `idx`.

    Args:
        content: what a JSON file holds.
        source: names it in errors.

    Raises:
        InputError: it has another form.
    """
    database = content.get("database") if isinstance(content, Mapping) else None
    if not isinstance(database, Mapping):
        raise InputError(f'{source}: expected an object with a "database" of videos, got {quote(content)}')
    videos: dict[str, Video] = {}
    labels: dict[Any, str] = {}
    numbers: dict[str, float] = {}
    for name, entry in by_name(database.items(), source).items():
        annotations = (entry.get("annotations") or ()) if isinstance(entry, Mapping) else None
        if not isinstance(annotations, list | tuple):
            raise InputError(
                f"{_entry(source, name)}: expected an object with a list of annotations, got {quote(entry)}"
            )
        instances = []
        for index, item in enumerate(annotations):
            try:
                start, end = segment = item["segment"]
                if isinstance(segment, str | Mapping):  # which have parts as well
                    raise TypeError
                raw = item["label"]
                label = labels.get(raw)
                if label is None:
                    label = labels[raw] = label_text(raw)
                    numbers.setdefault(label, to_number(item.get("label_id", item.get("idx", 0))))
                instances.append(Instance(label, to_number(start), to_number(end)))
            except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
                raise InputError(
                    f"{_entry(source, name)}.annotations[{index}]: expected a label and a segment [start, end], "
                    f"got {quote(item)}"
                ) from None
        duration, fps, frames = (_positive(entry, key, name, source) for key in ("duration", "fps", "frame"))
        if fps is None and frames and duration:
            fps = frames / duration
        videos[name] = Video(subset_text(entry.get("subset")), tuple(instances), duration, fps)
    listed = content.get("activity_list")
    if not isinstance(listed, list | tuple | None):
        raise InputError(f"{source}: expected a list of names as activity_list, got {quote(listed)}")
    activity_list = None if listed is None else tuple(normalize(str(label)) for label in listed)
    return Database(Path(source), videos, tuple(sorted(numbers, key=lambda name: (numbers[name], name))), activity_list)


def subset_text(subset: Any) -> str:
    """The name of a subset as it is compared; "" where there is none."""
    return normalize(str(subset or "").strip().lower())


def label_text(label: Any) -> str:
    """The name of a class as it is compared; files also have numbers.

    Raises:
        TypeError: it is neither text nor a number.
    """
    if isinstance(label, str):
        return normalize(label)
    if isinstance(label, int | float) and not isinstance(label, bool):
        return str(label)
    raise TypeError(f"expected text or a number, got {type(label).__name__}")


def assign_subsets(names: Iterable[str], where: Path) -> dict[str, str]:
    """Which subset of a data set is for training, and which for testing.

    The first two that are there of training, validation and testing, in this order. So THUMOS'14 (validation, test)
    is trained on validation and tested on test, ActivityNet (training, validation, testing) is trained on training
    and tested on validation, and its testing videos, which have no public annotations, are of no use.

    Args:
        names: the names of subsets that are there, in lower case; `SUBSETS` has those that are known.
        where: names the place in errors.

    Returns:
        `{name: "train" or "test"}`, without the names of other subsets.

    Raises:
        InputError: there are fewer than two.
    """
    names = set(names)
    found = [group for group in SUBSETS if names & set(group)]
    if len(found) < 2:
        raise InputError(
            f"{where}: expected subsets for training and testing among training, validation and testing, "
            f"found {', '.join(sorted(names)) or 'none'}"
        )
    return {name: role for group, role in zip(found, ("train", "test"), strict=False) for name in group}


def choose_grid(
    config: GridConfig, fps: float | None, window: int | None, stride: int | None, video: str
) -> Grid | None:
    """The grid of a video: what the configuration says goes before what the layout says.

    Args:
        config: section `data.grid`.
        fps: frames a second of what snippets were cut from, where it is known.
        window: frames in a snippet, where it is known; else they do not overlap.
        stride: frames from one snippet to the next; None for features that were resampled.
        video: named in errors.

    Returns:
        The grid; None where snippets divide the duration evenly.

    Raises:
        InputError: a part is missing.
    """
    stride = config.stride or stride
    if stride is None:
        if config.fps or config.window:
            raise InputError("key data.grid.stride: expected one beside data.grid.fps or data.grid.window, got none")
        return None
    fps = config.fps or fps
    if fps is None:
        raise InputError(f"{video}: expected its fps in the annotations or in data.grid.fps, found none")
    try:
        return Grid(fps, config.window or window or stride, stride)
    except ValueError as error:
        raise InputError(f"{video}: {error}") from None


def _entry(source: str | Path, name: str) -> str:
    """What a video's entry is called in errors: made for them alone, as quoting takes longer than reading."""
    return f"{source}: database[{quote(name)}]"


def _positive(entry: Mapping[str, Any], key: str, name: str, source: str | Path) -> float | None:
    """The number over zero under a key; None where there is none or it says nothing."""
    value = entry.get(key)
    try:
        number = 0.0 if value is None else to_number(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{_entry(source, name)}.{key}: expected a number above 0, got {quote(value)}") from None
    return number if 0 < number < math.inf else None
