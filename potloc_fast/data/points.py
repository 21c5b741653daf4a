"""Point labels drawn from instances, for data sets that have none."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from potloc_fast.data.recording import Instance, Point

Distribution: TypeAlias = Literal["gaussian", "uniform", "centre", "start"]


def sample_points(
    instances: Sequence[Instance], distribution: Distribution, *, seed: int, recording_id: str
) -> tuple[Point, ...]:
    """Draw one point inside each instance.

    Args:
        instances: the instances of one recording.
        distribution: "gaussian" is normal around the centre with a standard deviation of an eighth of the length,
            "uniform" takes any moment, "centre" and "start" those moments themselves.
        seed: seed of the data set, not negative.
        recording_id: the recording. It and the seed alone decide the draw: the order of recordings does not matter.

    Returns:
        As many points, in the same order, each in `[start_sec, end_sec)`.

    >>> sample_points([Instance("jump", 2.0, 4.0)], "centre", seed=0, recording_id="v1")
    (Point(label='jump', time_sec=3.0),)
    """
    rng = np.random.default_rng((seed, zlib.crc32(recording_id.encode())))
    points = []
    for instance in instances:
        start, end = instance.start_sec, instance.end_sec
        if distribution == "gaussian":
            time = (start + end) / 2 + (end - start) / 8 * rng.standard_normal()
        elif distribution == "uniform":
            time = start + (end - start) * rng.random()
        elif distribution == "centre":
            time = (start + end) / 2
        elif distribution == "start":
            time = start
        else:
            raise ValueError(f"expected gaussian, uniform, centre or start, got {distribution!r}")
        points.append(Point(instance.label, min(max(time, start), math.nextafter(end, start))))
    return tuple(points)
