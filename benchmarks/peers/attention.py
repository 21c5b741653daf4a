"""Banded attention as others compute it.

`sliding_chunks` is Longformer's method (Beltagy et al. 2020), which ActionFormer and POTLoc use, written from its
description: chunks of 2w positions every w positions, w = window // 2, one batched matrix product for all of them.
`sdpa_band_mask` is PyTorch's scaled_dot_product_attention with the band as a mask; `flex_attention` is PyTorch's
compiled FlexAttention, which skips the blocks outside the band.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def sliding_chunks(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention within the band, by overlapping chunks; T is padded to a multiple of 2 * (window // 2)."""
    b, h, t, d = q.shape
    w = window // 2
    padding = (0, 0, 0, -t % (2 * w))
    q, k, v = (F.pad(x, padding).reshape(b * h, -1, d) for x in (q * d**-0.5, k, v))
    length = q.shape[1]

    # Scores of all pairs within a chunk, [B * H, chunks, 2w, 2w]. Padded and re-read with rows one longer, the
    # diagonals stand upright: column c of row i is key i + c - 2w ... of the first half, i + c of the second.
    pairs = _chunks(q, w) @ _chunks(k, w).transpose(-1, -2)
    count = pairs.shape[1]
    upright = F.pad(pairs, (0, 0, 0, 1)).view(-1, count, 2 * w, 2 * w + 1)
    scores = q.new_empty(b * h, count + 1, w, 2 * w + 1)
    scores[:, :-1, :, w:] = upright[:, :, :w, : w + 1]
    scores[:, -1, :, w:] = upright[:, -1, w:, : w + 1]
    scores[:, 1:, :, :w] = upright[:, :, -(w + 1) : -1, w + 1 :]
    scores[:, 0, 1:, 1:w] = upright[:, 0, : w - 1, w + 2 :]
    scores = scores.view(b * h, length, 2 * w + 1)

    # What lies before the start or behind the end.
    position = torch.arange(length, device=q.device)[:, None] + torch.arange(-w, w + 1, device=q.device)
    weights = scores.masked_fill((position < 0) | (position >= t), -torch.inf).softmax(dim=-1)

    # The reverse: each chunk of w rows of weights, slanted back over the 3w values that it sees.
    weights = F.pad(weights.view(b * h, count + 1, w, 2 * w + 1), (0, w)).flatten(2)[..., :-w]
    slanted = weights.view(b * h, count + 1, w, 3 * w)
    padded = F.pad(v, (0, 0, w, w))
    values = padded.as_strided(
        (b * h, count + 1, 3 * w, d), (padded.stride(0), w * padded.stride(1), padded.stride(1), 1)
    )
    return (slanted @ values).view(b, h, length, d)[:, :, :t]


def _chunks(x: Tensor, w: int) -> Tensor:
    """Overlapping chunks of 2w rows every w rows, as a view: [B * H, T / w - 1, 2w, D]."""
    return x.unfold(1, 2 * w, w).transpose(-1, -2)


def sdpa_band_mask(t: int, window: int) -> Attention:
    """PyTorch's attention on T x T scores, with a mask that is made once."""
    position = torch.arange(t)
    mask = (position[:, None] - position).abs() <= window // 2
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def flex_attention(t: int, window: int, device: str = "cpu") -> Attention:
    """PyTorch's FlexAttention, compiled, with a block mask that is made once."""

    def seen(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i - j).abs() <= window // 2

    mask = create_block_mask(seen, None, None, t, t, device=device)
    compiled = torch.compile(torch_flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)
