"""The three losses of both models, and the sampling of labels that feeds them (equations 1 to 4 and 7 to 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from potloc_fast.config.schema import LossConfig
from potloc_fast.data.dataset import Batch
from potloc_fast.models.pyramid import Pyramid
from potloc_fast.ops import background_seeds, fused_focal_loss


@dataclass(frozen=True)
class Targets:
    """Labels of a batch on every level of the pyramid, level after level along the time axis.

    Attributes:
        classes: `Tensor[B, T, C]` of float32, 1 where a snippet is a positive of a class.
        positive: `Tensor[B, T]` of bool, True where a snippet is a positive of any class (the set Phi_l, equation 8).
        action: `Tensor[B, T]` of bool, True where a snippet lies in a labelled segment, sampled or not.
        video: `Tensor[B, C]` of float32, 1 where a recording shows a class.
    """

    classes: Tensor
    positive: Tensor
    action: Tensor
    video: Tensor


def sample_labels(batch: Batch, level_lengths: Sequence[int], classes: int, radius: float | None) -> Targets:
    """Project labels onto each level and keep what lies near their points (equations 7 and 8).

    Snippet j of level l stands at t = j 2**l + 1/2 on the grid, the centre of snippet j 2**l of level 0. It is a
    positive of a label (eps, s, e) where s <= t < e and |t - eps'| <= r 2**l, with eps' the centre of the snippet that
    holds the point; at level 0 that snippet always is one.

    Args:
        batch: labels on the snippet grid.
        level_lengths: the length of each level.
        classes: number of classes C.
        radius: sampling radius r in snippets of each level; None takes whole segments.

    Returns:
        The targets.
    """
    size = batch.features.shape[0]
    start, end = batch.segments[:, :1], batch.segments[:, 1:]  # [M, 1]
    point = batch.points[:, None]
    row = batch.recording * classes + batch.classes
    levels = []
    for level, length in enumerate(level_lengths):
        time = torch.arange(length, device=point.device) * 2**level + 0.5  # [T_l]
        inside = (time >= start) & (time < end)  # [M, T_l]
        near = inside if radius is None else inside & ((time - point.floor() - 0.5).abs() <= radius * 2**level)
        if level == 0:
            near = near | (time == point.floor() + 0.5)
        hits = point.new_zeros(size * classes, length).index_add_(0, row, near.to(point.dtype))
        action = point.new_zeros(size, length).index_add_(0, batch.recording, (inside | near).to(point.dtype))
        levels.append((hits.view(size, classes, length).transpose(1, 2) > 0, action > 0))
    hot = torch.cat([hits for hits, _ in levels], dim=1)
    return Targets(
        classes=hot.to(torch.float32),
        positive=hot.any(dim=2) & pyramid_mask(batch.mask, len(level_lengths)),
        action=torch.cat([action for _, action in levels], dim=1),
        video=point.new_zeros(size * classes).index_fill_(0, row, 1.0).view(size, classes),
    )


def pyramid_mask(mask: Tensor, levels: int) -> Tensor:
    """The mask of all levels, `Tensor[B, T]`, from that of the input."""
    return torch.cat([mask[:, :: 2**level] for level in range(levels)], dim=1)


def video_scores(pyramid: Pyramid, ratio: float, absent: Tensor | None = None) -> Tensor:
    """Score of each class in each recording: the mean of its K highest probabilities, averaged over the levels.

    K is T_l / `ratio`, rounded down, at least 1, with T_l the valid length.

    Args:
        pyramid: scores of all levels.
        ratio: snippets for each one that is pooled. It suits a data set where K snippets are no longer than what a
            class covers in a recording that shows it.
        absent: `Tensor[B, C]` of bool: classes pooled over all snippets instead, as the released code does in training
            for those that a recording does not show.

    Returns:
        `Tensor[B, C]` of float32 in [0, 1].
    """
    scores = []
    for logits, mask in pyramid.levels():
        p = logits[..., :-1].float().sigmoid() * mask.unsqueeze(-1)  # padding scores 0 and is never among the K
        valid = mask.sum(dim=1, keepdim=True)
        k = (valid / ratio).long().clamp(min=1)  # [B, 1]
        ranked = p.topk(min(p.shape[1], int(p.shape[1] / ratio) + 1), dim=1).values  # at least the largest k
        taken = torch.arange(ranked.shape[1], device=p.device)[None, :, None] < k.unsqueeze(-1)
        pooled = (ranked * taken).sum(dim=1) / k
        if absent is not None:
            pooled = torch.where(absent, p.sum(dim=1) / valid.clamp(min=1), pooled)
        scores.append(pooled)
    return torch.stack(scores).mean(dim=0)


def mil_loss(scores: Tensor, video: Tensor) -> Tensor:
    """L_MIL (equation 1): cross-entropy of the video-level scores, summed over classes, averaged over recordings.

    Args:
        scores: `Tensor[B, C]` in [0, 1].
        video: `Tensor[B, C]`, 1 where a recording shows a class.
    """
    return F.binary_cross_entropy(scores, video, reduction="none").sum(dim=1).mean()


def total_loss(pyramid: Pyramid, targets: Targets, config: LossConfig) -> dict[str, Tensor]:
    """L_Total = lambda_MIL L_MIL + lambda_Act L_Act + lambda_BG L_BG, starred where there are levels.

    Args:
        pyramid: a model's output.
        targets: labels on the same levels.
        config: how to form and weigh the losses.

    Returns:
        Scalars `total`, `mil`, `act`, `bg`; only `total` is weighed.
    """
    logits = pyramid.logits.float()
    with torch.no_grad():
        seeds = background_seeds(
            logits[..., -1].sigmoid(),
            targets.action,
            pyramid.level_lengths,
            threshold=config.background_threshold,
            mask=pyramid.mask,
        )
    absent = targets.video == 0 if config.pool_absent else None
    mil = mil_loss(video_scores(pyramid, config.topk_ratio, absent), targets.video)
    act, bg = fused_focal_loss(
        logits.flatten(0, 1), targets.classes.flatten(0, 1), targets.positive.flatten(), seeds.flatten(), config.gamma
    )
    return {"total": config.mil * mil + config.act * act + config.bg * bg, "mil": mil, "act": act, "bg": bg}
