"""Detections and ground truth, brought to the same videos and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potloc_fast.errors import InputError, shorten
from potloc_fast.evaluation.segments import Segments, read_detections, read_ground_truth, renumber
from potloc_fast.names import find_names


def align(
    detections: str | Path | Mapping[str, Any] | Segments,
    ground_truth: str | Path | Mapping[str, Any] | Segments,
    subset: str | None = None,
) -> tuple[Segments, Segments, tuple[str, ...]]:
    """Bring detections and ground truth to the same `videos` and `labels`.

    Args:
        detections: a file (see `read_detections`), the content of a JSON file, or segments.
        ground_truth: a file (see `read_ground_truth`), the content of a JSON file, or segments.
        subset: the subset of the ground truth to use, whatever its case; all of it if None.

    Returns:
        The detections of known classes and the instances, each in their order, and a sentence for each oddity. The
        videos are those of both, sorted, as the ground truth calls them (see `find_name`); the classes those that have
        an instance, in the ground truth's order.

    Raises:
        InputError: a file is malformed, the ground truth is empty, or it shares no class with the detections.
    """
    found, truth = _as_detections(detections), _as_ground_truth(ground_truth, subset)
    if not len(truth):
        raise InputError("ground truth: expected at least one annotated instance, found none")
    source = detections if isinstance(detections, str | Path) else "detections"
    known = find_names(found.videos, truth.videos, source)
    found = replace(found, videos=tuple(known.values()))
    classes = {truth.labels[label]: i for i, label in enumerate(np.unique(truth.label).tolist())}
    videos = {video: i for i, video in enumerate(sorted({*truth.videos, *found.videos}))}
    label = renumber(found.labels, classes)[found.label]
    warnings = truth.notes + _oddities(found, truth, label < 0, source)
    aligned = [
        replace(
            segments,
            videos=tuple(videos),
            labels=tuple(classes),
            video=renumber(segments.videos, videos)[segments.video],
            label=renumber(segments.labels, classes)[segments.label],
        )
        for segments in (found, truth)
    ]
    return aligned[0].take(label >= 0), aligned[1], warnings


def _oddities(found: Segments, truth: Segments, unknown: NDArray[np.bool_], source: str | Path) -> tuple[str, ...]:
    """Say which videos and labels the ground truth lacks; `unknown` marks the detections of such labels."""
    if unknown.all() and len(found) and not set(found.labels) & set(truth.labels):
        raise InputError(
            f"{source}: expected labels of the ground truth ({_few(truth.labels)}), got {_few(found.labels)}"
        )
    warnings = []
    if unknown.any():
        names = _few([found.labels[label] for label in np.unique(found.label[unknown])])
        warnings.append(
            f"{unknown.sum()} of {len(found)} detections ignored: the ground truth lacks their labels, {names}"
        )
    absent = renumber(found.videos, dict.fromkeys(truth.videos, 0))[found.video] < 0
    if absent.any():
        names = _few([found.videos[video] for video in np.unique(found.video[absent])])
        warnings.append(
            f"{absent.sum()} of {len(found)} detections taken as false positives: "
            f"the ground truth lacks their videos, {names}"
        )
    return tuple(warnings)


def _few(names: Sequence[str]) -> str:
    """Name at most five of `names`."""
    return ", ".join(map(shorten, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _as_detections(value: str | Path | Mapping[str, Any] | Segments) -> Segments:
    if isinstance(value, str | Path):
        return read_detections(value)
    return value if isinstance(value, Segments) else Segments.from_results(value)


def _as_ground_truth(value: str | Path | Mapping[str, Any] | Segments, subset: str | None) -> Segments:
    if isinstance(value, str | Path):
        return read_ground_truth(value, subset)
    if isinstance(value, Segments):
        if subset is not None:
            raise ValueError("subset: segments have none; select it where they are read")
        return value
    return Segments.from_ground_truth(value, subset)
