"""The operators in plain PyTorch: slow, short, and what the tests trust."""

from __future__ import annotations

from potloc_fast.reference.local_attention import local_attention

__all__ = ["local_attention"]
