"""Point labels drawn from instances, for data sets that have none and for trying out where points may lie."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias, get_args

import numpy as np

from potloc_fast.config.schema import PointDistribution
from potloc_fast.data.recording import Dataset, Instance, Point

Distribution: TypeAlias = PointDistribution


def draw_points(dataset: Dataset, distribution: Distribution, *, seed: int) -> Dataset:
    """Give every recording points drawn by `sample_points` in place of those that it has."""
    recordings = (
        replace(item, points=sample_points(item.instances, distribution, seed=seed, recording_id=item.id))
        for item in dataset.recordings
    )
    return replace(dataset, recordings=tuple(recordings))


def thin_points(dataset: Dataset, share: float, *, seed: int) -> Dataset:
    """Keep a random share of the points of every recording, rounded up.

    The points of a smaller share are among those of a larger one.
    """
    if share == 1:
        return dataset
    recordings = []
    for item in dataset.recordings:
        ranks = np.random.default_rng((seed, 1, zlib.crc32(item.id.encode()))).permutation(len(item.points))
        count = math.ceil(share * len(item.points))
        kept = tuple(point for point, rank in zip(item.points, ranks, strict=True) if rank < count)
        recordings.append(replace(item, points=kept))
    return replace(dataset, recordings=tuple(recordings))


def sample_points(
    instances: Sequence[Instance], distribution: Distribution, *, seed: int, recording_id: str
) -> tuple[Point, ...]:
    """Draw one point inside each instance.

    Args:
        instances: the instances of one recording.
        distribution: "gaussian" is normal around the centre with a standard deviation of an eighth of the length,
            "uniform" takes any moment, "centre", "start" and "end" those moments themselves. "human" is a rough model
            of somebody who clicks while watching: normal around 45% of the length with a deviation of a fifth, then
            a reaction time of 0.3 +- 0.2 s, clipped to the instance.
        seed: seed of the data set, not negative.
        recording_id: the recording. It and the seed alone decide the draw: the order of recordings does not matter.

    Returns:
        As many points, in the same order, each in `[start_sec, end_sec)`.

    >>> sample_points([Instance("jump", 2.0, 4.0)], "centre", seed=0, recording_id="v1")
    (Point(label='jump', time_sec=3.0),)
    """
    if distribution not in get_args(Distribution):
        raise ValueError(f"expected a distribution among {', '.join(get_args(Distribution))}, got {distribution!r}")
    rng = np.random.default_rng((seed, zlib.crc32(recording_id.encode())))
    points = []
    for instance in instances:
        start, end = instance.start_sec, instance.end_sec
        centre, length = (start + end) / 2, end - start
        if distribution == "gaussian":
            time = centre + length / 8 * rng.standard_normal()
        elif distribution == "uniform":
            time = start + length * rng.random()
        elif distribution == "human":
            time = start + length * rng.normal(0.45, 0.2) + rng.normal(0.3, 0.2)
        else:
            time = {"start": start, "centre": centre, "end": end}[distribution]
        points.append(Point(instance.label, min(max(time, start), math.nextafter(end, start))))
    return tuple(points)
