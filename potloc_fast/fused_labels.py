"""Pseudo-labels from all proposals that hold a point, taken together."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# The power of the score with which the weight of a proposal grows, and the weight of the class's duration beside the
# proposals of a point, which weigh 1 on average: those of the best labels on HAPT's training recordings.
POWER = 3
PRIOR_WEIGHT = 0.1
# Scores of 0 and less may occur; they weigh next to nothing.
LEAST_SCORE = 1e-6
# The centre prior: deviation of a point from the middle of its instance, as Gaussian points are drawn, and of a
# proposal's middle from that of the instance, both as shares of the length.
POINT_DEVIATION = 1 / 8
PROPOSAL_DEVIATION = 1 / 4


def fuse(
    first: Integers,
    last: Integers,
    start: Floats,
    end: Floats,
    score: Floats,
    group: Integers,
    time: Floats,
    label: Integers,
    classes: int,
    centre_prior: bool,
) -> tuple[Floats, Floats, Floats]:
    """Estimate the segment of each point from every proposal that holds it.

    Proposal k measures the instances of the points that it holds: that of point t by its part [t - a_k, t + b_k], cut
    at the midpoints to the neighbouring points of the class. Of a class's parts,

        ln D = sum_k v_k ln(a_k + b_k) / sum_k v_k,   v_k = score_k^3 / points that k holds,

    gives the usual duration D. A part weighs

        w_k = v_k / (1 + ln^2((a_k + b_k) / D)),

    divided by what the parts of a point of the class weigh on average: the heavy tail of Cauchy's distribution, one at
    a factor of e, disbelieves fragments and merged instances, and still lets a class have short and long ones. The
    class itself is one more measurement, a = b = D / 2 (cut likewise), of weight 0.1. The label is [t - a, t + b] with
    the weighted means a and b; it scores the weighted sum of the tIoU between the label and what was measured, high
    where much was measured and agrees.

    With the centre prior a point lies at m ~ N(1/2, 1/8) of its instance, and at N(m, 1/4) of a part. So w_k is
    multiplied by the density of a_k / (a_k + b_k) under both, and (a - b) / 2, the distance of the point from the
    middle of the label, shrinks to the share that the first has in the variance, a fifth. The label is cut like a part.

    Args:
        first: int64[M], the points that a proposal holds are [first, last).
        last: int64[M].
        start: float64[M], proposals, in seconds like all times.
        end: float64[M].
        score: float64[M].
        group: int64[N], video and class of a point; points are sorted by it, then by time.
        time: float64[N].
        label: int64[N], class of a point, below `classes`.
        classes: their number.
        centre_prior: assume that points lie near the middle of their instances.

    Returns:
        Start, end and score of each point's label, float64[N] each, NaN where no proposal tells the duration of the
        class.
    """
    together = group[1:] == group[:-1]
    middle = (time[:-1] + time[1:]) / 2
    before = np.concatenate(([-inf], np.where(together, middle, -inf)))[: len(time)]
    after = np.concatenate((np.where(together, middle, inf), [inf]))[: len(time)]

    point, part_start, part_end, vote = _parts(first, last, start, end, score, len(time))
    # Duplicate points and empty proposals leave parts without length, which measure nothing.
    a = time[point] - np.maximum(part_start, before[point])
    b = np.minimum(part_end, after[point]) - time[point]
    real = a + b > 0
    point, vote, a, b = point[real], vote[real], a[real], b[real]

    of_class = label[point]
    log_length = np.log(a + b)
    with np.errstate(invalid="ignore"):  # a class without parts: 0 / 0
        log_usual = np.bincount(of_class, vote * log_length, classes) / np.bincount(of_class, vote, classes)
        weight = vote / (1 + (log_length - log_usual[of_class]) ** 2)
        mean = np.bincount(of_class, weight, classes) / np.bincount(label, minlength=classes)
    weight /= mean[of_class]
    if centre_prior:
        variance = POINT_DEVIATION**2 + PROPOSAL_DEVIATION**2
        weight *= np.exp(-((a / (a + b) - 0.5) ** 2) / (2 * variance))

    def total(values: Floats) -> NDArray[Any]:
        return np.bincount(point, values, len(time))

    half = np.exp(log_usual)[label] / 2
    prior_a, prior_b = np.minimum(half, time - before), np.minimum(half, after - time)
    weights = total(weight) + PRIOR_WEIGHT
    new_a = (total(weight * a) + PRIOR_WEIGHT * prior_a) / weights
    new_b = (total(weight * b) + PRIOR_WEIGHT * prior_b) / weights
    if centre_prior:
        radius, offset = (new_a + new_b) / 2, (new_a - new_b) / 2 * POINT_DEVIATION**2 / variance
        new_a, new_b = np.minimum(radius + offset, time - before), np.minimum(radius - offset, after - time)
    agreement = total(weight * _tiou(a, b, new_a[point], new_b[point]))
    agreement = agreement + PRIOR_WEIGHT * _tiou(prior_a, prior_b, new_a, new_b)
    return np.maximum(0.0, time - new_a), time + new_b, agreement


def _parts(
    first: Integers, last: Integers, start: Floats, end: Floats, score: Floats, size: int
) -> tuple[Integers, Floats, Floats, Floats]:
    """Give the parts of proposals: point, start, end (before they are cut at midpoints), weight v.

    Within a proposal only the first and the last point see an end of it. To all others it says no more than that they
    have neighbours, so that such parts of a point are one part: time does not grow with the points in a proposal.
    """
    count = last - first
    vote = np.maximum(score, LEAST_SCORE) ** POWER / np.maximum(count, 1)
    held, several, many = count > 0, count > 1, count > 2
    border = np.concatenate((first[many] + 1, last[many] - 1))
    sign = np.repeat([1.0, -1.0], len(border) // 2)
    inner = np.flatnonzero(np.cumsum(np.bincount(border, sign, size)) > 0)
    inner_vote = np.cumsum(np.bincount(border, sign * np.tile(vote[many], 2), size))[inner]
    everything = np.full(len(inner), inf)
    return (
        np.concatenate((first[held], last[several] - 1, inner)),
        np.concatenate((start[held], start[several], -everything)),
        np.concatenate((end[held], end[several], everything)),
        np.concatenate((vote[held], vote[several], np.maximum(inner_vote, 0.0))),
    )


def _tiou(a: Floats, b: Floats, other_a: Floats, other_b: Floats) -> Floats:
    """Compute the tIoU of [-a, b] and [-other_a, other_b], which both hold 0; 0 where both are empty."""
    union = np.maximum(a, other_a) + np.maximum(b, other_b)
    return (np.minimum(a, other_a) + np.minimum(b, other_b)) / np.where(union > 0, union, 1.0)
