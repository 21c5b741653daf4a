"""Segments around points, from what every snippet says: Viterbi's algorithm, exact, in time linear in the snippets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from potloc_fast.compiled import compiled

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def force_align(gain: Floats, snippets: Integers, classes: Integers, duration: Floats, precision: Floats) -> Integers:
    """Find the most likely segments of a recording's points: each holds its point, and none overlaps another.

    Of all segments [s_i, e_i) with s_i <= p_i < e_i <= s_(i+1), in whole snippets, those are found that maximise

        sum_i ( sum_(s_i <= t < e_i) g_c(i)(t) - w_c(i) (e_i - s_i - d_c(i))^2 ),

    g_c(t) the log-likelihood of class c at snippet t less that of the background. What lies between two segments is
    background, or nothing where they touch. The search goes from point to point and keeps, for each end, the best
    start; its maximum over parabolas of the same width is the distance transform of Felzenszwalb and Huttenlocher
    (2012). So the time is that of T + N, whatever the segments' lengths. Equal values go to the earlier boundary.

    Args:
        gain: float64[T, C], g.
        snippets: int64[N], p: the snippet of each point, strictly ascending, in [0, T).
        classes: int64[N], c.
        duration: float64[C], d, the usual length of each class, in snippets.
        precision: float64[C], w, 0 or more: 1 / (2 variance) of the length; 0 where any length will do.

    Returns:
        int64[N, 2], start and end of each segment.

    Raises:
        ValueError: the points are not strictly ascending, or outside the recording.

    Example:
        >>> gain = np.array([[-1.0], [2.0], [2.0], [-1.0], [-1.0]])
        >>> force_align(gain, np.array([1]), np.array([0]), np.zeros(1), np.zeros(1)).tolist()
        [[1, 3]]
    """
    length = len(gain)
    bounds = np.concatenate(([-1], snippets, [length]))
    if (np.diff(bounds) <= 0).any():
        raise ValueError(f"force_align: expected strictly ascending snippets in [0, {length}), got {snippets}")
    if not len(snippets):
        return np.zeros((0, 2), dtype=np.int64)
    total = np.zeros((gain.shape[1], length + 1))
    np.cumsum(gain.T, axis=1, out=total[:, 1:])
    found: Integers = _search(total, snippets, classes, duration, precision)
    return found


@compiled
def _search(total, snippets, classes, duration, precision):  # type: ignore[no-untyped-def]
    """Do as `force_align`, on the sums of the gain over the first t snippets, [C, T + 1]."""
    count, length = len(snippets), total.shape[1] - 1
    # The best value with point i's segment ending at e, and its start; the ranges of e of all points are disjoint.
    value, start = np.full(length + 1, -np.inf), np.zeros(length + 1, np.int64)
    # Of a start s: the best end of the segment before.
    end_before, open_value = np.zeros(length + 1, np.int64), np.zeros(length + 1)
    hull, border = np.zeros(length + 1, np.int64), np.zeros(length + 2)
    for i in range(count):
        own, w, d = total[classes[i]], precision[classes[i]], duration[classes[i]]
        first, last = (snippets[i - 1] + 1 if i else 0), snippets[i]
        best, best_end = (-np.inf, 0) if i else (0.0, 0)
        for s in range(first, last + 1):
            if i and value[s] > best:
                best, best_end = value[s], s
            end_before[s] = best_end
            open_value[s] = best - own[s]
        stop = snippets[i + 1] if i + 1 < count else length
        if w == 0:
            chosen = first
            for s in range(first, last + 1):
                if open_value[s] > open_value[chosen]:
                    chosen = s
            for e in range(last + 1, stop + 1):
                start[e] = chosen
                value[e] = open_value[chosen] + own[e]
            continue
        # The upper envelope of the parabolas open_value[s] - w (e - s - d)^2: from border[k] on, hull[k] is the best.
        size = 0
        for s in range(first, last + 1):
            while size:
                other = hull[size - 1]
                cross = (s + other) / 2 + d + (open_value[other] - open_value[s]) / (2 * w * (s - other))
                if size > 1 and cross <= border[size - 1]:
                    size -= 1
                else:
                    break
            border[size] = cross if size else -np.inf
            hull[size] = s
            size += 1
        k = 0
        for e in range(last + 1, stop + 1):
            while k + 1 < size and border[k + 1] < e:
                k += 1
            s = hull[k]
            start[e] = s
            value[e] = open_value[s] - w * (e - s - d) ** 2 + own[e]
    segments = np.zeros((count, 2), np.int64)
    e = snippets[count - 1] + 1
    for other in range(e, length + 1):
        if value[other] > value[e]:
            e = other
    for i in range(count - 1, -1, -1):
        segments[i, 0], segments[i, 1] = start[e], e
        e = end_before[start[e]]
    return segments
