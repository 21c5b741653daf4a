"""Depthwise convolutions of width 3 over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from potloc_fast.ops import _library  # noqa: F401 (registers the operators)
from potloc_fast.ops._autograd import refuse_double_backward
from potloc_fast.ops._checks import autocast_dtype, check_dense, check_device, check_dtype, check_floating, check_shape

_OP = "depthwise_conv"
_MOST_FILTERS = 3


def depthwise_conv(x: Tensor, weight: Tensor, stride: int = 1, mask: Tensor | None = None) -> list[Tensor]:
    """Apply N filters of width 3 to the same sequences: out[n][b, t] = sum_k weight[n, k] x[b, t * stride + k - 1].

    Each channel is on its own, and what lies beyond the ends counts as zero. All filters take one pass over `x`, and
    one over its gradient. Results and gradients repeat bit for bit. Half types accumulate in float32, in which they
    take the weights and return their gradient; autocast casts `x` alone. An infinity reaches what reads it and nothing
    else: `weight`'s gradient for a tap depends on the snippets that this tap reads.

    Args:
        x: `Tensor[B, T, C]` of float32, float64, bfloat16 or float16.
        weight: filters, `Tensor[N, 3, C]`, the tap of the earliest snippet first; N is 1 to 3.
        stride: 1, or 2 to halve the length.
        mask: `Tensor[B, T]` of bool, False for snippets that count as zero, whatever they hold; no gradient passes to
            them.

    Returns:
        N tensors `[B, ceil(T / stride), C]` of the dtype of `x`.

    Raises:
        ValueError: a shape, the device or the stride is wrong.
        TypeError: a dtype is wrong.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1)
        >>> (out,) = depthwise_conv(x, torch.tensor([10.0, 1.0, 0.0]).view(1, 3, 1))
        >>> out.flatten()
        tensor([ 1., 12., 23.])
    """
    check_dense(_OP, x=x, weight=weight)
    if (dtype := autocast_dtype(x)) is not None:
        x = x.to(dtype)
    check_floating(_OP, x=x)
    check_floating(_OP, weight=weight)
    check_device(_OP, "weight", weight, x)
    check_shape(_OP, "x", x, "B, T, C", (-1, -1, -1))
    check_shape(_OP, "weight", weight, "N, 3, C", (-1, 3, x.shape[2]))
    if not 1 <= weight.shape[0] <= _MOST_FILTERS:
        raise ValueError(f"{_OP}: weight must hold 1 to {_MOST_FILTERS} filters, got {weight.shape[0]}")
    if stride not in (1, 2):
        raise ValueError(f"{_OP}: stride must be 1 or 2, got {stride}")
    if mask is not None:
        check_dtype(_OP, "mask", mask, torch.bool)
        check_device(_OP, "mask", mask, x)
        check_shape(_OP, "mask", mask, "B, T", x.shape[:2])
        mask = mask.contiguous()
    weight = weight.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    out: list[Tensor] = torch.ops.potloc_fast.depthwise_conv(x.contiguous(), weight.contiguous(), stride, mask)
    return out


@torch.library.register_fake("potloc_fast::depthwise_conv")
def _(x: Tensor, weight: Tensor, stride: int, mask: Tensor | None) -> list[Tensor]:
    return [x.new_empty(x.shape[0], (x.shape[1] + stride - 1) // stride, x.shape[2]) for _ in range(weight.shape[0])]


@torch.library.register_fake("potloc_fast::_depthwise_conv_backward")
def _(grads: Sequence[Tensor], x: Tensor, weight: Tensor, stride: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    x, weight, ctx.stride, mask = inputs
    ctx.save_for_backward(x, weight, mask)


def _backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    x, weight, mask = ctx.saved_tensors
    grad_x, grad_weight = torch.ops.potloc_fast._depthwise_conv_backward(grads, x, weight, ctx.stride, mask)
    return grad_x, grad_weight, None, None


torch.library.register_autograd("potloc_fast::depthwise_conv", _backward, setup_context=_setup_context)
refuse_double_backward("potloc_fast::_depthwise_conv_backward")
