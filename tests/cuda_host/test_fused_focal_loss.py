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
Guard = Callable[[Tensor], Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(dtype: torch.dtype, n: int, c: int, soft: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, targets and two sets of rows that overlap and leave others out."""
    targets = normal(n, c, seed=1)
    targets = targets.sigmoid() if soft else targets.gt(0).double()
    return (3 * normal(n, c + 1)).to(dtype), targets.to(dtype), normal(n, seed=2) > 0, normal(n, seed=3) > 0


def evaluate_host(host: Any, guarded: Guard, tensors: tuple[Tensor, ...], gamma: float) -> list[Tensor]:
    """Both losses and the gradient of each, from kernels that find their inputs in guarded memory."""
    logits, *rest = (guarded(tensor) for tensor in tensors)
    act, bg, counts = host.fused_focal_loss(logits, *rest, gamma)
    assert counts.tolist() == [tensors[2].sum(), tensors[3].sum()]
    one, zero = (guarded(torch.full((), value, dtype=logits.dtype)) for value in (1, 0))
    grads = [
        host._fused_focal_loss_backward(*pair, counts, logits, *rest, gamma) for pair in ((one, zero), (zero, one))
    ]
    return [act, bg, *grads]


def evaluate(logits: Tensor, *args: Any) -> list[Tensor]:
    logits = logits.detach().requires_grad_()
    losses = reference.fused_focal_loss(logits, *args)
    return [loss.detach() for loss in losses] + [
        torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in losses
    ]


def assert_as_good_as_plain(host: Any, guarded: Guard, tensors: tuple[Tensor, ...], gamma: float) -> None:
    """Float types equal the reference in float64; half types are off by at most twice what plain PyTorch is."""
    logits, targets, *rows = tensors
    found = evaluate_host(host, guarded, tensors, gamma)
    want = evaluate(logits.double(), targets.double(), *rows, gamma)
    plain = evaluate(logits, targets, *rows, gamma)
    for one, exact, usual in zip(found, want, plain, strict=True):
        assert one.dtype == logits.dtype
        assert one.shape == exact.shape
        if logits.dtype.itemsize == 2 and one.numel():
            allowed = 2 * (usual.double() - exact).abs().max() + torch.finfo(one.dtype).eps * exact.abs().max()
            assert (one.double() - exact).abs().max() <= allowed
        else:
            tolerance = 1e-11 if logits.dtype == torch.float64 else 2e-6
            torch.testing.assert_close(one.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("n", [0, 1, 127, 300])
def test_equals_the_reference(dtype: torch.dtype, gamma: float, n: int, host: Any, guarded: Guard) -> None:
    for seed, soft in enumerate((False, True)):
        host.seed(seed)
        assert_as_good_as_plain(host, guarded, inputs(dtype, n, 20, soft), gamma)


# One to sixteen threads a row: as many as keep the banks of shared memory apart, and the tile small. No class, a row
# shorter than 16 bytes, a tile too large for shared memory.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("c", [0, 1, 2, 3, 16, 24, 31, 32, 100, 401, 2000])
def test_any_number_of_classes(dtype: torch.dtype, c: int, host: Any, guarded: Guard) -> None:
    assert_as_good_as_plain(host, guarded, inputs(dtype, 45, c), 2.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.03, 0.5, 1.0])
def test_any_share_of_the_rows(dtype: torch.dtype, share: float, host: Any, guarded: Guard) -> None:
    for c in (2, 20):
        logits, targets, _, _ = inputs(dtype, 290, c)
        positive, background = (torch.rand(290, generator=torch.Generator().manual_seed(i)) < share for i in (4, 5))
        assert_as_good_as_plain(host, guarded, (logits, targets, positive, background), 2.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_in_neither_set_have_no_part(dtype: torch.dtype, host: Any, guarded: Guard) -> None:
    for c in (20, 31):
        logits, targets, positive, background = inputs(dtype, 200, c)
        other, other_targets = logits.clone(), targets.clone()
        neither = ~positive & ~background
        other[neither] = float("nan")
        other_targets[neither] = float("nan")
        want = evaluate_host(host, guarded, (logits, targets, positive, background), 2.0)
        found = evaluate_host(host, guarded, (other, other_targets, positive, background), 2.0)
        assert all(torch.equal(one, same) for one, same in zip(found, want, strict=True))
        assert found[2][positive].any()
        assert not found[2][~positive].any()
        assert not found[3][~background].any()


def test_nan_stays_in_its_row(host: Any, guarded: Guard) -> None:
    logits, targets, positive, background = inputs(torch.float32, 40, 20)
    row = int((positive & ~background).nonzero()[0])
    logits[row, 1] = float("nan")
    act, bg, grad_act, grad_bg = evaluate_host(host, guarded, (logits, targets, positive, background), 2.0)
    assert act.isnan()
    assert bg.isfinite()
    assert grad_act[row].isnan().any()
    assert grad_act[torch.arange(40) != row].isfinite().all()
    assert grad_bg.isfinite().all()


def extremes(dtype: torch.dtype, values: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Every combination of one class's logit, the background's and the target, a row each; and all rows."""
    logits = torch.cartesian_prod(*2 * [torch.tensor(values, dtype=dtype)]).repeat(3, 1)
    targets = torch.tensor([0, 0.5, 1], dtype=dtype).repeat_interleave(len(values) ** 2)[:, None]
    return logits, targets, torch.ones(len(logits), dtype=torch.bool)


def tolerance_of(dtype: torch.dtype) -> float:
    return 1e-11 if dtype == torch.float64 else max(4 * torch.finfo(dtype).eps, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_losses_of_extreme_logits(dtype: torch.dtype, gamma: float, host: Any) -> None:
    logits, targets, rows = extremes(dtype, [-1e4, -60, 0, 60, 1e4])
    for i in range(len(logits)):
        one = logits[i : i + 1], targets[i : i + 1]
        found = host.fused_focal_loss(*one, rows[:1], rows[:1], gamma)[:2]
        want = reference.fused_focal_loss(*(tensor.double() for tensor in one), rows[:1], rows[:1], gamma)
        for result, exact in zip(found, want, strict=True):
            tolerance = tolerance_of(dtype)
            torch.testing.assert_close(result.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_gradients_of_extreme_logits(dtype: torch.dtype, gamma: float, host: Any) -> None:
    logits, targets, rows = extremes(dtype, [-1e4, -100, -60, -45, 0, 45, 60, 100, 1e4])
    _, _, *want = evaluate(logits.double(), targets.double(), rows, rows, gamma)
    counts, n = torch.tensor([len(rows)] * 2), len(rows)
    weight, zero = torch.tensor(float(n), dtype=dtype), torch.zeros((), dtype=dtype)
    for exact, incoming in zip(want, ((weight, zero), (zero, weight)), strict=True):
        found = host._fused_focal_loss_backward(*incoming, counts, logits, targets, rows, rows, gamma)
        assert found.isfinite().all()
        # The reference has no finite gradient everywhere; and it takes 1 - P from a difference, which rounds.
        known = exact.isfinite()
        tolerance = max(tolerance_of(dtype), 1e-8)
        torch.testing.assert_close(found.double()[known], n * exact[known], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_largest_logits(dtype: torch.dtype, gamma: float, host: Any, guarded: Guard) -> None:
    largest = torch.finfo(dtype).max
    logits, targets, rows = extremes(dtype, [-largest, 0, largest])
    for size in (1, 0.9):  # losses may be infinite, as sums of the largest numbers
        act, bg, *grads = evaluate_host(host, guarded, (size * logits, targets, rows, rows), gamma)
        assert not act.isnan()
        assert not bg.isnan()
        assert all(grad.isfinite().all() for grad in grads)
    logits *= 0.4  # the difference of two is a number as well
    for i in range(len(logits)):
        found = evaluate_host(host, guarded, (logits[i : i + 1], targets[i : i + 1], rows[:1], rows[:1]), gamma)
        assert all(tensor.isfinite().all() for tensor in found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_quite_wrong_still_learns(dtype: torch.dtype, host: Any, guarded: Guard) -> None:
    row, none = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
    missed = torch.tensor([[-1e4, 1e4]], dtype=dtype), torch.ones(1, 1, dtype=dtype), row, none
    grad = evaluate_host(host, guarded, missed, 2.0)[2]
    torch.testing.assert_close(grad, torch.tensor([[-1, 1]], dtype=dtype), rtol=1e-6, atol=0)
    # Of e^-x + e^z, which both underflow, z has the larger part.
    seen = torch.tensor([[104, -102]], dtype=dtype), torch.zeros(1, 1, dtype=dtype), none, row
    grad = evaluate_host(host, guarded, seen, 0.0)[3]
    share = torch.tensor(2.0, dtype=torch.float64).sigmoid()
    want = torch.stack([1 - share, -share - 1]).to(dtype)[None]  # of -log b, the slope in z is -1
    torch.testing.assert_close(grad, want, rtol=2e-2 if dtype.itemsize == 2 else 1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_repeats_bit_for_bit(dtype: torch.dtype, host: Any, guarded: Guard) -> None:
    for c in (20, 31):
        tensors = inputs(dtype, 700, c)
        runs = []
        for seed in range(4):
            host.seed(seed)
            runs.append(evaluate_host(host, guarded, tensors, 2.0))
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_that_is_not_aligned(dtype: torch.dtype, host: Any, guarded: Guard) -> None:
    tensors = inputs(dtype, 150, 20)

    def shifted(tensor: Tensor) -> Tensor:
        flat = guarded(torch.cat([tensor.new_zeros(1), tensor.flatten()]))
        return flat[1:].view(tensor.shape)

    want = evaluate_host(host, guarded, tensors, 2.0)
    found = evaluate_host(host, shifted, tensors, 2.0)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_factors_are_those_of_the_incoming_gradients(host: Any, guarded: Guard) -> None:
    logits, *rest = (guarded(tensor) for tensor in inputs(torch.float64, 60, 5))
    counts = host.fused_focal_loss(logits, *rest, 2.0)[2]

    def backward(act: float, bg: float) -> Tensor:
        grads = (torch.tensor(value, dtype=torch.float64) for value in (act, bg))
        return host._fused_focal_loss_backward(*grads, counts, logits, *rest, 2.0)

    torch.testing.assert_close(backward(3, -0.5), 3 * backward(1, 0) - 0.5 * backward(0, 1))
