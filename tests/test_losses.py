from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potloc_fast import reference
from potloc_fast.boundaries import boundary_targets
from potloc_fast.config.schema import LossConfig
from potloc_fast.data.dataset import Batch
from potloc_fast.losses import Targets, mil_loss, pyramid_mask, sample_labels, total_loss, video_scores
from potloc_fast.models import Pyramid

CLASSES = 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def level_lengths(t: int, levels: int) -> tuple[int, ...]:
    return tuple(-(-t // 2**level) for level in range(levels))


def make_batch(lengths: list[int], labels: list[tuple[int, int, float, float, float]]) -> Batch:
    """Labels are (recording, class, point, start, end)."""
    t = max(lengths)
    columns = torch.tensor(sorted(labels), dtype=torch.float64).reshape(-1, 5)
    return Batch(
        features=torch.zeros(len(lengths), t, 2),
        mask=torch.arange(t)[None, :] < torch.tensor(lengths)[:, None],
        recording=columns[:, 0].long(),
        points=columns[:, 2].float(),
        segments=columns[:, 3:].float(),
        classes=columns[:, 1].long(),
    )


def make_pyramid(lengths: list[int], levels: int, scale: float = 2.0, seed: int = 0) -> Pyramid:
    t = max(lengths)
    mask = torch.arange(t)[None, :] < torch.tensor(lengths)[:, None]
    logits = scale * normal(len(lengths), sum(level_lengths(t, levels)), CLASSES + 1, seed=seed)
    return Pyramid(logits.requires_grad_(), pyramid_mask(mask, levels), level_lengths(t, levels))


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    lengths = draw(st.lists(st.integers(1, 20), min_size=1, max_size=3))
    quarter = st.integers(-8, 88).map(lambda x: x / 4)
    labels = []
    for _ in range(draw(st.integers(0, 6))):
        recording = draw(st.integers(0, len(lengths) - 1))
        start, end = sorted((draw(quarter), draw(quarter)))
        labels.append((recording, draw(st.integers(0, CLASSES - 1)), draw(quarter), start, end))
    return make_batch(lengths, labels)


def naive_labels(batch: Batch, lengths: tuple[int, ...], radius: float | None) -> Targets:
    rows = len(batch.mask)
    classes = torch.zeros(rows, sum(lengths), CLASSES)
    positive = torch.zeros(rows, sum(lengths), dtype=torch.bool)
    action = torch.zeros(rows, sum(lengths), dtype=torch.bool)
    video = torch.zeros(rows, CLASSES)
    for m in range(len(batch.points)):
        b, c = int(batch.recording[m]), int(batch.classes[m])
        start, end = batch.segments[m].tolist()
        snippet = math.floor(batch.points[m])
        video[b, c] = 1
        offset = 0
        for level, length in enumerate(lengths):
            for j in range(length):
                i = j * 2**level  # snippet j of the level stands where snippet i of level 0 does
                inside = start <= i + 0.5 < end
                near = inside and (radius is None or abs(i - snippet) <= radius * 2**level)
                if level == 0 and i == snippet:
                    near = True
                if near:
                    classes[b, offset + j, c] = 1
                    positive[b, offset + j] = bool(batch.mask[b, i])
                if near or inside:
                    action[b, offset + j] = True
            offset += length
    # A snippet in the padding is no positive, whatever label reaches over it.
    return Targets(classes, positive, action, video)


def assert_same_targets(found: Targets, want: Targets) -> None:
    for name, tensor in vars(want).items():
        other = getattr(found, name)
        assert other.dtype == tensor.dtype, name
        assert torch.equal(other, tensor), name


class TestSampleLabels:
    @settings(deadline=None, max_examples=60)
    @given(batch=batches(), levels=st.integers(1, 4), radius=st.sampled_from([None, 0.0, 1.5, 2.0]))
    def test_equals_a_plain_loop(self, batch: Batch, levels: int, radius: float | None) -> None:
        lengths = level_lengths(batch.mask.shape[1], levels)
        assert_same_targets(sample_labels(batch, lengths, CLASSES, radius), naive_labels(batch, lengths, radius))

    def test_keeps_what_lies_near_the_point_at_every_level(self) -> None:
        batch = make_batch([32], [(0, 1, 16.3, 2.0, 30.0)])
        targets = sample_labels(batch, (32, 16, 8), CLASSES, radius=2)
        hits = targets.classes[0, :, 1].split([32, 16, 8])
        assert hits[0].nonzero().flatten().tolist() == [14, 15, 16, 17, 18]
        assert hits[1].nonzero().flatten().tolist() == [6, 7, 8, 9, 10]
        assert hits[2].nonzero().flatten().tolist() == [2, 3, 4, 5, 6]
        action = targets.action[0].split([32, 16, 8])
        assert action[0].nonzero().flatten().tolist() == list(range(2, 30))
        assert action[1].nonzero().flatten().tolist() == list(range(1, 15))
        assert targets.video.tolist() == [[0, 1, 0]]
        assert not targets.classes[0, :, [0, 2]].any()

    def test_whole_segments_without_a_radius(self) -> None:
        targets = sample_labels(make_batch([32], [(0, 1, 16.3, 2.0, 30.0)]), (32,), CLASSES, radius=None)
        assert targets.classes[0, :, 1].nonzero().flatten().tolist() == list(range(2, 30))

    @pytest.mark.parametrize("radius", [None, 0.0, 2.0])
    @pytest.mark.parametrize("segment", [(5.9, 5.95), (7.0, 9.0), (5.5, 5.5)])
    def test_the_snippet_of_the_point_always_is_a_positive(
        self, radius: float | None, segment: tuple[float, float]
    ) -> None:
        targets = sample_labels(make_batch([12], [(0, 2, 5.93, *segment)]), (12, 6), CLASSES, radius)
        assert targets.classes[0, 5, 2] == 1
        assert targets.positive[0, 5]
        assert targets.action[0, 5]

    def test_a_point_outside_the_crop_marks_what_is_action(self) -> None:
        targets = sample_labels(make_batch([10], [(0, 0, -6.0, 0.0, 3.0)]), (10,), CLASSES, radius=2)
        assert not targets.positive.any()
        assert targets.action[0].nonzero().flatten().tolist() == [0, 1, 2]

    @settings(deadline=None, max_examples=60)
    @given(
        batch=batches(),
        slots=st.integers(1, 5),
        radius=st.sampled_from([None, 0.0, 2.0]),
        positives=st.sampled_from(["centres", "rounded"]),
        overlap=st.sampled_from(["all", "shortest"]),
    )
    def test_entries_that_are_no_labels_count_nowhere(
        self,
        batch: Batch,
        slots: int,
        radius: float | None,
        positives: Literal["centres", "rounded"],
        overlap: Literal["all", "shortest"],
    ) -> None:
        padded = replace(
            batch,
            recording=torch.cat([batch.recording, torch.full((slots,), len(batch.mask))]),
            points=torch.cat([batch.points, torch.zeros(slots)]),
            segments=torch.cat([batch.segments, torch.tensor([0.0, 9.0]).expand(slots, 2)]),
            classes=torch.cat([batch.classes, torch.zeros(slots, dtype=torch.int64)]),
        )
        lengths = level_lengths(batch.mask.shape[1], 3)
        rules = (lengths, CLASSES, radius, positives, overlap)
        assert_same_targets(sample_labels(padded, *rules), sample_labels(batch, *rules))
        found, want = (boundary_targets(each, lengths, radius) for each in (padded, batch))
        assert torch.equal(found.distances, want.distances)
        assert torch.equal(found.positive, want.positive)

    def test_without_labels_nothing_is_positive(self) -> None:
        for tensor in vars(sample_labels(make_batch([4, 6], []), (6, 3), CLASSES, radius=2)).values():
            assert not tensor.any()


def naive_video_scores(pyramid: Pyramid, ratio: float, absent: Tensor | None) -> Tensor:
    rows = len(pyramid.mask)
    scores = torch.zeros(rows, CLASSES)
    for logits, mask in pyramid.levels():
        for b in range(rows):
            for c in range(CLASSES):
                values = sorted((1 / (1 + math.exp(-x)) for x in logits[b, mask[b], c].tolist()), reverse=True)
                if absent is None or not absent[b, c]:
                    values = values[: max(1, math.floor(len(values) / ratio))]
                scores[b, c] += sum(values) / max(1, len(values)) / len(pyramid.level_lengths)
    return scores


class TestVideoScores:
    @settings(deadline=None, max_examples=60)
    @given(
        lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any),
        levels=st.integers(1, 4),
        ratio=st.sampled_from([1.0, 2.0, 3.0, 8.0, 100.0]),
        absent=st.booleans(),
    )
    def test_equals_a_plain_loop(self, lengths: list[int], levels: int, ratio: float, absent: bool) -> None:
        pyramid = make_pyramid(lengths, levels)
        classes = normal(len(lengths), CLASSES, seed=1) > 0 if absent else None
        found = video_scores(pyramid, ratio, classes)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, naive_video_scores(pyramid, ratio, classes))

    def test_pads_score_nothing(self) -> None:
        alone, padded = make_pyramid([9], 1), make_pyramid([9, 24], 1)
        with torch.no_grad():
            padded.logits[0, :9] = alone.logits[0]
            padded.logits[0, 9:] = 50.0
        torch.testing.assert_close(video_scores(padded, 4)[0], video_scores(alone, 4)[0])

    def test_half_types_are_pooled_in_float32(self) -> None:
        pyramid = make_pyramid([30], 1)
        half = Pyramid(pyramid.logits.bfloat16(), pyramid.mask, pyramid.level_lengths)
        widened = Pyramid(half.logits.float(), pyramid.mask, pyramid.level_lengths)
        assert torch.equal(video_scores(half, 8), video_scores(widened, 8))


def test_mil_loss_sums_classes_and_averages_recordings() -> None:
    scores, video = torch.tensor([[0.5, 0.2], [0.9, 0.1]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    want = -(math.log(0.5) + math.log(0.8) + math.log(0.9) + math.log(0.1)) / 2
    assert mil_loss(scores, video).item() == pytest.approx(want, rel=1e-6)


LABELS = [(0, 1, 5.5, 3.0, 9.0), (0, 2, 15.2, 14.0, 17.5), (1, 0, 3.9, 3.0, 4.0)]
CONFIG = LossConfig(mil=0.7, act=0.4, bg=1.3, gamma=1.5, topk_ratio=4, background_threshold=0.8, radius=2)


@pytest.mark.parametrize("pool_absent", [False, True])
@pytest.mark.parametrize("levels", [1, 3])
def test_total_loss_is_the_papers(levels: int, pool_absent: bool) -> None:
    config = CONFIG.model_copy(update={"pool_absent": pool_absent})
    batch, pyramid = make_batch([20, 9], LABELS), make_pyramid([20, 9], levels)
    targets = naive_labels(batch, pyramid.level_lengths, config.radius)
    losses = total_loss(pyramid, sample_labels(batch, pyramid.level_lengths, CLASSES, config.radius), config)

    absent = targets.video == 0 if pool_absent else None
    scores = naive_video_scores(pyramid, config.topk_ratio, absent)
    mil = -(targets.video * scores.log() + (1 - targets.video) * (1 - scores).log()).sum() / len(scores)  # equation 1
    probability = pyramid.logits.detach().sigmoid()
    seeds = reference.background_seeds(
        probability[..., -1], targets.action, pyramid.level_lengths, config.background_threshold, pyramid.mask
    )
    assert seeds.any()
    assert not (seeds & (targets.action | ~pyramid.mask)).any()
    b = probability[..., -1:]
    p, t, gamma = probability[..., :-1] * (1 - b), targets.classes, config.gamma
    miss = p**gamma * (1 - p).log()
    act = -((1 - p) ** gamma * t * p.log() + (1 - t) * miss).sum(-1)[targets.positive].mean()  # equation 2
    bg = -(miss.sum(-1) + ((1 - b) ** gamma * b.log())[..., 0])[seeds].mean()  # equation 3
    want = {"mil": mil, "act": act, "bg": bg, "total": 0.7 * mil + 0.4 * act + 1.3 * bg}  # equation 4
    assert losses.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(losses[name].detach(), value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("labels", [LABELS, []])
def test_losses_and_gradients_are_finite(
    dtype: torch.dtype, scale: float, labels: list[tuple[int, int, float, float, float]]
) -> None:
    batch, pyramid = make_batch([20, 9], labels), make_pyramid([20, 9], 3, scale)
    rounded = Pyramid(pyramid.logits.to(dtype), pyramid.mask, pyramid.level_lengths)
    losses = total_loss(rounded, sample_labels(batch, pyramid.level_lengths, CLASSES, 2), CONFIG)
    losses["total"].backward()
    for loss in losses.values():
        assert loss.dtype == torch.float32
        assert loss.isfinite()
    assert pyramid.logits.grad is not None
    assert pyramid.logits.grad.isfinite().all()
    assert pyramid.logits.grad.any()
    assert not pyramid.logits.grad[~pyramid.mask].any()


def test_weights_of_zero_leave_a_loss_out() -> None:
    batch, pyramid = make_batch([20, 9], LABELS), make_pyramid([20, 9], 2)
    targets = sample_labels(batch, pyramid.level_lengths, CLASSES, 2)
    losses = total_loss(pyramid, targets, CONFIG.model_copy(update={"mil": 0.0, "bg": 0.0, "act": 1.0}))
    assert losses["total"] == losses["act"]
