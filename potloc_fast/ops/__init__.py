"""Operators on tensors, with kernels for the CPU and CUDA, and gradients; `potloc_fast.reference` has them plain."""

from __future__ import annotations

from potloc_fast.ops.background_seeds import background_seeds
from potloc_fast.ops.depthwise_conv import depthwise_conv
from potloc_fast.ops.fused_focal_loss import fused_focal_loss
from potloc_fast.ops.local_attention import local_attention
from potloc_fast.ops.nms import batched_nms, nms, soft_nms
from potloc_fast.ops.score_segments import score_segments
from potloc_fast.ops.sigmoid_focal_loss import sigmoid_focal_loss

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
