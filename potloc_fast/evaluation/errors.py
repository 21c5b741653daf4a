"""What detections get wrong, and what that costs: DETAD's false-positive profile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from potloc_fast.compiled import compiled
from potloc_fast.evaluation.average_precision import average_precision, class_bounds
from potloc_fast.evaluation.segments import Segments

KINDS = ("true positive", "double detection", "wrong label", "localization", "confusion", "background")
LEAST_TIOU = 0.1  # under it nothing was seen at all
GROUPS = 10


@dataclass(frozen=True)
class ErrorProfile:
    """The false-positive profile of DETAD (Alwassel et al., ECCV 2018, section 4).

    A detection that is no true positive is judged by the instance of its video, of whatever class, that it overlaps
    most: tIoU >= t is a *double detection* in its own class and a *wrong label* in another one; 0.1 <= tIoU < t is a
    *localization* error or a *confusion*; less is *background*. Where an instance of its class overlaps as much as one
    of another class (THUMOS'14 annotates a cliff dive as a dive, too), its class decides; DETAD's code takes the first
    of the file.

    With G_c instances, the detections of class c at ranks (k - 1) G_c + 1 to k G_c form group k; what lies behind the
    first ten groups is left out of this profile, as in DETAD.

    Attributes:
        counts: the number of detections of each kind in groups 1 to 10, "true positive" among the kinds.
        map_n: mAP_N of the ten groups, in percent. mAP_N is mAP, with precision N R / (N R + FP) at recall R and FP
            false positives, N the mean number of instances of a class; so each class weighs its false positives alike.
        gains: percentage points that mAP_N gains if all errors of one kind are removed.
        map_n_without_errors: mAP_N without any error, in percent: the mean recall.
    """

    counts: dict[str, tuple[int, ...]]
    map_n: float
    gains: dict[str, float]
    map_n_without_errors: float


def error_profile(ranked: Segments, truth: Segments, taken: NDArray[np.int64], tiou: float) -> ErrorProfile:
    """Classify the errors of detections and measure what each kind costs.

    Args:
        ranked: aligned detections in the order of `rank`.
        truth: the instances.
        taken: int64[N], the instance that each detection took at `tiou`, -1 where none (see `match`).
        tiou: the threshold t.

    Returns:
        The profile.
    """
    kinds = error_kinds(ranked, truth, taken, tiou)
    group = (np.arange(len(ranked)) - class_bounds(ranked)[0][ranked.label]) // np.bincount(truth.label)[ranked.label]
    shown = group < GROUPS
    counts = np.zeros((len(KINDS), GROUPS), dtype=np.int64)
    np.add.at(counts, (kinds[shown], group[shown]), 1)

    hit = (taken >= 0) & shown
    score = normalized_map(ranked, truth, hit, ~shown)
    gains = {
        KINDS[kind]: normalized_map(ranked, truth, hit, ~shown | (kinds == kind)) - score
        for kind in range(1, len(KINDS))
    }
    return ErrorProfile(
        counts=dict(zip(KINDS, map(tuple, counts.tolist()), strict=True)),
        map_n=score,
        gains=gains,
        map_n_without_errors=normalized_map(ranked, truth, hit, ~hit),
    )


def error_kinds(ranked: Segments, truth: Segments, taken: NDArray[np.int64], tiou: float) -> NDArray[np.int64]:
    """Give the kind of each detection, an index into `KINDS`: int64[N]; arguments as of `error_profile`."""
    by_video = truth.take(np.argsort(truth.video, kind="stable"))
    first, last = np.searchsorted(by_video.video, [ranked.video, ranked.video + 1])
    nearest, same = _nearest(
        *(ranked.start_sec, ranked.end_sec, ranked.label, first, last),
        *(by_video.start_sec, by_video.end_sec, by_video.label),
    )
    wrong = np.select([nearest >= tiou, nearest >= LEAST_TIOU], [2 - same, 4 - same], default=5)
    return np.where(taken >= 0, 0, wrong)


def normalized_map(
    ranked: Segments,
    truth: Segments,
    hit: NDArray[np.bool_],
    dropped: NDArray[np.bool_],
    counted: NDArray[np.bool_] | None = None,
) -> float:
    """Give mAP_N (see `ErrorProfile`), in percent, of detections in the order of `rank`.

    Args:
        ranked: N aligned detections.
        truth: M instances.
        hit: bool[N], the true positives.
        dropped: bool[N], which to leave out where they are false positives.
        counted: bool[M], the instances to find; a class without any is left out of the mean. All if None.

    Returns:
        Percent.
    """
    classes = len(truth.labels)
    instances = np.bincount(truth.label if counted is None else truth.label[counted], minlength=classes)
    present = instances > 0
    first, last = class_bounds(ranked)
    instances = instances[present]
    weights = len(truth) / classes / instances
    ap = average_precision(hit[:, None], dropped, first[present], last[present], instances, weights, True)
    return 100 * float(ap.mean())


@compiled
def _nearest(starts, ends, labels, first, last, truth_start, truth_end, truth_label):  # type: ignore[no-untyped-def]
    """Give the highest tIoU of each segment with instances first to last, and whether one of its class has it."""
    nearest = np.zeros(len(starts))
    same = np.zeros(len(starts), dtype=np.int64)
    for i in range(len(starts)):
        for j in range(first[i], last[i]):
            intersection = min(ends[i], truth_end[j]) - max(starts[i], truth_start[j])
            if intersection <= 0.0:
                continue
            tiou = intersection / ((truth_end[j] - truth_start[j]) + (ends[i] - starts[i]) - intersection)
            if tiou > nearest[i]:
                nearest[i] = tiou
                same[i] = 0
            if tiou == nearest[i] and labels[i] == truth_label[j]:
                same[i] = 1
    return nearest, same
