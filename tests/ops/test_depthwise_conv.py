from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potloc_fast import ops, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
Inputs = tuple[Tensor, Tensor, Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(dtype: torch.dtype, b: int, t: int, c: int, n: int) -> Inputs:
    """x, weights and a mask with holes that leaves out a whole recording, too."""
    mask = normal(b, t, seed=2) > -0.5
    mask[-1:] = False
    weight = normal(n, 3, c, seed=1).to(torch.float64 if dtype == torch.float64 else torch.float32)
    return normal(b, t, c).to(dtype), weight, mask


def evaluate(
    conv: Callable[..., list[Tensor]], x: Tensor, weight: Tensor, stride: int, mask: Tensor | None
) -> list[Tensor]:
    """The outputs, and the gradients of their sum, weighed."""
    leaves = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
    out = conv(*leaves, stride, mask)
    weights = [normal(*one.shape, seed=3 + n).to(one.dtype) for n, one in enumerate(out)]
    return [*(one.detach() for one in out), *torch.autograd.grad(out, leaves, weights)]


def assert_as_good_as_plain(x: Tensor, weight: Tensor, stride: int, mask: Tensor | None) -> None:
    """Float types equal the reference in float64; half types are off by at most twice what plain PyTorch is."""
    found = evaluate(ops.depthwise_conv, x, weight, stride, mask)
    want = evaluate(reference.depthwise_conv, x.double(), weight.double(), stride, mask)
    plain = evaluate(reference.depthwise_conv, x, weight, stride, mask)
    assert [one.dtype for one in found] == [x.dtype] * (len(found) - 1) + [weight.dtype]
    for one, exact, usual in zip(found, want, plain, strict=True):
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
@pytest.mark.parametrize("t", [0, 1, 2, 3, 9, 64, 400])
def test_equals_the_reference(dtype: torch.dtype, stride: int, t: int) -> None:
    for c in (1, 13, 64, 512):
        for n in (1, 3):
            x, weight, mask = inputs(dtype, 2, t, c, n)
            assert_as_good_as_plain(x, weight, stride, mask)
            assert_as_good_as_plain(x, weight, stride, None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_strided_tensors(dtype: torch.dtype) -> None:
    x, weight, mask = inputs(dtype, 4, 20, 6, 2)
    assert_as_good_as_plain(x.mT.contiguous().mT, weight.mT.contiguous().mT, 1, mask.t().contiguous().t())
    assert_as_good_as_plain(x[::2, 1::3, ::2], weight[..., ::2], 2, mask[::2, 1::3])


@settings(deadline=None, max_examples=40)
@given(
    b=st.integers(0, 3),
    t=st.integers(0, 12),
    c=st.integers(0, 9),
    n=st.integers(1, 3),
    stride=st.sampled_from([1, 2]),
    masked=st.booleans(),
)
def test_equals_the_reference_anywhere(b: int, t: int, c: int, n: int, stride: int, masked: bool) -> None:
    x, weight, mask = inputs(torch.float64, b, t, c, n)
    assert_as_good_as_plain(x, weight, stride, mask if masked else None)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("t", [1, 2, 9, 300])
def test_is_the_convolution_of_pytorch(t: int, stride: int) -> None:
    x, weight, _ = inputs(torch.float64, 2, t, 6, 2)
    for one, kernel in zip(ops.depthwise_conv(x, weight, stride), weight, strict=True):
        want = torch.nn.functional.conv1d(x.mT, kernel.t().unsqueeze(1), stride=stride, padding=1, groups=6).mT
        torch.testing.assert_close(one, want)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_padded_does_no_harm(dtype: torch.dtype, stride: int) -> None:
    x, weight, mask = inputs(dtype, 2, 31, 7, 3)
    spoilt = x.clone()
    spoilt[~mask] = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=dtype).repeat(3)[:7]
    want = evaluate(ops.depthwise_conv, x.masked_fill(~mask.unsqueeze(-1), 0), weight, stride, mask)
    found = evaluate(ops.depthwise_conv, spoilt, weight, stride, mask)
    assert all(torch.equal(one, other) for one, other in zip(found, want, strict=True))
    assert not found[-2][~mask].any()


def test_nan_spreads_to_its_neighbours_alone() -> None:
    x, weight, _ = inputs(torch.float32, 1, 9, 2, 1)
    x[0, 4, 1] = float("nan")
    (out,) = ops.depthwise_conv(x, weight)
    assert out.isnan().nonzero().tolist() == [[0, 3, 1], [0, 4, 1], [0, 5, 1]]


@pytest.mark.parametrize("stride", [1, 2])
def test_gradcheck(stride: int) -> None:
    x, weight, mask = inputs(torch.float64, 2, 5, 3, 3)
    leaves = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, w: tuple(ops.depthwise_conv(x, w, stride, mask)), leaves)


def test_outputs_that_nobody_used_have_no_gradient() -> None:
    x, weight, mask = inputs(torch.float64, 2, 9, 4, 3)
    leaves = (x.requires_grad_(), weight.requires_grad_())
    for conv in (ops.depthwise_conv, reference.depthwise_conv):
        grads = torch.autograd.grad(conv(*leaves, 1, mask)[1].square().sum(), leaves)
        if conv is ops.depthwise_conv:
            found = grads
    torch.testing.assert_close(found, grads)
    assert not found[1][::2].any()


@pytest.mark.parametrize("stride", [1, 2])
def test_repeats_for_any_number_of_threads(stride: int) -> None:
    threads = torch.get_num_threads()
    arguments = inputs(torch.float32, 3, 1000, 40, 3)
    results = []
    try:
        for count in (1, 2, 2, 5):
            torch.set_num_threads(count)
            results.append(evaluate(ops.depthwise_conv, *arguments[:2], stride, arguments[2]))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("stride", [1, 2])
def test_opcheck(stride: int) -> None:
    x, weight, mask = inputs(torch.float32, 2, 9, 4, 3)
    operators = torch.ops.potloc_fast
    grads = [torch.ones_like(out) for out in ops.depthwise_conv(x, weight, stride)]
    for each in (mask, None):
        leaves = (x.clone().requires_grad_(), weight.clone().requires_grad_())
        torch.library.opcheck(operators.depthwise_conv.default, (*leaves, stride, each))
        torch.library.opcheck(operators._depthwise_conv_backward.default, (grads, x, weight, stride, each))


def test_compiles_without_a_graph_break() -> None:
    x, weight, mask = inputs(torch.float32, 2, 9, 4, 3)
    compiled = torch.compile(ops.depthwise_conv, fullgraph=True, backend="aot_eager")
    found, want = (evaluate(f, x, weight, 2, mask) for f in (compiled, ops.depthwise_conv))
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_double_backward_is_refused_in_words() -> None:
    x, weight, _ = inputs(torch.float32, 2, 9, 4, 3)
    loss = ops.depthwise_conv(x.requires_grad_(), weight)[0].square().sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        grad.sum().backward()


def test_autocast_casts_x_alone() -> None:
    x, weight, mask = inputs(torch.float32, 2, 9, 4, 3)
    leaves = (x.requires_grad_(), weight.requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.depthwise_conv(*leaves, 1, mask)
    want = ops.depthwise_conv(x.bfloat16(), weight, 1, mask)
    assert all(torch.equal(one, other) for one, other in zip(out, want, strict=True))
    assert [grad.dtype for grad in torch.autograd.grad(sum(out).sum(), leaves)] == [torch.float32] * 2


X, WEIGHT = torch.zeros(2, 5, 4), torch.zeros(3, 3, 4)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, r"x must have shape \[B, T, C\], got \[5, 4\]", {"x": X[0]}),
        (ValueError, r"weight must have shape \[N, 3, 4\], got \[3, 2, 4\]", {"weight": WEIGHT[:, :2]}),
        (ValueError, r"weight must have shape \[N, 3, 4\], got \[3, 3, 3\]", {"weight": WEIGHT[..., :3]}),
        (ValueError, "weight must hold 1 to 3 filters, got 0", {"weight": WEIGHT[:0]}),
        (ValueError, "weight must hold 1 to 3 filters, got 4", {"weight": torch.zeros(4, 3, 4)}),
        (ValueError, "weight must be on cpu as the first argument is, got meta", {"weight": WEIGHT.to("meta")}),
        (ValueError, "stride must be 1 or 2, got 3", {"stride": 3}),
        (ValueError, r"mask must have shape \[2, 5\], got \[2, 4\]", {"mask": torch.ones(2, 4).bool()}),
        (ValueError, "mask must be on cpu as the first argument is, got meta", {"mask": X[..., 0].bool().to("meta")}),
        (TypeError, "mask must be a Tensor of torch.bool, got torch.float32", {"mask": X[..., 0]}),
        (TypeError, "x must be float32, .*, got torch.int64", {"x": X.long()}),
        (TypeError, "weight must be float32, .*, got torch.int64", {"weight": WEIGHT.long()}),
    ],
)
def test_refuses(error: type[Exception], message: str, change: dict[str, object]) -> None:
    with pytest.raises(error, match=f"depthwise_conv: {message}"):
        ops.depthwise_conv(**{"x": X, "weight": WEIGHT, **change})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("t", [1, 2, 3, 6, 7])
def test_an_infinity_reaches_what_reads_it_and_nothing_else(dtype: torch.dtype, stride: int, t: int) -> None:
    for s in range(t):
        x, weight = normal(1, t, 2).to(dtype), normal(2, 3, 2, seed=1).float()
        weight = weight.to(torch.float64) if dtype == torch.float64 else weight
        x[0, s, 0] = torch.inf
        weight[1, s % 3, 1] = torch.inf
        for mask in (None, torch.arange(t)[None] != t // 2):
            for one, other in zip(
                evaluate(ops.depthwise_conv, x, weight, stride, mask),
                evaluate(reference.depthwise_conv, x, weight, stride, mask),
                strict=True,
            ):
                assert torch.equal(one.isfinite(), other.isfinite())
