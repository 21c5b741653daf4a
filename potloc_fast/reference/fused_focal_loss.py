"""The snippet-level losses of POTLoc in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fused_focal_loss(
    logits: Tensor, targets: Tensor, positive: Tensor, background: Tensor, gamma: float = 2.0
) -> tuple[Tensor, Tensor]:
    """L_Act (equations 2 and 9) and L_BG (equation 3) on the fused probabilities p_c (1 - b).

    Args and returns are those of `potloc_fast.ops.fused_focal_loss`.
    """
    x, z = logits[:, :-1], logits[:, -1:]
    # log p^ = log sigmoid(x) + log sigmoid(-z), and
    # 1 - p^ = (e^-x + e^z + e^(z-x)) / ((1 + e^-x)(1 + e^z)), both exact in log space for any logits.
    log_p = F.logsigmoid(x) + F.logsigmoid(-z)
    log_q = torch.logsumexp(torch.stack([-x, z.expand_as(x), z - x]), dim=0) - F.softplus(-x) - F.softplus(z)
    log_b = F.logsigmoid(z[:, 0])
    act = -targets * (gamma * log_q).exp() * log_p - (1 - targets) * (gamma * log_p).exp() * log_q
    bg = -((gamma * log_p).exp() * log_q).sum(1) - (gamma * F.logsigmoid(-z[:, 0])).exp() * log_b
    zero = logits.sum() * 0
    l_act = act.sum(1)[positive].mean() if positive.any() else zero
    l_bg = bg[background].mean() if background.any() else zero
    return l_act, l_bg
