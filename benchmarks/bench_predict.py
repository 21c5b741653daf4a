"""From features to detections in a whole test set: the model, proposals, NMS.

The recordings are the test split of HAPT and the settings those of its preset. The model's weights are random, which is
all the same for its speed but not for the number of proposals: so what lies after the model starts from smooth curves
in the shapes of the model's scores, which leave some 50,000 detections after NMS.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench_proposals import smooth_curves
from benchmarks.harness import Case, Scaling, Unavailable, Work
from benchmarks.peers.nms import numpy_soft_nms
from benchmarks.peers.proposals import released_proposals
from potloc_fast.config import load_config
from potloc_fast.config.schema import FolderData
from potloc_fast.data.dataset import whole
from potloc_fast.data.layouts import read_listing
from potloc_fast.engine.detect import propose, suppress
from potloc_fast.losses import pyramid_mask
from potloc_fast.models import POTLoc
from potloc_fast.models.pyramid import Pyramid

HAPT = Path(__file__).resolve().parents[2] / "shared" / "data" / "hapt" / "hapt_uci.zip"

R = TypeVar("R")


def hapt_test_split() -> Work:
    """All recordings of the test users, in batches as the preset has them."""
    if not HAPT.is_file():
        raise Unavailable("../shared/data/hapt/hapt_uci.zip is not there")
    dataset = read_listing(FolderData(layout="hapt", root=HAPT)).open()
    config = load_config("hapt")
    rules, ratio = config.detect, config.loss.topk_ratio
    assert rules.class_thresholds is not None
    recordings = sorted(dataset.subset("test"), key=lambda recording: len(recording.features))
    batches = [whole(recordings[i : i + rules.batch_size]) for i in range(0, len(recordings), rules.batch_size)]
    classes = len(dataset.classes)
    torch.manual_seed(0)
    model = POTLoc(recordings[0].features.shape[1], classes, **config.model.model_dump()).eval()
    pyramids = [smooth_pyramid(batch.mask, classes, config.model.levels, seed) for seed, batch in enumerate(batches)]
    thresholds = np.array(rules.class_thresholds.values(), dtype=np.float32)

    def ours() -> list[tuple[Tensor, ...]]:
        return [suppress(propose(pyramid, rules, ratio), classes, rules.nms) for pyramid in pyramids]

    def released() -> list[tuple[np.ndarray[Any, Any], ...]]:
        return [released_form(pyramid) for pyramid in pyramids]

    def released_form(pyramid: Pyramid) -> tuple[np.ndarray[Any, Any], ...]:
        found = []
        for video in range(len(pyramid.logits)):
            levels = [logits[video, mask[video]].sigmoid().numpy() for logits, mask in pyramid.levels()]
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

    @torch.no_grad()
    def parts() -> Mapping[str, float]:
        seconds = {}
        _, seconds["model"] = timed(lambda: [model(batch.features, batch.mask) for batch in batches])
        proposals, seconds["proposals"] = timed(lambda: [propose(pyramid, rules, ratio) for pyramid in pyramids])
        _, seconds["NMS"] = timed(lambda: [suppress(each, classes, rules.nms) for each in proposals])
        return seconds

    return Work(ours, {"released form": released}, check, parts)


def smooth_pyramid(mask: Tensor, classes: int, levels: int, seed: int) -> Pyramid:
    """Scores such as a model gives: smooth on the time axis, mostly low; every level sees the same at its stride."""
    size, length = mask.shape
    curves = smooth_curves(size * (classes + 1), length, seed).logit().view(size, classes + 1, length).transpose(1, 2)
    strided = [curves[:, :: 2**level] for level in range(levels)]
    return Pyramid(torch.cat(strided, dim=1), pyramid_mask(mask, levels), tuple(part.shape[1] for part in strided))


def timed(call: Callable[[], R]) -> tuple[R, float]:
    """The best of three runs: result and seconds."""
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        result = call()
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
    )
]
