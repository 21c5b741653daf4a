"""Non-maximum suppression of time segments, hard and soft, for many videos and classes in one call."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from potloc_fast.ops import _library  # noqa: F401 (registers the operators)
from potloc_fast.ops._checks import check_device, check_dtype, check_floating, check_shape, size_from_data

_METHODS = {"hard": 0, "linear": 1, "gaussian": 2}
_NO_LIMIT = 2**63 - 1


def nms(segments: Tensor, scores: Tensor, iou_threshold: float, offset: float = 0.0) -> Tensor:
    """Keep the best segments, dropping every one with tIoU >= `iou_threshold` to a better one that is kept.

    Equality counts as overlap. Equal scores: the lowest index first; NaN scores rank last. tIoU is computed in float64;
    it is 0 for segments without length and for those with a bound that is not finite. Not differentiable; autocast
    changes nothing. On the meta device all are kept.

    Args:
        segments: `Tensor[N, 2]` of starts and ends, float32, float64, bfloat16 or float16, in any unit.
        scores: `Tensor[N]` of the same dtype.
        iou_threshold: in (0, 1].
        offset: added to every length and intersection; 1 for ends that are inclusive indices.

    Returns:
        The indices of what is kept, int64 `Tensor[K]`, by descending score.

    Raises:
        ValueError: a shape, the device or a number is wrong.
        TypeError: a dtype is wrong.

    Example:
        >>> segments = torch.tensor([[0.0, 10.0], [1.0, 11.0], [20.0, 30.0]])
        >>> nms(segments, torch.tensor([0.5, 0.9, 0.7]), iou_threshold=0.5)
        tensor([1, 2])
    """
    return _nms("nms", segments, scores, iou_threshold=iou_threshold, offset=offset)[2]


def soft_nms(
    segments: Tensor,
    scores: Tensor,
    *,
    method: Literal["gaussian", "linear"] = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.3,
    min_score: float = 0.001,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Lower the scores of segments that overlap a better one instead of dropping them (Bodla et al. 2017).

    The segment with the highest present score is kept and lowers the scores of the others: "gaussian" by the factor
    exp(-tIoU^2 / sigma), "linear" by 1 - tIoU where tIoU >= `iou_threshold`; and so on until no score is `min_score` or
    more. Scores are lowered in float64. Ties, tIoU and the rest are as in `nms`, but for NaN scores, which are dropped.

    Args:
        segments: `Tensor[N, 2]` as in `nms`.
        scores: `Tensor[N]` of the same dtype.
        method: "gaussian" or "linear".
        sigma: width of the Gaussian, positive.
        iou_threshold: in (0, 1], for "linear" alone.
        min_score: 0 or more.
        offset: as in `nms`.

    Returns:
        The indices of what is kept, int64 `Tensor[K]`, and their lowered scores, `Tensor[K]`, descending.

    Raises:
        ValueError: a shape, the device, the method or a number is wrong.
        TypeError: a dtype is wrong.

    Example:
        >>> segments = torch.tensor([[0.0, 10.0], [0.0, 10.0], [20.0, 30.0]])
        >>> soft_nms(segments, torch.tensor([0.5, 1.0, 0.7]))
        (tensor([1, 2, 0]), tensor([1.0000, 0.7000, 0.0677]))
    """
    if method not in ("gaussian", "linear"):
        raise ValueError(f"soft_nms: method must be gaussian or linear, got {method!r}")
    _, lowered, keep = _nms(
        "soft_nms",
        segments,
        scores,
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
    method: Literal["hard", "linear", "gaussian"] = "hard",
    iou_threshold: float = 0.5,
    sigma: float = 0.5,
    min_score: float = 0.001,
    offset: float = 0.0,
    max_per_group: int | None = None,
    voting: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `nms` or `soft_nms` within every group, such as a class of a video, in one call and in parallel.

    With `voting` each kept segment then becomes the mean, weighted by the original scores, of all segments of its group
    (dropped ones too) that have tIoU >= `voting` with it. Scores that are negative, infinite or NaN weigh nothing, and
    a segment without any weight stays as it is.

    Args:
        segments: `Tensor[N, 2]` as in `nms`.
        scores: `Tensor[N]` of the same dtype.
        groups: `Tensor[N]` of int64, any values in any order.
        method: "hard", or "linear" or "gaussian" as in `soft_nms`.
        iou_threshold: in (0, 1], for "hard" and "linear".
        sigma: width of the Gaussian, positive.
        min_score: 0 or more, for "linear" and "gaussian".
        offset: as in `nms`.
        max_per_group: how many segments a group keeps at most.
        voting: in (0, 1].

    Returns:
        Segments `Tensor[K, 2]`, scores `Tensor[K]` and the indices `Tensor[K]` (int64) of what is kept, by ascending
        group and, within a group, by descending score.

    Raises:
        ValueError: a shape, the device, the method or a number is wrong.
        TypeError: a dtype is wrong.

    Example:
        >>> segments = torch.tensor([[0.0, 10.0], [0.0, 20.0], [0.0, 10.0]])
        >>> kept, scores, keep = batched_nms(
        ...     segments, torch.tensor([0.5, 1.0, 0.7]), torch.tensor([7, 7, 3]), voting=0.5
        ... )
        >>> keep
        tensor([2, 1])
        >>> kept
        tensor([[ 0.0000, 10.0000],
                [ 0.0000, 16.6667]])
    """
    check_dtype("batched_nms", "groups", groups, torch.int64)
    return _nms(
        "batched_nms",
        segments,
        scores,
        groups=groups,
        method=method,
        iou_threshold=iou_threshold,
        sigma=sigma,
        min_score=min_score,
        offset=offset,
        max_per_group=max_per_group,
        voting=voting,
    )


def _nms(
    op: str,
    segments: Tensor,
    scores: Tensor,
    *,
    groups: Tensor | None = None,
    method: str = "hard",
    iou_threshold: float,
    sigma: float = 1.0,
    min_score: float = 0.0,
    offset: float,
    max_per_group: int | None = None,
    voting: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    check_floating(op, segments=segments, scores=scores)
    check_shape(op, "segments", segments, "N, 2", (-1, 2))
    check_shape(op, "scores", scores, "N", segments.shape[:1])
    if groups is not None:
        check_device(op, "groups", groups, segments)
        check_shape(op, "groups", groups, "N", segments.shape[:1])
        groups = groups.contiguous()
    if method not in _METHODS:
        raise ValueError(f"{op}: method must be one of {', '.join(_METHODS)}, got {method!r}")
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"{op}: iou_threshold must be over 0 and at most 1, got {iou_threshold}")
    if voting is not None and not 0 < voting <= 1:
        raise ValueError(f"{op}: voting must be None, or over 0 and at most 1, got {voting}")
    if not sigma > 0:
        raise ValueError(f"{op}: sigma must be positive, got {sigma}")
    for name, value in (("min_score", min_score), ("offset", offset), ("max_per_group", max_per_group)):
        if value is not None and not value >= 0:
            raise ValueError(f"{op}: {name} must be 0 or more, got {value}")
    kept_segments, kept_scores, keep = torch.ops.potloc_fast.nms(
        segments.detach().contiguous(),
        scores.detach().contiguous(),
        groups,
        _METHODS[method],
        iou_threshold,
        sigma,
        min_score,
        offset,
        _NO_LIMIT if max_per_group is None else max_per_group,
        0.0 if voting is None else voting,
    )
    return kept_segments, kept_scores, keep


@torch.library.register_fake("potloc_fast::nms")
def _(
    segments: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    method: int,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    offset: float,
    max_per_group: int,
    voting: float,
) -> tuple[Tensor, Tensor, Tensor]:
    kept = size_from_data(segments, most=len(segments))
    return segments.new_empty((kept, 2)), scores.new_empty((kept,)), scores.new_empty((kept,), dtype=torch.int64)
