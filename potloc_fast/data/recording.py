"""What a data set is made of: recordings with features, instances and points, and the checks they must pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from potloc_fast.data.grid import Grid
from potloc_fast.errors import InputError


class JoinedFeatures:
    """Arrays of the same length joined on channels when they are copied, so that memory-mapped parts stay on disk.

    >>> joined = JoinedFeatures(np.zeros((4, 2), np.float32), np.ones((4, 1), np.float32))
    >>> joined.shape, np.asarray(joined[1:3]).tolist()
    ((4, 3), [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    """

    def __init__(self, *parts: NDArray[np.float32]) -> None:
        self.parts = parts
        self.shape = (len(parts[0]), sum(part.shape[1] for part in parts))
        self.ndim = 2
        self.dtype = parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> JoinedFeatures:
        return JoinedFeatures(*(part[rows] for part in self.parts))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.concatenate(self.parts, axis=1, dtype=dtype)


Features: TypeAlias = NDArray[np.float32] | JoinedFeatures


@dataclass(frozen=True)
class Instance:
    """An action with its true boundaries, `[start_sec, end_sec)`."""

    label: str
    start_sec: float
    end_sec: float


@dataclass(frozen=True)
class Point:
    """An action known by a single moment inside it."""

    label: str
    time_sec: float


@dataclass(frozen=True, eq=False)
class Recording:
    """A video or a sensor recording.

    Attributes:
        id: its name, unique in the data set.
        features: `[T, F]` of float32, one row a snippet; read-only where it is memory-mapped.
        grid: where snippets lie in time.
        subset: "train" or "test".
        instances: the ground truth.
        points: the point labels that a model is trained on.
    """

    id: str
    features: Features
    grid: Grid
    subset: str
    instances: tuple[Instance, ...] = ()
    points: tuple[Point, ...] = ()

    @property
    def duration_sec(self) -> float:
        """End of the last snippet's cell, in seconds."""
        return self.grid.to_sec(float(len(self.features)))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Recordings that share their classes and the width of their features.

    Attributes:
        name: names it in errors.
        classes: names of the classes, in the order of a model's outputs.
        recordings: all subsets.
        notes: a sentence for each thing that a user should know about how it was read.
    """

    name: str
    classes: tuple[str, ...]
    recordings: tuple[Recording, ...]
    notes: tuple[str, ...] = ()

    def subset(self, name: str) -> tuple[Recording, ...]:
        """The recordings of a subset.

        Raises:
            InputError: there are none.
        """
        found = tuple(recording for recording in self.recordings if recording.subset == name)
        if not found:
            known = sorted({recording.subset for recording in self.recordings})
            raise InputError(f"{self.name}: expected a subset among {', '.join(known)}, got {name!r}")
        return found

    def feature_stats(self, subset: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each channel over all snippets of a subset, accumulated in float64.

        Returns:
            mean, std: `[F]` of float64. A channel that is constant up to float32 precision has std 1, to divide by.
        """
        count, mean, squares = 0, np.float64(0.0), np.float64(0.0)
        # Chan, Golub and LeVeque's update: one pass, without the cancellation of E[x^2] - E[x]^2.
        for recording in self.subset(subset):
            x = np.asarray(recording.features, dtype=np.float64)
            own = x.mean(axis=0)
            gap = own - mean
            x = x - own
            squares = squares + np.einsum("tf,tf->f", x, x) + gap**2 * (count * len(x) / (count + len(x)))
            count += len(x)
            mean = mean + gap * (len(x) / count)
        std = np.sqrt(squares / count)
        return np.asarray(mean), np.where(std <= 1e-6 * np.abs(mean), 1.0, std)

    def ground_truth(self) -> dict[str, Any]:
        """All instances as ActivityNet writes them: `{"database": {id: {subset, duration, annotations}}}`, seconds."""
        return {
            "database": {
                recording.id: {
                    "subset": recording.subset,
                    "duration": recording.duration_sec,
                    "annotations": [
                        {"segment": [instance.start_sec, instance.end_sec], "label": instance.label}
                        for instance in recording.instances
                    ],
                }
                for recording in self.recordings
            }
        }


def load_features(path: str | Path, expected_width: int | None = None) -> NDArray[np.float32]:
    """Memory-map the features of a recording.

    Args:
        path: a .npy file with an array `[T, F]`. One of half or double precision is read whole, as float32.
        expected_width: the F that the file must have.

    Returns:
        `[T, F]` of float32, read-only.

    Raises:
        InputError: the file is missing, truncated or no .npy file, or holds something else. Pickled objects are never
            loaded.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(6)
        if magic != b"\x93NUMPY":
            raise InputError(f"{path}: expected a .npy file, got one that starts with {magic!r}")
        array = np.lib.format.open_memmap(path, mode="r")
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: expected a feature file, found none") from None
    except OSError as error:
        raise InputError(f"{path}: expected a readable feature file, got: {error.strerror}") from None
    except ValueError as error:
        found = "pickled Python objects" if "Python objects" in str(error) else "a truncated or damaged file"
        raise InputError(f"{path}: expected an array of floats, got {found}") from None
    if array.dtype.kind != "f":
        raise InputError(f"{path}: expected an array of floats, got {array.dtype}")
    if array.ndim != 2:
        raise InputError(f"{path}: expected an array of shape [snippets, channels], got shape {list(array.shape)}")
    if expected_width is not None and array.shape[1] != expected_width:
        raise InputError(f"{path}: expected width {expected_width} as in the other recordings, got {array.shape[1]}")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which `validate` reports
        return array.astype(np.float32, copy=False)


def validate(dataset: Dataset) -> Dataset:
    """Check a data set whole, each feature file read once, and return it.

    A point is inside a recording up to one stride after the last snippet's frames, as the frames that filled no snippet
    are part of the recording too; `Grid.snippet_of` gives it to the last snippet.

    Raises:
        InputError: the first fault found, with the recording's id.
    """
    if not dataset.recordings:
        raise InputError(f"{dataset.name}: expected at least one recording, found none")
    seen: set[str] = set()
    for recording in dataset.recordings:
        if recording.id in seen:
            raise InputError(f"{recording.id}: expected each recording once, found it twice in {dataset.name}")
        seen.add(recording.id)
        _check_features(recording, width=dataset.recordings[0].features.shape[-1])
        _check_labels(recording, dataset)
    return dataset


def _check_labels(recording: Recording, dataset: Dataset) -> None:
    labels = [instance.label for instance in recording.instances] + [point.label for point in recording.points]
    for label in labels:
        if label not in dataset.classes:
            raise InputError(
                f"{recording.id}: expected a label among the {len(dataset.classes)} classes of {dataset.name}, "
                f"got {label!r}"
            )
    for instance in recording.instances:
        if not -math.inf < instance.start_sec < instance.end_sec < math.inf:
            raise InputError(
                f"{recording.id}: expected an instance to end after its start, "
                f"got [{instance.start_sec:g}, {instance.end_sec:g}) s of {instance.label}"
            )
    grid = recording.grid
    last_sec = (len(recording.features) * grid.stride + grid.window) / grid.fps
    for point in recording.points:
        if not 0 <= point.time_sec <= last_sec:
            raise InputError(
                f"{recording.id}: expected points inside the recording, which lasts {recording.duration_sec:.2f} s, "
                f"got one of {point.label} at {point.time_sec:.2f} s"
            )


def _check_features(recording: Recording, width: int) -> None:
    features = recording.features
    if features.ndim != 2 or features.dtype != np.float32:
        raise InputError(
            f"{recording.id}: expected float32 features of shape [snippets, channels], "
            f"got {features.dtype} of shape {list(features.shape)}"
        )
    if len(features) == 0:
        raise InputError(f"{recording.id}: expected at least one snippet, found an empty recording")
    if features.shape[1] != width:
        raise InputError(f"{recording.id}: expected width {width} as in the other recordings, got {features.shape[1]}")
    values = np.asarray(features)
    finite = np.isfinite(values)
    if not finite.all():
        snippet, channel = np.argwhere(~finite)[0]
        raise InputError(
            f"{recording.id}: expected finite features, "
            f"got {values[snippet, channel]} at snippet {snippet}, channel {channel}"
        )
