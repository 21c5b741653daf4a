"""Focal losses in eager PyTorch on probabilities, as published training code has them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fused_focal_loss(
    logits: Tensor, targets: Tensor, positive: Tensor, background: Tensor, gamma: float = 2.0
) -> tuple[Tensor, Tensor]:
    """L_Act and L_BG as POTLoc's paper (equations 2, 3 and 9) and LACP write them.

    Written from the equations: sigmoid, the fused probability p (1 - b), a clamp that keeps the logarithms finite,
    and means over the rows that a mask picks. The whole batch at once.
    """
    probability = logits.sigmoid()
    b = probability[:, -1]
    fused = (probability[:, :-1] * (1 - b)[:, None]).clamp(1e-6, 1 - 1e-6)
    miss = fused.pow(gamma) * (1 - fused).log()
    act = (1 - fused).pow(gamma) * targets * fused.log() + miss * (1 - targets)
    bg = miss.sum(1) + (1 - b).pow(gamma) * b.clamp(min=1e-6).log()
    l_act = -(act.sum(1) * positive).sum() / positive.sum().clamp(min=1)
    l_bg = -(bg * background).sum() / background.sum().clamp(min=1)
    return l_act, l_bg


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """The summed focal loss in the form that torchvision documents (Lin et al. 2017), written from its formula."""
    p = torch.sigmoid(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    loss = entropy * (1 - p_t) ** gamma
    return ((alpha * targets + (1 - alpha) * (1 - targets)) * loss).sum()
