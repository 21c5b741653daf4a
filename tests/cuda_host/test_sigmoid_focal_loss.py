from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from potloc_fast import reference

pytestmark = pytest.mark.cuda_host

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
GAMMAS = [0.0, 0.5, 2.0]
REDUCTIONS = ["none", "mean", "sum"]
Guard = Callable[[Tensor], Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(dtype: torch.dtype, n: int) -> tuple[Tensor, Tensor]:
    """Logits and targets `[N, 3]`: hard targets in the first two columns, soft ones in the last."""
    targets = normal(n, 3, seed=1).gt(0).double()
    targets[:, 2] = normal(n, seed=2).sigmoid()
    return (3 * normal(n, 3)).to(dtype), targets.to(dtype)


def evaluate_host(
    host: Any, guarded: Guard, logits: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: str
) -> list[Tensor]:
    """The loss and the gradient of its sum, weighed, from kernels that find their inputs in guarded memory."""
    logits, targets = guarded(logits), guarded(targets)
    arguments = (logits, targets, alpha, gamma, REDUCTIONS.index(reduction))
    loss = host.sigmoid_focal_loss(*arguments)
    weight = guarded(normal(*loss.shape, seed=3).to(loss.dtype))
    return [loss, host._sigmoid_focal_loss_backward(weight, *arguments)]


def evaluate(logits: Tensor, targets: Tensor, *options: Any) -> list[Tensor]:
    logits = logits.detach().requires_grad_()
    loss = reference.sigmoid_focal_loss(logits, targets, *options)
    weight = normal(*loss.shape, seed=3).to(loss.dtype)
    return [loss.detach(), *torch.autograd.grad(loss, logits, weight)]


def assert_as_good_as_plain(host: Any, guarded: Guard, logits: Tensor, targets: Tensor, *options: Any) -> None:
    """Float types equal the reference in float64; half types are off by at most twice what plain PyTorch is."""
    dtype = logits.dtype
    found = evaluate_host(host, guarded, logits, targets, *options)
    want = evaluate(logits.double(), targets.double(), *options)
    plain = evaluate(logits, targets, *options)
    for one, exact, usual in zip(found, want, plain, strict=True):
        assert one.dtype == dtype
        assert one.shape == exact.shape
        if dtype.itemsize == 2 and logits.numel():
            allowed = 2 * (usual.double() - exact).abs().max() + torch.finfo(dtype).eps * exact.abs().max()
            assert (one.double() - exact).abs().max() <= allowed
        else:
            tolerance = 1e-12 if dtype == torch.float64 else 2e-6
            torch.testing.assert_close(one.double(), exact, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("n", [0, 1, 7, 1400])
def test_equals_the_reference(dtype: torch.dtype, reduction: str, n: int, host: Any, guarded: Guard) -> None:
    logits, targets = inputs(dtype, n)
    for seed, gamma in enumerate(GAMMAS):
        host.seed(seed)
        for alpha in (-1.0, 0.25):
            assert_as_good_as_plain(host, guarded, logits, targets, alpha, gamma, reduction)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("largest", [False, True])
def test_extreme_logits(dtype: torch.dtype, gamma: float, largest: bool, host: Any, guarded: Guard) -> None:
    # Nine tenths, as the twins' errors would carry the loss of the largest number over it.
    size = 0.9 * torch.finfo(dtype).max if largest else 1e4
    logits = torch.tensor([-size, size, -size, size, size], dtype=dtype)
    targets = torch.tensor([1, 0, 0, 1, 0.5], dtype=dtype)
    loss = host.sigmoid_focal_loss(guarded(logits), guarded(targets), -1, gamma, 0)
    grad = host._sigmoid_focal_loss_backward(torch.ones_like(logits), guarded(logits), guarded(targets), -1, gamma, 0)
    # Quite wrong: the loss is |x|. Quite right: it is zero. Half wrong: half the loss at half the modulation.
    half = 0.5 ** (1 + gamma)
    torch.testing.assert_close(loss, torch.tensor([1, 1, 0, 0, half], dtype=dtype) * logits.abs())
    torch.testing.assert_close(grad, torch.tensor([-1, 1, 0, 0, half], dtype=dtype))


def test_small_losses_are_exact_in_relative_terms(host: Any, guarded: Guard) -> None:
    size = torch.linspace(1, 80, 200)
    logits, targets = torch.cat([size, -size]), torch.cat([torch.ones(200), torch.zeros(200)])
    for gamma, tolerance in ((0.0, 2e-6), (0.5, 1.2e-5), (2.0, 4e-6)):  # a power rounds its exponent
        # All are right: BCE = log(1 + e^-|x|), which the reference takes from a difference.
        right = -logits.double().abs().requires_grad_()
        want = torch.nn.functional.softplus(right) * right.sigmoid() ** gamma
        (slope,) = torch.autograd.grad(want.sum(), right)
        expected = want.detach(), slope * -logits.sign() * normal(400, seed=3).float()
        for one, exact in zip(evaluate_host(host, guarded, logits, targets, -1, gamma, "none"), expected, strict=True):
            large_enough = exact.abs() > torch.finfo(torch.float32).tiny
            torch.testing.assert_close(one.double()[large_enough], exact[large_enough], rtol=tolerance, atol=0)


def test_nan_stays_in_its_place(host: Any, guarded: Guard) -> None:
    logits, targets = inputs(torch.float32, 9)
    logits[4, 1] = float("nan")
    for gamma in GAMMAS:
        for result in evaluate_host(host, guarded, logits, targets, 0.25, gamma, "none"):
            assert torch.equal(result.isnan(), logits.isnan())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_repeats_bit_for_bit(reduction: str, host: Any, guarded: Guard) -> None:
    tensors = inputs(torch.float32, 4000)
    runs = []
    for seed in range(4):
        host.seed(seed)
        runs.append(evaluate_host(host, guarded, *tensors, 0.25, 2.0, reduction))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_memory_that_is_not_aligned(dtype: torch.dtype, reduction: str, host: Any, guarded: Guard) -> None:
    def shifted(tensor: Tensor) -> Tensor:
        return guarded(torch.cat([tensor.new_zeros(1), tensor.flatten()]))[1:].view(tensor.shape)

    tensors = inputs(dtype, 500)
    want = evaluate_host(host, guarded, *tensors, 0.25, 2.0, reduction)
    found = evaluate_host(host, shifted, *tensors, 0.25, 2.0, reduction)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
