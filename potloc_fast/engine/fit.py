"""The training loop, the same for both models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast
from zipfile import ZipFile

import torch
from torch import Tensor, nn

from potloc_fast.boundaries import boundary_targets
from potloc_fast.config.schema import EngineConfig, LossConfig, TrainConfig
from potloc_fast.data.dataset import Batch, TrainingSet, batches
from potloc_fast.data.resident import ResidentSet
from potloc_fast.engine.capture import CapturedStep
from potloc_fast.engine.device import autocast, bring, say
from potloc_fast.engine.distributed import collect, gather, once, own_rows, rank, ranks, share_out
from potloc_fast.engine.metrics import DELAY, Metrics
from potloc_fast.errors import InputError
from potloc_fast.files import write_bytes
from potloc_fast.losses import sample_labels, total_loss
from potloc_fast.models.pyramid import Pyramid

MULTIPLE = 256  # of which lengths are where steps are captured: each length is captured by itself

Model = TypeVar("Model", bound=nn.Module)


class WarmedAverage(nn.Module):
    """An exponential moving average of weights and buffers that starts as a plain one.

    At step n the decay is min(decay, (1 + n) / (10 + n)). With the full decay from the start, an average over fewer
    than about 1 / (1 - decay) steps would be mostly the initialisation. `warm=False` has it so, as the released code.

    Args:
        model: whose weights to average.
        decay: the decay.
        warm: whether the decay grows.

    Attributes:
        module: the model with the averaged weights.
    """

    n_averaged: Tensor

    def __init__(self, model: nn.Module, decay: float, warm: bool = True) -> None:
        super().__init__()
        self.module = deepcopy(model)
        self.decay, self.warm = decay, warm
        # Not warm, the untrained weights, of which this is a copy, count as the first. The count stays on the CPU.
        self.register_buffer("n_averaged", torch.tensor(0 if warm else 1))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Fold in the weights of `model`."""
        step = int(self.n_averaged)
        self.n_averaged += 1
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warm else self.decay
        ours, theirs = ([*of.parameters(), *of.buffers()] for of in (self.module, model))
        torch._foreach_lerp_(ours, theirs, 1 - decay if step else 1.0)


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None, scaler: torch.amp.GradScaler | None = None
) -> Tensor:
    """Take a step along the gradient; no device is waited for.

    Args:
        model: with gradients.
        optimizer: of its parameters.
        clip: largest norm of the gradient.
        scaler: what scaled the loss; it leaves out a step whose gradient is not finite.

    Returns:
        The norm of the gradient, before it is clipped.
    """
    parameters = list(model.parameters())
    if scaler is not None:
        scaler._per_optimizer_states.clear()  # a step that could not be captured may have left it half way
        scaler.unscale_(optimizer)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return norm


def fit(
    model: Model,
    data: TrainingSet,
    classes: int,
    loss: LossConfig,
    config: TrainConfig,
    *,
    seed: int,
    folder: Path,
    stage: str,
    resume: bool = False,
    engine: EngineConfig | None = None,
    kept: ResidentSet | None = None,
    digest: str = "",
) -> Model:
    """Train `model` in place, on the device that it is on.

    Every step is written to `metrics.jsonl` and to TensorBoard's files in `folder`, and every epoch to `checkpoint.pt`,
    which is for the caller to remove once the model is written. Of several processes (`distributed`) each
    computes a share of every batch.

    Args:
        model: a `BaseModel` or a `POTLoc`.
        data: crops with their labels.
        classes: number of classes C.
        loss: how the losses are formed and weighed.
        config: optimizer, schedule, length.
        seed: of crops, order and dropout.
        folder: where the log goes.
        stage: the name that progress is shown under.
        resume: go on from `checkpoint.pt` where there is one, whatever device wrote it; on the CPU, with the same
            number of processes and threads, the outcome is that of training without a break.
        engine: precision, compilation and capture.
        kept: `data` with its features on the device.
        digest: of what the model is trained with, which a checkpoint must have been written for.

    Returns:
        The model to use: the average of the weights where `config.ema` is set, else `model`.

    Raises:
        InputError: the loss is not finite, a step that is to be captured can't be, or `checkpoint.pt` is damaged or of
            another training.
    """
    engine = engine or EngineConfig()
    device = next(model.parameters()).device
    torch.manual_seed(seed + (rank() << 32))  # dropout differs between processes
    obstacle = capture_obstacle(device, loss, config)
    capturing = engine.cuda_graph != "off" and obstacle is None
    optimizer_type = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if config.decay_weights_only:
        parameters = groups[0]["params"]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    optimizer = optimizer_type(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    steps = math.ceil(len(data) / config.batch_size)
    if config.drop_last:
        steps = max(1, len(data) // config.batch_size)
    total, warmup = steps * config.epochs, steps * config.warmup_epochs
    stop = total if config.stop_epoch is None else min(total, math.ceil(steps * config.stop_epoch))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))

    average = None if config.ema is None else WarmedAverage(model, config.ema, config.ema_warmup)
    scaler = torch.amp.GradScaler(device.type) if engine.precision == "fp16" else None
    checkpoint, first = folder / "checkpoint.pt", 0
    made_by = {"digest": digest, "processes": ranks(), "threads": torch.get_num_threads()}
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "average": average, "scaler": scaler}
    parts = {name: part for name, part in parts.items() if part is not None}
    if resume and checkpoint.is_file():
        state = _read_checkpoint(checkpoint, parts, digest)
        if rank() < len(state["random"]):
            _set_random_state(state["random"][rank()], device)
        first = state["epoch"] + 1
        for name in ("processes", "threads"):
            if state[name] != made_by[name] and rank() == 0:
                say(f"{stage}: goes on with {made_by[name]} {name} after {state[name]}, which rounds differently")
    for group in optimizer.param_groups:
        # Where a step is captured, the graph reads the learning rate on the device.
        group["lr"], group["capturable"] = torch.zeros((), device=device) if capturing else 0.0, capturing
    forward: nn.Module = share_out(model)
    if engine.compile:
        forward = cast(nn.Module, torch.compile(forward))
    names: list[str] = []

    def take_step(batch: Batch) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, engine.precision):
            own: Pyramid = forward(batch.features, own_rows(batch.mask, len(batch.features)))
        pyramid = gather(own, batch.mask)
        lengths = pyramid.level_lengths
        targets = sample_labels(batch, lengths, classes, loss.radius, loss.positives, loss.overlap)
        boundaries = None if pyramid.distances is None else boundary_targets(batch, lengths, loss.radius)
        losses = total_loss(pyramid, targets, loss, boundaries)
        names[:] = [*losses, "grad_norm"]
        scaled = losses["total"] if scaler is None else scaler.scale(losses["total"])
        scaled.backward()  # type: ignore[no-untyped-call]
        norm = update(model, optimizer, config.clip, scaler)
        return torch.stack([*losses.values(), norm]).detach()

    captured = CapturedStep(take_step, device) if capturing else None
    if engine.cuda_graph == "auto" and device.type == "cuda" and obstacle is not None and rank() == 0:
        say(f"engine.cuda_graph: off, as {obstacle}")
    draw = partial(batches, data) if kept is None else kept.batches
    writes = rank() == 0
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
    model.train()
    step = first * steps
    delay = DELAY if device.type == "cuda" else 0  # a CPU is never behind
    with Metrics(folder if writes else None, stage, stop, step, delay) as metrics:
        for epoch in range(first, math.ceil(stop / steps)):
            drawn = islice(
                draw(
                    config.batch_size,
                    epoch=epoch,
                    seed=seed,
                    drop_last=config.drop_last,
                    length=config.length if config.pad else None,
                    slots=data.label_slots(config.batch_size) if capturing else None,
                    multiple=MULTIPLE if capturing and not (config.pad or config.sampling == "linear") else 1,
                    share=rank(),
                    shares=ranks(),
                ),
                stop - step,
            )
            for batch in bring(drawn, device) if kept is None else drawn:
                lr = config.lr * factor(step)
                for group in optimizer.param_groups:
                    group["lr"] = group["lr"].fill_(lr) if capturing else lr
                values = take_step(batch) if captured is None else captured(batch)
                if average is not None:
                    average.update_parameters(model)
                metrics.add(epoch, step, lr, names, values)
                step += 1
            metrics.flush()
            if captured is not None and captured.reason is not None:
                if engine.cuda_graph == "on":
                    raise InputError(f"engine.cuda_graph: {captured.reason}")
                say(f"engine.cuda_graph: off, as {captured.reason}")
            state = made_by | {"epoch": epoch, "random": collect(_random_state(device))}
            once(_write_checkpoint, checkpoint, parts, state)
    return model if average is None else cast(Model, average.module)


def capture_obstacle(device: torch.device, loss: LossConfig, config: TrainConfig) -> str | None:
    """Why training steps can't be captured in CUDA graphs; None where they can."""
    if device.type != "cuda":
        return f"CUDA graphs need a GPU, and the device is {device}"
    if ranks() > 1:
        return "several processes share every batch"
    if loss.pool_padding and not config.pad:
        return "loss.pool_padding counts padding, which train.pad: false leaves to the longest crop"
    return None


def _write_checkpoint(path: Path, parts: Mapping[str, Any], state: dict[str, Any]) -> None:
    content = BytesIO()  # writing by itself, torch would not tell why it can't
    torch.save({name: part.state_dict() for name, part in parts.items()} | state, content)
    write_bytes(path, content.getbuffer())


def _read_checkpoint(path: Path, parts: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """Load what a checkpoint holds into `parts`, and return all of it."""
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()  # torch checks no sums
        if damaged is not None:
            raise ValueError(f"wrong sum of {damaged}")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state.get("digest") == digest:
            for name in parts.keys() & state.keys():
                parts[name].load_state_dict(state[name])
    except Exception as error:  # a damaged file can raise nearly anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{path}: expected a checkpoint as training wrote it, got a damaged one ({reason}): remove it to train "
            "this model from the start"
        ) from None
    if state.get("digest") != digest:
        raise InputError(
            f"{path}: expected a checkpoint of the training that is to be resumed, got one of another configuration or "
            "other labels: begin a new run"
        )
    return state


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the random generators that training on a device draws from."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def _set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Go back to a state; a GPU's says nothing to a CPU."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
