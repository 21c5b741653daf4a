"""What holds for every operator alike. One that is new needs a sample here, or the first test fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from potloc_fast import _C, ops


@dataclass(frozen=True)
class Sample:
    """Arguments of a call: tensors that could have a derivative, and others."""

    floats: dict[str, Tensor]
    others: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> Iterator[Tensor]:
        yield from self.floats.values()
        yield from (value for value in self.others.values() if isinstance(value, Tensor))


def unit(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


ROWS = torch.tensor([True, False, True, True])
SEGMENTS = {"segments": unit(6, 2).cumsum(1), "scores": unit(6)}
SAMPLES = {
    "background_seeds": Sample(
        {"background": unit(2, 4)}, {"action": ROWS.expand(2, 4), "level_lengths": [3, 1], "mask": ROWS.expand(2, 4)}
    ),
    "batched_nms": Sample(SEGMENTS, {"groups": torch.arange(6) % 2, "voting": 0.5}),
    "depthwise_conv": Sample({"x": unit(2, 4, 3), "weight": unit(2, 3, 3)}, {"stride": 2, "mask": ROWS.expand(2, 4)}),
    "fused_focal_loss": Sample({"logits": unit(4, 3), "targets": unit(4, 2)}, {"positive": ROWS, "background": ~ROWS}),
    "local_attention": Sample({name: unit(2, 2, 4, 3) for name in "qkv"}, {"window": 3, "key_mask": ROWS.expand(2, 4)}),
    "nms": Sample(SEGMENTS, {"iou_threshold": 0.5}),
    "score_segments": Sample({"curves": unit(2, 9), "thresholds": unit(3), "scores": unit(2, 9)}, {"upsample": 2}),
    "sigmoid_focal_loss": Sample({"logits": unit(4), "targets": unit(4)}),
    "soft_nms": Sample(SEGMENTS),
}
FLOATS = [(name, key) for name, sample in SAMPLES.items() for key in sample.floats]


def call(name: str, **changed: Tensor) -> tuple[Tensor, ...]:
    out = getattr(ops, name)(**{**SAMPLES[name].floats, **SAMPLES[name].others, **changed})
    return (out,) if isinstance(out, Tensor) else tuple(out)


def test_every_operator_has_a_sample() -> None:
    called = set()

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(func.name())
            return func(*args, **(kwargs or {}))

    with Note():
        for name in SAMPLES:
            call(name)
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("potloc_fast::")}
    assert set(SAMPLES) == set(ops.__all__)
    assert {name for name in registered if not name.startswith("potloc_fast::_")} <= called


@pytest.mark.parametrize("name", SAMPLES)
def test_fake_tensors_of_a_gpu_give_some_of_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What torch.compile and torch.export go by, as far as a torch without CUDA has it: gradients would end the process.
    monkeypatch.setattr(_C, "cuda_architectures", "9.0")
    sample = SAMPLES[name]
    with FakeTensorMode(shape_env=ShapeEnv()), torch.no_grad():
        given = {
            key: torch.empty(value.shape, dtype=value.dtype, device="cuda") if isinstance(value, Tensor) else value
            for key, value in {**sample.floats, **sample.others}.items()
        }
        found = call(name, **given)
    for one, other in zip(found, call(name), strict=True):
        assert (one.device.type, one.dtype, one.ndim) == ("cuda", other.dtype, other.ndim)


@pytest.mark.parametrize(("name", "key"), FLOATS)
def test_forward_mode_derivatives_are_refused_in_words(name: str, key: str) -> None:
    value = SAMPLES[name].floats[key]
    tangent = torch.ones_like(value)

    def function(x: Tensor) -> tuple[Tensor, ...]:
        return call(name, **{key: x})

    def dual() -> None:
        with forward_ad.dual_level():
            function(forward_ad.make_dual(value, tangent))

    def nested() -> None:
        torch.func.jvp(
            lambda x: torch.func.jvp(lambda y: [*function(x), y], (value,), (tangent,)), (value,), (tangent,)
        )

    def batched() -> None:
        torch.func.jvp(torch.func.vmap(function), (torch.stack([value, value]),), (torch.stack([tangent, tangent]),))

    ways: list[Callable[[], object]] = [
        dual,
        nested,
        batched,
        lambda: torch.func.jvp(function, (value,), (tangent,)),
        lambda: torch.func.jacfwd(function)(value),
    ]
    for way in ways:
        with pytest.raises(
            RuntimeError, match=rf"^{name}: forward-mode derivatives .* not supported, and {key} has one"
        ):
            way()


@pytest.mark.parametrize(("name", "key"), FLOATS)
def test_what_is_no_dense_tensor_is_refused_in_words(name: str, key: str) -> None:
    value = SAMPLES[name].floats[key]
    others: list[Any] = [value.numpy(), value.tolist(), value.to_sparse(), value.to(torch.complex64), value.int()]
    for autocast in (False, True):
        for other in others:
            with torch.autocast("cpu", enabled=autocast), pytest.raises(TypeError, match=rf"^{name}: {key} must "):
                call(name, **{key: other})


@pytest.mark.parametrize("name", SAMPLES)
def test_what_has_no_derivative_passes_inside_of_forward_mode(name: str) -> None:
    want = call(name)
    with forward_ad.dual_level():
        found = call(name)
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("autocast", [False, True])
def test_meta_tensors(name: str, autocast: bool) -> None:
    sample = SAMPLES[name]
    meta = {key: value.to("meta") for key, value in sample.floats.items()}
    meta |= {key: value.to("meta") for key, value in sample.others.items() if isinstance(value, Tensor)}
    with torch.autocast("cpu", enabled=autocast):
        found = call(name, **meta)
    for one, other in zip(found, call(name), strict=True):
        assert one.device.type == "meta"
        assert one.dtype == other.dtype
        assert one.dim() == other.dim()
        # Where data decide a size, it is the largest.
        assert all(size >= least for size, least in zip(one.shape, other.shape, strict=True))
