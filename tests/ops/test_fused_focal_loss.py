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


def inputs(layout: str, dtype: torch.dtype, n: int, c: int = 3, soft: bool = False) -> tuple[Tensor, ...]:
    """Logits, targets and two sets of rows that overlap and leave others out."""
    logits, targets = 3 * normal(n, c + 1), normal(n, c, seed=1)
    targets = targets.sigmoid() if soft else targets.gt(0).double()
    positive, background = normal(n, seed=2) > 0, normal(n, seed=3) > 0
    if layout == "strided":
        logits, targets = (torch.stack([x.t(), x.t()], dim=-1)[..., 0].t() for x in (logits, targets))
        positive, background = torch.stack([positive, background], dim=-1).unbind(dim=-1)
    return logits.to(dtype), targets.to(dtype), positive, background


def evaluate(loss: Callable[..., tuple[Tensor, Tensor]], logits: Tensor, *args: object) -> list[Tensor]:
    """Both losses and the gradient of each."""
    logits = logits.detach().requires_grad_()
    act, bg = loss(logits, *args)
    grads = (torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (act, bg))
    return [act.detach(), bg.detach(), *grads]


def assert_as_good_as_plain(logits: Tensor, targets: Tensor, *args: object) -> None:
    """Float types equal the reference in float64; half types are off by at most twice what plain PyTorch is."""
    dtype = logits.dtype
    found = evaluate(ops.fused_focal_loss, logits, targets, *args)
    want = evaluate(reference.fused_focal_loss, logits.double(), targets.double(), *args)
    plain = evaluate(reference.fused_focal_loss, logits, targets, *args)
    for one, exact, usual in zip(found, want, plain, strict=True):
        assert one.dtype == dtype
        assert one.shape == exact.shape
        if dtype.itemsize == 2 and one.numel():
            allowed = 2 * (usual.double() - exact).abs().max() + torch.finfo(dtype).eps * exact.abs().max()
            assert (one.double() - exact).abs().max() <= allowed
        else:
            tolerance = 1e-11 if dtype == torch.float64 else 1e-5
            torch.testing.assert_close(one.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("n", [0, 1, 7, 31, 33, 700])
def test_equals_the_reference(dtype: torch.dtype, layout: str, n: int) -> None:
    for soft in (False, True):
        tensors = inputs(layout, dtype, n, soft=soft)
        for gamma in GAMMAS:
            assert_as_good_as_plain(*tensors, gamma)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(0, 40), c=st.integers(0, 5), gamma=st.floats(0, 5), layout=st.sampled_from(["contiguous", "strided"])
)
def test_equals_the_reference_anywhere(n: int, c: int, gamma: float, layout: str) -> None:
    assert_as_good_as_plain(*inputs(layout, torch.float64, n, c, soft=True), gamma)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("c", [1, 15, 16, 17, 33])
def test_any_number_of_classes(dtype: torch.dtype, c: int) -> None:
    for gamma in (0.5, 2.0):
        assert_as_good_as_plain(*inputs("contiguous", dtype, 37, c, soft=True), gamma)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_relative_accuracy_at_awkward_logits(gamma: float) -> None:
    # Where P or 1 - P is tiny, where e^-|x| is next to the smallest number, and where a logarithm changes its range.
    edges = torch.tensor([0, 1e-30, 1e-4, 0.3466, 0.8814, 3, 17, 40, 86, 87.4, 89, 105, 1e4])
    edges = torch.cat([-edges, edges])
    every = torch.cartesian_prod(edges, edges)
    one, none = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
    for pair in every:
        x, z = pair.double()
        log_p = -sum(y.clamp(min=0) + (-y.abs()).exp().log1p() for y in (-x, z))
        # log(1 - P) straight from P up to 1/2, then as a sum of what is positive.
        log_q = torch.where(log_p < -0.6931, (-log_p.exp()).log1p(), torch.stack([-x, z, z - x]).logsumexp(0) + log_p)
        for target, want in ((1.0, -log_p * (gamma * log_q).exp()), (0.0, -log_q * (gamma * log_p).exp())):
            results = []
            for dtype in (torch.float32, torch.float64):
                targets = torch.full((1, 1), target, dtype=dtype)
                act, _, grad, _ = evaluate(ops.fused_focal_loss, pair[None].to(dtype), targets, one, none, gamma)
                results.append((act.double(), grad.double()))
            torch.testing.assert_close(results[1][0], want, rtol=1e-12, atol=1e-300)
            for single, double in zip(*results, strict=True):
                torch.testing.assert_close(single, double, rtol=2e-6, atol=1e-37)


def test_values_worked_out_by_hand() -> None:
    # All logits 0: p = b = 1/2, so P = 1/4.
    logits = torch.zeros(2, 3, dtype=torch.float64)
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    rows = torch.tensor([True, False])
    act, bg = ops.fused_focal_loss(logits, targets, rows, ~rows)
    miss = (1 / 4) ** 2 * -math.log(3 / 4)
    assert act.item() == pytest.approx((3 / 4) ** 2 * math.log(4) + miss)
    assert bg.item() == pytest.approx(2 * miss + (1 / 2) ** 2 * math.log(2))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_gradcheck(gamma: float) -> None:
    logits, *rest = inputs("contiguous", torch.float64, 6, soft=True)
    assert torch.autograd.gradcheck(lambda x: ops.fused_focal_loss(x, *rest, gamma), logits.requires_grad_())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_extreme_logits(dtype: torch.dtype, gamma: float) -> None:
    # Every combination of one class's logit, the background's and the target.
    values = torch.tensor([-1e4, 0, 1e4], dtype=dtype)
    logits = torch.cartesian_prod(values, values).repeat(3, 1)
    targets = torch.tensor([0, 0.5, 1], dtype=dtype).repeat_interleave(9)[:, None]
    rows = torch.ones(1, dtype=torch.bool)
    for row in range(len(logits)):
        one = logits[row : row + 1].requires_grad_(), targets[row : row + 1], rows, rows, gamma
        found = evaluate(ops.fused_focal_loss, *one)
        assert all(result.isfinite().all() for result in found)
        want = reference.fused_focal_loss(logits[row : row + 1].double(), targets[row : row + 1].double(), *one[2:])
        tolerance = max(4 * torch.finfo(dtype).eps, 1e-11)
        for loss, exact in zip(found[:2], want, strict=True):
            torch.testing.assert_close(loss.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_quite_wrong_still_learns(dtype: torch.dtype) -> None:
    rows = torch.ones(1, dtype=torch.bool)
    none = torch.zeros(1, dtype=torch.bool)
    logits = torch.tensor([[-1e4, 1e4]], dtype=dtype, requires_grad=True)  # sure background, where the action is
    act, _ = ops.fused_focal_loss(logits, torch.ones(1, 1, dtype=dtype), rows, none)
    assert torch.autograd.grad(act, logits)[0].tolist() == [[-1, 1]]
    logits = torch.tensor([[1e4, -1e4]], dtype=dtype, requires_grad=True)  # sure action, where the background is
    _, bg = ops.fused_focal_loss(logits, torch.zeros(1, 1, dtype=dtype), none, rows)
    grad = torch.autograd.grad(bg, logits)[0]
    # Both log(1 - P), whose slope the class and the background share, and log b pull.
    assert grad.isfinite().all()
    assert grad[0, 0] > 0.4
    assert grad[0, 1] < -1.4


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_without_rows_are_zero(dtype: torch.dtype) -> None:
    logits, targets, _, _ = inputs("contiguous", dtype, 5)
    none, every = torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)
    act, bg, grad_act, grad_bg = evaluate(ops.fused_focal_loss, logits, targets, none, every)
    assert act == 0
    assert not grad_act.any()
    assert bg > 0
    assert grad_bg.any(dim=1).all()
    act, bg, grad_act, grad_bg = evaluate(ops.fused_focal_loss, logits, targets, every, none)
    assert act > 0
    assert grad_act.any(dim=1).all()
    assert bg == 0
    assert not grad_bg.any()


def test_rows_in_neither_set_have_no_part() -> None:
    logits, targets, positive, background = inputs("contiguous", torch.float32, 40)
    neither = ~positive & ~background
    assert neither.any()
    assert (positive & background).any()
    other = logits.clone()
    other[neither] = float("nan")
    found = evaluate(ops.fused_focal_loss, other, targets, positive, background)
    want = evaluate(ops.fused_focal_loss, logits, targets, positive, background)
    for one, same in zip(found, want, strict=True):
        assert torch.equal(one, same)
    assert not found[2][~positive].any()
    assert not found[3][~background].any()


def test_nan_stays_in_its_row() -> None:
    logits, targets, positive, background = inputs("contiguous", torch.float32, 20)
    row = int(positive.nonzero()[0])
    logits[row, 1] = float("nan")
    act, _, grad_act, grad_bg = evaluate(ops.fused_focal_loss, logits, targets, positive, background)
    assert act.isnan()
    for grad in (grad_act, grad_bg):
        assert grad[torch.arange(20) != row].isfinite().all()
    assert grad_act[row].isnan().any()


def test_repeats_for_any_number_of_threads() -> None:
    threads = torch.get_num_threads()
    tensors = inputs("contiguous", torch.float32, 20000)
    results = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(evaluate(ops.fused_focal_loss, *tensors))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck() -> None:
    logits, *rest = inputs("contiguous", torch.float32, 6)
    operators = torch.ops.potloc_fast
    torch.library.opcheck(operators.fused_focal_loss.default, (logits.clone().requires_grad_(), *rest, 2.0))
    counts = operators.fused_focal_loss(logits, *rest, 2.0)[2]
    assert counts.tolist() == [rest[1].sum(), rest[2].sum()]
    grad = torch.ones(())
    torch.library.opcheck(operators._fused_focal_loss_backward.default, (grad, grad, counts, logits, *rest, 2.0))


def test_compiles_without_a_graph_break() -> None:
    tensors = inputs("strided", torch.float32, 9)
    compiled = torch.compile(ops.fused_focal_loss, fullgraph=True, backend="aot_eager")
    found, want = (evaluate(f, *tensors) for f in (compiled, ops.fused_focal_loss))
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_double_backward_is_refused_in_words() -> None:
    logits, *rest = inputs("contiguous", torch.float32, 6)
    act, bg = ops.fused_focal_loss(logits.requires_grad_(), *rest)
    (grad,) = torch.autograd.grad(act * bg, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        grad.sum().backward()


def test_autocast_computes_in_float32() -> None:
    logits, targets, *rows = inputs("contiguous", torch.bfloat16, 9)
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.fused_focal_loss(logits.requires_grad_(), targets, *rows)
    for one, other in zip(found, ops.fused_focal_loss(logits.float(), targets.float(), *rows), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
    sum(found).backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_no_gradient_passes_to_the_targets() -> None:
    logits, targets, *rows = inputs("contiguous", torch.float32, 9, soft=True)
    sum(ops.fused_focal_loss(logits.requires_grad_(), targets.requires_grad_(), *rows)).backward()
    assert targets.grad is None


X = torch.zeros(4, 3)
ROWS = torch.zeros(4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, r"logits must have shape \[N, C \+ 1\], got \[2, 4, 3\]", {"logits": torch.zeros(2, 4, 3)}),
        (ValueError, r"logits must have shape \[N, C \+ 1\], got \[4, 0\]", {"logits": X[:, :0]}),
        (ValueError, r"targets must have shape \[4, 2\], got \[4, 3\]", {"targets": X}),
        (TypeError, "logits must be float32, .*, got torch.int64", {"logits": X.long()}),
        (TypeError, "targets must be float32, .*, got torch.bool", {"targets": X[:, :2].bool()}),
        (ValueError, "targets must be on cpu as the first argument is, got meta", {"targets": X[:, :2].to("meta")}),
        (TypeError, "positive must be a Tensor of torch.bool, got torch.float32", {"positive": X[:, 0]}),
        (TypeError, "background must be a Tensor of torch.bool, got list", {"background": [True] * 4}),
        (ValueError, r"positive must have shape \[4\], got \[3\]", {"positive": ROWS[1:]}),
        (ValueError, r"background must have shape \[4\], got \[3\]", {"background": ROWS[1:]}),
        (ValueError, "background must be on cpu as the first argument is, got meta", {"background": ROWS.to("meta")}),
        (ValueError, "gamma must be 0 or more, got -0.5", {"gamma": -0.5}),
    ],
)
def test_refuses(error: type[Exception], message: str, change: dict[str, object]) -> None:
    with pytest.raises(error, match=f"fused_focal_loss: {message}"):
        ops.fused_focal_loss(**{"logits": X, "targets": X[:, :2], "positive": ROWS, "background": ROWS, **change})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", [*GAMMAS, 7.0])
def test_every_finite_logit_has_a_finite_gradient(dtype: torch.dtype, gamma: float) -> None:
    largest = torch.finfo(dtype).max
    values = torch.tensor([-largest, 0, largest], dtype=dtype)
    logits = torch.cartesian_prod(values, values, values)
    rows = torch.ones(len(logits), dtype=torch.bool)
    for target in (0.0, 0.5, 1.0):
        targets = torch.full((len(logits), 2), target, dtype=dtype)
        x = logits.clone().requires_grad_()
        act, bg = ops.fused_focal_loss(x, targets, rows, rows, gamma)
        (grad,) = torch.autograd.grad(act + bg, x)
        assert grad.isfinite().all()
        # A loss is infinite only if what it sums exceeds the largest number, and never NaN.
        assert not act.isnan()
        assert not bg.isnan()
        for row in logits / 8:
            assert all(
                loss.isfinite() for loss in ops.fused_focal_loss(row[None], targets[:1], rows[:1], rows[:1], gamma)
            )
