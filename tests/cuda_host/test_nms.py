from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from potloc_fast import ops, reference

pytestmark = pytest.mark.cuda_host

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
METHODS = ["hard", "linear", "gaussian"]
NAN, INF = float("nan"), float("inf")

Guarded = Callable[[Tensor], Tensor]


def inputs(size: int, dtype: torch.dtype, seed: int, span: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Whole bounds and few distinct scores: many equal scores, equal segments, and tIoUs at the thresholds."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(span, (size,), generator=generator)
    length = torch.randint(12, (size,), generator=generator)
    scores = torch.randint(1, 17, (size,), generator=generator) / 16
    groups = torch.randint(-2, 3, (size,), generator=generator) * 10**12
    return torch.stack([start, start + length], dim=1).to(dtype), scores.to(dtype), groups


def batched_nms(
    host: Any,
    guarded: Guarded,
    segments: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    *,
    method: str = "hard",
    iou_threshold: float = 0.5,
    sigma: float = 0.5,
    min_score: float = 0.001,
    offset: float = 0.0,
    max_per_group: int | None = None,
    voting: float | None = None,
) -> tuple[Tensor, ...]:
    """On the harness; the result is that of the CPU kernels, votes included, bit for bit."""
    found = host.nms(
        guarded(segments),
        guarded(scores),
        None if groups is None else guarded(groups),
        METHODS.index(method),
        iou_threshold,
        sigma,
        min_score,
        offset,
        2**63 - 1 if max_per_group is None else max_per_group,
        voting or 0.0,
    )
    options = {"method": method, "iou_threshold": iou_threshold, "sigma": sigma, "min_score": min_score}
    options |= {"offset": offset, "max_per_group": max_per_group, "voting": voting}
    groups = torch.zeros(len(scores), dtype=torch.int64) if groups is None else groups
    for one, other in zip(found, ops.batched_nms(segments, scores, groups, **options), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 2, 65, 130])
@pytest.mark.parametrize("method", METHODS)
def test_keeps_what_the_reference_keeps(
    dtype: torch.dtype, size: int, method: str, host: Any, guarded: Guarded
) -> None:
    host.seed(size)
    segments, scores, groups = inputs(size, dtype, size)
    for options in ({}, {"iou_threshold": 0.25, "voting": 0.5, "offset": 1.0}, {"iou_threshold": 1.0}):
        found = batched_nms(host, guarded, segments, scores, groups, method=method, **options)
        want = reference.batched_nms(segments, scores, groups, method=method, **options)
        assert torch.equal(found[2], want[2])
        assert torch.equal(found[1], want[1])
        torch.testing.assert_close(found[0], want[0])  # a vote is a sum in another order


@pytest.mark.parametrize("seed", range(20))
def test_whatever_segments_and_scores_hold(seed: int, host: Any, guarded: Guarded) -> None:
    host.seed(seed)
    generator = torch.Generator().manual_seed(seed)

    def one_of(*values: float, size: tuple[int, ...] = ()) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[torch.randint(len(values), size, generator=generator)]

    size = int(torch.randint(1, 70, (), generator=generator))
    segments = torch.randint(-6, 13, (size, 2), generator=generator).double()  # many end before they start
    special = torch.rand(size, 2, generator=generator) < 0.1
    segments[special] = one_of(NAN, INF, -INF, 0.0, -0.0, 1e-3, size=(int(special.sum()),))
    scores = one_of(0.0, 0.25, 0.4, 0.5, 1.0, -0.5, -0.0, NAN, -INF, INF, size=(size,))
    groups = torch.tensor([2**63 - 1, -(2**63), 0])[torch.randint(3, (size,), generator=generator)]
    for method in METHODS:
        batched_nms(
            host,
            guarded,
            segments,
            scores,
            groups if seed % 5 else None,
            method=method,
            iou_threshold=float(one_of(1e-3, 0.25, 0.3, 0.5, 2 / 3, 1.0)),
            offset=float(one_of(0.0, 1.0, 0.3)),
            sigma=float(one_of(1e-6, 0.5, INF)),
            min_score=float(one_of(0.0, 0.001, 0.4)),
            max_per_group=(None, 0, 1, 4)[seed % 4],
            voting=(None, 0.1, 0.5, 1.0)[seed // 4 % 4],
        )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_neighbours_are_found_at_any_scale(scale: float, host: Any, guarded: Guarded) -> None:
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(250, generator=generator, dtype=torch.float64) * 300 * scale
    length = torch.exp(torch.randn(250, generator=generator, dtype=torch.float64) * 2) * scale
    segments = torch.stack([centre - length / 2, centre + length / 2], dim=1)
    scores = torch.rand(250, generator=generator, dtype=torch.float64)
    for method in METHODS:
        batched_nms(host, guarded, segments, scores, None, method=method, iou_threshold=0.2, voting=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_groups_of_every_size(dtype: torch.dtype, method: str, host: Any, guarded: Guarded) -> None:
    # Some lie in shared memory, others in global memory; all lie between others.
    sizes = [1, 511, 512, 513, 2048, 2049, 40]
    groups = torch.repeat_interleave(torch.tensor([5, -3, 8, 1, 0, 9, 2]), torch.tensor(sizes))
    segments, scores, _ = inputs(len(groups), dtype, 0, span=2000)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))
    batched_nms(host, guarded, segments, scores, groups[order], method=method, iou_threshold=0.3, max_per_group=40)


@pytest.mark.parametrize("kind", ["random", "falling", "equal", "endless"])
def test_a_large_group(kind: str, host: Any, guarded: Guarded) -> None:
    size = 2200
    segments, scores, _ = inputs(size, torch.float32, 0, span=1500)
    if kind == "falling":  # each drops the next few, so it is from one end to the other
        segments = torch.stack([torch.arange(size), torch.arange(size) + 40], dim=1).float()
        scores = torch.arange(size, 0, -1).float()
    elif kind == "equal":
        segments = torch.tensor([[0.0, 10.0]]).repeat(size, 1)
    elif kind == "endless":
        segments[::8, 1] = INF
        scores[::3] = NAN
    for seed, most in ((0, None), (1, 7)):
        host.seed(seed)
        batched_nms(host, guarded, segments, scores, None, iou_threshold=0.3, max_per_group=most)


@pytest.mark.parametrize("method", METHODS)
def test_results_repeat_for_any_order_of_threads(method: str, host: Any, guarded: Guarded) -> None:
    segments, scores, groups = inputs(150, torch.float32, 0)
    for seed in range(4):
        host.seed(seed)
        batched_nms(host, guarded, segments, scores, groups, method=method, voting=0.5)


def test_gathers_groups_of_one(host: Any, guarded: Guarded) -> None:
    segments, scores, _ = inputs(300, torch.float32, 0)
    keep = batched_nms(host, guarded, segments, scores, torch.arange(300).flip(0))[2]
    assert torch.equal(keep, torch.arange(300).flip(0))
