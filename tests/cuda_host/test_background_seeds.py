from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from potloc_fast import reference

pytestmark = pytest.mark.cuda_host


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("action_share", [0.0, 0.02, 0.2, 0.7])
def test_seeds_are_those_of_the_reference(
    dtype: torch.dtype, action_share: float, host: Any, guarded: Callable[[Tensor], Tensor]
) -> None:
    for seed in range(8):
        host.seed(seed)
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(0, 90, (3,), generator=generator).tolist()
        # Few different values, so that equal ones occur.
        background = torch.randint(0, 20, (2, sum(lengths)), generator=generator).to(dtype) / 20
        if seed % 2:
            background[:, ::5] = float("nan")
        action = torch.rand(background.shape, generator=generator) < action_share
        threshold = (0.93, 0.5, 1.0)[seed % 3]
        for mask in (None, torch.rand(background.shape, generator=generator) < 0.9):
            for outer_argmax in (True, False):
                want = reference.background_seeds(background, action, lengths, threshold, mask, outer_argmax)
                found = host.background_seeds(
                    guarded(background),
                    guarded(action),
                    lengths,
                    threshold,
                    None if mask is None else guarded(mask),
                    outer_argmax,
                )
                assert torch.equal(found, want)
