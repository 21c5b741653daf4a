"""How well instances are found, by their length, coverage and number: DETAD's sensitivity and false negatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from potloc_fast.evaluation.average_precision import class_bounds
from potloc_fast.evaluation.errors import normalized_map
from potloc_fast.evaluation.segments import Segments

GROUPS = 5
LEAST_PRECISION = 0.05  # a detection further down its class is never looked at


@dataclass(frozen=True)
class InstanceGroup:
    """The instances with similar values of one characteristic.

    Attributes:
        low: the smallest value.
        high: the largest value.
        instances: their number.
        map_n: mAP_N, in percent, with them alone to find: detections of other instances don't count at all, false
            positives count as ever.
        missed: the percentage of them that no detection found at a normalized precision above 0.05.
    """

    low: float
    high: float
    instances: int
    map_n: float
    missed: float


@dataclass(frozen=True)
class Sensitivity:
    """What detections find and miss (DETAD, Alwassel et al., ECCV 2018, sections 5 and 6), over all ranks.

    The groups of a characteristic are its fifths, from low to high values: about a fifth of the instances each, fewer
    groups where many values are equal. DETAD has fixed bounds for THUMOS'14 and ActivityNet, which suit no other data.

    Attributes:
        map_n: mAP_N of all instances, in percent (see `ErrorProfile`).
        missed: the percentage of all instances that was missed, as in `InstanceGroup`.
        characteristics: the groups by "length" (seconds), "coverage" (length in percent of the duration of the
            video; left out where a duration is unknown) and "instances" (of the same class in the same video).
    """

    map_n: float
    missed: float
    characteristics: dict[str, tuple[InstanceGroup, ...]]


def sensitivity(
    ranked: Segments, truth: Segments, taken: NDArray[np.int64], durations: NDArray[np.float64] | None = None
) -> Sensitivity:
    """Measure mAP_N and misses by characteristics of the instances.

    Args:
        ranked: aligned detections in the order of `rank`.
        truth: M instances.
        taken: int64[N], the instance that each detection took, -1 where none (see `match`).
        durations: float64[M], the length of the video of each instance, in seconds.

    Returns:
        The figures.
    """
    length = truth.end_sec - truth.start_sec
    key = truth.label * len(truth.videos) + truth.video
    values = {"length": length}
    if durations is not None:
        values["coverage"] = 100 * length / durations
    values["instances"] = np.bincount(key)[key].astype(np.float64)
    missed = _missed(ranked, truth, taken)
    return Sensitivity(
        map_n=normalized_map(ranked, truth, taken >= 0, np.zeros(len(ranked), np.bool_)),
        missed=100 * float(missed.mean()),
        characteristics={name: _groups(ranked, truth, taken, missed, value) for name, value in values.items()},
    )


def _groups(
    ranked: Segments,
    truth: Segments,
    taken: NDArray[np.int64],
    missed: NDArray[np.bool_],
    values: NDArray[np.float64],
) -> tuple[InstanceGroup, ...]:
    # Rounded, so that what is equal in the annotations is so here: 34.8 - 29.1 gives less than 5.7.
    values = np.round(values, 6)
    edges = np.unique(np.quantile(values, np.arange(1, GROUPS) / GROUPS, method="inverted_cdf"))
    group = np.searchsorted(edges, values, side="left")
    found = []
    for number in np.unique(group):
        own = group == number
        hit = np.where(taken >= 0, own[taken], False)
        found.append(
            InstanceGroup(
                low=float(values[own].min()),
                high=float(values[own].max()),
                instances=int(own.sum()),
                map_n=normalized_map(ranked, truth, hit, (taken >= 0) & ~hit, own),
                missed=100 * float(missed[own].mean()),
            )
        )
    return tuple(found)


def _missed(ranked: Segments, truth: Segments, taken: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which instances no detection took while N R / (N R + FP) exceeded `LEAST_PRECISION`: bool[M]."""
    hit = taken >= 0
    first = class_bounds(ranked)[0][ranked.label]
    found, wrong = (np.cumsum(flags) - np.concatenate([[0], np.cumsum(flags)])[first] for flags in (hit, ~hit))
    weighted = found * (len(truth) / len(truth.labels)) / np.bincount(truth.label)[ranked.label]
    missed = np.ones(len(truth), dtype=np.bool_)
    missed[taken[hit & (weighted / (weighted + wrong) > LEAST_PRECISION)]] = False
    return missed
