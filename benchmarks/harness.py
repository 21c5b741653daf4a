"""Timing ours and the peers on the same input: equality first, then interleaved bursts, then memory.

A `Case` is one input, a `Scaling` a row of growing ones. Ratios are of medians from one run, a peer's over ours.
"""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from potloc_fast import _C

OURS = "potloc_fast"


class Unavailable(Exception):
    """The data or the hardware that a case needs is not there."""


@dataclass(frozen=True)
class Work:
    """One input, ready to run; all callables do the same job on it.

    A callable whose memory can't be seen from outside, as that of a CUDA graph or of another process, says itself how
    much it needs: in its attribute `peak_bytes`, which is read after it has run.

    Attributes:
        ours: this project.
        peers: what else does it, by name.
        check: takes our result and a peer's; raises AssertionError where they differ.
        parts: seconds that the parts of one run of ours take.
        repeat: how many times each callable does the job; what is reported is the time of one.
    """

    ours: Callable[[], Any]
    peers: Mapping[str, Callable[[], Any]]
    check: Callable[[Any, Any], None]
    parts: Callable[[], Mapping[str, float]] | None = None
    repeat: int = 1


@dataclass(frozen=True, eq=False)
class Case:
    """What to measure on one input.

    Attributes:
        id: short name, for `--id`.
        what: the operator or step.
        on: the input's shape.
        dtype: of the floating-point data.
        setup: makes the input; raises `Unavailable` where it can't.
        goals: the ratio aimed at, by peer.
        limit_s: the seconds aimed at, for ours.
        slow: left out by `--quick`.
        device: "cpu" or "cuda".
    """

    id: str
    what: str
    on: str
    dtype: str
    setup: Callable[[], Work]
    goals: Mapping[str, float] = field(default_factory=dict)
    limit_s: float | None = None
    slow: bool = False
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class Scaling:
    """What to measure over growing inputs.

    Attributes:
        id: short name, for `--id`.
        what: the operator or step.
        axis: what grows.
        dtype: of the floating-point data.
        sizes: the values of `axis`, growing.
        setup: makes the input of a size, with the peers that manage it.
        spread: the share by which the time per item is aimed to differ at most, among sizes of `steady` or more.
        steady: from which size on the fixed cost of a call no longer counts.
        slow: left out by `--quick`.
        device: "cpu" or "cuda".
    """

    id: str
    what: str
    axis: str
    dtype: str
    sizes: Sequence[int]
    setup: Callable[[int], Work]
    spread: float | None = None
    steady: int = 0
    slow: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Timing:
    """How long one provider took on one input.

    Attributes:
        seconds: of each run, ascending.
        peak_bytes: memory that a run needed on top of its input, its result included; None where it can't be told.
    """

    seconds: Sequence[float]
    peak_bytes: int | None

    @property
    def median(self) -> float:
        """The median of the runs."""
        return statistics.median(self.seconds)

    def quantile(self, share: float) -> float:
        """The run that this share of the runs does not exceed."""
        return self.seconds[min(int(share * len(self.seconds)), len(self.seconds) - 1)]


def measure(work: Work, budget_s: float, device: str = "cpu") -> dict[str, Timing]:
    """Check that all providers agree, then time them.

    Each provider runs for about `budget_s` seconds, in five bursts that take turns with those of the others, so that a
    disturbance hits all alike. What takes longer than its budget runs three times, and what takes ten times as long is
    measured in its first run alone; of that, memory is told on a GPU only.

    Returns:
        Timings by provider, ours first.

    Raises:
        AssertionError: a peer's result differs from ours.
    """
    calls = {OURS: work.ours, **work.peers}
    ours, first, peaks = None, {}, {}
    for name, call in calls.items():
        before = start_peak() if device == "cuda" else 0
        result, first[name] = _run(call)
        peaks[name] = torch.cuda.max_memory_allocated() - before if device == "cuda" else None
        if name == OURS:
            ours = result
        else:
            work.check(ours, result)
        if first[name] <= 10 * budget_s:
            result, first[name] = _run(call)  # the first call may have compiled something
        del result
    del ours
    long = [name for name in calls if first[name] > 10 * budget_s]
    seconds: dict[str, list[float]] = {name: [first[name]] if name in long else [] for name in calls}
    rounds = 5
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            for name, call in calls.items():
                if name in long or (first[name] > budget_s and turn >= 3):
                    continue
                stop = time.perf_counter() + budget_s / rounds
                while True:
                    seconds[name].append(_run(call)[1])
                    if time.perf_counter() >= stop:
                        break
    finally:
        gc.enable()
    return {
        name: Timing(
            [one / work.repeat for one in sorted(seconds[name])],
            peaks[name] if name in long and not hasattr(call, "peak_bytes") else peak_memory(call, device),
        )
        for name, call in calls.items()
    }


def _run(call: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begin


def peak_memory(call: Callable[[], Any], device: str = "cpu") -> int | None:
    """Bytes by which the process, or what it has on a GPU, grew at most during a call, its result included.

    None where the system does not tell.
    """
    if hasattr(call, "peak_bytes"):
        return call.peak_bytes
    if device == "cuda":
        before = start_peak()
        call()
        return torch.cuda.max_memory_allocated() - before
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # gives back what earlier calls left, so that it is counted again
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    except (OSError, AttributeError):
        return None
    before = _status("VmRSS")
    result = call()
    after = _status("VmHWM")
    del result
    return max(after - before, 0)


def start_peak() -> int:
    """Start a GPU's high-water mark anew; returns what is allocated."""
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


@cache
def provenance(device: str = "cpu") -> dict[str, str]:
    """Where, on "cpu" or "cuda", and with what figures were measured."""
    return {
        "device": _processor() if device == "cpu" else torch.cuda.get_device_name(),
        "capability": _C.cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "driver": "" if device == "cpu" else _driver(),
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def _commit() -> str:
    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def log(line: str) -> None:
    """Say on stderr what is being measured."""
    print(line, file=sys.stderr, flush=True)
