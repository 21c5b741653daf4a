"""The log of a training: a row a step, read from the device late enough that no step waits for it."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potloc_fast.engine.device import say
from potloc_fast.engine.progress import Progress
from potloc_fast.errors import InputError
from potloc_fast.files import writing

DELAY = 4  # steps that a GPU may be behind the host: enough to keep it busy


class Metrics:
    """Writes `metrics.jsonl` and TensorBoard's files, and shows progress.

    Args:
        folder: where the log goes; None checks the losses alone, in processes that write nothing.
        stage: the name that progress is shown under.
        total: number of steps.
        step: the first step; what is logged of it and later ones is cut off.
        delay: how many steps later the values of a step are read.
    """

    def __init__(self, folder: Path | None, stage: str, total: int, step: int, delay: int) -> None:
        self.stage, self.delay = stage, delay
        self._waiting: deque[tuple[dict[str, Any], Sequence[str], Tensor, torch.cuda.Event | None, float]] = deque()
        self._open = ExitStack()
        self._folder = folder
        self._begin = time.perf_counter()
        self._progress = Progress(stage, total, step, shown=folder is not None)
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter  # takes over a second to import

            # What the disk refuses to TensorBoard's thread is raised here, too: it need not be printed there.
            before = threading.excepthook
            self._open.callback(setattr, threading, "excepthook", before)
            threading.excepthook = lambda args: None if issubclass(args.exc_type, OSError) else before(args)
            with writing(folder, "a folder to write to"):
                self._log = self._open.enter_context((folder / "metrics.jsonl").open("ab+"))
                self._cut(step)
                self._board = self._open.enter_context(SummaryWriter(str(folder / "tensorboard"), purge_step=step))

    def __enter__(self) -> Metrics:
        self._open.enter_context(self._progress)
        return self

    def __exit__(self, *error: object) -> None:
        with self._writing():
            self._open.close()

    def _writing(self) -> AbstractContextManager[None]:
        return writing((self._folder or Path()) / "metrics.jsonl", "a log to write to")

    def _cut(self, rows: int) -> None:
        """Keep the first rows of the log, which stay where they are; a row that is not whole is none."""
        self._log.seek(0)
        lines = [line for line in islice(self._log, rows) if line.endswith(b"\n")]
        if len(lines) < rows:
            say(f"{self._log.name}: expected rows of {rows} earlier steps, found {len(lines)}: the log has a gap")
        self._log.truncate(sum(map(len, lines)))

    def add(self, epoch: int, step: int, lr: float, names: Sequence[str], values: Tensor) -> None:
        """Take the values of a step, `Tensor[N]`; they are read some steps later.

        Raises:
            InputError: the loss of an earlier step was not finite.
        """
        event = None
        if values.device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
            event.record()
        seconds = round(time.perf_counter() - self._begin, 3)
        head = {"stage": self.stage, "epoch": epoch, "step": step, "seconds": seconds}
        self._waiting.append((head, names, values, event, lr))
        if len(self._waiting) > self.delay:
            self._write()

    def flush(self) -> None:
        """Read and write what waits."""
        while self._waiting:
            self._write()
        if self._folder is not None:
            with self._writing():
                self._log.flush()
                os.fsync(self._log.fileno())

    def _write(self) -> None:
        head, names, values, event, lr = self._waiting.popleft()
        if event is not None:
            event.synchronize()
        row = dict(zip(names, values.tolist(), strict=True)) | {"lr": lr}
        if not math.isfinite(row["total"]):
            raise InputError(
                f"{self.stage}: expected a finite loss, got {row['total']} at step {head['step']}, epoch "
                f"{head['epoch']}: lower the learning rate or clip the gradient"
            )
        if self._folder is not None:
            with self._writing():
                self._log.write(json.dumps(head | row).encode() + b"\n")
                for name, value in row.items():
                    self._board.add_scalar(f"{self.stage}/{name}", value, head["step"])
        self._progress.update(head["step"] + 1, f"loss {row['total']:.3f}")


def log_scores(folder: Path, settings: Mapping[str, Any], scores: Mapping[str, float]) -> None:
    """Write what a stage scored to TensorBoard's files, beside the settings that it was trained with.

    Args:
        folder: of the stage.
        settings: dotted keys and their values, TensorBoard's hyper-parameters.
        scores: by name.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    plain = {
        key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in settings.items()
    }
    board = folder / "tensorboard"
    with writing(folder, "a folder to write to"):  # once, however often a run is resumed
        for earlier in board.glob("*.scores"):
            earlier.unlink()
        with SummaryWriter(str(board), filename_suffix=".scores") as writer:
            for summary in hparams(plain, dict(scores)):  # type: ignore[no-untyped-call]
                writer.file_writer.add_summary(summary)
            for name, value in scores.items():
                writer.add_scalar(name, value)
