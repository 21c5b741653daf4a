"""What a layout finds on disk, before any features are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from potloc_fast.data.grid import Grid
from potloc_fast.data.recording import (
    Dataset,
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
            InputError: they can't be used, or their parts differ in length.
        """
        parts = [source.load() for source in self.sources]
        for source, part in zip(self.sources, parts, strict=True):
            if len(part) != len(parts[0]):
                raise InputError(
                    f"{source.path}: expected {len(parts[0])} snippets as in {self.sources[0].path}, got {len(part)}"
                )
        features = parts[0] if len(parts) == 1 else JoinedFeatures(*parts)
        grid = self.grid
        if grid is None:
            if self.duration_sec is None or not self.duration_sec > 0:
                raise InputError(
                    f"{self.id}: expected its duration in seconds, which resampled features need, "
                    f"got {self.duration_sec}"
                )
            grid = Grid(fps=max(len(features), 1) / self.duration_sec, window=1, stride=1)
        return Recording(self.id, features, grid, self.subset, self.instances, self.points)


@dataclass(frozen=True, eq=False)
class Listing:
    """A data set as its annotations list it.

    Attributes:
        name: of the data set.
        classes: names of the classes, in the order of a model's outputs.
        entries: the recordings.
        notes: a sentence for each thing that a user should know about how it was read.
    """

    name: str
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    def open(self) -> Dataset:
        """Open every recording and check all of it.

        Raises:
            InputError: the first fault found.
        """
        recordings: list[Recording] = []
        widths: list[int] = []
        for entry in self.entries:
            recording = entry.open()
            features = recording.features
            parts = features.parts if isinstance(features, JoinedFeatures) else (features,)
            widths = widths or [part.shape[1] for part in parts]
            for source, part, width in zip(entry.sources, parts, widths, strict=True):
                if part.shape[1] != width:
                    raise InputError(
                        f"{source.path}: expected width {width} as in the other recordings, got {part.shape[1]}"
                    )
            recordings.append(recording)
        return validate(Dataset(self.name, self.classes, tuple(recordings), self.notes))
