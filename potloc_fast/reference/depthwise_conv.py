"""Depthwise convolutions in plain PyTorch, filter by filter."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def depthwise_conv(x: Tensor, weight: Tensor, stride: int = 1, mask: Tensor | None = None) -> list[Tensor]:
    """out[n][b, t, c] = sum_k weight[n, k, c] x[b, t * stride + k - 1, c], with zeros beyond the ends.

    Args and returns are those of `potloc_fast.ops.depthwise_conv`.
    """
    if mask is not None:
        x = x.masked_fill(~mask.unsqueeze(-1), 0)
    out_length = -(-x.shape[1] // stride)
    padded = F.pad(x, (0, 0, 1, 1))
    taps = [padded[:, k : k + stride * out_length : stride] for k in range(3)]
    return [
        sum((w * tap for w, tap in zip(kernel.to(x.dtype), taps, strict=True)), x.new_zeros(())) for kernel in weight
    ]
