"""Recordings made up from a seed, hard enough that a model has to learn what the method is about."""

from __future__ import annotations

import numpy as np

from potloc_fast.data.grid import Grid
from potloc_fast.data.recording import Dataset, Instance, Recording, validate

GRID = Grid(fps=25, window=16, stride=16)
NOISE = 1.0


def load_synthetic(
    *,
    recordings: int = 24,
    classes: int = 5,
    length: int = 400,
    width: int = 32,
    seed: int = 0,
) -> Dataset:
    """Make recordings of actions in a drifting background, two thirds of them for training.

    Each class has a direction in feature space and a duration, from 4 snippets to a tenth of the recording. Before and
    after an action, features are a blend of it and the background (its context), and one time in seven the blend comes
    without the action, so neither boundaries nor presence follow from a threshold on single snippets.

    Args:
        recordings: how many, at least 2.
        classes: number of classes.
        length: snippets in a recording, at least 50.
        width: number of channels.
        seed: the same seed gives the same data set.

    Returns:
        The data set "synthetic", without points.
    """
    if recordings < 2 or classes < 1 or length < 50 or width < 1:
        raise ValueError(
            "expected recordings >= 2, classes >= 1, length >= 50 and width >= 1, "
            f"got {recordings}, {classes}, {length} and {width}"
        )
    rng = np.random.default_rng(seed)
    prototypes = rng.standard_normal((classes, width))
    durations = np.geomspace(4, length / 10, classes)
    names = tuple(f"action_{index}" for index in range(classes))
    edges = np.arange(length + 1)
    made = []
    for index in range(recordings):
        # A few slow waves through feature space, one to eight periods in a recording.
        waves = np.sin(2 * np.pi * (edges[:-1, None] * rng.uniform(1, 8, 4) / length + rng.uniform(size=4)))
        features = waves @ rng.standard_normal((4, width)) / 2
        instances = []
        free = 0.0  # where the next context may begin
        while True:
            kind = rng.integers(classes)
            duration = durations[kind] * rng.uniform(0.7, 1.3)
            context = rng.uniform(0.2, 0.5) * duration
            start = free + rng.uniform(2, length / 20) + context
            end = start + duration
            if end + context > length:
                break
            shown = rng.uniform() < 0.85
            # The differences of clipped edges: how much of each cell a segment covers.
            weight = 0.5 * np.diff(np.clip(edges, start - context, end + context))[:, None]
            if shown:
                weight = np.maximum(weight, np.diff(np.clip(edges, start, end))[:, None])
                instances.append(Instance(names[kind], float(GRID.to_sec(start)), float(GRID.to_sec(end))))
            features = (1 - weight) * features + weight * prototypes[kind]
            free = end + context
        features += NOISE * rng.standard_normal(features.shape)
        name = f"synthetic_{index:03}"
        made.append(
            Recording(
                id=name,
                features=features.astype(np.float32),
                grid=GRID,
                subset="train" if index < recordings * 2 // 3 else "test",
                instances=tuple(instances),
            )
        )
    return validate(Dataset("synthetic", names, tuple(made)))
