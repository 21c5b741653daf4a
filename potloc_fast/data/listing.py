"""What a layout finds on disk, before any features are read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from potloc_fast.data.grid import Grid
from potloc_fast.data.recording import (
    Dataset,
    Finding,
    Instance,
    JoinedFeatures,
    Point,
    Recording,
    load_features,
    validate,
)
from potloc_fast.errors import InputError


class Source(Protocol):
    """Where the features of a recording, or some of their channels, lie.

    Attributes:
        path: names it in errors; the file where it is one.
    """

    @property
    def path(self) -> Path:
        """The file, or what it is called in one."""

    def load(self) -> NDArray[np.float32]:
        """Read, or memory-map, features `[T, F]`.

        Raises:
            InputError: there are none, or they can't be used.
        """


@dataclass(frozen=True)
class NpyFile:
    """Features in a .npy file of their own."""

    path: Path

    def load(self) -> NDArray[np.float32]:
        """Memory-map the features, see `load_features`."""
        return load_features(self.path)


@dataclass(frozen=True, eq=False)
class Entry:
    """A recording as it is listed, with its labels.

    Attributes:
        id: its name, unique in the data set.
        subset: "train" or "test".
        sources: where its features are, joined on channels where there are several.
        grid: where snippets lie in time; None where they divide `duration_sec` evenly, as resampled features do.
        instances: the ground truth.
        points: the point labels.
        duration_sec: the length of the recording in seconds, where it is known.
    """

    id: str
    subset: str
    sources: tuple[Source, ...]
    grid: Grid | None
    instances: tuple[Instance, ...] = ()
    points: tuple[Point, ...] = ()
    duration_sec: float | None = None

    def open(self) -> Recording:
        """Read, or memory-map, the features.

        Raises:
            InputError: they can't be used.
        """
        return self.join([source.load() for source in self.sources])

    def join(self, parts: Sequence[NDArray[np.float32]]) -> Recording:
        """Make the recording from what its sources gave.

        Raises:
            InputError: they are transposed; or they are resampled, and the duration is not known.
        """
        features = parts[0] if len(parts) == 1 else JoinedFeatures(*parts)
        grid = self.grid
        if grid is not None and self.duration_sec is not None:
            due, shape = grid.to_grid(self.duration_sec), parts[0].shape
            if abs(shape[1] - due) < 0.02 * due + 2 < abs(shape[0] - due):
                raise InputError(
                    f"{self.sources[0].path}: expected an array [snippets, channels] of about {due:.0f} snippets, "
                    f"got shape {list(shape)}, which looks transposed"
                )
        if grid is None:
            if self.duration_sec is None or not 0 < self.duration_sec < math.inf:
                raise InputError(
                    f"{self.id}: expected its duration in seconds, which resampled features need, "
                    f"got {self.duration_sec}"
                )
            try:
                grid = Grid(fps=max(len(features), 1) / self.duration_sec, window=1, stride=1)
            except ValueError as error:
                raise InputError(f"{self.id}: {error}, from a duration of {self.duration_sec:g} s") from None
        files = tuple(source.path for source in self.sources)
        return Recording(self.id, features, grid, self.subset, self.instances, self.points, files)


@dataclass(frozen=True, eq=False)
class Listing:
    """A data set as its annotations list it.

    Attributes:
        name: of the data set.
        classes: names of the classes, in the order of a model's outputs.
        entries: the recordings.
        notes: a sentence for each thing that a user should know about how it was read.
        taken_out: what of the labels is not used, see `Tidy`.
    """

    name: str
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()
    taken_out: tuple[Finding, ...] = ()

    def open(self) -> Dataset:
        """Open every recording and check all of it.

        Raises:
            InputError: the first fault found.
        """
        recordings = tuple(entry.open() for entry in self.entries)
        notes = (*self.notes, *(finding.message for finding in self.taken_out), *load_notes(self.entries))
        return validate(Dataset(self.name, self.classes, recordings, notes))


def load_notes(entries: Iterable[Entry]) -> tuple[str, ...]:
    """What the sources of recordings had to say when they were loaded: those of signals tell of gaps."""
    return tuple(note for entry in entries for source in entry.sources for note in getattr(source, "notes", ()))


def collect_classes(entries: Iterable[Entry]) -> tuple[str, ...]:
    """The classes of a data set, sorted.

    They are the labels of the instances, and of the points of recordings without instances. Where there are both,
    a label that points alone have is a mistake, which `validate` reports.
    """
    return tuple(sorted({label.label for entry in entries for label in entry.instances or entry.points}))
