"""The convolutions in front of queries, keys and values, beside PyTorch's own and a copy of as many bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_cuda import all_replayed, copied, need_gpu
from benchmarks.harness import Case, Work
from benchmarks.peers import depthwise_conv as peers
from potloc_fast import ops

BATCH, LENGTH, CHANNELS, FILTERS = 3, 2304, 512, 3
Conv = Callable[[Tensor, Tensor, Tensor], list[Tensor]]


def _ours(x: Tensor, weight: Tensor, mask: Tensor) -> list[Tensor]:
    return ops.depthwise_conv(x, weight, mask=mask)


def _setup(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Work:
    """Without padding, but with a mask, as most batches come."""
    if device == "cuda":
        need_gpu()
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    x = normal(BATCH, LENGTH, CHANNELS).to(dtype).requires_grad_()
    weight = normal(FILTERS, 3, CHANNELS).requires_grad_()
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool, device=device)
    grads = [normal(BATCH, LENGTH, CHANNELS).to(dtype) for _ in range(FILTERS)]

    def run(conv: Conv) -> list[Tensor]:
        out = conv(x, weight, mask)
        return [*(one.detach() for one in out), *torch.autograd.grad(out, [x, weight], grads)]

    moved = (1 + FILTERS) + (FILTERS + 2)  # x and the outputs; the gradients of the outputs, x again and its own
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2

    def check(found: Sequence[Tensor], others: Any) -> None:
        if isinstance(others, list):
            for one, other in zip(found, others, strict=True):
                scale = other.abs().max().item()
                torch.testing.assert_close(one.float(), other.float(), rtol=tolerance, atol=tolerance * scale)

    others: dict[str, Callable[[], Any]] = {
        "conv2d, channels last": partial(run, peers.conv2d),
        "conv1d": partial(run, peers.conv1d),
        "copy of as many bytes": copied(moved, x),
    }
    if device == "cuda":
        return all_replayed(partial(run, _ours), others, check)
    return Work(partial(run, _ours), others, check)


# No case of forward alone: it hangs on how the system comes by memory for the outputs, so that conv2d took 0.5 to 3.6
# times as long, run by run.
WHAT = "depthwise_conv, 3 filters, forward and backward"
ON = f"B {BATCH}, T {LENGTH}, C {CHANNELS}"
GOALS = {"conv2d, channels last": 2.0}
CASES = [
    Case("conv-fwdbwd", WHAT, ON, "float32", _setup, GOALS),
    Case(
        "cuda-conv-fwdbwd",
        f"{WHAT}, replayed",
        ON,
        "bfloat16",
        partial(_setup, torch.bfloat16, "cuda"),
        {**GOALS, "copy of as many bytes": 0.6},
        device="cuda",
    ),
]
