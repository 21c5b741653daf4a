"""Labels from points and features alone, on recordings whose boundaries are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from potloc_fast.config.schema import PointDistribution
from potloc_fast.data import Dataset, Grid, Instance, Point, Recording
from potloc_fast.data.points import draw_points
from potloc_fast.engine import align as alignment
from potloc_fast.engine.align import align
from potloc_fast.engine.progress import Progress
from potloc_fast.evaluation import Segments
from potloc_fast.pseudo_labels import PseudoLabels, collect_points

GRID = Grid(fps=10, window=1, stride=1)


def recordings(background: float, count: int = 6, actions: int = 12) -> Dataset:
    """Two classes and the background, each around a mean of its own; the background's share is as given."""
    rng = np.random.default_rng(0)
    means = 2 * rng.standard_normal((3, 8))
    made = []
    for number in range(count):
        parts, instances, at = [], [], 0
        for _ in range(actions):
            label, length = int(rng.integers(2)), int(rng.integers(8, 13))
            gap = round(length * background / (1 - background)) + int(rng.integers(2))
            parts += [means[2] + rng.standard_normal((gap, 8)), means[label] + rng.standard_normal((length, 8))]
            instances.append(Instance("ab"[label], (at + gap) / 10, (at + gap + length) / 10))
            at += gap + length
        features = np.concatenate(parts).astype(np.float32)
        made.append(Recording(f"r{number}", features, GRID, "train", tuple(instances)))
    return Dataset("made", ("a", "b"), tuple(made))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train less: enough where it is not the boundaries that are looked at."""
    monkeypatch.setattr(alignment, "STEPS", 20)
    monkeypatch.setattr(alignment, "LEVELS", (0.5,))


def aligned(dataset: Dataset) -> PseudoLabels:
    return align(dataset, collect_points(dataset.recordings, dataset.classes), seed=0, device=torch.device("cpu"))


def overlaps(dataset: Dataset, labels: PseudoLabels) -> np.ndarray:
    """tIoU of each label with the instance that its point was drawn from."""
    truth = [item for recording in dataset.recordings for item in recording.instances]
    start, end = np.array([(item.start_sec, item.end_sec) for item in truth]).T
    own_start, own_end = labels.segments.start_sec, labels.segments.end_sec
    shared = np.minimum(end, own_end) - np.maximum(start, own_start)
    return shared.clip(0) / (np.maximum(end, own_end) - np.minimum(start, own_start))


@pytest.mark.parametrize(
    ("background", "points"), [(0.1, "gaussian"), (0.1, "uniform"), (0.5, "start"), (0.8, "uniform")]
)
def test_labels_find_the_boundaries_however_much_background_there_is(
    background: float, points: PointDistribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "LEVELS", (0.5,))
    monkeypatch.setattr(alignment, "STEPS", 100)
    dataset = draw_points(recordings(background), points, seed=0)
    assert np.median(overlaps(dataset, aligned(dataset))) > 0.7


def test_labels_that_end_elsewhere_tell_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "STEPS", 100)
    dataset = draw_points(recordings(0.5), "gaussian", seed=0)
    learner = alignment._Learner(dataset, 2, 0, torch.device("cpu"), Progress("align", 1, shown=False))
    chains = list(alignment._chains(dataset, collect_points(dataset.recordings, dataset.classes)))
    truth = [
        np.array([(round(item.start_sec * 10), round(item.end_sec * 10)) for item in chain.recording.instances])
        for chain in chains
    ]

    def told(start: int, end: int) -> float:
        return alignment._information(learner, chains, [own + np.array([start, end]) for own in truth])

    right = told(0, 0)
    assert 0.7 < right < 1.05  # half of the snippets are background: ln 2 and half of ln 2 nats are there
    for shift in ((3, 3), (-3, -3), (3, -3), (-2, 2)):
        assert told(*shift) < right
    assert alignment._information(learner, chains[:1], truth[:1]) == 0


@pytest.mark.parametrize(
    ("told", "second_class", "kept"),
    [
        ([0.90, 0.90, 0.70], [8, 8, 8], 1),
        ([0.87, 0.81, 0.73], [8, 8, 8], 0),
        ([0.80, 0.83, 0.81], [8, 8, 8], 2),
        ([0.80, 0.80, 0.80], [8, 6, 3], 1),  # with the largest lambda a class withers
        ([0.70, 0.80, 0.90], [8, 6, 3], 1),  # though it tells most
        ([0.70, 0.80, 0.90], [8, 3, 3], 0),
        ([-0.2, -0.1, -0.3], [8, 8, 8], 1),
        ([0.5], [8], 0),
    ],
)
def test_the_largest_lambda_is_kept_that_tells_as_much(told: list[float], second_class: list[int], kept: int) -> None:
    drawn = []
    for length in second_class:
        ends = np.array([10.0, 10, length, length, 1])  # the last one of the second class is of another kind
        columns = (np.zeros(5, np.int64), np.array([0, 0, 1, 1, 1]), np.zeros(5), ends, np.ones(5))
        drawn.append(PseudoLabels(Segments(("r",), ("a", "b"), *columns), np.zeros(5), ()))
    assert alignment.choose(told, drawn) == kept


def test_the_middle_level_is_half_way_from_a_class_to_the_background_beside_it() -> None:
    grown = Recording("r", np.zeros((20, 1), np.float32), GRID, "train")
    chain = alignment._Chain(grown, np.array([6]), np.array([1]), np.array([0]))
    segments, gain = [np.array([[4, 8]])], np.zeros((20, 2))
    gain[:, 1] = [*[-9] * 2, *[-1] * 2, *[5] * 4, *[-1] * 2, *[-9] * 10]
    targets = alignment._targets([chain], segments, 2)
    middle = alignment._middle_levels({"r": gain}, targets, [chain], segments, np.array([0.0, 2.0]))
    assert middle.tolist() == [0, 2]  # of class 0 there is nothing; the background beyond a usual length counts nowhere


@pytest.mark.usefixtures("short")
def test_it_repeats() -> None:
    dataset = draw_points(recordings(0.4, count=2), "gaussian", seed=0)
    first, second = aligned(dataset), aligned(dataset)
    assert first.to_results() == second.to_results()


@pytest.mark.usefixtures("short")
def test_every_point_has_a_label_that_holds_it_in_its_place() -> None:
    dataset = draw_points(recordings(0.4, count=3), "gaussian", seed=0)
    # Two clicks in one snippet, of both classes, in a recording that begins with its last point.
    crowded = dataset.recordings[0]
    points = (Point("b", crowded.points[0].time_sec), *crowded.points[::-1])
    bare = replace(crowded, id="bare", points=(), features=crowded.features[:1])
    dataset = replace(dataset, recordings=(replace(crowded, points=points), *dataset.recordings[1:], bare))
    labels = aligned(dataset)
    wanted = collect_points(dataset.recordings, dataset.classes)
    assert np.array_equal(labels.point_sec, wanted.time_sec)
    assert np.array_equal(labels.segments.label, wanted.label)
    assert (labels.segments.start_sec <= wanted.time_sec + 1e-9).all()
    assert (wanted.time_sec < labels.segments.end_sec + 1e-9).all()
    assert ((labels.segments.score > 0) & (labels.segments.score <= 1)).all()


def test_a_single_point_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "STEPS", 20)
    dataset = recordings(0.4, count=1, actions=1)
    [recording] = dataset.recordings
    [item] = recording.instances
    recording = replace(recording, points=(Point(item.label, item.start_sec + 0.3),))
    [[start, end]] = np.stack(
        [
            (labels := aligned(replace(dataset, recordings=(recording,)))).segments.start_sec,
            labels.segments.end_sec,
        ],
        axis=1,
    )
    assert 0 <= start <= item.start_sec + 0.3 < end <= recording.duration_sec
    assert labels.notes == ("labels: lambda=0.5, and no other recording tells anything of the label of a snippet",)
