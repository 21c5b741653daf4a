"""Crops of recordings with their labels, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potloc_fast.data.recording import Features, JoinedFeatures, Recording
from potloc_fast.errors import InputError

LabelledSegments: TypeAlias = Mapping[str, Sequence[tuple[str, float, float, float]]]
"""`{recording: [(label, point_sec, start_sec, end_sec), ...]}`"""

KEPT_POINTS = 0.7  # a random crop keeps more than this part of the points ...
CROP_TRIES = 500  # ... where one of so many does


@dataclass(frozen=True)
class Labels:
    """Labels of one recording or crop, N of them, on the snippet grid.

    Attributes:
        points: `[N]` of float64; `floor` of it is the point's snippet.
        segments: `[N, 2]` of float64; where only points are known, the cell of the point's snippet.
        classes: `[N]` of int64.
    """

    points: NDArray[np.float64]
    segments: NDArray[np.float64]
    classes: NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """A crop of a recording: features `[T, F]`, still on disk where they are memory-mapped, and its labels."""

    features: Features
    labels: Labels


@dataclass(frozen=True)
class Batch:
    """B crops padded to the same length T, with the labels of all of them in one list of M.

    Attributes:
        features: `Tensor[B, T, F]` of float32, 0 in the padding.
        mask: `Tensor[B, T]` of bool, True where there is a snippet.
        recording: `Tensor[M]` of int64, the crop that a label belongs to, ascending.
        points: `Tensor[M]` of float32, on the grid of the crop. A crop keeps the part inside it of every segment that
            it overlaps, so that what is action is never taken for background; the point itself may lie outside [0, T).
        segments: `Tensor[M, 2]` of float32, on the grid of the crop.
        classes: `Tensor[M]` of int64.
    """

    features: Tensor
    mask: Tensor
    recording: Tensor
    points: Tensor
    segments: Tensor
    classes: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})


class TrainingSet(torch.utils.data.Dataset[Sample]):
    """Recordings to train on, cropped or resampled to a length.

    An item is asked for by `training_set[seed, epoch, index]`, and these three alone decide the crop, so neither the
    number of workers nor the order in which they work changes the outcome.

    Args:
        recordings: the recordings.
        classes: names of the classes, in the order of the model's outputs.
        length: snippets T of a crop; None takes whole recordings.
        sampling: "random" takes a random window that keeps over 70% of the points (of 500 tries; the one that keeps
            most where none does); a recording no longer than `length` is cropped to 0.9 to 1.0 of its own. "linear"
            interpolates whole recordings to `length`.
        labels: segments such as pseudo-labels, to learn from these instead of from points; a recording that is not
            among them has none.

    Raises:
        InputError: a segment is of none of the classes.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        classes: Sequence[str],
        *,
        length: int | None = None,
        sampling: Literal["random", "linear"] = "random",
        labels: LabelledSegments | None = None,
    ) -> None:
        if sampling not in ("random", "linear") or (sampling == "linear" and length is None):
            raise ValueError(f"expected sampling random, or linear with a length, got {sampling!r} with {length}")
        self.recordings = tuple(recordings)
        self.length = length
        self.sampling = sampling
        self.only_points = labels is None
        self.labels = tuple(
            _point_labels(recording, classes)
            if labels is None
            else _segment_labels(recording, classes, labels.get(recording.id, ()))
            for recording in self.recordings
        )

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, key: tuple[int, int, int]) -> Sample:
        seed, epoch, index = key
        features, labels = self.recordings[index].features, self.labels[index]
        total = len(features)
        if self.length is None:
            return Sample(features[:], labels)
        if self.sampling == "linear":
            points = labels.points * (self.length / total)
            segments = _cells(points) if self.only_points else labels.segments * (self.length / total)
            return Sample(_interpolate(features, self.length), Labels(points, segments, labels.classes))
        start, end = _random_window(labels.points, total, self.length, np.random.default_rng((seed, epoch, index)))
        segments = np.clip(labels.segments, start, end) - start
        kept = segments[:, 0] < segments[:, 1]
        return Sample(features[start:end], Labels(labels.points[kept] - start, segments[kept], labels.classes[kept]))


def collate(samples: Sequence[Sample], length: int | None = None) -> Batch:
    """Join samples into a batch.

    Args:
        samples: B of them, of the same width.
        length: T to pad to; by default that of the longest.

    Returns:
        The batch, on the CPU.
    """
    longest = max(len(sample.features) for sample in samples)
    if length is None:
        length = longest
    if length < longest:
        raise ValueError(f"expected samples no longer than {length}, got one of {longest} snippets")
    features = np.zeros((len(samples), length, samples[0].features.shape[1]), dtype=np.float32)
    mask = np.zeros((len(samples), length), dtype=np.bool_)
    for row, sample in enumerate(samples):
        parts = sample.features.parts if isinstance(sample.features, JoinedFeatures) else (sample.features,)
        np.concatenate(parts, axis=1, out=features[row, : len(sample.features)])  # the one copy that there is
        mask[row, : len(sample.features)] = True
    labels = [sample.labels for sample in samples]
    return Batch(
        features=torch.from_numpy(features),
        mask=torch.from_numpy(mask),
        recording=torch.from_numpy(np.repeat(np.arange(len(samples)), [len(item.classes) for item in labels])),
        points=torch.from_numpy(np.concatenate([item.points for item in labels]).astype(np.float32)),
        segments=torch.from_numpy(np.concatenate([item.segments for item in labels]).astype(np.float32)),
        classes=torch.from_numpy(np.concatenate([item.classes for item in labels])),
    )


def batches(
    training_set: TrainingSet,
    batch_size: int,
    epoch: int,
    seed: int,
    shuffle: bool = True,
    drop_last: bool = False,
    length: int | None = None,
) -> Iterator[Batch]:
    """One epoch of batches, the last one smaller where the recordings don't come out even.

    Args:
        training_set: what to draw from.
        batch_size: recordings in a batch.
        epoch: number of the epoch; each has an order and crops of its own.
        seed: seed of the run.
        shuffle: False keeps the order of the recordings.
        drop_last: leave that smaller batch out, unless it is the only one.
        length: what to pad to; by default the longest crop of each batch.

    Yields:
        Padded batches, on the CPU.
    """
    count = len(training_set)
    order = np.random.default_rng((seed, epoch)).permutation(count) if shuffle else np.arange(count)
    if drop_last and count > batch_size:
        order = order[: count - count % batch_size]
    for first in range(0, len(order), batch_size):
        yield collate([training_set[seed, epoch, int(index)] for index in order[first : first + batch_size]], length)


def whole(recordings: Sequence[Recording], length: int | None = None) -> Batch:
    """Whole recordings as one batch without labels, to detect in, padded to `length` or to the longest."""
    none = Labels(np.zeros(0), np.zeros((0, 2)), np.zeros(0, dtype=np.int64))
    return collate([Sample(recording.features[:], none) for recording in recordings], length)


def _point_labels(recording: Recording, classes: Sequence[str]) -> Labels:
    times = np.array([point.time_sec for point in recording.points], dtype=np.float64)
    snippets = recording.grid.snippet_of(times, len(recording.features))
    # The last 64th of a cell is given up, so that floor() finds the same snippet in float32, after any crop.
    points = np.clip(recording.grid.to_grid(times), snippets, snippets + 63 / 64)
    return Labels(
        points, _cells(points), _class_indices(recording, [point.label for point in recording.points], classes)
    )


def _segment_labels(
    recording: Recording, classes: Sequence[str], segments: Sequence[tuple[str, float, float, float]]
) -> Labels:
    times = np.array([segment[1:] for segment in segments], dtype=np.float64).reshape(-1, 3)
    positions = np.clip(recording.grid.to_grid(times), 0, len(recording.features))
    indices = _class_indices(recording, [segment[0] for segment in segments], classes)
    return Labels(positions[:, 0], positions[:, 1:], indices)


def _class_indices(recording: Recording, labels: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    for label in labels:
        if label not in classes:
            raise InputError(f"{recording.id}: expected a label among {', '.join(classes)}, got {label!r}")
    return np.array([classes.index(label) for label in labels], dtype=np.int64)


def _cells(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.floor(points), np.floor(points) + 1], axis=1)


def _random_window(points: NDArray[np.float64], total: int, length: int, rng: np.random.Generator) -> tuple[int, int]:
    size = length if total > length else int(rng.integers(max(1, round(0.9 * total)), total, endpoint=True))
    starts = rng.integers(0, total - size, size=CROP_TRIES, endpoint=True)
    points = np.sort(points)
    kept = np.searchsorted(points, starts + size) - np.searchsorted(points, starts)
    enough = kept > KEPT_POINTS * len(points)
    start = int(starts[(enough if enough.any() else kept).argmax()])
    return start, start + size


def _interpolate(features: Features, length: int) -> NDArray[np.float32]:
    """Linear interpolation to `length` snippets; the grid is stretched as a whole, so boundaries scale with it."""
    total, features = len(features), np.asarray(features)
    centres = np.clip((np.arange(length) + 0.5) * (total / length) - 0.5, 0, total - 1)
    left = np.floor(centres).astype(np.int64)
    weight = (centres - left).astype(np.float32)[:, None]
    stretched: NDArray[np.float32] = features[left] * (1 - weight) + features[np.minimum(left + 1, total - 1)] * weight
    return stretched
