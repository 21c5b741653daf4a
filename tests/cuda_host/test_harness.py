"""The harness finds the faults that it is there to find."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.cuda_host

X = torch.arange(64.0)


def test_a_kernel_with_its_barrier_works_in_every_order(host: Any) -> None:
    for seed in range(20):
        host.seed(seed)
        torch.testing.assert_close(host.toy(X, 0), X.roll(-1), rtol=0, atol=0)


def test_a_missing_barrier_shows(host: Any) -> None:
    for seed in range(20):
        host.seed(seed)
        assert not torch.equal(host.toy(X, 1), X.roll(-1))


def test_the_same_seed_gives_the_same_order(host: Any) -> None:
    def rotate(seed: int) -> torch.Tensor:
        host.seed(seed)
        return host.toy(X, 1).isnan()

    assert torch.equal(rotate(1), rotate(1))
    assert not torch.equal(rotate(1), rotate(2))


@pytest.mark.parametrize(("kind", "where"), [(2, "global"), (3, "shared")])
def test_an_access_out_of_bounds_is_caught(host: Any, kind: int, where: str) -> None:
    with pytest.raises(RuntimeError, match=r"block \(0, 0, 0\), thread \(\d, 0, 0\): touches memory beyond an end"):
        host.toy(X, kind)
    torch.testing.assert_close(host.toy(X, 0), X.roll(-1), rtol=0, atol=0)  # and the next kernel runs


def test_a_warp_whose_lanes_part_is_caught(host: Any) -> None:
    with pytest.raises(RuntimeError, match="waits in a warp-wide operation that some lane of its mask never comes to"):
        host.toy(X, 4)
