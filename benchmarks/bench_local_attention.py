"""Local attention, beside the forms that others use. The shape is the paper's on THUMOS'14."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Case, Scaling, Work
from benchmarks.peers import attention as peers
from potloc_fast import ops, reference

B, H, T, D, WINDOW = 3, 4, 2304, 128, 19
SHAPE = f"B {B}, H {H}, T {T}, D {D}, window {WINDOW}"

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def normal(*shape: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(4)]


def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ops.local_attention(q, k, v, WINDOW)


def sliding_chunks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return peers.sliding_chunks(q, k, v, WINDOW)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return reference.local_attention(q, k, v, WINDOW)


def eager() -> dict[str, Attention]:
    return {"sliding_chunks": sliding_chunks, "sdpa_band_mask": peers.sdpa_band_mask(T, WINDOW)}


def eager_forward() -> dict[str, Attention]:
    # With its backward, the reference takes seconds.
    return {**eager(), "reference": plain}


def compiled_forward() -> dict[str, Attention]:
    return {"reference_compiled": torch.compile(plain), "flex_attention": peers.flex_attention(T, WINDOW)}


def compiled_backward() -> dict[str, Attention]:
    # FlexAttention has no backward on the CPU.
    return {"reference_compiled": torch.compile(plain)}


def forward(others: Callable[[], dict[str, Attention]]) -> Work:
    q, k, v, _ = normal(B, H, T, D, dtype=torch.float32)
    check = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    calls = {name: partial(attention, q, k, v) for name, attention in others().items()}
    return Work(partial(ours, q, k, v), calls, check)


def forward_backward(others: Callable[[], dict[str, Attention]]) -> Work:
    *qkv, grad = normal(B, H, T, D, dtype=torch.float32)
    for tensor in qkv:
        tensor.requires_grad_()

    def step(attention: Attention) -> tuple[Tensor, ...]:
        out = attention(*qkv)
        return (out.detach(), *torch.autograd.grad(out, qkv, grad))

    check = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4)
    return Work(partial(step, ours), {name: partial(step, attention) for name, attention in others().items()}, check)


def half(dtype: torch.dtype) -> Work:
    q, k, v, _ = normal(B, H, T, D, dtype=dtype)
    exact = [tensor.float() for tensor in (q, k, v)]

    def check(found: Tensor, other: Tensor) -> None:
        torch.testing.assert_close(found.float(), other.float(), rtol=2e-2, atol=2e-2)

    others = {"float32": partial(ours, *exact), "sliding_chunks": partial(sliding_chunks, q, k, v)}
    return Work(partial(ours, q, k, v), others, check)


def growing(length: int) -> Work:
    q, k, v, _ = normal(1, 1, length, 64, dtype=torch.float32)
    others: dict[str, Attention] = {"sliding_chunks": sliding_chunks}
    if length <= 2**12:
        others["sdpa_band_mask"] = peers.sdpa_band_mask(length, WINDOW)
    check = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    return Work(partial(ours, q, k, v), {name: partial(call, q, k, v) for name, call in others.items()}, check)


FORWARD, BOTH = "local_attention, forward", "local_attention, forward and backward"

CASES: list[Case | Scaling] = [
    Case(
        "attn-fwd",
        FORWARD,
        SHAPE,
        "float32",
        partial(forward, eager_forward),
        goals={"sliding_chunks": 20, "sdpa_band_mask": 60},
    ),
    Case("attn-fwdbwd", BOTH, SHAPE, "float32", partial(forward_backward, eager), goals={"sliding_chunks": 30}),
    Case("attn-fwd-compiled", FORWARD, SHAPE, "float32", partial(forward, compiled_forward), slow=True),
    Case("attn-fwdbwd-compiled", BOTH, SHAPE, "float32", partial(forward_backward, compiled_backward), slow=True),
    Case("attn-bf16", FORWARD, SHAPE, "bfloat16", partial(half, torch.bfloat16), goals={"float32": 1.0}),
    Case("attn-fp16", FORWARD, SHAPE, "float16", partial(half, torch.float16), goals={"float32": 1.0}),
    Scaling(
        "attn-scale",
        FORWARD,
        "T",
        "float32",
        [2**power for power in range(10, 21)],
        growing,
        spread=0.15,
        steady=2**12,
        slow=True,
    ),
]
