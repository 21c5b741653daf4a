"""Segments over thresholds and their contrast in plain PyTorch, with the upsampled curves written out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """Runs of points over each threshold, with the mean inside less the mean in the outer region.

    Args and returns are those of `potloc_fast.ops.score_segments`.
    """
    dtype = torch.float64 if curves.dtype == torch.float64 else torch.float32
    found: list[tuple[float, float, float, int, int]] = []
    for row in range(curves.shape[0]):
        length = curves.shape[1] * stride if lengths is None else int(lengths[row])
        curve = _sample(curves[row], length, stride, upsample)
        for k, threshold in enumerate(thresholds.to(dtype).double()):
            over = curve > threshold
            measured = curve.where(over, 0.0) if scores is None else _sample(scores[row], length, stride, upsample)
            measured = measured.nan_to_num(0.0, 0.0, 0.0)
            edges = F.pad(over.int(), (1, 1)).diff()  # 1 where a run begins, -1 where it has ended
            firsts, lasts = (edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten()
            for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
                reach = math.floor(min(outer * (last - first), len(curve)))
                outside = torch.cat([measured[max(first - reach, 0) : first], measured[last : last + reach]])
                contrast = measured[first:last].mean() - (outside.mean() if len(outside) else 0.0)
                found.append((first / upsample, last / upsample, float(contrast), row, k))
    table = torch.tensor(found, dtype=torch.float64).reshape(-1, 5)
    return table[:, :2].to(dtype), table[:, 2].to(dtype), table[:, 3].long(), table[:, 4].long()


def _sample(values: Tensor, length: int, stride: int, upsample: int) -> Tensor:
    """The curve at the points p = 0, 1, ..., in float64: at u = ((p + 0.5) / upsample - 0.5) / stride."""
    values = values[: -(-length // stride)].double()
    if length == 0:
        return values
    # u is numerator / denominator, exactly, so that a point on a value is that value.
    denominator = 2 * upsample * stride
    numerator = 2 * torch.arange(length * upsample) + 1 - upsample
    numerator = numerator.clamp(0, (len(values) - 1) * denominator)
    left, rest = numerator // denominator, numerator % denominator
    a, b = values[left], values[(left + 1).clamp(max=len(values) - 1)]
    step = b - a
    between = a + rest / torch.tensor(denominator, dtype=torch.float64) * step
    # Beside an infinity the line is infinite; between two of them it is not defined.
    return torch.where(rest == 0, a, torch.where(step.isfinite(), between, a + b))
