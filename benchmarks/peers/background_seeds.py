"""Background seeds video by video in Python, the form that LACP's and POTLoc's training code takes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def background_seeds_torch(background: Tensor, action: Tensor, threshold: float = 0.95) -> Tensor:
    """A loop over videos and gaps on torch tensors.

    Written from the rule: before the first point everything up to the last snippet over the threshold, after the last
    point everything from the first one, between two points what lies between the first and the last; the most probable
    snippet of a gap where none is over it.
    """
    seeds = torch.zeros_like(action)
    for p, points, out in zip(background, action, seeds, strict=True):
        bounds = [-1, *torch.nonzero(points)[:, 0].tolist(), len(p)]
        for i in range(len(bounds) - 1):
            begin, end = bounds[i] + 1, bounds[i + 1]
            if begin == end:
                continue
            over = torch.nonzero(p[begin:end] > threshold)[:, 0]
            if len(over) == 0:
                out[begin + int(p[begin:end].argmax())] = True
                continue
            first = begin if i == 0 else begin + int(over[0])
            last = end - 1 if i == len(bounds) - 2 else begin + int(over[-1])
            out[first : last + 1] = True
    return seeds


def background_seeds_numpy(background: Tensor, action: Tensor, threshold: float = 0.95) -> Tensor:
    """The same loop on NumPy arrays, whose calls cost less."""
    seeds = torch.zeros_like(action)
    for p, points, out in zip(background.numpy(), action.numpy(), seeds.numpy(), strict=True):
        _mark_row(p, points, out, threshold)
    return seeds


def _mark_row(p: NDArray[np.float32], points: NDArray[np.bool_], out: NDArray[np.bool_], threshold: float) -> None:
    over = np.flatnonzero(p > threshold)
    bounds = [-1, *np.flatnonzero(points).tolist(), len(p)]
    for i in range(len(bounds) - 1):
        begin, end = bounds[i] + 1, bounds[i + 1]
        if begin == end:
            continue
        inside = over[np.searchsorted(over, begin) : np.searchsorted(over, end)]
        if len(inside) == 0:
            out[begin + int(p[begin:end].argmax())] = True
            continue
        first = begin if i == 0 else int(inside[0])
        last = end - 1 if i == len(bounds) - 2 else int(inside[-1])
        out[first : last + 1] = True
