"""The snippet-level losses of POTLoc, from raw logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from potloc_fast.ops import _library  # noqa: F401 (registers the operators)
from potloc_fast.ops._autograd import refuse_double_backward
from potloc_fast.ops._checks import autocast_dtype, check_dense, check_device, check_dtype, check_floating, check_shape

_OP = "fused_focal_loss"


def fused_focal_loss(
    logits: Tensor, targets: Tensor, positive: Tensor, background: Tensor, gamma: float = 2.0
) -> tuple[Tensor, Tensor]:
    """L_Act (equations 2 and 9) and L_BG (equation 3) in one pass, and their gradient in another.

    With p = sigmoid of a class's logit and b = sigmoid of the background's, the fused probability is P = p (1 - b), and

        L_Act = -mean over positive rows, sum over c of (1 - P)^gamma t log P + P^gamma (1 - t) log(1 - P)
        L_BG  = -mean over background rows of (sum over c of P^gamma log(1 - P)) + (1 - b)^gamma log b

    P and 1 - P are formed in log space: the gradient is finite for every finite logit, and a loss is infinite only
    where the sum that it is the mean of exceeds the largest number. A loss without rows is zero. Sums repeat bit for
    bit. Half types are computed in float32; under autocast the losses are float32.

    Args:
        logits: `Tensor[N, C + 1]` of float32, float64, bfloat16 or float16; the last column is the background.
        targets: `Tensor[N, C]` in [0, 1]; no gradient passes to them.
        positive: `Tensor[N]` of bool, the rows of L_Act.
        background: `Tensor[N]` of bool, the rows of L_BG; a row may be both or neither.
        gamma: focusing parameter, 0 or more.

    Returns:
        L_Act and L_BG, scalars.

    Raises:
        ValueError: a shape, the device or `gamma` is wrong.
        TypeError: a dtype is wrong.

    Example:
        >>> logits = torch.zeros(2, 3)
        >>> rows = torch.tensor([True, False])
        >>> fused_focal_loss(logits, torch.ones(2, 2), rows, ~rows)
        (tensor(1.5596), tensor(0.2092))
    """
    check_dense(_OP, logits=logits, targets=targets)
    if autocast_dtype(logits) is not None:
        logits = logits.float()
    targets = targets.to(logits.dtype)
    check_floating(_OP, logits=logits, targets=targets)
    check_shape(_OP, "logits", logits, "N, C + 1", (-1, -1))
    if logits.shape[1] == 0:
        raise ValueError(f"{_OP}: logits must have shape [N, C + 1], got {list(logits.shape)}")
    check_shape(_OP, "targets", targets, "N, C", (logits.shape[0], logits.shape[1] - 1))
    for name, rows in (("positive", positive), ("background", background)):
        check_dtype(_OP, name, rows, torch.bool)
        check_device(_OP, name, rows, logits)
        check_shape(_OP, name, rows, "N", logits.shape[:1])
    if not gamma >= 0:
        raise ValueError(f"{_OP}: gamma must be 0 or more, got {gamma}")
    act, bg, _ = torch.ops.potloc_fast.fused_focal_loss(
        logits.contiguous(), targets.contiguous(), positive.contiguous(), background.contiguous(), gamma
    )
    return act, bg


@torch.library.register_fake("potloc_fast::fused_focal_loss")
def _(
    logits: Tensor, targets: Tensor, positive: Tensor, background: Tensor, gamma: float
) -> tuple[Tensor, Tensor, Tensor]:
    return logits.new_empty(()), logits.new_empty(()), logits.new_empty((2,), dtype=torch.int64)


@torch.library.register_fake("potloc_fast::_fused_focal_loss_backward")
def _(
    grad_act: Tensor,
    grad_bg: Tensor,
    counts: Tensor,
    logits: Tensor,
    targets: Tensor,
    positive: Tensor,
    background: Tensor,
    gamma: float,
) -> Tensor:
    return torch.empty_like(logits)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.gamma = inputs
    counts = output[2]
    ctx.save_for_backward(counts, *tensors)
    ctx.mark_non_differentiable(counts)


def _backward(ctx: Any, grad_act: Tensor, grad_bg: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_logits = torch.ops.potloc_fast._fused_focal_loss_backward(grad_act, grad_bg, *ctx.saved_tensors, ctx.gamma)
    return grad_logits, None, None, None, None


torch.library.register_autograd("potloc_fast::fused_focal_loss", _backward, setup_context=_setup_context)
refuse_double_backward("potloc_fast::_fused_focal_loss_backward")
