from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potloc_fast import ops, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NAN = float("nan")


def inputs(
    videos: int, lengths: list[int], dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Few distinct probabilities, so that many are equal to each other and to the threshold; masks end anywhere."""
    generator = torch.Generator().manual_seed(seed)
    width = sum(lengths)
    levels = torch.tensor([0.0, 0.5, 0.9, 0.95, 0.951, 0.97, 1.0, NAN])
    background = levels[torch.randint(len(levels), (videos, width), generator=generator)].to(dtype)
    action = torch.rand(videos, width, generator=generator) < 0.15
    mask = torch.rand(videos, width, generator=generator) < 0.8
    return background, action, mask


def seeds(values: list[float], action: list[int], **options: object) -> list[int]:
    """One row through the operator."""
    found = ops.background_seeds(torch.tensor([values]), torch.tensor([action]).bool(), [len(values)], **options)
    return found[0].int().tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [[], [0], [1], [7, 4, 2, 1], [63], [65, 0, 33], [2304, 1152, 576, 288]])
@pytest.mark.parametrize("outer_argmax", [True, False])
def test_equals_the_reference(dtype: torch.dtype, lengths: list[int], outer_argmax: bool) -> None:
    background, action, mask = inputs(3, lengths, dtype)
    for each in (mask, None):
        found = ops.background_seeds(background, action, lengths, 0.95, each, outer_argmax)
        assert found.dtype == torch.bool
        assert torch.equal(found, reference.background_seeds(background, action, lengths, 0.95, each, outer_argmax))


def test_reads_strided_tensors() -> None:
    background, action, mask = inputs(6, [40, 20])
    want = ops.background_seeds(background, action, [40, 20], mask=mask)
    strided = [tensor.t().contiguous().t() for tensor in (background, action, mask)]
    assert torch.equal(ops.background_seeds(strided[0], strided[1], [40, 20], mask=strided[2]), want)
    assert torch.equal(ops.background_seeds(background[::2], action[::2], [40, 20], mask=mask[::2]), want[::2])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), max_size=4),
    videos=st.integers(0, 3),
    threshold=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    seed=st.integers(0, 10**6),
    outer_argmax=st.booleans(),
)
def test_equals_the_reference_anywhere(
    lengths: list[int], videos: int, threshold: float, seed: int, outer_argmax: bool
) -> None:
    background, action, mask = inputs(videos, lengths, seed=seed)
    found = ops.background_seeds(background, action, lengths, threshold, mask, outer_argmax)
    assert torch.equal(found, reference.background_seeds(background, action, lengths, threshold, mask, outer_argmax))


class TestRules:
    def test_gap_between_two_actions(self) -> None:
        assert seeds([0, 0.1, 0.96, 0.2, 0.97, 0.1, 0], [1, 0, 0, 0, 0, 0, 1]) == [0, 0, 1, 1, 1, 0, 0]
        assert seeds([0, 0.1, 0.96, 0.2, 0], [1, 0, 0, 0, 1]) == [0, 0, 1, 0, 0]
        assert seeds([0, 0.1, 0.3, 0.3, 0], [1, 0, 0, 0, 1]) == [0, 0, 1, 0, 0]
        assert seeds([0.99, 0.99], [1, 1]) == [0, 0]

    def test_outer_gaps_reach_the_ends(self) -> None:
        assert seeds([0.1, 0.2, 0.96, 0.2, 0], [0, 0, 0, 0, 1]) == [1, 1, 1, 0, 0]
        assert seeds([0, 0.2, 0.96, 0.2, 0.1], [1, 0, 0, 0, 0]) == [0, 0, 1, 1, 1]
        assert seeds([0.1, 0.3, 0, 0.2, 0.1], [0, 0, 1, 0, 0]) == [0, 1, 0, 1, 0]
        assert seeds([0.1, 0.3, 0, 0.2, 0.1], [0, 0, 1, 0, 0], outer_argmax=False) == [0, 0, 0, 0, 0]

    def test_row_without_action_is_an_inner_gap(self) -> None:
        assert seeds([0.1, 0.96, 0.2, 0.97, 0.1], [0] * 5) == [0, 1, 1, 1, 0]
        assert seeds([0.1, 0.3, 0.2], [0] * 3, outer_argmax=False) == [0, 1, 0]

    def test_row_of_action_alone(self) -> None:
        assert seeds([0.99] * 4, [1] * 4) == [0] * 4

    def test_over_is_strict_in_the_dtype_of_the_probabilities(self) -> None:
        for dtype in DTYPES:
            background = torch.tensor([[0.3, 0.3, 0.0]], dtype=dtype)
            found = ops.background_seeds(background, torch.tensor([[False, False, True]]), [3], 0.3, outer_argmax=False)
            assert not found.any(), dtype

    def test_nan_is_neither_over_nor_the_arg_max(self) -> None:
        assert seeds([0, NAN, 0.1, NAN, 0], [1, 0, 0, 0, 1]) == [0, 0, 1, 0, 0]
        assert seeds([0, NAN, NAN], [1, 0, 0]) == [0, 0, 0]

    def test_masked_snippets_are_as_if_not_there(self) -> None:
        mask = torch.tensor([[True, True, False, True, True, False]])
        values, action = [0.96, 0.1, 0.99, 0.97, 0.2, 0.99], [0, 0, 1, 0, 0, 1]
        assert seeds(values, action, mask=mask) == [1, 1, 0, 1, 0, 0]

    def test_levels_are_rows_of_their_own(self) -> None:
        background = torch.tensor([[0.96, 0.1, 0.1, 0.97]])
        action = torch.tensor([[False, False, True, False]])
        assert ops.background_seeds(background, action, [2, 2]).tolist() == [[True, False, False, True]]


def test_gradients_around_it_are_undisturbed() -> None:
    logits = torch.randn(2, 9, requires_grad=True)
    background = logits.sigmoid()
    found = ops.background_seeds(background, torch.zeros(2, 9, dtype=torch.bool), [9], 0.5)
    assert not found.requires_grad
    background[found].sum().backward()
    assert torch.equal(logits.grad != 0, found)


def test_repeats_for_any_number_of_threads() -> None:
    background, action, mask = inputs(64, [2000, 1000])
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(ops.background_seeds(background, action, [2000, 1000], mask=mask))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_opcheck() -> None:
    background, action, mask = inputs(2, [8, 4])
    for each in (mask, None):
        torch.library.opcheck(
            torch.ops.potloc_fast.background_seeds.default, (background, action, [8, 4], 0.95, each, True)
        )


def test_compiles_without_a_graph_break() -> None:
    background, action, mask = inputs(2, [8, 4])

    def f(background: Tensor) -> Tensor:
        return ops.background_seeds(background.abs(), action, [8, 4], mask=mask).sum(1)

    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(background), f(background))


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "background must be float32", {"background": torch.zeros(2, 12, dtype=torch.int64)}),
        (ValueError, r"background must have shape \[B, T\], got \[12\]", {"background": torch.zeros(12)}),
        (TypeError, "action must be a Tensor of torch.bool, got torch.float32", {"action": torch.zeros(2, 12)}),
        (ValueError, r"action must have shape \[2, 12\], got \[2, 11\]", {"action": torch.zeros(2, 11).bool()}),
        (ValueError, r"mask must have shape \[2, 12\], got \[1, 12\]", {"mask": torch.zeros(1, 12).bool()}),
        (ValueError, r"level_lengths must add up to T = 12, got \[8, 3\]", {"level_lengths": [8, 3]}),
        (ValueError, r"level_lengths must add up to T = 12, got \[13, -1\]", {"level_lengths": [13, -1]}),
    ],
)
def test_refuses(error: type[Exception], message: str, change: dict[str, object]) -> None:
    background, action, mask = inputs(2, [8, 4])
    arguments = {"background": background, "action": action, "level_lengths": [8, 4], "mask": mask} | change
    with pytest.raises(error, match=f"^background_seeds: {message}"):
        ops.background_seeds(**arguments)
