"""The point-supervised base model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from potloc_fast.models.layers import Standardize, TemporalConv
from potloc_fast.models.pyramid import Pyramid


class BaseModel(nn.Module):
    """A shallow temporal convolutional network from features to class and background scores.

    Args:
        features: channels of a snippet.
        classes: number of classes C.
        hidden: channels between the two convolutions.
        dropout: rate of dropout before the second one.

    Attributes:
        levels: number of down-sampling blocks, 0.
        reach: snippets to either side that a score depends on.

    Example:
        >>> import torch
        >>> model = BaseModel(features=6, classes=3, hidden=8)
        >>> model(torch.zeros(2, 10, 6)).logits.shape
        torch.Size([2, 10, 4])
    """

    def __init__(self, features: int, classes: int, hidden: int = 2048, dropout: float = 0.7) -> None:
        super().__init__()
        self.standardize = Standardize(features)
        self.conv = TemporalConv(features, hidden)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, classes + 1, bias=False)
        self.levels, self.reach = 0, 1  # without a pyramid, through one convolution

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Pyramid:
        """Score snippets.

        Args:
            features: `Tensor[B, T, F]`.
            mask: `Tensor[B, T]` of bool, True where a snippet is real; all are where it is None.

        Returns:
            A pyramid of one level.
        """
        x = self.conv(self.standardize(features, mask)).relu_()
        logits = self.classifier(self.dropout(x))
        mask = torch.ones_like(logits[..., 0], dtype=torch.bool) if mask is None else mask
        return Pyramid(logits, mask, (features.shape[1],))
