"""Background seeds in plain PyTorch, gap by gap."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def background_seeds(
    background: Tensor,
    action: Tensor,
    level_lengths: Sequence[int],
    threshold: float = 0.95,
    mask: Tensor | None = None,
    outer_argmax: bool = True,
) -> Tensor:
    """Seeds of L_BG between confident background snippets (LACP).

    Args and returns are those of `potloc_fast.ops.background_seeds`.
    """
    seeds = torch.zeros_like(action)
    mask = torch.ones_like(action) if mask is None else mask
    lengths = list(level_lengths)
    for row in range(background.shape[0]):
        for p, a, m, out in zip(
            torch.split(background[row], lengths),
            torch.split(action[row], lengths),
            torch.split(mask[row], lengths),
            torch.split(seeds[row], lengths),
            strict=True,
        ):
            out[m] = _row_seeds(p[m], a[m], threshold, outer_argmax)
    return seeds


def _row_seeds(p: Tensor, action: Tensor, threshold: float, outer_argmax: bool) -> Tensor:
    seeds = torch.zeros_like(action)
    over = p > threshold
    bounds = [-1, *action.nonzero().flatten().tolist(), len(p)]
    for i, (left, right) in enumerate(pairwise(bounds)):
        gap = range(left + 1, right)
        leading, trailing = i == 0, i == len(bounds) - 2
        outer = leading != trailing  # a row without action is one gap, and counts as an inner one
        hits = [t for t in gap if over[t]]
        if hits:
            first = gap[0] if outer and leading else hits[0]
            last = gap[-1] if outer and trailing else hits[-1]
            seeds[first : last + 1] = True
        elif outer_argmax or not outer:
            numbers = [t for t in gap if not p[t].isnan()]
            if numbers:
                seeds[max(numbers, key=lambda t: p[t].item())] = True  # the first where several are equal
    return seeds
