"""Curves of a recording that a report draws: its features, and what the model says of every snippet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from potloc_fast.data import Recording
from potloc_fast.data.dataset import whole
from potloc_fast.data.recording import blocks
from potloc_fast.engine.device import autocast, float32_products, pick_device
from potloc_fast.engine.run import Run
from potloc_fast.report.pack import COARSER, levels_of_detail, pack, quantize

CHANNELS = 3  # of the features, those that vary most
CLASSES = 8  # whose scores are kept of a recording
LEAST = 64  # values of a curve that isn't made coarser to save space


@dataclass(frozen=True)
class Curve:
    """A curve over a recording.

    Attributes:
        kind: "energy" (root mean square of the standardized features), "channel", or "score" (of a class).
        number: of the channel or the class.
        level: of the pyramid that gave the score.
        stride: snippets from one value to the next.
        values: `[T / stride]`.
    """

    kind: Literal["energy", "channel", "score"]
    number: int
    level: int
    stride: int
    values: NDArray[np.float32]

    def coarser(self) -> Curve:
        """The same curve with a quarter of its values, the largest of each four."""
        padded = np.pad(self.values, (0, -len(self.values) % COARSER), mode="edge")
        values = padded.reshape(-1, COARSER).max(axis=1)
        return Curve(self.kind, self.number, self.level, COARSER * self.stride, values)


def feature_curves(recording: Recording, mean: NDArray[np.float64], std: NDArray[np.float64]) -> list[Curve]:
    """The energy of a recording's features, and the channels of it that vary most.

    Args:
        recording: with features `[T, F]`.
        mean: `[F]`, of each channel over the data set.
        std: `[F]`, likewise.
    """
    energy, squares = [], np.zeros(len(mean))
    for block in blocks(recording.features):
        scaled = (np.asarray(block, np.float64) - mean) / std
        energy.append(np.sqrt((scaled**2).mean(axis=1)))
        squares += (scaled**2).sum(axis=0)
    chosen = np.sort(np.argsort(-squares, kind="stable")[:CHANNELS])
    channels = np.concatenate([np.asarray(block)[:, chosen] for block in blocks(recording.features)])
    curves = [Curve("energy", 0, 0, 1, np.concatenate(energy).astype(np.float32))]
    return curves + [Curve("channel", int(c), 0, 1, channels[:, i]) for i, c in enumerate(chosen)]


@torch.no_grad()
def score_levels(run: Run, recordings: Sequence[Recording]) -> Iterator[list[NDArray[np.float32]]]:
    """The fused class probabilities of the POTLoc model at every level, `[ceil(T / 2**l), C]`, of each recording."""
    device, precision = pick_device(run.config.engine), run.config.engine.precision
    with float32_products(precision):
        model = run.load("potloc").to(device)
        for recording in recordings:
            batch = whole([recording]).to(device)
            with autocast(device, precision):
                levels = model(batch.features, batch.mask).levels()
            p = [logits[0].float().sigmoid() for logits, _ in levels]
            yield [(own[:, :-1] * (1 - own[:, -1:])).cpu().numpy() for own in p]


def score_curves(levels: Sequence[NDArray[np.float32]], wanted: Sequence[int]) -> list[Curve]:
    """Curves of the classes that a recording is known to have, then of those that score best, at every level."""
    best = np.argsort(-levels[0].max(axis=0), kind="stable").tolist()
    shown = list(dict.fromkeys([*wanted, *best]))[:CLASSES]
    return [
        Curve("score", c, level, 2**level, np.ascontiguousarray(values[:, c]))
        for level, values in enumerate(levels)
        for c in sorted(shown)
    ]


def pack_curves(curves: Sequence[Curve], room: int) -> str:
    """Pack curves into at most `room` characters: first channels and coarse levels are left out, then detail."""
    kept = list(curves)
    packed = _pack(kept)
    for unneeded in ("channel", "score"):
        if len(packed) > room:
            kept = [curve for curve in kept if curve.kind != unneeded or (unneeded == "score" and not curve.level)]
            packed = _pack(kept)
    while len(packed) > room and any(len(curve.values) > LEAST for curve in kept):
        kept = [curve.coarser() if len(curve.values) > LEAST else curve for curve in kept]
        packed = _pack(kept)
    return packed


def _pack(curves: Sequence[Curve]) -> str:
    facts: list[dict[str, Any]] = []
    arrays = {}
    for number, curve in enumerate(curves):
        low, high = (0.0, 1.0) if curve.kind == "score" else (float(curve.values.min()), float(curve.values.max()))
        about = {"kind": curve.kind, "number": curve.number, "level": curve.level, "stride": curve.stride}
        facts.append({**about, "low": low, "high": high, "length": len(curve.values)})
        arrays[str(number)] = levels_of_detail(quantize(curve.values, low, high))
    return pack({"curves": facts}, arrays)
