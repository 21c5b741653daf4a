from __future__ import annotations

import io
import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from potloc_fast.data import recording as module
from potloc_fast.data.dataset import TrainingSet, whole
from potloc_fast.data.grid import Grid
from potloc_fast.data.recording import (
    Dataset,
    Instance,
    JoinedFeatures,
    Point,
    Recording,
    Tidy,
    intact,
    load_features,
    validate,
)
from potloc_fast.errors import InputError

GRID = Grid(fps=25, window=16, stride=16)
rng = np.random.default_rng(0)
GOOD = Recording(
    id="v1",
    features=rng.standard_normal((10, 4)).astype(np.float32),
    grid=GRID,
    subset="train",
    instances=(Instance("jump", 1.0, 2.5),),
    points=(Point("jump", 1.7),),
)
FILES = (Path("a.npy"), Path("b.npy"))


def dataset(*recordings: Recording) -> Dataset:
    return Dataset("sports", ("jump", "run"), recordings)


def with_value(value: float) -> np.ndarray:
    features = GOOD.features.copy()
    features[3, 2] = value
    return features


def test_a_good_data_set_passes() -> None:
    good = dataset(GOOD, replace(GOOD, id="v2", subset="test"))
    assert validate(good) is good


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"features": np.zeros((0, 4), np.float32)},
            "v2: expected at least one snippet, found an empty recording",
        ),
        ({"features": np.zeros((10, 3), np.float32)}, "v2: expected width 4 as in the other recordings, got 3"),
        (
            {"features": np.zeros(10, np.float32)},
            "v2: expected float32 features of shape [snippets, channels], got float32 of shape [10]",
        ),
        (
            {"features": np.zeros((10, 4))},
            "v2: expected float32 features of shape [snippets, channels], got float64 of shape [10, 4]",
        ),
        ({"features": with_value(np.nan)}, "v2: expected finite features, got nan at snippet 3, channel 2"),
        ({"features": with_value(-np.inf)}, "v2: expected finite features, got -inf at snippet 3, channel 2"),
        # The features of files are named by these.
        (
            {"features": JoinedFeatures(GOOD.features[:, :2], with_value(np.inf)[:, 2:]), "files": FILES},
            "b.npy: expected finite features, got inf at snippet 3, channel 0",
        ),
        (
            {"features": JoinedFeatures(GOOD.features[:, :2], GOOD.features[:9, 2:]), "files": FILES},
            "b.npy: expected 10 snippets as in a.npy, got 9",
        ),
        (
            {"features": np.zeros((0, 4), np.float32), "files": FILES[1:]},
            "b.npy: expected at least one snippet, found an empty recording",
        ),
        (
            {"points": (Point("jump", 7.05),)},
            "v2: expected points inside the recording, which lasts 6.40 s, got one of jump at 7.05 s",
        ),
        (
            {"points": (Point("jump", -0.01),)},
            "v2: expected points inside the recording, which lasts 6.40 s, got one of jump at -0.01 s",
        ),
        (
            {"points": (Point("jump", float("nan")),)},
            "v2: expected points inside the recording, which lasts 6.40 s, got one of jump at nan s",
        ),
        ({"points": (Point("swim", 1.0),)}, "v2: expected a label among the 2 classes of sports, got 'swim'"),
        (
            {"instances": (Instance("swim", 1.0, 2.0),)},
            "v2: expected a label among the 2 classes of sports, got 'swim'",
        ),
        (
            {"instances": (Instance("run", 2.0, 2.0),)},
            "v2: expected an instance to end after its start, got [2, 2) s of run",
        ),
        (
            {"instances": (Instance("run", 2.0, float("inf")),)},
            "v2: expected an instance to end after its start, got [2, inf) s of run",
        ),
        ({"id": "v1"}, "v1: expected each recording once, found it twice in sports"),
    ],
)
def test_each_fault_is_named(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        validate(dataset(GOOD, replace(GOOD, **{"id": "v2", **change})))


def test_a_value_that_is_not_finite_is_named_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 4)
    features = GOOD.features.copy()
    features[9, 1] = features[9, 3] = np.nan
    with pytest.raises(InputError, match=r"^v1: expected finite features, got nan at snippet 9, channel 1$"):
        validate(dataset(replace(GOOD, features=features)))


def test_the_most_frequent_width_is_right() -> None:
    odd = replace(GOOD, features=np.zeros((10, 3), np.float32))
    with pytest.raises(InputError, match=r"^v1: expected width 4 as in the other recordings, got 3$"):
        validate(dataset(odd, replace(GOOD, id="v2"), replace(GOOD, id="v3")))


def test_no_recordings_is_a_fault() -> None:
    with pytest.raises(InputError, match=r"^sports: expected at least one recording, found none$"):
        validate(dataset())


def test_a_point_in_the_frames_after_the_last_snippet_belongs_to_it() -> None:
    late = replace(GOOD, points=(Point("jump", 7.03),))
    validate(dataset(late))
    assert GRID.snippet_of(7.03, 10) == 9
    # 124 samples make 3 windows of 50 with stride 25; the last 24 samples are still part of the recording.
    hapt = Grid(fps=50, window=50, stride=25)
    validate(dataset(replace(GOOD, features=GOOD.features[:3], grid=hapt, points=(Point("jump", 123.9 / 50),))))


def test_joined_features_read_like_an_array() -> None:
    whole = np.concatenate([GOOD.features, 2 * GOOD.features], axis=1)
    joined = JoinedFeatures(GOOD.features, 2 * GOOD.features)
    assert (joined.shape, joined.ndim, joined.dtype, len(joined)) == ((10, 8), 2, np.float32, 10)
    np.testing.assert_array_equal(joined[2:5], whole[2:5])
    np.testing.assert_array_equal(joined[np.array([4, 0, 4])], whole[[4, 0, 4]])
    np.testing.assert_array_equal(np.asarray(joined), whole)
    assert np.asarray(joined, dtype=np.float64).dtype == np.float64


@pytest.mark.parametrize("block", [module.BLOCK, 64])
def test_statistics_are_those_of_all_snippets_of_the_subset(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    # A large offset in the first channel is what single-precision sums would get wrong.
    parts = [rng.standard_normal((n, 3)).astype(np.float32) * [1, 2, 0] + [1e4, -3, 7] for n in (5, 900, 41)]
    parts = [part.astype(np.float32) for part in parts]
    recordings = [replace(GOOD, id=str(i), features=part) for i, part in enumerate(parts)]
    mean, std = dataset(*recordings, replace(GOOD, id="other", subset="test")).feature_stats("train")
    together = np.concatenate(parts).astype(np.float64)
    np.testing.assert_allclose(mean, together.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std[:2], together.std(axis=0)[:2], rtol=1e-9)
    assert std[2] == 1.0
    assert mean.dtype == std.dtype == np.float64


def test_an_unknown_subset_is_named() -> None:
    with pytest.raises(InputError, match=r"^sports: expected a subset among test, train, got 'val'$"):
        dataset(GOOD, replace(GOOD, id="v2", subset="test")).subset("val")


def test_ground_truth_is_what_activitynet_writes() -> None:
    expected = {
        "database": {
            "v1": {"subset": "train", "duration": 6.4, "annotations": [{"segment": [1.0, 2.5], "label": "jump"}]}
        }
    }
    assert json.loads(json.dumps(dataset(GOOD).ground_truth())) == expected


def test_features_stay_on_disk(tmp_path) -> None:
    np.save(tmp_path / "v.npy", GOOD.features)
    loaded = load_features(tmp_path / "v.npy", expected_width=4)
    assert isinstance(loaded, np.memmap)
    assert not loaded.flags.writeable
    np.testing.assert_array_equal(loaded, GOOD.features)


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4"])
def test_other_precisions_become_float32(tmp_path, dtype: str) -> None:
    np.save(tmp_path / "v.npy", GOOD.features.astype(dtype))
    loaded = load_features(tmp_path / "v.npy")
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, GOOD.features.astype(dtype).astype(np.float32))


def test_values_too_large_for_float32_are_reported_as_infinite(tmp_path) -> None:
    np.save(tmp_path / "v.npy", np.array([[1.0, 1e300]]))
    with pytest.raises(InputError, match="got inf at snippet 0, channel 1"):
        validate(dataset(replace(GOOD, features=load_features(tmp_path / "v.npy"), points=())))


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a feature file, found none"),
        (b"", "expected a .npy file, got one that starts with b''"),
        (b"PK\x03\x04 an archive", "expected a .npy file, got one that starts with b'PK\\x03\\x04 a'"),
        (saved(GOOD.features)[:-1], "expected an array of floats, got a truncated or damaged file"),
        (saved(GOOD.features)[:40], "expected an array of floats, got a truncated or damaged file"),
        (saved(GOOD.features)[:7], "expected an array of floats, got a truncated or damaged file"),
        (saved(np.zeros((4, 4), np.int64)), "expected an array of floats, got int64"),
        (saved(np.zeros(7, np.float32)), "expected an array of shape [snippets, channels], got shape [7]"),
        (
            saved(np.zeros((1, 7, 4), np.float32)),
            "expected an array of shape [snippets, channels], got shape [1, 7, 4]",
        ),
        (saved(np.zeros((7, 5), np.float32)), "expected width 4 as in the other recordings, got 5"),
    ],
)
def test_each_fault_of_a_feature_file_is_named(tmp_path, content: bytes | None, message: str) -> None:
    path = tmp_path / "v1.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {message}')}$"):
        load_features(path, expected_width=4)


def test_a_folder_in_place_of_a_feature_file_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match="expected a readable feature file, got: Is a directory"):
        load_features(tmp_path)


@pytest.mark.parametrize("as_npy", [True, False])
def test_pickled_objects_are_never_loaded(tmp_path, as_npy: bool) -> None:
    trap = Trap(str(tmp_path / "sprung"))
    path = tmp_path / "v.npy"
    path.write_bytes(saved(np.array([trap], dtype=object)) if as_npy else pickle.dumps(trap))
    with pytest.raises(InputError, match="got pickled Python objects" if as_npy else "expected a .npy file"):
        load_features(path)
    assert not (tmp_path / "sprung").exists()


def test_labels_that_differ_by_a_rounding_are_one() -> None:
    tidy = Tidy("here")
    times = np.array([0.0, 0.1, 18.6, 3600.1])
    points = [Point(label, float(t)) for t in times for label in "ab"]
    rounded = [Point(label, float(t)) for t in times.astype(np.float32) for label in "ba"]
    assert tidy.points("v1", points) == tuple(points)
    found = tidy.points("v1", [*points, *rounded, Point("a", 18.6000001), Point("a", 18.6001)])
    assert [round(point.time_sec, 4) for point in found if point.label == "a"] == [0, 0.1, 18.6, 3600.1, 18.6001]
    assert [round(point.time_sec, 4) for point in found if point.label == "b"] == [0, 0.1, 18.6, 3600.1]
    rows = [Instance("a", 18.6, 24.8), Instance("a", 18, 24.8), Instance("a", float(np.float32(18.6)), 24.800001)]
    assert len(tidy.instances("v2", rows)) == 2
    assert [finding.message for finding in tidy.findings] == [
        "here: points merged, as they stand twice: 9, the first in v1",
        "here: instances merged, as they stand twice: 1, the first in v2",
    ]


def test_a_file_that_is_cut_while_it_is_mapped_is_named(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.npy", "b.npy")]
    for path in paths:
        np.save(path, np.zeros((4000, 4), np.float32))
    parts = [load_features(path) for path in paths]
    joined = JoinedFeatures(*parts)
    for features in (parts[0], joined, joined[3000:]):
        assert intact(features) is features
    os.truncate(paths[1], 40_000)
    assert intact(parts[0]) is parts[0]
    message = (
        f"^{paths[1]}: expected the 64128 bytes that it had when it was opened, found 40000: it was cut meanwhile$"
    )
    with pytest.raises(InputError, match=message):
        intact(joined[3000:])
    with pytest.raises(InputError, match=message):
        validate(dataset(replace(GOOD, features=parts[1])))
    with pytest.raises(InputError, match=message):
        whole([replace(GOOD, features=joined)])
    with pytest.raises(InputError, match=message):
        TrainingSet([replace(GOOD, features=joined)], ("jump", "run"))[0, 0, 0]
    paths[0].unlink()  # what is mapped stays
    assert intact(parts[0]) is parts[0]
