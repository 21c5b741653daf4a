from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potloc_fast import ops, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
GAMMAS = [0.0, 0.5, 1.0, 2.0]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(layout: str, dtype: torch.dtype, n: int) -> tuple[Tensor, Tensor]:
    """Logits and targets `[N, 3]`: hard targets in the first two columns, soft ones in the last."""
    logits, targets = 3 * normal(n, 3), normal(n, 3, seed=1).gt(0).double()
    targets[:, 2] = normal(n, seed=2).sigmoid()
    if layout == "strided":
        wide = torch.stack([logits.t(), targets.t()], dim=-1).to(dtype)
        return wide[..., 0].t(), wide[..., 1].t()
    return logits.to(dtype), targets.to(dtype)


def evaluate(loss: Callable[..., Tensor], logits: Tensor, targets: Tensor, **options: object) -> list[Tensor]:
    """The loss and the gradient of its sum, weighed."""
    logits = logits.detach().requires_grad_()
    out = loss(logits, targets, **options)
    weight = normal(*out.shape, seed=3).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, logits, weight)]


def assert_as_good_as_plain(logits: Tensor, targets: Tensor, **options: object) -> None:
    """Float types equal the reference in float64; half types are off by at most twice what plain PyTorch is."""
    dtype = logits.dtype
    found = evaluate(ops.sigmoid_focal_loss, logits, targets, **options)
    want = evaluate(reference.sigmoid_focal_loss, logits.double(), targets.double(), **options)
    plain = evaluate(reference.sigmoid_focal_loss, logits, targets, **options)
    for one, exact, usual in zip(found, want, plain, strict=True):
        assert one.dtype == dtype
        if dtype.itemsize == 2 and logits.numel():
            allowed = 2 * (usual.double() - exact).abs().max() + torch.finfo(dtype).eps * exact.abs().max()
            assert (one.double() - exact).abs().max() <= allowed
        else:
            tolerance = 1e-12 if dtype == torch.float64 else 2e-6
            torch.testing.assert_close(one.double(), exact, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("n", [0, 1, 7, 31, 33, 1400])
def test_equals_the_reference(dtype: torch.dtype, layout: str, n: int) -> None:
    logits, targets = inputs(layout, dtype, n)
    for gamma in GAMMAS:
        for alpha in (-1.0, 0.25):
            assert_as_good_as_plain(logits, targets, gamma=gamma, alpha=alpha)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("n", [0, 1, 30])
def test_reductions(dtype: torch.dtype, reduction: str, n: int) -> None:
    logits, targets = inputs("contiguous", dtype, n)
    assert_as_good_as_plain(logits, targets, reduction=reduction)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(0, 6), max_size=4),
    gamma=st.floats(0, 5),
    alpha=st.sampled_from([-1.0, 0.0, 0.3, 1.0]),
    reduction=st.sampled_from(["none", "mean", "sum"]),
)
def test_equals_the_reference_anywhere(shape: list[int], gamma: float, alpha: float, reduction: str) -> None:
    logits, targets = 3 * normal(*shape), normal(*shape, seed=1).sigmoid()
    assert_as_good_as_plain(logits, targets, gamma=gamma, alpha=alpha, reduction=reduction)


def test_gamma_zero_is_the_cross_entropy() -> None:
    logits, targets = inputs("contiguous", torch.float64, 20)
    want = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(ops.sigmoid_focal_loss(logits, targets, alpha=-1, gamma=0), want)


def test_a_value_worked_out_by_hand() -> None:
    # p = 1/2: alpha (1 - 1/2)^2 log 2 for the positive, (1 - alpha) (1/2)^2 log 2 for the negative.
    loss = ops.sigmoid_focal_loss(torch.zeros(2), torch.tensor([1.0, 0.0]), alpha=0.25, gamma=2)
    torch.testing.assert_close(loss, math.log(2) / 4 * torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [-1.0, 0.25])
def test_gradcheck(gamma: float, alpha: float) -> None:
    logits, targets = inputs("contiguous", torch.float64, 5)
    for reduction in ("none", "mean", "sum"):
        assert torch.autograd.gradcheck(
            lambda x, r=reduction: ops.sigmoid_focal_loss(x, targets, alpha, gamma, r), logits.requires_grad_()
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_extreme_logits(dtype: torch.dtype, gamma: float) -> None:
    logits = torch.tensor([-1e4, 1e4, -1e4, 1e4, 1e4], dtype=dtype, requires_grad=True)
    targets = torch.tensor([1, 0, 0, 1, 0.5], dtype=dtype)
    loss = ops.sigmoid_focal_loss(logits, targets, alpha=-1, gamma=gamma)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    # Quite wrong: the loss is |x|. Quite right: it is zero. Half wrong: half the loss at half the modulation.
    half = 0.5 ** (1 + gamma)
    torch.testing.assert_close(loss, torch.tensor([1, 1, 0, 0, half], dtype=dtype) * logits.detach().abs())
    torch.testing.assert_close(grad, torch.tensor([-1, 1, 0, 0, half], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relative_accuracy_at_awkward_logits(dtype: torch.dtype) -> None:
    edges = torch.tensor([0, 1e-30, 1e-8, 1e-4, 0.3466, 0.8814, 3, 17, 40, 86, 87.4, 89, 105, 700, 709, 750, 1e4])
    x = torch.cat([-edges, edges]).to(dtype)
    for gamma in (0.0, 2.0):
        for target in (0.0, 1.0):
            logits = x.clone().requires_grad_()
            loss = ops.sigmoid_focal_loss(logits, torch.full_like(x, target), alpha=-1, gamma=gamma)
            (grad,) = torch.autograd.grad(loss.sum(), logits)
            sign = 1 - 2 * target
            wrong = sign * x.double()  # the more, the worse
            entropy = torch.where(wrong > 0, wrong, 0) + torch.log1p((-wrong.abs()).exp())
            m = wrong.sigmoid()
            want = m**gamma * entropy
            slope = sign * m**gamma * (m + gamma * (-wrong).sigmoid() * entropy)
            limits = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 10 * torch.finfo(dtype).tiny}
            torch.testing.assert_close(loss.detach().double(), want, **limits)
            torch.testing.assert_close(grad.double(), slope, **limits)


def test_nan_stays_in_its_place() -> None:
    logits, targets = inputs("contiguous", torch.float32, 9)
    logits[4, 1] = float("nan")
    for result in evaluate(ops.sigmoid_focal_loss, logits, targets):
        assert torch.equal(result.isnan(), logits.isnan())


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_repeats_for_any_number_of_threads(reduction: str) -> None:
    threads = torch.get_num_threads()
    logits, targets = inputs("contiguous", torch.float32, 20000)
    results = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(evaluate(ops.sigmoid_focal_loss, logits, targets, reduction=reduction))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck() -> None:
    logits, targets = inputs("contiguous", torch.float32, 5)
    operators = torch.ops.potloc_fast
    for reduction, grad in enumerate([torch.ones_like(logits), torch.ones(()), torch.ones(())]):
        arguments = (targets, 0.25, 2.0, reduction)
        leaf = logits.clone().requires_grad_()
        torch.library.opcheck(operators.sigmoid_focal_loss.default, (leaf, *arguments))
        torch.library.opcheck(operators._sigmoid_focal_loss_backward.default, (grad, logits, *arguments))


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_compiles_without_a_graph_break(reduction: str) -> None:
    logits, targets = inputs("strided", torch.float32, 9)
    compiled = torch.compile(ops.sigmoid_focal_loss, fullgraph=True, backend="aot_eager")
    found, want = (evaluate(f, logits, targets, reduction=reduction) for f in (compiled, ops.sigmoid_focal_loss))
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_double_backward_is_refused_in_words() -> None:
    logits, targets = inputs("contiguous", torch.float32, 5)
    loss = ops.sigmoid_focal_loss(logits.requires_grad_(), targets).square().sum()
    (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        grad.sum().backward()


def test_autocast_computes_in_float32() -> None:
    logits, targets = inputs("contiguous", torch.bfloat16, 5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ops.sigmoid_focal_loss(logits.requires_grad_(), targets, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, ops.sigmoid_focal_loss(logits.float(), targets.float(), reduction="sum"), rtol=0, atol=0
    )
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_no_gradient_passes_to_the_targets() -> None:
    logits, targets = inputs("contiguous", torch.float32, 5)
    targets.requires_grad_()
    ops.sigmoid_focal_loss(logits.requires_grad_(), targets, reduction="sum").backward()
    assert targets.grad is None


X = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, r"targets must have the shape of logits, \[4, 3\], got \[4, 2\]", {"targets": X[:, :2]}),
        (TypeError, "logits must be float32, .*, got torch.int64", {"logits": X.long()}),
        (TypeError, "targets must be float32, .*, got torch.bool", {"targets": X.bool()}),
        (ValueError, "targets must be on cpu as the first argument is, got meta", {"targets": X.to("meta")}),
        (ValueError, "reduction must be one of none, mean, sum, got 'max'", {"reduction": "max"}),
        (ValueError, "gamma must be 0 or more, got -1", {"gamma": -1}),
        (ValueError, "gamma must be 0 or more, got nan", {"gamma": float("nan")}),
    ],
)
def test_refuses(error: type[Exception], message: str, change: dict[str, object]) -> None:
    with pytest.raises(error, match=f"sigmoid_focal_loss: {message}"):
        ops.sigmoid_focal_loss(**{"logits": X, "targets": X, **change})


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_a_gradient_far_from_the_decision_keeps_its_digits(target: float) -> None:
    x = torch.tensor([-55.0, -50.0, -46.0, 46.0, 50.0, 55.0])

    def slope(dtype: torch.dtype) -> Tensor:
        logits = x.to(dtype).requires_grad_()
        loss = ops.sigmoid_focal_loss(logits, torch.full_like(logits, target), alpha=-1, gamma=0.5, reduction="sum")
        return torch.autograd.grad(loss, logits)[0].double()

    torch.testing.assert_close(slope(torch.float32), slope(torch.float64), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", [*GAMMAS, 7.0])
def test_every_finite_logit_has_a_finite_loss_and_gradient(dtype: torch.dtype, gamma: float) -> None:
    largest = torch.finfo(dtype).max
    values = torch.tensor([-largest, -largest / 3, largest / 3, largest], dtype=dtype)
    logits = values.repeat(3).requires_grad_()
    targets = torch.tensor([0, 0.5, 1], dtype=dtype).repeat_interleave(4)
    loss = ops.sigmoid_focal_loss(logits, targets, alpha=-1, gamma=gamma)
    (grad,) = torch.autograd.grad(loss, logits, torch.ones_like(loss))
    want = evaluate(reference.sigmoid_focal_loss, logits.double(), targets.double(), alpha=-1, gamma=gamma)
    assert loss.isfinite().all()
    torch.testing.assert_close(loss.detach(), want[0].to(dtype))
    assert grad.isfinite().all()
    # Right or wrong, the gradient is a step; at 1/2 it is half of one, at half the modulation.
    half = 0.5 ** (1 + gamma)
    torch.testing.assert_close(grad, torch.tensor([0, 0, 1, 1, -half, -half, half, half, -1, -1, 0, 0], dtype=dtype))
    total = ops.sigmoid_focal_loss(logits, targets, alpha=-1, gamma=gamma, reduction="sum")
    assert total == math.inf  # more than the dtype holds, as documented
    assert torch.autograd.grad(total, logits)[0].isfinite().all()
