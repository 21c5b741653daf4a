"""What a data set is made of: recordings with features, instances and points, and the checks they must pass."""

from __future__ import annotations

import math
import mmap
import resource
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from potloc_fast.data.grid import Grid
from potloc_fast.errors import InputError, quote
from potloc_fast.files import check_kind

Label = TypeVar("Label", "Instance", "Point")

BLOCK = 1 << 14  # snippets that are looked at together: a recording may be larger than memory
SAME = 1e-6  # of a time, or seconds: what a detour through single precision or text changes at most


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


def blocks(features: Features) -> Iterator[Features]:
    """Cut features into blocks of consecutive snippets, each checked by `intact` before it is read.

    Of a file that is mapped, this process holds no more than a block in memory.
    """
    for first in range(0, len(features), BLOCK):
        yield intact(features[first : first + BLOCK])
        if len(features) > BLOCK:
            for part in features.parts if isinstance(features, JoinedFeatures) else (features,):
                mapped = getattr(part, "_mmap", None)
                if isinstance(part, np.memmap) and mapped is not None and part.mode == "r":
                    mapped.madvise(mmap.MADV_DONTNEED)


def intact(features: Features) -> Features:
    """The same features, once their files are known to be as long as when they were mapped.

    To read past the end of a file that was cut meanwhile would end the process.

    Raises:
        InputError: a file was cut.
    """
    for part in features.parts if isinstance(features, JoinedFeatures) else (features,):
        mapped = getattr(part, "_mmap", None)
        if isinstance(part, np.memmap) and mapped is not None:
            first = part.offset - part.offset % mmap.ALLOCATIONGRANULARITY  # where the mapping begins
            if mapped.size() < first + len(mapped):
                raise InputError(
                    f"{part.filename}: expected the {first + len(mapped)} bytes that it had when it was opened, found "
                    f"{mapped.size()}: it was cut meanwhile"
                )
    return features


class Instance(NamedTuple):
    """An action with its true boundaries, `[start_sec, end_sec)`."""

    label: str
    start_sec: float
    end_sec: float


class Point(NamedTuple):
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
        files: where the parts of the features were read from; empty where they are from no file.
    """

    id: str
    features: Features
    grid: Grid
    subset: str
    instances: tuple[Instance, ...] = ()
    points: tuple[Point, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def duration_sec(self) -> float:
        """End of the last snippet's cell, in seconds."""
        return self.grid.to_sec(float(len(self.features)))

    @property
    def parts(self) -> tuple[tuple[str, NDArray[np.float32]], ...]:
        """The arrays that features are joined from, each with what names it in errors: its file, else the recording."""
        parts = self.features.parts if isinstance(self.features, JoinedFeatures) else (self.features,)
        names = self.files if len(self.files) == len(parts) else [self.id] * len(parts)
        return tuple(zip(map(str, names), parts, strict=True))


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
            raise InputError(f"{self.name}: expected a subset among {', '.join(known)}, got {quote(name)}")
        return found

    @property
    def only_trains(self) -> bool:
        """Whether all recordings are there to train on, none to test in."""
        return {recording.subset for recording in self.recordings} == {"train"}

    def feature_stats(self, subset: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each channel over all snippets of a subset, accumulated in float64.

        Returns:
            mean, std: `[F]` of float64. A channel that is constant up to float32 precision has std 1, to divide by.
        """
        count, mean, squares = 0, np.float64(0.0), np.float64(0.0)
        # Chan, Golub and LeVeque's update: one pass, without the cancellation of E[x^2] - E[x]^2.
        for block in chain.from_iterable(blocks(recording.features) for recording in self.subset(subset)):
            x = np.array(block, dtype=np.float64)
            own = x.mean(axis=0)
            gap = own - mean
            x -= own
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


def allow_open_files() -> None:
    """Raise this process' limit on open files to what it may be: memory-mapped ones count, and 1024 is usual."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


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
    features = to_features(map_array(path), path)
    if expected_width is not None and features.shape[1] != expected_width:
        raise InputError(f"{path}: expected width {expected_width} as in the other recordings, got {features.shape[1]}")
    return features


def map_array(path: str | Path) -> NDArray[Any]:
    """Memory-map the array of a .npy file, whatever it holds but pickled objects.

    Raises:
        InputError: the file is missing, truncated or no .npy file.
    """
    allow_open_files()
    check_kind(path)
    try:
        with open(path, "rb") as file:
            magic = file.read(6)
        if magic != b"\x93NUMPY":
            raise InputError(f"{path}: expected a .npy file, got one that starts with {quote(magic)}")
        return np.lib.format.open_memmap(str(path), mode="r")
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: expected a feature file, found none") from None
    except OSError as error:
        raise InputError(f"{path}: expected a readable feature file, got: {error.strerror}") from None
    except Exception as error:  # a damaged header can raise nearly anything
        found = "pickled Python objects" if "Python objects" in str(error) else "a truncated or damaged file"
        raise InputError(f"{path}: expected an array of floats, got {found}") from None


def to_features(array: NDArray[Any], path: str | Path) -> NDArray[np.float32]:
    """Check that an array can be the features of a recording.

    Args:
        array: what was found at `path`.
        path: names it in errors.

    Returns:
        `[T, F]` of float32, copied only where it is of another precision.

    Raises:
        InputError: it is not of floats, or not `[T, F]`.
    """
    if array.dtype.kind != "f":
        raise InputError(f"{path}: expected an array of floats, got {array.dtype}")
    if array.ndim != 2:
        raise InputError(f"{path}: expected an array of shape [snippets, channels], got shape {list(array.shape)}")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which `validate` reports
        return array.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Finding:
    """What was found amiss in a data set.

    Attributes:
        kind: the same words for all of a kind.
        message: one sentence that names the file, the recording or the data set.
    """

    kind: str
    message: str


def _same(first: Label, second: Label) -> bool:
    """Whether two labels say the same."""
    return (
        second[1] - first[1] <= SAME * max(1.0, abs(first[1]))  # which mostly answers: the first is not later
        and first[0] == second[0]
        and all(map(partial(math.isclose, rel_tol=SAME, abs_tol=SAME), first[1:], second[1:]))
    )


class Tidy:
    """Takes out of labels what says nothing: instances that end where they start, and rows that stand twice.

    Published data have both; the first can't be found, and the second would count twice. Times that differ by less than
    `SAME` are one: they went through another precision. `findings` counts what is taken out.

    Args:
        source: names in errors what the labels were read from.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = source
        self._taken: dict[str, list[str]] = defaultdict(list)

    def instances(self, name: str, rows: Sequence[Instance]) -> tuple[Instance, ...]:
        """The instances of a recording that are to be used."""
        lasting = [row for row in rows if not -math.inf < row.start_sec == row.end_sec < math.inf]
        self._taken["instances left out, as they end where they start"] += [name] * (len(rows) - len(lasting))
        return self._once("instances merged, as they stand twice", name, lasting)

    def points(self, name: str, rows: Sequence[Point]) -> tuple[Point, ...]:
        """The points of a recording that are to be used."""
        return self._once("points merged, as they stand twice", name, rows)

    def _once(self, kind: str, name: str, rows: Sequence[Label]) -> tuple[Label, ...]:
        order = sorted(range(len(rows)), key=rows.__getitem__)
        again = {j for i, j in pairwise(order) if _same(rows[i], rows[j])}
        self._taken[kind] += [name] * len(again)
        return tuple(row for i, row in enumerate(rows) if i not in again) if again else tuple(rows)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was taken out, a finding for each kind."""
        return tuple(
            Finding(kind, f"{self.source}: {kind}: {len(names)}, the first in {names[0]}")
            for kind, names in self._taken.items()
            if names
        )


def validate(dataset: Dataset) -> Dataset:
    """Check a data set whole, each feature file read once, and return it.

    Raises:
        InputError: the first fault found.
    """
    of_each = (
        fault
        for recording in dataset.recordings
        for fault in chain(feature_faults(recording), label_faults(recording, dataset.classes, dataset.name))
    )
    for fault in chain(shared_faults(dataset), of_each):
        raise InputError(fault.message)
    return dataset


def shared_faults(dataset: Dataset) -> Iterator[Finding]:
    """What is wrong between the recordings of a data set: ids, and widths, of which the most frequent is right."""
    if not dataset.recordings:
        yield Finding("no recordings", f"{dataset.name}: expected at least one recording, found none")
    for name, count in Counter(recording.id for recording in dataset.recordings).items():
        if count > 1:
            times = "twice" if count == 2 else f"{count} times"
            yield Finding("duplicate ids", f"{name}: expected each recording once, found it {times} in {dataset.name}")
    widths = {
        recording: tuple(part.shape[1] for _, part in recording.parts)
        for recording in dataset.recordings
        if recording.features.ndim == 2 and recording.features.shape[1]
    }
    usual = Counter(widths.values()).most_common(1)[0][0] if widths else ()
    for recording, found in widths.items():
        named = [(name, width) for (name, _), width in zip(recording.parts, found, strict=True)]
        expected = usual
        if len(found) != len(usual):
            named, expected = [(recording.id, sum(found))], (sum(usual),)
        for (name, width), right in zip(named, expected, strict=True):
            if width != right:
                yield Finding("other widths", f"{name}: expected width {right} as in the other recordings, got {width}")


def feature_faults(recording: Recording) -> Iterator[Finding]:
    """What is wrong with the features of a recording, all of which are read."""
    (first, head), *_ = recording.parts
    for name, part in recording.parts:
        if part.ndim != 2 or part.shape[1] == 0 or part.dtype != np.float32:
            yield Finding(
                "other arrays",
                f"{name}: expected float32 features of shape [snippets, channels], "
                f"got {part.dtype} of shape {list(part.shape)}",
            )
        elif len(part) != len(head):
            yield Finding(
                "streams of different lengths", f"{name}: expected {len(head)} snippets as in {first}, got {len(part)}"
            )
        elif len(part) == 0:
            yield Finding("empty recordings", f"{name}: expected at least one snippet, found an empty recording")
        elif (place := _first_not_finite(part)) is not None:
            yield Finding(
                "values that are not finite",
                f"{name}: expected finite features, got {part[place]} at snippet {place[0]}, channel {place[1]}",
            )


def _first_not_finite(part: NDArray[np.float32]) -> tuple[int, int] | None:
    for number, block in enumerate(blocks(part)):
        finite = np.isfinite(block)
        if not finite.all():
            snippet, channel = np.argwhere(~finite)[0].tolist()
            return number * BLOCK + snippet, channel
    return None


def label_faults(recording: Recording, classes: Sequence[str], dataset_name: str) -> Iterator[Finding]:
    """What is wrong with the labels of a recording.

    A point is inside a recording up to one stride after the last snippet's frames, as the frames that filled no snippet
    are part of the recording too; `Grid.snippet_of` gives it to the last snippet. Where there are no snippets at all,
    points are not looked at.
    """
    labels = [instance.label for instance in recording.instances] + [point.label for point in recording.points]
    for label in dict.fromkeys(labels):
        if label not in classes:
            yield Finding(
                "labels of no class",
                f"{recording.id}: expected a label among the {len(classes)} classes of {dataset_name}, "
                f"got {quote(label)}",
            )
    for instance in recording.instances:
        if not -math.inf < instance.start_sec < instance.end_sec < math.inf:
            yield Finding(
                "instances without a length",
                f"{recording.id}: expected an instance to end after its start, "
                f"got [{instance.start_sec:g}, {instance.end_sec:g}) s of {instance.label}",
            )
    grid = recording.grid
    last_sec = (len(recording.features) * grid.stride + grid.window) / grid.fps
    for point in recording.points:
        if len(recording.features) and not 0 <= point.time_sec <= last_sec:
            yield Finding(
                "points outside the recording",
                f"{recording.id}: expected points inside the recording, which lasts {recording.duration_sec:.2f} s, "
                f"got one of {point.label} at {point.time_sec:.2f} s",
            )


def training_faults(dataset: Dataset, tested: str | None) -> Iterator[Finding]:
    """What a whole run lacks in a data set.

    Args:
        dataset: recordings with the points that are to be trained on.
        tested: the subset that is to be detected in; None where none is. Where all recordings are there to train on,
            it is no fault that there is no such subset.
    """
    for name in ("train", None if dataset.only_trains else tested):
        if name is not None:
            try:
                dataset.subset(name)
            except InputError as error:
                yield Finding("missing subsets", str(error))
    if not any(recording.points for recording in dataset.recordings if recording.subset == "train"):
        yield Finding(
            "no points",
            f"{dataset.name}: expected point labels for the training recordings, found none: "
            "data.points=gaussian draws them from the instances",
        )
