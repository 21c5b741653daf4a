"""Values that follow from the data, and keys that are set all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from potloc_fast.config import dump_config, load_config
from potloc_fast.data import Grid, Point, Recording
from potloc_fast.data.derive import STEPS, derive

AUTO = ("train.length", "train.batch_size", "train.epochs", "train.warmup_epochs", "loss.topk_ratio")


def recordings(count: int, length: int, gap: int) -> list[Recording]:
    """Recordings with a point every `gap` snippets."""
    points = tuple(Point("a", float(time)) for time in range(gap // 2, length, gap))
    features = np.zeros((length, 2), np.float32)
    return [Recording(f"r{i}", features, Grid(1, 1, 1), "train", points=points) for i in range(count)]


def test_the_default_for_own_recordings_leaves_open_what_must_suit_them() -> None:
    assert load_config("own", ["data.root=x"]).auto == AUTO


@pytest.mark.parametrize(
    ("count", "length", "gap", "crop", "batch"),
    [(42, 700, 30, 700, 4), (156, 100, 15, 100, 31), (10, 50_000, 30, 768, 4), (10, 50_000, 80, 1920, 4)],
)
def test_crops_batches_and_epochs_follow(count: int, length: int, gap: int, crop: int, batch: int) -> None:
    config, reasons = derive(load_config("own", ["data.root=x"]), recordings(count, length, gap))
    assert (config.train.length, config.train.batch_size) == (crop, batch)
    steps = config.train.epochs * -(-count // batch)
    assert STEPS <= steps < STEPS + -(-count // batch)
    assert config.train.warmup_epochs == pytest.approx(config.train.epochs / 15, abs=0.01)
    assert length / config.loss.topk_ratio == pytest.approx(gap / 4, rel=0.01)
    assert config.auto == ()
    assert [reason.partition("=")[0] for reason in reasons] == list(AUTO)


def test_large_sets_are_not_seen_many_times() -> None:
    config, _ = derive(load_config("own", ["data.root=x"]), recordings(3000, 800, 30))
    assert config.train.epochs == 1


def test_a_key_that_is_set_stays(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: own\ndata: {root: x}\ntrain: {epochs: 3}\n")
    config = load_config(path, ["loss.topk_ratio=9"])
    assert config.auto == ("train.length", "train.batch_size", "train.warmup_epochs")
    assert load_config(path).auto == (*config.auto, "loss.topk_ratio")
    derived, _ = derive(config, recordings(8, 700, 30))
    assert (derived.train.epochs, derived.loss.topk_ratio) == (3, 9)


def test_what_was_derived_is_read_back_as_it_is(tmp_path: Path) -> None:
    config, _ = derive(load_config("own", ["data.root=x"]), recordings(8, 700, 30))
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert derive(config, recordings(3, 90, 5)) == (config, [])


def test_without_points_to_compare_lengths_decide() -> None:
    config, _ = derive(load_config("own", ["data.root=x"]), recordings(2, 20, 20))
    assert config.loss.topk_ratio == 8
