"""A training step never waits for the device, has the same shapes for every batch, and can be replayed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from potloc_fast.boundaries import boundary_targets
from potloc_fast.config import load_config
from potloc_fast.config.schema import BaseStage, Config
from potloc_fast.data.dataset import Batch, TrainingSet, batches
from potloc_fast.data.layouts.synthetic import load_synthetic
from potloc_fast.data.points import draw_points
from potloc_fast.data.resident import ResidentSet
from potloc_fast.engine.capture import WARM_UP, CapturedStep
from potloc_fast.engine.device import float32_products
from potloc_fast.engine.fit import WarmedAverage, update
from potloc_fast.losses import sample_labels, total_loss
from potloc_fast.models import BaseModel, POTLoc

PRESETS = ["hapt", "hapt_boundaries", "thumos14", "thumos14_released"]
CLASSES = 5


def make_batch(device: torch.device | str, length: int = 200, slots: int = 16) -> Batch:
    """What has the shapes of a batch."""
    return Batch(
        features=torch.randn(2, length, 32, device=device),
        mask=torch.ones(2, length, dtype=torch.bool, device=device),
        recording=torch.zeros(slots, dtype=torch.int64, device=device),
        points=torch.zeros(slots, device=device),
        segments=torch.zeros(slots, 2, device=device),
        classes=torch.zeros(slots, dtype=torch.int64, device=device),
    )


def form_losses(model: nn.Module, config: BaseStage | Config, batch: Batch) -> dict[str, Tensor]:
    rules = config.loss
    pyramid = model(batch.features, batch.mask)
    lengths = pyramid.level_lengths
    targets = sample_labels(batch, lengths, CLASSES, rules.radius, rules.positives, rules.overlap)
    boundaries = None if pyramid.distances is None else boundary_targets(batch, lengths, rules.radius)
    return total_loss(pyramid, targets, rules, boundaries)


def make_step(
    model: nn.Module, config: BaseStage | Config, optimizer: torch.optim.Optimizer
) -> Callable[[Batch], Tensor]:
    def step(batch: Batch) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        losses = form_losses(model, config, batch)
        losses["total"].backward()
        norm = update(model, optimizer, 1.0)
        return torch.stack([*losses.values(), norm]).detach()

    return step


def training_set(length: int) -> TrainingSet:
    """Recordings to make two batches of four of, one of which is smaller."""
    dataset = draw_points(load_synthetic(recordings=10, classes=CLASSES, length=150, width=32), "gaussian", seed=0)
    return TrainingSet(dataset.subset("train"), dataset.classes, length=length)


def make_model(preset: str, stage: str, *overrides: str) -> tuple[nn.Module, BaseStage | Config]:
    config = load_config(preset, overrides=["data.root=here", *overrides])
    if stage == "base":
        return BaseModel(32, CLASSES, **config.base.model.model_dump()), config.base
    return POTLoc(32, CLASSES, **config.model.model_dump()), config


def fake_model(preset: str, stage: str) -> tuple[nn.Module, BaseStage | Config]:
    """The model with what the present fake mode makes of its tensors."""
    with torch.device("meta"):
        model, section = make_model(preset, stage)
    for module in model.modules():
        for kept in (module._parameters, module._buffers):
            for name, tensor in kept.items():
                if tensor is not None:
                    new = torch.empty(tensor.shape)
                    kept[name] = nn.Parameter(new) if kept is module._parameters else new
    return model, section


@pytest.mark.parametrize("stage", ["base", "potloc"])
@pytest.mark.parametrize("preset", PRESETS)
def test_no_value_decides_what_a_step_does(preset: str, stage: str) -> None:
    # Fake tensors have no values: what asks for one, or for a shape that follows from values, raises.
    with FakeTensorMode():
        model, config = fake_model(preset, stage)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        average = WarmedAverage(nn.Identity(), 0.9)
        average.module = fake_model(preset, stage)[0]
        step = make_step(model, config, optimizer)
        first, again = step(make_batch("cpu")), step(make_batch("cpu"))
        average.update_parameters(model)
    boundary_head = preset == "hapt_boundaries" and stage == "potloc"
    assert first.shape == again.shape == (5 + boundary_head,)


class OnDevice(TorchDispatchMode):
    """Refuses everything that touches another device than that of the batch."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)}
        assert devices <= {"meta"}, f"{func} on {devices}"
        return out


@pytest.mark.parametrize("stage", ["base", "potloc"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_step_stays_on_the_device(preset: str, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What starts on the CPU would have to be copied, for which a host waits. Optimizers know no meta tensors.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # nor does autocast
    with torch.device("meta"):
        model, config = make_model(preset, stage)
    with OnDevice():
        form_losses(model, config, make_batch("meta"))["total"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_batches_of_a_training_have_the_same_shapes() -> None:
    data = training_set(length=80)
    slots = data.label_slots(4)
    shapes = set()
    for epoch in range(5):
        for batch in batches(data, 4, epoch, 0, drop_last=True, length=80, slots=slots):
            shapes.add(tuple(tensor.shape for tensor in vars(batch).values()))
    assert len(shapes) == 1
    assert slots % 8 == 0
    largest = max(len(batch.points) for batch in batches(data, 4, 0, 0))
    assert largest <= slots < 4 * largest


def test_on_a_cpu_a_captured_step_is_the_step() -> None:
    step = CapturedStep(lambda batch: batch.features.sum(), torch.device("cpu"))
    assert step.reason == "CUDA graphs need a GPU, and the device is cpu"
    for length in (7, 9):
        batch = make_batch("cpu", length)
        assert torch.equal(step(batch), batch.features.sum())


class FakeGraph:
    """Records a call the way a CUDA graph does: it runs when replayed, on the tensors that it was recorded with."""

    recording: FakeGraph | None = None
    fails = False

    def __enter__(self) -> None:
        FakeGraph.recording = self

    def __exit__(self, *_: object) -> None:
        FakeGraph.recording = None

    def replay(self) -> None:
        self.output.copy_(self.call())


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the parts of torch.cuda that a capture goes through; tensors stay on the CPU."""
    stream = SimpleNamespace(wait_stream=lambda _: None, device_index=0)
    generator = SimpleNamespace(clone_state=lambda: None, graphsafe_set_state=lambda _: None)
    monkeypatch.setattr(FakeGraph, "fails", False)
    monkeypatch.setattr(CapturedStep, "failed", None)
    for name, value in {
        "Stream": lambda _: stream,
        "current_stream": lambda _: stream,
        "stream": lambda _: nullcontext(),
        "set_stream": lambda _: None,
        "default_generators": [generator],
        "CUDAGraph": FakeGraph,
        "graph": lambda graph, *_, **__: graph,
        "graph_pool_handle": lambda: (0, 0),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)


def recorded(calls: list[str]) -> Callable[[Batch], Tensor]:
    """A step that says how it ran: its sum is seven where it is recorded, as nothing is computed then."""

    def step(batch: Batch) -> Tensor:
        graph = FakeGraph.recording
        if graph is None:
            calls.append("eager")
            return batch.features.sum()
        calls.append("recorded")
        if FakeGraph.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        graph.call, graph.output = lambda: batch.features.sum(), torch.tensor(7.0)
        return graph.output

    return step


@pytest.mark.usefixtures("fake_cuda")
def test_steps_are_replayed_on_new_batches_of_each_shape() -> None:
    calls: list[str] = []
    step = CapturedStep(recorded(calls), torch.device("cuda"))
    made = [make_batch("cpu", length) for length in (30, 50) * (WARM_UP + 2)] + [make_batch("cpu", 70)]
    found = [step(batch) for batch in made]
    # Each result is of its own batch, and stays so when the recorded step writes the next one.
    assert [float(value) for value in found] == [float(batch.features.sum()) for batch in made]
    assert calls == ["eager"] * (2 * WARM_UP) + ["recorded"] * 2 + ["eager"]
    assert step.reason is None


@pytest.mark.usefixtures("fake_cuda")
def test_the_number_of_recordings_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potloc_fast.engine.capture.MOST", 2)
    calls: list[str] = []
    step = CapturedStep(recorded(calls), torch.device("cuda"))
    for length in (30, 40, 50):
        for _ in range(WARM_UP + 2):
            step(make_batch("cpu", length))
    assert calls == 2 * (["eager"] * WARM_UP + ["recorded"]) + ["eager"] * (WARM_UP + 2)


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("allocator_knows", [False, True])
def test_a_step_that_cannot_be_captured_goes_on_as_it_is(
    allocator_knows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Any] = []

    def end(*pool: Any) -> None:
        ended.append(pool)
        if allocator_knows:
            raise RuntimeError("not currently recording to mempool_id")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(FakeGraph, "fails", True)
    calls: list[str] = []
    step = CapturedStep(recorded(calls), torch.device("cuda"))
    for _ in range(WARM_UP + 3):
        batch = make_batch("cpu")
        assert torch.equal(step(batch), batch.features.sum())
    assert calls == ["eager"] * WARM_UP + ["recorded"] + ["eager"] * 3
    assert step.reason == "the step can't be captured: operation not permitted when stream is capturing"
    assert ended == [(0, (0, 0))]  # else the allocator would take the capture to go on
    # The process captures no more: what fails once would fail again, and leave as much behind.
    assert CapturedStep(recorded(calls), torch.device("cuda")).reason == step.reason


STEPS = 6  # rounding that is amplified for longer says nothing


def losses_of_steps(
    device: torch.device, preset: str, stage: str, noise: float = 0.0, seed: int = 0, captured: bool = False
) -> Tensor:
    """Losses and gradient norms of the first steps of a training, in which nothing is random but the crops.

    Args:
        device: to train on.
        preset: of the model.
        stage: of the model.
        noise: the relative error that every weight gets before every step, a stand-in for another order of sums.
        seed: of the noise.
        captured: whether steps are replayed.
    """
    torch.manual_seed(0)
    model, config = make_model(preset, stage, "base.model.dropout=0", "model.dropout=0", "model.drop_path=0")
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, capturable=device.type == "cuda")
    if device.type == "cuda":
        optimizer.param_groups[0]["lr"] = torch.full((), 1e-4, device=device)
    else:
        optimizer.param_groups[0]["lr"] = 1e-4
    step = make_step(model, config, optimizer)
    take = CapturedStep(step, device) if captured else step
    data, generator = training_set(length=128), torch.Generator().manual_seed(seed)
    rows = []
    for epoch in range(STEPS):
        batch = next(batches(data, 4, epoch, 0, length=128, slots=data.label_slots(4)))
        if noise:
            for parameter in model.parameters():
                parameter.data.mul_(1 + noise * torch.randn(parameter.shape, generator=generator))
        rows.append(take(batch.to(device)).cpu())
    if isinstance(take, CapturedStep):
        assert take.reason is None
    return torch.stack(rows)


def assert_within_noise(found: Tensor, preset: str, stage: str) -> None:
    """No step is further from the CPU's than ten times what rounding noise moves those on the CPU."""
    want, eps = losses_of_steps(torch.device("cpu"), preset, stage), torch.finfo(torch.float32).eps
    noisy = [losses_of_steps(torch.device("cpu"), preset, stage, eps, seed) for seed in (1, 2)]
    moved = torch.stack([(other - want).abs() / want.abs().clamp(min=1) for other in noisy]).amax()
    assert eps < moved < 1e-2, "an experiment without effect, or that says nothing"
    assert ((found - want).abs() / want.abs().clamp(min=1)).amax() <= 10 * moved


@pytest.mark.parametrize("stage", ["base", "potloc"])
def test_the_bound_for_a_gpu_tells_rounding_from_a_mistake(stage: str) -> None:
    cpu, eps = torch.device("cpu"), torch.finfo(torch.float32).eps
    assert_within_noise(losses_of_steps(cpu, "hapt_boundaries", stage, eps, seed=3), "hapt_boundaries", stage)
    with pytest.raises(AssertionError):
        assert_within_noise(losses_of_steps(cpu, "hapt_boundaries", stage, 1e-3), "hapt_boundaries", stage)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stage", ["base", "potloc"])
@pytest.mark.parametrize("captured", [False, True])
def test_a_gpu_follows_the_cpu(
    preset: str, stage: str, captured: bool, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with float32_products("fp32"):
        assert_within_noise(losses_of_steps(cuda, preset, stage, captured=captured), preset, stage)


def test_batches_and_steps_on_a_gpu_do_not_wait(cuda: torch.device) -> None:
    model, config = make_model("hapt_boundaries", "potloc")
    model.to(cuda)
    average = WarmedAverage(model, 0.9)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, capturable=True)
    optimizer.param_groups[0]["lr"] = torch.zeros((), device=cuda)
    source = ResidentSet(training_set(length=128), cuda)
    step = make_step(model, config, optimizer)
    for epoch in range(2):
        torch.cuda.set_sync_debug_mode("error" if epoch else "default")  # what is made once is made in the first
        try:
            for batch in source.batches(4, epoch, 0, slots=source.training_set.label_slots(4), multiple=64):
                step(batch)
                average.update_parameters(model)
        finally:
            torch.cuda.set_sync_debug_mode("default")
