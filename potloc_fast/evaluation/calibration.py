"""Whether scores are probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Reliability of scores as the probability of being a true positive (Guo et al., ICML 2017).

    Scores are sorted into 15 bins of equal width, [0, 1/15), ..., [14/15, 1]. The expected calibration error is the
    mean of |precision - mean score| of the bins, weighted by their numbers of detections. A score outside [0, 1] counts
    as 0 or 1.

    Attributes:
        error: the expected calibration error, in percent; None where nothing was detected.
        score: mean score of each bin; None where it is empty.
        precision: share of true positives of each bin; None where it is empty.
        counts: number of detections of each bin.
    """

    error: float | None
    score: tuple[float | None, ...]
    precision: tuple[float | None, ...]
    counts: tuple[int, ...]


def calibration(score: NDArray[np.float64], hit: NDArray[np.bool_]) -> Calibration:
    """Measure how far scores are from probabilities.

    Args:
        score: float64[N], of the detections.
        hit: bool[N], which of them are true positives.

    Returns:
        The reliability curve and its error.
    """
    score = score.clip(0.0, 1.0)
    bins = np.searchsorted(np.arange(1, BINS) / BINS, score, side="right")
    counts, scores, hits = (np.bincount(bins, weights, BINS) for weights in (None, score, hit))
    return Calibration(
        error=100 * float(np.abs(scores - hits).sum() / len(score)) if len(score) else None,
        score=tuple(float(s / n) if n else None for s, n in zip(scores, counts, strict=True)),
        precision=tuple(float(s / n) if n else None for s, n in zip(hits, counts, strict=True)),
        counts=tuple(counts.tolist()),
    )
