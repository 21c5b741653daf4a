"""The focal loss of dense detection."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from potloc_fast.ops import _library  # noqa: F401 (registers the operators)
from potloc_fast.ops._autograd import refuse_double_backward
from potloc_fast.ops._checks import autocast_dtype, check_dense, check_floating

_OP = "sigmoid_focal_loss"
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "none"
) -> Tensor:
    """Focal loss alpha_t (1 - p_t)^gamma BCE(p, t) with p = sigmoid(logits) (Lin et al. 2017), in log space.

    The arguments mean what they mean in torchvision. Each element's loss and gradient are finite for every finite
    logit; "sum" and "mean" are infinite where the sum exceeds the largest number. Sums repeat bit for bit. Half types
    are computed in float32; under autocast the loss is float32.

    Args:
        logits: raw scores, a tensor of any shape, of float32, float64, bfloat16 or float16.
        targets: in [0, 1], of the shape and dtype of `logits`; no gradient passes to them.
        alpha: weight of the positives in [0, 1]; a negative one leaves both sides unweighted.
        gamma: focusing parameter, 0 or more.
        reduction: "none", "mean" or "sum".

    Returns:
        The loss: of the shape of `logits`, or a scalar.

    Raises:
        ValueError: a shape, the device, `gamma` or `reduction` is wrong.
        TypeError: a dtype is wrong.

    Example:
        >>> sigmoid_focal_loss(torch.zeros(3), torch.tensor([0.0, 1.0, 1.0]), reduction="sum")
        tensor(0.2166)
    """
    check_dense(_OP, logits=logits, targets=targets)
    if autocast_dtype(logits) is not None:
        logits = logits.float()
    targets = targets.to(logits.dtype)
    check_floating(_OP, logits=logits, targets=targets)
    if targets.shape != logits.shape:
        raise ValueError(
            f"{_OP}: targets must have the shape of logits, {list(logits.shape)}, got {list(targets.shape)}"
        )
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{_OP}: reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
    if not gamma >= 0:
        raise ValueError(f"{_OP}: gamma must be 0 or more, got {gamma}")
    loss: Tensor = torch.ops.potloc_fast.sigmoid_focal_loss(
        logits.contiguous(), targets.contiguous(), alpha, gamma, _REDUCTIONS[reduction]
    )
    return loss


@torch.library.register_fake("potloc_fast::sigmoid_focal_loss")
def _(logits: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: int) -> Tensor:
    return torch.empty_like(logits) if reduction == 0 else logits.new_empty(())


@torch.library.register_fake("potloc_fast::_sigmoid_focal_loss_backward")
def _(grad: Tensor, logits: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: int) -> Tensor:
    return torch.empty_like(logits)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, targets, ctx.alpha, ctx.gamma, ctx.reduction = inputs
    ctx.save_for_backward(logits, targets)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    logits, targets = ctx.saved_tensors
    grad_logits = torch.ops.potloc_fast._sigmoid_focal_loss_backward(
        grad, logits, targets, ctx.alpha, ctx.gamma, ctx.reduction
    )
    return grad_logits, None, None, None, None


torch.library.register_autograd("potloc_fast::sigmoid_focal_loss", _backward, setup_context=_setup_context)
refuse_double_backward("potloc_fast::_sigmoid_focal_loss_backward")
