"""A training step replayed from CUDA graphs: one launch instead of thousands."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from potloc_fast.data.dataset import Batch

WARM_UP = 3  # steps before a recording: what is made once is made, and libraries have chosen their kernels
MOST = 24  # recordings, as each takes memory for its thousands of kernels

Shapes: TypeAlias = tuple[tuple[torch.Size, torch.dtype], ...]


class CapturedStep:
    """Takes training steps, on a GPU by replaying what it recorded of one.

    The first steps on batches of a shape run as they are, on a stream of their own. The next is recorded, and from then
    on such batches are copied to where the recorded step reads them, and it is replayed. There are as many recordings
    as shapes, up to a limit: lengths should be rounded up, and lists of labels padded. On a CPU all run as they are; so
    do all of the process once a step could not be recorded.

    A replay repeats what the step does on the device and nothing that it does on the host: learning rates must be
    tensors, which may be filled between steps, and the step must begin by setting gradients to None. Random numbers go
    on as they would.

    Args:
        step: forward, losses, backward and the optimizer's step on a batch; returns one tensor without a gradient.
        device: of the model.

    Attributes:
        reason: why steps are not, or no longer, replayed; None where they are or will be.
    """

    failed: ClassVar[str | None] = None  # why a step of this process could not be recorded

    def __init__(self, step: Callable[[Batch], Tensor], device: torch.device) -> None:
        self.reason = self.failed if device.type == "cuda" else f"CUDA graphs need a GPU, and the device is {device}"
        self._step = step
        self._device = device
        self._taken: Counter[Shapes] = Counter()
        self._recorded: dict[Shapes, tuple[Batch, torch.cuda.CUDAGraph, Tensor]] = {}
        if self.reason is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()  # replays never overlap, so they share their memory

    def __call__(self, batch: Batch) -> Tensor:
        """Take a step on a batch on the device; what is returned is not written to again."""
        if self.reason is not None:
            return self._step(batch)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in vars(batch).values())
        if shapes not in self._recorded:
            self._taken[shapes] += 1
            if self._taken[shapes] <= WARM_UP or len(self._recorded) == MOST:
                return self._run(batch)
            try:
                self._recorded[shapes] = self._record(batch)
            except RuntimeError as error:
                self.reason = f"the step can't be captured: {str(error).splitlines()[0]}"
                CapturedStep.failed = self.reason
                self._recorded.clear()
                return self._step(batch)
        inputs, graph, output = self._recorded[shapes]
        for name, tensor in vars(batch).items():
            getattr(inputs, name).copy_(tensor)
        graph.replay()
        return output.clone()

    def _run(self, batch: Batch) -> Tensor:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            values = self._step(batch)
        current.wait_stream(self._stream)
        return values

    def _record(self, batch: Batch) -> tuple[Batch, torch.cuda.CUDAGraph, Tensor]:
        inputs = Batch(**{name: tensor.clone() for name, tensor in vars(batch).items()})
        current = torch.cuda.current_stream(self._device)
        generator = torch.cuda.default_generators[current.device_index]
        before = generator.clone_state()
        graph = torch.cuda.CUDAGraph()
        try:
            # Threads that pin memory for coming batches may go on meanwhile.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                output = self._step(inputs)
        except RuntimeError:
            # A capture that fails can leave its stream and its random state behind, and an allocator that takes it to
            # go on. That one can't be asked, and refuses where it knows better.
            torch.cuda.set_stream(current)
            generator.graphsafe_set_state(before)
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(current.device_index, self._pool)
            raise
        return inputs, graph, output
