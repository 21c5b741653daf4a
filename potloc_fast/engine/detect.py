"""From the scores of a model to proposals and detections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from potloc_fast.boundaries import segments_of
from potloc_fast.config.schema import DetectConfig, NmsConfig
from potloc_fast.data.dataset import whole
from potloc_fast.data.grid import Grid
from potloc_fast.data.recording import Features, Recording, blocks
from potloc_fast.engine.device import autocast, bring
from potloc_fast.engine.distributed import collect, rank, ranks
from potloc_fast.engine.run import Model
from potloc_fast.engine.sections import PASS, SECTION, Section, Sections
from potloc_fast.evaluation import Segments
from potloc_fast.losses import level_scores
from potloc_fast.models.pyramid import Pyramid
from potloc_fast.ops import batched_nms, score_segments

SNIPPETS = 2**18  # in one pass of the model over several recordings, with padding
LONGEST_PASS = 2 * PASS  # snippets of a recording that is scored in one


def propose(pyramid: Pyramid, config: DetectConfig, topk_ratio: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turn scores into proposals: classes, then segments of their curves over thresholds, or of a boundary head.

    The curves of every level are cut at every threshold; what is consecutive becomes a proposal with its
    outer-inner-contrast score. Proposals of all levels and thresholds are pooled. With a boundary head, every snippet
    makes a proposal instead, whose score is the snippet's fused one.

    Args:
        pyramid: scores of B recordings.
        config: thresholds.
        topk_ratio: snippets for each one that a video-level score pools.

    Returns:
        Segments on the snippet grid `Tensor[M, 2]`, scores `Tensor[M]`, recordings and classes `Tensor[M]` of int64.
    """
    padded = config.pad is not None
    video = level_scores(pyramid, topk_ratio, pool_padding=padded)  # [L, B, C]
    if not config.class_per_level:
        video = video.mean(dim=0, keepdim=True).expand_as(video)
    chosen = (video >= config.class_threshold).scatter(2, video.argmax(dim=2, keepdim=True), True)
    levels = pyramid.levels()
    snippets = (torch.ones_like(levels[0][1]) if padded else levels[0][1]).sum(dim=1)
    if config.proposals == "boundaries":
        return _regressed(pyramid, video, chosen, snippets, config)
    found = []
    for level, (logits, mask) in enumerate(levels):
        recording, label = chosen[level].nonzero(as_tuple=True)  # [R]
        p = logits.float().sigmoid()
        actionness = 1 - p[..., -1]  # [B, T_l]
        if padded:
            actionness = actionness * mask
        fused = (p[..., :-1] * actionness.unsqueeze(-1))[recording, :, label]  # [R, T_l]
        for segments, scores, row in _cut(fused, actionness[recording], snippets[recording], level, config):
            scores = scores + config.video_weight * video[level, recording, label][row]
            found.append((segments, scores, recording[row], label[row]))
    segments, scores, recording, label = (torch.cat(parts) for parts in zip(*found, strict=True))
    return segments, scores, recording, label


def _regressed(
    pyramid: Pyramid, video: Tensor, chosen: Tensor, snippets: Tensor, config: DetectConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `propose` returns of a boundary head, from all levels at once.

    Args:
        pyramid: scores of B recordings.
        video: scores of their classes on each level, `Tensor[L, B, C]`.
        chosen: `Tensor[L, B, C]` of bool, the classes to look for.
        snippets: `Tensor[B]`, the recordings' lengths.
        config: thresholds.
    """
    assert pyramid.distances is not None
    lengths, finest = pyramid.level_lengths, config.finest_level
    first = sum(lengths[:finest])
    segments = segments_of(pyramid.distances, lengths, snippets)
    mask, p = pyramid.mask[:, first:], pyramid.logits[:, first:].float().sigmoid()
    recording, label = chosen[finest:].any(dim=0).nonzero(as_tuple=True)  # [R]
    fused = (p[..., :-1] * (1 - p[..., -1:]))[recording, :, label]  # [R, S]
    proposes = (fused >= config.nms.min_score) & mask[recording]
    if config.class_per_level:
        parts = zip(chosen[finest:, recording, label], lengths[finest:], strict=True)
        proposes &= torch.cat([own[:, None].expand(-1, length) for own, length in parts], dim=1)
    row, snippet = proposes.nonzero(as_tuple=True)
    scores = fused[row, snippet]
    recording, label = recording[row], label[row]
    if config.video_weight:
        level = torch.cat([snippet.new_full((length,), n) for n, length in enumerate(lengths)])[first:]
        scores = scores + config.video_weight * video[level[snippet], recording, label]
    return segments[recording, first + snippet], scores, recording, label


def _cut(
    fused: Tensor, actionness: Tensor, lengths: Tensor, level: int, config: DetectConfig
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Segments, scores and rows of curves `[R, T_l]` of a level over the configured thresholds."""
    made = []
    for thresholds, curves, contrast in (
        (config.class_thresholds, fused, None if config.contrast == "cut" else fused),
        (config.actionness_thresholds, actionness, fused),
    ):
        if thresholds is None:
            continue
        if config.align == "start":
            made.append(_segments_from_starts(curves, thresholds.values(), lengths, 2**level, contrast, config))
        else:
            segments, scores, row, _ = score_segments(
                curves,
                curves.new_tensor(thresholds.values()),
                lengths=lengths,
                stride=2**level,
                upsample=config.upsample,
                outer=config.outer,
                scores=contrast,
            )
            made.append((segments, scores, row))
    return made


def _segments_from_starts(
    curves: Tensor,
    thresholds: Sequence[float],
    lengths: Tensor,
    stride: int,
    contrast: Tensor | None,
    config: DetectConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do as `score_segments` on curves whose value j stands for time j * stride, in float64."""
    curves = _upsample_from_starts(curves, lengths, stride, config.upsample)
    if contrast is not None:
        contrast = _upsample_from_starts(contrast, lengths, stride, config.upsample)
    found = []
    for threshold in thresholds:
        over = curves > threshold
        if config.drop_first_point:
            over[:, 0] &= over[:, 1:].any(dim=1)
        edges = F.pad(over.int(), (1, 1)).diff(dim=1)
        row, first = (edges == 1).nonzero(as_tuple=True)
        last = (edges == -1).nonzero(as_tuple=True)[1]  # the first point that is not over the threshold again
        size = last - first
        reach = config.outer * size.double()
        low = first - reach if config.truncate_outer else first - reach.floor()
        low = low.clamp(min=0).long()
        high = torch.minimum((last + reach).floor().long(), lengths[row] * config.upsample)
        total = F.pad((curves.where(over, 0.0) if contrast is None else contrast).cumsum(dim=1), (1, 0))
        at_low, at_first, at_last, at_high = (total[row, index] for index in (low, first, last, high))
        outside = (at_first - at_low + at_high - at_last) / (first - low + high - last).clamp(min=1)
        scores = (at_last - at_first) / size - outside
        found.append((torch.stack([first, last], dim=1) / config.upsample, scores, row))
    segments, scores, row = (torch.cat(parts) for parts in zip(*found, strict=True))
    return segments.double(), scores, row


def _upsample_from_starts(values: Tensor, lengths: Tensor, stride: int, upsample: int) -> Tensor:
    """Sample curves `Tensor[R, T]` at their lengths * upsample points, point p at p / (upsample * stride): float64."""
    points = torch.arange(int(lengths.max()) * upsample, device=values.device)
    count = (lengths + stride - 1).div(stride, rounding_mode="floor").unsqueeze(1)  # [R, 1]
    left = torch.minimum(points.div(upsample * stride, rounding_mode="floor"), (count - 2).clamp(min=0))
    a, b = values.gather(1, left), values.gather(1, torch.minimum(left + 1, count - 1))
    curves = a + (b - a).double() * (points / (upsample * stride) - left)
    return curves.where(points < lengths.unsqueeze(1) * upsample, 0.0)


def suppress(
    proposals: tuple[Tensor, Tensor, Tensor, Tensor],
    classes: int,
    config: NmsConfig,
    snippet_sec: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run NMS on what `propose` returns, a recording and class at a time.

    Args:
        proposals: segments `Tensor[M, 2]`, scores `Tensor[M]`, recordings and classes `Tensor[M]` of int64.
        classes: number of classes C.
        config: the rules of NMS.
        snippet_sec: seconds that a snippet lasts in each recording; needed with `config.offset_sec`.

    Returns:
        The same for what is kept, by recording, class and falling score.
    """
    segments, scores, recording, label = proposals
    if config.offset_sec:
        if snippet_sec is None:
            raise ValueError("suppress: expected snippet_sec with offset_sec")
        seconds = segments.new_tensor(snippet_sec)
        segments = segments * seconds[recording, None]
    segments, scores, kept = batched_nms(
        segments,
        scores,
        recording * classes + label,
        method=config.method,
        iou_threshold=config.iou,
        sigma=config.sigma,
        min_score=config.min_score,
        offset=config.offset_sec,
        voting=config.voting,
    )
    if config.offset_sec:
        segments = segments / seconds[recording[kept], None]
    return segments, scores, recording[kept], label[kept]


@torch.no_grad()
def detect(
    model: Model,
    recordings: Sequence[Recording],
    classes: Sequence[str],
    config: DetectConfig,
    topk_ratio: float,
    precision: str = "fp32",
    section: int = SECTION,
    alone: bool = False,
) -> Segments:
    """Detect actions in whole recordings, several in a batch, on the device of the model.

    Long recordings are scored in passes that overlap, and from `1.5 * section` snippets on detected in by sections
    (`engine.sections`). Of several processes (`distributed`) each takes a share of the batches, and all return all
    detections.

    Args:
        model: a `BaseModel` or a `POTLoc`.
        recordings: any lengths; a recording scores in a batch as it does alone.
        classes: the model's classes.
        config: thresholds, NMS and batch size.
        topk_ratio: snippets for each one that a video-level score pools.
        precision: what the model computes in, as in `EngineConfig`.
        section: snippets of a section.
        alone: detect in all of them here, whatever other processes do.

    Returns:
        Detections in seconds; the vocabulary of videos holds every recording.
    """
    was_training = model.training
    if was_training:
        model.eval()
    rules = Rules(model, len(classes), config, topk_ratio, precision)
    parts: list[tuple[NDArray[Any], ...]] = []
    lengths = [len(recording.features) for recording in recordings]
    longest = min(LONGEST_PASS, 3 * section // 2 - 1)
    groups = _batches(lengths, config, longest)
    groups = groups if alone else groups[rank() :: ranks()]
    short = [members for members in groups if lengths[members[-1]] <= longest]
    drawn = (
        whole([recordings[i] for i in members], None if config.pad is None else config.pad.length(lengths[members[-1]]))
        for members in short
    )
    for members, batch in zip(short, bring(drawn, rules.device), strict=True):
        table = rules.table(rules.score(batch.features, batch.mask), [recordings[i].grid for i in members])
        bounds = table[:, 0].searchsorted(np.arange(len(members) + 1))
        for i, first, last in zip(members, bounds[:-1], bounds[1:], strict=True):
            parts.append((np.full(last - first, i), *table[first:last, 1:].T))
    for [i] in groups[len(short) :]:
        for cut in rules.cut(blocks(recordings[i].features), section):
            table = rules.of_section(cut, recordings[i].grid)
            parts.append((np.full(len(table), i), *table.T))
    if was_training:
        model.train()
    columns = [np.concatenate(column) for column in zip(*chain(*([parts] if alone else collect(parts))), strict=True)]
    by_video = columns[0].argsort(kind="stable")
    video, label, start, end, score = (column[by_video] for column in columns)
    videos = tuple(recording.id for recording in recordings)
    return Segments(videos, tuple(classes), video, label.astype(np.int64), start, end, score)


@dataclass(frozen=True)
class Rules:
    """A model with what makes detections of its scores; the attributes are the args of `detect`."""

    model: Model
    classes: int
    config: DetectConfig
    topk_ratio: float
    precision: str = "fp32"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def score(self, features: Tensor, mask: Tensor) -> Pyramid:
        """Scores of features `[B, T, F]`, on the device of the model."""
        # What is not padded takes fewer operations; a GPU would have to be asked.
        given = None if not mask.is_cuda and bool(mask.all()) else mask.to(self.device)
        with autocast(self.device, self.precision):
            pyramid: Pyramid = self.model(features.to(self.device), given)
        return pyramid

    def table(self, pyramid: Pyramid, grids: Sequence[Grid], first: int = 0) -> NDArray[np.float64]:
        """Detections in B recordings, `[M, 5]`: recording, class, start and end in seconds, score; by recording.

        Args:
            pyramid: their scores.
            grids: where their snippets lie in time.
            first: the snippet at which the scores begin.
        """
        found = propose(pyramid, self.config, self.topk_ratio)
        found = suppress(found, self.classes, self.config.nms, [grid.snippet_sec for grid in grids])
        # One copy back. Float64 holds them all as they are: float32, and indices far below 2**53.
        segments, scores, recording, label = (column.double() for column in found)
        table: NDArray[np.float64] = torch.column_stack([recording, label, segments, scores]).cpu().numpy()
        for i, grid in enumerate(grids):
            own = slice(*table[:, 0].searchsorted([i, i + 1]))
            table[own, 2:4] = grid.to_sec(table[own, 2:4] + first)
        return table

    def sections(self, section: int) -> Sections:
        """What cuts a long recording into sections."""
        padded = None if self.config.pad is None else self.config.pad.length
        return Sections(self.score, self.model.levels, self.model.reach, section, padded)

    def cut(self, parts: Iterable[Features], section: int) -> Iterator[Section]:
        """The sections of a recording, of which the features come in parts."""
        sections = self.sections(section)
        for part in parts:
            yield from sections.push(np.asarray(part))
        yield from sections.close()

    def of_section(self, section: Section, grid: Grid) -> NDArray[np.float64]:
        """Detections of a section, `[M, 4]`: class, start and end in seconds, score."""
        table = self.table(section.pyramid, [grid], section.first)[:, 1:]
        centre = grid.to_grid(table[:, 1:3].mean(axis=1))
        own: NDArray[np.float64] = table[(section.start <= centre) & (centre < section.end)]
        return own


def _batches(lengths: Sequence[int], config: DetectConfig, longest: int) -> list[list[int]]:
    """Recordings that share a batch: of like length, so that little is padded; longer ones alone, at the end."""
    size = config.batch_size if config.pad is None else 1
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        full = not found or len(found[-1]) == size or (len(found[-1]) + 1) * lengths[i] > SNIPPETS
        if full or lengths[i] > longest:
            found.append([])
        found[-1].append(i)
    return found
