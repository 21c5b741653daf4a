"""From the scores of a model to proposals and detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from potloc_fast.config.schema import DetectConfig, NmsConfig
from potloc_fast.data.dataset import whole
from potloc_fast.data.recording import Recording
from potloc_fast.evaluation import Segments
from potloc_fast.losses import video_scores
from potloc_fast.models.pyramid import Pyramid
from potloc_fast.ops import batched_nms, score_segments


def propose(pyramid: Pyramid, config: DetectConfig, topk_ratio: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turn scores into proposals: classes, then segments of their curves over thresholds.

    The curves of every level are cut at every threshold; what is consecutive becomes a proposal with its
    outer-inner-contrast score. Proposals of all levels and thresholds are pooled.

    Args:
        pyramid: scores of B recordings.
        config: thresholds.
        topk_ratio: snippets for each one that a video-level score pools.

    Returns:
        Segments on the snippet grid `Tensor[M, 2]`, scores `Tensor[M]`, recordings and classes `Tensor[M]` of int64.
    """
    video = video_scores(pyramid, topk_ratio)  # [B, C]
    chosen = (video >= config.class_threshold).scatter(1, video.argmax(dim=1, keepdim=True), True)
    recording, label = chosen.nonzero(as_tuple=True)  # [R]
    levels = pyramid.levels()
    lengths = levels[0][1].sum(dim=1)[recording]
    found = []
    for level, (logits, _) in enumerate(levels):
        p = logits.float().sigmoid()
        actionness = 1 - p[..., -1]  # [B, T_l]
        fused = (p[..., :-1] * actionness.unsqueeze(-1))[recording, :, label]  # [R, T_l]
        cuts = [
            (config.class_thresholds, fused, None if config.contrast == "cut" else fused),
            (config.actionness_thresholds, actionness[recording], fused),
        ]
        for thresholds, curves, contrast in cuts:
            if thresholds is not None:
                segments, scores, row, _ = score_segments(
                    curves,
                    curves.new_tensor(thresholds.values()),
                    lengths=lengths,
                    stride=2**level,
                    upsample=config.upsample,
                    outer=config.outer,
                    scores=contrast,
                )
                found.append((segments, scores, row))
    segments, scores, row = (torch.cat(parts) for parts in zip(*found, strict=True))
    recording, label = recording[row], label[row]
    return segments, scores + config.video_weight * video[recording, label], recording, label


def suppress(
    proposals: tuple[Tensor, Tensor, Tensor, Tensor], classes: int, config: NmsConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run NMS on what `propose` returns, a recording and class at a time.

    Args:
        proposals: segments `Tensor[M, 2]`, scores `Tensor[M]`, recordings and classes `Tensor[M]` of int64.
        classes: number of classes C.
        config: the rules of NMS.

    Returns:
        The same for what is kept, by recording, class and falling score.
    """
    segments, scores, recording, label = proposals
    segments, scores, kept = batched_nms(
        segments,
        scores,
        recording * classes + label,
        method=config.method,
        iou_threshold=config.iou,
        sigma=config.sigma,
        min_score=config.min_score,
        voting=config.voting,
    )
    return segments, scores, recording[kept], label[kept]


@torch.no_grad()
def detect(
    model: nn.Module,
    recordings: Sequence[Recording],
    classes: Sequence[str],
    config: DetectConfig,
    topk_ratio: float,
) -> Segments:
    """Detect actions in whole recordings, several in a batch.

    Args:
        model: a `BaseModel` or a `POTLoc`.
        recordings: any lengths; a recording scores in a batch as it does alone.
        classes: the model's classes.
        config: thresholds, NMS and batch size.
        topk_ratio: snippets for each one that a video-level score pools.

    Returns:
        Detections in seconds; the vocabulary of videos holds every recording.
    """
    was_training = model.training
    model.eval()
    parts: list[tuple[NDArray[Any], ...]] = []
    # Recordings of like length share a batch: little is padded.
    order = sorted(range(len(recordings)), key=lambda i: len(recordings[i].features))
    for first in range(0, len(order), config.batch_size):
        members = order[first : first + config.batch_size]
        batch = whole([recordings[i] for i in members])
        proposals = propose(model(batch.features, batch.mask), config, topk_ratio)
        found = suppress(proposals, len(classes), config.nms)
        sizes = found[2].bincount(minlength=len(members)).tolist()
        for i, *own in zip(members, *(torch.split(column, sizes) for column in found), strict=True):
            segments, scores, _, label = own
            seconds = recordings[i].grid.to_sec(segments.double().numpy())
            parts.append((np.full(len(seconds), i), label.numpy(), *seconds.T, scores.double().numpy()))
    model.train(was_training)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    by_video = columns[0].argsort(kind="stable")
    videos = tuple(recording.id for recording in recordings)
    return Segments(videos, tuple(classes), *(column[by_video] for column in columns))
