"""What a run is computed on: the device, the precision, and batches brought to it."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

from potloc_fast.config.schema import EngineConfig
from potloc_fast.data.dataset import Batch
from potloc_fast.errors import InputError
from potloc_fast.ops._library import _C

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
AHEAD = 2  # batches that are read while a GPU computes: more would only hold memory
PINNED = 2**28  # bytes of the largest tensor to pin: pinning is slow, and torch rounds it up to a power of two

T = TypeVar("T")


def pick_device(config: EngineConfig) -> torch.device:
    """The device of a run; of several processes on a machine each gets a GPU of its own.

    What `auto` takes is said on stderr wherever a GPU is there.

    Raises:
        InputError: a GPU is asked for and none can be used.
    """
    if config.device == "cpu":
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", 0))
    reason = unusable(index)
    if reason is not None and config.device == "cuda":
        raise InputError(f"engine.device: expected a GPU that can be used, found none: {reason}")
    device = torch.device("cuda", index) if reason is None else torch.device("cpu")
    if config.device == "auto" and torch.cuda.is_available() and index == 0:
        say(f"engine.device: {device} ({torch.cuda.get_device_name(device) if reason is None else reason})")
    return device


@cache
def unusable(index: int) -> str | None:
    """Why the machine's GPU of this number can't be used; None where it can. A kernel is tried, once a process."""
    if not torch.cuda.is_available():
        return "torch was built without CUDA" if torch.version.cuda is None else "torch finds none"
    if index >= torch.cuda.device_count():
        return f"{torch.cuda.device_count()} for process {index} of this machine, counted from 0"
    if not _C.cuda_architectures:
        return f"potloc_fast was built without CUDA kernels ({_C.without_cuda})"
    try:  # the kernels may be for other GPUs, or need a newer driver than torch
        torch.ops.potloc_fast.sigmoid_focal_loss(*torch.zeros(2, 1, device=f"cuda:{index}"), 0.25, 2.0, 0)
        torch.cuda.synchronize(index)
    except RuntimeError as error:
        said = str(error).splitlines()[0].removeprefix("sigmoid_focal_loss: ")
        return f"the kernels, built for {_C.cuda_architectures}, don't run on {_name(index)}: {said}"
    return None


def _name(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"{torch.cuda.get_device_name(index)} ({major}.{minor})"


@cache
def say(line: str) -> None:
    """Print on stderr, the same line once."""
    print(line, file=sys.stderr)


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Let a GPU's float32 matrix products and convolutions be rounded to TF32, or not, until the end of the block."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The block that a model's forward runs in."""
    return torch.autocast(device.type, HALF.get(precision), enabled=precision in HALF)


def bring(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on a device; for a GPU they are read and copied ahead, on a stream of their own, while it computes."""
    if device.type == "cpu":
        yield from batches
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copied() -> Iterator[tuple[Batch, torch.cuda.Event]]:
        torch.cuda.set_device(device)  # of the thread, which else would take up memory of the first GPU
        for batch in batches:
            tensors = vars(batch).items()
            pinned = Batch(**{name: x.pin_memory() if x.nbytes <= PINNED else x for name, x in tensors})
            with torch.cuda.stream(side):
                there = pinned.to(device)
            yield there, side.record_event()

    for batch, copying in read_ahead(copied(), AHEAD):
        current = torch.cuda.current_stream(device)
        current.wait_event(copying)
        for tensor in vars(batch).values():
            tensor.record_stream(current)  # else its memory could be written to again while it is read
        yield batch


def read_ahead(items: Iterable[T], count: int) -> Generator[T, None, None]:
    """The same items, of which a thread makes `count` before they are asked for."""
    source, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, source, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, source, end))
            yield item  # type: ignore[misc]
