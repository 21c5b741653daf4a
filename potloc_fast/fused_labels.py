"""Pseudo-labels from all proposals around a point, taken together."""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from potloc_fast.compiled import compiled
from potloc_fast.held_points import held_points

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# How far outside a proposal it still sees a point, as a share of its length.
MARGIN = 0.5
# The power of the score with which the weight of a proposal grows, and the weight of the class's duration beside the
# proposals of a point, which weigh 1 on average.
POWER = 5
PRIOR_WEIGHT = 0.1
# Scores of 0 and less may occur; they weigh next to nothing.
LEAST_SCORE = 1e-6
# How many points what is usual for all classes weighs, where what is usual for one is estimated.
USUAL_POINTS = 20
# Points lie inside their instances, at this share of them at least.
LEAST_SHARE = 0.01
# Parts of less than a nanosecond are rounding errors.
LEAST_SEC = 1e-9
# The standard deviation of normal values is their median absolute deviation times this.
NORMAL_MAD = 1.4826


def fuse(
    proposal_group: Integers,
    start: Floats,
    end: Floats,
    score: Floats,
    group: Integers,
    time: Floats,
    label: Integers,
    classes: int,
) -> tuple[Floats, Floats, Floats]:
    """Estimate the segment of each point from every proposal around it, and where in instances points lie.

    A proposal sees the n points of its video and class within it and up to half its length outside. It measures the
    instance of point t by its part [t - a, t + b], l = a + b, between the cuts to the neighbouring points of the class.

    **Where people click.** A proposal that sees one point alone measures at which share of the instance it lies,
    x = a / l. Let x_i and ln l_i be the means of x and ln l over those of point i, weighted by score^5. Then

        r_c(l) = beta_c + alpha / l

    is where a point of class c is expected in an instance of l seconds: at a share of it (from 0.01 to 0.99) and, as
    people who react need time, alpha seconds later. alpha is Tukey's resistant line: the medians of x_i over the thirds
    of the points with the shortest and the longest l_i differ by Y, those of 1 / l_i by X, and

        alpha = N X Y / (N X^2 + 20 m^2),   m the median of 1 / l_i, N the number of points measured.

    beta_c and the spread s_c are the median of x_i - alpha / l_i over the points of a class and 1.4826 times their
    median absolute deviation. beta_c and s_c^2 shrink to those of all classes, which shrink to 1/2 and 1/12 (anywhere),
    as if 20 more points had these. sigma, the error of proposals, is the median over points of the deviation of x
    among the proposals that see the point alone, where there are several.

    **Cuts.** Between points t and u of a class with the usual duration D, the cut is at

        (t + u) / 2 + (1/2 - r_c(D)) min(D, u - t),

    in the middle of what two usual instances leave between them; where they leave nothing, it divides u - t as the
    points divide instances.

    **Weights.** Of a class's parts

        ln D = sum_k v_k g_k ln l_k / sum_k v_k g_k,   v_k = score_k^5 / n_k,
        g_k = 1 / (1 + (x_k - r_c(l_k))^2 / s_c^2)

    gives the usual duration, first with cuts at midpoints, then with the cuts above, once. A part weighs

        w_k = v_k g_k / (1 + ln^2(l_k / D)),

    divided by the mean over the points of the class of what their parts weigh without g. These are the heavy tails of
    Cauchy's distribution. They disbelieve fragments, merged instances and instances of others, and still let a class
    have short and long ones. The class itself is one more measurement, a = r_c(D) D and b = D - a (cut likewise), of
    weight 0.1.

    **Labels.** With the weighted means a and b, l = a + b, the point is put at

        r_c(l) + (a / l - r_c(l)) max(0, 1 - sigma^2 / s_c^2)

    of the label, between where it was measured and where it was expected: people whose clicks spread no more than
    proposals err are believed more than proposals. The label is extended to its point and cut. It scores the weighted
    sum of the tIoU between the label and what was measured, high where much was measured and agrees.

    Args:
        proposal_group: int64[M], video and class of a proposal as in `group`, -1 where no point has them.
        start: float64[M], proposals, in seconds like all times.
        end: float64[M].
        score: float64[M].
        group: int64[N], video and class of a point; points are sorted by it, then by time.
        time: float64[N].
        label: int64[N], class of a point, below `classes`.
        classes: their number.

    Returns:
        Start, end and score of each point's label, float64[N] each, NaN where no proposal tells the duration of the
        class.
    """
    margin = MARGIN * (end - start)
    first, last = held_points(proposal_group, start - margin, end + margin, group, time)
    vote = np.maximum(score, LEAST_SCORE) ** POWER / np.maximum(last - first, 1)
    clicks = _clicks(first, last, start, end, vote, time, label, classes)

    together, gap = group[1:] == group[:-1], time[1:] - time[:-1]
    cut = (time[:-1] + time[1:]) / 2
    for _ in range(2):
        before = np.concatenate(([-inf], np.where(together, cut, -inf)))[: len(time)]
        after = np.concatenate((np.where(together, cut, inf), [inf]))[: len(time)]
        # Of the points that a proposal sees, it measures those between whose cuts it reaches.
        low = np.maximum(first, held_points(proposal_group, start, end, group, after)[0])
        high = np.minimum(last, held_points(proposal_group, start, end, group, before)[1])
        point, part_start, part_end, part_vote = _parts(low, high, start, end, vote, len(time))
        a = time[point] - np.maximum(part_start, before[point])
        b = np.minimum(part_end, after[point]) - time[point]
        real = a + b > LEAST_SEC
        point, part_vote, a, b = point[real], part_vote[real], a[real], b[real]

        length, of_class = a + b, label[point]
        log_length = np.log(length)
        near = 1 / (1 + (a / length - clicks.share(of_class, length)) ** 2 / clicks.variance[of_class])
        believed = part_vote * near
        with np.errstate(invalid="ignore"):  # a class without parts: 0 / 0
            log_usual = np.bincount(of_class, believed * log_length, classes) / np.bincount(of_class, believed, classes)
        usual = np.exp(log_usual)[label]
        expected = clicks.share(label, usual)
        cut = (time[:-1] + time[1:]) / 2 + np.nan_to_num((0.5 - expected[1:]) * np.minimum(usual[1:], gap))

    def total(values: Floats) -> NDArray[Any]:
        return np.bincount(point, values, len(time))

    weight = part_vote / (1 + (log_length - log_usual[of_class]) ** 2)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(of_class, weight, classes) / np.bincount(label, minlength=classes)
    weight *= near / mean[of_class]
    room_a, room_b = time - before, after - time
    prior_a, prior_b = np.minimum(expected * usual, room_a), np.minimum((1 - expected) * usual, room_b)
    weights = total(weight) + PRIOR_WEIGHT
    new_a = (total(weight * a) + PRIOR_WEIGHT * prior_a) / weights
    new_b = (total(weight * b) + PRIOR_WEIGHT * prior_b) / weights
    new_length = new_a + new_b
    expected = clicks.share(label, new_length)
    trust = np.maximum(0.0, 1 - clicks.error / clicks.variance[label])
    share = expected + (new_a / new_length - expected) * trust
    new_a = np.clip(share * new_length, 0.0, room_a)
    new_b = np.clip((1 - share) * new_length, 0.0, room_b)
    agreement = total(weight * _tiou(a, b, new_a[point], new_b[point]))
    agreement = agreement + PRIOR_WEIGHT * _tiou(prior_a, prior_b, new_a, new_b)
    return np.maximum(0.0, time - new_a), time + new_b, agreement


class _Clicks(NamedTuple):
    """Where in their instances points lie."""

    delay: float  # alpha, in seconds
    base: Floats  # beta_c
    variance: Floats  # s_c^2
    error: float  # sigma^2

    def share(self, of_class: Integers, length: Floats) -> NDArray[Any]:
        """The share r_c(l) of an instance at which a point is expected."""
        return np.clip(self.base[of_class] + self.delay / length, LEAST_SHARE, 1 - LEAST_SHARE)


def _clicks(
    first: Integers,
    last: Integers,
    start: Floats,
    end: Floats,
    vote: Floats,
    time: Floats,
    label: Integers,
    classes: int,
) -> _Clicks:
    """Estimate where points lie from the proposals that see one of them alone."""
    alone = np.flatnonzero((last - first == 1) & (end - start > LEAST_SEC))
    measured, point = np.unique(first[alone], return_inverse=True)
    weight, length = vote[alone], (end - start)[alone]
    share = (time[first[alone]] - start[alone]) / length
    total = np.bincount(point, weight)
    mean = np.bincount(point, weight * share) / total
    deviation = np.bincount(point, weight * (share - mean[point]) ** 2) / total
    several = np.bincount(point) > 1
    error = float(np.median(deviation[several])) if several.any() else 0.0

    delay = 0.0
    rate = np.exp(-np.bincount(point, weight * np.log(length)) / total)
    if len(rate):
        low, high = np.quantile(rate, (1 / 3, 2 / 3))
        # Equal rates may differ in their last digit.
        short, long = rate >= high * (1 - 1e-9), rate <= low * (1 + 1e-9)
        run = np.median(rate[short]) - np.median(rate[long])
        rise = np.median(mean[short]) - np.median(mean[long])
        delay = len(rate) * run * rise / (len(rate) * run**2 + USUAL_POINTS * np.median(rate) ** 2)
    rest = mean - delay * rate
    usual = _usual(rest, 1 / 2, 1 / 12)
    of_class = [_usual(rest[label[measured] == c], *usual) for c in range(classes)]
    base, variance = np.array(of_class).T
    return _Clicks(float(delay), base, variance, error)


def _usual(values: Floats, centre: float, variance: float) -> tuple[float, float]:
    """The median of values and their squared spread, both shrunk to what is usual elsewhere."""
    number = len(values)
    if number == 0:
        return centre, variance
    median = float(np.median(values))
    spread = NORMAL_MAD * float(np.median(np.abs(values - median)))
    weight = number / (number + USUAL_POINTS)
    return centre + weight * (median - centre), variance + weight * (spread**2 - variance)


def _parts(
    first: Integers, last: Integers, start: Floats, end: Floats, vote: Floats, size: int
) -> tuple[Integers, Floats, Floats, Floats]:
    """Give the parts of proposals: point, start, end (before they are cut), weight v.

    Of the points that a proposal measures only the first and the last see an end of it. All others reach from cut to
    cut, so that such parts of a point are one part: time does not grow with the points in a proposal.
    """
    count = last - first
    held, several, many = count > 0, count > 1, count > 2
    inner, inner_vote = _sums(first[many] + 1, last[many] - 1, vote[many], size)
    everything = np.full(len(inner), inf)
    return (
        np.concatenate((first[held], last[several] - 1, inner)),
        np.concatenate((start[held], start[several], -everything)),
        np.concatenate((end[held], end[several], everything)),
        np.concatenate((vote[held], vote[several], inner_vote)),
    )


@compiled
def _sums(first, last, vote, size):  # type: ignore[no-untyped-def]
    """Sum the votes of the ranges `[first, last)` that hold each of `size` points: the points held, their sums.

    The sum begins anew where no range goes on, so that large votes leave no rounding error to small ones elsewhere.
    """
    opened, change = np.zeros(size + 1, np.int64), np.zeros(size + 1)
    for j in range(len(first)):
        opened[first[j]] += 1
        opened[last[j]] -= 1
        change[first[j]] += vote[j]
        change[last[j]] -= vote[j]
    held, sums = np.empty(size, np.int64), np.empty(size)
    number, ranges, total = 0, 0, 0.0
    for i in range(size):
        ranges += opened[i]
        total = max(0.0, total + change[i]) if ranges > 0 else 0.0
        if ranges > 0:
            held[number], sums[number] = i, total
            number += 1
    return held[:number], sums[:number]


def _tiou(a: Floats, b: Floats, other_a: Floats, other_b: Floats) -> Floats:
    """Compute the tIoU of [-a, b] with [-other_a, other_b], which holds 0; 0 where both are empty."""
    union = np.maximum(a, other_a) + np.maximum(b, other_b)
    overlap: Floats = np.maximum(0.0, np.minimum(a, other_a) + np.minimum(b, other_b))
    return overlap / np.where(union > 0, union, 1.0)
