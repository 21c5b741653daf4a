"""The operators in plain PyTorch: slow, short, and what the tests trust."""

from __future__ import annotations

from potloc_fast.reference.background_seeds import background_seeds
from potloc_fast.reference.depthwise_conv import depthwise_conv
from potloc_fast.reference.fused_focal_loss import fused_focal_loss
from potloc_fast.reference.local_attention import local_attention
from potloc_fast.reference.nms import batched_nms, nms, soft_nms
from potloc_fast.reference.score_segments import score_segments
from potloc_fast.reference.sigmoid_focal_loss import sigmoid_focal_loss

__all__ = [
    "background_seeds",
    "batched_nms",
    "depthwise_conv",
    "fused_focal_loss",
    "local_attention",
    "nms",
    "score_segments",
    "sigmoid_focal_loss",
    "soft_nms",
]
