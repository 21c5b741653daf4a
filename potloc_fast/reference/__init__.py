"""The operators in plain PyTorch: slow, short, and what the tests trust."""

from __future__ import annotations

from potloc_fast.reference.fused_focal_loss import fused_focal_loss
from potloc_fast.reference.local_attention import local_attention
from potloc_fast.reference.sigmoid_focal_loss import sigmoid_focal_loss

__all__ = ["fused_focal_loss", "local_attention", "sigmoid_focal_loss"]
