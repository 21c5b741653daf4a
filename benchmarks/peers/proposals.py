"""Segments over thresholds with their outer-inner contrast in NumPy, written from the description of each form.

- `interp_and_split`: the released form (LACP, POTLoc). A curve at a time is upsampled by `np.interp`; for each
  threshold, `np.split` parts the points over it into runs, and every run is scored in Python.
- `cumulative`: what NumPy does best: runs from the differences of a mask, all of a row and threshold scored at once
  from a cumulative sum over the upsampled points.
- `released_proposals`: the first form for a video with its levels and classes.

All take the contrast on the curve with all at or under the threshold set to zero, on the snippet grid; the first two
give rows of [start, end, score, row, threshold].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def upsampled(curve: Array, stride: int, upsample: int, length: int | None = None) -> Array:
    """The curve at the points of its row: `upsample` to a snippet, `stride` snippets from one value to the next."""
    length = len(curve) * stride if length is None else length
    times = (np.arange(length * upsample) + 0.5) / upsample
    return np.interp(times, np.arange(len(curve)) * stride + 0.5, curve)


def split_runs(over: Array) -> list[Array]:
    """The runs of consecutive points among those that are over a threshold."""
    points = np.where(over)[0]
    return np.split(points, np.where(np.diff(points) != 1)[0] + 1) if len(points) else []


def contrast(measured: Array, run: Array, outer: float) -> float:
    """Mean inside less mean outside of one run."""
    reach = int(outer * len(run))
    first, last = int(run[0]), int(run[-1]) + 1
    outside = np.concatenate([measured[max(first - reach, 0) : first], measured[last : last + reach]])
    return float(measured[first:last].mean() - (outside.mean() if len(outside) else 0.0))


def interp_and_split(curves: Array, thresholds: Array, upsample: int, outer: float) -> Array:
    """One curve, threshold and run after the other."""
    found = []
    for row, curve in enumerate(curves):
        sampled = upsampled(curve, 1, upsample)
        for k, threshold in enumerate(thresholds):
            over = sampled > threshold
            measured = np.where(over, sampled, 0.0)
            for run in split_runs(over):
                score = contrast(measured, run, outer)
                found.append((run[0] / upsample, (run[-1] + 1) / upsample, score, row, k))
    return np.array(found)


def cumulative(curves: Array, thresholds: Array, upsample: int, outer: float) -> Array:
    """All runs of a row and threshold at once."""
    found = []
    for row, curve in enumerate(curves):
        sampled = upsampled(curve, 1, upsample)
        sums = np.zeros(len(sampled) + 1)
        for k, threshold in enumerate(thresholds):
            over = sampled > threshold
            np.cumsum(np.where(over, sampled, 0.0), out=sums[1:])
            first, last = np.flatnonzero(np.diff(over, prepend=False, append=False)).reshape(-1, 2).T
            size = last - first
            reach = (outer * size).astype(np.int64)
            low, high = np.maximum(first - reach, 0), np.minimum(last + reach, len(sampled))
            inside = sums[last] - sums[first]
            outside = (sums[high] - sums[low] - inside) / np.maximum(high - low - size, 1)
            score = inside / size - outside
            columns = (first / upsample, last / upsample, score, np.full(len(size), row), np.full(len(size), k))
            found.append(np.column_stack(columns))
    return np.concatenate(found)


def video_scores(levels: list[Array], ratio: float) -> Array:
    """Mean of the highest probabilities of each class at each level, averaged over the levels."""
    tops = [np.sort(p[:, :-1], axis=0)[-max(1, int(len(p) / ratio)) :] for p in levels]
    return np.mean([top.mean(axis=0) for top in tops], axis=0)


def released_proposals(
    levels: list[Array], thresholds: Array, class_threshold: float, ratio: float, upsample: int, outer: float
) -> Iterator[tuple[int, Array, Array]]:
    """Proposals in one video: a class, a level, a threshold and a run after the other.

    Args:
        levels: probabilities `[T_l, C + 1]` of each level, the last channel the background.
        thresholds: on the fused class scores.
        class_threshold: video-level score from which a class is looked for; the best class always is.
        ratio: snippets for each one that a video-level score pools.
        upsample: points to a snippet.
        outer: length of the outer region on either side, relative to the segment.

    Yields:
        A class, its segments `[M, 2]` on the snippet grid and their scores.
    """
    video = video_scores(levels, ratio)
    for label in np.flatnonzero((video >= class_threshold) | (np.arange(len(video)) == video.argmax())).tolist():
        segments, scores = [], []
        for level, p in enumerate(levels):
            sampled = upsampled(p[:, label] * (1 - p[:, -1]), 2**level, upsample, len(levels[0]))
            for threshold in thresholds:
                over = sampled > threshold
                measured = np.where(over, sampled, 0.0)
                for run in split_runs(over):
                    segments.append((run[0] / upsample, (run[-1] + 1) / upsample))
                    scores.append(contrast(measured, run, outer))
        yield label, np.array(segments).reshape(-1, 2), np.array(scores, dtype=np.float32)
