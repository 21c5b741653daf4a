"""Detection in recordings that a run never saw."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potloc_fast.config.schema import Device
from potloc_fast.data import Dataset, Grid, Recording, validate
from potloc_fast.data.dataset import whole
from potloc_fast.data.grid import FPS_RANGE
from potloc_fast.data.inputs import inputs_of, makes_snippets
from potloc_fast.engine.detect import detect
from potloc_fast.engine.device import autocast, float32_products, pick_device
from potloc_fast.engine.distributed import joined
from potloc_fast.engine.run import Model, Run
from potloc_fast.errors import InputError, quote
from potloc_fast.evaluation import Segments
from potloc_fast.names import normalize


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
    run = run if isinstance(run, Run) else Run.open(run)
    config = run.config
    with _trained(run, device) as model:
        found = read_recordings(run, recordings, snippet_sec, trusted)
        return detect(model, found, run.classes, config.detect, config.loss.topk_ratio, config.engine.precision)


@contextmanager
def _trained(run: Run, device: Device | None) -> Iterator[Model]:
    """The POTLoc model of a run on its device."""
    engine = run.config.engine if device is None else run.config.engine.model_copy(update={"device": device})
    model = run.load("potloc")
    chosen = pick_device(engine)
    with joined(chosen), float32_products(engine.precision):
        yield model.to(chosen)


def read_recordings(
    run: Run,
    recordings: Sequence[Recording | str | Path] | Mapping[str, NDArray[np.floating] | Tensor],
    snippet_sec: float | None = None,
    trusted: bool = False,
) -> tuple[Recording, ...]:
    """Take what `predict` takes as checked recordings."""
    if snippet_sec is not None and not 1 / FPS_RANGE[1] <= snippet_sec <= 1 / FPS_RANGE[0]:
        raise InputError(
            f"snippet_sec: expected {1 / FPS_RANGE[1]:g} to {1 / FPS_RANGE[0]:g} seconds, got {snippet_sec:g}"
        )
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
            found[name] = Recording(normalize(name), np.asarray(values, dtype=np.float32), grid(name), "test")
    else:
        found = {item.id: item for item in recordings if isinstance(item, Recording)}
        paths = [Path(item) for item in recordings if not isinstance(item, Recording)]
        if paths and snippet_sec is not None and makes_snippets(run.config.data):
            raise InputError(
                f"snippet_sec: expected none, as the run makes snippets of {run.config.data.windows.stride_sec:g} s "
                f"itself, got {snippet_sec:g}"
            )
        for name, source in inputs_of(run.config.data, paths, trusted=trusted):
            found[str(source.path)] = Recording(name, source.load(), grid(str(source.path)), "test")
            for note in getattr(source, "notes", ()):
                print(note, file=sys.stderr)
    for place, recording in found.items():
        width = recording.features.shape[-1]
        if width != run.features:
            raise InputError(f"{place}: expected width {run.features}, which the model was trained on, got {width}")
    validate(Dataset(str(run.folder), run.classes, tuple(replace(item, id=name) for name, item in found.items())))
    names = Counter(recording.id for recording in found.values())
    for place, recording in found.items():
        if names[recording.id] > 1:
            raise InputError(
                f"{place}: expected files of different names, got several recordings called {quote(recording.id)}"
            )
    return tuple(found.values())


@torch.no_grad()
def score_curves(
    run: Run, recordings: Sequence[Recording], device: Device | None = None
) -> Iterator[NDArray[np.float32]]:
    """The fused class probabilities `[T, C]` that the POTLoc model gives the snippets of each recording at level 0."""
    with _trained(run, device) as model:
        for recording in recordings:
            batch = whole([recording]).to(next(model.parameters()).device)
            with autocast(batch.features.device, run.config.engine.precision):
                logits, _ = model(batch.features, batch.mask).levels()[0]
            p = logits[0].float().sigmoid()
            yield (p[:, :-1] * (1 - p[:, -1:])).cpu().numpy()
