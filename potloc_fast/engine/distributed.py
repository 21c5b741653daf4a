"""Several processes that share every batch, started by torchrun: each computes a share, and the first one writes.

Losses are averages over the positives and seeds of a batch, which lie unevenly in its shares. So every process gathers
the scores of all, forms the losses of the whole batch, and passes gradients back to its own share: the sum of what the
processes find is the gradient of the whole batch, and every process knows its losses.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from potloc_fast.errors import InputError
from potloc_fast.losses import pyramid_mask
from potloc_fast.models.pyramid import Pyramid

T = TypeVar("T")

NOTICED = 1.0  # seconds: torchrun names the first process that ended, which is not to be one that lost another
WAIT = timedelta(minutes=30)  # for each other: the first process makes pseudo-labels and draws alone


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """A block on a device with the processes that torchrun started, which are joined once.

    The group is left when Python ends, but not after an exception: leaving waits for the others, which may wait for
    this process. It ends at once, the cause is the last thing that it says, and torchrun ends the others.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        gpu = device if device.type == "cuda" else None
        dist.init_process_group("gloo" if gpu is None else "nccl", timeout=WAIT, device_id=gpu)
        atexit.register(dist.destroy_process_group)
    try:
        yield
    except GeneratorExit:  # a caller that has enough of what a generator yields
        raise
    except BaseException:
        atexit.unregister(dist.destroy_process_group)
        atexit.register(_leave_after_failure)
        raise


def _leave_after_failure() -> None:
    """End at once where Python has just printed an exception: its own end can abort, with threads of torch's left."""
    if getattr(sys, "last_value", None) is not None:
        leave(1)


def leave(status: int) -> None:
    """End this process at once if it is one of several.

    torch would wait for what the others no longer send; and Python's end, which takes threads of torch's away while
    others still work, can abort what ended well.
    """
    if ranks() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        if status:
            time.sleep(NOTICED)
        os._exit(status)


def rank() -> int:
    """The number of this process, from 0; the first one writes."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def ranks() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def once(call: Callable[..., object], *args: Any) -> None:
    """Call in the first process alone, while the others wait.

    Raises:
        InputError: that process refused; all processes raise what it did.
    """
    error: InputError | None = None
    if rank() == 0:
        try:
            call(*args)
        except InputError as refused:
            error = refused
    if (error := collect(error)[0]) is not None:
        raise error


def share_out(model: nn.Module) -> nn.Module:
    """A form of the model whose gradients, after backward, are averaged over all processes."""
    if ranks() == 1:
        return model
    device = next(model.parameters()).device
    device_ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids)


def own_rows(mask: Tensor, size: int) -> Tensor:
    """The mask of this process' share, `Tensor[size, T]`, from that of the whole batch."""
    if ranks() == 1:
        return mask
    return F.pad(mask, (0, 0, 0, size * ranks() - len(mask)))[rank() * size : (rank() + 1) * size]


def gather(pyramid: Pyramid, mask: Tensor) -> Pyramid:
    """The scores of a whole batch; gradients reach the share of this process.

    Args:
        pyramid: scores of the share.
        mask: `Tensor[B, T]` of bool, of the whole batch.
    """
    if ranks() == 1:
        return pyramid

    def whole(rows: Tensor) -> Tensor:
        rows = rows.float().contiguous()
        # Gradients are averaged over the processes, but to be summed.
        rows.register_hook(lambda gradient: gradient * ranks())  # type: ignore[no-untyped-call]
        parts = [torch.empty_like(rows) for _ in range(ranks())]
        dist.all_gather(parts, rows.detach())
        parts[rank()] = rows
        return torch.cat(parts)[: len(mask)]

    lengths, distances = pyramid.level_lengths, pyramid.distances
    return Pyramid(
        whole(pyramid.logits),
        pyramid_mask(mask, len(lengths)),
        lengths,
        None if distances is None else whole(distances),
    )


def collect(value: T) -> list[T]:
    """What each process holds, in their order."""
    if ranks() == 1:
        return [value]
    found: list[Any] = [None] * ranks()
    dist.all_gather_object(found, value)
    return found
