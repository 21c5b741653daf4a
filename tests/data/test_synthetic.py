from __future__ import annotations

import numpy as np
import pytest

from potloc_fast.data.layouts.synthetic import load_synthetic


def test_the_same_seed_gives_the_same_data_set() -> None:
    first, again, other = load_synthetic(), load_synthetic(), load_synthetic(seed=1)
    for a, b, c in zip(first.recordings, again.recordings, other.recordings, strict=True):
        np.testing.assert_array_equal(a.features, b.features)
        assert (a.id, a.subset, a.instances, a.points) == (b.id, b.subset, b.instances, b.points)
        assert not np.array_equal(a.features, c.features)


def test_sizes_are_those_asked_for() -> None:
    dataset = load_synthetic(recordings=6, classes=3, length=200, width=8)
    assert [recording.features.shape for recording in dataset.recordings] == [(200, 8)] * 6
    assert len(dataset.subset("train")) == 4
    assert dataset.classes == ("action_0", "action_1", "action_2")
    assert all(recording.points == () for recording in dataset.recordings)


@pytest.mark.parametrize("seed", range(5))
def test_every_recording_has_disjoint_instances_and_every_class_is_shown(seed: int) -> None:
    dataset = load_synthetic(seed=seed)
    for recording in dataset.recordings:
        edges = [edge for item in recording.instances for edge in (item.start_sec, item.end_sec)]
        assert edges
        assert edges == sorted(edges)
        assert edges[0] > 0
        assert edges[-1] < recording.duration_sec
    for subset in ("train", "test"):
        labels = {item.label for recording in dataset.subset(subset) for item in recording.instances}
        assert labels == set(dataset.classes)


def test_durations_of_classes_differ() -> None:
    dataset = load_synthetic()
    lengths = [
        np.mean([i.end_sec - i.start_sec for r in dataset.recordings for i in r.instances if i.label == name]) / 0.64
        for name in dataset.classes
    ]
    np.testing.assert_allclose(lengths, np.geomspace(4, 40, 5), rtol=0.15)


def test_context_lies_between_action_and_background() -> None:
    dataset = load_synthetic(recordings=60, classes=1)
    inside, beside, away = [], [], []
    for recording in dataset.recordings:
        centre = recording.grid.to_sec(np.arange(400) + 0.5)
        gap = np.min([np.maximum(i.start_sec - centre, centre - i.end_sec) for i in recording.instances], axis=0) / 0.64
        inside.append(recording.features[gap < -1])
        beside.append(recording.features[(gap > 0.5) & (gap < 0.75)])
        away.append(recording.features[gap > 3])
    action, context, background = (np.concatenate(part).mean(axis=0) for part in (inside, beside, away))
    position = (context - background) @ (action - background) / np.sum((action - background) ** 2)
    assert 0.3 < position < 0.6


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected recordings >= 2, classes >= 1, length >= 50 and width >= 1"):
        load_synthetic(length=49)
