"""Building blocks on `Tensor[B, T, C]` with a mask `Tensor[B, T]` (True where a snippet is real, False where padded).

Whatever looks at neighbours zeroes, or leaves out, padded snippets first: a padded recording scores as it does alone.
Where the mask is None nothing is padded, and nothing has to be zeroed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potloc_fast.models.winograd import conv3
from potloc_fast.ops import depthwise_conv, local_attention

WIDE = 512  # channels in and out, from which a convolution by fewer multiplications is faster


class Standardize(nn.Module):
    """Subtract the mean and divide by the standard deviation of the training features, kept with the weights.

    Until `fit` is called it leaves the features as they are.

    Args:
        features: number of channels F.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Take over statistics: two `Tensor[F]`, the second positive."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Standardize `Tensor[B, T, F]` and zero its padded snippets."""
        x = (x - self.mean).div_(self.std)  # in place: a large array is slow to come by
        return x if mask is None else x.mul_(mask.unsqueeze(-1))


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the padded snippets of `Tensor[B, T, C]`."""
    return x if mask is None else x * mask.unsqueeze(-1)


def strided(mask: Tensor | None, stride: int) -> Tensor | None:
    """The mask of what is left when one of `stride` snippets is kept."""
    return None if mask is None else mask[:, ::stride]


class TemporalConv(nn.Module):
    """A convolution of width 3 over the time axis of `Tensor[B, T, C]`.

    Args:
        inputs: input channels.
        outputs: output channels.
        bias: add a bias.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        like = nn.Conv1d(inputs, outputs, 3, bias=bias)
        self.weight = nn.Parameter(like.weight.detach().permute(2, 0, 1).contiguous())  # [3, O, I], a matrix a tap
        self.bias = like.bias

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `Tensor[B, T, C]`, whose padded snippets must be zero."""
        # Fewer multiplications are worth the passes over memory that they take where matrices are large, and tensor
        # cores don't make multiplications cheap.
        tensor_cores = x.is_cuda and (torch.is_autocast_enabled("cuda") or x.dtype.itemsize == 2)
        if min(self.weight.shape[1:]) >= WIDE and not tensor_cores:
            return conv3(x, self.weight, self.bias)
        # As an image of height 1, channels last, the sequence is read where it lies; `conv1d` would transpose it.
        image, weight = x.transpose(1, 2).unsqueeze(2), self.weight.permute(1, 2, 0).unsqueeze(2)
        return F.conv2d(image, weight, self.bias, padding=(0, 1)).squeeze(2).transpose(1, 2)


class DepthwiseConv(nn.Module):
    """Convolutions of width 3 over the time axis of the same `Tensor[B, T, C]`, each channel on its own.

    Args:
        channels: channels C.
        filters: number of convolutions.
        stride: 1, or 2 to halve the length: T becomes ceil(T / 2), for any T.
    """

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        like = [nn.Conv1d(channels, channels, 3, groups=channels, bias=False) for _ in range(filters)]
        weights = torch.stack([conv.weight.detach().squeeze(1).t() for conv in like])
        self.weight = nn.Parameter(weights)  # [filters, 3, C]

    def forward(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Convolve `Tensor[B, T, C]`, its snippets that `mask` leaves out taken for zero; one output a filter."""
        return depthwise_conv(x, self.weight, self.stride, mask)


class DropPath(nn.Module):
    """A residual branch's end: a learnable factor for each channel, and stochastic depth, which drops whole branches.

    Args:
        width: channels.
        scale: initial value of the factor (layer scale).
        rate: probability with which a recording's branch is dropped in training.
    """

    def __init__(self, width: int, scale: float, rate: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), scale))
        self.rate = rate

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        """Add `x`, scaled and perhaps dropped, to `skip`; both are `Tensor[B, T, C]`."""
        factor: Tensor = self.scale
        if self.training and self.rate > 0:
            kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.rate
            factor = factor * kept / (1 - self.rate)
        return torch.addcmul(skip, x, factor)


class LocalSelfAttention(nn.Module):
    """Multi-head self-attention within a window, after a depthwise convolution that may halve the length.

    Args:
        width: channels, a multiple of `heads`.
        heads: number of heads H.
        window: width of the band in snippets of this level, odd.
        stride: 1, or 2 to halve the length.
        padding_leaks: let the convolutions read what the padding holds.
    """

    def __init__(self, width: int, heads: int, window: int, stride: int, padding_leaks: bool = False) -> None:
        super().__init__()
        self.heads, self.window, self.stride, self.padding_leaks = heads, window, stride, padding_leaks
        self.conv = DepthwiseConv(width, 3, stride)  # of queries, keys and values
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend over `Tensor[B, T, C]` with its mask; the output is ceil(T / stride) long."""
        inputs = self.conv(x, None if self.padding_leaks else mask)
        q, k, v = (
            projection(norm(z)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for z, norm, projection in zip(inputs, self.norms, self.projections, strict=True)
        )
        out = local_attention(q, k, v, self.window, strided(mask, self.stride))
        projected: Tensor = self.output(out.transpose(1, 2).flatten(2))
        return projected


class TransformerBlock(nn.Module):
    """A pre-norm transformer block with local attention; with stride 2 it is a step of the pyramid.

    Args:
        width: channels.
        heads: number of heads H.
        window: width of the attention's band, odd.
        stride: 1, or 2 to halve the length; the skip connection then takes the maximum of three neighbours.
        mlp_ratio: hidden width of the MLP over `width`.
        layer_scale: initial factor on both residual branches.
        drop_path: rate of stochastic depth.
        padding_leaks: let convolutions and pooling read what the padding holds; it is zero behind the block.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        window: int,
        stride: int,
        mlp_ratio: int,
        layer_scale: float,
        drop_path: float,
        padding_leaks: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.padding_leaks = stride, padding_leaks
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = LocalSelfAttention(width, heads, window, stride, padding_leaks)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))
        self.branches = nn.ModuleList(DropPath(width, layer_scale, drop_path) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Transform `Tensor[B, T, C]` and its mask; both come back ceil(T / stride) long."""
        skip = x if self.stride == 1 else self._pool(x, mask)
        x = self.branches[0](skip, self.attention(self.norms[0](x), mask))
        x, mask = self.branches[1](x, self.mlp(self.norms[1](x))), strided(mask, self.stride)
        return masked(x, mask) if self.padding_leaks else x, mask

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        # The lowest finite number, not -inf: a padded neighbourhood must not breed NaN in what is masked later.
        if mask is not None and not self.padding_leaks:
            x = x.masked_fill(~mask.unsqueeze(-1), torch.finfo(x.dtype).min)
        # As an image of height 1, as in `TemporalConv`; `max_pool1d` would also tie an exported model to one length.
        image = x.transpose(1, 2).unsqueeze(2)
        pooled = F.max_pool2d(image, (1, 3), (1, self.stride), padding=(0, 1)).squeeze(2).transpose(1, 2)
        return masked(pooled, strided(mask, self.stride))
