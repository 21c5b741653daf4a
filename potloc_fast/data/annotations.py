"""Annotations as several layouts have them: a JSON database of videos."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potloc_fast.config.schema import GridConfig
from potloc_fast.data.grid import Grid
from potloc_fast.data.recording import Instance
from potloc_fast.errors import InputError
from potloc_fast.files import read_json

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


def read_database(path: Path) -> Database:
    """Read a database in the form that ActivityNet gave it.

    `{"database": {video: {"subset", "duration", "fps", "annotations": [{"segment": [start, end], "label",
    "label_id"}]}}}`, times in seconds, numbers also as strings. Only the labels and segments of annotations must be
    there. Where "fps" is missing it is "frame" over "duration"; `label_id` is also called `idx`.

    Raises:
        InputError: the file is missing or can't be used.
    """
    content = read_json(path)
    videos: dict[str, Video] = {}
    numbers: dict[str, float] = {}
    name = "the top"
    try:
        for name, entry in content["database"].items():
            instances = []
            for item in entry.get("annotations") or ():
                start, end = map(float, item["segment"])
                label = str(item["label"])
                instances.append(Instance(label, start, end))
                numbers.setdefault(label, float(item.get("label_id", item.get("idx", 0))))
            duration = _positive(entry.get("duration"))
            fps, frames = _positive(entry.get("fps")), _positive(entry.get("frame"))
            if fps is None and frames and duration:
                fps = frames / duration
            videos[name] = Video(str(entry.get("subset", "")).strip().lower(), tuple(instances), duration, fps)
        name = "activity_list"
        listed = content.get("activity_list")
        activity_list = None if listed is None else tuple(str(label) for label in listed)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(
            f'{path}: expected a "database" of videos with "annotations" that have a "label" and a "segment" of two '
            f"times, got something else at {name}"
        ) from None
    return Database(path, videos, tuple(sorted(numbers, key=lambda label: (numbers[label], label))), activity_list)


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


def find_name(name: str, names: Collection[str]) -> str | None:
    """The name of a video among `names`, where YouTube's ids may have been given the prefix `v_`, or lost it."""
    return next((found for found in (name, f"v_{name}", name.removeprefix("v_")) if found in names), None)


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
    return Grid(fps, config.window or window or stride, stride)


def _positive(value: Any) -> float | None:
    """A number over zero; None where there is none or it says nothing."""
    number = 0.0 if value is None else float(value)
    return number if 0 < number < float("inf") else None
