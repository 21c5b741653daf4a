from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from potloc_fast import reference

pytestmark = pytest.mark.cuda_host

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALF = [torch.bfloat16, torch.float16]
STEPS = [33, 35]  # the widest window that tensor cores take in one step, and the next
NARROW_AND_WIDE = [*((dtype, 5) for dtype in DTYPES), *((dtype, STEPS[1]) for dtype in HALF)]

Run = Callable[..., list[Tensor]]


def inputs(layout: str, dtype: torch.dtype, b: int, h: int, t: int, d: int) -> tuple[Tensor, ...]:
    """q, k, v and the gradient of the output, all `[B, H, T, D]`."""
    generator = torch.Generator().manual_seed(0)
    if layout == "packed":
        packed = torch.randn(b, t, 4, h, d, generator=generator, dtype=torch.float64).to(dtype)
        return packed.permute(2, 0, 3, 1, 4).unbind()
    return torch.randn(4, b, h, t, d, generator=generator, dtype=torch.float64).to(dtype).unbind()


def key_mask(b: int, t: int) -> Tensor:
    """Some keys left out, and all of the last recording's."""
    mask = torch.rand(b, t, generator=torch.Generator().manual_seed(1)) > 0.3
    mask[-1] = False
    return mask


@pytest.fixture
def run(host: Any, guarded: Callable[[Tensor], Tensor]) -> Run:
    """The output, dq, dk, dv and the log-sum-exp, from the CUDA kernels."""

    def run(tensors: tuple[Tensor, ...], window: int, mask: Tensor | None = None) -> list[Tensor]:
        q, k, v, grad = (guarded(tensor) for tensor in tensors)
        rest = (window, None if mask is None else guarded(mask), 1 / math.sqrt(q.shape[-1]))
        out, lse = host.local_attention(q, k, v, *rest)
        return [out, *host._local_attention_backward(grad, q, k, v, guarded(lse), *rest), lse]

    return run


def exact(tensors: tuple[Tensor, ...], window: int, mask: Tensor | None = None) -> list[Tensor]:
    """The same from the reference, in the dtype of the tensors."""
    *leaves, grad = (tensor.detach() for tensor in tensors)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = reference.local_attention(*leaves, window, mask)
    q, k, _ = leaves
    position = torch.arange(q.shape[2])
    seen = (position[:, None] - position).abs() <= window // 2
    seen = seen if mask is None else seen & mask[:, None, None, :]
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, -math.inf)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad), scores.logsumexp(-1).detach()]


def assert_as_good_as_plain(run: Run, tensors: tuple[Tensor, ...], window: int, mask: Tensor | None = None) -> None:
    """Float types equal the reference in float64; half types are off by at most twice what plain PyTorch is."""
    dtype = tensors[0].dtype
    found, want = run(tensors, window, mask), exact(tuple(tensor.double() for tensor in tensors), window, mask)
    plain = exact(tensors, window, mask)
    for name, one, right, usual in zip(["out", "dq", "dk", "dv", "lse"], found, want, plain, strict=True):
        assert one.shape == right.shape
        if one.numel() == 0:
            continue
        assert not one.isnan().any(), name
        assert torch.equal(one.isinf(), right.isinf()), name
        off, usually = ((x.double() - right).nan_to_num(0, 0, 0).abs().max() for x in (one, usual))
        if dtype in HALF and name != "lse":
            allowed = 2 * usually + torch.finfo(dtype).eps / 64
        else:
            allowed = torch.tensor(1e-12 if dtype == torch.float64 else 5e-6)
        assert one.dtype == (torch.float32 if dtype in HALF and name == "lse" else dtype)
        assert off <= allowed, f"{name}: off by {off}, {allowed} is allowed"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "packed"])
@pytest.mark.parametrize("window", [1, 19, *STEPS, 1001])
def test_equals_the_reference(dtype: torch.dtype, layout: str, window: int, host: Any, run: Run) -> None:
    # Rows are computed one by one in float32 and float64: fewer lengths are awkward.
    for seed, t in enumerate([0, 1, 7, 63, 65, 150] if dtype in HALF else [0, 1, 40]):
        host.seed(seed)
        tensors = inputs(layout, dtype, 2, 1, t, 8)
        assert_as_good_as_plain(run, tensors, window, key_mask(2, t) if seed % 2 else None)


@pytest.mark.parametrize("window", [19, STEPS[1]])
@pytest.mark.parametrize(
    ("dtype", "d"),
    [
        *((torch.bfloat16, d) for d in (1, 24, 72, 128, 256)),
        *((torch.float16, d) for d in (5, 64, 136)),
        *((torch.float32, d) for d in (1, 65, 256)),
        *((torch.float64, d) for d in (17, 100, 256)),
    ],
)
def test_takes_any_head_width(dtype: torch.dtype, d: int, window: int, run: Run) -> None:
    assert_as_good_as_plain(run, inputs("packed", dtype, 1, 1, 41 if dtype in HALF else 9, d), window)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("stride", [9, 12])
def test_takes_rows_that_are_not_aligned(dtype: torch.dtype, stride: int, run: Run) -> None:
    tensors = inputs("contiguous", dtype, 1, 2, 20, stride)
    assert_as_good_as_plain(run, tuple(tensor[..., :8] for tensor in tensors), 5)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("window", STEPS)
def test_tensor_cores_compute_every_tile(dtype: torch.dtype, window: int, run: Run) -> None:
    """What shared memory holds before it is written is NaN, and must not hide behind rows computed one by one."""
    tensors = inputs("contiguous", dtype, 1, 1, 96, 8)
    unaligned = tuple(torch.nn.functional.pad(tensor, (0, 1))[..., :8] for tensor in tensors)
    for name, tiles, rows in zip(["out", "dq", "dk", "dv"], run(tensors, window), run(unaligned, window), strict=False):
        # Rounded weights show in some element of each 16 rows.
        assert (tiles != rows).reshape(6, 16 * 8).any(dim=1).all(), name


def test_takes_an_expanded_gradient(host: Any) -> None:
    q, k, v, grad = inputs("contiguous", torch.bfloat16, 1, 2, 20, 16)
    grad = grad[:, :, :1, :1].expand(1, 2, 20, 16)
    _, lse = host.local_attention(q, k, v, 5, None, 0.25)
    found, want = (
        host._local_attention_backward(one, q, k, v, lse, 5, None, 0.25) for one in (grad, grad.contiguous())
    )
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize(("dtype", "window"), NARROW_AND_WIDE)
@pytest.mark.parametrize("value", [1.0, math.inf])  # the second sends rows of tiles to be computed one by one
def test_results_are_laid_out_as_what_they_belong_to(dtype: torch.dtype, window: int, value: float, run: Run) -> None:
    tensors = [tensor.clone() for tensor in inputs("contiguous", dtype, 2, 2, 20, 8)]
    for tensor in tensors:
        tensor[1, 0, 9, 3] = value
    want = run(tuple(tensors), window)
    time_major = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in tensors]
    packed = torch.stack([tensor.transpose(1, 2) for tensor in tensors], dim=2).permute(2, 0, 3, 1, 4).unbind()
    for q, k, v, grad in (
        (time_major[0], tensors[1], packed[2], packed[3]),
        (tensors[0], packed[1], time_major[2], time_major[3]),
    ):
        out, dq, dk, dv, lse = run((q, k, v, grad), window)
        for result, like in ((out, q), (dq, q), (dk, k), (dv, v)):
            assert (result if like.is_contiguous() else result.transpose(1, 2)).is_contiguous()
        for one, other in zip((out, dq, dk, dv, lse), want, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_without_a_key_get_zeros(dtype: torch.dtype, run: Run) -> None:
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0] = False
    mask[1, :6] = False  # with window 5, queries 0 to 3 see nothing
    out, dq, dk, dv, lse = run(inputs("contiguous", dtype, 2, 2, 12, 8), 5, mask)
    for alone in (out, dq):
        assert not alone[0].any()
        assert not alone[1, :, :4].any()
        assert alone[1, :, 5:].any(dim=-1).all()
    for left_out in (dk, dv):
        assert not left_out.transpose(1, 2)[~mask].any()
    assert (lse[0] == -math.inf).all()
    assert (lse[1, :, :4] == -math.inf).all()


@pytest.mark.parametrize(("dtype", "window"), NARROW_AND_WIDE)
def test_large_scores_stay_finite(dtype: torch.dtype, window: int, run: Run) -> None:
    q, k, v, grad = inputs("contiguous", dtype, 1, 1, 60, 8)
    for result in run((100 * q, 100 * k, v, grad), window):
        assert result.isfinite().all()


@pytest.mark.parametrize(("dtype", "window"), NARROW_AND_WIDE)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["q", "k", "v", "grad"])
def test_what_is_not_finite_stays_within_its_window(
    dtype: torch.dtype, window: int, value: float, name: str, run: Run
) -> None:
    clean = inputs("contiguous", dtype, 1, 1, 90, 8)
    dirty = [tensor.clone() for tensor in clean]
    dirty[["q", "k", "v", "grad"].index(name)][0, 0, 40, 1] = value
    distance = (torch.arange(90) - 40).abs()
    everywhere, elsewhere = distance >= 0, distance > 0
    beyond = distance > window // 2
    far = distance > window // 2 * 2  # a gradient depends on outputs up to a radius away, and these on keys
    # Where, in out, dq, dk and dv, nothing of it may come.
    clear = {
        "q": [elsewhere, elsewhere, beyond, beyond],
        "k": [beyond, beyond, far, far],
        "v": [beyond, beyond, far, everywhere],
        "grad": [everywhere, elsewhere, beyond, beyond],
    }[name]
    tolerance = 8 * torch.finfo(dtype).eps
    for one, other, where in zip(run(tuple(dirty), window)[:4], run(clean, window), clear, strict=False):
        torch.testing.assert_close(one[0, 0, where], other[0, 0, where], rtol=tolerance, atol=tolerance)
        assert where.all() or not one.isfinite().all()


@pytest.mark.parametrize(("dtype", "window"), NARROW_AND_WIDE)
def test_what_is_masked_is_not_seen(dtype: torch.dtype, window: int, run: Run) -> None:
    q, k, v, grad = (tensor.clone() for tensor in inputs("contiguous", dtype, 1, 1, 30, 8))
    mask = torch.ones(1, 30, dtype=torch.bool)
    mask[0, 5] = False
    want = run((q, k, v, grad), window, mask)
    k[0, 0, 5], v[0, 0, 5] = math.nan, math.nan
    tolerance = 8 * torch.finfo(dtype).eps
    for one, other in zip(run((q, k, v, grad), window, mask), want, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "window"), NARROW_AND_WIDE)
def test_repeats_bit_for_bit_in_every_order(dtype: torch.dtype, window: int, host: Any, run: Run) -> None:
    results = []
    for seed in range(3):
        host.seed(seed)
        results.append(run(inputs("packed", dtype, 2, 1, 70, 16), window, key_mask(2, 70)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
