"""One training step of either model on random features, the crops of a batch read from files, and a whole training.

A step is forward, losses, backward, gradient clipping, Adam and a moving average of the weights. Its learning rate is
zero: all the work is done, but each run starts from the same weights. On a GPU it is replayed from a CUDA graph, and
its parts are told apart by events while it runs as it is.

The whole training is the paper's schedule on THUMOS'14, from features on disk to mAP, with the real annotations.
Features are random, as long as the last instance of a video says.
"""

from __future__ import annotations

import json
import math
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
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench_cuda import need_gpu, waited
from benchmarks.harness import Case, Unavailable, Work
from benchmarks.peers import model as released
from potloc_fast.config import load_config
from potloc_fast.config.schema import LossConfig
from potloc_fast.data.dataset import Batch, TrainingSet, collate
from potloc_fast.data.grid import Grid
from potloc_fast.data.recording import Recording, load_features
from potloc_fast.engine.capture import WARM_UP, CapturedStep
from potloc_fast.engine.fit import WarmedAverage, update
from potloc_fast.engine.train import train
from potloc_fast.losses import sample_labels, total_loss
from potloc_fast.models import BaseModel, POTLoc

FEATURES, CLASSES, LABELS = 2048, 20, 15  # as in THUMOS'14; labels a recording
CLIP, DECAY = 1.0, 0.999
CONFIG = load_config("thumos14")
ONLY_OURS = ("dropout", "padding_leaks", "boundary_head")  # options of the model, all off
THUMOS14 = Path(__file__).resolve().parents[2] / "shared" / "data" / "thumos14"


class Step:
    """Our training step on one batch, on its device."""

    def __init__(self, model: nn.Module, batch: Batch, config: LossConfig, bf16: bool = False) -> None:
        self.model, self.batch, self.config, self.bf16 = model.train(), batch, config, bf16
        self.device = batch.mask.device
        on_gpu = self.device.type == "cuda"
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True, capturable=on_gpu)
        self.average = WarmedAverage(model, DECAY)
        self.marks: list[Any] = []

    def __call__(self) -> dict[str, Tensor]:
        """The logits, the losses and the norm of the gradient."""
        torch.manual_seed(0)
        found = self.take(self.batch)
        self.average.update_parameters(self.model)
        self.mark()
        return found

    def take(self, batch: Batch) -> dict[str, Tensor]:
        """All but the average, which the host weighs."""
        self.marks.clear()
        self.mark()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            pyramid = self.model(batch.features, batch.mask)
        self.mark()
        targets = sample_labels(batch, pyramid.level_lengths, CLASSES, self.config.radius)
        losses = total_loss(pyramid, targets, self.config)
        self.mark()
        losses["total"].backward()
        self.mark()
        norm = update(self.model, self.optimizer, CLIP)
        return {"logits": pyramid.logits.detach().float(), "norm": norm, **losses}

    def mark(self) -> None:
        """Note the time, on a GPU that of the device."""
        if self.device.type == "cpu":
            self.marks.append(time.perf_counter())
        elif not torch.cuda.is_current_stream_capturing():
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)

    def parts(self) -> Mapping[str, float]:
        """Seconds of the parts of one more run."""
        self()
        seconds = [end - begin for begin, end in pairwise(self.marks)] if self.device.type == "cpu" else []
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            seconds = [begin.elapsed_time(end) / 1e3 for begin, end in pairwise(self.marks)]
        return dict(zip(("forward", "losses", "backward", "optimizer"), seconds, strict=True))


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
        torch.manual_seed(0)
        values = take(step.batch)
        step.average.update_parameters(step.model)
        torch.cuda.synchronize()
        return dict(zip(names, values, strict=True))

    for _ in range(WARM_UP + 1):
        run()
    if take.reason is not None:
        raise Unavailable(take.reason)
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


def pair(
    ours: nn.Module, theirs: nn.Module, batch: Batch, config: LossConfig, bf16: bool = False
) -> tuple[Step, Callable[[], Any]]:
    """Our step and the released one, with the same weights, on the same batch; `bf16` is the released one's."""
    copy_weights(ours, theirs)
    step = Step(ours, batch, config)
    with torch.no_grad():
        lengths = ours(batch.features[:1], batch.mask[:1]).level_lengths
    targets = sample_labels(batch, lengths, CLASSES, config.radius)
    features, mask = batch.features.transpose(1, 2).contiguous(), batch.mask.unsqueeze(1)
    peer = released.Step(theirs.train(), config, lr=0.0, clip=CLIP, decay=DECAY, bf16=bf16)

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
    options = CONFIG.model.model_dump(exclude=set(ONLY_OURS))
    torch.manual_seed(0)
    ours = POTLoc(FEATURES, CLASSES, **options)
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
    _, peer = pair(ours, theirs, batch, section)
    _, half_peer = pair(ours, theirs, batch, section, bf16=True)
    step = Step(ours, batch, section, bf16=True)
    with FlopCounterMode(display=False) as counter:
        step()
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rows = math.ceil(counter.get_total_flops() / (2 * 8192**2))

    def products() -> None:
        for first in range(0, rows, 8192):
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
    return Work(captured(step), peers, check, step.parts)


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


def setup_schedule(width: int = FEATURES // 2, overrides: tuple[str, ...] = ("engine.device=cuda",)) -> Work:
    """Both stages of the preset in bfloat16, detection and mAP."""
    if "engine.device=cuda" in overrides:
        need_gpu()
    data, runs = tempfile.TemporaryDirectory(), tempfile.TemporaryDirectory()
    write_thumos14(Path(data.name), width)
    config = load_config("thumos14", overrides=[f"data.root={data.name}", "engine.precision=bf16", *overrides])
    folders = (Path(runs.name) / str(number) for number in count())
    last: dict[str, Any] = {}

    def ours() -> None:
        begin, last["folder"] = time.perf_counter(), next(folders)
        train(config, last["folder"])
        last["seconds"] = time.perf_counter() - begin

    def parts(_: Any = (data, runs)) -> Mapping[str, float]:  # keeps the files
        logs = {stage: (last["folder"] / stage / "metrics.jsonl").read_text() for stage in ("base", "potloc")}
        seconds = {f"{stage} steps": json.loads(log.splitlines()[-1])["seconds"] for stage, log in logs.items()}
        return {**seconds, "the rest": last["seconds"] - sum(seconds.values())}

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
        "both stages of THUMOS'14, detection and mAP",
        "thumos14 preset, 200 and 210 videos, random features",
        "bfloat16",
        setup_schedule,
        limit_s=90.0,
        slow=True,
        device="cuda",
    ),
]
