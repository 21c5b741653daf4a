"""Average recall against the number of proposals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from potloc_fast.compiled import compiled
from potloc_fast.evaluation.segments import Segments

TIOU = np.arange(10, 20) / 20
PROPOSALS = np.arange(1, 101)


@dataclass(frozen=True)
class AverageRecall:
    """Average recall, as in the proposal task of the ActivityNet challenge.

    An instance is recalled at tIoU t where any proposal of its video overlaps it by at least t, whatever its class.
    Average recall (AR) is the mean over t = 0.5, 0.55, ..., 0.95. At an average number of proposals (AN) of n, each
    video keeps the same share of its proposals, those with the highest scores, such that all keep n a video: of the c
    in a video floor(c n V / P), where V videos have instances and P proposals in all. (The official code sometimes
    takes one less, where a product that is whole falls short of it in floating point.)

    Attributes:
        proposals: AN, 1 to 100.
        recall: AR at each AN, in percent.
        area: the area under this curve, by trapezia from AN 1 to 100, over 100: as the challenge has it, in percent.
            At most 99, which takes a first proposal in each video that is perfect.
    """

    proposals: tuple[int, ...]
    recall: tuple[float, ...]
    area: float


def average_recall(found: Segments, truth: Segments) -> AverageRecall:
    """Measure AR at an AN of 1 to 100.

    Args:
        found: aligned detections or proposals.
        truth: the instances.

    Returns:
        The curve.
    """
    order = np.lexsort((-found.score, found.video))
    videos = np.arange(len(found.videos) + 1)
    bounds = np.searchsorted(found.video[order], videos)
    sizes = np.diff(bounds)
    annotated = np.unique(truth.video)
    # What a hundred proposals a video leave over is cut off first.
    kept = np.minimum(sizes * PROPOSALS[-1] * len(annotated) // max(len(found), 1), sizes)
    total = max(int(kept[annotated].sum()), 1)
    used = np.minimum(kept[:, None] * PROPOSALS * len(annotated) // total, kept[:, None])

    rank = _first_ranks(
        *(found.start_sec[order], found.end_sec[order], bounds[truth.video], bounds[truth.video + 1]),
        *(truth.start_sec, truth.end_sec, TIOU),
    )
    recall = np.array([(rank < used[truth.video, n, None]).mean() for n in range(len(PROPOSALS))])
    area = float((recall[1:] + recall[:-1]).sum()) / 2 / PROPOSALS[-1]
    return AverageRecall(tuple(PROPOSALS.tolist()), tuple((100 * recall).tolist()), 100 * area)


@compiled
def _first_ranks(starts, ends, first, last, truth_start, truth_end, thresholds):  # type: ignore[no-untyped-def]
    """Give the rank of the first proposal of each instance with tIoU >= t, or a huge number: int64[M, K]."""
    rank = np.full((len(truth_start), len(thresholds)), np.iinfo(np.int64).max)
    for i in range(len(truth_start)):
        best = 0.0
        for j in range(first[i], last[i]):
            intersection = min(ends[j], truth_end[i]) - max(starts[j], truth_start[i])
            if intersection <= 0.0:
                continue
            tiou = intersection / ((truth_end[i] - truth_start[i]) + (ends[j] - starts[j]) - intersection)
            if tiou <= best:
                continue
            for k in range(len(thresholds)):
                if best < thresholds[k] <= tiou:
                    rank[i, k] = j - first[i]
            best = tiou
    return rank
