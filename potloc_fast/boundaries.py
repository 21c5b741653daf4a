"""The boundary head's side: which snippets learn which segment, the loss, and segments from distances.

Every snippet of every level may say how far the action that it lies in reaches to either side, as in anchor-free
detectors (FCOS, Tian et al. 2019; ActionFormer, Zhang et al. 2022). It learns that from pseudo-labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potloc_fast.data.dataset import Batch
from potloc_fast.models.pyramid import snippet_times


@dataclass(frozen=True)
class BoundaryTargets:
    """What the boundary head learns, on every level of the pyramid, level after level along the time axis.

    Attributes:
        distances: `Tensor[B, T, 2]` of float32, from each snippet back to its label's start and on to its end, 0 where
            nothing is learned.
        positive: `Tensor[B, T]` of bool, True where something is.
    """

    distances: Tensor
    positive: Tensor


def boundary_targets(batch: Batch, level_lengths: Sequence[int], radius: float | None) -> BoundaryTargets:
    """Give each snippet the label that it learns its distances from.

    A snippet learns from the labels that it lies in and is a positive of (equation 8): of several from the shortest,
    of equally short ones from the first.

    Args:
        batch: labels on the snippet grid.
        level_lengths: the length of each level.
        radius: sampling radius r around the points, in snippets of each level; None takes whole segments.

    Returns:
        The targets.
    """
    time, stride = snippet_times(level_lengths, batch.points.device)
    start, end = batch.segments[:, :1], batch.segments[:, 1:]  # [M, 1]
    candidate = (time >= start) & (time < end)  # [M, T]
    if radius is not None:
        candidate &= (time - batch.points[:, None].floor() - 0.5).abs() <= radius * stride
    row = batch.recording[:, None].expand_as(candidate)
    size, count = len(batch.mask), len(batch.points)
    shape = (size + 1, len(time))  # the last row is that of entries that are no labels
    length = (end - start).where(candidate, torch.inf)
    shortest = length.new_full(shape, torch.inf).scatter_reduce(0, row, length, "amin")
    rank = torch.arange(count, device=row.device)[:, None]
    rank = rank.where(candidate & (length == shortest.gather(0, row)), count)
    label = rank.new_full(shape, count).scatter_reduce(0, row, rank, "amin")[:size]  # [B, T], M where there is none
    positive = label < count
    own = torch.cat([batch.segments, batch.segments.new_zeros(1, 2)])[label]
    distances = torch.stack([time - own[..., 0], own[..., 1] - time], dim=-1)
    return BoundaryTargets(distances * positive.unsqueeze(-1), positive)


def diou_loss(distances: Tensor, targets: Tensor) -> Tensor:
    """Distance-IoU loss in one dimension (Zheng et al. 2020).

    It is 1 - IoU + (distance of the centres / length of the enclosing segment)**2, of two segments that hold the
    snippet from which their distances are measured.

    Args:
        distances: `Tensor[..., 2]` to start and end, positive.
        targets: `Tensor[..., 2]`, 0 or more.

    Returns:
        `Tensor[...]`, in [0, 1.25].
    """
    shared = torch.minimum(distances, targets).sum(dim=-1)
    enclosing = torch.maximum(distances, targets).sum(dim=-1)
    shift = (distances - targets).diff(dim=-1).squeeze(-1) / 2
    # Two segments that share a snippet leave no gap: their union is what encloses them.
    return 1 - shared / enclosing + (shift / enclosing).square()


def segments_of(distances: Tensor, level_lengths: Sequence[int], lengths: Tensor) -> Tensor:
    """Segments from distances, cut to the recording.

    Args:
        distances: `Tensor[B, T, 2]` to start and end, on the grid.
        level_lengths: the length of each level.
        lengths: `Tensor[B]`, valid snippets of each recording.

    Returns:
        `Tensor[B, T, 2]` on the snippet grid.
    """
    time, _ = snippet_times(level_lengths, distances.device)
    segments = torch.stack([time - distances[..., 0], time + distances[..., 1]], dim=-1)
    return segments.clamp(min=0).minimum(lengths[:, None, None].to(segments.dtype))
