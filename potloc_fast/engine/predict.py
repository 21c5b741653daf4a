"""Detection in recordings that a run never saw."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from potloc_fast.config.schema import Device
from potloc_fast.data import Recording
from potloc_fast.data.inputs import inputs_of, makes_snippets
from potloc_fast.data.listing import Source
from potloc_fast.data.signals.readers import FORMATS as RAW
from potloc_fast.data.sources import FORMATS, HDF5_SUFFIXES
from potloc_fast.detector import Detector
from potloc_fast.engine.distributed import joined
from potloc_fast.engine.run import Run
from potloc_fast.errors import InputError, quote
from potloc_fast.evaluation import Segments


def predict(
    run: Run | str | Path,
    recordings: Sequence[Recording | str | Path] | Mapping[str, NDArray[np.floating] | Tensor],
    *,
    snippet_sec: float | None = None,
    device: Device | None = None,
    trusted: bool = False,
) -> Segments:
    """Detect actions with the POTLoc model of a run.

    Of several processes that torchrun started each detects in a share of the recordings, and all return all.

    Args:
        run: a run, or its folder.
        recordings: recordings; or paths of files with features `[T, F]` in one of the formats that training reads,
            each named by its stem (HDF5: by its datasets), of raw files where the run was trained on such; or a mapping
            from names to features.
        snippet_sec: how long a snippet of files and mappings lasts, in seconds; by default as in training, if it was
            the same in all recordings there.
        device: "auto", "cpu" or "cuda"; by default as the run's configuration says.
        trusted: whether pickled features may be loaded, which can run any code.

    Returns:
        Detections in seconds. `.to_results()` gives them in the ActivityNet form.

    Raises:
        InputError: the run has no trained model, features can't be used, it is not known how long a snippet lasts, or
            there is no such device.
    """
    detector = Detector.load(run, device=device, snippet_sec=snippet_sec)
    with joined(detector.device):
        return detector.segments(read_recordings(detector, recordings, trusted), alone=False)


def read_recordings(
    detector: Detector,
    recordings: Sequence[Recording | str | Path] | Mapping[str, NDArray[np.floating] | Tensor],
    trusted: bool = False,
) -> tuple[Recording, ...]:
    """Take what `predict` takes as checked recordings."""
    found: dict[str, Recording] = {}  # by what names each in an error: the path where there is one
    if isinstance(recordings, Mapping):
        found = {name: detector.recording(name, values) for name, values in recordings.items()}
    else:
        for item in recordings:
            if isinstance(item, Recording):
                detector.check(item)
                found[item.id] = item
        paths = [Path(item) for item in recordings if not isinstance(item, Recording)]
        for name, source in sources_in(detector, paths, trusted):
            found[str(source.path)] = detector.recording(name, source.load(), str(source.path))
            for note in getattr(source, "notes", ()):
                print(note, file=sys.stderr)
    if not found:
        raise InputError(f"{detector.source}: expected at least one recording, found none")
    names = Counter(recording.id for recording in found.values())
    for place, recording in found.items():
        if names[recording.id] > 1:
            raise InputError(
                f"{place}: expected files of different names, got several recordings called {quote(recording.id)}"
            )
    return tuple(found.values())


def sources_in(detector: Detector, paths: Sequence[Path], trusted: bool = False) -> list[tuple[str, Source]]:
    """The recordings in files, of the kind that a run detects in: the name of each, and what gives its snippets.

    Raises:
        InputError: a format is not known, or a file can't be opened.
    """
    if paths:
        detector.windows()  # beside which snippet_sec is refused
    return inputs_of(detector.config.data, paths, trusted=trusted)


def is_input(detector: Detector, path: Path) -> bool:
    """Whether the name of a file says that it is of the kind that a run detects in."""
    known = RAW if makes_snippets(detector.config.data) else (*FORMATS, *HDF5_SUFFIXES)
    return path.suffix.lower() in known
