"""Training steps as the authors' code takes them, written from their descriptions in the paper and in ActionFormer's.

Everything is `[B, C, T]`: layer normalization over channels is spelled out on dimension 1, linear layers are
convolutions of width 1, every convolution's output is multiplied by the mask, and attention works on chunks of twice
the band. Losses are formed from probabilities, level by level; background seeds are looked for video by video, gap by
gap. The gradient is clipped and the weights are updated as PyTorch does by default; they are averaged tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.attention import sliding_chunks
from potloc_fast.config.schema import LossConfig
from potloc_fast.losses import Targets

Level = tuple[Tensor, Tensor]  # values [B, C, T] and mask [B, 1, T]


class MaskedConv(nn.Module):
    """A convolution whose output is zeroed in the padding."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)

    def forward(self, x: Tensor, mask: Tensor) -> Level:
        """Values and mask of the output."""
        x, mask = self.conv(x), mask[:, :, :: self.stride]
        return x * mask.to(x.dtype), mask


class ChannelNorm(nn.Module):
    """Layer normalization of dimension 1, spelled out."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `Tensor[B, C, T]`."""
        centred = x - x.mean(dim=1, keepdim=True)
        variance = (centred**2).mean(dim=1, keepdim=True)
        return centred / torch.sqrt(variance + 1e-5) * self.weight + self.bias


class ConvStack(nn.Module):
    """Two convolutions, each with normalization and ReLU."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.convs = nn.ModuleList([MaskedConv(inputs, width, 3), MaskedConv(width, width, 3)])
        self.norms = nn.ModuleList(ChannelNorm(width) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Transform `Tensor[B, C, T]`."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x, mask)[0]))
        return x


class Block(nn.Module):
    """A pre-norm transformer block, which may halve the length."""

    def __init__(self, width: int, heads: int, window: int, stride: int, mlp_ratio: int, scale: float, drop: float):
        super().__init__()
        self.heads, self.window, self.stride, self.drop = heads, window, stride, drop
        self.norms = nn.ModuleList(ChannelNorm(width) for _ in range(2))
        self.convs = nn.ModuleList(MaskedConv(width, width, 3, stride, groups=width) for _ in range(3))
        self.qkv_norms = nn.ModuleList(ChannelNorm(width) for _ in range(3))
        self.projections = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(3))
        self.output = nn.Conv1d(width, width, 1)
        self.mlp = nn.Sequential(
            nn.Conv1d(width, mlp_ratio * width, 1), nn.GELU(), nn.Conv1d(mlp_ratio * width, width, 1)
        )
        self.scales = nn.ParameterList(torch.full((1, width, 1), scale) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Level:
        """Values and mask of the output."""
        skip = x if self.stride == 1 else F.max_pool1d(x, 3, self.stride, padding=1)
        y = self.norms[0](x)
        heads = []
        for conv, norm, projection in zip(self.convs, self.qkv_norms, self.projections, strict=True):
            z, down = conv(y, mask)
            heads.append(projection(norm(z)).unflatten(1, (self.heads, -1)).transpose(2, 3))
        attended = sliding_chunks(*heads, self.window).transpose(2, 3).flatten(1, 2)
        real = down.to(x.dtype)
        x = skip * real + self.dropped(self.scales[0] * (self.output(attended) * real))
        x = x + self.dropped(self.scales[1] * (self.mlp(self.norms[1](x)) * real))
        return x, down

    def dropped(self, x: Tensor) -> Tensor:
        """Stochastic depth."""
        return x * (torch.rand(x.shape[0], 1, 1, device=x.device) >= self.drop) / (1 - self.drop)


class ReleasedPOTLoc(nn.Module):
    """The transformer with a pyramid, in training mode.

    Args: as `potloc_fast.models.POTLoc` has them.
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
    ):
        super().__init__()
        self.stem = stem
        self.embedding = ConvStack(features, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, window, stride, mlp_ratio, layer_scale, drop_path)
            for stride in [1] * stem + [2] * levels
        )
        self.norms = nn.ModuleList(ChannelNorm(width) for _ in range(levels + 1))
        self.decoder = ConvStack(width, width)
        self.classifier = MaskedConv(width, classes + 1, 3, bias=True)

    def forward(self, features: Tensor, mask: Tensor) -> list[Level]:
        """Logits and mask of each level from `Tensor[B, F, T]` and `Tensor[B, 1, T]`."""
        x = self.embedding(features, mask)
        levels = []
        for number, block in enumerate(self.blocks, start=1):
            x, mask = block(x, mask)
            if number >= self.stem:
                levels.append((x, mask))
        return [
            self.classifier(self.decoder(norm(x), mask), mask)
            for norm, (x, mask) in zip(self.norms, levels, strict=True)
        ]


class ReleasedBase(nn.Module):
    """The convolutional base model; args as `potloc_fast.models.BaseModel` has them."""

    def __init__(self, features: int, classes: int, hidden: int = 2048, dropout: float = 0.7):
        super().__init__()
        self.conv = nn.Conv1d(features, hidden, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv1d(hidden, classes + 1, 1, bias=False)

    def forward(self, features: Tensor, mask: Tensor) -> list[Level]:
        """Logits and mask of the one level."""
        return [(self.classifier(self.dropout(F.relu(self.conv(features)))), mask)]


def losses(levels: Sequence[Level], targets: Targets, config: LossConfig) -> dict[str, Tensor]:
    """The three losses and their sum, from probabilities."""
    lengths = [mask.shape[-1] for _, mask in levels]
    labels = [x.transpose(1, 2) for x in targets.classes.split(lengths, dim=1)]
    positives, actions = targets.positive.split(lengths, dim=1), targets.action.split(lengths, dim=1)
    scores, act, bg = [], [], []
    for (logits, mask), hot, positive, action in zip(levels, labels, positives, actions, strict=True):
        p = torch.sigmoid(logits)
        actions_p, background = p[:, :-1], p[:, -1]
        k = max(1, int(p.shape[-1] / config.topk_ratio))
        scores.append(torch.topk(actions_p * mask, k, dim=2).values.mean(dim=2))
        fused = (actions_p * (1 - background.unsqueeze(1))).transpose(1, 2).clamp(1e-7, 1 - 1e-7)
        one_hot = hot.transpose(1, 2)
        miss = fused**config.gamma * torch.log(1 - fused)
        hit = (1 - fused) ** config.gamma * torch.log(fused)
        act.append(-(one_hot * hit + (1 - one_hot) * miss).sum(dim=2)[positive])
        seeds = torch.stack(
            [find_seeds(*pair, config.background_threshold) for pair in zip(background, action, strict=True)]
        )
        own = (1 - background) ** config.gamma * torch.log(background.clamp(min=1e-7))
        bg.append(-(miss.sum(dim=2) + own)[seeds & mask[:, 0]])
    video = targets.video
    mil = F.binary_cross_entropy(torch.stack(scores).mean(dim=0), video, reduction="none").sum(dim=1).mean()
    parts = {"mil": mil, "act": torch.cat(act).mean(), "bg": torch.cat(bg).mean()}
    return {"total": config.mil * mil + config.act * parts["act"] + config.bg * parts["bg"], **parts}


@torch.no_grad()
def find_seeds(background: Tensor, action: Tensor, threshold: float) -> Tensor:
    """Background seeds of one video: in each gap between actions, from the first to the last confident snippet."""
    seeds = torch.zeros_like(action)
    points = torch.nonzero(action).flatten().tolist()
    bounds = [-1, *points, len(action)]
    for start, end in pairwise(bounds):
        if end - start < 2:
            continue
        over = torch.nonzero(background[start + 1 : end] > threshold).flatten() + start + 1
        if len(over) == 0:
            seeds[start + 1 + int(background[start + 1 : end].argmax())] = True
        else:
            first = 0 if start == -1 and points else int(over[0])
            last = len(action) - 1 if end == len(action) and points else int(over[-1])
            seeds[first : last + 1] = True
    return seeds


class Step:
    """A training step: forward, losses, backward, gradient clipping, Adam, moving average of the weights."""

    def __init__(self, model: nn.Module, config: LossConfig, lr: float, clip: float, decay: float, bf16: bool = False):
        self.model, self.config, self.clip, self.decay, self.bf16 = model, config, clip, decay, bf16
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        self.average = [parameter.detach().clone() for parameter in model.parameters()]

    def __call__(self, features: Tensor, mask: Tensor, targets: Targets) -> dict[str, Any]:
        """Step on `Tensor[B, F, T]` and `Tensor[B, 1, T]`; returns the logits, the losses and the gradient's norm."""
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.bf16):
            levels = [(logits.float(), mask) for logits, mask in self.model(features, mask)]
        parts = losses(levels, targets, self.config)
        self.optimizer.zero_grad()
        parts["total"].backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        with torch.no_grad():
            for kept, parameter in zip(self.average, self.model.parameters(), strict=True):
                kept.copy_(self.decay * kept + (1 - self.decay) * parameter)
        logits = torch.cat([logits for logits, _ in levels], dim=2).transpose(1, 2)
        return {"logits": logits, "norm": norm, **parts}
