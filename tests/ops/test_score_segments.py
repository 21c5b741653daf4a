from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potloc_fast import ops, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
THRESHOLDS = torch.tensor([0.0, 0.25, 0.5, 0.625, 1.0])
NAN = float("nan")


def smooth(rows: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, width + 4, generator=generator, dtype=torch.float64)
    return sum(noise[:, i : i + width] for i in range(5)).mul(0.6).sigmoid().to(dtype)


def steps(rows: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Values that are equal to each other and to the thresholds."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(9, (rows, width), generator=generator) / 8).to(dtype)


def assert_equals_reference(curves: Tensor, thresholds: Tensor = THRESHOLDS, **options: object) -> None:
    segments, scores, row, threshold = ops.score_segments(curves, thresholds, **options)
    want = reference.score_segments(curves, thresholds, **options)
    assert segments.dtype == scores.dtype == (torch.float64 if curves.dtype == torch.float64 else torch.float32)
    assert torch.equal(segments, want[0])
    tolerance = 1e-11 if curves.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(scores, want[1], rtol=tolerance, atol=tolerance)
    assert torch.equal(row, want[2])
    assert torch.equal(threshold, want[3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [0, 1, 2, 13, 31, 33, 64])
@pytest.mark.parametrize(("stride", "upsample"), [(1, 1), (1, 4), (2, 3), (4, 2), (8, 1)])
def test_equals_the_reference(dtype: torch.dtype, width: int, stride: int, upsample: int) -> None:
    for make in (smooth, steps):
        assert_equals_reference(make(3, width, dtype), stride=stride, upsample=upsample)
    assert_equals_reference(steps(3, width, dtype), stride=stride, upsample=upsample, scores=smooth(3, width, dtype))


def test_equals_the_reference_on_a_long_row() -> None:
    assert_equals_reference(smooth(1, 2304), upsample=4)


def test_equals_the_reference_on_many_rows() -> None:
    lengths = torch.arange(35) * 4
    assert_equals_reference(smooth(35, 70), lengths=lengths, stride=2, upsample=2)


def test_thresholds_in_any_order() -> None:
    thresholds = torch.tensor([0.5, NAN, 0.25, float("inf"), 0.5, 0.0, -float("inf"), 0.75, NAN])
    for make in (smooth, steps):
        assert_equals_reference(make(3, 33), thresholds, upsample=2)


def test_upsampling_costs_no_memory() -> None:
    # 5 * 10^11 points. A ramp from 0 at time 0.5 to 1 at 1.5, and so on.
    curve = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(1, 250)
    segments = ops.score_segments(curve, torch.tensor([0.25]), upsample=10**9)[0]
    want = torch.arange(0.75, 499, 2, dtype=torch.float64)
    torch.testing.assert_close(segments[:, 0], want, rtol=0, atol=2e-9)
    torch.testing.assert_close(segments[:-1, 1], want[:-1] + 1.5, rtol=0, atol=2e-9)


def test_reads_strided_tensors() -> None:
    curves, scores = smooth(6, 21), smooth(6, 21, seed=1)
    lengths = torch.tensor([21, 0, 5, 1, 20, 3])
    want = ops.score_segments(curves, THRESHOLDS, lengths=lengths, scores=scores)
    found = ops.score_segments(
        curves.t().contiguous().t(),
        THRESHOLDS.repeat_interleave(2)[::2],
        lengths=lengths.repeat_interleave(2)[::2],
        scores=scores.t().contiguous().t(),
    )
    for one, other in zip(found, want, strict=True):
        assert torch.equal(one, other)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(0, 3),
    width=st.integers(0, 20),
    stride=st.sampled_from([1, 2, 3, 4, 8]),
    upsample=st.integers(1, 9),
    outer=st.sampled_from([0.0, 0.1, 0.25, 1.0, 3.0, 1e30]),
    seed=st.integers(0, 10**6),
    nans=st.booleans(),
    with_scores=st.booleans(),
    data=st.data(),
)
def test_equals_the_reference_anywhere(
    rows: int,
    width: int,
    stride: int,
    upsample: int,
    outer: float,
    seed: int,
    nans: bool,
    with_scores: bool,
    data: st.DataObject,
) -> None:
    curves = steps(rows, width, torch.float64, seed)
    scores = smooth(rows, width, torch.float64, seed + 1) if with_scores else None
    if nans:
        curves[curves == 0.5] = NAN
        if scores is not None:
            scores[scores > 0.8] = NAN
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, width * stride), min_size=rows, max_size=rows))).long()
    options = {"lengths": lengths, "stride": stride, "upsample": upsample, "outer": outer, "scores": scores}
    assert_equals_reference(curves, **options)


def twin(
    curve: np.ndarray, threshold: float, length: int, stride: int, upsample: int, outer: float, score: np.ndarray | None
) -> list[tuple[float, float, float]]:
    """Independent of the reference: numpy.interp, and runs from itertools.groupby."""
    times = (np.arange(length * upsample) + 0.5) / upsample
    knots = np.arange(-(-length // stride)) * stride + 0.5
    sampled = np.interp(times, knots, curve[: len(knots)])
    measured = (
        np.where(sampled > threshold, sampled, 0) if score is None else np.interp(times, knots, score[: len(knots)])
    )
    found = []
    for over, group in itertools.groupby(range(len(times)), key=lambda p: sampled[p] > threshold):
        if over:
            points = list(group)
            reach = int(outer * len(points))
            outside = [p for p in range(points[0] - reach, points[-1] + reach + 1) if 0 <= p < len(times)]
            outside = [p for p in outside if p not in points]
            contrast = measured[points].mean() - (measured[outside].mean() if outside else 0)
            found.append((points[0] / upsample, (points[-1] + 1) / upsample, contrast))
    return found


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("upsample", [1, 2, 3, 8])
@pytest.mark.parametrize("with_scores", [False, True])
def test_equals_an_independent_twin(stride: int, upsample: int, with_scores: bool) -> None:
    curves = smooth(4, 40, torch.float64)
    scores = smooth(4, 40, torch.float64, seed=1) if with_scores else None
    lengths = torch.tensor([40 * stride, 38 * stride + 1, 7, 1])
    thresholds = torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)
    found = ops.score_segments(
        curves, thresholds, lengths=lengths, stride=stride, upsample=upsample, outer=0.4, scores=scores
    )
    want = [
        (*segment, row, k)
        for row in range(4)
        for k in range(3)
        for segment in twin(
            curves[row].numpy(),
            float(thresholds[k]),
            int(lengths[row]),
            stride,
            upsample,
            0.4,
            None if scores is None else scores[row].numpy(),
        )
    ]
    assert len(want) > 10
    table = np.column_stack([tensor.numpy() for tensor in found])
    np.testing.assert_allclose(table, np.array(want), rtol=0, atol=1e-12)


class TestRules:
    def test_on_the_snippet_grid(self) -> None:
        curve = torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.5, 0.0, 1.0, 1.0]])
        segments, _, row, threshold = ops.score_segments(curve, torch.tensor([0.25, 0.5]))
        assert segments.tolist() == [[0, 1], [3, 5], [6, 8], [0, 1], [3, 4], [6, 8]]
        assert row.tolist() == [0] * 6
        assert threshold.tolist() == [0, 0, 0, 1, 1, 1]

    def test_contrast(self) -> None:
        curve = torch.tensor([[0.0, 0.25, 0.5, 1.0, 1.0, 0.5, 0.0, 1.0]])
        threshold = torch.tensor([0.5])
        # Inside 1; one point on either side, at the threshold and so zero.
        assert ops.score_segments(curve, threshold, outer=0.5)[1].tolist() == [1.0, 1.0]
        # Two on either side of the first; the second reaches nothing but the zero before it.
        scores = torch.arange(8.0).unsqueeze(0)
        contrast = ops.score_segments(curve, threshold, outer=1.0, scores=scores)[1]
        assert contrast.tolist() == [3.5 - (1 + 2 + 5 + 6) / 4, 7.0 - 6.0]
        # The outer region of one segment holds another one: it counts.
        near = torch.tensor([[1.0, 1.0, 1.0, 0.0, 1.0, 0.0]])
        assert ops.score_segments(near, threshold, outer=0.7)[1].tolist() == [0.5, 1.0]

    @pytest.mark.parametrize("upsample", [1, 2, 5])
    def test_row_over_and_row_under(self, upsample: int) -> None:
        curves = torch.tensor([[1.0], [0.0]]).expand(2, 6)
        segments, scores, row, _ = ops.score_segments(curves, torch.tensor([0.5]), upsample=upsample, stride=4)
        assert segments.tolist() == [[0, 24]]
        assert scores.tolist() == [1]
        assert row.tolist() == [0]

    def test_level_times(self) -> None:
        # Value 1 of level 2 is at time 4.5; the triangle from 0.5 to 8.5 exceeds 0.5 strictly between 2.5 and 6.5.
        curve = torch.tensor([[0.0, 1.0, 0.0]])
        assert ops.score_segments(curve, torch.tensor([0.5]), stride=4)[0].tolist() == [[3, 6]]
        assert ops.score_segments(curve, torch.tensor([0.5]), stride=4, upsample=2)[0].tolist() == [[2.5, 6.5]]

    def test_one_point_counts_and_a_peak_between_points_does_not(self) -> None:
        peak = torch.tensor([[0.0, 1.0, 0.0]])
        assert ops.score_segments(peak, torch.tensor([0.9]))[0].tolist() == [[1, 2]]
        # Two points a snippet lie a quarter of a snippet off the peak: their value is 0.75.
        assert ops.score_segments(peak, torch.tensor([0.8]), upsample=2)[0].tolist() == []

    def test_a_dip_between_points_does_not_split(self) -> None:
        assert ops.score_segments(torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([0.2]), upsample=2)[0].tolist() == [
            [0, 3]
        ]

    def test_values_past_the_length_are_not_read(self) -> None:
        curve = torch.tensor([[0.0, 1.0, NAN, NAN], [0.0, 1.0, 5.0, 5.0]])
        segments, scores, row, _ = ops.score_segments(
            curve, torch.tensor([0.5]), lengths=torch.tensor([3, 3]), stride=2, upsample=2, outer=0.5
        )
        assert row.tolist() == [0, 1]
        assert torch.equal(segments[0], segments[1])
        assert scores[0] == scores[1]

    def test_nan_is_not_over_and_does_not_spread(self) -> None:
        curve = torch.tensor([[NAN, 1.0, 1.0, NAN, 1.0, 0.0]])
        segments, scores, *_ = ops.score_segments(curve, torch.tensor([0.5]))
        assert segments.tolist() == [[1, 3], [4, 5]]
        assert scores.tolist() == [1, 1]
        _, scores, *_ = ops.score_segments(torch.ones(1, 6), torch.tensor([0.5]), scores=curve)
        assert scores.tolist() == [0.5]

    def test_nothing_exceeds_nan(self) -> None:
        assert len(ops.score_segments(torch.ones(1, 3), torch.tensor([NAN]))[0]) == 0

    def test_threshold_is_compared_in_the_dtype_of_the_curve(self) -> None:
        thresholds = torch.tensor([0.3], dtype=torch.float64)
        assert len(ops.score_segments(torch.full((1, 4), 0.3), thresholds, upsample=3)[0]) == 0
        assert len(ops.score_segments(torch.full((1, 4), 0.3, dtype=torch.float64), thresholds, upsample=3)[0]) == 0


def test_gradients_around_it_are_undisturbed() -> None:
    logits = torch.randn(2, 9, requires_grad=True)
    curves = logits.sigmoid()
    segments, scores, *_ = ops.score_segments(curves, torch.tensor([0.5]), scores=curves)
    assert not segments.requires_grad
    assert not scores.requires_grad
    curves.sum().backward()
    assert torch.equal(logits.grad, (curves * (1 - curves)).detach())


def test_repeats_for_any_number_of_threads() -> None:
    curves = smooth(40, 100)
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            found.append(ops.score_segments(curves, THRESHOLDS, upsample=4))
    finally:
        torch.set_num_threads(threads)
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in others)


def test_opcheck() -> None:
    curves = smooth(2, 9)
    lengths = torch.tensor([5, 18])
    for each, scores in ((None, None), (lengths, curves)):
        arguments = (curves, THRESHOLDS, each, 2, 3, 0.25, scores)
        torch.library.opcheck(torch.ops.potloc_fast.score_segments.default, arguments)


def test_compiles_without_a_graph_break() -> None:
    def f(curves: Tensor) -> tuple[Tensor, Tensor]:
        segments, scores, _, _ = ops.score_segments(curves.abs(), THRESHOLDS, upsample=2)
        return segments * 2, scores

    curves = smooth(2, 9)
    for one, other in zip(torch.compile(f, fullgraph=True, backend="aot_eager")(curves), f(curves), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "curves must be float32", {"curves": torch.zeros(2, 5, dtype=torch.int64)}),
        (ValueError, r"curves must have shape \[N, T\], got \[5\]", {"curves": torch.zeros(5)}),
        (TypeError, "thresholds must be a Tensor, got list", {"thresholds": [0.5]}),
        (ValueError, r"thresholds must have shape \[K\], got \[\]", {"thresholds": torch.tensor(0.5)}),
        (TypeError, "lengths must be a Tensor of torch.int64", {"lengths": torch.zeros(2)}),
        (ValueError, r"lengths must have shape \[2\], got \[3\]", {"lengths": torch.zeros(3).long()}),
        (RuntimeError, r"lengths must be from 0 to T \* stride = 10, got 11", {"lengths": torch.tensor([10, 11])}),
        (RuntimeError, r"lengths must be from 0 to T \* stride = 10, got -1", {"lengths": torch.tensor([-1, 1])}),
        (TypeError, "scores must have the dtype of curves", {"scores": torch.zeros(2, 5).double()}),
        (ValueError, r"scores must have shape \[2, 5\], got \[2, 6\]", {"scores": torch.zeros(2, 6)}),
        (ValueError, "stride must be 1 or more, got 0", {"stride": 0}),
        (ValueError, "upsample must be 1 or more, got 0", {"upsample": 0}),
        (ValueError, "outer must be 0 or more, got -0.5", {"outer": -0.5}),
    ],
)
def test_refuses(error: type[Exception], message: str, change: dict[str, object]) -> None:
    arguments: dict[str, object] = {"curves": torch.zeros(2, 5), "thresholds": THRESHOLDS, "stride": 2} | change
    with pytest.raises(error, match=rf"(?s)score_segments: {message}"):
        ops.score_segments(**arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("upsample", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_beside_infinities(dtype: torch.dtype, upsample: int, stride: int) -> None:
    values = torch.tensor([-torch.inf, -1, 1, torch.inf, torch.nan], dtype=dtype)
    curves = torch.cartesian_prod(values, values, values)
    thresholds = torch.tensor([-torch.inf, 0.0, 2.0, torch.inf], dtype=dtype)
    assert_equals_reference(curves, thresholds, upsample=upsample, stride=stride)
    assert_equals_reference(curves, thresholds, upsample=upsample, stride=stride, scores=curves.flip(0))


def test_what_lies_beside_an_infinity_is_infinite() -> None:
    curve = torch.tensor([[1.0, 1.0, torch.inf, 0.0, 0.0, -torch.inf, 1.0, 1.0]])
    segments, *_ = ops.score_segments(curve, torch.tensor([0.5, 2.0]), upsample=3)
    # Up to the value 0 at 3.5, whose point is [3 1/3, 3 2/3); and from the value 1 at 6.5 on.
    torch.testing.assert_close(segments * 3, torch.tensor([[0.0, 10.0], [19.0, 24.0], [5.0, 10.0]]))
