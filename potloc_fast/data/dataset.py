"""Crops of recordings with their labels, and batches of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potloc_fast.data.recording import Features, JoinedFeatures, Recording, intact
from potloc_fast.errors import InputError, quote, shorten
from potloc_fast.names import find_name

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
class Crop:
    """Snippets `start` to `end` of a recording, and the labels of what is made of them."""

    start: int
    end: int
    labels: Labels


class StretchedFeatures:
    """Features interpolated linearly to another length when they are copied; until then, nothing is read.

    The grid is stretched as a whole, so boundaries scale with it.

    Args:
        features: `[T, F]`.
        length: the other T.

    >>> np.asarray(StretchedFeatures(np.array([[0.0], [6.0]], np.float32), 3)).tolist()
    [[0.0], [3.0], [6.0]]
    """

    def __init__(self, features: Features, length: int) -> None:
        self.features = features
        self.shape = (length, features.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        total, length = len(self.features), len(self)
        centres = np.clip((np.arange(length) + 0.5) * (total / length) - 0.5, 0, total - 1)
        left = np.floor(centres).astype(np.int64)
        weight = (centres - left).astype(np.float32)[:, None]
        before, after = (np.asarray(self.features[rows]) for rows in (left, np.minimum(left + 1, total - 1)))
        stretched: NDArray[np.float32] = before * (1 - weight) + after * weight
        return stretched if dtype is None else stretched.astype(dtype, copy=False)


@dataclass(frozen=True)
class Sample:
    """A crop of a recording: features `[T, F]`, still on disk where they are memory-mapped, and its labels."""

    features: Features | StretchedFeatures
    labels: Labels


@dataclass(frozen=True)
class Batch:
    """B crops padded to the same length T, with the labels of all of them in one list of M.

    Attributes:
        features: `Tensor[B, T, F]` of float32, 0 in the padding; of one share of the batch alone where processes share
            it.
        mask: `Tensor[B, T]` of bool, True where there is a snippet.
        recording: `Tensor[M]` of int64, the crop that a label belongs to, ascending; B where an entry is no label and
            only keeps M the same for all batches.
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
        InputError: a point or segment is of none of the classes.
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
        numbers = {label: number for number, label in enumerate(classes)}
        self.labels = tuple(
            _point_labels(recording, numbers)
            if labels is None
            else _segment_labels(recording, numbers, labels.get(find_name(recording.id, labels) or "", ()))
            for recording in self.recordings
        )

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, key: tuple[int, int, int]) -> Sample:
        crop = self.crop(*key)
        features = intact(self.recordings[key[2]].features[crop.start : crop.end])
        if self.sampling == "linear" and self.length is not None:
            return Sample(StretchedFeatures(features, self.length), crop.labels)
        return Sample(features, crop.labels)

    def crop(self, seed: int, epoch: int, index: int) -> Crop:
        """What `training_set[seed, epoch, index]` is made of."""
        labels, total = self.labels[index], len(self.recordings[index].features)
        if self.length is None:
            return Crop(0, total, labels)
        if self.sampling == "linear":
            points = labels.points * (self.length / total)
            segments = _cells(points) if self.only_points else labels.segments * (self.length / total)
            return Crop(0, total, Labels(points, segments, labels.classes))
        start, end = _random_window(labels.points, total, self.length, np.random.default_rng((seed, epoch, index)))
        segments = np.clip(labels.segments, start, end) - start
        kept = segments[:, 0] < segments[:, 1]
        return Crop(start, end, Labels(labels.points[kept] - start, segments[kept], labels.classes[kept]))

    def label_slots(self, batch_size: int) -> int:
        """A number M of labels that no batch of this size exceeds, a multiple of 8."""
        counts = sorted(len(labels.classes) for labels in self.labels)
        return -(-sum(counts[-batch_size:]) // 8) * 8


def join_labels(
    labels: Sequence[Labels], slots: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """The labels of crops in one list, as `Batch` has them.

    Args:
        labels: those of each of B crops.
        slots: M, which is reached with entries that are no labels; by default there are none.

    Returns:
        recording, points, segments, classes.
    """
    counts = [len(own.classes) for own in labels]
    added = 0 if slots is None else slots - sum(counts)
    if added < 0:
        raise ValueError(f"expected at most {slots} labels, got {sum(counts)}")
    recording = np.repeat(np.arange(len(labels) + 1), [*counts, added])
    points = np.concatenate([*(own.points for own in labels), np.zeros(added)])
    segments = np.concatenate([*(own.segments for own in labels), np.zeros((added, 2))])
    classes = np.concatenate([*(own.classes for own in labels), np.zeros(added, dtype=np.int64)])
    return recording, points.astype(np.float32), segments.astype(np.float32), classes


def collate(
    samples: Sequence[Sample],
    length: int | None = None,
    slots: int | None = None,
    multiple: int = 1,
    share: int = 0,
    shares: int = 1,
) -> Batch:
    """Join samples into a batch.

    Args:
        samples: B of them, of the same width.
        length: T to pad to; by default that of the longest.
        slots: M to pad the list of labels to; by default it is not padded.
        multiple: of which T is one; it is rounded up.
        share: which of the shares to read features for. All are of the same size: the last ones may end with, or be,
            crops without a snippet.
        shares: how many shares of consecutive samples the batch is cut into.

    Returns:
        The batch, on the CPU; a sample on its own in memory, to which nothing is padded, is not copied.
    """
    length = padded_length(max(len(sample.features) for sample in samples), length, multiple)
    size, first = -(-len(samples) // shares), samples[0].features
    # Torch wants arrays that may be written to, which those mapped from files are not.
    shareable = isinstance(first, np.ndarray) and first.flags.carray and first.dtype == np.float32
    if shareable and len(samples) == shares == 1 and len(first) == length:
        features = np.asarray(first)[None]
    else:
        features = np.zeros((size, length, first.shape[1]), dtype=np.float32)
        for row, sample in enumerate(samples[share * size : (share + 1) * size]):
            parts = sample.features.parts if isinstance(sample.features, JoinedFeatures) else (sample.features,)
            np.concatenate(parts, axis=1, out=features[row, : len(sample.features)])  # the one copy that there is
    mask = np.arange(length) < np.array([[len(sample.features)] for sample in samples])
    labels = join_labels([sample.labels for sample in samples], slots)
    return Batch(*(torch.from_numpy(array) for array in (features, mask, *labels)))


def padded_length(longest: int, length: int | None, multiple: int) -> int:
    """T of a batch whose longest crop is so long; the other args as `collate` has them."""
    length = longest if length is None else length
    if length < longest:
        raise ValueError(f"expected samples no longer than {length}, got one of {longest} snippets")
    return -(-length // multiple) * multiple


def epoch_order(
    count: int, batch_size: int, epoch: int, seed: int, shuffle: bool = True, drop_last: bool = False
) -> list[NDArray[np.int64]]:
    """The indices of an epoch's batches; args as `batches` has them."""
    order = np.random.default_rng((seed, epoch)).permutation(count) if shuffle else np.arange(count)
    if drop_last and count > batch_size:
        order = order[: count - count % batch_size]
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def batches(
    training_set: TrainingSet,
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
    """One epoch of batches, the last one smaller where the recordings don't come out even.

    Args:
        training_set: what to draw from.
        batch_size: recordings in a batch.
        epoch: number of the epoch; each has an order and crops of its own.
        seed: seed of the run.
        shuffle: False keeps the order of the recordings.
        drop_last: leave that smaller batch out, unless it is the only one.
        length: what to pad to; by default the longest crop of each batch.
        slots: what to pad the list of labels to, such as `training_set.label_slots(batch_size)`.
        multiple: of which the length of every batch is one; it is rounded up.
        share: which share of each batch to read features for, as in `collate`.
        shares: how many shares there are.

    Yields:
        Padded batches, on the CPU.
    """
    for indices in epoch_order(len(training_set), batch_size, epoch, seed, shuffle, drop_last):
        samples = [training_set[seed, epoch, index] for index in indices.tolist()]
        yield collate(samples, length, slots, multiple, share, shares)


def whole(recordings: Sequence[Recording], length: int | None = None) -> Batch:
    """Whole recordings as one batch without labels, to detect in, padded to `length` or to the longest."""
    none = Labels(np.zeros(0), np.zeros((0, 2)), np.zeros(0, dtype=np.int64))
    return collate([Sample(intact(recording.features[:]), none) for recording in recordings], length)


def _point_labels(recording: Recording, numbers: Mapping[str, int]) -> Labels:
    times = np.array([point.time_sec for point in recording.points], dtype=np.float64)
    snippets = recording.grid.snippet_of(times, len(recording.features))
    # The last 64th of a cell is given up, so that floor() finds the same snippet in float32, after any crop.
    points = np.clip(recording.grid.to_grid(times), snippets, snippets + 63 / 64)
    return Labels(points, _cells(points), _classes(recording, (point.label for point in recording.points), numbers))


def _segment_labels(
    recording: Recording, numbers: Mapping[str, int], segments: Sequence[tuple[str, float, float, float]]
) -> Labels:
    times = np.array([segment[1:] for segment in segments], dtype=np.float64).reshape(-1, 3)
    positions = np.clip(recording.grid.to_grid(times), 0, len(recording.features))
    return Labels(positions[:, 0], positions[:, 1:], _classes(recording, (label for label, *_ in segments), numbers))


def _classes(recording: Recording, labels: Iterable[str], numbers: Mapping[str, int]) -> NDArray[np.int64]:
    try:
        return np.array([numbers[label] for label in labels], dtype=np.int64)
    except KeyError as error:
        [label] = error.args
        raise InputError(
            f"{recording.id}: expected a label among {shorten(', '.join(numbers))}, got {quote(label)}"
        ) from None


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
