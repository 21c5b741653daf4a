"""Proposals from score curves, and non-maximum suppression."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Case, Scaling, Work
from benchmarks.peers import nms, proposals
from potloc_fast import ops

THRESHOLDS = np.linspace(0.02, 0.9, 36)
OUTER = 0.25
THRESHOLD, SIGMA, MIN_SCORE = 0.5, 0.5, 0.001
SEGMENTS_IN_A_GROUP = 238


def smooth_curves(rows: int, length: int, seed: int = 0) -> Tensor:
    """Scores that vary over some ten snippets, mostly low, as a trained model gives them; `Tensor[rows, length]`."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(-16, 17)
    window = torch.exp(-0.5 * (offsets / 4.0) ** 2)
    noise = torch.randn(rows, 1, length + len(window) - 1, generator=generator)
    smoothed = torch.nn.functional.conv1d(noise, (window / window.square().sum().sqrt())[None, None])
    return (1.5 * smoothed.squeeze(1) - 2).sigmoid()


def score_segments(videos: int, upsample: int, with_peers: bool) -> Work:
    """20 curves of 2304 values a video, all thresholds; the contrast on what is over the threshold, as released."""
    curves = smooth_curves(videos * 20, 2304).double()
    thresholds = torch.from_numpy(THRESHOLDS)
    peers: dict[str, Callable[[], Any]] = {
        "interp and split": lambda: proposals.interp_and_split(curves.numpy(), THRESHOLDS, upsample, OUTER),
        "NumPy": lambda: proposals.cumulative(curves.numpy(), THRESHOLDS, upsample, OUTER),
    }

    def check(ours: tuple[Tensor, ...], peer: np.ndarray[Any, Any]) -> None:
        np.testing.assert_allclose(np.column_stack([tensor.numpy() for tensor in ours]), peer, rtol=0, atol=1e-9)

    def ours() -> tuple[Tensor, ...]:
        return ops.score_segments(curves, thresholds, upsample=upsample, outer=OUTER)

    return Work(ours, peers if with_peers else {}, check)


def random_segments(size: int, kind: Literal["short", "long"]) -> tuple[Tensor, Tensor]:
    """Short ones overlap some twenty others, however many there are; a long one overlaps about half of all."""
    generator = torch.Generator().manual_seed(0)
    start, length, scores = torch.rand(3, size, generator=generator)
    if kind == "short":
        start, length = start * (size / 2), 1 + 9 * length
    else:
        start, length = start * 1000, length * 500
    return torch.stack([start, start + length], dim=1), scores


def check_kept(ours: Tensor, peer: np.ndarray[Any, Any]) -> None:
    """Both keep the same, in the same order."""
    np.testing.assert_array_equal(ours.numpy(), peer)


def check_lowered(ours: tuple[Tensor, Tensor], peer: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]) -> None:
    """Both keep the same, in the same order, with the same scores but for the last digit."""
    check_kept(ours[0], peer[0])
    np.testing.assert_allclose(ours[1].numpy(), peer[1], rtol=1e-6)


def hard(size: int, kind: Literal["short", "long"]) -> Work:
    """Hard suppression of one group."""
    segments, scores = random_segments(size, kind)
    peers: dict[str, Callable[[], Any]] = {
        "NumPy": lambda: nms.numpy_nms(segments.numpy(), scores.numpy(), THRESHOLD),
        "C++ O(N^2)": lambda: nms.cpp_nms(segments.numpy(), scores.numpy(), THRESHOLD),
    }
    return Work(lambda: ops.nms(segments, scores, THRESHOLD), peers, check_kept)


def soft(size: int, kind: Literal["short", "long"]) -> Work:
    """Gaussian soft suppression of one group."""
    segments, scores = random_segments(size, kind)
    peers: dict[str, Callable[[], Any]] = {
        "NumPy": lambda: nms.numpy_soft_nms(segments.numpy(), scores.numpy(), SIGMA, MIN_SCORE),
        "C++ O(N^2)": lambda: nms.cpp_soft_nms(segments.numpy(), scores.numpy(), SIGMA, MIN_SCORE),
    }
    return Work(lambda: ops.soft_nms(segments, scores, sigma=SIGMA, min_score=MIN_SCORE), peers, check_lowered)


def grouped() -> Work:
    """Hard suppression in the groups that classes of videos make, in no order."""
    groups = torch.randint(0, 4200, (1_000_000,), generator=torch.Generator().manual_seed(1))
    segments, scores = random_segments(len(groups), "short")
    segments = segments / len(groups) * 2 * SEGMENTS_IN_A_GROUP
    arrays = segments.numpy(), scores.numpy(), groups.numpy()
    peers: dict[str, Callable[[], Any]] = {
        "NumPy": lambda: nms.numpy_batched_nms(*arrays, THRESHOLD),
        "C++ O(N^2)": lambda: nms.cpp_batched_nms(*arrays, THRESHOLD),
    }
    return Work(lambda: ops.batched_nms(segments, scores, groups, iou_threshold=THRESHOLD)[2], peers, check_kept)


def growing(size: int) -> Work:
    """Hard suppression of short segments; the peers only where they take less than a second."""
    work = hard(size, "short")
    limits = {"NumPy": 2**13, "C++ O(N^2)": 2**15}
    return Work(work.ours, {name: peer for name, peer in work.peers.items() if size <= limits[name]}, work.check)


SHORT, LONG = "short against the recording", "long: each overlaps about half of the others"
CASES: list[Case | Scaling] = [
    Case(
        "segments",
        "score_segments",
        "5 of 210 videos, 20 classes, T 2304, upsampled 4 times, 36 thresholds",
        "float64",
        partial(score_segments, 5, 4, True),
        {"interp and split": 30},
    ),
    Scaling(
        "segments-upsample",
        "score_segments, 210 videos, 20 classes, T 2304, 36 thresholds",
        "upsample",
        "float64",
        (4, 16, 64),
        lambda upsample: score_segments(210, upsample, False),
        slow=True,
    ),
    Case("nms-2k", "nms", f"2,000, {SHORT}", "float32", partial(hard, 2000, "short"), {"NumPy": 10, "C++ O(N^2)": 1}),
    Case("nms-2k-long", "nms", f"2,000, {LONG}", "float32", partial(hard, 2000, "long"), {"C++ O(N^2)": 1}),
    Case(
        "nms-50k",
        "nms",
        f"50,000, {SHORT}",
        "float32",
        partial(hard, 50_000, "short"),
        {"NumPy": 100, "C++ O(N^2)": 1},
        slow=True,
    ),
    Case("nms-50k-long", "nms", f"50,000, {LONG}", "float32", partial(hard, 50_000, "long"), {"C++ O(N^2)": 1}),
    Case(
        "nms-groups",
        "batched_nms",
        "1,000,000 in 4,200 groups",
        "float32",
        grouped,
        {"NumPy": 10, "C++ O(N^2)": 1},
        slow=True,
    ),
    Case(
        "soft-nms-2k",
        "soft_nms, Gaussian",
        f"2,000, {SHORT}",
        "float32",
        partial(soft, 2000, "short"),
        {"NumPy": 10, "C++ O(N^2)": 1},
    ),
    Case(
        "soft-nms-2k-long",
        "soft_nms, Gaussian",
        f"2,000, {LONG}",
        "float32",
        partial(soft, 2000, "long"),
        {"C++ O(N^2)": 1},
    ),
    Case(
        "soft-nms-50k",
        "soft_nms, Gaussian",
        f"50,000, {SHORT}",
        "float32",
        partial(soft, 50_000, "short"),
        {"NumPy": 100, "C++ O(N^2)": 1},
        slow=True,
    ),
    Case(
        "soft-nms-50k-long",
        "soft_nms, Gaussian",
        f"50,000, {LONG}",
        "float32",
        partial(soft, 50_000, "long"),
        {"C++ O(N^2)": 1},
        slow=True,
    ),
    Scaling("nms-scale", f"nms, {SHORT}", "N", "float32", tuple(2**k for k in range(10, 21, 2)), growing, steady=2**14),
]
