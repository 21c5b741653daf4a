"""Operators on tensors, with CPU kernels and gradients. `potloc_fast.reference` has each in plain PyTorch."""

from __future__ import annotations

from potloc_fast.ops.local_attention import local_attention

__all__ = ["local_attention"]
