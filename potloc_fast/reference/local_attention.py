"""Banded self-attention in plain PyTorch, T x T scores and all."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, key_mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """S = Softmax(Q K^T / sqrt(D)) V, where position i sees the positions j with |i - j| <= window // 2.

    Args and returns are those of `potloc_fast.ops.local_attention`.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    position = torch.arange(q.shape[2], device=q.device)
    seen = (position[:, None] - position[None, :]).abs() <= window // 2  # [T, T]
    if key_mask is not None:
        seen = seen & key_mask[:, None, None, :]  # [B, 1, T, T]
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, -math.inf)
    # A row that sees nothing is a row of -inf: its softmax is NaN, and the rule for it is zeros.
    weights = scores.softmax(dim=-1).masked_fill(~seen.any(dim=-1, keepdim=True), 0.0)
    return weights @ v
