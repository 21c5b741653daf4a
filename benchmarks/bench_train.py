"""One training step of either model on random features, the crops of a batch read from files, and a whole training.

A step is forward, losses, backward, gradient clipping, Adam and a moving average of the weights. Its learning rate is
zero: all the work is done, but each run starts from the same weights. On a GPU it is replayed from a CUDA graph, in
which events tell its parts apart.

The whole training is the paper's schedule on THUMOS'14, from the command, which starts Python, to the table, with the
real annotations. Features are random, as long as the last instance of a video says.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench_cuda import need_gpu, waited
from benchmarks.bench_import import process
from benchmarks.harness import Case, Unavailable, Work, start_peak
from benchmarks.peers import model as released
from potloc_fast.config import load_config
from potloc_fast.config.schema import LossConfig
from potloc_fast.data.dataset import Batch, TrainingSet, collate
from potloc_fast.data.grid import Grid
from potloc_fast.data.recording import Recording, load_features
from potloc_fast.engine.capture import WARM_UP, CapturedStep
from potloc_fast.engine.fit import WarmedAverage, update
from potloc_fast.losses import sample_labels, total_loss
from potloc_fast.models import BaseModel, POTLoc

FEATURES, CLASSES, LABELS = 2048, 20, 15  # as in THUMOS'14; labels a recording
PARTS = ("inputs", "forward", "losses", "backward", "optimizer", "average")  # of a step
CLIP, DECAY = 1.0, 0.999
CONFIG = load_config("thumos14")
ONLY_OURS = ("dropout", "padding_leaks", "boundary_head")  # options of the model, all off
COMMAND = """
import sys, torch
from potloc_fast.cli import app
app(sys.argv[1:], standalone_mode=False)
print(torch.cuda.max_memory_reserved())
"""
THUMOS14 = Path(__file__).resolve().parents[2] / "shared" / "data" / "thumos14"

R = TypeVar("R")


class Step:
    """Our training step on one batch, on its device."""

    def __init__(self, model: nn.Module, batch: Batch, config: LossConfig, bf16: bool = False) -> None:
        self.model, self.batch, self.config, self.bf16 = model.train(), batch, config, bf16
        self.device = batch.mask.device
        on_gpu = self.device.type == "cuda"
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True, capturable=on_gpu)
        self.average = WarmedAverage(model, DECAY)
        self.marks: dict[str, Any] = {}

    def __call__(self) -> dict[str, Tensor]:
        """The logits, the losses and the norm of the gradient."""
        return self.around(self.take)

    def around(self, take: Callable[[Batch], R]) -> R:
        """A step as `take` takes it, and the average, which the host weighs."""
        torch.manual_seed(0)
        self.mark("begin")
        found = take(self.batch)
        self.average.update_parameters(self.model)
        self.mark("average")
        return found

    def take(self, batch: Batch) -> dict[str, Tensor]:
        """All but the average."""
        self.mark("inputs")
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            pyramid = self.model(batch.features, batch.mask)
        self.mark("forward")
        targets = sample_labels(batch, pyramid.level_lengths, CLASSES, self.config.radius)
        losses = total_loss(pyramid, targets, self.config)
        self.mark("losses")
        losses["total"].backward()
        self.mark("backward")
        norm = update(self.model, self.optimizer, CLIP)
        self.mark("optimizer")
        return {"logits": pyramid.logits.detach().float(), "norm": norm, **losses}

    def mark(self, part: str) -> None:
        """Note when a part ends, on a GPU by an event: one that is recorded in a graph is noted anew by each replay."""
        if self.device.type == "cpu":
            self.marks[part] = time.perf_counter()
        else:
            self.marks[part] = torch.cuda.Event(enable_timing=True, external=True)
            self.marks[part].record()

    def parts(self, run: Callable[[], object]) -> Mapping[str, float]:
        """Seconds of the parts of one more run of this step, which add up to all of it."""
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        marks = pairwise(self.marks[part] for part in ("begin", *PARTS))
        seconds = [end - begin if self.device.type == "cpu" else begin.elapsed_time(end) / 1e3 for begin, end in marks]
        return dict(zip(PARTS, seconds, strict=True))


def captured(step: Step) -> Callable[[], dict[str, Tensor]]:
    """The step, replayed and waited for: its losses and the norm of the gradient.

    Raises:
        Unavailable: it can't be captured.
    """
    names: list[str] = []

    def stacked(batch: Batch) -> Tensor:
        found = step.take(batch)
        names[:] = [name for name in found if name != "logits"]
        return torch.stack([found[name] for name in names]).detach()

    take = CapturedStep(stacked, step.device)

    def run() -> dict[str, Tensor]:
        values = step.around(take)
        torch.cuda.synchronize()
        return dict(zip(names, values, strict=True))

    for _ in range(WARM_UP):
        run()
    before = start_peak()
    run()
    if take.reason is not None:
        raise Unavailable(take.reason)
    run.peak_bytes = torch.cuda.max_memory_allocated() - before  # type: ignore[attr-defined]
    return run


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
    """Give the released form the weights of ours: other names, and convolutions as `[O, I, width]`, one a filter."""
    shapes = {name: tensor.shape for name, tensor in to.state_dict().items()}
    found = {}
    for name, tensor in source.state_dict().items():
        if name.startswith("standardize"):  # the identity here
            continue
        if "attention.conv." in name:  # [filter, 3, C]
            filters = re.sub(r"attention\.conv\.", "convs.{}.conv.", name)
            found |= {filters.format(k): weight.t().unsqueeze(1) for k, weight in enumerate(tensor)}
            continue
        name = re.sub(r"attention\.norms", "qkv_norms", name).replace("attention.", "")
        name = re.sub(r"branches\.(\d)\.scale", r"scales.\1", name)
        if tensor.dim() == 3 and len(tensor) == 3:  # [3, O, I]
            tensor = tensor.permute(1, 2, 0)
        wrapped = re.sub(r"\.(weight|bias)$", r".conv.\1", name)
        name = name if name in shapes else wrapped
        found[name] = tensor.reshape(shapes[name])
    to.load_state_dict(found)


def released_step(
    ours: nn.Module, theirs: nn.Module, batch: Batch, config: LossConfig, bf16: bool = False
) -> Callable[[], dict[str, Any]]:
    """The released form of the step, with the weights of ours and on the same batch."""
    copy_weights(ours, theirs)
    with torch.no_grad():
        lengths = ours(batch.features[:1], batch.mask[:1]).level_lengths
    targets = sample_labels(batch, lengths, CLASSES, config.radius)
    features, mask = batch.features.transpose(1, 2).contiguous(), batch.mask.unsqueeze(1)
    peer = released.Step(theirs.train(), config, lr=0.0, clip=CLIP, decay=DECAY, bf16=bf16)

    def run() -> dict[str, Any]:
        torch.manual_seed(0)
        return peer(features, mask, targets)

    return run


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: float) -> None:
    """Logits, losses and the norm of the gradient agree."""
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def setup_step(bf16: bool) -> Work:
    options = CONFIG.model.model_dump(exclude=set(ONLY_OURS))
    torch.manual_seed(0)
    ours = POTLoc(FEATURES, CLASSES, **options)
    theirs = released.ReleasedPOTLoc(FEATURES, CLASSES, **options)
    batch = random_batch(1, 2304)
    step, peer = Step(ours, batch, CONFIG.loss), released_step(ours, theirs, batch, CONFIG.loss)
    if not bf16:
        return Work(step, {"released": peer}, partial(assert_same, tolerance=1e-3), partial(step.parts, step))
    half = Step(ours, batch, CONFIG.loss, bf16=True)
    parts = partial(half.parts, half)
    return Work(half, {"released": peer, "float32": step}, partial(assert_same, tolerance=0.03), parts)


def setup_base() -> Work:
    torch.manual_seed(0)
    ours = BaseModel(FEATURES, CLASSES, **CONFIG.base.model.model_dump())
    theirs = released.ReleasedBase(FEATURES, CLASSES, **CONFIG.base.model.model_dump())
    batch = random_batch(16, 768)
    step, peer = Step(ours, batch, CONFIG.base.loss), released_step(ours, theirs, batch, CONFIG.base.loss)

    def check(*_: Any) -> None:
        # Dropout draws other numbers in another layout: compare without.
        ours.eval(), theirs.eval()
        assert_same(step(), peer(), 1e-3)
        ours.train(), theirs.train()

    return Work(step, {"released": peer}, check, partial(step.parts, step))


def setup_cuda_step(base: bool) -> Work:
    """bfloat16, replayed, beside the released form as it is and under autocast."""
    need_gpu()
    torch.manual_seed(0)
    ours: nn.Module
    theirs: nn.Module
    if base:
        section, batch = CONFIG.base.loss, random_batch(16, 768).to("cuda")
        ours = BaseModel(FEATURES, CLASSES, **CONFIG.base.model.model_dump()).cuda()
        theirs = released.ReleasedBase(FEATURES, CLASSES, **CONFIG.base.model.model_dump()).cuda()
    else:
        section, batch = CONFIG.loss, random_batch(3, 2304).to("cuda")
        options = CONFIG.model.model_dump(exclude=set(ONLY_OURS))
        ours = POTLoc(FEATURES, CLASSES, **options).cuda()
        theirs = released.ReleasedPOTLoc(FEATURES, CLASSES, **options).cuda()
    peer, half_peer = (released_step(ours, theirs, batch, section, bf16) for bf16 in (False, True))
    replayed, step = (Step(ours, batch, section, bf16=True) for _ in range(2))
    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rows = math.ceil(product_flops(step) / (2 * side**2))

    def products() -> None:
        for first in range(0, rows, side):
            torch.mm(a[: rows - first], b)

    def check(found: dict[str, Tensor], other: dict[str, Tensor] | None) -> None:
        if other is None:
            return
        if not base:
            return assert_same(found, other, 0.03)
        # Dropout draws other numbers in another layout: compare without.
        ours.eval(), theirs.eval()
        assert_same(step(), peer(), 0.03)
        ours.train(), theirs.train()

    peers = {
        "released": waited(peer),
        "released under autocast": waited(half_peer),
        "our step as it is": waited(step),
        "its matrix products alone": waited(products),
    }
    ours_replayed = captured(replayed)
    return Work(ours_replayed, peers, check, partial(replayed.parts, ours_replayed))


def product_flops(step: Step) -> int:
    """Operations of the matrix products in a step, those of convolutions among them."""

    def addmm_(_: Sequence[int], a: Sequence[int], b: Sequence[int], **__: Any) -> int:
        return 2 * a[0] * a[1] * b[1]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_}) as counter:
        step()
    return counter.get_total_flops()


def write_thumos14(folder: Path, width: int) -> None:
    """Lay THUMOS'14 out with random features of two streams, `width` channels each.

    Raises:
        Unavailable: the annotations are not there.
    """
    if not (THUMOS14 / "gt.json").is_file():
        raise Unavailable("../shared/data/thumos14/gt.json is not there")
    for name in ("gt.json", "fps_dict.json", "split_train.txt", "split_test.txt", "point_labels.csv"):
        (folder / name).symlink_to(THUMOS14 / name)
    rows = np.random.default_rng(0).standard_normal((2**13, width), dtype=np.float32)
    truth = json.loads((THUMOS14 / "gt.json").read_text())["database"]
    for subset in ("train", "test"):
        for number, video in enumerate((THUMOS14 / f"split_{subset}.txt").read_text().split()):
            end_sec = max(float(instance["segment"][1]) for instance in truth[video]["annotations"])
            length = math.ceil(end_sec * 25 / 16)
            for stream in ("rgb", "flow"):
                path = folder / "features" / subset / stream / f"{video}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                first = 17 * number + 5 * (stream == "flow")
                np.save(path, rows[np.arange(first, first + length) % len(rows)])


class Schedule:
    """The command that trains both stages of the preset in bfloat16, detects and prints the table.

    Attributes:
        peak_bytes: what PyTorch held of the GPU's memory at most, in the last run.
    """

    def __init__(self, data: Path, runs: Path, overrides: Sequence[str]) -> None:
        self.arguments = ["train", "thumos14", f"data.root={data}", "engine.precision=bf16", *overrides]
        self.folders = (runs / str(number) for number in count())
        self.peak_bytes = 0

    def __call__(self) -> None:
        """Run it, into a folder of its own."""
        self.folder, self.begin = next(self.folders), time.time()
        printed = process("-c", COMMAND, *self.arguments, "--run-dir", str(self.folder))
        self.end = time.time()
        self.peak_bytes = int(printed.split()[-1])

    def parts(self) -> Mapping[str, float]:
        """Seconds of the last run until each file of it was there, from the one before."""
        files = {
            "base model": "base/model.safetensors",
            "its proposals": "base/proposals.json",
            "pseudo-labels": "pseudo_labels.json",
            "POTLoc": "potloc/model.safetensors",
            "detection and mAP": "potloc/evaluation.json",
        }
        times = [self.begin, *((self.folder / file).stat().st_mtime for file in files.values()), self.end]
        names = (*files, "pictures and table")
        return {name: end - begin for name, (begin, end) in zip(names, pairwise(times), strict=True)}


def setup_schedule(width: int = FEATURES // 2, overrides: Sequence[str] = ("engine.device=cuda",)) -> Work:
    """The schedule on two streams of random features, `width` channels each."""
    if "engine.device=cuda" in overrides:
        need_gpu()
    folder = tempfile.TemporaryDirectory()
    data = Path(folder.name) / "thumos14"
    data.mkdir()
    write_thumos14(data, width)
    ours = Schedule(data, Path(folder.name) / "runs", overrides)

    def parts(_: tempfile.TemporaryDirectory[str] = folder) -> Mapping[str, float]:  # keeps the files
        return ours.parts()

    return Work(ours, {}, lambda *_: None, parts)


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
    Case(
        "cuda-step",
        "training step of POTLoc, replayed",
        "thumos14 preset, B 3, T 2304",
        "bfloat16",
        partial(setup_cuda_step, base=False),
        {"released": 10.0, "its matrix products alone": 0.35},
        6e-3,
        device="cuda",
    ),
    Case(
        "cuda-step-base",
        "training step of the base model, replayed",
        "thumos14 preset, 16 recordings of 768",
        "bfloat16",
        partial(setup_cuda_step, base=True),
        limit_s=8e-3,
        device="cuda",
    ),
    Case(
        "cuda-schedule",
        "both stages of THUMOS'14, detection and mAP, from command to table",
        "thumos14 preset, 200 and 210 videos, random features",
        "bfloat16",
        setup_schedule,
        limit_s=90.0,
        slow=True,
        device="cuda",
    ),
]
