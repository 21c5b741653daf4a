"""A call of CUDA's runtime that fails is the failure of one call of an operator, and of none that follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.cuda_host


def nms(host: Any) -> tuple[Tensor, ...]:
    segments = torch.tensor([[0.0, 2.0], [1.0, 3.0], [0.0, 2.5], [8.0, 9.0]])
    groups = torch.tensor([0, 1, 0, 1])
    return host.nms(segments, torch.tensor([0.5, 0.25, 1.0, 0.75]), groups, 0, 0.5, 0.5, 0.0, 0.0, 10, 0.0)


def score_segments(host: Any) -> tuple[Tensor, ...]:
    curves = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.5, 0.0]])
    return host.score_segments(curves, torch.tensor([0.75, 0.25]), torch.tensor([6]), 1, 1, 0.25, None)


def test_the_error_of_a_launch_is_raised(host: Any) -> None:
    with pytest.raises(RuntimeError, match="toy: CUDA says invalid configuration argument"):
        host.toy(torch.ones(64), 5)
    assert host.last_error() == 0


# Launches of kernels and of CUB, memory that is zeroed, and two calls to read a size back.
@pytest.mark.parametrize(("operator", "calls"), [(nms, 12), (score_segments, 7)])
def test_a_call_that_fails_fails_no_later_one(operator: Any, calls: int, host: Any) -> None:
    want = operator(host)
    assert len(want[0]) == 3
    for failing in range(1, calls + 1):
        host.fail_call(failing)
        with pytest.raises(RuntimeError, match=f"{operator.__name__}: CUDA says invalid argument"):
            operator(host)
        # CUB looks at the error that was left last, and would fail here.
        for found, expected in zip(operator(host), want, strict=True):
            assert torch.equal(found, expected)
    host.fail_call(calls + 1)
    operator(host)  # there is no such call
    host.fail_call(0)
