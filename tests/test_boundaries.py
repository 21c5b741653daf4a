"""The boundary head: targets, loss, segments, and what a model learns from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import potloc_fast
from potloc_fast.boundaries import boundary_targets, diou_loss, segments_of
from potloc_fast.config import load_config
from potloc_fast.config.schema import DetectConfig, LossConfig, NmsConfig
from potloc_fast.data.dataset import Batch
from potloc_fast.engine.detect import detect, propose, suppress
from potloc_fast.engine.train import load_dataset
from potloc_fast.losses import pyramid_mask, sample_labels, total_loss, video_scores
from potloc_fast.models import POTLoc, Pyramid

LEVELS = (9, 5, 3)  # the lengths of a pyramid over 9 snippets, whose snippets stand at 0.5, 1.5, ... 0.5, 2.5, ... 0.5


def make_batch(mask: Tensor, labels: list[tuple[int, float, float, float]], features: Tensor | None = None) -> Batch:
    """Labels of class 0 are (recording, point, start, end)."""
    columns = torch.tensor(labels, dtype=torch.float64).reshape(-1, 4)
    return Batch(
        features=torch.zeros(*mask.shape, 2) if features is None else features,
        mask=mask,
        recording=columns[:, 0].long(),
        points=columns[:, 1].float(),
        segments=columns[:, 2:].float(),
        classes=torch.zeros(len(columns), dtype=torch.int64),
    )


def learned(batch: Batch, lengths: tuple[int, ...], radius: float | None) -> dict[tuple[int, int, int], list[float]]:
    """Targets as {(recording, level, snippet): [to the start, to the end]}."""
    targets = boundary_targets(batch, lengths, radius)
    assert targets.distances.dtype == torch.float32
    assert not targets.distances[~targets.positive].any()
    places = [(level, j) for level, n in enumerate(lengths) for j in range(n)]
    return {(b, *places[i]): targets.distances[b, i].tolist() for b, i in targets.positive.nonzero().tolist()}


def test_targets_lie_around_the_point_at_every_level() -> None:
    batch = make_batch(torch.ones(1, 9, dtype=torch.bool), [(0, 4.2, 1.0, 7.0)])
    assert learned(batch, LEVELS, 1.0) == {
        (0, 0, 3): [2.5, 3.5],
        (0, 0, 4): [3.5, 2.5],
        (0, 0, 5): [4.5, 1.5],
        (0, 1, 1): [1.5, 4.5],  # stands at 2.5, two snippets from the point
        (0, 1, 2): [3.5, 2.5],
        (0, 1, 3): [5.5, 0.5],
        (0, 2, 1): [3.5, 2.5],  # stands at 4.5; those at 0.5 and 8.5 are near enough, and outside
    }
    assert len(learned(batch, LEVELS, None)) == 6 + 3 + 1


def test_where_labels_overlap_the_shortest_is_learned_and_of_equals_the_first() -> None:
    batch = make_batch(
        torch.ones(2, 9, dtype=torch.bool),
        [(0, 4.0, 0.0, 9.0), (0, 4.0, 3.0, 6.0), (0, 7.0, 5.0, 8.0), (1, 1.0, 0.0, 8.0)],
    )
    found = learned(batch, (9,), None)
    assert [found[0, 0, j] for j in range(9)] == [
        [0.5, 8.5],
        [1.5, 7.5],
        [2.5, 6.5],
        [0.5, 2.5],
        [1.5, 1.5],
        [2.5, 0.5],  # as near to the third label, which is as short
        [1.5, 1.5],
        [2.5, 0.5],
        [8.5, 0.5],
    ]
    assert found[1, 0, 4] == [4.5, 3.5]  # of the other recording's labels nothing is seen


@pytest.mark.parametrize("radius", [None, 2.0])
def test_without_labels_nothing_is_learned(radius: float | None) -> None:
    assert learned(make_batch(torch.ones(2, 9, dtype=torch.bool), []), LEVELS, radius) == {}


def test_the_snippets_that_learn_are_positives_of_the_classifier() -> None:
    mask = torch.arange(30) < torch.tensor([[30], [17]])
    batch = make_batch(mask, [(0, 8.0, 2.5, 20.0), (0, 22.9, 21.0, 29.0), (1, 5.0, 4.0, 17.0)])
    lengths = (30, 15, 8)
    assert torch.equal(boundary_targets(batch, lengths, 2.0).positive, sample_labels(batch, lengths, 1, 2.0).positive)


distance = st.floats(0.01, 100.0)


@settings(deadline=None)
@given(pair=st.tuples(distance, distance), target=st.tuples(distance, distance))
def test_diou_is_what_its_definition_says(pair: tuple[float, float], target: tuple[float, float]) -> None:
    (a, b), (c, d) = [(-back, on) for back, on in (pair, target)]  # as segments around the snippet
    shared = min(b, d) - max(a, c)
    union = (b - a) + (d - c) - shared
    enclosing = max(b, d) - min(a, c)
    want = 1 - shared / union + (((a + b) / 2 - (c + d) / 2) / enclosing) ** 2
    columns = torch.tensor([pair, target], dtype=torch.float64)
    assert diou_loss(columns[:1], columns[1:]).item() == pytest.approx(want, abs=1e-12)
    assert diou_loss(columns[:1], columns[:1]).item() == pytest.approx(0, abs=1e-12)


def test_the_gradient_of_diou() -> None:
    values = torch.rand(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distances = (5 * values + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(diou_loss, (distances, 5 * values.flip(0) + 0.2))


def test_segments_are_the_inverse_of_targets() -> None:
    mask = torch.arange(30) < torch.tensor([[30], [17]])
    labels = [(0, 8.0, 2.5, 20.0), (0, 22.9, 21.0, 29.75), (1, 5.0, 4.0, 17.0)]
    batch, lengths = make_batch(mask, labels), (30, 15, 8)
    targets = boundary_targets(batch, lengths, 2.0)
    distances = targets.distances.where(targets.positive.unsqueeze(-1), 1000.0)
    segments = segments_of(distances, lengths, mask.sum(dim=1))
    assert set(map(tuple, segments[targets.positive].tolist())) == {label[2:] for label in labels}
    # What reaches too far ends where its recording does.
    assert segments.amin(dim=(1, 2)).tolist() == [0, 0]
    assert segments.amax(dim=(1, 2)).tolist() == [30, 17]


def head_pyramid(mask: Tensor, levels: int, seed: int = 0) -> Pyramid:
    lengths = tuple(-(-mask.shape[1] // 2**level) for level in range(levels))
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(mask), sum(lengths), 4, generator=generator)
    distances = 9 * torch.rand(len(mask), sum(lengths), 2, generator=generator)
    return Pyramid(logits, pyramid_mask(mask, levels), lengths, distances)


RULES = DetectConfig(proposals="boundaries", class_threshold=0.6, nms=NmsConfig(min_score=0.2), video_weight=0.5)


def test_every_snippet_proposes_a_segment_for_each_chosen_class() -> None:
    pyramid = head_pyramid(torch.arange(9) < torch.tensor([[9], [6]]), 3)
    segments, scores, recording, label = propose(pyramid, RULES, 4.0)
    p = pyramid.logits.sigmoid()
    assert pyramid.distances is not None
    video = video_scores(pyramid, 4.0)
    want = []
    for r, c in (video >= 0.6).nonzero().tolist():
        for level, first in ((0, 0), (1, 9), (2, 14)):
            for j in range(LEVELS[level]):
                time, size = j * 2**level + 0.5, (9, 6)[r]
                fused = p[r, first + j, c] * (1 - p[r, first + j, 3])
                if time < size and fused >= 0.2:
                    back, on = pyramid.distances[r, first + j].tolist()
                    score = fused + 0.5 * video[r, c]
                    want.append([max(0, time - back), min(size, time + on), score, r, c])
    found = torch.column_stack([segments, scores, recording, label])
    assert len({(row[3], row[4]) for row in want}) > 2
    torch.testing.assert_close(found, torch.tensor(want))


def test_the_finest_level_is_the_first_that_proposes() -> None:
    pyramid = head_pyramid(torch.ones(1, 9, dtype=torch.bool), 3)
    counts = [len(propose(pyramid, RULES.model_copy(update={"finest_level": n}), 4.0)[1]) for n in range(3)]
    assert counts[0] > counts[1] > counts[2] > 0
    coarse = propose(pyramid, RULES.model_copy(update={"finest_level": 1}), 4.0)[0]
    everything = propose(pyramid, RULES, 4.0)[0]
    assert all((everything == segment).all(dim=1).any() for segment in coarse)


def small(levels: int = 2, **options: float) -> POTLoc:
    torch.manual_seed(0)
    return POTLoc(
        2, 1, width=16, heads=2, levels=levels, window=9, stem=1, layer_scale=1.0, boundary_head=True, **options
    )


def waves(count: int, seed: int) -> Batch:
    """Recordings of 40 to 64 snippets, with two actions each that are a plateau in noise."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(40, 65, (count,), generator=generator)
    mask = torch.arange(64) < lengths[:, None]
    features = 0.2 * torch.randn(count, 64, 2, generator=generator)
    labels = []
    for row in range(count):
        for first in (0, 20):
            start = first + float(torch.rand((), generator=generator)) * 6
            end = start + 5 + float(torch.rand((), generator=generator)) * 9
            time = torch.arange(64) + 0.5
            features[row, (time >= start) & (time < end), 0] += 1
            labels.append((row, (start + end) / 2, start, end))
    return make_batch(mask, labels, features * mask.unsqueeze(-1))


def test_a_trained_head_finds_the_boundaries() -> None:
    model, data, config = small(), waves(4, seed=0), LossConfig(mil=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(80):
        pyramid = model(data.features, data.mask)
        targets = sample_labels(data, pyramid.level_lengths, 1, 2.0)
        losses = total_loss(pyramid, targets, config, boundary_targets(data, pyramid.level_lengths, 2.0))
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
    assert losses["boundary"] < 0.1
    model.eval()
    with torch.no_grad():
        proposals = propose(model(data.features, data.mask), DetectConfig(proposals="boundaries"), 8.0)
    segments, _, recording, _ = suppress(proposals, 1, NmsConfig(iou=0.3))
    found = []
    for row in range(4):
        own = segments[recording == row].double()  # all: what is unlabelled scores as it likes, above actions too
        for start, end in data.segments[data.recording == row]:
            shared = (own[:, 1].clamp(max=end) - own[:, 0].clamp(min=start)).clamp(min=0)
            union = own[:, 1] - own[:, 0] + end - start - shared
            found.append(float((shared / union).max()))
    # From twelve initial weights 0.88 to 0.97, and 0.46 to 0.71 where the boundary loss weighs nothing. A single
    # label can be missed, and which one hangs on rounding.
    assert sum(found) / len(found) > 0.8


def test_a_run_trains_the_head_and_detects_with_it(tmp_path: Path) -> None:
    sizes = ["recordings=6", "length=80", "width=6", "classes=3"]
    options = [
        *(f"data.{size}" for size in sizes),
        *("base.model.hidden=8", "base.train.epochs=1", "model.width=8", "model.levels=2", "train.epochs=1"),
        *("model.boundary_head=true", "loss.boundary=0.5", "detect.proposals=boundaries", "detect.class_threshold=0"),
    ]
    run = potloc_fast.train(load_config("synthetic", [*options, "detect.nms.voting=0.6"]), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "potloc" / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        parts = (run.config.loss.mil * row["mil"], run.config.loss.act * row["act"], run.config.loss.bg * row["bg"])
        assert row["total"] == pytest.approx(sum(parts) + 0.5 * row["boundary"], rel=1e-5)
    before, after = run.build("potloc").state_dict(), run.load("potloc").state_dict()
    assert not torch.equal(before["boundaries.weight"], after["boundaries.weight"])

    recordings = load_dataset(run.config).recordings
    model, rules = run.load("potloc"), run.config.detect
    together = detect(model, recordings, run.classes, rules, 8.0).to_results()["results"]
    assert any(together.values())
    for recording in recordings:
        alone = detect(model, [recording], run.classes, rules, 8.0).to_results()["results"][recording.id]
        assert [found["label"] for found in together[recording.id]] == [found["label"] for found in alone]
        for key in ("segment", "score"):
            pair = [np.array([entry[key] for entry in entries]) for entries in (together[recording.id], alone)]
            np.testing.assert_allclose(*pair, atol=1e-3)
