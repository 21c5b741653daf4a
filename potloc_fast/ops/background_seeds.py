"""Background seeds: snippets that are surely background."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from potloc_fast.ops import _library  # noqa: F401 (registers the operators)
from potloc_fast.ops._checks import check_device, check_dtype, check_floating, check_shape

_OP = "background_seeds"


def background_seeds(
    background: Tensor,
    action: Tensor,
    level_lengths: Sequence[int],
    threshold: float = 0.95,
    mask: Tensor | None = None,
    outer_argmax: bool = True,
) -> Tensor:
    """Find the rows of L_BG: what lies between confident background snippets, gap by gap between actions (LACP).

    A gap is a longest run of snippets without action, within one video and level. In a gap between two actions the
    seeds are all snippets from the first to the last one over the threshold; before the first action, those from the
    start of the row to the last one over it; after the last action, those from the first one over it to the end. A gap
    with none over it has its most probable snippet as its seed, the first where several are equal. A row without any
    action counts as a gap between two actions. "Over" is strict, in the dtype of `background`, and NaN is never over.

    Not differentiable; autocast changes nothing.

    Args:
        background: background probabilities, `Tensor[B, T]` of float32, float64, bfloat16 or float16. The levels of
            the pyramid lie one after the other on the time axis.
        action: `Tensor[B, T]` of bool, True for snippets that a point or pseudo-label holds.
        level_lengths: number of snippets of every level; they add up to T.
        threshold: the probability to exceed.
        mask: `Tensor[B, T]` of bool, False for padding, which is left out as if it were not there.
        outer_argmax: whether the gaps before the first and after the last action get a seed where none is over the
            threshold.

    Returns:
        `Tensor[B, T]` of bool.

    Raises:
        ValueError: a shape, the device or the sum of `level_lengths` is wrong.
        TypeError: a dtype is wrong.

    Example:
        >>> probability = torch.tensor([[0.97, 0.2, 0.1, 0.96, 0.5, 0.99, 0.1, 0.3]])
        >>> action = torch.tensor([[False, False, True, False, False, False, True, False]])
        >>> background_seeds(probability, action, [8]).int()
        tensor([[1, 0, 0, 1, 1, 1, 0, 1]], dtype=torch.int32)
    """
    check_floating(_OP, background=background)
    check_shape(_OP, "background", background, "B, T", (-1, -1))
    for name, tensor in (("action", action), ("mask", mask)):
        if tensor is not None:
            check_dtype(_OP, name, tensor, torch.bool)
            check_device(_OP, name, tensor, background)
            check_shape(_OP, name, tensor, "B, T", background.shape)
    if any(length < 0 for length in level_lengths) or sum(level_lengths) != background.shape[1]:
        raise ValueError(f"{_OP}: level_lengths must add up to T = {background.shape[1]}, got {list(level_lengths)}")
    seeds: Tensor = torch.ops.potloc_fast.background_seeds(
        background.detach().contiguous(),
        action.contiguous(),
        list(level_lengths),
        threshold,
        None if mask is None else mask.contiguous(),
        outer_argmax,
    )
    return seeds


@torch.library.register_fake("potloc_fast::background_seeds")
def _(
    background: Tensor,
    action: Tensor,
    level_lengths: Sequence[int],
    threshold: float,
    mask: Tensor | None,
    outer_argmax: bool,
) -> Tensor:
    return background.new_empty(background.shape, dtype=torch.bool)
