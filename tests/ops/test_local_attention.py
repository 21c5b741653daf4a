from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potloc_fast import ops, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
WINDOWS = [1, 3, 19, 1001]
ORDERS = list(permutations(range(3)))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(layout: str, dtype: torch.dtype, b: int, h: int, t: int, d: int) -> tuple[Tensor, ...]:
    """q, k, v and the gradient of the output, all `[B, H, T, D]`."""
    if layout == "packed":
        packed = normal(b, t, 4, h, d, dtype=dtype)
        return packed.permute(2, 0, 3, 1, 4).unbind()
    if layout == "transposed":
        return normal(4, b, h, d, t, dtype=dtype).transpose(-1, -2).unbind()
    return normal(4, b, h, t, d, dtype=dtype).unbind()


def in_order(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """The same values with B, H and T in this order in memory, and D innermost."""
    inverse = [order.index(dim) for dim in range(3)]
    return tensor.permute(*order, 3).contiguous().permute(*inverse, 3)


def key_mask(b: int, t: int) -> Tensor:
    """Some keys left out, and all of the last recording's."""
    mask = normal(b, t, seed=1) > -0.5
    mask[-1] = False
    return mask


def evaluate(attention: Callable[..., Tensor], tensors: tuple[Tensor, ...], *args: object) -> list[Tensor]:
    """The output and the gradients of q, k and v."""
    *leaves, grad = (tensor.detach() for tensor in tensors)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = attention(*leaves, *args)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def largest(x: Tensor) -> Tensor:
    return x.abs().max()


def assert_as_good_as_plain(tensors: tuple[Tensor, ...], *args: object) -> None:
    """Float types equal the reference in float64; half types are off by at most twice what plain PyTorch is."""
    dtype = tensors[0].dtype
    found = evaluate(ops.local_attention, tensors, *args)
    want = evaluate(reference.local_attention, tuple(tensor.double() for tensor in tensors), *args)
    plain = evaluate(reference.local_attention, tensors, *args)
    for name, one, exact, usual in zip(["out", "q", "k", "v"], found, want, plain, strict=True):
        assert one.dtype == dtype
        assert one.shape == exact.shape
        if one.numel() == 0:
            continue
        if dtype.itemsize == 2:
            allowed = 2 * largest(usual.double() - exact) + torch.finfo(dtype).eps / 64
        else:
            allowed = torch.tensor(1e-12 if dtype == torch.float64 else 5e-6)
        assert largest(one.double() - exact) <= allowed, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "packed", "transposed"])
@pytest.mark.parametrize("t", [0, 1, 7, 63, 65, 300])
def test_equals_the_reference(dtype: torch.dtype, layout: str, t: int) -> None:
    tensors = inputs(layout, dtype, 2, 2, t, 5)
    for window in WINDOWS:
        assert_as_good_as_plain(tensors, window)
        assert_as_good_as_plain(tensors, window, key_mask(2, t))


@pytest.mark.parametrize("dtype", DTYPES)
def test_takes_a_scale(dtype: torch.dtype) -> None:
    tensors = inputs("contiguous", dtype, 2, 2, 20, 4)
    for scale in (0.0, 0.25, 1.5):
        assert_as_good_as_plain(tensors, 5, None, scale)


def test_equals_the_reference_on_a_long_sequence() -> None:
    assert_as_good_as_plain(inputs("packed", torch.float32, 1, 1, 1025, 16), 19)


@pytest.mark.parametrize("d", [1, 2, 17, 64, 256])
def test_takes_any_head_width(d: int) -> None:
    assert_as_good_as_plain(inputs("contiguous", torch.float64, 1, 2, 9, d), 5)


@settings(deadline=None, max_examples=40)
@given(
    b=st.integers(0, 3),
    h=st.integers(0, 3),
    t=st.integers(0, 80),
    d=st.integers(1, 9),
    radius=st.integers(0, 90),
    layout=st.sampled_from(["contiguous", "packed", "transposed"]),
    masked=st.booleans(),
)
def test_equals_the_reference_anywhere(b: int, h: int, t: int, d: int, radius: int, layout: str, masked: bool) -> None:
    mask = normal(b, t, seed=2) > 0 if masked else None
    assert_as_good_as_plain(inputs(layout, torch.float64, b, h, t, d), 2 * radius + 1, mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("t", [3, 4, 5, 127, 128, 129, 255, 257, 261, 517])
def test_takes_any_length_around_the_tiles(dtype: torch.dtype, t: int) -> None:
    """Tiles hold 4 positions, chunks 64, blocks 128 and 256; 16 columns are whole vectors and are not copied."""
    for d in (16, 19):
        tensors = inputs("packed", dtype, 1, 2, t, d)
        for window in (1, 5, 7, 9, 19):
            assert_as_good_as_plain(tensors, window)


@pytest.mark.parametrize("d", [15, 16, 31, 33, 63, 64, 65, 80, 127, 128])
def test_takes_widths_around_the_vectors(d: int) -> None:
    for dtype in DTYPES:
        assert_as_good_as_plain(inputs("contiguous", dtype, 1, 1, 21, d), 7)


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 4, 5, 31, 63, 64, 65, 127, 128, 129])
def test_takes_radii_around_the_tiles(radius: int) -> None:
    tensors = inputs("contiguous", torch.float64, 1, 1, 400, 3)
    assert_as_good_as_plain(tensors, 2 * radius + 1)
    assert_as_good_as_plain(tensors, 2 * radius + 1, normal(1, 400, seed=3) > 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_takes_masks_that_empty_parts_of_a_tile(dtype: torch.dtype) -> None:
    tensors = inputs("contiguous", dtype, 4, 1, 140, 16)
    mask = torch.zeros(4, 140, dtype=torch.bool)
    mask[0, 64] = True
    mask[1, ::4] = True
    mask[2, 126:130] = True
    mask[3, 5:7] = True
    for window in (1, 3, 19):
        assert_as_good_as_plain(tensors, window, mask)


@pytest.mark.parametrize("name", ["q", "k", "v", "grad"])
@pytest.mark.parametrize("window", [1, 3, 5, 19])
def test_nan_and_infinity_do_not_leave_the_band(name: str, window: int) -> None:
    """A tile is computed at once, but a row outside a position's band has no part in its sums."""
    radius = window // 2
    for value in (float("nan"), float("inf")):
        for at in (61, 62, 63, 64):
            tensors = dict(
                zip(["q", "k", "v", "grad"], inputs("contiguous", torch.float32, 1, 1, 140, 16), strict=True)
            )
            tensors[name] = tensors[name].clone()
            tensors[name][0, 0, at] = value
            out, *grads = evaluate(ops.local_attention, tuple(tensors.values()), window)
            distance = (torch.arange(140) - at).abs()
            reach = {"q": 0, "k": radius, "v": radius, "grad": -1}[name]
            assert out[0, 0][distance > reach].isfinite().all()
            # Queries that the value reaches spoil the gradients of their own keys.
            for gradient in grads:
                assert gradient[0, 0][distance > max(reach, 0) + radius].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [16, 19])
@pytest.mark.parametrize("shift", range(6))
def test_results_are_laid_out_as_what_they_belong_to(dtype: torch.dtype, d: int, shift: int) -> None:
    tensors, mask = inputs("contiguous", dtype, 2, 3, 150, d), key_mask(2, 150)
    q, k, v, grad = (in_order(tensor, ORDERS[(shift + i) % 6]) for i, tensor in enumerate(tensors))
    found, want = (evaluate(ops.local_attention, one, 19, mask) for one in ((q, k, v, grad), tensors))
    for name, one, other, like in zip(["out", "q", "k", "v"], found, want, (q, q, k, v), strict=True):
        assert one.stride() == like.stride(), name
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("q", "time_major"),
    [
        (normal(2, 20, 3, 3, 8)[:, :, 0].transpose(1, 2), True),  # of a packed projection
        (normal(2, 20, 3, 9)[..., :8].transpose(1, 2), True),
        (normal(2, 3, 20, 9)[..., :8], False),
        (normal(2, 1, 20, 8).expand(2, 3, 20, 8), True),
        (normal(200).as_strided((2, 3, 20, 8), (60, 20, 1, 1)), False),  # rows that overlap
    ],
)
def test_gaps_and_repetitions_are_not_kept(q: Tensor, time_major: bool) -> None:
    k, v, grad = (normal(2, 3, 20, 8, seed=seed) for seed in (1, 2, 3))
    found, want = (evaluate(ops.local_attention, (one, k, v, grad), 5) for one in (q, q.contiguous()))
    for one in found[:2]:
        assert (one.transpose(1, 2) if time_major else one).is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_heads_of_a_projection_are_never_copied() -> None:
    projections = [normal(2, 20, 3 * 8, seed=seed).requires_grad_() for seed in range(3)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        q, k, v = (x.unflatten(-1, (3, 8)).transpose(1, 2) for x in projections)
        out = ops.local_attention(q, k, v, 5).transpose(1, 2).flatten(2)
        grads = torch.autograd.grad(out, projections, out.detach())
    assert all(grad.is_contiguous() for grad in grads)
    called = {event.name for event in profile.events()}
    assert "potloc_fast::_local_attention_backward" in called
    assert not called & {"aten::copy_", "aten::clone"}


@pytest.mark.parametrize("window", [1, 3, 19])
def test_gradcheck(window: int) -> None:
    q, k, v, _ = (tensor.clone().requires_grad_() for tensor in inputs("contiguous", torch.float64, 2, 2, 6, 3))
    for mask in (None, key_mask(2, 6)):
        assert torch.autograd.gradcheck(lambda q, k, v, m=mask: ops.local_attention(q, k, v, window, m), (q, k, v))


@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_without_a_key_get_zeros(dtype: torch.dtype) -> None:
    tensors = inputs("contiguous", dtype, 2, 2, 12, 4)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0] = False
    mask[1, :6] = False  # with window 5, queries 0 to 3 see nothing
    out, grad_q, grad_k, grad_v = evaluate(ops.local_attention, tensors, 5, mask)
    for alone in (out, grad_q):
        assert not alone[0].any()
        assert not alone[1, :, :4].any()
        assert alone[1, :, 5:].any(dim=-1).all()
    for left_out in (grad_k, grad_v):
        assert not left_out.transpose(1, 2)[~mask].any()
    assert grad_v[1, :, 6:].any(dim=-1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_stay_finite(dtype: torch.dtype) -> None:
    q, k, v, grad = inputs("contiguous", dtype, 1, 1, 9, 4)
    for result in evaluate(ops.local_attention, (100 * q, 100 * k, v, grad), 5):
        assert result.isfinite().all()


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_nan_stays_within_its_window(name: str) -> None:
    q, k, v, grad = (tensor.clone() for tensor in inputs("contiguous", torch.float32, 1, 1, 40, 4))
    {"q": q, "k": k, "v": v}[name][0, 0, 20, 1] = float("nan")
    out, *grads = evaluate(ops.local_attention, (q, k, v, grad), 5)
    position = torch.arange(40)
    hit = (position == 20) if name == "q" else (position - 20).abs() <= 2
    assert torch.equal(out[0, 0].isnan().any(dim=-1), hit)
    # A gradient at i depends on queries up to 2 away, whose outputs depend on keys up to 2 away from them.
    for gradient in grads:
        assert gradient[0, 0][(position - 20).abs() > 4].isfinite().all()
    assert grads[0][0, 0][hit].isnan().any()


def test_nan_behind_the_mask_is_never_read() -> None:
    q, k, v, grad = (tensor.clone() for tensor in inputs("contiguous", torch.float32, 1, 1, 12, 4))
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[0, 5] = False
    k[0, 0, 5], v[0, 0, 5] = float("nan"), float("nan")
    for result in evaluate(ops.local_attention, (q, k, v, grad), 5, mask):
        assert result.isfinite().all()


def test_repeats_for_any_number_of_threads() -> None:
    for dtype, t, mask in (
        (torch.float32, 200, key_mask(2, 200)),
        (torch.float32, 1100, None),
        (torch.bfloat16, 700, None),
    ):
        tensors = inputs("packed", dtype, 2, 3, t, 16)
        results = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(evaluate(ops.local_attention, tensors, 19, mask))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck() -> None:
    packed = inputs("packed", torch.float32, 2, 2, 9, 4)
    mixed = tuple(in_order(tensor, order) for tensor, order in zip(packed, ORDERS, strict=False))
    operators = torch.ops.potloc_fast
    for (q, k, v, grad), mask in ((packed, None), (mixed, key_mask(2, 9))):
        leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
        torch.library.opcheck(operators.local_attention.default, (*leaves, 5, mask, 0.5))
        _, lse = operators.local_attention(q, k, v, 5, mask, 0.5)
        torch.library.opcheck(operators._local_attention_backward.default, (grad, q, k, v, lse, 5, mask, 0.5))


def test_compiles_without_a_graph_break() -> None:
    tensors, mask = inputs("packed", torch.float32, 2, 2, 20, 4), key_mask(2, 20)
    compiled = torch.compile(ops.local_attention, fullgraph=True, backend="aot_eager")
    found, want = (evaluate(f, tensors, 5, mask) for f in (compiled, ops.local_attention))
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_double_backward_is_refused_in_words() -> None:
    q, k, v, _ = (tensor.clone().requires_grad_() for tensor in inputs("contiguous", torch.float32, 1, 1, 5, 2))
    (grad,) = torch.autograd.grad(ops.local_attention(q, k, v, 3).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        grad.sum().backward()


def test_autocast_takes_the_autocast_dtype() -> None:
    q, k, v, _ = (tensor.clone().requires_grad_() for tensor in inputs("contiguous", torch.float32, 1, 2, 9, 4))
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.local_attention(q, k.detach().bfloat16(), v, 3)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, ops.local_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), 3))
    out.float().sum().backward()
    assert q.grad is not None
    assert q.grad.dtype == torch.float32


Q = torch.zeros(2, 3, 8, 4)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, r"q must have shape \[B, H, T, D\], got \[3, 8, 4\]", {"q": Q[0]}),
        (ValueError, r"k must have shape \[2, 3, 8, 4\], got \[2, 3, 7, 4\]", {"k": Q[:, :, 1:]}),
        (ValueError, r"v must have shape \[2, 3, 8, 4\], got \[2, 3, 8, 2\]", {"v": Q[..., :2]}),
        (TypeError, "v must have the dtype of q, torch.float32, got torch.float64", {"v": Q.double()}),
        (TypeError, "q must be float32, float64, bfloat16 or float16, got torch.int64", {"q": Q.long()}),
        (ValueError, "k must be on cpu as the first argument is, got meta", {"k": Q.to("meta")}),
        (ValueError, "window must be odd and positive, got 4", {"window": 4}),
        (ValueError, "window must be odd and positive, got -1", {"window": -1}),
        (ValueError, r"key_mask must have shape \[2, 8\], got \[2, 7\]", {"key_mask": torch.ones(2, 7).bool()}),
        (TypeError, "key_mask must be a Tensor of torch.bool, got torch.float32", {"key_mask": torch.ones(2, 8)}),
        (
            ValueError,
            "head width D must be from 1 to 256, got 257",
            dict.fromkeys(("q", "k", "v"), torch.zeros(1, 1, 2, 257)),
        ),
        (
            ValueError,
            "head width D must be from 1 to 256, got 0",
            dict.fromkeys(("q", "k", "v"), torch.zeros(1, 1, 2, 0)),
        ),
    ],
)
def test_refuses(error: type[Exception], message: str, change: dict[str, object]) -> None:
    with pytest.raises(error, match=f"local_attention: .*{message}"):
        ops.local_attention(**{"q": Q, "k": Q, "v": Q, "window": 3, **change})
