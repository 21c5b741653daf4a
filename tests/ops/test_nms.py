from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potloc_fast import ops, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
METHODS = ["hard", "linear", "gaussian"]
NAN, INF = float("nan"), float("inf")


def inputs(
    size: int, dtype: torch.dtype = torch.float32, seed: int = 0, span: int = 40
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole bounds and few distinct scores: many equal scores, equal segments, and tIoUs at the thresholds."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(span, (size,), generator=generator)
    length = torch.randint(12, (size,), generator=generator)
    scores = torch.randint(1, 17, (size,), generator=generator) / 16
    groups = torch.randint(-2, 3, (size,), generator=generator) * 10**12
    return torch.stack([start, start + length], dim=1).to(dtype), scores.to(dtype), groups


def assert_equals_reference(segments: Tensor, scores: Tensor, groups: Tensor, **options: object) -> None:
    found_segments, found_scores, keep = ops.batched_nms(segments, scores, groups, **options)
    want_segments, want_scores, want_keep = reference.batched_nms(segments, scores, groups, **options)
    assert torch.equal(keep, want_keep)
    assert found_scores.dtype == scores.dtype
    assert found_segments.dtype == segments.dtype
    torch.testing.assert_close(found_scores, want_scores, rtol=0, atol=0, equal_nan=True)
    # A vote is a sum in another order: equal but for the last digits.
    torch.testing.assert_close(found_segments, want_segments, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 2, 17, 63, 65, 300])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("iou_threshold", [0.25, 0.5, 1.0])
def test_equals_the_reference(dtype: torch.dtype, size: int, method: str, iou_threshold: float) -> None:
    segments, scores, groups = inputs(size, dtype)
    assert_equals_reference(segments, scores, groups, method=method, iou_threshold=iou_threshold)
    assert_equals_reference(
        segments, scores, groups, method=method, iou_threshold=iou_threshold, voting=0.5, offset=1.0
    )


def test_reads_strided_tensors() -> None:
    segments, scores, groups = inputs(50)
    want = ops.batched_nms(segments, scores, groups)
    found = ops.batched_nms(
        segments.t().contiguous().t(), scores.repeat_interleave(2)[::2], groups.repeat_interleave(2)[::2]
    )
    for one, other in zip(found, want, strict=True):
        assert torch.equal(one, other)


special = st.sampled_from([NAN, INF, -INF, 0.0, -0.0, 1e-3, -1.0])


@settings(max_examples=100, deadline=None)
@given(
    segments=st.lists(st.tuples(st.integers(-6, 12) | special, st.integers(-6, 12) | special), max_size=24),
    method=st.sampled_from(METHODS),
    iou_threshold=st.sampled_from([1e-3, 0.25, 0.3, 0.5, 2 / 3, 1.0]),
    offset=st.sampled_from([0.0, 1.0, 0.3]),
    sigma=st.sampled_from([1e-6, 0.5, INF]),
    min_score=st.sampled_from([0.0, 0.001, 0.4]),
    max_per_group=st.none() | st.integers(0, 4),
    voting=st.none() | st.sampled_from([0.1, 0.5, 1.0]),
    data=st.data(),
)
def test_equals_the_reference_anywhere(
    segments: list[tuple[float, float]],
    method: str,
    iou_threshold: float,
    offset: float,
    sigma: float,
    min_score: float,
    max_per_group: int | None,
    voting: float | None,
    data: st.DataObject,
) -> None:
    size = len(segments)
    one_score = st.sampled_from([0.0, 0.25, 0.4, 0.5, 1.0, -0.5, NAN, -INF])
    scores = data.draw(st.lists(one_score, min_size=size, max_size=size))
    groups = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    assert_equals_reference(
        torch.tensor(segments, dtype=torch.float64).reshape(-1, 2),
        torch.tensor(scores, dtype=torch.float64),
        torch.tensor(groups, dtype=torch.int64),
        method=method,
        iou_threshold=iou_threshold,
        offset=offset,
        sigma=sigma,
        min_score=min_score,
        max_per_group=max_per_group,
        voting=voting,
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_neighbours_are_found_at_any_scale(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(400, generator=generator, dtype=torch.float64) * 300 * scale
    length = torch.exp(torch.randn(400, generator=generator, dtype=torch.float64) * 2) * scale
    segments = torch.stack([centre - length / 2, centre + length / 2], dim=1)
    scores = torch.rand(400, generator=generator, dtype=torch.float64)
    for method in METHODS:
        assert_equals_reference(segments, scores, torch.zeros(400).long(), method=method, iou_threshold=0.2, voting=0.1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [63, 64, 65, 130])  # sorted by comparison, then by radix
def test_orders_zeros_nan_and_infinity(dtype: torch.dtype, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    values = torch.tensor([0.0, -0.0, NAN, INF, -INF, 1.0, -1.0, 2.5, 1e-3, 300.0], dtype=dtype)
    segments = values[torch.randint(10, (size, 2), generator=generator)]
    scores = values[torch.randint(10, (size,), generator=generator)]
    for method in METHODS:
        assert_equals_reference(segments, scores, torch.zeros(size).long(), method=method)


@pytest.mark.parametrize("size", [63, 64, 500])
def test_groups_of_any_number(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    values = torch.tensor([-(2**63), 2**63 - 1, 0, -1, 1, 255, 256, 2**40])
    segments, scores, _ = inputs(size)
    assert_equals_reference(segments, scores, values[torch.randint(8, (size,), generator=generator)])


def soft_nms_by_numpy(segments: Tensor, scores: Tensor) -> tuple[list[int], list[float]]:
    """A step at a time over all that is left, for more segments than the reference manages."""
    (start, end), score = segments.numpy().T, scores.numpy().copy()
    keep, lowered = [], []
    while score.max() >= 0.001:
        i = int(score.argmax())
        keep.append(i)
        lowered.append(float(score[i]))
        score[i] = -1
        intersection = (np.minimum(end, end[i]) - np.maximum(start, start[i])).clip(min=0)
        tiou = intersection / (end - start + end[i] - start[i] - intersection)
        score = np.where(score >= 0.001, score * np.exp(-(tiou**2) / 0.5), -1)
    return keep, lowered


# Around one block of the tournament, and with one, two and three rounds of it. Long ones lose, and are swept away.
@pytest.mark.parametrize("size", [31, 32, 33, 1023, 1025, 2500])
@pytest.mark.parametrize("longest", [3.0, 500.0])
def test_soft_equals_a_step_at_a_time(size: int, longest: float) -> None:
    generator = torch.Generator().manual_seed(size)
    start, length, scores = torch.rand(3, size, generator=generator, dtype=torch.float64)
    segments = torch.stack([start * size, start * size + length * longest + 0.01], dim=1)
    segments[size // 2] = torch.tensor([0.0, size])  # one that overlaps everything
    keep, lowered = ops.soft_nms(segments, scores)
    want_keep, want_lowered = soft_nms_by_numpy(segments, scores)
    assert keep.tolist() == want_keep
    np.testing.assert_allclose(lowered.numpy(), want_lowered, rtol=1e-12)


def test_soft_ties_keep_the_lowest_index_of_all() -> None:
    start = torch.randperm(1500, generator=torch.Generator().manual_seed(0)).double()
    segments = torch.stack([start, start + 1], dim=1)
    assert ops.soft_nms(segments, torch.full((1500,), 0.5).double())[0].tolist() == list(range(1500))


class TestHard:
    def test_equality_counts_as_overlap(self) -> None:
        # tIoU 3/10, 6/10, 7/10 of [0, 10) against literals that are not exact in binary.
        for part in (1, 3, 6, 7, 9):
            segments = torch.tensor([[0.0, 10.0], [0.0, part]])
            scores = torch.tensor([1.0, 0.5])
            assert ops.nms(segments, scores, part / 10).tolist() == [0]
            assert ops.nms(segments, scores, part / 10 + 1e-12).tolist() == [0, 1]

    def test_ties_keep_the_lowest_index(self) -> None:
        segments = torch.tensor([[5.0, 15.0], [1.0, 11.0], [0.0, 10.0], [30.0, 40.0]])
        assert ops.nms(segments, torch.full((4,), 0.5), 0.5).tolist() == [0, 1, 3]

    def test_a_dropped_segment_drops_nothing(self) -> None:
        segments = torch.tensor([[0.0, 10.0], [4.0, 14.0], [8.0, 18.0]])
        assert ops.nms(segments, torch.tensor([0.9, 0.8, 0.7]), 0.4).tolist() == [0, 2]

    def test_offset_counts_inclusive_ends(self) -> None:
        segments = torch.tensor([[0.0, 4.0], [3.0, 7.0]])  # 1/7 without, 2/8 with
        assert ops.nms(segments, torch.tensor([1.0, 0.5]), 0.25).tolist() == [0, 1]
        assert ops.nms(segments, torch.tensor([1.0, 0.5]), 0.25, offset=1.0).tolist() == [0]

    def test_segments_without_length_or_number_overlap_nothing(self) -> None:
        segments = torch.tensor([[3.0, 3.0], [3.0, 3.0], [NAN, 9.0], [NAN, 9.0], [0.0, INF], [0.0, 9.0]])
        assert ops.nms(segments, torch.ones(6), 1e-6).tolist() == [0, 1, 2, 3, 4, 5]

    def test_nan_scores_rank_last(self) -> None:
        segments = torch.tensor([[0.0, 1.0], [5.0, 6.0], [8.0, 9.0], [0.0, 1.0]])
        assert ops.nms(segments, torch.tensor([NAN, -INF, NAN, 0.5]), 0.5).tolist() == [3, 1, 2]

    def test_half_types_are_compared_exactly(self) -> None:
        # 2049 is no float16 and no bfloat16: what is compared is what the tensors hold.
        for dtype in (torch.float16, torch.bfloat16):
            segments = torch.tensor([[0.0, 2049.0], [0.0, 2048.0]], dtype=dtype)
            assert ops.nms(segments, torch.tensor([1.0, 0.5], dtype=dtype), 1.0).tolist() == [0]


class TestSoft:
    def test_gaussian(self) -> None:
        segments = torch.tensor([[0.0, 10.0], [0.0, 5.0], [20.0, 30.0]], dtype=torch.float64)
        keep, scores = ops.soft_nms(segments, torch.tensor([1.0, 0.9, 0.8], dtype=torch.float64), sigma=0.5)
        assert keep.tolist() == [0, 2, 1]
        want = torch.tensor([1.0, 0.8, 0.9 * torch.exp(torch.tensor(-0.5, dtype=torch.float64)).item()])
        torch.testing.assert_close(scores, want.double(), rtol=1e-6, atol=0)

    def test_linear_from_the_threshold_on(self) -> None:
        segments = torch.tensor([[0.0, 10.0], [0.0, 5.0], [0.0, 4.0]])
        keep, scores = ops.soft_nms(segments, torch.tensor([1.0, 0.5, 0.75]), method="linear", iou_threshold=0.5)
        assert keep.tolist() == [0, 2, 1]
        torch.testing.assert_close(scores, torch.tensor([1.0, 0.75, 0.5 * 0.5 * 0.2]))

    def test_segments_within_the_offset_overlap(self) -> None:
        segments = torch.tensor([[0.0, 4.0], [4.5, 8.0]], dtype=torch.float64)
        scores = torch.tensor([1.0, 0.5], dtype=torch.float64)
        assert ops.soft_nms(segments, scores)[1].tolist() == [1.0, 0.5]
        lowered = ops.soft_nms(segments, scores, offset=1.0)[1]
        want = 0.5 * torch.exp(torch.tensor(-((0.5 / 9) ** 2) / 0.5, dtype=torch.float64))
        torch.testing.assert_close(lowered[1], want)

    def test_stops_under_the_least_score(self) -> None:
        segments = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]])
        scores = torch.tensor([0.25, 0.5, 0.125, NAN])
        assert ops.soft_nms(segments, scores, min_score=0.25)[0].tolist() == [1, 0]


class TestBatched:
    def test_groups_do_not_meet(self) -> None:
        segments = torch.tensor([[0.0, 10.0]] * 4)
        kept, scores, keep = ops.batched_nms(
            segments, torch.tensor([0.5, 0.6, 0.7, 0.8]), torch.tensor([9, -3, 9, -3]), iou_threshold=0.5
        )
        assert keep.tolist() == [3, 2]
        assert torch.equal(scores, torch.tensor([0.8, 0.7]))
        assert torch.equal(kept, segments[:2])

    @pytest.mark.parametrize("method", METHODS)
    def test_max_per_group_keeps_the_first(self, method: str) -> None:
        segments, scores, groups = inputs(200)
        *_, keep = ops.batched_nms(segments, scores, groups, method=method)
        *_, few = ops.batched_nms(segments, scores, groups, method=method, max_per_group=3)
        assert few.tolist() == [i for g in groups.unique() for i in keep[groups[keep] == g][:3].tolist()]

    def test_voting_is_a_mean_weighted_by_the_original_scores(self) -> None:
        segments = torch.tensor([[0.0, 10.0], [2.0, 10.0], [0.0, 4.0], [0.0, 9.0]])
        scores = torch.tensor([0.75, 0.25, 0.5, -1.0])
        for method in METHODS:
            kept, _, keep = ops.batched_nms(
                segments, scores, torch.zeros(4).long(), method=method, iou_threshold=0.5, voting=0.8
            )
            assert keep[0] == 0
            torch.testing.assert_close(kept[0], torch.tensor([0.5, 10.0]))

    def test_voting_leaves_what_has_no_weight(self) -> None:
        segments = torch.tensor([[0.0, 10.0], [NAN, 5.0], [1.0, 1.0]])
        kept, *_ = ops.batched_nms(segments, torch.tensor([-1.0, -2.0, -3.0]), torch.zeros(3).long(), voting=0.5)
        assert torch.equal(kept.nan_to_num(7.0), segments.nan_to_num(7.0))


def test_gradients_around_it_are_undisturbed() -> None:
    scores = torch.rand(5, requires_grad=True)
    segments = torch.rand(5, 2, requires_grad=True).cumsum(1)
    keep = ops.nms(segments, scores, 0.5)
    scores[keep].sum().backward()
    assert scores.grad.nonzero().flatten().tolist() == sorted(keep.tolist())
    assert not ops.batched_nms(segments, scores, torch.zeros(5).long(), voting=0.5)[0].requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_repeats_for_any_number_of_threads(method: str) -> None:
    segments, scores, _ = inputs(2000, span=300)
    groups = torch.randint(70, (2000,), generator=torch.Generator().manual_seed(1))
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            found.append(ops.batched_nms(segments, scores, groups, method=method, voting=0.5))
    finally:
        torch.set_num_threads(threads)
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize("method", [0, 1, 2])
def test_opcheck(method: int) -> None:
    segments, scores, groups = inputs(20)
    for each in (groups, None):
        arguments = (segments, scores, each, method, 0.5, 0.5, 0.001, 0.0, 10, 0.5)
        torch.library.opcheck(torch.ops.potloc_fast.nms.default, arguments)


def test_compiles_without_a_graph_break() -> None:
    segments, scores, groups = inputs(20)

    def f(segments: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        keep = ops.nms(segments, scores * 2, 0.5)
        return segments[keep], *ops.soft_nms(segments, scores), *ops.batched_nms(segments, scores, groups, voting=0.5)

    found = torch.compile(f, fullgraph=True, backend="aot_eager")(segments, scores)
    for one, other in zip(found, f(segments, scores), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, r"segments must have shape \[N, 2\], got \[5, 3\]", {"segments": torch.zeros(5, 3)}),
        (TypeError, "segments must be float32", {"segments": torch.zeros(5, 2).long()}),
        (ValueError, r"scores must have shape \[5\], got \[4\]", {"scores": torch.zeros(4)}),
        (TypeError, "scores must have the dtype of segments", {"scores": torch.zeros(5).double()}),
        (TypeError, "groups must be a Tensor of torch.int64, got torch.float32", {"groups": torch.zeros(5)}),
        (ValueError, r"groups must have shape \[5\], got \[4\]", {"groups": torch.zeros(4).long()}),
        (ValueError, "method must be one of hard, linear, gaussian, got 'cubic'", {"method": "cubic"}),
        (ValueError, "iou_threshold must be over 0 and at most 1, got 0", {"iou_threshold": 0.0}),
        (ValueError, "iou_threshold must be over 0 and at most 1, got nan", {"iou_threshold": NAN}),
        (ValueError, "voting must be None, or over 0 and at most 1, got 2", {"voting": 2.0}),
        (ValueError, "sigma must be positive, got 0", {"sigma": 0.0}),
        (ValueError, "min_score must be 0 or more, got -1", {"min_score": -1.0}),
        (ValueError, "offset must be 0 or more, got nan", {"offset": NAN}),
        (ValueError, "max_per_group must be 0 or more, got -1", {"max_per_group": -1}),
    ],
)
def test_refuses(error: type[Exception], message: str, change: dict[str, object]) -> None:
    arguments: dict[str, object] = {
        "segments": torch.zeros(5, 2),
        "scores": torch.zeros(5),
        "groups": torch.zeros(5).long(),
    }
    with pytest.raises(error, match=f"^batched_nms: {message}"):
        ops.batched_nms(**(arguments | change))


def test_soft_nms_refuses_the_hard_method() -> None:
    with pytest.raises(ValueError, match=r"^soft_nms: method must be gaussian or linear, got 'hard'"):
        ops.soft_nms(torch.zeros(5, 2), torch.zeros(5), method="hard")


@pytest.mark.parametrize("method", METHODS)
def test_a_tiou_that_is_rounded_to_the_threshold_of_1_counts(method: str) -> None:
    # The starts differ, and less than the lengths can show; so with bounds that are far apart, and with an offset.
    far = torch.tensor([[0.0, 1e17], [1.0, 1e17], [3.0, 1e17]], dtype=torch.float64)
    near = torch.tensor([[0.0, 2.0], [1.0, 2.0], [5.0, 7.0]], dtype=torch.float64)
    scores, groups = torch.tensor([0.5, 0.9, 0.7], dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    for segments, offset in ((far, 0.0), (near, 1e17)):
        assert_equals_reference(
            segments, scores, groups, method=method, iou_threshold=1.0, offset=offset, min_score=0.0, voting=1.0
        )
    assert ops.nms(far, scores, iou_threshold=1.0).tolist() == [1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_infinite_score_ranks_first_and_weighs_nothing(dtype: torch.dtype) -> None:
    segments = torch.tensor([[0, 10], [0, 12], [0, 14]], dtype=dtype)
    groups = torch.zeros(3, dtype=torch.int64)
    some, alone = (torch.tensor(values, dtype=dtype) for values in ([torch.inf, 1, 1], [torch.inf, -1, torch.nan]))
    kept, scores, keep = ops.batched_nms(segments, some, groups, iou_threshold=0.5, voting=0.5)
    assert (keep.tolist(), scores.tolist(), kept.tolist()) == ([0], [torch.inf], [[0, 13]])
    kept, *_ = ops.batched_nms(segments, alone, groups, iou_threshold=0.5, voting=0.5)
    assert kept.tolist() == [[0, 10]]
    for values in (some, alone):
        assert_equals_reference(segments, values, groups, iou_threshold=0.5, voting=0.5)
