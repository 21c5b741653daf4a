"""From features to detections in a whole test set: the model, proposals, NMS.

The recordings are the test split of HAPT and the settings those of its preset. The model's weights are random, which is
all the same for its speed but not for the number of proposals: so what lies after the model starts from smooth curves
in the shapes of the model's scores, which leave some 50,000 detections after NMS. On a GPU the model is part of what is
measured, and there is one recording of a million snippets, from features in the host's memory to detections.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.bench_cuda import need_gpu
from benchmarks.bench_proposals import smooth_curves
from benchmarks.harness import Case, Scaling, Unavailable, Work
from benchmarks.peers.model import ReleasedPOTLoc
from benchmarks.peers.nms import numpy_soft_nms
from benchmarks.peers.proposals import released_proposals
from potloc_fast.config import load_config
from potloc_fast.config.schema import FolderData, GridConfig
from potloc_fast.data.dataset import whole
from potloc_fast.data.grid import Grid
from potloc_fast.data.layouts import read_listing
from potloc_fast.data.recording import Recording
from potloc_fast.engine.detect import detect, propose, suppress
from potloc_fast.engine.device import bring
from potloc_fast.losses import pyramid_mask
from potloc_fast.models import POTLoc
from potloc_fast.models.pyramid import Pyramid

HAPT = Path(__file__).resolve().parents[2] / "shared" / "data" / "hapt" / "hapt_uci.zip"

R = TypeVar("R")


def hapt_test_split(device: str = "cpu") -> Work:
    """All recordings of the test users, in batches as the preset has them."""
    on_gpu = device == "cuda"
    if on_gpu:
        need_gpu()
    if not HAPT.is_file():
        raise Unavailable("../shared/data/hapt/hapt_uci.zip is not there")
    dataset = read_listing(FolderData(layout="hapt", root=HAPT, grid=GridConfig(window=50))).open()
    config = load_config("hapt")
    rules, ratio = config.detect, config.loss.topk_ratio
    assert rules.class_thresholds is not None
    recordings = sorted(dataset.subset("test"), key=lambda recording: len(recording.features))
    starts = range(0, len(recordings), rules.batch_size)
    batches = [whole(recordings[i : i + rules.batch_size]).to(device) for i in starts]
    classes, width = len(dataset.classes), recordings[0].features.shape[1]
    torch.manual_seed(0)
    model = POTLoc(width, classes, **config.model.model_dump()).eval().to(device)
    options = config.model.model_dump(exclude={"dropout", "padding_leaks", "boundary_head"})
    released_model = ReleasedPOTLoc(width, classes, **options).to(device)
    alone = [
        (features[mask].T[None], mask[mask][None, None])
        for batch in batches
        for features, mask in zip(batch.features, batch.mask, strict=True)
    ]
    pyramids = [smooth_pyramid(batch.mask, classes, config.model.levels, seed) for seed, batch in enumerate(batches)]
    thresholds = np.array(rules.class_thresholds.values(), dtype=np.float32)

    @torch.no_grad()
    def score() -> None:
        for batch in batches:
            model(batch.features, batch.mask)

    def ours() -> list[tuple[Tensor, ...]]:
        if on_gpu:
            score()
        found = [suppress(propose(pyramid, rules, ratio), classes, rules.nms) for pyramid in pyramids]
        return [tuple(column.cpu() for column in each) for each in found]

    @torch.no_grad()
    def released() -> list[tuple[np.ndarray[Any, Any], ...]]:
        if on_gpu:
            for recording in alone:
                released_model(*recording)
        return [released_form(pyramid) for pyramid in pyramids]

    def released_form(pyramid: Pyramid) -> tuple[np.ndarray[Any, Any], ...]:
        found = []
        for video in range(len(pyramid.logits)):
            levels = [logits[video, mask[video]].sigmoid().cpu().numpy() for logits, mask in pyramid.levels()]
            proposals = released_proposals(
                levels, thresholds, rules.class_threshold, ratio, rules.upsample, rules.outer
            )
            for label, segments, scores in proposals:
                keep, lowered = numpy_soft_nms(segments, scores, rules.nms.sigma, rules.nms.min_score)
                found.append((segments[keep], lowered, np.full(len(keep), video), np.full(len(keep), label)))
        return tuple(np.concatenate(column) for column in zip(*found, strict=True))

    def check(ours: list[tuple[Tensor, ...]], peer: list[tuple[np.ndarray[Any, Any], ...]]) -> None:
        for batch, other in zip(ours, peer, strict=True):
            assert len(batch[0]) == len(other[0]), f"{len(batch[0])} detections, the peer has {len(other[0])}"
            for one, same in zip(batch, other, strict=True):
                np.testing.assert_allclose(one.numpy(), same, rtol=0, atol=1e-5)

    def parts() -> Mapping[str, float]:
        seconds = {}
        _, seconds["model"] = timed(score)
        proposals, seconds["proposals"] = timed(lambda: [propose(pyramid, rules, ratio) for pyramid in pyramids])
        _, seconds["NMS"] = timed(lambda: [suppress(each, classes, rules.nms) for each in proposals])
        return seconds

    return Work(ours, {"released form": released}, check, parts)


def smooth_pyramid(mask: Tensor, classes: int, levels: int, seed: int) -> Pyramid:
    """Scores such as a model gives: smooth on the time axis, mostly low; every level sees the same at its stride."""
    size, length = mask.shape
    curves = smooth_curves(size * (classes + 1), length, seed).logit().to(mask.device)
    curves = curves.view(size, classes + 1, length).transpose(1, 2)
    strided = [curves[:, :: 2**level] for level in range(levels)]
    return Pyramid(torch.cat(strided, dim=1), pyramid_mask(mask, levels), tuple(part.shape[1] for part in strided))


class GivenScores(nn.Module):
    """A model that does its work, and gives other scores."""

    def __init__(self, model: nn.Module, pyramid: Pyramid) -> None:
        super().__init__()
        self.model, self.pyramid = model, pyramid

    def forward(self, features: Tensor, mask: Tensor) -> Pyramid:
        """Score `Tensor[B, T, F]`."""
        self.model(features, mask)
        return self.pyramid


def long_recording(snippets: int, width: int = 2048, device: str = "cuda") -> Work:
    """Preset thumos14 in bfloat16."""
    if device == "cuda":
        need_gpu()
    config = load_config("thumos14")
    rules, ratio = config.detect, config.loss.topk_ratio
    names = [f"class {number}" for number in range(20)]
    torch.manual_seed(0)
    model = POTLoc(width, len(names), **config.model.model_dump()).eval().to(device)
    mask = torch.ones(1, snippets, dtype=torch.bool, device=device)
    pyramid = smooth_pyramid(mask, len(names), config.model.levels + 1, seed=0)
    rows = np.random.default_rng(0).standard_normal((2**12, width), dtype=np.float32)
    features = np.resize(rows, (snippets, width))
    recording = Recording("long", features, Grid(fps=25, window=16, stride=16), "test")
    given = GivenScores(model, pyramid)

    def ours() -> object:
        return detect(given, [recording], names, rules, ratio, precision="bf16")

    @torch.no_grad()
    def parts() -> Mapping[str, float]:
        def scored() -> None:
            with torch.autocast(device, torch.bfloat16):
                model(batch.features, batch.mask)

        seconds = {}
        batch, seconds["copy"] = timed(lambda: next(bring([whole([recording])], torch.device(device))))
        _, seconds["model"] = timed(scored)
        proposals, seconds["proposals"] = timed(lambda: propose(pyramid, rules, ratio))
        _, seconds["NMS"] = timed(lambda: suppress(proposals, len(names), rules.nms))
        return seconds

    return Work(ours, {}, lambda *_: None, parts)


def timed(call: Callable[[], R]) -> tuple[R, float]:
    """The best of three runs, each waited for: result and seconds."""
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        result = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return result, min(seconds)


CASES: list[Case | Scaling] = [
    Case(
        "detect",
        "proposals and NMS after the model",
        "HAPT test split, 18 recordings, 12 classes, 2 levels, x8, 18 thresholds",
        "float32",
        hapt_test_split,
        {"released form": 20},
        slow=True,
    ),
    Case(
        "cuda-detect",
        "model, proposals and NMS",
        "HAPT test split, 18 recordings, 12 classes, 2 levels, x8, 18 thresholds",
        "float32",
        partial(hapt_test_split, "cuda"),
        {"released form": 20},
        slow=True,
        device="cuda",
    ),
    Case(
        "cuda-long",
        "detection in one long recording, from features in the host's memory",
        "thumos14 preset, 1,000,000 snippets of 2048",
        "bfloat16",
        partial(long_recording, 1_000_000),
        limit_s=2.0,
        slow=True,
        device="cuda",
    ),
]
