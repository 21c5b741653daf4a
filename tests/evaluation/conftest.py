"""Real detections, matched once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from potloc_fast.evaluation import Segments, read_detections, read_ground_truth
from potloc_fast.evaluation.align import align
from potloc_fast.evaluation.average_precision import match, rank


class Matched(NamedTuple):
    """Aligned detections in the order of evaluation, instances, and who took which at tIoU 0.5, 0.1, 0.25 and 0.5."""

    ranked: Segments
    truth: Segments
    taken: np.ndarray

    @classmethod
    def of(cls, detections: object, ground_truth: object) -> Matched:
        found, truth, _ = align(detections, ground_truth)  # type: ignore[arg-type]
        ranked = found.take(rank(found))
        return cls(ranked, truth, match(ranked, truth, np.array([0.5, 0.1, 0.25, 0.5])))


@pytest.fixture(scope="session")
def matched() -> type[Matched]:
    return Matched


@pytest.fixture(scope="session")
def pmil(shared_data: Path) -> Matched:
    """P-MIL's detections on THUMOS'14."""
    return Matched.of(
        read_detections(shared_data / "detections" / "pmil_thumos14_test.json"),
        read_ground_truth(shared_data / "thumos14" / "gt.json", "test"),
    )


@pytest.fixture(scope="session")
def autoloc(shared_data: Path) -> Matched:
    """AutoLoc's detections on THUMOS'14."""
    return Matched.of(
        read_detections(shared_data / "detections" / "autoloc_thumos14_detections.json"),
        read_ground_truth(shared_data / "detections" / "autoloc_thumos14_gt.json"),
    )


def random_segments(rng: np.random.Generator, size: int) -> Segments:
    """Three videos and classes on a coarse grid with coarse scores: ties, touching and empty segments."""
    start = rng.integers(0, 20, size).astype(float)
    return Segments(
        videos=("v0", "v1", "v2"),
        labels=("a", "b", "c"),
        video=rng.integers(0, 3, size),
        label=rng.integers(0, 3, size),
        start_sec=start,
        end_sec=start + rng.integers(0, 10, size),
        score=rng.integers(0, 9, size) / 8,
    )


@pytest.fixture(params=range(12))
def random(request: pytest.FixtureRequest) -> Matched:
    """Random detections and instances, few or many."""
    rng = np.random.default_rng(request.param)
    truth = random_segments(rng, int(rng.integers(1, 25)))
    found = random_segments(rng, int(rng.integers(0, 80)))
    found = found.take(np.isin(found.label, truth.label))
    return Matched.of(found, truth)
