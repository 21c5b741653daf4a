"""Local attention against the same in plain PyTorch: `pytest benchmarks/bench_local_attention.py`.

The shape is that of the paper's model on THUMOS'14: batch 3, 4 heads of width 128, 2304 snippets, window 19.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from potloc_fast import ops, reference

WINDOW = 19
PROVIDERS = {"potloc_fast": ops.local_attention, "reference": reference.local_attention}


@pytest.fixture(scope="module")
def qkv() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, 2304, 128, generator=generator).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_forward(benchmark: Any, provider: str, qkv: list[Tensor]) -> None:
    with torch.no_grad():
        expected = reference.local_attention(*qkv, WINDOW)
        out = benchmark(PROVIDERS[provider], *qkv, WINDOW)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_forward_backward(benchmark: Any, provider: str, qkv: list[Tensor]) -> None:
    def step(attention: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(attention(*qkv, WINDOW).square().sum(), qkv)

    expected = step(reference.local_attention)
    for grad, want in zip(benchmark(step, PROVIDERS[provider]), expected, strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-3, atol=1e-4)
