"""Background seeds of a batch of recordings in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness import Case, Work
from benchmarks.peers.background_seeds import background_seeds_numpy, background_seeds_torch
from potloc_fast import ops

VIDEOS, LENGTH, POINTS = 64, 2304, 15


def _check(ours: Tensor, theirs: Tensor) -> None:
    assert torch.equal(ours, theirs)


def _setup() -> Work:
    generator = torch.Generator().manual_seed(0)
    # Runs of background and action, as a trained model gives: smooth curves that often pass the threshold.
    noise = torch.randn(VIDEOS, 1, LENGTH + 30, generator=generator)
    background = (2 + 4 * torch.nn.functional.avg_pool1d(noise, 31, stride=1)[:, 0] * 31**0.5).sigmoid()
    places = torch.rand(VIDEOS, LENGTH, generator=generator).argsort(dim=1)[:, :POINTS]
    action = torch.zeros(VIDEOS, LENGTH, dtype=torch.bool).scatter_(1, places, True)
    return Work(
        ours=lambda: ops.background_seeds(background, action, [LENGTH]),
        peers={
            "loop in PyTorch": lambda: background_seeds_torch(background, action),
            "loop in NumPy": lambda: background_seeds_numpy(background, action),
        },
        check=_check,
    )


CASES = [
    Case(
        "seeds",
        "background_seeds",
        f"{VIDEOS} videos x {LENGTH:,}, {POINTS} points each",
        "float32",
        _setup,
        {"loop in PyTorch": 50.0},
    ),
]
