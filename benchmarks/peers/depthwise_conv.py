"""Depthwise convolutions of width 3 on `Tensor[B, T, C]` through PyTorch's own, one call a filter."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def conv2d(x: Tensor, weight: Tensor, mask: Tensor) -> list[Tensor]:
    """As images of height 1 whose channels come last, which are read where they lie; `weight` is `[N, 3, C]`."""
    image = (x * mask.unsqueeze(-1)).mT.unsqueeze(2)
    kernels = weight.to(x.dtype).mT[:, :, None, None]
    outputs = [F.conv2d(image, kernel, padding=(0, 1), groups=x.shape[2]) for kernel in kernels]
    return [out.squeeze(2).mT for out in outputs]


def conv1d(x: Tensor, weight: Tensor, mask: Tensor) -> list[Tensor]:
    """As sequences, which are transposed first."""
    sequence = (x * mask.unsqueeze(-1)).mT.contiguous()
    kernels = weight.to(x.dtype).mT.unsqueeze(2)
    return [F.conv1d(sequence, kernel, padding=1, groups=x.shape[2]).mT for kernel in kernels]
