"""The snippet-level losses, forward and backward, against plain PyTorch: `pytest benchmarks/bench_fused_focal_loss.py`.

The shape is that of a batch of 3 crops of 2304 snippets on 5 levels, 20 classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from potloc_fast import ops, reference

PROVIDERS = {"potloc_fast": ops.fused_focal_loss, "reference": reference.fused_focal_loss}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_forward_backward(benchmark: Any, provider: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3 * 4464, 21, generator=generator).requires_grad_()
    targets = (torch.rand(3 * 4464, 20, generator=generator) > 0.9).float()
    positive = torch.rand(3 * 4464, generator=generator) > 0.5

    def step(loss: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        act, bg = loss(logits, targets, positive, ~positive)
        return torch.autograd.grad(act + bg, logits)[0]

    expected = step(reference.fused_focal_loss)
    torch.testing.assert_close(benchmark(step, PROVIDERS[provider]), expected, rtol=1e-3, atol=1e-6)
