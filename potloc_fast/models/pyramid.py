"""What every model returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pyramid:
    """Scores at all levels, level after level along the time axis.

    Level l has stride 2**l: its snippet j stands at snippet j * 2**l of the input. A model without a pyramid has one
    level.

    Attributes:
        logits: `Tensor[B, T, C + 1]`, T the sum of the levels' lengths; the last channel is the background.
        mask: `Tensor[B, T]` of bool, True where a snippet is real.
        level_lengths: the length of each level, T_l = ceil(T_0 / 2**l).
        distances: `Tensor[B, T, 2]`, what a boundary head says: from each snippet back to the start of the action that
            it lies in and on to its end, positive, in snippets of level 0.
    """

    logits: Tensor
    mask: Tensor
    level_lengths: tuple[int, ...]
    distances: Tensor | None = None

    def levels(self) -> list[tuple[Tensor, Tensor]]:
        """The logits and the mask of each level."""
        logits, mask = (self.split(tensor) for tensor in (self.logits, self.mask))
        return list(zip(logits, mask, strict=True))

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The parts of a `Tensor[B, T, ...]` that belong to each level."""
        return torch.split(tensor, list(self.level_lengths), dim=1)


def snippet_times(level_lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the snippets of all levels stand on the grid, and their strides: two `Tensor[T]` of float32."""
    index = torch.cat([torch.arange(length, device=device) for length in level_lengths])
    stride = torch.cat([torch.full((n,), 2.0**level, device=device) for level, n in enumerate(level_lengths)])
    return index * stride + 0.5, stride
