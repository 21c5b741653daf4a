"""Operators on tensors, with CPU kernels and gradients. `potloc_fast.reference` has each in plain PyTorch."""

from __future__ import annotations

from potloc_fast.ops.fused_focal_loss import fused_focal_loss
from potloc_fast.ops.local_attention import local_attention
from potloc_fast.ops.sigmoid_focal_loss import sigmoid_focal_loss

__all__ = ["fused_focal_loss", "local_attention", "sigmoid_focal_loss"]
