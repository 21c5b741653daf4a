"""All that lies between two times in the recordings of a report, in columns, and what of it is right and wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potloc_fast.evaluation import Segments
from potloc_fast.evaluation.average_precision import match, rank
from potloc_fast.evaluation.errors import error_kinds
from potloc_fast.evaluation.segments import renumber

MOST = 150_000  # detections, and as many proposals, in one report: a browser's memory and the size of the file
LEAST_EACH = 50  # that a recording keeps of them in any case
UNJUDGED = 255  # the kind of a detection where the recording has no ground truth


@dataclass(frozen=True, eq=False)
class Judged:
    """Detections and instances, and how they belong together.

    Attributes:
        detections: by recording and start.
        kinds: uint8[N], an index into `evaluation.errors.KINDS`, `UNJUDGED` where the recording has no ground truth.
        took: int32[N], the instance that a detection took, -1 where none.
        truth: M instances, by recording and start.
        found: float32[M], the score of the detection that took an instance; NaN where it was missed.
    """

    detections: Segments
    kinds: NDArray[np.uint8]
    took: NDArray[np.int32]
    truth: Segments
    found: NDArray[np.float32]


def renamed(segments: Segments, videos: Mapping[str, int], labels: Mapping[str, int]) -> Segments:
    """The segments of these videos with these labels, by video and start, in these vocabularies."""
    video, label = renumber(segments.videos, videos)[segments.video], renumber(segments.labels, labels)[segments.label]
    own = replace(segments, videos=tuple(videos), labels=tuple(labels), video=video, label=label)
    kept = np.flatnonzero((video >= 0) & (label >= 0))
    return own.take(kept[np.lexsort((own.start_sec[kept], video[kept]))])


def strongest(segments: Segments) -> NDArray[np.int64]:
    """The rows of the segments with the best scores of each recording, as many as a report can hold."""
    if len(segments) <= MOST:
        return np.arange(len(segments))
    order = np.lexsort((-segments.score, segments.video))
    place = np.arange(len(order)) - np.searchsorted(segments.video[order], segments.video[order])
    each = max(LEAST_EACH, MOST // len(np.unique(segments.video)))
    return np.sort(order[place < each])


def overlaps(truth: Segments, segments: Segments) -> NDArray[np.float64]:
    """The highest tIoU of each instance with a segment of its recording and class, 0 where none overlaps it.

    Args:
        truth: M instances.
        segments: in the same vocabularies.

    Returns:
        float64[M].
    """
    key, own = (s.video * len(truth.labels) + s.label for s in (segments, truth))
    order = np.argsort(key, kind="stable")
    first, last = np.searchsorted(key[order], own), np.searchsorted(key[order], own, side="right")
    found = np.zeros(len(truth))
    for i, (start, end) in enumerate(zip(truth.start_sec, truth.end_sec, strict=True)):
        near = order[first[i] : last[i]]
        shared = np.minimum(segments.end_sec[near], end) - np.maximum(segments.start_sec[near], start)
        union = (segments.end_sec[near] - segments.start_sec[near]) + (end - start) - shared
        found[i] = (shared.clip(min=0) / union).max(initial=0.0)
    return found


def judge(detections: Segments, truth: Segments, tiou: float) -> Judged:
    """Say of each detection what it is, and of each instance whether it was found, as `analyse` counts them.

    Args:
        detections: in the vocabularies of `truth`, see `renamed`.
        truth: the instances.
        tiou: the threshold.
    """
    order = rank(detections)
    ranked = detections.take(order)
    taken = match(ranked, truth, np.array([tiou]))[:, 0]
    kinds, took = np.empty(len(order), np.uint8), np.empty(len(order), np.int32)
    kinds[order], took[order] = error_kinds(ranked, truth, taken, tiou), taken
    kinds[~np.isin(detections.video, truth.video)] = UNJUDGED
    found = np.full(len(truth), np.nan, np.float32)
    hit = took >= 0
    found[took[hit]] = detections.score[hit]
    return Judged(detections, kinds, took, truth, found)


def columns(name: str, segments: Segments, times: type[np.floating[Any]] = np.float64) -> dict[str, NDArray[Any]]:
    """The arrays of segments under names that begin with that of their lane."""
    return {
        f"{name}.video": segments.video.astype(np.int32),
        f"{name}.label": segments.label.astype(np.uint16),
        f"{name}.start": segments.start_sec.astype(times),
        f"{name}.end": segments.end_sec.astype(times),
        f"{name}.score": segments.score.astype(np.float32),
    }
