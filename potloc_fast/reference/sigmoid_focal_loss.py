"""The focal loss in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "none"
) -> Tensor:
    """alpha_t (1 - p_t)^gamma * BCE(p, t), with p = sigmoid(logits), p_t = p t + (1 - p)(1 - t) (Lin et al. 2017).

    Args and returns are those of `potloc_fast.ops.sigmoid_focal_loss`.
    """
    p = logits.sigmoid()
    # 1 - p_t without the cancellation: sigmoid(-x) where the target is 1.
    miss = targets * (-logits).sigmoid() + (1 - targets) * p
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * miss**gamma
    if alpha >= 0:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]
