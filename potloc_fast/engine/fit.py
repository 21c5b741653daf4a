"""The training loop, the same for both models."""

from __future__ import annotations

import json
import math
import time
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from potloc_fast.boundaries import boundary_targets
from potloc_fast.config.schema import LossConfig, TrainConfig
from potloc_fast.data.dataset import TrainingSet, batches
from potloc_fast.errors import InputError
from potloc_fast.files import atomic, read_text
from potloc_fast.losses import sample_labels, total_loss

Model = TypeVar("Model", bound=nn.Module)


class WarmedAverage(AveragedModel):
    """An exponential moving average that starts as a plain one.

    At step n the decay is min(decay, (1 + n) / (10 + n)). With the full decay from the start, an average over fewer
    than about 1 / (1 - decay) steps would be mostly the initialisation. `warm=False` has it so, as the released code.
    """

    def __init__(self, model: nn.Module, decay: float, warm: bool = True) -> None:
        super().__init__(model, use_buffers=True)
        self.decay, self.warm = decay, warm
        if not warm:
            self.n_averaged += 1  # the untrained weights, of which this is a copy, count as the first

    def update_parameters(self, model: nn.Module) -> None:
        """Fold in the weights of `model`."""
        step = int(self.n_averaged)
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warm else self.decay
        self.multi_avg_fn = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        super().update_parameters(model)


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None, average: WarmedAverage | None
) -> Tensor:
    """Take a step along the gradient and fold the new weights into their average.

    Args:
        model: with gradients.
        optimizer: of its parameters.
        clip: largest norm of the gradient.
        average: of its weights.

    Returns:
        The norm of the gradient, before it is clipped.
    """
    parameters = list(model.parameters())
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    optimizer.step()
    if average is not None:
        average.update_parameters(model)
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
) -> Model:
    """Train `model` in place.

    Every step is written to `metrics.jsonl` and to TensorBoard's files in `folder`, and every epoch to `checkpoint.pt`,
    which is removed at the end.

    Args:
        model: a `BaseModel` or a `POTLoc`.
        data: crops with their labels.
        classes: number of classes C.
        loss: how the losses are formed and weighed.
        config: optimizer, schedule, length.
        seed: of crops, order and dropout.
        folder: where the log goes.
        stage: the name that progress is shown under.
        resume: go on from `checkpoint.pt` where there is one; the outcome is that of training without a break.

    Returns:
        The model to use: the average of the weights where `config.ema` is set, else `model`.
    """
    from torch.utils.tensorboard import SummaryWriter  # takes over a second to import

    torch.manual_seed(seed)
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

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    average = None if config.ema is None else WarmedAverage(model, config.ema, config.ema_warmup)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, first, logged = folder / "checkpoint.pt", 0, ""
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    if average is not None:
        parts["average"] = average
    if resume and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["rng"])
        first = state["epoch"] + 1
        logged = "".join(read_text(folder / "metrics.jsonl").splitlines(keepends=True)[: first * steps])
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    model.train()
    with (
        Progress(*columns) as progress,
        (folder / "metrics.jsonl").open("w", encoding="utf-8") as log,
        SummaryWriter(str(folder / "tensorboard"), purge_step=first * steps) as board,
    ):
        log.write(logged)
        step = first * steps
        bar = progress.add_task(stage, total=stop, completed=step, loss=math.nan)
        begin = time.perf_counter()
        for epoch in range(first, math.ceil(stop / steps)):
            drawn = batches(
                data,
                config.batch_size,
                epoch=epoch,
                seed=seed,
                drop_last=config.drop_last,
                length=config.length if config.pad else None,
            )
            for batch in islice(drawn, stop - step):
                pyramid = model(batch.features, batch.mask)
                lengths = pyramid.level_lengths
                targets = sample_labels(batch, lengths, classes, loss.radius, loss.positives, loss.overlap)
                boundaries = None if pyramid.distances is None else boundary_targets(batch, lengths, loss.radius)
                losses = total_loss(pyramid, targets, loss, boundaries)
                optimizer.zero_grad(set_to_none=True)
                losses["total"].backward()  # type: ignore[no-untyped-call]
                norm = update(model, optimizer, config.clip, average)
                row = {name: value.item() for name, value in losses.items()} | {"grad_norm": norm.item()}
                row["lr"] = float(scheduler.get_last_lr()[0])
                scheduler.step()
                if not math.isfinite(row["total"]):
                    raise InputError(
                        f"{stage}: expected a finite loss, got {row['total']} at step {step}, epoch {epoch}: lower the "
                        "learning rate or clip the gradient"
                    )
                head = {"stage": stage, "epoch": epoch, "step": step, "seconds": round(time.perf_counter() - begin, 3)}
                log.write(json.dumps(head | row) + "\n")
                for name, value in row.items():
                    board.add_scalar(f"{stage}/{name}", value, step)
                step += 1
                progress.update(bar, completed=step, loss=row["total"])
            log.flush()
            state = {name: part.state_dict() for name, part in parts.items()}
            with atomic(checkpoint) as path:
                torch.save(state | {"epoch": epoch, "rng": torch.get_rng_state()}, path)
    checkpoint.unlink()
    return model if average is None else cast(Model, average.module)
