"""How long training will take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from potloc_fast.config import load_config
from potloc_fast.engine import align, estimate
from potloc_fast.engine.run import Run
from potloc_fast.engine.train import load_dataset, train

CPU = torch.device("cpu")
SMALL = ("data.recordings=5", "train.epochs=3", "train.batch_size=2", "base.train.epochs=2", "base.train.batch_size=5")


@pytest.mark.parametrize(
    ("steps", "overrides", "passes"),
    [
        (("base",), (), 2),
        (("base",), ("base.train.stop_epoch=1",), 1),
        (("potloc",), (), 9),
        (("base", "potloc", "detect"), ("rounds=3",), 2 + 21),
        (("potloc",), ("rounds=3", "supervision=ground-truth"), 9),
        (("pseudo-labels",), (), 0),
        (("pseudo-labels",), ("pseudo_labels.variant=aligned",), 24 * align.STEPS),
    ],
)
def test_passes_are_counted(
    steps: tuple[str, ...], overrides: tuple[str, ...], passes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "_pass_sec", lambda *_: 0.5)
    config = load_config("synthetic", [*SMALL, *overrides])
    dataset = load_dataset(config)
    recordings = dataset.recordings[:5]
    run = Run.create(tmp_path, config, dataset)
    assert estimate.training_sec(run, recordings, steps, CPU) == pytest.approx(0.5 * passes)


def test_it_is_said_before_training_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("potloc_fast.engine.train.training_sec", lambda *_: 130.0)
    config = load_config("synthetic", [*SMALL, "model.width=16", "supervision=points"])
    train(config, tmp_path, ["potloc"])
    printed = capsys.readouterr()
    assert "training will take about 2 min 10 s here" in printed.err
    train(config, tmp_path, ["potloc"], resume=True)
    assert "training will take" not in capsys.readouterr().err


def test_a_pass_is_timed(tmp_path: Path) -> None:
    config = load_config("synthetic", SMALL)
    dataset = load_dataset(config)
    run = Run.create(tmp_path, config, dataset)
    took = estimate.training_sec(run, dataset.subset("train"), ("base", "potloc"), CPU)
    assert 0 < took < 600
