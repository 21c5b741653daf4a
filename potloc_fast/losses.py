"""The three losses of both models, and the sampling of labels that feeds them (equations 1 to 4 and 7 to 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potloc_fast.boundaries import BoundaryTargets, diou_loss
from potloc_fast.config.schema import LossConfig
from potloc_fast.data.dataset import Batch
from potloc_fast.models.pyramid import Pyramid, snippet_times
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


def sample_labels(
    batch: Batch,
    level_lengths: Sequence[int],
    classes: int,
    radius: float | None,
    positives: Literal["centres", "rounded"] = "centres",
    overlap: Literal["all", "shortest"] = "all",
) -> Targets:
    """Project labels onto each level and keep what lies near their points (equations 7 and 8).

    Snippet j of level l stands at t = j 2**l + 1/2 on the grid, the centre of snippet j 2**l of level 0. It is a
    positive of a label (eps, s, e) where s <= t < e and |t - eps'| <= r 2**l, with eps' the centre of the snippet that
    holds the point; at level 0 that snippet always is one.

    With "rounded" positives eps, s and e are rounded to the nearest snippet, s and e to one of the crop's, labels whose
    point is not between the first and the last snippet of the crop are left out, and snippet j is a positive where
    s < j 2**l < e and |j 2**l - eps| < r 2**l, at level 0 too.

    Args:
        batch: labels on the snippet grid.
        level_lengths: the length of each level.
        classes: number of classes C.
        radius: sampling radius r in snippets of each level; None takes whole segments.
        positives: the rule above.
        overlap: of which of the labels that hold a snippet it is a positive: "all", or the "shortest" (all of these
            where lengths are equal).

    Returns:
        The targets.
    """
    rounded = positives == "rounded"
    if rounded:
        batch = _round_labels(batch)
    size = len(batch.mask)
    time, stride = snippet_times(level_lengths, batch.points.device)  # [T]
    start, end = batch.segments[:, :1], batch.segments[:, 1:]  # [M, 1]
    point = batch.points[:, None]
    if rounded:
        time = time - 0.5
        inside = (time > start) & (time < end)  # [M, T]
        near = inside if radius is None else inside & ((time - point).abs() < radius * stride)
    else:
        inside = (time >= start) & (time < end)
        centre = point.floor() + 0.5
        near = inside if radius is None else inside & ((time - centre).abs() <= radius * stride)
        near = near | ((time == centre) & (stride == 1))
    # A row more than there are recordings takes the entries that are no labels.
    if overlap == "shortest":
        lengths = (end - start).where(near, torch.inf)
        row = batch.recording[:, None].expand_as(near)
        shortest = lengths.new_full((size + 1, len(time)), torch.inf).scatter_reduce(0, row, lengths, "amin")
        near = near & (lengths == shortest[batch.recording])
    row = batch.recording * classes + batch.classes
    hits = time.new_zeros((size + 1) * classes, len(time)).index_add_(0, row, near.to(time.dtype))
    action = time.new_zeros(size + 1, len(time)).index_add_(0, batch.recording, (inside | near).to(time.dtype))
    hot = (hits.view(size + 1, classes, -1)[:size] > 0).transpose(1, 2)  # [B, T, C]
    return Targets(
        classes=hot.to(torch.float32, memory_format=torch.contiguous_format),
        positive=hot.any(dim=2) & pyramid_mask(batch.mask, len(level_lengths)),
        action=action[:size] > 0,
        video=time.new_zeros((size + 1) * classes).index_fill_(0, row, 1.0).view(size + 1, classes)[:size],
    )


def _round_labels(batch: Batch) -> Batch:
    size = len(batch.mask)
    last = F.pad(batch.mask.sum(dim=1) - 1, (0, 1))[batch.recording]
    kept = (batch.points >= 0) & (batch.points <= last)
    return replace(
        batch,
        recording=batch.recording.where(kept, size),
        points=batch.points.round(),
        segments=torch.minimum(batch.segments.round().clamp(min=0), last.unsqueeze(1)),
    )


def pyramid_mask(mask: Tensor, levels: int) -> Tensor:
    """The mask of all levels, `Tensor[B, T]`, from that of the input."""
    return torch.cat([mask[:, :: 2**level] for level in range(levels)], dim=1)


def video_scores(pyramid: Pyramid, ratio: float, absent: Tensor | None = None, pool_padding: bool = False) -> Tensor:
    """Score of each class in each recording: the mean of its K highest probabilities, averaged over the levels.

    K is T_l / `ratio`, rounded down, at least 1, with T_l the valid length.

    Args:
        pyramid: scores of all levels.
        ratio: snippets for each one that is pooled. It suits a data set where K snippets are no longer than what a
            class covers in a recording that shows it.
        absent: `Tensor[B, C]` of bool: classes pooled over all snippets instead, as the released code does in training
            for those that a recording does not show.
        pool_padding: let T_l be the padded length instead, and padding score 0, as in the released code.

    Returns:
        `Tensor[B, C]` of float32 in [0, 1].
    """
    return level_scores(pyramid, ratio, absent, pool_padding).mean(dim=0)


def level_scores(pyramid: Pyramid, ratio: float, absent: Tensor | None = None, pool_padding: bool = False) -> Tensor:
    """What `video_scores` averages: the same for each level by itself, `Tensor[L, B, C]`."""
    scores = []
    everywhere = pyramid.logits[..., :-1].float().sigmoid()
    everywhere = everywhere * pyramid.mask.unsqueeze(-1)  # padding scores 0 and is never among the K
    for p, mask in zip(pyramid.split(everywhere), pyramid.split(pyramid.mask), strict=True):
        valid = (torch.ones_like(mask) if pool_padding else mask).sum(dim=1, keepdim=True)
        k = (valid / ratio).long().clamp(min=1)  # [B, 1]
        # At least the largest k; a number that an export can leave open.
        most = torch.sym_min(p.shape[1], torch.sym_int(p.shape[1] / ratio) + 1)  # type: ignore[no-untyped-call]
        ranked = p.topk(most, dim=1).values
        taken = torch.arange(ranked.shape[1], device=p.device)[None, :, None] < k.unsqueeze(-1)
        pooled = (ranked * taken).sum(dim=1) / k
        if absent is not None:
            pooled = torch.where(absent, p.sum(dim=1) / valid.clamp(min=1), pooled)
        scores.append(pooled)
    return torch.stack(scores)


def mil_loss(scores: Tensor, video: Tensor) -> Tensor:
    """L_MIL (equation 1): cross-entropy of the video-level scores, summed over classes, averaged over recordings.

    Args:
        scores: `Tensor[B, C]` in [0, 1].
        video: `Tensor[B, C]`, 1 where a recording shows a class.
    """
    return F.binary_cross_entropy(scores, video, reduction="none").sum(dim=1).mean()


def total_loss(
    pyramid: Pyramid, targets: Targets, config: LossConfig, boundaries: BoundaryTargets | None = None
) -> dict[str, Tensor]:
    """L_Total = lambda_MIL L_MIL + lambda_Act L_Act + lambda_BG L_BG, starred where there are levels.

    With a boundary head its DIoU loss, averaged over the snippets that learn, is added.

    Args:
        pyramid: a model's output.
        targets: labels on the same levels.
        config: how to form and weigh the losses.
        boundaries: what the model's boundary head learns, if it has one.

    Returns:
        Scalars `total`, `mil`, `act`, `bg`, with a boundary head also `boundary`; only `total` is weighed.
    """
    logits = pyramid.logits.float()
    action = targets.positive if config.gaps == "positives" else targets.action
    with torch.no_grad():
        background = logits[..., -1].sigmoid()
        seeds = background_seeds(
            background, action, pyramid.level_lengths, threshold=config.background_threshold, mask=pyramid.mask
        )
        if config.outer_seeds != "argmax":
            over = background > config.background_threshold
            seeds = _change_outer_seeds(seeds, over, action, pyramid, config.outer_seeds)
    absent = targets.video == 0 if config.pool_absent else None
    mil = mil_loss(video_scores(pyramid, config.topk_ratio, absent, config.pool_padding), targets.video)
    if config.mil_mean:
        mil = mil / targets.video.shape[1]
    rows = (logits, targets.classes, targets.positive, seeds)
    if config.average == "recordings":
        own = [_snippet_losses(config, *recording) for recording in zip(*rows, strict=True)]
        act, bg = (torch.stack(values).mean() for values in zip(*own, strict=True))
    else:
        act, bg = _snippet_losses(config, *(tensor.flatten(0, 1) for tensor in rows))
    losses = {"total": config.mil * mil + config.act * act + config.bg * bg, "mil": mil, "act": act, "bg": bg}
    if pyramid.distances is not None and boundaries is not None:
        errors = diou_loss(pyramid.distances, boundaries.distances) * boundaries.positive
        losses["boundary"] = errors.sum() / boundaries.positive.sum().clamp(min=1)
        losses["total"] = losses["total"] + config.boundary * losses["boundary"]
    return losses


def _snippet_losses(
    config: LossConfig, logits: Tensor, classes: Tensor, positive: Tensor, seeds: Tensor
) -> tuple[Tensor, Tensor]:
    """L_Act and L_BG of N snippets, averaged over the positives and the seeds among them."""
    act, bg = fused_focal_loss(logits, classes, positive, seeds, config.gamma)
    if config.act_background:
        background = logits[:, -1]
        terms = background.sigmoid() ** config.gamma * F.softplus(background)
        act = act + terms.where(positive, 0.0).sum() / positive.sum().clamp(min=1)
    return act, bg


def _change_outer_seeds(
    seeds: Tensor, over: Tensor, action: Tensor, pyramid: Pyramid, rule: Literal["edge", "between"]
) -> Tensor:
    """Change the seeds before the first and after the last action of each level, as `LossConfig.outer_seeds` says."""
    found = []
    columns = (
        torch.split(tensor, list(pyramid.level_lengths), dim=1) for tensor in (seeds, over, action, pyramid.mask)
    )
    for inner, hits, acts, mask in zip(*columns, strict=True):
        before, after = ~_since_first(acts) & mask, ~_until_last(acts) & mask
        if rule == "edge":
            changed = inner | (_until_last(inner & before) & before) | (_since_first(inner & after) & after)
            found.append(torch.where(before & after, inner, changed))
        else:
            first, last = hits & before, hits & after
            outer = (_since_first(first) & _until_last(first)) | (_since_first(last) & _until_last(last))
            found.append(torch.where(before | after, outer & (before ^ after), inner))
    return torch.cat(found, dim=1)


def _since_first(hits: Tensor) -> Tensor:
    return hits.cumsum(dim=1) > 0


def _until_last(hits: Tensor) -> Tensor:
    return _since_first(hits.flip(1)).flip(1)
