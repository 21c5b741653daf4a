"""Banded multi-head self-attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from potloc_fast.ops import _library  # noqa: F401 (registers the operators)
from potloc_fast.ops._autograd import refuse_double_backward
from potloc_fast.ops._checks import autocast_dtype, check_dense, check_device, check_dtype, check_floating, check_shape

_OP = "local_attention"


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attend from every position to those at most `window // 2` away: Softmax(Q K^T / sqrt(D)) V within a band.

    Time and memory grow with T * window, never with T * T. The band is clipped at both ends of the sequence. Results
    and gradients repeat bit for bit. Under autocast q, k and v are cast to the autocast dtype; half types accumulate
    in float32.

    Args:
        q: queries, `Tensor[B, H, T, D]` of float32, float64, bfloat16 or float16. Any strides are read in place as
            long as the last dimension is contiguous; so are those of the output's gradient.
        k: keys, like `q`.
        v: values, like `q`.
        window: width of the band in positions, odd; it may exceed T.
        key_mask: `Tensor[B, T]` of bool, False for keys to leave out. A query all of whose keys are left out gets
            zeros.
        scale: factor on the scores; 1 / sqrt(D) where it is None.

    Returns:
        `Tensor[B, H, T, D]`, laid out in memory as `q` is: dense, its dimensions in the order of `q`'s strides and D
        innermost. The gradients of q, k and v are laid out as these are.

    Raises:
        ValueError: a shape, the device or the window is wrong.
        TypeError: a dtype is wrong.

    Example:
        >>> q = k = v = torch.ones(1, 2, 5, 4)
        >>> local_attention(q, k, v, window=3).shape
        torch.Size([1, 2, 5, 4])
    """
    check_dense(_OP, q=q, k=k, v=v)
    if (dtype := autocast_dtype(q)) is not None:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    check_floating(_OP, q=q, k=k, v=v)
    check_shape(_OP, "q", q, "B, H, T, D", (-1, -1, -1, -1))
    for name, tensor in (("k", k), ("v", v)):
        check_shape(_OP, name, tensor, "B, H, T, D", q.shape)
    if not 1 <= q.shape[-1] <= 256:
        raise ValueError(f"{_OP}: the head width D must be from 1 to 256, got {q.shape[-1]}")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"{_OP}: window must be odd and positive, got {window}")
    if key_mask is not None:
        check_dtype(_OP, "key_mask", key_mask, torch.bool)
        check_device(_OP, "key_mask", key_mask, q)
        check_shape(_OP, "key_mask", key_mask, "B, T", (q.shape[0], q.shape[2]))
        key_mask = key_mask.contiguous()
    # Not contiguous(): it leaves an empty tensor its strides.
    q, k, v = (
        tensor if tensor.stride(-1) == 1 else tensor.clone(memory_format=torch.contiguous_format)
        for tensor in (q, k, v)
    )
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    out: Tensor = torch.ops.potloc_fast.local_attention(q, k, v, window, key_mask, scale)[0]
    return out


def _empty_as(like: Tensor) -> Tensor:
    """What `empty_as` in csrc/ops/local_attention.cpp allocates."""
    strides, step = [0, 0, 0, 1], like.shape[3]
    for dim in sorted((2, 1, 0), key=like.stride):
        strides[dim] = step
        step *= like.shape[dim]
    return like.new_empty_strided(like.shape, strides)


@torch.library.register_fake("potloc_fast::local_attention")
def _(q: Tensor, k: Tensor, v: Tensor, window: int, key_mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return _empty_as(q), q.new_empty(q.shape[:3], dtype=lse_dtype)


@torch.library.register_fake("potloc_fast::_local_attention_backward")
def _(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    window: int,
    key_mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_as(q), _empty_as(k), _empty_as(v)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.window, key_mask, ctx.scale = inputs
    lse = output[1]
    ctx.save_for_backward(q, k, v, lse, key_mask)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 6
    q, k, v, lse, key_mask = ctx.saved_tensors
    grads = torch.ops.potloc_fast._local_attention_backward(grad_out, q, k, v, lse, ctx.window, key_mask, ctx.scale)
    return (*grads, None, None, None)


torch.library.register_autograd("potloc_fast::local_attention", _backward, setup_context=_setup_context)
refuse_double_backward("potloc_fast::_local_attention_backward")
