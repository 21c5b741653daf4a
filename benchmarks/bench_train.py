"""One training step of either model on random features, and the crops of a batch read from files.

A step is forward, losses, backward, gradient clipping, Adam and a moving average of the weights. Its learning rate is
zero: all the work is done, but each run starts from the same weights.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import Case, Work
from benchmarks.peers import model as released
from potloc_fast.config import load_config
from potloc_fast.config.schema import LossConfig
from potloc_fast.data.dataset import Batch, TrainingSet, collate
from potloc_fast.data.grid import Grid
from potloc_fast.data.recording import Recording, load_features
from potloc_fast.engine.fit import WarmedAverage, update
from potloc_fast.losses import sample_labels, total_loss
from potloc_fast.models import BaseModel, POTLoc

FEATURES, CLASSES, LABELS = 2048, 20, 15  # as in THUMOS'14; labels a recording
CLIP, DECAY = 1.0, 0.999
CONFIG = load_config("thumos14")


class Step:
    """Our training step on one batch; `seconds` holds what the parts of the last run took."""

    def __init__(self, model: nn.Module, batch: Batch, config: LossConfig, bf16: bool = False) -> None:
        self.model, self.batch, self.config, self.bf16 = model.train(), batch, config, bf16
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True)
        self.average = WarmedAverage(model, DECAY)
        self.seconds: dict[str, float] = {}

    def __call__(self) -> dict[str, Tensor]:
        """The logits, the losses and the norm of the gradient."""
        torch.manual_seed(0)
        clock = [time.perf_counter()]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            pyramid = self.model(self.batch.features, self.batch.mask)
            clock.append(time.perf_counter())
            targets = sample_labels(self.batch, pyramid.level_lengths, CLASSES, self.config.radius)
            losses = total_loss(pyramid, targets, self.config)
        clock.append(time.perf_counter())
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        clock.append(time.perf_counter())
        norm = update(self.model, self.optimizer, CLIP, self.average)
        clock.append(time.perf_counter())
        names = ("forward", "losses", "backward", "optimizer")
        self.seconds = {name: end - begin for name, (begin, end) in zip(names, pairwise(clock), strict=True)}
        return {"logits": pyramid.logits.detach().float(), "norm": norm, **losses}

    def parts(self) -> Mapping[str, float]:
        """Seconds of the parts of one more run."""
        self()
        return self.seconds


def random_batch(size: int, length: int) -> Batch:
    """A batch without padding, with labels spread evenly over each recording."""
    generator = torch.Generator().manual_seed(0)
    points = (torch.arange(LABELS) + 0.5) * (length / LABELS) + torch.rand(size, LABELS, generator=generator)
    points = points.flatten()
    return Batch(
        features=torch.randn(size, length, FEATURES, generator=generator),
        mask=torch.ones(size, length, dtype=torch.bool),
        recording=torch.arange(size).repeat_interleave(LABELS),
        points=points,
        segments=torch.stack([points - 6, points + 6], dim=1),
        classes=torch.randint(CLASSES, points.shape, generator=generator),
    )


def copy_weights(source: nn.Module, to: nn.Module) -> None:
    """Give the released form the weights of ours: other names, and convolutions as `[O, I, width]`."""
    shapes = {name: tensor.shape for name, tensor in to.state_dict().items()}
    found = {}
    for name, tensor in source.state_dict().items():
        if name.startswith("standardize"):  # the identity here
            continue
        name = re.sub(r"attention\.norms", "qkv_norms", name).replace("attention.", "")
        name = re.sub(r"branches\.(\d)\.scale", r"scales.\1", name)
        if tensor.dim() == 3 and len(tensor) == 3:  # [3, O, I]
            tensor = tensor.permute(1, 2, 0)
        wrapped = re.sub(r"\.(weight|bias)$", r".conv.\1", name)
        name = name if name in shapes else wrapped
        found[name] = tensor.reshape(shapes[name])
    to.load_state_dict(found)


def pair(ours: nn.Module, theirs: nn.Module, batch: Batch, config: LossConfig) -> tuple[Step, Callable[[], Any]]:
    """Our step and the released one, with the same weights, on the same batch."""
    copy_weights(ours, theirs)
    step = Step(ours, batch, config)
    with torch.no_grad():
        lengths = ours(batch.features[:1], batch.mask[:1]).level_lengths
    targets = sample_labels(batch, lengths, CLASSES, config.radius)
    features, mask = batch.features.transpose(1, 2).contiguous(), batch.mask.unsqueeze(1)
    peer = released.Step(theirs.train(), config, lr=0.0, clip=CLIP, decay=DECAY)

    def run() -> dict[str, Any]:
        torch.manual_seed(0)
        return peer(features, mask, targets)

    return step, run


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: float) -> None:
    """Logits, losses and the norm of the gradient agree."""
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def setup_step(bf16: bool) -> Work:
    options = CONFIG.model.model_dump()
    own_options = {name: options.pop(name) for name in ("dropout",)}
    torch.manual_seed(0)
    ours = POTLoc(FEATURES, CLASSES, **options, **own_options)
    theirs = released.ReleasedPOTLoc(FEATURES, CLASSES, **options)
    batch = random_batch(1, 2304)
    step, peer = pair(ours, theirs, batch, CONFIG.loss)
    if not bf16:
        return Work(step, {"released": peer}, partial(assert_same, tolerance=1e-3), step.parts)
    half = Step(ours, batch, CONFIG.loss, bf16=True)
    return Work(half, {"released": peer, "float32": step}, partial(assert_same, tolerance=0.03), half.parts)


def setup_base() -> Work:
    torch.manual_seed(0)
    ours = BaseModel(FEATURES, CLASSES, **CONFIG.base.model.model_dump())
    theirs = released.ReleasedBase(FEATURES, CLASSES, **CONFIG.base.model.model_dump())
    step, peer = pair(ours, theirs, random_batch(16, 768), CONFIG.base.loss)

    def check(*_: Any) -> None:
        # Dropout draws other numbers in another layout: compare without.
        ours.eval(), theirs.eval()
        assert_same(step(), peer(), 1e-3)
        ours.train(), theirs.train()

    return Work(step, {"released": peer}, check, step.parts)


class PlainDataset(torch.utils.data.Dataset[Tensor]):
    """Reads a whole file, and cuts it."""

    def __init__(self, paths: list[Path], length: int, seed: int) -> None:
        self.paths, self.length, self.rng = paths, length, np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        features = np.load(self.paths[index])
        start = self.rng.integers(len(features) - self.length + 1)
        return torch.from_numpy(features[start : start + self.length].T.copy())


def setup_crops() -> Work:
    folder = tempfile.TemporaryDirectory()
    paths = [Path(folder.name) / f"{i}.npy" for i in range(3)]
    for seed, path in enumerate(paths):
        np.save(path, np.random.default_rng(seed).standard_normal((2800, FEATURES), dtype=np.float32))
    grid = Grid(fps=25, window=16, stride=16)
    recordings = [Recording(path.stem, load_features(path), grid, "train") for path in paths]
    ours = TrainingSet(recordings, [], length=2304)
    plain = PlainDataset(paths, 2304, seed=0)
    epochs = count()

    def crops(_: tempfile.TemporaryDirectory[str] = folder) -> Tensor:  # keeps the files
        epoch = next(epochs)
        return collate([ours[0, epoch, index] for index in range(3)]).features

    def default_collate() -> Tensor:
        return torch.utils.data.default_collate([plain[index] for index in range(3)]).transpose(1, 2)

    def check(found: Tensor, other: Tensor) -> None:
        # Both are random: each must be a piece of its file.
        for batch in (found, other):
            for path, crop in zip(paths, batch, strict=True):
                whole = torch.from_numpy(np.load(path))
                start = int((whole[:, 0] == crop[0, 0]).nonzero()[0, 0])
                assert torch.equal(crop, whole[start : start + 2304]), f"{path.name}: not a crop of it"

    return Work(crops, {"default collate": default_collate}, check)


CASES = [
    Case(
        "step-fp32",
        "training step of POTLoc",
        "thumos14 preset, B 1, T 2304",
        "float32",
        partial(setup_step, bf16=False),
        goals={"released": 1.3},
    ),
    Case(
        "step-bf16",
        "training step of POTLoc under autocast",
        "thumos14 preset, B 1, T 2304",
        "bfloat16",
        partial(setup_step, bf16=True),
        goals={"released": 2.0},
        slow=True,
    ),
    Case(
        "step-base",
        "training step of the base model",
        "thumos14 preset, 16 recordings of 768",
        "float32",
        setup_base,
        slow=True,
    ),
    Case("crops", "batch of crops from files", "3 crops of 2304 x 2048", "float32", setup_crops),
]
