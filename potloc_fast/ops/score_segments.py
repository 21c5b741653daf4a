"""Segments over thresholds of score curves, with their outer-inner contrast."""

from __future__ import annotations

import torch
from torch import Tensor

from potloc_fast.ops import _library  # noqa: F401 (registers the operators)
from potloc_fast.ops._checks import check_device, check_dtype, check_floating, check_shape, size_from_data

_OP = "score_segments"


def score_segments(
    curves: Tensor,
    thresholds: Tensor,
    *,
    lengths: Tensor | None = None,
    stride: int = 1,
    upsample: int = 1,
    outer: float = 0.25,
    scores: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut curves where they exceed thresholds, and score the segments by outer-inner contrast (Shou et al. 2018).

    Snippet i of level 0 covers [i, i + 1), and value j of a curve stands for time j * stride + 0.5, so curves of every
    level give segments on one grid. A row is sampled at its length * upsample points, point p at time
    (p + 0.5) / upsample, linear between the values and constant beyond the first and the last. A longest run of points
    p0..p1 strictly over a threshold is the segment [p0 / upsample, (p1 + 1) / upsample). Its score is the mean over the
    run less the mean over floor(outer * its number of points) points on either side, clipped to the row; 0 stands for
    the latter where no such point is.

    Not differentiable; autocast changes nothing. The upsampled curves are never stored. Half types are computed as
    float32, sums are made in float64, and the result is the same for any number of threads. On the meta device there
    are as many segments as there can be.

    Args:
        curves: `Tensor[N, T]` of float32, float64, bfloat16 or float16. What lies between an infinity and a neighbour
            is infinite too. NaN is never over a threshold, nor is anything between NaN and its neighbours, or between
            two infinities of different sign.
        thresholds: `Tensor[K]` of a floating dtype, compared as float32 (float64 with float64 curves).
        lengths: `Tensor[N]` of int64, in snippets of level 0; T * stride where it is None. The values of a curve after
            the first ceil(length / stride) are never read.
        stride: snippets from one value to the next, 2^l at level l.
        upsample: points in a snippet.
        outer: length of the outer region on either side, relative to the segment.
        scores: `Tensor[N, T]` like `curves`: the contrast is taken on these curves. Where it is None, on `curves` with
            all points at or under the threshold set to zero. Points that are not finite count as zero.

    Returns:
        Segments `Tensor[M, 2]` in snippets and their scores `Tensor[M]`, float32 (float64 with float64 curves); the row
        and the threshold of each, int64 `Tensor[M]` both, as indices. Ordered by row, threshold, time.

    Raises:
        ValueError: a shape, the device or a number is wrong.
        TypeError: a dtype is wrong.
        RuntimeError: a length is negative or exceeds T * stride.

    Example:
        >>> curve = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0, 1.0]])
        >>> segments, scores, row, threshold = score_segments(curve, torch.tensor([0.5]), outer=0.5)
        >>> segments
        tensor([[1., 3.],
                [5., 6.]])
        >>> scores
        tensor([1., 1.])
    """
    check_floating(_OP, curves=curves)
    check_shape(_OP, "curves", curves, "N, T", (-1, -1))
    check_floating(_OP, thresholds=thresholds)
    check_device(_OP, "thresholds", thresholds, curves)
    check_shape(_OP, "thresholds", thresholds, "K", (-1,))
    if lengths is not None:
        check_dtype(_OP, "lengths", lengths, torch.int64)
        check_device(_OP, "lengths", lengths, curves)
        check_shape(_OP, "lengths", lengths, "N", curves.shape[:1])
        lengths = lengths.contiguous()
    if scores is not None:
        check_floating(_OP, curves=curves, scores=scores)
        check_shape(_OP, "scores", scores, "N, T", curves.shape)
        scores = scores.detach().contiguous()
    for name, value in (("stride", stride), ("upsample", upsample)):
        if value < 1:
            raise ValueError(f"{_OP}: {name} must be 1 or more, got {value}")
    if not outer >= 0:
        raise ValueError(f"{_OP}: outer must be 0 or more, got {outer}")
    segments, contrast, row, threshold = torch.ops.potloc_fast.score_segments(
        curves.detach().contiguous(),
        thresholds.detach().to(_output_dtype(curves)).contiguous(),
        lengths,
        stride,
        upsample,
        outer,
        scores,
    )
    return segments, contrast, row, threshold


def _output_dtype(curves: Tensor) -> torch.dtype:
    return torch.float64 if curves.dtype == torch.float64 else torch.float32


@torch.library.register_fake("potloc_fast::score_segments")
def _(
    curves: Tensor,
    thresholds: Tensor,
    lengths: Tensor | None,
    stride: int,
    upsample: int,
    outer: float,
    scores: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    points = curves.shape[1] * stride * upsample
    total = size_from_data(curves, most=curves.shape[0] * len(thresholds) * ((points + 1) // 2))
    dtype = _output_dtype(curves)
    return (
        curves.new_empty((total, 2), dtype=dtype),
        curves.new_empty((total,), dtype=dtype),
        curves.new_empty((total,), dtype=torch.int64),
        curves.new_empty((total,), dtype=torch.int64),
    )
