"""The snippet-level losses and the focal loss of dense detection, forward and backward."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.harness import Case, Work
from benchmarks.peers import focal as peers
from potloc_fast import ops, reference

CLASSES = 20


def _check(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Losses agree; so do gradients, whose size is that of one in as many as there are elements."""
    *losses, grad = ours
    *their_losses, their_grad = theirs
    torch.testing.assert_close(losses, their_losses, rtol=1e-4, atol=0)
    scale = their_grad.abs().max().item()
    torch.testing.assert_close(grad, their_grad, rtol=1e-3, atol=1e-4 * scale)


def _fused(rows: int, dtype: torch.dtype = torch.float32, compiled: bool = False) -> Work:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, CLASSES + 1, generator=generator).to(dtype).requires_grad_()
    targets = (torch.rand(rows, CLASSES, generator=generator) > 0.9).to(dtype)
    positive = torch.rand(rows, generator=generator) > 0.5

    def step(loss: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            act, bg = loss(logits, targets, positive, ~positive)
            return [act.detach(), bg.detach(), *torch.autograd.grad(act + bg, logits)]

        return run

    def parts() -> Mapping[str, float]:
        begin = time.perf_counter()
        act, bg = ops.fused_focal_loss(logits, targets, positive, ~positive)
        middle = time.perf_counter()
        torch.autograd.grad(act + bg, logits)
        return {"forward": middle - begin, "backward": time.perf_counter() - middle}

    others = {"eager on probabilities": step(peers.fused_focal_loss), "reference": step(reference.fused_focal_loss)}
    if compiled:
        others = {"torch.compile of reference": step(torch.compile(reference.fused_focal_loss))}
    return Work(step(ops.fused_focal_loss), others, _check, parts)


def _sigmoid(shape: tuple[int, ...]) -> Work:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).requires_grad_()
    targets = (torch.rand(shape, generator=generator) > 0.9).float()

    def step(loss: Callable[..., Tensor]) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            total = loss(logits, targets)
            return [total.detach(), *torch.autograd.grad(total, logits)]

        return run

    def ours(logits: Tensor, targets: Tensor) -> Tensor:
        return ops.sigmoid_focal_loss(logits, targets, reduction="sum")

    return Work(step(ours), {"eager, torchvision's formula": step(peers.sigmoid_focal_loss)}, _check)


ROWS = 3 * 4464
ON = f"3 x 4,464 x {CLASSES + 1}"
WHAT = "fused_focal_loss, forward and backward"
GOAL = {"eager on probabilities": 6.0}
CASES = [
    Case("focal", WHAT, ON, "float32", lambda: _fused(ROWS), GOAL),
    Case("focal-1m", WHAT, f"1M x {CLASSES + 1}", "float32", lambda: _fused(10**6), GOAL, slow=True),
    Case("focal-compile", WHAT, ON, "float32", lambda: _fused(ROWS, compiled=True), slow=True),
    Case(
        "sigmoid-focal",
        "sigmoid_focal_loss, sum, forward and backward",
        f"3 x 4,464 x {CLASSES}",
        "float32",
        lambda: _sigmoid((3, 4464, CLASSES)),
    ),
]
