"""Parity with the authors' released code, whose forward pass, losses and proposals are written out here once more.

Their tensors are [B, channels, T]. Lengths are an eighth of theirs: 96 snippets for 768, the rest as in the preset.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import potloc_fast
from potloc_fast.config import Config, load_config
from potloc_fast.config.schema import DetectConfig, LossConfig, Thresholds, TrainConfig
from potloc_fast.data import Grid, Recording
from potloc_fast.data.dataset import Batch, Labels, Sample, TrainingSet, batches, collate
from potloc_fast.data.recording import Point
from potloc_fast.engine.detect import detect, propose
from potloc_fast.engine.fit import WarmedAverage, fit
from potloc_fast.errors import InputError
from potloc_fast.interop import import_released, load_released
from potloc_fast.losses import sample_labels, total_loss
from potloc_fast.models import POTLoc, Pyramid

State = dict[str, Tensor]
Label = tuple[int, float, float, float]  # class, point, start, end
Proposal = tuple[int, float, float, float]  # class, score, start_sec, end_sec

FEATURES, CLASSES, WIDTH, HEADS, LEVELS, LENGTH = 6, 4, 8, 4, 2, 96
HALF_WINDOW = 12 // 2
NAMES = tuple("abcd")


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(
        "thumos14_released",
        ["data.root=.", f"train.length={LENGTH}", f"detect.pad.shortest={LENGTH}"],
    )


# The weights.


def base_state(seed: int) -> State:
    rng = torch.Generator().manual_seed(seed)
    return {
        "cls_module.conv_1.0.weight": torch.randn(16, FEATURES, 3, generator=rng) * 0.4,
        "cls_module.conv_1.0.bias": torch.randn(16, generator=rng) * 0.4,
        "cls_module.classifier.0.weight": torch.randn(CLASSES + 1, 16, 1, generator=rng) * 0.4,
    }


def main_state(seed: int, stem: int = 2, levels: int = LEVELS) -> State:
    rng = torch.Generator().manual_seed(seed)
    state: State = {}

    def put(name: str, *shape: int, scale: float = 1.0, shift: float = 0.0) -> None:
        state[name] = torch.randn(shape, generator=rng) * scale + shift

    def norm(name: str) -> None:
        put(f"{name}.weight", 1, WIDTH, 1, scale=0.3, shift=1.0)
        put(f"{name}.bias", 1, WIDTH, 1, scale=0.5)

    for i in range(2):
        put(f"backbone.embd.{i}.conv.weight", WIDTH, FEATURES if i == 0 else WIDTH, 3, scale=0.4)
        norm(f"backbone.embd_norm.{i}")
        put(f"cls_head.head.{i}.conv.weight", WIDTH, WIDTH, 3, scale=0.4)
        norm(f"cls_head.norm.{i}")
    for block in [f"backbone.stem.{i}" for i in range(stem)] + [f"backbone.branch.{i}" for i in range(levels)]:
        for name in ("query", "key", "value"):
            put(f"{block}.attn.{name}_conv.conv.weight", WIDTH, 1, 3)
            norm(f"{block}.attn.{name}_norm")
        for name, outputs, inputs in (
            *((f"attn.{part}", WIDTH, WIDTH) for part in ("query", "key", "value", "proj")),
            ("mlp.0", 4 * WIDTH, WIDTH),
            ("mlp.3", WIDTH, 4 * WIDTH),
        ):
            put(f"{block}.{name}.weight", outputs, inputs, 1, scale=inputs**-0.5)
            put(f"{block}.{name}.bias", outputs, scale=0.3)
        for name in ("attn", "mlp"):
            put(f"{block}.drop_path_{name}.scale", 1, WIDTH, 1, scale=0.5)
        norm(f"{block}.ln1")
        norm(f"{block}.ln2")
    for level in range(levels + 1):
        norm(f"neck.fpn_norms.{level}")
    put("cls_head.cls_head.conv.weight", CLASSES + 1, WIDTH, 3, scale=0.6)
    put("cls_head.cls_head.conv.bias", CLASSES + 1, scale=0.5)
    put("cls_module.conv_1.0.weight", FEATURES, FEATURES, 3)
    put("cls_module.conv_1.0.bias", FEATURES)
    put("cls_module.classifier.0.weight", CLASSES + 1, FEATURES, 1)
    return state


# The forward passes.


def base_logits(state: State, features: Tensor) -> Tensor:
    """Logits `Tensor[1, T, C + 1]` of one whole recording `Tensor[1, T, F]`."""
    weight, bias = state["cls_module.conv_1.0.weight"], state["cls_module.conv_1.0.bias"]
    x = torch.relu(torch.conv1d(features.transpose(1, 2), weight, bias, padding=1))
    return torch.conv1d(x, state["cls_module.classifier.0.weight"]).transpose(1, 2)


def layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=1, keepdim=True)
    spread = (centred**2).mean(dim=1, keepdim=True)
    return centred / torch.sqrt(spread + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def masked_conv(x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """A convolution whose output is masked; what it reads is not."""
    groups = x.shape[1] if weight.shape[1] == 1 else 1
    return torch.conv1d(x, weight, bias, stride, weight.shape[2] // 2, groups=groups) * mask[..., ::stride]


def local_attention(state: State, name: str, x: Tensor, mask: Tensor, stride: int) -> Tensor:
    def project(part: str) -> Tensor:
        out = masked_conv(x, mask, state[f"{name}.{part}_conv.conv.weight"], stride=stride)
        out = layer_norm(state, f"{name}.{part}_norm", out)
        out = torch.conv1d(out, state[f"{name}.{part}.weight"], state[f"{name}.{part}.bias"])
        return out.unflatten(1, (HEADS, -1))  # [B, H, D, T]

    q, k, v = (project(part) for part in ("query", "key", "value"))
    mask = mask[..., ::stride]
    time = torch.arange(q.shape[3])
    band = (time[:, None] - time).abs() <= HALF_WINDOW
    attention = torch.einsum("bhdi,bhdj->bhij", q, k) / math.sqrt(q.shape[2])
    attention = attention.masked_fill(~band, -torch.inf) + torch.where(mask, 0.0, -1e4).unsqueeze(1)
    out = torch.einsum("bhij,bhdj->bhdi", attention.softmax(dim=-1), v).flatten(1, 2)
    return masked_conv(out, mask, state[f"{name}.proj.weight"], state[f"{name}.proj.bias"])


def transformer_block(state: State, name: str, x: Tensor, mask: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    skip = torch.max_pool1d(x, 3, 2, padding=1) if stride == 2 else x
    out = local_attention(state, f"{name}.attn", layer_norm(state, f"{name}.ln1", x), mask, stride)
    mask = mask[..., ::stride]
    x = skip * mask + state[f"{name}.drop_path_attn.scale"] * out
    hidden = layer_norm(state, f"{name}.ln2", x)
    hidden = torch.conv1d(hidden, state[f"{name}.mlp.0.weight"], state[f"{name}.mlp.0.bias"])
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    hidden = torch.conv1d(hidden, state[f"{name}.mlp.3.weight"], state[f"{name}.mlp.3.bias"])
    return x + state[f"{name}.drop_path_mlp.scale"] * (hidden * mask), mask


def main_logits(state: State, features: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Logits `Tensor[B, T_l, C + 1]` and mask `Tensor[B, T_l]` of each level, from `Tensor[B, T, F]`."""
    x, mask = features.transpose(1, 2), mask.unsqueeze(1)
    for i in range(2):
        x = masked_conv(x, mask, state[f"backbone.embd.{i}.conv.weight"])
        x = torch.relu(layer_norm(state, f"backbone.embd_norm.{i}", x))
    names = sorted({key.rsplit(".attn.")[0] for key in state if ".attn." in key})
    for name in (name for name in names if ".stem." in name):
        x, mask = transformer_block(state, name, x, mask, 1)
    levels = [(x, mask)]
    for name in (name for name in names if ".branch." in name):
        levels.append(transformer_block(state, name, *levels[-1], 2))
    found = []
    for level, (x, mask) in enumerate(levels):
        x = layer_norm(state, f"neck.fpn_norms.{level}", x)
        for i in range(2):
            x = masked_conv(x, mask, state[f"cls_head.head.{i}.conv.weight"])
            x = torch.relu(layer_norm(state, f"cls_head.norm.{i}", x))
        x = masked_conv(x, mask, state["cls_head.cls_head.conv.weight"], state["cls_head.cls_head.conv.bias"])
        found.append((x.transpose(1, 2), mask.squeeze(1)))
    return found


def probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of classes and background, unfused and fused."""
    p = logits.sigmoid()
    return p, torch.cat([p[..., :-1] * (1 - p[..., -1:]), p[..., -1:]], dim=-1)


# The losses.


def cross_entropy(p: Tensor, target: Tensor) -> Tensor:
    return -(target * p.log().clamp(min=-100) + (1 - target) * (1 - p).log().clamp(min=-100))


def focal(p: Tensor, target: Tensor) -> Tensor:
    return ((1 - p) * target + p * (1 - target)) ** 2 * cross_entropy(p, target)


def pooled(p: Tensor, video: Tensor) -> Tensor:
    """Scores of one recording's classes: the top eighth of `Tensor[T, C]` where it shows a class, else everything."""
    top = p.sort(dim=0, descending=True).values[: len(p) // 8].mean(dim=0)
    return top * video + p.mean(dim=0) * (1 - video)


def seeds_between_actions(background: list[float], action: list[int]) -> set[int]:
    seeds = set()
    for left, right in itertools.pairwise(action):
        over = [t for t in range(left + 1, right) if background[t] >= 0.95]
        if len(over) >= 2:
            seeds |= set(range(over[0], over[-1] + 1))
        elif right - left > 1:
            seeds |= {*over, max(range(left + 1, right), key=lambda t: background[t])}
    return seeds


def base_seeds(background: list[float], action: list[int]) -> set[int]:
    seeds = seeds_between_actions(background, action)
    before, after = range(action[0]), range(action[-1] + 1, len(background))
    if before:
        over = [t for t in before if background[t] >= 0.95]
        seeds |= set(range((over[-1] if over else max(before, key=lambda t: background[t])) + 1))
    if after:
        over = [t for t in after if background[t] >= 0.95]
        seeds |= set(range(over[0] if over else max(after, key=lambda t: background[t]), len(background)))
    return seeds


def main_seeds(background: list[float], action: list[int]) -> set[int]:
    if not action:
        return set()
    seeds = seeds_between_actions(background, action)
    for gap in (range(action[0]), range(action[-1] + 1, len(background))):
        over = [t for t in gap if background[t] >= 0.95]
        if over:
            seeds |= set(range(over[0], over[-1] + 1))
    return seeds


def snippet_losses(fused: Tensor, target: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """L_Act and L_BG of one recording, from `Tensor[T, C + 1]`."""
    action, is_background = target.amax(dim=1), torch.zeros_like(target)
    is_background[:, -1] = 1
    act = (focal(fused, target).sum(dim=1) * action).sum() / max(1.0, float(action.sum()))
    bg = (focal(fused, is_background).sum(dim=1) * seeds).sum() / max(1.0, float(seeds.sum()))
    return act, bg


def total(mil: list[Tensor], act: list[Tensor], bg: list[Tensor]) -> dict[str, Tensor]:
    means = {name: torch.stack(values).mean() for name, values in (("mil", mil), ("act", act), ("bg", bg))}
    return {"total": means["mil"] + 0.5 * means["act"] + means["bg"], **means}


def base_losses(state: State, recordings: list[tuple[Tensor, list[Label]]]) -> dict[str, Tensor]:
    mil, act, bg = [], [], []
    for features, labels in recordings:
        p, fused = (values[0] for values in probabilities(base_logits(state, features[None])))
        target, video = torch.zeros_like(p), torch.zeros(CLASSES)
        for label, point, _, _ in labels:
            target[min(int(point), len(p) - 1), label] = 1
            video[label] = 1
        action = target.amax(dim=1).nonzero().flatten().tolist()
        seeds = torch.zeros(len(p))
        seeds[sorted(base_seeds(p[:, -1].tolist(), action))] = 1
        mil.append(cross_entropy(pooled(p[:, :-1], video), video).mean())
        one, other = snippet_losses(fused, target, seeds)
        act.append(one)
        bg.append(other)
    return total(mil, act, bg)


def main_targets(labels: list[Label], lengths: list[int]) -> Tensor:
    """Targets `Tensor[sum of lengths, C + 1]` of labels that are rounded already; the shortest wins."""
    rows = []
    for level, length in enumerate(lengths):
        for t in (j * 2**level for j in range(length)):
            row = torch.zeros(CLASSES + 1)
            reach = 2 * 2**level
            hits = [(e - s, c) for c, p, s, e in labels if max(s, p - reach) < t < min(e, p + reach)]
            for _, c in (hit for hit in hits if hit[0] == min(hits)[0]):
                row[c] = 1
            rows.append(row)
    return torch.stack(rows)


def main_losses(state: State, batch: Batch, labels: list[list[Label]]) -> dict[str, Tensor]:
    levels = main_logits(state, batch.features.to(torch.float64), batch.mask)
    lengths = [mask.shape[1] for _, mask in levels]
    mil, act, bg = [], [], []
    for row in range(len(batch.mask)):
        size = int(batch.mask[row].sum())
        kept = [
            (c, round(p), min(max(round(s), 0), size - 1), min(max(round(e), 0), size - 1))
            for c, p, s, e in labels[row]
            if 0 <= p <= size - 1
        ]
        video = torch.zeros(CLASSES)
        for label in kept:
            video[label[0]] = 1
        target = main_targets(kept, lengths)
        scores, curves, seeds = [], [], []
        for (logits, mask), part in zip(levels, target.split(lengths), strict=True):
            p, fused = (values[row] * mask[row, :, None] for values in probabilities(logits))
            scores.append(pooled(p[:, :-1], video))
            curves.append(fused)
            action = (part.amax(dim=1) * mask[row]).nonzero().flatten().tolist()
            own = torch.zeros(len(p))
            own[sorted(main_seeds(fused[:, -1].tolist(), action))] = 1
            seeds.append(own)
        valid = torch.cat([mask[row] for _, mask in levels])
        mil.append(cross_entropy(torch.stack(scores).mean(dim=0), video).mean())
        one, other = snippet_losses(torch.cat(curves), target * valid[:, None], torch.cat(seeds))
        act.append(one)
        bg.append(other)
    return total(mil, act, bg)


# The proposals.


def upsampled(curve: Tensor, scale: int) -> NDArray[np.float64]:
    """A curve at the points i / scale, extrapolated from the last two values: float64 from differences in float32."""
    at = np.arange(len(curve) * scale) / scale
    left = np.minimum(at.astype(int), len(curve) - 2)
    return curve.double().numpy()[left] + curve.diff().double().numpy()[left] * (at - left)


def cut(over: NDArray[np.bool_], curve: NDArray[np.float64], outer: float) -> list[tuple[int, int, float]]:
    """First and last point (inclusive) of each run, and its contrast on `curve`."""
    points = np.flatnonzero(over)
    if not points.any():  # none, or point 0 alone
        return []
    found = []
    for run in np.split(points, np.flatnonzero(np.diff(points) > 1) + 1):
        first, last = int(run[0]), int(run[-1])
        low = max(0, int(first - outer * len(run)))
        high = min(len(curve) - 1, int(last + outer * len(run)))
        outside = np.concatenate([curve[low:first], curve[last + 1 : high + 1]])
        contrast = curve[first : last + 1].mean() - (outside.mean() if len(outside) else 0.0)
        found.append((first, last, float(contrast)))
    return found


class Rules(NamedTuple):
    """What the released code proposes by, written into it for each model."""

    upsample: int
    video_threshold: float
    class_thresholds: NDArray[np.float64]
    actionness_thresholds: NDArray[np.float64]
    outer: float
    video_weight: float
    nms: float


BASE_RULES = Rules(8, 0.65, np.arange(0, 0.2, 0.025), np.arange(0.3, 1, 0.025), 0.2, 0.25, 0.6)
MAIN_RULES = Rules(4, 0.7, np.arange(0.4, 0.45, 0.05), np.arange(0.1, 0.95, 0.025), 0.1, 0.0, 0.45)


def proposals_of_level(logits: Tensor, mask: Tensor, scale: int, rules: Rules) -> list[Proposal]:
    """Proposals of one recording and level, from `Tensor[T, C + 1]`, at `scale` points to a value."""
    p, fused = (values * mask[:, None] for values in probabilities(logits))
    actionness = (1 - p[:, -1]) * mask
    video = p[:, :-1].sort(dim=0, descending=True).values[: len(p) // 8].mean(dim=0).numpy()
    chosen = np.flatnonzero(video >= rules.video_threshold)
    found = []
    for c in chosen if len(chosen) else [int(video.argmax())]:
        curve, action = upsampled(fused[:, c], scale), upsampled(actionness, scale)
        runs = []
        for t in rules.class_thresholds:
            low = np.where(curve < t, 0.0, curve)
            runs += cut(low > 0, low, rules.outer)
        for t in rules.actionness_thresholds:
            runs += cut((action >= t) & (action > 0), curve, rules.outer)
        weighed = rules.video_weight * float(video[c])
        found += [(int(c), score + weighed, first, last + 1) for first, last, score in runs]
    return found


def suppressed(proposals: list[Proposal], threshold: float) -> list[Proposal]:
    """Greedy suppression a class at a time, with 1 added to lengths in seconds."""
    kept = []
    for c in {proposal[0] for proposal in proposals}:
        left = sorted((proposal for proposal in proposals if proposal[0] == c), key=lambda proposal: -proposal[1])
        while left:
            best, *rest = left
            kept.append(best)
            left = []
            for other in rest:
                inter = max(0.0, min(best[3], other[3]) - max(best[2], other[2]) + 1)
                union = (best[3] - best[2] + 1) + (other[3] - other[2] + 1) - inter
                if inter / union < threshold:
                    left.append(other)
    return sorted(kept)


def proposals_of(levels: list[tuple[Tensor, Tensor]], rules: Rules) -> list[Proposal]:
    found = []
    for level, (logits, mask) in enumerate(levels):
        found += proposals_of_level(logits[0].float(), mask[0], rules.upsample * 2**level, rules)
    factor = 16 / (rules.upsample * 25)
    return suppressed([(c, score, first * factor, last * factor) for c, score, first, last in found], rules.nms)


def base_proposals(state: State, features: Tensor) -> list[Proposal]:
    return proposals_of([(base_logits(state, features[None]), torch.ones(1, len(features)))], BASE_RULES)


def main_proposals(state: State, features: Tensor) -> list[Proposal]:
    size = len(features)
    length = LENGTH if size <= LENGTH else math.ceil(size / 48) * 48
    padded = torch.nn.functional.pad(features, (0, 0, 0, length - size))[None]
    return proposals_of(main_logits(state, padded, torch.arange(length)[None] < size), MAIN_RULES)


# What is asked.


class InFloat64(nn.Module):
    """A model in float64, so that rounding on the way to the scores decides no threshold."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.double()

    def forward(self, features: Tensor, mask: Tensor) -> Pyramid:
        return self.model(features.double(), mask)


def doubled(state: State) -> State:
    return {key: value.double() for key, value in state.items()}


def write(state: State, path: Path, kind: str) -> Path:
    torch.save({"state_dict_ema": state, "epoch": 45} if kind == "main" else state, path)
    return path


def smooth_features(size: int, seed: int) -> Tensor:
    """Features that keep their direction for a while, as those of videos do."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((size + 8, FEATURES))
    smooth = np.stack([noise[i : i + size] for i in range(9)]).mean(axis=0) * 3
    return torch.from_numpy(2 * smooth + 0.3 * noise[:size]).float()


def random_labels(size: int, count: int, seed: int) -> list[Label]:
    """Labels of a crop, some of whose points lie outside it."""
    rng = np.random.default_rng(seed)
    labels = []
    for _ in range(count):
        point = float(rng.uniform(-4, size + 4))
        start, end = point - float(rng.uniform(0.2, 9)), point + float(rng.uniform(0.2, 9))
        labels.append((int(rng.integers(CLASSES)), point, max(0.0, start), min(float(size), end)))
    return [label for label in labels if label[2] < label[3]]


def make_batch(features: list[Tensor], labels: list[list[Label]], length: int | None) -> Batch:
    samples = []
    for one, own in zip(features, labels, strict=True):
        table = np.array(own, dtype=np.float64).reshape(-1, 4)
        samples.append(Sample(one.numpy(), Labels(table[:, 1], table[:, 2:], table[:, 0].astype(np.int64))))
    return collate(samples, length)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stem", [0, 2])
def test_main_scores(tmp_path: Path, config: Config, seed: int, stem: int) -> None:
    state = main_state(seed, stem)
    model = load_released(write(state, tmp_path / "main.pth.tar", "main"), "main")
    sizes = [LENGTH, 61, 1, 90]
    batch = make_batch([smooth_features(size, 10 * seed + size) for size in sizes], [[]] * 4, LENGTH)
    levels = main_logits(doubled(state), batch.features.double(), batch.mask)
    with torch.no_grad():
        pyramid = model(batch.features, batch.mask)
        closed = load_released(tmp_path / "main.pth.tar", "main")
        for module in closed.modules():
            if hasattr(module, "padding_leaks"):
                module.padding_leaks = False
        without = closed(batch.features, batch.mask)
    assert pyramid.level_lengths == tuple(mask.shape[1] for _, mask in levels)
    for (logits, mask), (want, valid) in zip(pyramid.levels(), levels, strict=True):
        assert torch.equal(mask, valid)
        torch.testing.assert_close(logits[mask].sigmoid().double(), want[valid].sigmoid(), rtol=0, atol=1e-4)
    # It is in the padded recordings, near their end, that padding leaks.
    change = (pyramid.logits - without.logits).abs().amax(dim=2).where(pyramid.mask, 0.0)[:, :LENGTH]
    assert change[0].max() < 1e-5
    assert change[1, :20].max() < 1e-5
    assert change[1, 60] > 1e-2


def assert_same_losses(model: nn.Module, batch: Batch, loss: LossConfig, want: dict[str, Tensor]) -> None:
    pyramid = InFloat64(model)(batch.features, batch.mask)
    targets = sample_labels(batch, pyramid.level_lengths, CLASSES, loss.radius, loss.positives, loss.overlap)
    found = total_loss(pyramid, targets, loss)
    for name, value in want.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-5, atol=0, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("seed", range(3))
def test_main_losses(tmp_path: Path, config: Config, seed: int) -> None:
    state = main_state(seed)
    state["cls_head.cls_head.conv.bias"][-1] += 2  # a background that is sure of itself
    model = load_released(write(state, tmp_path / "main.pth.tar", "main"), "main")
    sizes = [LENGTH, 61, 90, 30]
    counts = [9, 6, 2, 0]
    labels = [random_labels(size, n, 7 * seed + size) for size, n in zip(sizes, counts, strict=True)]
    batch = make_batch([smooth_features(size, seed + size) for size in sizes], labels, LENGTH)
    want = main_losses(doubled(state), batch, labels)
    assert min(want.values()) > 1e-4  # all of them are at work
    assert_same_losses(model, batch, config.loss, want)


@pytest.mark.parametrize("seed", range(3))
def test_base_losses(tmp_path: Path, config: Config, seed: int) -> None:
    state = base_state(seed)
    model = load_released(write(state, tmp_path / "base.pkl", "base"), "base")
    sizes = [80, 33, 57]
    features = [smooth_features(size, seed + size) for size in sizes]
    labels = [
        [
            (c, p, math.floor(p), math.floor(p) + 1.0)
            for c, p, _, _ in random_labels(size, 7, seed + size)
            if 0 <= p < size
        ]
        for size in sizes
    ]
    assert all(labels)
    batch = make_batch(features, labels, None)
    want = base_losses(doubled(state), [(one.double(), own) for one, own in zip(features, labels, strict=True)])
    assert_same_losses(model, batch, config.base.loss, want)


@pytest.mark.parametrize("kind", ["base", "main"])
@pytest.mark.parametrize("seed", range(3))
def test_proposals(tmp_path: Path, config: Config, kind: str, seed: int) -> None:
    state = base_state(seed) if kind == "base" else main_state(seed)
    state = {
        key: value * 2 if "classifier" in key or "cls_head.cls_head" in key else value for key, value in state.items()
    }
    model = load_released(write(state, tmp_path / "model", kind), kind)  # type: ignore[call-overload]
    section = config.base if kind == "base" else config
    sizes = [LENGTH, 61, 97, 150, 144, 95]
    recordings = [
        Recording(str(size), smooth_features(size, 100 * seed + size).numpy(), Grid(25, 16, 16), "test")
        for size in sizes
    ]
    want_of: Callable[[State, Tensor], list[Proposal]] = base_proposals if kind == "base" else main_proposals
    found = detect(InFloat64(model), recordings, NAMES, section.detect, section.loss.topk_ratio)
    for i, recording in enumerate(recordings):
        want = want_of(doubled(state), torch.from_numpy(np.asarray(recording.features)).double())
        own = found.video == i
        columns = (found.label[own], found.score[own], found.start_sec[own], found.end_sec[own])
        rows = sorted(zip(*(column.tolist() for column in columns), strict=True))
        assert len(want) > 5
        assert [row[0] for row in rows] == [row[0] for row in want]
        np.testing.assert_allclose([row[1] for row in rows], [row[1] for row in want], rtol=0, atol=1e-5)
        np.testing.assert_allclose([row[2:] for row in rows], [row[2:] for row in want], rtol=0, atol=1e-4)


def test_background_seeds_without_any_action() -> None:
    batch = make_batch([smooth_features(30, 0)], [[]], None)
    pyramid = Pyramid(3 * torch.randn(1, 30, CLASSES + 1), batch.mask, (30,))
    targets = sample_labels(batch, (30,), CLASSES, 2)
    bg = {
        rule: total_loss(pyramid, targets, LossConfig(outer_seeds=rule))["bg"] for rule in ("argmax", "edge", "between")
    }
    assert bg["edge"] == bg["argmax"] > 0
    assert bg["between"] == 0


@pytest.mark.parametrize(("others", "drop", "found"), [(0.1, True, 0), (0.1, False, 1), (0.9, True, 2)])
def test_the_first_point_alone_is_dropped(others: float, drop: bool, found: int) -> None:
    curve = torch.tensor([[0.9, 0.1, 0.1, others, 0.1]]).logit()
    pyramid = Pyramid(torch.stack([curve, torch.full((1, 5), -30.0)], dim=2), torch.ones(1, 5, dtype=torch.bool), (5,))
    thresholds = Thresholds(start=0.5, stop=0.5, step=1)
    config = DetectConfig(
        class_thresholds=thresholds, actionness_thresholds=None, upsample=1, align="start", drop_first_point=drop
    )
    assert propose(pyramid, config, 1)[0].tolist() == [[0.0, 1.0], [3.0, 4.0]][:found]


def test_what_needs_another_key_says_so() -> None:
    for overrides, message in (
        (["detect.truncate_outer=true"], "expected align: start where truncate_outer or drop_first_point is set"),
        (["train.pad=true", "train.length=null"], "expected a length to pad to where pad is set"),
    ):
        with pytest.raises(InputError, match=message):
            load_config("thumos14", overrides)


# Training.


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_starts_at_the_untrained_weights(decay: float) -> None:
    model = nn.Linear(3, 2)
    average, expected = WarmedAverage(model, decay, warm=False), model.weight.detach().double()
    for _ in range(10):
        nn.init.normal_(model.weight)
        average.update_parameters(model)
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    torch.testing.assert_close(average.module.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spared", [False, True])
def test_weight_decay_spares_biases_norms_and_scales(tmp_path: Path, spared: bool) -> None:
    features = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)
    data = TrainingSet([Recording("a", features, Grid(25, 16, 16), "train", points=(Point("a", 5.0),))], NAMES)
    model = POTLoc(5, CLASSES, width=8, levels=1, stem=1, layer_scale=1.0)
    train = TrainConfig(epochs=4, length=None, optimizer="adamw", lr=0.01, weight_decay=50, decay_weights_only=spared)
    fit(model, data, CLASSES, LossConfig(), train, seed=0, folder=tmp_path, stage="potloc")
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            assert weight.abs().max() < 0.1, name
        elif "scale" in name or ("norms" in name and "weight" in name):
            assert (weight.min() > 0.9) == spared, name


def test_the_last_batch_is_left_out_unless_it_is_the_only_one() -> None:
    recordings = [
        Recording(str(size), np.zeros((size, 2), np.float32), Grid(25, 16, 16), "train") for size in (5, 6, 7)
    ]
    data = TrainingSet(recordings, NAMES, length=8)
    assert [len(batch.mask) for batch in batches(data, 2, epoch=0, seed=0, drop_last=True)] == [2]
    assert [len(batch.mask) for batch in batches(data, 4, epoch=0, seed=0, drop_last=True)] == [3]
    assert [batch.mask.shape for batch in batches(data, 3, epoch=0, seed=0, length=8)] == [(3, 8)]


@pytest.fixture
def lacp(tmp_path: Path) -> Path:
    """Five training videos and two to test, in the layout of LACP, 3 + 2 channels wide."""
    root = tmp_path / "thumos14"
    rng = np.random.default_rng(0)
    database, rows = {}, ["class,class_index,start_frame,stop_frame,video_id,point"]
    splits: dict[str, list[str]] = {"train": [], "test": []}
    for i in range(7):
        subset, video, label, start = "train" if i < 5 else "test", f"video_{i}", ("Run", "Sit")[i % 2], 20 + 5 * i
        splits[subset].append(video)
        database[video] = {"subset": subset, "annotations": [{"segment": [f"{start}", f"{start + 9}"], "label": label}]}
        rows.append(f"{label},{i % 2},{start * 30},{(start + 9) * 30},{video},{(start + 4) * 30}")
        for stream, width in (("rgb", 3), ("flow", 2)):
            folder = root / "features" / subset / stream
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"{video}.npy", rng.standard_normal((90 + 10 * i, width)).astype(np.float32))
    (root / "gt.json").write_text(json.dumps({"database": database}))
    (root / "fps_dict.json").write_text(json.dumps(dict.fromkeys(database, 30.0)))
    (root / "point_labels.csv").write_text("\n".join(rows))
    for subset, videos in splits.items():
        (root / f"split_{subset}.txt").write_text("\n".join(videos))
    return root


def test_the_released_preset_trains(lacp: Path, tmp_path: Path) -> None:
    overrides = [
        f"data.root={lacp}",
        "base.model.hidden=8",
        "base.train.batch_size=2",
        "base.train.epochs=3",
        "base.train.stop_epoch=1.5",
        "model.width=8",
        "train.length=96",
        "train.batch_size=2",
        "train.epochs=4",
        "train.stop_epoch=3",
        "train.warmup_epochs=1",
        "detect.pad.shortest=96",
    ]
    run = potloc_fast.train(load_config("thumos14_released", overrides), tmp_path / "run")
    logs = {
        stage: [json.loads(line) for line in (run.folder / stage / "metrics.jsonl").open()]
        for stage in ("base", "potloc")
    }
    # Of five recordings an epoch takes two batches of two.
    assert [row["epoch"] for row in logs["base"]] == [0, 0, 1]
    assert [row["epoch"] for row in logs["potloc"]] == [0, 0, 1, 1, 2, 2]
    assert logs["potloc"][-1]["lr"] > 1e-5  # three of four epochs: the schedule has not come to its end
    assert json.loads((run.folder / "potloc" / "evaluation.json").read_text())
    labels = json.loads((run.folder / "pseudo_labels.json").read_text())["results"]
    assert 0 < sum(map(len, labels.values())) <= 5


def test_an_imported_run_is_scored_on_a_data_set(lacp: Path, tmp_path: Path) -> None:
    state = main_state(0)
    for key in ("backbone.embd.0.conv.weight", "cls_head.cls_head.conv.weight", "cls_head.cls_head.conv.bias"):
        state[key] = state[key][:, :5] if "embd" in key else state[key][:3]
    write(state, tmp_path / "main.pth.tar", "main")
    run = import_released(tmp_path / "run", main=tmp_path / "main.pth.tar", classes=("Run", "Sit"))
    config = load_config(run.folder / "config.yaml", [f"data.root={lacp}", "detect.pad.shortest=96"])
    potloc_fast.train(config, run.folder, ["detect"])
    assert len(json.loads((run.folder / "potloc" / "evaluation.json").read_text())["tiou"]) == 7
