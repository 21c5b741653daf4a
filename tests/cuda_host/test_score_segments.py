from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from potloc_fast import ops, reference

pytestmark = pytest.mark.cuda_host

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
THRESHOLDS = [0.5, 0.0, 0.25, 1.0, 0.625, float("nan"), 0.25]  # in no order, one twice
NAN, INF = float("nan"), float("inf")

Guarded = Callable[[Tensor], Tensor]


def smooth(rows: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, width + 4, generator=generator, dtype=torch.float64)
    return sum(noise[:, i : i + width] for i in range(5)).mul(0.6).sigmoid().to(dtype)


def steps(rows: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Values that are equal to each other and to the thresholds."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(9, (rows, width), generator=generator) / 8).to(dtype)


def score_segments(
    host: Any,
    guarded: Guarded,
    curves: Tensor,
    thresholds: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    stride: int = 1,
    upsample: int = 1,
    outer: float = 0.25,
    scores: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """On the harness; the result, bit for bit, is that of the CPU kernels."""
    if thresholds is None:
        thresholds = torch.tensor(THRESHOLDS)
    options = {"lengths": lengths, "stride": stride, "upsample": upsample, "outer": outer, "scores": scores}
    found = host.score_segments(
        guarded(curves),
        guarded(thresholds.to(torch.float64 if curves.dtype == torch.float64 else torch.float32)),
        None if lengths is None else guarded(lengths),
        stride,
        upsample,
        outer,
        None if scores is None else guarded(scores),
    )
    for one, other in zip(found, ops.score_segments(curves, thresholds, **options), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [0, 1, 2, 33, 300])
@pytest.mark.parametrize(("stride", "upsample"), [(1, 1), (1, 4), (2, 3), (4, 2), (8, 1)])
def test_segments_are_those_of_the_reference(
    dtype: torch.dtype, width: int, stride: int, upsample: int, host: Any, guarded: Guarded
) -> None:
    host.seed(width)
    for make, scores in ((smooth, None), (steps, None), (steps, smooth(2, width, dtype, 1))):
        curves = make(2, width, dtype, 0)
        options = {"stride": stride, "upsample": upsample, "outer": 0.4, "scores": scores}
        found = score_segments(host, guarded, curves, **options)
        want = reference.score_segments(curves, torch.tensor(THRESHOLDS), **options)
        for i in (0, 2, 3):
            assert torch.equal(found[i], want[i])
        tolerance = 1e-11 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(found[1], want[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_curve_holds(seed: int, host: Any, guarded: Guarded) -> None:
    host.seed(seed)
    generator = torch.Generator().manual_seed(seed)
    width, stride, upsample = (int(torch.randint(1, n, (), generator=generator)) for n in (30, 9, 10))
    curves, scores = steps(4, width, torch.float64, seed), smooth(4, width, torch.float64, seed)
    for each in (curves, scores):
        special = torch.tensor([NAN, INF, -INF, 1e308, -1e308], dtype=torch.float64)
        where = torch.rand(each.shape, generator=generator) < 0.15
        each[where] = special[torch.randint(5, (int(where.sum()),), generator=generator)]
    lengths = torch.randint(0, width * stride + 1, (4,), generator=generator)
    for outer in (0.0, 0.25, 3.0, 1e30):
        for other in (None, scores):
            score_segments(
                host, guarded, curves, lengths=lengths, stride=stride, upsample=upsample, outer=outer, scores=other
            )


def test_more_thresholds_than_are_placed_at_once(host: Any, guarded: Guarded) -> None:
    curves = smooth(2, 300, torch.float32, 0)
    row, threshold = score_segments(host, guarded, curves, torch.linspace(0, 1, 300), upsample=2)[2:]
    assert threshold.max() > 256
    assert row.unique().tolist() == [0, 1]


def test_no_thresholds_and_no_rows(host: Any, guarded: Guarded) -> None:
    assert score_segments(host, guarded, torch.ones(2, 3), torch.zeros(0))[0].shape == (0, 2)
    assert score_segments(host, guarded, torch.ones(0, 3))[0].shape == (0, 2)


def test_results_repeat_for_any_order_of_threads(host: Any, guarded: Guarded) -> None:
    curves = smooth(3, 300, torch.float32, 0)
    for seed in range(5):
        host.seed(seed)
        score_segments(host, guarded, curves, upsample=4)


@pytest.mark.parametrize("length", [-1, 11])
def test_refuses_a_length_beyond_the_row(length: int, host: Any, guarded: Guarded) -> None:
    lengths = torch.tensor([10, length, 10, 99])
    for thresholds in (torch.ones(1), torch.ones(0)):
        with pytest.raises(RuntimeError, match=rf"lengths must be from 0 to T \* stride = 10, got {length}"):
            host.score_segments(torch.zeros(4, 5), thresholds, guarded(lengths), 2, 1, 0.25, None)


def test_refuses_more_points_than_it_can_count(host: Any) -> None:
    with pytest.raises(RuntimeError, match=r"at most 1073741824 points a row on a GPU, got .* = 2 \* 1 \* 1073741824"):
        host.score_segments(torch.zeros(1, 2), torch.ones(1), None, 1, 2**30, 0.25, None)
