"""A convolution of width 3 with two thirds of the multiplications: Winograd's minimal filtering F(2, 3).

Snippets are taken in pairs, "even" and "odd". With taps w0, w1, w2, of which the first meets the earliest snippet,

    p = (odd + even) (w0 + w1 + w2) / 2    q = (odd - even) (w0 - w1 + w2) / 2    a = odd w0    b = even w2

the outputs of pair t are p[t] + q[t] + a[t - 1] - a[t] and p[t] - q[t] + b[t + 1] - b[t]. Each of p, q, a, b is a
matrix product over all channels, with half as many rows as there are snippets; a and b read the snippets in place.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from potloc_fast.ops._checks import autocast_dtype


def conv3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve over time, with zeros before the first and after the last snippet.

    Args:
        x: `Tensor[B, T, I]`.
        weight: `Tensor[3, O, I]`, one matrix a tap, that of the earliest snippet first.
        bias: `Tensor[O]`.

    Returns:
        `Tensor[B, T, O]` of the dtype of `x`, or that of autocast.
    """
    if (dtype := autocast_dtype(x)) is not None:
        x = x.to(dtype)
    length = x.shape[1]
    if length % 2:
        x = F.pad(x, (0, 0, 0, 1))
    out: Tensor = _Conv3.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out[:, :length]


def _transformed(weight: Tensor, dtype: torch.dtype) -> list[Tensor]:
    outer, inner = (weight[0] + weight[2]) / 2, weight[1] / 2
    return [matrix.to(dtype) for matrix in (weight[0], outer + inner, outer - inner, weight[2])]


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """The even and the odd snippets of `Tensor[B, T, C]`, `Tensor[B * T / 2, C]` each."""
    even, odd = x.reshape(-1, 2, x.shape[2]).unbind(1)
    return even, odd


def _add_change(to: Tensor, x: Tensor, pairs: int, lag: int) -> None:
    """Add x[t - lag] - x[t] to to[t] in recordings of `pairs` rows, with zeros beyond their ends."""
    to -= x
    to, x = to.view(-1, pairs, to.shape[1]), x.view(-1, pairs, x.shape[1])
    if lag == 1:
        to[:, 1:] += x[:, :-1]
    else:
        to[:, :-1] += x[:, 1:]


class _Conv3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        even, odd = _pairs(x)
        w = [matrix.t() for matrix in _transformed(weight, x.dtype)]
        p, q = (odd + even) @ w[1], (odd - even) @ w[2]
        if bias is not None:
            p += bias
        out = x.new_empty(*x.shape[:2], weight.shape[1])
        out_even, out_odd = _pairs(out)
        out_even.copy_(p).add_(q)
        out_odd.copy_(p).sub_(q)
        _add_change(out_even, odd @ w[0], x.shape[1] // 2, lag=1)
        _add_change(out_odd, even @ w[3], x.shape[1] // 2, lag=-1)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        even, odd = _pairs(x)
        grad_even, grad_odd = _pairs(grad)
        p, q = grad_even + grad_odd, grad_even - grad_odd
        a, b = torch.zeros_like(p), torch.zeros_like(p)
        _add_change(a, grad_even, x.shape[1] // 2, lag=-1)
        _add_change(b, grad_odd, x.shape[1] // 2, lag=1)
        products = (a.t() @ odd, p.t() @ (odd + even), q.t() @ (odd - even), b.t() @ even)
        first, plus, minus, last = (product.to(weight.dtype) for product in products)
        outer = (plus + minus) / 2
        grad_weight = torch.stack([first + outer, (plus - minus) / 2, last + outer])
        grad_bias = grad.sum((0, 1), dtype=weight.dtype) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, grad_bias
        w = _transformed(weight, x.dtype)
        p, q = p @ w[1], q @ w[2]
        grad_x = x.new_empty(x.shape)
        x_even, x_odd = _pairs(grad_x)
        x_even.copy_(p).sub_(q).addmm_(b, w[3])
        x_odd.copy_(p).add_(q).addmm_(a, w[0])
        return grad_x, grad_weight, grad_bias
