from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from potloc_fast import reference

pytestmark = pytest.mark.cuda_host

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
Guard = Callable[[Tensor], Tensor]
Inputs = tuple[Tensor, Tensor, Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(dtype: torch.dtype, b: int, t: int, c: int, n: int) -> Inputs:
    weight = normal(n, 3, c, seed=1).to(torch.float64 if dtype == torch.float64 else torch.float32)
    return normal(b, t, c).to(dtype), weight, normal(b, t, seed=2) > -0.5


def weights_of(outputs: list[Tensor]) -> list[Tensor]:
    return [normal(*one.shape, seed=3 + n).to(one.dtype) for n, one in enumerate(outputs)]


def evaluate_host(
    host: Any, guarded: Guard, x: Tensor, weight: Tensor, stride: int, mask: Tensor | None
) -> list[Tensor]:
    """The outputs and the gradients of their sum, weighed, from kernels that find their inputs in guarded memory."""
    arguments = (guarded(x), guarded(weight), stride, None if mask is None else guarded(mask))
    out = host.depthwise_conv(*arguments)
    grads = [guarded(each) for each in weights_of(out)]
    return [*out, *host._depthwise_conv_backward(grads, *arguments)]


def evaluate(x: Tensor, weight: Tensor, stride: int, mask: Tensor | None) -> list[Tensor]:
    leaves = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
    out = reference.depthwise_conv(*leaves, stride, mask)
    return [*(one.detach() for one in out), *torch.autograd.grad(out, leaves, weights_of(out))]


def assert_as_good_as_plain(
    host: Any, guarded: Guard, x: Tensor, weight: Tensor, stride: int, mask: Tensor | None
) -> None:
    """Float types equal the reference in float64; half types are off by at most twice what plain PyTorch is."""
    found = evaluate_host(host, guarded, x, weight, stride, mask)
    want = evaluate(x.double(), weight.double(), stride, mask)
    plain = evaluate(x, weight, stride, mask)
    for one, exact, usual in zip(found, want, plain, strict=True):
        assert one.dtype == usual.dtype
        assert one.shape == exact.shape
        if x.dtype.itemsize == 2 and one.numel():
            allowed = 2 * (usual.double() - exact).abs().max() + torch.finfo(x.dtype).eps * exact.abs().max()
            assert (one.double() - exact).abs().max() <= allowed
        else:
            tolerance = 1e-12 if x.dtype == torch.float64 else 1e-5
            scale = float(exact.abs().max()) if exact.numel() else 0.0
            torch.testing.assert_close(one.double(), exact, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
# Whole vectors, and not; more than a block takes of time and of channels.
@pytest.mark.parametrize(
    ("b", "t", "c", "n"),
    [(2, 0, 8, 1), (1, 1, 1, 1), (2, 2, 5, 2), (3, 9, 8, 3), (2, 67, 24, 3), (2, 131, 13, 2), (1, 70, 264, 3)],
)
def test_equals_the_reference(
    dtype: torch.dtype, stride: int, b: int, t: int, c: int, n: int, host: Any, guarded: Guard
) -> None:
    host.seed(t)
    x, weight, mask = inputs(dtype, b, t, c, n)
    assert_as_good_as_plain(host, guarded, x, weight, stride, mask)
    assert_as_good_as_plain(host, guarded, x, weight, stride, None)


def test_no_channels_and_no_recordings(host: Any, guarded: Guard) -> None:
    for b, c in ((0, 4), (2, 0)):
        *_, grad_x, grad_weight = evaluate_host(host, guarded, *inputs(torch.float32, b, 9, c, 2)[:2], 1, None)
        assert grad_x.shape == (b, 9, c)
        assert torch.equal(grad_weight, torch.zeros(2, 3, c))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("c", [7, 8])
def test_what_is_padded_does_no_harm(dtype: torch.dtype, stride: int, c: int, host: Any, guarded: Guard) -> None:
    x, weight, mask = inputs(dtype, 2, 31, c, 3)
    spoilt = x.clone()
    spoilt[~mask] = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=dtype).repeat(3)[:c]
    want = evaluate_host(host, guarded, x.masked_fill(~mask.unsqueeze(-1), 0), weight, stride, mask)
    found = evaluate_host(host, guarded, spoilt, weight, stride, mask)
    assert all(torch.equal(one, other) for one, other in zip(found, want, strict=True))
    assert not found[-2][~mask].any()


def test_repeats_bit_for_bit(host: Any, guarded: Guard) -> None:
    x, weight, mask = inputs(torch.float32, 2, 150, 16, 3)
    runs = []
    for seed in range(4):
        host.seed(seed)
        runs.append(evaluate_host(host, guarded, x, weight, 1, mask))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_that_is_not_aligned(dtype: torch.dtype, host: Any, guarded: Guard) -> None:
    def shifted(tensor: Tensor) -> Tensor:
        return guarded(torch.cat([tensor.new_zeros(1), tensor.flatten()]))[1:].view(tensor.shape)

    assert_as_good_as_plain(host, shifted, *inputs(dtype, 2, 20, 16, 3)[:2], 1, None)
