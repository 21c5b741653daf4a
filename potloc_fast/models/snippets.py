"""A classifier of snippets that sees little of their surroundings."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from potloc_fast.models.layers import Standardize


class SnippetClassifier(nn.Module):
    """Two convolutions from features to logits of the classes and the background, which exclude each other.

    It sees `reach` snippets to either side, which is little on purpose: where in an action a snippet lies it can hardly
    tell, so that all that looks alike is called the same.

    Args:
        features: channels of a snippet.
        classes: number of classes C.
        hidden: channels between the two convolutions.
        reach: snippets seen to either side.
        dropout: rate of dropout before the second one.

    Example:
        >>> import torch
        >>> SnippetClassifier(features=6, classes=3)(torch.zeros(2, 10, 6)).shape
        torch.Size([2, 10, 4])
    """

    def __init__(self, features: int, classes: int, hidden: int = 128, reach: int = 2, dropout: float = 0.2) -> None:
        super().__init__()
        self.standardize = Standardize(features)
        self.reach = reach
        # Over an image of height 1, channels last, which is read where it lies (see `TemporalConv`).
        self.conv = nn.Conv2d(features, hidden, (1, 2 * reach + 1), padding=(0, reach))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, classes + 1)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Classify snippets.

        Args:
            features: `Tensor[B, T, F]`.
            mask: `Tensor[B, T]` of bool, True where a snippet is real; all are where it is None.

        Returns:
            `Tensor[B, T, C + 1]`, the last channel is the background.
        """
        x = self.conv(self.standardize(features, mask).transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)
        return cast(Tensor, self.classifier(self.dropout(F.relu(x))))
