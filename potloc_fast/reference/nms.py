"""Non-maximum suppression of time segments in plain Python over a table of tIoUs."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def nms(segments: Tensor, scores: Tensor, iou_threshold: float, offset: float = 0.0) -> Tensor:
    """Greedy suppression. Args and returns are those of `potloc_fast.ops.nms`."""
    groups = torch.zeros(len(scores), dtype=torch.int64)
    return batched_nms(segments, scores, groups, iou_threshold=iou_threshold, offset=offset)[2]


def soft_nms(
    segments: Tensor,
    scores: Tensor,
    *,
    method: str = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.3,
    min_score: float = 0.001,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Suppression that lowers scores. Args and returns are those of `potloc_fast.ops.soft_nms`."""
    groups = torch.zeros(len(scores), dtype=torch.int64)
    _, lowered, keep = batched_nms(
        segments,
        scores,
        groups,
        method=method,
        iou_threshold=iou_threshold,
        sigma=sigma,
        min_score=min_score,
        offset=offset,
    )
    return keep, lowered


def batched_nms(
    segments: Tensor,
    scores: Tensor,
    groups: Tensor,
    *,
    method: str = "hard",
    iou_threshold: float = 0.5,
    sigma: float = 0.5,
    min_score: float = 0.001,
    offset: float = 0.0,
    max_per_group: int | None = None,
    voting: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One group after the other. Args and returns are those of `potloc_fast.ops.batched_nms`."""
    kept_segments: list[list[float]] = []
    kept_scores: list[float] = []
    keep: list[int] = []
    for group in sorted(set(groups.tolist())):
        members = (groups == group).nonzero().flatten()
        tiou = temporal_iou(segments[members], offset)
        original = scores[members].tolist()
        if method == "hard":
            kept = _hard(tiou, original, iou_threshold)
        else:
            kept = _soft(tiou, original, method, iou_threshold, sigma, min_score)
        for i, score in kept[:max_per_group]:
            keep.append(int(members[i]))
            kept_scores.append(score)
            bounds = segments[members].double()
            if voting is not None:
                weight = scores[members].double().nan_to_num(0.0, 0.0, 0.0).clamp(min=0) * (tiou[i] >= voting)
                if weight.sum() > 0:
                    voters = weight > 0
                    bounds[i] = weight[voters] @ bounds[voters] / weight.sum()
            kept_segments.append(bounds[i].tolist())
    return (
        torch.tensor(kept_segments, dtype=torch.float64).reshape(-1, 2).to(segments.dtype),
        torch.tensor(kept_scores, dtype=torch.float64).to(scores.dtype),
        torch.tensor(keep, dtype=torch.int64),
    )


def temporal_iou(segments: Tensor, offset: float) -> Tensor:
    """The tIoU of every two segments, `Tensor[N, N]` of float64; 0 without overlap or where a bound is not finite."""
    start, end = segments.double().unbind(1)
    length = end - start + offset
    intersection = torch.minimum(end[:, None], end) - torch.maximum(start[:, None], start) + offset
    tiou = intersection / (length[:, None] + length - intersection)
    finite = segments.isfinite().all(1)
    return tiou.where((intersection > 0) & finite[:, None] & finite, 0.0)


def _hard(tiou: Tensor, scores: list[float], iou_threshold: float) -> list[tuple[int, float]]:
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (math.isnan(scores[i]), -scores[i], i)):
        if not any(tiou[i, j] >= iou_threshold for j in kept):
            kept.append(i)
    return [(i, scores[i]) for i in kept]


def _soft(
    tiou: Tensor, scores: list[float], method: str, iou_threshold: float, sigma: float, min_score: float
) -> list[tuple[int, float]]:
    kept: list[tuple[int, float]] = []
    scores = list(scores)
    left = set(range(len(scores)))
    while left := {i for i in left if scores[i] >= min_score}:
        best = max(left, key=lambda i: (scores[i], -i))
        left.remove(best)
        kept.append((best, scores[best]))
        for i in left:
            overlap = float(tiou[best, i])
            if method == "gaussian":
                scores[i] *= math.exp(-overlap * overlap / sigma)
            elif overlap >= iou_threshold:
                scores[i] *= 1 - overlap
    return kept
