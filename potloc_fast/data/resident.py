"""The features of a training set kept on a device, so that batches are cropped there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from potloc_fast.data.dataset import Batch, TrainingSet, epoch_order, join_labels, padded_length
from potloc_fast.data.recording import blocks
from potloc_fast.errors import InputError


class ResidentSet:
    """A training set whose features lie on a device: batches are gathered there, and only their labels are sent.

    In float32 they are bit for bit those of `potloc_fast.data.dataset.batches`. Nothing waits for the device.

    Args:
        training_set: recordings with their labels.
        device: where to keep the features.
        dtype: what to keep them in, and of which those of a batch are.

    Raises:
        InputError: the features don't fit into the device's memory.
    """

    def __init__(self, training_set: TrainingSet, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.training_set = training_set
        recordings = training_set.recordings
        # The row that each recording begins at.
        *self._first, total = accumulate((len(recording.features) for recording in recordings), initial=0)
        try:
            self.features = torch.empty(total + 1, recordings[0].features.shape[1], dtype=dtype, device=device)
        except torch.OutOfMemoryError:
            raise InputError(
                f"data.resident: expected features that fit into the memory of {device}, "
                f"got {_bytes(training_set, dtype) / 2**30:.1f} GiB: set it to auto or off"
            ) from None
        self.features[total] = 0  # what padding is gathered from
        first = 0
        for block in chain.from_iterable(blocks(recording.features) for recording in recordings):
            rows = torch.from_numpy(np.array(block, dtype=np.float32))
            self.features[first : first + len(rows)] = rows.to(device)
            first += len(rows)

    def batches(
        self,
        batch_size: int,
        epoch: int,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = False,
        length: int | None = None,
        slots: int | None = None,
        multiple: int = 1,
        share: int = 0,
        shares: int = 1,
    ) -> Iterator[Batch]:
        """One epoch of batches, on the device; args as `potloc_fast.data.dataset.batches` has them."""
        for indices in epoch_order(len(self.training_set), batch_size, epoch, seed, shuffle, drop_last):
            crops = [self.training_set.crop(seed, epoch, index) for index in indices.tolist()]
            starts = [self._first[index] + crop.start for index, crop in zip(indices, crops, strict=True)]
            sizes = [crop.end - crop.start for crop in crops]
            stretched = self.training_set.sampling == "linear" and self.training_set.length  # to this length
            longest = stretched or max(sizes)
            padded = padded_length(longest, length, multiple)
            none = -len(crops) % shares  # crops that fill the last shares: a snippet of the padding each
            start, size = np.array([starts + none * [len(self.features) - 1], sizes + none * [1]])[:, :, None]
            recording, points, segments, classes = join_labels([crop.labels for crop in crops], slots)
            sent = _send([start, size, size / longest, recording, classes, points, segments], self.features.device)
            first, count, scale, recordings, labels, at, bounds = sent
            own = slice(share * len(start) // shares, (share + 1) * len(start) // shares)
            snippet = torch.arange(padded, device=first.device)
            mask = snippet < (longest if stretched else count)
            if stretched:
                features = self._stretched(first[own], count[own], (snippet[:longest] + 0.5) * scale[own] - 0.5)
                features = F.pad(features, (0, 0, 0, padded - longest))
            else:
                features = self._rows((first + snippet).where(mask, len(self.features) - 1)[own])
            yield Batch(features, mask.expand(len(start), -1)[: len(crops)], recordings, at, bounds, labels)

    def _stretched(self, start: Tensor, size: Tensor, centres: Tensor) -> Tensor:
        """Interpolate at `centres`, `Tensor[B, T]`, operation for operation as `StretchedFeatures` does."""
        centres = centres.clamp(min=0).minimum(size - 1)
        left = centres.floor().long()
        weight = (centres - left).float().unsqueeze(-1)
        right = (left + 1).minimum(size - 1)
        features = self._rows(start + left) * (1 - weight) + self._rows(start + right) * weight
        return features.to(self.features.dtype)

    def _rows(self, index: Tensor) -> Tensor:
        return self.features.index_select(0, index.flatten()).view(*index.shape, -1)


def resident(
    training_set: TrainingSet, mode: Literal["auto", "on", "off"], device: torch.device, dtype: torch.dtype
) -> ResidentSet | None:
    """Put the features of a training set on the device where `data.resident` asks for it, else return None.

    With "auto" a GPU keeps what fits into half of its free memory, and a CPU nothing.
    """
    if mode == "auto":
        free = _free(device) if device.type == "cuda" else 0
        mode = "on" if _bytes(training_set, dtype) <= free / 2 else "off"
    return ResidentSet(training_set, device, dtype) if mode == "on" else None


def _free(device: torch.device) -> int:
    """Bytes that a GPU has left for tensors: the driver's, and what torch holds without using it."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def _bytes(training_set: TrainingSet, dtype: torch.dtype) -> int:
    sizes: list[int] = [recording.features.shape[0] for recording in training_set.recordings]
    width: int = training_set.recordings[0].features.shape[1]
    return sum(sizes) * width * dtype.itemsize


def _send(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Copy arrays, those of 8 bytes a number first, to a device as one."""
    packed = torch.from_numpy(np.concatenate([array.reshape(-1).view(np.uint8) for array in arrays]))
    if device.type == "cuda":
        packed = packed.pin_memory()
    parts = torch.split(packed.to(device, non_blocking=True), [array.nbytes for array in arrays])
    dtypes = [torch.from_numpy(array[:0]).dtype for array in arrays]
    return [part.view(dtype).view(array.shape) for part, dtype, array in zip(parts, dtypes, arrays, strict=True)]
