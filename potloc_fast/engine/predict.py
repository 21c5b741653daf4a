"""Detection in recordings that a run never saw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potloc_fast.data import Dataset, Grid, Recording, load_features, validate
from potloc_fast.data.dataset import whole
from potloc_fast.engine.detect import detect
from potloc_fast.engine.run import Run
from potloc_fast.errors import InputError
from potloc_fast.evaluation import Segments


def predict(
    run: Run | str | Path,
    recordings: Sequence[Recording | str | Path] | Mapping[str, NDArray[np.floating] | Tensor],
    *,
    snippet_sec: float | None = None,
) -> Segments:
    """Detect actions with the POTLoc model of a run.

    Args:
        run: a run, or its folder.
        recordings: recordings; or paths of .npy files with features `[T, F]`, each named by its stem; or a mapping
            from names to features.
        snippet_sec: how long a snippet of files and mappings lasts, in seconds; by default as in training, if it was
            the same in all recordings there.

    Returns:
        Detections in seconds. `.to_results()` gives them in the ActivityNet form.

    Raises:
        InputError: the run has no trained model, features can't be used, or it is not known how long a snippet lasts.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    model = run.load("potloc")
    found = read_recordings(run, recordings, snippet_sec)
    return detect(model, found, run.classes, run.config.detect, run.config.loss.topk_ratio)


def read_recordings(
    run: Run,
    recordings: Sequence[Recording | str | Path] | Mapping[str, NDArray[np.floating] | Tensor],
    snippet_sec: float | None = None,
) -> tuple[Recording, ...]:
    """Take what `predict` takes as checked recordings."""
    if snippet_sec is not None and not 0 < snippet_sec < math.inf:
        raise InputError(f"snippet_sec: expected seconds over 0, got {snippet_sec:g}")
    known = run.grid if snippet_sec is None else Grid(fps=1 / snippet_sec, window=1, stride=1)

    def grid(name: str) -> Grid:
        if known is None:
            raise InputError(
                f"{name}: expected how long a snippet lasts (--snippet-sec), which differs between the recordings "
                f"that {run.folder} was trained on, got none"
            )
        return known

    found: dict[str, Recording] = {}  # by what names each in an error: the path where there is one
    if isinstance(recordings, Mapping):
        for name, values in recordings.items():
            found[name] = Recording(name, np.asarray(values, dtype=np.float32), grid(name), "test")
    else:
        for item in recordings:
            if isinstance(item, Recording):
                found[item.id] = item
            else:
                found[str(item)] = Recording(Path(item).stem, load_features(item), grid(str(item)), "test")
    for source, recording in found.items():
        width = recording.features.shape[-1]
        if width != run.features:
            raise InputError(f"{source}: expected width {run.features}, which the model was trained on, got {width}")
    validate(Dataset(str(run.folder), run.classes, tuple(replace(item, id=name) for name, item in found.items())))
    names = [recording.id for recording in found.values()]
    for source, recording in found.items():
        if names.count(recording.id) > 1:
            raise InputError(
                f"{source}: expected files of different names, got several recordings called {recording.id}"
            )
    return tuple(found.values())


@torch.no_grad()
def score_curves(run: Run, recording: Recording) -> NDArray[np.float32]:
    """The fused class probabilities `[T, C]` that the POTLoc model gives the snippets of a recording at level 0."""
    batch = whole([recording])
    logits, _ = run.load("potloc")(batch.features, batch.mask).levels()[0]
    p = logits[0].sigmoid()
    curves: NDArray[np.float32] = (p[:, :-1] * (1 - p[:, -1:])).numpy()
    return curves
