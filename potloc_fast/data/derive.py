"""Values that must suit the data, from the training recordings and their points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from potloc_fast.config import Config, parse_config
from potloc_fast.config.load import merge, nested
from potloc_fast.config.schema import DerivedKey
from potloc_fast.data.recording import Recording

STEPS = 660  # of training: what HAPT's recordings needed
SNIPPETS = 3072  # in a batch
LENGTHS = (768, 2304)  # least and largest crop
POINTS = 24  # that a crop should hold
WARM_UP = 1 / 15  # of the epochs


def derive(config: Config, recordings: Sequence[Recording]) -> tuple[Config, list[str]]:
    """Replace the keys that `config.auto` names.

    Args:
        config: a configuration.
        recordings: those to train on, with their points.

    Returns:
        The configuration with every key resolved and nothing left in `auto`, and for each key a line that says what was
        chosen and why.
    """
    lengths = np.array([len(recording.features) for recording in recordings])
    gaps = np.concatenate([np.diff(np.sort(_snippets(recording))) for recording in recordings])
    gap = float(np.median(gaps[gaps > 0])) if (gaps > 0).any() else float(np.median(lengths))
    rules: dict[DerivedKey, Callable[[Config], tuple[Any, str]]] = {
        "train.length": lambda _: _length(lengths, gap),
        "train.batch_size": lambda now: _batch_size(lengths, now.train.length),
        "train.epochs": lambda now: _epochs(len(recordings), now.train.batch_size),
        "train.warmup_epochs": lambda now: (round(now.train.epochs * WARM_UP, 2), "a fifteenth of the epochs"),
        "loss.topk_ratio": lambda _: _topk_ratio(lengths, gap),
    }
    wanted, reasons = config.auto, []
    config = config.model_copy(update={"auto": ()})
    for key, rule in rules.items():
        if key in wanted:
            value, reason = rule(config)
            config = parse_config(merge(config.model_dump(mode="json"), nested(key, value)), key)
            reasons.append(f"{key}={value}: {reason}")
    return config, reasons


def _snippets(recording: Recording) -> np.ndarray[Any, np.dtype[np.int64]]:
    times = [point.time_sec for point in recording.points]
    return recording.grid.snippet_of(np.array(times, dtype=np.float64), len(recording.features))


def _length(lengths: np.ndarray[Any, Any], gap: float) -> tuple[int, str]:
    longest = int(lengths.max())
    wanted = int(min(max(POINTS * gap, LENGTHS[0]), LENGTHS[1]))
    if longest <= wanted:
        return longest, "the longest recording"
    return wanted, f"snippets of a crop, as points are {gap:g} snippets apart and the longest recording has {longest}"


def _batch_size(lengths: np.ndarray[Any, Any], length: int | None) -> tuple[int, str]:
    usual = float(np.median(np.minimum(lengths, length or np.inf)))
    size = int(min(max(round(SNIPPETS / usual), 4), 32))
    return size, f"crops of usually {usual:g} snippets"


def _epochs(recordings: int, batch_size: int) -> tuple[int, str]:
    steps = math.ceil(recordings / batch_size)
    epochs = math.ceil(STEPS / steps)
    return epochs, f"{epochs * steps} steps, {steps} for each time that all {recordings} recordings are seen"


def _topk_ratio(lengths: np.ndarray[Any, Any], gap: float) -> tuple[float, str]:
    pooled = max(1.0, gap / 4)
    ratio = round(max(8.0, float(np.median(lengths)) / pooled), 1)
    return ratio, f"the best {pooled:g} snippets of a usual recording, a quarter of the way between two points"
