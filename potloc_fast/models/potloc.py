"""The pseudo-label oriented multi-scale transformer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from potloc_fast.models.layers import Standardize, TemporalConv, TransformerBlock, masked
from potloc_fast.models.pyramid import Pyramid, snippet_times

LARGEST_EXPONENT = 8.0  # of a distance: beyond any action, and far from what exp makes infinite or zero


class _ConvStack(nn.Module):
    """Convolutions, each followed by layer normalization and ReLU; padded snippets are zero before and after."""

    def __init__(self, inputs: int, width: int, count: int = 2) -> None:
        super().__init__()
        self.convs = nn.ModuleList(TemporalConv(inputs if i == 0 else width, width, bias=False) for i in range(count))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(count))

    def forward(self, x: Tensor, mask: Tensor | None, read: Tensor | None) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x)
            # Where padding is read, it is what a convolution makes of it that is masked.
            x = masked(norm(x if read is mask else masked(x, mask)).relu_(), read)
        return x


def _reach(stem: int, levels: int, window: int) -> int:
    """How many snippets to either side a score depends on, of the level that sees furthest."""
    embedding, decoder, radius = 2, 3, window // 2  # convolutions of width 3; the decoder's last is the classifier
    seen = embedding + stem * (radius + 1)  # attention, and the convolution before it
    furthest = seen + decoder
    for level in range(1, levels + 1):
        # Keys lie `radius` snippets of this level away, and the convolution reads one more of the level below.
        seen += radius * 2**level + 2 ** (level - 1)
        furthest = max(furthest, seen + decoder * 2**level)
    return furthest


class POTLoc(nn.Module):
    """Multi-scale temporal transformer with local self-attention, a feature pyramid and a shared action decoder.

    Two convolutions embed the features, `stem` blocks transform them (level 0), and each further block halves the
    length (levels 1 to `levels`). The decoder, two convolutions and a classifier, is the same for all levels. No
    length, window and number of levels exclude each other.

    Args:
        features: channels of a snippet.
        classes: number of classes C.
        width: channels of the transformer, a multiple of `heads`.
        heads: number of attention heads.
        levels: number of down-sampling blocks L; 0 leaves level 0 alone.
        window: width of the attention's band in snippets of each level, odd.
        stem: blocks before the pyramid.
        mlp_ratio: hidden width of the MLPs over `width`.
        layer_scale: initial factor on the residual branches.
        drop_path: rate of stochastic depth.
        dropout: rate of dropout on the input features.
        prior: probability that the untrained classifier gives to everything.
        padding_leaks: let convolutions and pooling read what earlier layers left in the padding.
        boundary_head: beside the classifier, say how far from each snippet its action starts and ends.

    Attributes:
        levels: number of down-sampling blocks L.
        reach: snippets of the input to either side that a score of any level depends on; none beyond them changes it.

    Example:
        >>> model = POTLoc(features=6, classes=3, width=8, heads=2, levels=2, window=5)
        >>> pyramid = model(torch.zeros(2, 10, 6))
        >>> pyramid.logits.shape, pyramid.level_lengths
        (torch.Size([2, 18, 4]), (10, 5, 3))
    """

    def __init__(
        self,
        features: int,
        classes: int,
        width: int = 512,
        heads: int = 4,
        levels: int = 4,
        window: int = 19,
        stem: int = 2,
        mlp_ratio: int = 4,
        layer_scale: float = 1e-4,
        drop_path: float = 0.1,
        dropout: float = 0.0,
        prior: float = 0.01,
        padding_leaks: bool = False,
        boundary_head: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"POTLoc: width must be a multiple of heads, got {width} and {heads}")
        self.standardize = Standardize(features)
        self.dropout = nn.Dropout(dropout)
        self.embedding = _ConvStack(features, width)
        strides = [1] * stem + [2] * levels
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, window, stride, mlp_ratio, layer_scale, drop_path, padding_leaks)
            for stride in strides
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(levels + 1))
        self.decoder = _ConvStack(width, width)
        self.classifier = TemporalConv(width, classes + 1)
        self.stem, self.levels, self.padding_leaks = stem, levels, padding_leaks
        self.reach = _reach(stem, levels, window)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        assert self.classifier.bias is not None
        nn.init.constant_(self.classifier.bias, -math.log((1 - prior) / prior))
        self.boundary_decoder = _ConvStack(width, width) if boundary_head else None
        self.boundaries = TemporalConv(width, 2) if boundary_head else None

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Pyramid:
        """Score the snippets of all levels.

        Args:
            features: `Tensor[B, T, F]`.
            mask: `Tensor[B, T]` of bool, True where a snippet is real; all are where it is None.

        Returns:
            A pyramid of `levels + 1` levels.
        """
        leaks = self.padding_leaks
        x = self.standardize(features, None if leaks else mask)
        x = self.embedding(self.dropout(x), mask, None if leaks else mask)
        own = mask
        for block in self.blocks[: self.stem]:
            x, own = block(x, own)
        levels = [(x, own)]
        for block in self.blocks[self.stem :]:
            levels.append(block(*levels[-1]))
        # The levels are decoded as one sequence, with an empty snippet between each two.
        lengths = tuple(x.shape[1] for x, _ in levels)
        x = _joined([norm(x) for norm, (x, _) in zip(self.norms, levels, strict=True)])
        real = features.new_ones((1, lengths[0]), dtype=torch.bool)
        read = decoded = _joined([real[:, :length] for length in lengths])
        masks = [own for _, own in levels if own is not None]
        if masks:
            decoded = _joined(masks)
            if not leaks:
                x, read = masked(x, decoded), decoded
        logits = _parted(self.classifier(self.decoder(x, decoded, read)), lengths)
        distances = None
        if self.boundary_decoder is not None and self.boundaries is not None:
            # Exponents, as in FCOS: an error changes a distance by a factor, which is what the IoU punishes.
            exponents = _parted(self.boundaries(self.boundary_decoder(x, decoded, read)).float(), lengths)
            exponents = exponents.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
            # In double: how torch rounds exp of a float32 depends on where in the tensor it stands.
            distances = exponents.double().exp().float() * snippet_times(lengths, x.device)[1].unsqueeze(1)
        valid = torch.cat(masks, dim=1) if masks else real.new_ones(logits.shape[:2])
        return Pyramid(logits, valid, lengths, distances)


def _joined(levels: list[Tensor]) -> Tensor:
    """One sequence of several `Tensor[B, T_l, ...]`, each followed by a snippet of zeros."""
    gap = torch.zeros_like(levels[0][:, :1])
    return torch.cat([part for level in levels for part in (level, gap)], dim=1)


def _parted(sequence: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The sequence without these snippets."""
    parts = torch.split(sequence, [length + 1 for length in lengths], dim=1)
    return torch.cat([part[:, :-1] for part in parts], dim=1)
