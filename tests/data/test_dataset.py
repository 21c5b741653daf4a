from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potloc_fast.data.dataset import Batch, TrainingSet, batches, collate
from potloc_fast.data.grid import Grid
from potloc_fast.data.layouts.synthetic import load_synthetic
from potloc_fast.data.recording import Dataset, JoinedFeatures, Point, Recording
from potloc_fast.errors import InputError

GRID = Grid(fps=25, window=16, stride=16)
CLASSES = ("a", "b")


def recording(length: int, snippets: list[float], name: str = "v") -> Recording:
    """A recording whose one channel counts its snippets, with points at positions on the grid, "a" and "b" in turn."""
    return Recording(
        id=name,
        features=np.arange(length, dtype=np.float32)[:, None],
        grid=GRID,
        subset="train",
        points=tuple(Point(CLASSES[i % 2], GRID.to_sec(x)) for i, x in enumerate(snippets)),
    )


def test_whole_recordings_keep_every_label() -> None:
    sample = TrainingSet([recording(20, [3.25, 11.0, 19.5])], CLASSES)[0, 0, 0]
    np.testing.assert_array_equal(sample.features[:, 0], np.arange(20))
    np.testing.assert_allclose(sample.labels.points, [3.25, 11.0, 19.5], atol=1e-9)
    np.testing.assert_array_equal(sample.labels.segments, [[3, 4], [11, 12], [19, 20]])
    np.testing.assert_array_equal(sample.labels.classes, [0, 1, 0])


def test_points_at_and_after_the_end_are_in_the_last_snippet() -> None:
    labels = TrainingSet([recording(20, [20.0, 20.9])], CLASSES)[0, 0, 0].labels
    assert (np.floor(labels.points) == 19).all()
    np.testing.assert_array_equal(labels.segments, [[19, 20], [19, 20]])


@given(
    total=st.integers(1, 3000),
    length=st.integers(1, 800),
    places=st.lists(st.floats(0, 1), max_size=30),
    epoch=st.integers(0, 100),
)
@settings(max_examples=150, deadline=None)
def test_random_crops(total: int, length: int, places: list[float], epoch: int) -> None:
    source = recording(total, [place * total for place in places])
    training_set = TrainingSet([source], CLASSES, length=length)
    sample = training_set[0, epoch, 0]
    start, size = int(sample.features[0, 0]), len(sample.features)
    # A window of the recording, of the length asked for, or of 0.9 to 1.0 of a recording that is no longer.
    np.testing.assert_array_equal(sample.features, source.features[start : start + size])
    if total > length:
        assert size == length
    else:
        assert max(1, round(0.9 * total)) <= size <= total
    # Its labels are those of the snippets in it; float32 does not move a point to another snippet.
    snippets = GRID.snippet_of([point.time_sec for point in source.points], total)
    inside = (snippets >= start) & (snippets < start + size)
    batch = collate([sample])
    np.testing.assert_array_equal(batch.points.floor(), snippets[inside] - start)
    np.testing.assert_array_equal(batch.segments[:, 0], snippets[inside] - start)
    np.testing.assert_array_equal(batch.segments[:, 1], snippets[inside] - start + 1)
    np.testing.assert_array_equal(batch.classes, (np.arange(len(places)) % 2)[inside])
    # Over 70% of the points, where at least a twentieth of all windows of this size manage that.
    starts = np.arange(total - size + 1)[:, None]
    kept = ((snippets >= starts) & (snippets < starts + size)).sum(axis=1)
    if places and np.mean(kept > 0.7 * len(places)) > 0.05:
        assert inside.sum() > 0.7 * len(places)


def test_random_crops_keep_most_points_where_none_keeps_enough() -> None:
    # Two of four points lie together; no window of 10 holds three.
    source = recording(400, [50.5, 200.5, 202.5, 350.5])
    training_set = TrainingSet([source], CLASSES, length=10)
    assert all(len(training_set[0, epoch, 0].labels.points) == 2 for epoch in range(20))


def test_random_crops_differ_and_cover_the_recording() -> None:
    training_set = TrainingSet([recording(100, [50.5])], CLASSES, length=60)
    starts = [int(training_set[0, epoch, 0].features[0, 0]) for epoch in range(300)]
    # Every window of 60 that holds snippet 50 starts in 0 ... 40.
    assert set(starts) == set(range(41))


def test_a_segment_that_overlaps_the_crop_stays_even_where_its_point_does_not() -> None:
    rows = np.array([[45.5, 10.25, 80.75], [85.5, 85.0, 86.5], [88.5, 88.0, 89.0], [90.5, 90.0, 91.0]])
    # A window of 20 that keeps over 70% of these points holds those of rows 1 to 3, and so some of row 0's segment.
    pseudo = {"v": [("b" if i == 0 else "a", *GRID.to_sec(row).tolist()) for i, row in enumerate(rows)]}
    training_set = TrainingSet([recording(100, [])], CLASSES, length=20, labels=pseudo)
    for epoch in range(50):
        sample = training_set[0, epoch, 0]
        start = int(sample.features[0, 0])
        assert 71 <= start <= 80
        np.testing.assert_allclose(sample.labels.points, rows[:, 0] - start, atol=1e-9)
        assert sample.labels.points[0] < 0
        np.testing.assert_allclose(sample.labels.segments[0], [0, 80.75 - start], atol=1e-9)
        np.testing.assert_allclose(sample.labels.segments[1:], rows[1:, 1:] - start, atol=1e-9)
        np.testing.assert_array_equal(sample.labels.classes, [1, 0, 0, 0])


def test_a_segment_outside_the_crop_is_dropped() -> None:
    pseudo = {"v": [("a", *GRID.to_sec(np.array([x, x - 1, x + 1])).tolist()) for x in (5.5, 50.5, 52.5, 54.5, 56.5)]}
    sample = TrainingSet([recording(100, [])], CLASSES, length=20, labels=pseudo)[0, 0, 0]
    np.testing.assert_allclose(np.diff(sample.labels.points), [2, 2, 2])


def test_pseudo_labels_are_clipped_to_the_recording_and_absent_ones_are_none() -> None:
    sources = [recording(10, [4.5], "v"), recording(10, [4.5], "w")]
    training_set = TrainingSet(sources, CLASSES, labels={"v": [("a", 1.0, -3.0, 99.0)]})
    np.testing.assert_array_equal(training_set[0, 0, 0].labels.segments, [[0, 10]])
    assert training_set[0, 0, 1].labels.segments.shape == (0, 2)


@pytest.mark.parametrize(("total", "length"), [(50, 20), (20, 50), (33, 33), (1, 7), (7, 1)])
def test_linear_sampling_is_the_interpolation_of_pytorch(total: int, length: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((total, 6)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(x.T.copy())[None], length, mode="linear")[0].T
    for features in (x, JoinedFeatures(x[:, :2], x[:, 2:])):
        source = Recording("v", features, GRID, "train")
        sample = TrainingSet([source], CLASSES, length=length, sampling="linear")[0, 0, 0]
        torch.testing.assert_close(torch.from_numpy(np.asarray(sample.features)), expected, atol=1e-5, rtol=1e-5)


def test_linear_sampling_scales_labels() -> None:
    source = recording(50, [10.5, 49.5])
    labels = TrainingSet([source], CLASSES, length=100, sampling="linear")[0, 0, 0].labels
    np.testing.assert_allclose(labels.points, [21.0, 99.0])
    np.testing.assert_array_equal(labels.segments, [[21, 22], [99, 100]])
    pseudo = {"v": [("a", *GRID.to_sec(np.array([10.5, 5.0, 20.0])).tolist())]}
    labels = TrainingSet([source], CLASSES, length=25, sampling="linear", labels=pseudo)[0, 0, 0].labels
    np.testing.assert_allclose(labels.points, [5.25])
    np.testing.assert_allclose(labels.segments, [[2.5, 10.0]])


def test_collate_pads_and_keeps_labels_with_their_recording() -> None:
    training_set = TrainingSet(
        [recording(4, [1.5, 3.5], "v"), recording(6, [], "w"), recording(5, [0.25], "x")], CLASSES
    )
    samples = [training_set[0, 0, index] for index in range(3)]
    batch = collate(samples)
    assert batch.features.shape == (3, 6, 1)
    assert batch.mask.sum(dim=1).tolist() == [4, 6, 5]
    assert batch.features[0, :, 0].tolist() == [0, 1, 2, 3, 0, 0]
    assert batch.mask[0].tolist() == [True] * 4 + [False] * 2
    assert batch.recording.tolist() == [0, 0, 2]
    assert batch.points.tolist() == pytest.approx([1.5, 3.5, 0.25])
    assert batch.segments.tolist() == [[1, 2], [3, 4], [0, 1]]
    assert batch.classes.tolist() == [0, 1, 0]
    kinds = {name: tensor.dtype for name, tensor in vars(batch).items()}
    assert kinds == {
        "features": torch.float32,
        "mask": torch.bool,
        "recording": torch.int64,
        "points": torch.float32,
        "segments": torch.float32,
        "classes": torch.int64,
    }
    assert collate(samples, length=9).features.shape == (3, 9, 1)
    assert collate(samples, multiple=4).features.shape == (3, 8, 1)
    assert collate(samples, multiple=3).features.shape == (3, 6, 1)
    with pytest.raises(ValueError, match="expected samples no longer than 5, got one of 6 snippets"):
        collate(samples, length=5)


def test_lists_of_labels_are_padded_with_what_is_no_label() -> None:
    training_set = TrainingSet([recording(4, [1.5, 3.5], "v"), recording(6, [2.0], "w"), recording(6, [])], CLASSES)
    samples = [training_set[0, 0, index] for index in range(3)]
    plain, padded = collate(samples), collate(samples, slots=5)
    assert padded.recording.tolist() == [0, 0, 1, 3, 3]
    for name, tensor in vars(plain).items():
        other = getattr(padded, name)
        assert other.dtype == tensor.dtype
        assert torch.equal(other[: len(tensor)], tensor)
        assert len(other) == (3 if name in ("features", "mask") else 5)
    with pytest.raises(ValueError, match="expected at most 2 labels, got 3"):
        collate(samples, slots=2)
    # The two recordings with the most labels have three; the number is rounded up to a multiple of 8.
    assert training_set.label_slots(2) == 8
    crowded = TrainingSet([recording(30, [0.5] * n) for n in (3, 9, 0, 8)], CLASSES)
    assert [crowded.label_slots(size) for size in (1, 2, 4)] == [16, 24, 24]


def test_a_batch_without_labels_has_empty_ones() -> None:
    batch = collate([TrainingSet([recording(4, [])], CLASSES)[0, 0, 0]])
    assert batch.recording.shape == batch.points.shape == batch.classes.shape == (0,)
    assert batch.segments.shape == (0, 2)


def test_a_sample_on_its_own_in_memory_is_not_copied() -> None:
    source = recording(20, [3.0])
    frozen, backwards = source.features.copy(), source.features[::-1]
    frozen.flags.writeable = False
    for features, shared in ((source.features, True), (frozen, False), (backwards, False)):
        sample = replace(TrainingSet([source], CLASSES)[0, 0, 0], features=features)
        batch, padded = collate([sample]), collate([sample], length=24)
        np.testing.assert_array_equal(batch.features[0], features)
        np.testing.assert_array_equal(padded.features[0, :20], features)
        assert np.shares_memory(batch.features.numpy(), features) is shared
        assert not np.shares_memory(padded.features.numpy(), features)


def test_a_batch_moves_whole() -> None:
    batch = collate([TrainingSet([recording(4, [1.5])], CLASSES)[0, 0, 0]])
    assert {tensor.device.type for tensor in vars(batch.to("meta")).values()} == {"meta"}


def test_epochs_repeat_and_differ() -> None:
    dataset = load_synthetic(recordings=9, length=100)
    training_set = TrainingSet(dataset.subset("train"), dataset.classes, length=60)

    def epoch(number: int, seed: int = 0, shuffle: bool = True) -> list[torch.Tensor]:
        return [batch.features for batch in batches(training_set, 4, number, seed, shuffle)]

    def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    assert [len(features) for features in epoch(0)] == [4, 2]
    assert same(epoch(0), epoch(0))
    assert not same(epoch(0), epoch(1))
    assert not same(epoch(0), epoch(0, seed=1))
    # The crop of a recording depends on its index alone, not on the order of the epoch.
    shuffled = {tuple(row) for features in epoch(0) for row in features[:, 0].tolist()}
    in_order = {tuple(row) for features in epoch(0, shuffle=False) for row in features[:, 0].tolist()}
    assert shuffled == in_order
    assert len(shuffled) == 6


def test_a_data_loader_with_workers_gives_the_same_samples() -> None:
    dataset = load_synthetic(recordings=6, length=100)
    training_set = TrainingSet(dataset.subset("train"), dataset.classes, length=60)
    loader = torch.utils.data.DataLoader(
        training_set, batch_size=4, sampler=[(0, 3, index) for index in range(4)], collate_fn=collate, num_workers=2
    )
    (expected,) = batches(training_set, 4, epoch=3, seed=0, shuffle=False)
    (got,) = loader
    assert all(torch.equal(a, b) for a, b in zip(vars(got).values(), vars(expected).values(), strict=True))


def test_features_stay_on_disk_until_they_are_in_the_batch(tmp_path) -> None:
    np.save(tmp_path / "v.npy", np.ones((50, 3), np.float32))
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    sample = TrainingSet([Recording("v", mapped, GRID, "train")], CLASSES, length=20)[0, 0, 0]
    assert np.shares_memory(sample.features, mapped)
    joined = Recording("v", JoinedFeatures(mapped, mapped), GRID, "train")
    both = TrainingSet([joined], CLASSES, length=20)[0, 0, 0]
    assert all(np.shares_memory(part, mapped) for part in both.features.parts)
    assert torch.equal(collate([both]).features, torch.ones(1, 20, 6))
    stretched = TrainingSet([joined], CLASSES, length=20, sampling="linear")[0, 0, 0]
    assert all(np.shares_memory(part, mapped) for part in stretched.features.features.parts)
    batch = collate([sample])
    batch.features[:] = 0  # a copy of its own, which may be written to
    assert mapped.min() == 1


class Unread(JoinedFeatures):
    """Features that tell their shape alone."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__(np.empty((length, width), np.float32))
        self.parts = ()

    def __getitem__(self, rows: object) -> Unread:
        return self if isinstance(rows, slice) else pytest.fail("rows of these features are read")


@pytest.mark.parametrize("options", [{}, {"length": 9, "sampling": "linear"}])
def test_only_the_features_of_the_own_share_are_read(options: dict) -> None:
    x = np.random.default_rng(0).standard_normal((3, 7, 2)).astype(np.float32)

    def draw(last: np.ndarray | JoinedFeatures, **share: int) -> Batch:
        sources = [Recording(str(i), part, GRID, "train") for i, part in enumerate((x[0], x[1], last))]
        (batch,) = batches(TrainingSet(sources, CLASSES, **options), 3, 0, 0, shuffle=False, **share)
        return batch

    whole, own = draw(x[2]), draw(Unread(7, 2), share=0, shares=2)
    assert torch.equal(own.features, whole.features[:2])
    assert torch.equal(own.mask, whole.mask)


def test_an_unknown_class_is_named() -> None:
    with pytest.raises(InputError, match=r"^v: expected a label among a, b, got 'c'$"):
        TrainingSet([recording(9, [])], CLASSES, labels={"v": [("c", 1.0, 0.5, 2.0)]})


def test_linear_sampling_needs_a_length() -> None:
    with pytest.raises(ValueError, match="expected sampling random, or linear with a length, got 'linear' with None"):
        TrainingSet([recording(9, [])], CLASSES, sampling="linear")


def test_hapt_points_are_in_the_snippets_of_their_times(hapt: Dataset) -> None:
    training_set = TrainingSet(hapt.subset("train"), hapt.classes, length=768)
    (batch,) = batches(training_set, 42, epoch=0, seed=0)
    assert batch.features.shape[0] == 42
    assert batch.features.shape[1] <= 768
    # Short recordings lose up to a tenth, the few longer ones up to 30% of their points.
    assert 0.85 * 849 < len(batch.points) <= 849
    assert (batch.points.floor() == batch.segments[:, 0]).all()
    assert (batch.mask[batch.recording, batch.points.long()]).all()


def test_recordings_of_an_epoch_are_cropped_independently() -> None:
    training_set = TrainingSet([recording(2000, [], name) for name in "vwxy"], CLASSES, length=10)
    assert len({float(training_set[0, 0, index].features[0, 0]) for index in range(4)}) == 4


def test_every_epoch_has_each_recording_once_in_an_order_of_its_own() -> None:
    sources = [Recording(str(i), np.full((2, 1), i, np.float32), GRID, "train") for i in range(20)]
    training_set = TrainingSet(sources, CLASSES)
    orders = [
        torch.cat([batch.features[:, 0, 0] for batch in batches(training_set, 3, epoch, seed=0)]).tolist()
        for epoch in range(2)
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(20))
    assert orders[0] != orders[1]
    assert list(range(20)) not in orders
