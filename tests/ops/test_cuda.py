"""Every operator on a GPU against the same on the CPU; and what is said where there are no CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from potloc_fast import ops
from potloc_fast.config.schema import LossConfig
from potloc_fast.data.dataset import Batch
from potloc_fast.losses import sample_labels, total_loss
from potloc_fast.models import POTLoc
from potloc_fast.ops._library import _C

DTYPES = [pytest.param(getattr(torch, name), id=name) for name in ("float32", "float64", "bfloat16", "float16")]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def on(device: torch.device, values: Sequence[Any]) -> list[Any]:
    return [value.to(device) if isinstance(value, Tensor) else value for value in values]


def with_gradients(call: Callable[..., Any], leaves: Sequence[Tensor], *rest: Any) -> list[Tensor]:
    """What a call returns, and the gradients of its leaves for an uneven gradient of its outputs."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    out = call(*leaves, *rest)
    outputs = [out] if isinstance(out, Tensor) else list(out)
    weights = [torch.linspace(0.5, 2, o.numel(), device=o.device).view(o.shape).to(o.dtype) for o in outputs]
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, weights)]


def assert_same_answers(call: Callable[[torch.device], list[Tensor]], cuda: torch.device) -> None:
    """The GPU says what the CPU says, up to rounding, and says it again bit for bit."""
    found, again, want = call(cuda), call(cuda), call(torch.device("cpu"))
    for one, other, third in zip(found, again, want, strict=True):
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))
        eps = torch.finfo(third.dtype).eps
        tolerance = (4 if third.dtype.itemsize == 2 else 200) * eps
        scale = float(third.abs().max()) if third.numel() else 0.0
        torch.testing.assert_close(one.cpu(), third, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((1, 1, 1, 1), 1),
        ((2, 3, 67, 13), 19),
        ((3, 4, 300, 128), 19),
        ((1, 2, 129, 64), 7),
        ((1, 2, 200, 256), 33),
        ((1, 1, 50, 8), 1001),
        ((1, 1, 3000, 64), 2001),
        ((2, 2, 0, 16), 3),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_local_attention(
    dtype: torch.dtype, shape: tuple[int, ...], window: int, packed: bool, masked: bool, cuda: torch.device
) -> None:
    b, h, t, d = shape
    qkv = normal(b, t, 3, h, d, dtype=dtype).permute(2, 0, 3, 1, 4).unbind()
    mask = normal(b, t, seed=1) > -0.5
    mask[-1, : t // 2] = False

    def call(device: torch.device) -> list[Tensor]:
        tensors = [x.to(device) if packed else x.contiguous().to(device) for x in qkv]
        return with_gradients(ops.local_attention, tensors, window, mask.to(device) if masked else None)

    assert_same_answers(call, cuda)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 0, 8), (2, 67, 13), (3, 300, 512), (2, 2304, 64)])
@pytest.mark.parametrize("filters", [1, 3])
def test_depthwise_conv(
    dtype: torch.dtype, stride: int, shape: tuple[int, ...], filters: int, cuda: torch.device
) -> None:
    x, weight = normal(*shape, dtype=dtype), normal(filters, 3, shape[2], seed=1, dtype=dtype)
    mask = normal(*shape[:2], seed=2) > -0.5

    def call(device: torch.device) -> list[Tensor]:
        return with_gradients(ops.depthwise_conv, on(device, [x, weight]), stride, mask.to(device))

    assert_same_answers(call, cuda)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "classes"), [(0, 3), (1, 1), (1000, 20), (4099, 7), (100_000, 20), (50, 333)])
@pytest.mark.parametrize("gamma", [0.0, 2.0, 1.5])
def test_fused_focal_loss(dtype: torch.dtype, rows: int, classes: int, gamma: float, cuda: torch.device) -> None:
    logits = 5 * normal(rows, classes + 1, dtype=dtype)
    logits[::7] *= 100
    targets = (normal(rows, classes, seed=1) > 1).to(dtype)
    positive, background = normal(rows, seed=2) > 0.5, normal(rows, seed=3) > 0

    def call(device: torch.device) -> list[Tensor]:
        rest = on(device, [targets, positive, background, gamma])
        return with_gradients(ops.fused_focal_loss, [logits.to(device)], *rest)

    assert_same_answers(call, cuda)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 1023, 300_001])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_sigmoid_focal_loss(dtype: torch.dtype, size: int, reduction: str, cuda: torch.device) -> None:
    if size == 0 and reduction == "mean":
        size = 2
    logits, targets = 5 * normal(size, dtype=dtype), (normal(size, seed=1) > 0).to(dtype)

    def call(device: torch.device) -> list[Tensor]:
        def loss(x: Tensor) -> Tensor:
            return ops.sigmoid_focal_loss(x, targets.to(device), reduction=reduction)

        return with_gradients(loss, [logits.to(device)])

    assert_same_answers(call, cuda)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3])
def test_background_seeds(dtype: torch.dtype, share: float, cuda: torch.device) -> None:
    lengths = [2304, 1152, 576, 288, 144, 0, 1]
    background = normal(3, sum(lengths), dtype=dtype).sigmoid()
    action, mask = torch.rand(background.shape) < share, normal(*background.shape, seed=2) > -1
    for arguments in ([lengths, 0.8, None, True], [lengths, 0.999, mask, False]):
        want = ops.background_seeds(background, action, *arguments)
        found = ops.background_seeds(*on(cuda, [background, action, *arguments]))
        assert torch.equal(found.cpu(), want)


def curves(rows: int, length: int, dtype: torch.dtype) -> Tensor:
    """Smooth curves in (0, 1)."""
    noise = normal(rows, 1, length + 30)
    return torch.nn.functional.avg_pool1d(noise, 31, 1).squeeze(1).mul(8).sigmoid().to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("upsample", [1, 4])
def test_score_segments(dtype: torch.dtype, upsample: int, cuda: torch.device) -> None:
    x = curves(60, 700, dtype)
    lengths = torch.randint(0, 701, (60,), generator=torch.Generator().manual_seed(0))
    arguments = [x, torch.linspace(0.1, 0.9, 9), lengths, 2, upsample, 0.25, x.flip(0)]
    want = ops.score_segments(*arguments)
    found = ops.score_segments(*on(cuda, arguments))
    assert len(want[0]) > 100
    for one, other in zip(found, want, strict=True):
        assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["hard", "linear", "gaussian"])
@pytest.mark.parametrize(("size", "groups"), [(0, 1), (1, 1), (2000, 1), (20_000, 300), (5000, 5000)])
def test_batched_nms(dtype: torch.dtype, method: Any, size: int, groups: int, cuda: torch.device) -> None:
    generator = torch.Generator().manual_seed(size)
    start = torch.rand(size, generator=generator) * 1000
    segments = torch.stack((start, start + 30 * torch.rand(size, generator=generator)), dim=1).to(dtype)
    scores = (torch.randint(0, 300, (size,), generator=generator) / 300).to(dtype)  # with ties
    group = torch.randint(0, groups, (size,), generator=generator) - 5
    for options in ({}, {"max_per_group": 10, "voting": 0.7, "iou_threshold": 0.3}):
        want = ops.batched_nms(segments, scores, group, method=method, **options)
        found = ops.batched_nms(*on(cuda, [segments, scores, group]), method=method, **options)
        for one, other in zip(found, want, strict=True):
            if one.is_floating_point():
                eps = torch.finfo(dtype).eps
                torch.testing.assert_close(one.cpu(), other, rtol=4 * eps, atol=4 * eps)
            else:
                assert torch.equal(one.cpu(), other)


def test_a_step_can_be_captured_in_a_graph(cuda: torch.device) -> None:
    qkv = [normal(2, 4, 300, 64, seed=i, dtype=torch.bfloat16).to(cuda).requires_grad_() for i in range(3)]
    x, weight = (normal(*shape).to(cuda).requires_grad_() for shape in ((2, 300, 64), (3, 3, 64)))
    logits = normal(600, 21).to(cuda).requires_grad_()
    targets, action = (normal(600, 20, seed=1) > 1).float().to(cuda), (normal(1, 600, seed=2) > 1).to(cuda)

    def step() -> list[Tensor]:
        out = ops.local_attention(*qkv, 19)
        seeds = ops.background_seeds(logits[:, -1].sigmoid()[None], action, [400, 200], 0.6)
        losses = ops.fused_focal_loss(logits, targets, action[0], seeds[0])
        loss = sum(losses) + ops.sigmoid_focal_loss(logits[:, :20], targets, reduction="mean") + out.float().sum()
        loss = loss + sum(ops.depthwise_conv(x, weight, 2)).square().sum()
        return [loss, *torch.autograd.grad(loss, [*qkv, logits, x, weight])]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()  # what is made once is made before the capture
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for tensor in (*qkv, logits, x, weight):
            tensor.mul_(1.1)
    graph.replay()
    for one, other in zip(captured, step(), strict=True):
        assert torch.equal(one, other)


def test_the_losses_of_a_model_wait_for_nothing(cuda: torch.device) -> None:
    batch = Batch(
        features=normal(2, 200, 32),
        mask=torch.ones(2, 200, dtype=torch.bool),
        recording=torch.tensor([0, 0, 1]),
        points=torch.tensor([20.0, 150.0, 70.5]),
        segments=torch.tensor([[15.0, 30.0], [140.0, 160.0], [60.0, 90.0]]),
        classes=torch.tensor([0, 3, 2]),
    ).to(cuda)
    torch.manual_seed(0)
    model = POTLoc(features=32, classes=5, width=64, heads=2, levels=2, window=9, drop_path=0.0).to(cuda)

    def step() -> list[Tensor]:
        pyramid = model(batch.features, batch.mask)
        loss = total_loss(pyramid, sample_labels(batch, pyramid.level_lengths, 5, 2.0), LossConfig())["total"]
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value.isfinite().all() for value in found)


def test_without_cuda_kernels_it_says_how_to_rebuild(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_C, "cuda_architectures", "")
    with FakeTensorMode():
        segments, scores = torch.zeros(3, 2, device="cuda"), torch.zeros(3, device="cuda")
        message = "nms: potloc_fast was built without CUDA kernels: .* `POTLOC_FAST_CUDA=1 pip install"
        with pytest.raises(RuntimeError, match=message):
            ops.nms(segments, scores, 0.5)
