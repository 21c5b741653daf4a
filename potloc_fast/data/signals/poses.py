"""Tracked poses, as DeepLabCut and SLEAP write them, as channels: where points are in the body, how fast, how sure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potloc_fast.data.signals.signal import Signal, bridge
from potloc_fast.errors import InputError, quote

SURE = 0.6  # the confidence below which a point is taken to be missing, as in DeepLabCut's plots
HEADS = ("scorer", "individuals", "bodyparts", "coords")  # first cells of DeepLabCut's header rows
TABLE = "values_block_0"  # what pandas calls the numbers of a table in HDF5


def is_deeplabcut(heads: Sequence[Sequence[str]]) -> bool:
    """Whether the first rows of a table are those of DeepLabCut."""
    firsts = [row[0].strip() for row in heads[: len(HEADS)] if row]
    return "bodyparts" in firsts and "coords" in firsts


def header_rows(heads: Sequence[Sequence[str]]) -> int:
    """The number of DeepLabCut's header rows."""
    return next(number for number, row in enumerate(heads) if row and row[0].strip() == "coords") + 1


def deeplabcut(path: Path, heads: Sequence[Sequence[str]], table: NDArray[np.float64]) -> Signal:
    """The poses in a CSV of DeepLabCut, one animal or several.

    Args:
        path: the file.
        heads: its first rows.
        table: its numbers without the first column, `[frames, 3 * points]`.

    Raises:
        InputError: the columns are not x, y and likelihood in turns.
    """
    rows = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in heads[: header_rows(heads)]}
    coords, parts = rows["coords"], rows["bodyparts"]
    who = rows.get("individuals", [""] * len(parts))
    if coords != ["x", "y", "likelihood"] * (len(coords) // 3) or not coords:
        raise InputError(
            f"{path}: expected the columns x, y and likelihood for each body part, got {quote(coords[:4])}"
        )
    if not len(coords) == len(parts) == len(who) == table.shape[1]:
        counts = [len(who), len(parts), len(coords), table.shape[1]]
        raise InputError(f"{path}: expected as many cells in each of the first lines, got {counts}")
    return _poses(path, table.reshape(len(table), -1, 3), who[::3], parts[::3])


def deeplabcut_hdf5(path: Path, file: Any) -> Signal | None:
    """The poses in an HDF5 file of DeepLabCut, or None if it is none.

    The names of the body parts are pickled there, which could run any code: points are numbered instead.
    """
    for group in file.values():
        table = group.get("table") if hasattr(group, "get") else None
        if table is not None and TABLE in (getattr(table.dtype, "names", None) or ()):
            values = np.asarray(table[TABLE], dtype=np.float64)
            if values.ndim != 2 or values.shape[1] % 3:
                raise InputError(
                    f"{path}: expected x, y and likelihood for each body part, got {list(values.shape)} numbers"
                )
            points = values.shape[1] // 3
            return _poses(path, values.reshape(len(values), points, 3), [""] * points, list(map(str, range(points))))
    return None


def is_sleap(file: Any) -> bool:
    """Whether an HDF5 file is an analysis file of SLEAP."""
    return "tracks" in file and "node_names" in file and file["tracks"].ndim == 4


def sleap(path: Path, file: Any) -> Signal:
    """The poses in an analysis file of SLEAP: `tracks` [tracks, 2, nodes, frames], and `point_scores` where there are.

    Points are numbered.

    Raises:
        InputError: the arrays don't belong together.
    """
    tracks = np.asarray(file["tracks"], dtype=np.float64)
    animals, axes, nodes, frames = tracks.shape
    scores = np.where(np.isnan(tracks[:, 0]), 0.0, 1.0)
    if "point_scores" in file:
        scores = np.nan_to_num(np.asarray(file["point_scores"], dtype=np.float64))
    names = list(map(str, range(nodes)))  # a damaged file's texts may ask the library for any amount of memory
    if axes != 2 or scores.shape != (animals, nodes, frames) or file["node_names"].shape != (nodes,):
        raise InputError(
            f"{path}: expected tracks [tracks, 2, nodes, frames] with as many node_names and point_scores, got shapes "
            f"{list(tracks.shape)}, {list(file['node_names'].shape)} and {list(scores.shape)}"
        )
    points = np.concatenate([tracks, scores[:, None]], axis=1)  # [animals, 3, nodes, frames]
    who = [f"{animal}" for animal in range(animals) for _ in names]
    # Scores of SLEAP are heights of peaks: what is not there is NaN already, so none is too low.
    return _poses(path, points.transpose(3, 0, 2, 1).reshape(frames, -1, 3), who, names * animals, sure=0.0)


def _poses(
    path: Path, points: NDArray[np.float64], who: Sequence[str], parts: Sequence[str], sure: float = SURE
) -> Signal:
    """Channels of points `[frames, points, 3]` of x, y and confidence.

    For each individual how fast its middle moves, and for each of its points x and y from the middle, speed and
    confidence. Lengths are in sizes of the body (the median distance of points from the middle), speeds are those a
    frame. A point that is missing is put on a straight line between where it was seen before and after; one that is
    never seen stays in the middle.
    """
    confidence = np.nan_to_num(points[:, :, 2])
    places = np.where((confidence >= sure)[:, :, None], points[:, :, :2], np.nan)
    places = bridge(places.reshape(len(places), -1)).reshape(places.shape)
    channels: list[NDArray[np.float64]] = []
    names: list[str] = []
    for individual in dict.fromkeys(who):
        own = [index for index, name in enumerate(who) if name == individual]
        seen = [index for index in own if not np.isnan(places[0, index, 0])]
        middle = places[:, seen].mean(axis=1) if seen else np.zeros((len(places), 2))
        offsets = np.nan_to_num(places[:, own] - middle[:, None])
        distances = np.hypot(offsets[..., 0], offsets[..., 1])
        size = float(np.median(distances[distances > 0])) if (distances > 0).any() else 1.0
        prefix = f"{individual} " if individual else ""
        channels.append(_speed(middle) / size)
        names.append(f"{prefix}speed")
        for place, index in enumerate(own):
            speed = _speed(np.nan_to_num(places[:, index])) / size
            channels += [offsets[:, place, 0] / size, offsets[:, place, 1] / size, speed, confidence[:, index]]
            names += [f"{prefix}{parts[index]} {what}" for what in ("x", "y", "speed", "confidence")]
    return Signal(path, tuple(names), np.stack(channels, axis=1, dtype=np.float32, casting="same_kind"))


def _speed(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far a point moves in a frame, `[frames]` of `[frames, 2]`: the mean of the steps before and after."""
    if len(places) < 2:
        return np.zeros(len(places))
    moved = np.gradient(places, axis=0)
    return np.hypot(moved[:, 0], moved[:, 1])
