"""How long training will take, before it begins: a few passes through the models are timed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from potloc_fast.config.schema import TrainConfig
from potloc_fast.data import Recording
from potloc_fast.data.dataset import TrainingSet, batches
from potloc_fast.engine import align
from potloc_fast.engine.device import autocast
from potloc_fast.engine.distributed import ranks
from potloc_fast.engine.run import Run
from potloc_fast.models.pyramid import Pyramid
from potloc_fast.models.snippets import SnippetClassifier

PASSES = 2  # of which the first one is slower and does not count


def training_sec(run: Run, recordings: Sequence[Recording], steps: Sequence[str], device: torch.device) -> float:
    """Estimate how long the steps of a training that begins anew will take.

    Detection is not counted, nor is what reading from the disk may take.

    Args:
        run: what is to be trained.
        recordings: those that are trained on.
        steps: as for `train`.
        device: where it will be computed.

    Returns:
        Seconds.
    """
    config, total = run.config, 0.0
    if "base" in steps:
        total += _stage_sec(run, "base", recordings, config.base.train, device)
    if "pseudo-labels" in steps and config.pseudo_labels.variant == "aligned":
        learner = SnippetClassifier(run.features, len(run.classes), reach=align.REACH).to(device)
        crops = torch.zeros(align.BATCH, align.CROP, run.features, device=device)
        labelled = sum(bool(recording.points) for recording in recordings)
        total += align.classifiers(labelled) * align.STEPS * _pass_sec(learner, crops, None)
    if "potloc" in steps:
        total += sum(_stage_sec(run, stage, recordings, run.section(stage).train, device) for stage in run.rounds)
    return total


def _stage_sec(
    run: Run, stage: str, recordings: Sequence[Recording], config: TrainConfig, device: torch.device
) -> float:
    data = TrainingSet(recordings, run.classes, length=config.length, sampling=config.sampling)
    batch = next(batches(data, config.batch_size, epoch=0, seed=0, length=config.length if config.pad else None))
    passes = math.ceil(len(data) / config.batch_size) * (config.stop_epoch or config.epochs)
    model = run.build(stage).to(device)
    with autocast(device, run.config.engine.precision):
        seconds = _pass_sec(model, batch.features.to(device), batch.mask.to(device))
    return passes * seconds / ranks()


def _pass_sec(model: nn.Module, features: Tensor, mask: Tensor | None) -> float:
    """Seconds of a pass forward and backward, after the first one."""
    for _ in range(PASSES):
        begun = time.perf_counter()
        found = model(features, mask)
        (found.logits if isinstance(found, Pyramid) else found).float().square().mean().backward()
        if features.is_cuda:
            torch.cuda.synchronize()
    return time.perf_counter() - begun
