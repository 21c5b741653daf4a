"""Training, detection and the folder of a run."""

from __future__ import annotations

import json
import math
import pickle
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import potloc_fast
from potloc_fast import cli
from potloc_fast.config import Config, load_config
from potloc_fast.config.schema import EngineConfig
from potloc_fast.data import Grid, Recording
from potloc_fast.data.dataset import Batch, TrainingSet
from potloc_fast.engine import detect as detect_module
from potloc_fast.engine import device
from potloc_fast.engine import fit as engine_fit
from potloc_fast.engine.capture import CapturedStep
from potloc_fast.engine.detect import detect
from potloc_fast.engine.fit import WarmedAverage, fit
from potloc_fast.engine.metrics import Metrics
from potloc_fast.engine.run import Run, Stage
from potloc_fast.engine.train import STEPS, evaluate_run, load_dataset, supervision_of
from potloc_fast.errors import InputError
from potloc_fast.evaluation import Segments, read_detections
from potloc_fast.files import locked
from potloc_fast.models import BaseModel, POTLoc

TINY = (
    "data.recordings=6",
    "data.length=80",
    "data.width=6",
    "data.classes=3",
    "base.model.hidden=8",
    "base.train.epochs=2",
    "base.train.batch_size=2",
    "model.width=8",
    "model.levels=1",
    "train.epochs=2",
    "train.batch_size=2",
    "train.ema=0.99",
    "engine.device=cpu",  # whose bytes are compared
)
STEPS_OF_A_STAGE = 4  # 4 training recordings, 2 in a batch, 2 epochs
STAGES: tuple[Stage, ...] = ("base", "potloc")


def tiny(*overrides: str) -> Config:
    return load_config("synthetic", [*TINY, *overrides])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return potloc_fast.train(tiny(), tmp_path_factory.mktemp("engine") / "run")


@pytest.fixture(scope="module")
def tested(run: Run) -> tuple[Recording, ...]:
    return load_dataset(run.config).subset("test")


def weights(run: Run, stage: Stage) -> dict[str, torch.Tensor]:
    return load_file(run.folder / stage / "model.safetensors")


def same_weights(first: Run, second: Run, stage: Stage) -> bool:
    one, other = weights(first, stage), weights(second, stage)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rows(segments: Segments, video: str) -> list[tuple[str, float, float, float]]:
    entries = segments.to_results()["results"][video]
    return [(entry["label"], *entry["segment"], entry["score"]) for entry in entries]


def test_the_folder_is_complete(run: Run) -> None:
    found = {
        str(path.relative_to(run.folder))
        for path in run.folder.rglob("*")
        if path.is_file() and "events" not in path.name
    }
    both = {"model.safetensors", "metrics.jsonl", "detections.json", "evaluation.json"}
    assert found == {
        ".lock",
        "config.yaml",
        "dataset.json",
        "environment.json",
        "ground_truth.json",
        "pseudo_labels.json",
        "base/proposals.json",
        *(f"{stage}/{name}" for stage in STAGES for name in both),
        "potloc/quality.json",
    }
    assert load_config(run.folder / "config.yaml") == run.config
    assert Run.open(run.folder) == run
    points = sum(len(recording.points) for recording in load_dataset(run.config).subset("train"))
    labels = json.loads((run.folder / "pseudo_labels.json").read_text())["results"]
    assert 0 < sum(map(len, labels.values())) <= points


@pytest.mark.parametrize("stage", STAGES)
def test_every_step_is_logged(run: Run, stage: Stage) -> None:
    log = [json.loads(line) for line in (run.folder / stage / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == list(range(STEPS_OF_A_STAGE))
    assert [row["epoch"] for row in log] == [0, 0, 1, 1]
    for row in log:
        assert row["stage"] == stage
        assert all(math.isfinite(row[name]) for name in ("total", "mil", "act", "bg", "grad_norm", "lr", "seconds"))
    loss = (run.config.base if stage == "base" else run.config).loss
    for row in log:
        parts = loss.mil * row["mil"] + loss.act * row["act"] + loss.bg * row["bg"]
        assert row["total"] == pytest.approx(parts, rel=1e-5)
    events = b"".join(path.read_bytes() for path in (run.folder / stage / "tensorboard").iterdir())
    for written in (f"{stage}/total", "mAP/mean", "mAP/0.7", "_hparams_", "train.batch_size"):
        assert written.encode() in events


def test_training_moves_the_weights(run: Run) -> None:
    for stage in STAGES:
        before = run.build(stage).state_dict()
        after = weights(run, stage)
        moved = [name for name, value in after.items() if not torch.equal(value, before[name])]
        assert len(moved) > len(after) / 2


def test_a_seed_decides_the_weights(run: Run, tmp_path: Path) -> None:
    again = potloc_fast.train(tiny(), tmp_path / "again")
    assert all(same_weights(run, again, stage) for stage in STAGES)
    for name in ("base/proposals.json", "pseudo_labels.json", "potloc/detections.json", "potloc/evaluation.json"):
        assert (again.folder / name).read_text() == (run.folder / name).read_text()
    other = potloc_fast.train(tiny("seed=1"), tmp_path / "other", ["base"])
    assert not same_weights(run, other, "base")


def test_steps_run_alone_from_files(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "base").mkdir(parents=True)
    shutil.copyfile(run.folder / "base" / "proposals.json", folder / "base" / "proposals.json")
    potloc_fast.train(tiny(), folder, ["pseudo-labels"])
    assert (folder / "pseudo_labels.json").read_text() == (run.folder / "pseudo_labels.json").read_text()
    assert not (folder / "potloc").exists()
    alone = potloc_fast.train(tiny(), folder, ["potloc"])
    assert same_weights(run, alone, "potloc")
    assert not (folder / "potloc" / "detections.json").exists()
    potloc_fast.train(tiny(), folder, ["detect"])
    for name in ("detections.json", "evaluation.json", "quality.json"):
        assert (folder / "potloc" / name).read_text() == (run.folder / "potloc" / name).read_text()
    assert not (folder / "base" / "detections.json").exists()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("pseudo-labels", "base/proposals.json: expected what the step base writes, found none"),
        ("potloc", "pseudo_labels.json: expected what the step pseudo-labels writes, found none"),
        ("detect", "run: expected a trained model to detect with, found none"),
        ("bse", f"bse: expected steps among {', '.join(STEPS)}"),
    ],
)
def test_a_step_without_the_earlier_ones_is_refused(tmp_path: Path, step: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        potloc_fast.train(tiny(), tmp_path / "run", [step])  # type: ignore[list-item]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_warmed_average_is_what_it_says(decay: float) -> None:
    model = torch.nn.Linear(3, 2)
    average = WarmedAverage(model, decay)
    expected = None
    for step in range(30):
        with torch.no_grad():
            model.weight.normal_()
        average.update_parameters(model)
        kept = min(decay, (1 + step) / (10 + step))
        new = model.weight.detach().double()
        expected = new if expected is None else kept * expected + (1 - kept) * new
    torch.testing.assert_close(average.module.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_warmed_average_forgets_the_initialisation() -> None:
    model = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(model.weight, 1000.0)
    average = WarmedAverage(model, 0.999)
    for value in (1000.0, *[1.0] * 20):
        torch.nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    assert float(average.module.weight.detach().abs().max()) < 1.1


def test_the_average_is_what_is_saved(run: Run, tmp_path: Path) -> None:
    shutil.copyfile(run.folder / "pseudo_labels.json", tmp_path / "pseudo_labels.json")
    plain = potloc_fast.train(tiny("train.ema=null"), tmp_path, ["potloc"])

    def losses(of: Run) -> list[float]:
        return [json.loads(line)["total"] for line in (of.folder / "potloc" / "metrics.jsonl").open()]

    assert losses(plain) == losses(run)
    assert not same_weights(plain, run, "potloc")


def test_predict_takes_paths_arrays_and_recordings(run: Run, tested: tuple[Recording, ...], tmp_path: Path) -> None:
    expected = (run.folder / "potloc" / "detections.json").read_text()
    paths = [tmp_path / f"{recording.id}.npy" for recording in tested]
    for path, recording in zip(paths, tested, strict=True):
        np.save(path, recording.features)
    arrays = {recording.id: np.asarray(recording.features) for recording in tested}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for given in (tested, paths, [str(path) for path in paths], arrays, tensors):
        assert json.dumps(potloc_fast.predict(run, given).to_results()) + "\n" == expected
    assert json.dumps(potloc_fast.predict(run.folder, tested).to_results()) + "\n" == expected
    assert len(read_detections(run.folder / "potloc" / "detections.json"))


def test_the_base_model_detects_as_it_did(run: Run, tested: tuple[Recording, ...]) -> None:
    base = run.config.base
    found = detect(run.load("base"), tested, run.classes, base.detect, base.loss.topk_ratio)
    assert json.dumps(found.to_results()) + "\n" == (run.folder / "base" / "detections.json").read_text()


@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_detects_what_each_recording_does_alone(run: Run, stage: Stage) -> None:
    rng = np.random.default_rng(0)
    recordings = [
        Recording(name, rng.standard_normal((length, run.features)).astype(np.float32), run.grid, "test")
        for name, length in (("long", 80), ("one", 1), ("short", 9), ("odd", 37))
    ]
    section = run.config.base if stage == "base" else run.config
    model = run.load(stage)
    together = detect(model, recordings, run.classes, section.detect, section.loss.topk_ratio)
    assert together.videos == ("long", "one", "short", "odd")
    assert (np.diff(together.video) >= 0).all()
    assert {together.videos[video] for video in together.video} >= {"long", "short", "odd"}
    for recording in recordings:
        alone = detect(model, [recording], run.classes, section.detect, section.loss.topk_ratio)
        batched, single = rows(together, recording.id), rows(alone, recording.id)
        assert [row[0] for row in batched] == [row[0] for row in single]
        np.testing.assert_allclose([row[1:] for row in batched], [row[1:] for row in single], atol=1e-3)


def test_detections_are_inside_the_recording_and_sorted(run: Run, tested: tuple[Recording, ...]) -> None:
    detections = potloc_fast.predict(run, tested)
    assert detections.labels == run.classes
    for recording in tested:
        found = rows(detections, recording.id)
        assert found
        for label, start, end, score in found:
            assert label in run.classes
            assert 0 <= start < end <= recording.duration_sec
            assert math.isfinite(score)
        for label in run.classes:
            scores = [row[3] for row in found if row[0] == label]
            assert scores == sorted(scores, reverse=True)


def test_detection_leaves_a_model_in_training_as_it_was(run: Run, tested: tuple[Recording, ...]) -> None:
    base = run.config.base
    model = run.load("base").train()
    found = detect(model, tested, run.classes, base.detect, base.loss.topk_ratio)
    assert model.training
    # Without dropout, that is.
    assert found.to_results() == read_detections(run.folder / "base" / "detections.json").to_results()


def test_score_curves_are_probabilities(run: Run, tested: tuple[Recording, ...]) -> None:
    curves = potloc_fast.Detector.load(run).scores(tested[0])
    assert curves.shape == (len(tested[0].features), len(run.classes))
    assert curves.dtype == np.float32
    assert 0 <= curves.min() < curves.max() <= 1


def test_detections_of_classes_that_were_not_tested_score_nothing(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    truth = json.loads((folder / "ground_truth.json").read_text())
    for entry in truth["database"].values():
        entry["annotations"] = [item for item in entry["annotations"] if item["label"] == run.classes[0]]
    (folder / "ground_truth.json").write_text(json.dumps(truth))
    results = {"any": [{"label": run.classes[1], "score": 0.5, "segment": [0.0, 1.0]}]}
    (folder / "potloc" / "detections.json").write_text(json.dumps({"results": results}))
    result = evaluate_run(Run.open(folder), "potloc")
    assert result.mean == 0
    assert "1 of 1 detections ignored" in result.warnings[0]


@pytest.mark.parametrize("stage", STAGES)
def test_the_evaluation_is_that_of_the_files(run: Run, stage: Stage) -> None:
    result = potloc_fast.evaluate(
        run.folder / stage / "detections.json", run.folder / "ground_truth.json", subset="test"
    )
    assert json.loads((run.folder / stage / "evaluation.json").read_text()) == result.to_json()
    assert result.mean == pytest.approx(np.mean(result.map))


def test_standardization_is_saved_with_the_model(tmp_path: Path) -> None:
    run = potloc_fast.train(tiny("data.standardize=true"), tmp_path / "run", ["base"])
    mean, std = load_dataset(run.config).feature_stats("train")
    model = run.load("base")
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 5, len(mean)))).float()
    expected = (x - torch.from_numpy(mean).float()) / torch.from_numpy(std).float()
    mask = torch.tensor([[True, True, False, True, True]])
    expected[~mask] = 0
    torch.testing.assert_close(model.standardize(x, mask), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"v": np.zeros((5, 4), np.float32)}, "v: expected width 6, which the model was trained on, got 4"),
        ({"v": np.zeros((0, 6), np.float32)}, "v: expected at least one snippet, found an empty recording"),
        ({"v": np.full((5, 6), np.inf)}, "v: expected finite features, got inf at snippet 0, channel 0"),
        ({"v": np.zeros((1, 5, 6), np.float32)}, r"v: expected float32 features of shape \[snippets, channels\]"),
        ({}, "run: expected at least one recording, found none"),
        (["a/v.npy"], "a/v.npy: expected a feature file, found none"),
    ],
)
def test_features_that_cannot_be_used_are_named(run: Run, given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        potloc_fast.predict(run, given)  # type: ignore[arg-type]


def test_resumed_training_equals_training_without_a_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("train.epochs=3")
    whole = potloc_fast.train(config, tmp_path / "whole")
    calls = 0
    original = engine_fit.total_loss

    def interrupted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == STEPS_OF_A_STAGE + 4:  # in the second epoch of the second model
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(engine_fit, "total_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        potloc_fast.train(config, tmp_path / "broken")
    assert (tmp_path / "broken" / "potloc" / "checkpoint.pt").is_file()
    monkeypatch.undo()
    # What a run is computed on may change.
    config = tiny("train.epochs=3", "engine.device=cpu", "engine.cuda_graph=off")
    broken = potloc_fast.train(config, tmp_path / "broken", resume=True)
    for stage in ("base", "potloc"):
        paths = [run.folder / stage / "model.safetensors" for run in (whole, broken)]
        assert paths[0].read_bytes() == paths[1].read_bytes()
        rows = [
            [json.loads(line)["total"] for line in (run.folder / stage / "metrics.jsonl").read_text().splitlines()]
            for run in (whole, broken)
        ]
        assert rows[0] == rows[1]
        assert not (broken.folder / stage / "checkpoint.pt").exists()
    with pytest.raises(InputError, match="begin a new run"):
        potloc_fast.train(tiny("seed=1"), tmp_path / "broken", resume=True)


# What a run leaves to the next


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock" and path.suffix != ".scores"  # which holds the time of writing
    }


def test_what_a_run_will_write_is_removed_before_it_begins(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    for name in (
        "base/checkpoint.pt",
        "round_1/model.safetensors",
        "plots/base_losses.png",
        "plots/test_a.png",
        "own.txt",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    kept = {"dataset.json", "environment.json", "ground_truth.json", "own.txt", "config.yaml"}
    of_steps = {
        "potloc": {name for name in files(folder) if name.startswith("potloc/")} | {"round_1/model.safetensors"},
        "base": {name for name in files(folder) if name.startswith("base/")} | {"plots/base_losses.png"},
        "pseudo-labels": {"pseudo_labels.json"},
        "detect": {"plots/test_a.png"},
    }
    monkeypatch.setattr(Run, "create", interrupt)  # which writes config.yaml
    left = set(files(folder))
    for step in ("pseudo-labels", "potloc", "base", "detect"):
        steps = STEPS if step == "detect" else [step]
        with pytest.raises(KeyboardInterrupt):
            potloc_fast.train(tiny("seed=1", "supervision=points"), folder, steps)  # type: ignore[arg-type]
        left -= of_steps[step]
        assert set(files(folder)) == left, step
    assert left == kept


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stage", STAGES)
def test_weights_of_another_training_are_not_resumed(run: Run, tmp_path: Path, stage: Stage) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    before = files(tmp_path / "run")
    path = tmp_path / "run" / stage / "model.safetensors"
    path.unlink()
    if stage == "potloc":  # of other labels
        other = potloc_fast.train(tiny("supervision=points"), tmp_path / "other", ["potloc"])
    else:
        other = potloc_fast.train(tiny("seed=1"), tmp_path / "other", ["base"])
    shutil.copyfile(other.folder / stage / "model.safetensors", path)
    with pytest.raises(InputError) as caught:
        potloc_fast.train(tiny(), tmp_path / "run", resume=True)
    assert str(caught.value).startswith(f"{path}: expected weights of the training that is to be resumed, got those of")
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"model\.safetensors: expected weights as training writes them, got: "):
        potloc_fast.train(tiny(), tmp_path / "run", resume=True)
    path.write_bytes(before[f"{stage}/model.safetensors"])
    potloc_fast.train(tiny(), tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == before


def test_a_checkpoint_goes_once_the_weights_are_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        potloc_fast.train(tiny(), tmp_path, ["base"])
    checkpoint = tmp_path / "base" / "checkpoint.pt"
    content = checkpoint.read_bytes()
    monkeypatch.undo()
    monkeypatch.setattr(engine_fit, "total_loss", None)  # nothing is left to train
    assert same_weights(run, potloc_fast.train(tiny(), tmp_path, ["base"], resume=True), "base")
    assert not checkpoint.exists()
    checkpoint.write_bytes(content)  # a kill came between
    potloc_fast.train(tiny(), tmp_path, ["base"], resume=True)
    assert not checkpoint.exists()


def fit_again(folder: Path, digest: str = "of this", **settings: Any) -> BaseModel:
    """Train a tiny base model, or go on with it."""
    config = tiny().base
    dataset = load_dataset(tiny())
    torch.manual_seed(0)
    model = BaseModel(6, 3, hidden=4)
    data = TrainingSet(dataset.subset("train"), dataset.classes)
    settings = {"seed": 0, "folder": folder, "stage": "base", "digest": digest, **settings}
    return fit(model, data, 3, config.loss, config.train, **settings)


def test_a_checkpoint_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    fit_again(tmp_path)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    with pytest.raises(
        InputError, match=r"checkpoint\.pt: expected a checkpoint of the training that is to be resumed"
    ):
        fit_again(tmp_path, "of another", resume=True)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    pickled = pickle.dumps({"epoch": 0})
    for content in (b"", whole[: len(whole) // 2], whole[:-1], bytes(flipped), bytes(len(whole)), pickled):
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=r"checkpoint\.pt: expected a checkpoint as training wrote it, got a damaged"
        ):
            fit_again(tmp_path, resume=True)


def test_other_threads_are_noted_on_resumption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device.say.cache_clear()
    fit_again(tmp_path)
    fit_again(tmp_path, resume=True)
    assert capsys.readouterr().err == ""
    torch.set_num_threads(2)
    fit_again(tmp_path, resume=True)
    assert capsys.readouterr().err == "base: goes on with 2 threads after 1, which rounds differently\n"


@pytest.mark.parametrize("rows", [2, 5])
def test_a_log_is_cut_and_gone_on_with(rows: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device.say.cache_clear()
    path = tmp_path / "metrics.jsonl"
    whole = [f'{{"step": {step}}}\n' for step in range(rows)]
    path.write_text("".join(whole) + '{"step": 5, "tot')
    with Metrics(tmp_path, "base", 20, 3, 0) as metrics:
        assert path.read_text() == "".join(whole[:3])  # whenever the process is killed from here on
        metrics.add(0, 3, 0.1, ["total"], torch.tensor([1.0]))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [*range(min(3, rows)), 3]
    gap = f"{path}: expected rows of 3 earlier steps, found 2: the log has a gap\n"
    assert capsys.readouterr().err == (gap if rows < 3 else "")


def test_a_log_on_a_full_disk_is_named(
    little_room: Callable[[int], AbstractContextManager[None]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def log() -> None:
        with Metrics(tmp_path, "base", 100, 0, 0) as metrics:
            for step in range(100):
                metrics.add(0, step, 0.1, ["total"], torch.tensor([1.0]))
            metrics.flush()

    with little_room(2000), pytest.raises(InputError) as caught:
        log()
    assert str(caught.value) == f"{tmp_path / 'metrics.jsonl'}: expected a log to write to, got: File too large"
    assert capsys.readouterr().err == ""


def test_a_folder_is_trained_in_by_one_alone(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    before = files(tmp_path / "run")
    for resume in (False, True):
        with (
            locked(tmp_path / "run"),
            pytest.raises(InputError, match="run: expected a folder that no other training writes to, found process"),
        ):
            potloc_fast.train(tiny("seed=1"), tmp_path / "run", resume=resume)
    assert files(tmp_path / "run") == before


def test_a_run_whose_folder_vanishes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanish(*args: Any) -> Any:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return total_loss(*args)

    total_loss = engine_fit.total_loss
    monkeypatch.setattr(engine_fit, "total_loss", vanish)
    with pytest.raises(InputError, match=r"run: expected the folder that this run began in, found that it was"):
        potloc_fast.train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("supervision", ["ground-truth", "proposals", "points"])
@pytest.mark.parametrize("backbone", ["transformer", "convolutions"])
def test_other_supervision_and_backbone(run: Run, tmp_path: Path, supervision: str, backbone: str) -> None:
    shutil.copytree(run.folder / "base", tmp_path / "base")
    config = tiny(f"supervision={supervision}", f"backbone={backbone}")
    other = potloc_fast.train(config, tmp_path, ["potloc", "detect"])
    assert isinstance(other.load("potloc"), BaseModel if backbone == "convolutions" else POTLoc)
    assert (tmp_path / "potloc" / "evaluation.json").is_file()
    assert not (tmp_path / "pseudo_labels.json").exists()


def test_the_labels_of_each_supervision(run: Run, tmp_path: Path) -> None:
    recordings = load_dataset(run.config).subset("train")
    labels = {
        name: supervision_of(
            replace(run, config=tiny(f"supervision={name}")), recordings, run.folder / "pseudo_labels.json"
        )
        for name in ("ground-truth", "proposals", "pseudo-labels", "points")
    }
    assert labels["points"] is None
    first = recordings[0]
    assert labels["ground-truth"][first.id] == [
        (item.label, (item.start_sec + item.end_sec) / 2, item.start_sec, item.end_sec) for item in first.instances
    ]
    proposals = read_detections(run.folder / "base" / "proposals.json")
    assert sum(map(len, labels["proposals"].values())) == len(proposals)
    for name in ("proposals", "pseudo-labels"):
        for found in labels[name].values():
            assert all(start <= point <= end for _, point, start, end in found)
    points = [point for item in recordings for point in item.points]
    assert {point for found in labels["pseudo-labels"].values() for _, point, _, _ in found} <= {
        point.time_sec for point in points
    }


def test_rounds_learn_from_the_round_before(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    again = potloc_fast.train(tiny("rounds=2"), tmp_path / "run", ["potloc", "detect"])
    first = again.folder / "round_1"
    assert same_weights(run, replace(again, folder=again.folder), "base")
    shutil.copytree(run.folder, tmp_path / "half")
    own = run.config.train
    half = tiny(f"train.epochs={(own.epochs + 1) // 2}", f"train.warmup_epochs={own.warmup_epochs / 2}")
    assert half.train.epochs < own.epochs
    alone = potloc_fast.train(half, tmp_path / "half", ["potloc"])
    one, other = load_file(first / "model.safetensors"), weights(alone, "potloc")
    assert all(torch.equal(one[name], other[name]) for name in one)  # the first round is one of half the epochs
    assert not same_weights(run, again, "potloc")
    assert (first / "pseudo_labels.json").read_text() != (again.folder / "pseudo_labels.json").read_text()
    assert (first / "proposals.json").is_file()
    # Interrupted between the rounds: the outcome is the same.
    before = weights(again, "potloc")
    shutil.rmtree(again.folder / "potloc")
    resumed = potloc_fast.train(tiny("rounds=2"), again.folder, ["potloc"], resume=True)
    assert all(torch.equal(before[name], value) for name, value in weights(resumed, "potloc").items())


def test_labels_of_a_later_round_come_from_a_head_and_from_thresholds(tmp_path: Path) -> None:
    changes = ("rounds=2", "train.epochs=2", "base.train.epochs=1", "model.boundary_head=true")
    run = potloc_fast.train(tiny(*changes, "detect.proposals=boundaries", "detect.nms.voting=0.5"), tmp_path)
    recordings, model = load_dataset(run.config).subset("train"), run.load("round_1")
    nms = run.config.detect.nms.model_copy(update={"voting": None})
    rules = [
        run.config.detect.model_copy(update={"proposals": kind, "nms": nms}) for kind in ("boundaries", "thresholds")
    ]
    head, cut = (detect(model, recordings, run.classes, own, run.config.loss.topk_ratio) for own in rules)
    written = read_detections(tmp_path / "round_1" / "proposals.json")
    assert len(head)
    assert len(cut)
    wanted = [pair for found in (head, cut) for pair in zip(found.start_sec, found.end_sec, found.score, strict=True)]
    np.testing.assert_allclose(
        sorted(zip(written.start_sec, written.end_sec, written.score, strict=True)), sorted(wanted)
    )


def test_what_a_supervision_needs_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"proposals\.json: expected what the step base writes"):
        potloc_fast.train(tiny("supervision=proposals"), tmp_path, ["potloc"])
    potloc_fast.train(tiny("supervision=points"), tmp_path / "points", ["potloc"])


def test_the_length_of_a_snippet_can_be_said(run: Run, tested: tuple[Recording, ...], tmp_path: Path) -> None:
    features = {"x": np.asarray(tested[0].features)}
    usual, slow = potloc_fast.predict(run, features), potloc_fast.predict(run, features, snippet_sec=1.28)
    np.testing.assert_allclose(slow.start_sec, 2 * usual.start_sec)
    np.testing.assert_allclose(slow.end_sec, 2 * usual.end_sec)
    # Where recordings differ, none is the usual one.
    dataset = load_dataset(run.config)
    first, *others = dataset.recordings
    mixed = replace(dataset, recordings=(replace(first, grid=replace(first.grid, fps=30)), *others))
    shutil.copytree(run.folder / "potloc", tmp_path / "potloc")
    assert Run.create(tmp_path, run.config, mixed).grid is None
    with pytest.raises(InputError, match=r"^x: expected how long a snippet lasts \(--snippet-sec\), which differs"):
        potloc_fast.predict(tmp_path, features)
    same = potloc_fast.predict(tmp_path, features, snippet_sec=0.64)
    np.testing.assert_array_equal(same.start_sec, usual.start_sec)
    for sec in (0, 1e-320, 1e300):
        with pytest.raises(InputError, match=r"^snippet_sec: expected 1e-09 to 1e\+06 seconds, got "):
            potloc_fast.predict(tmp_path, features, snippet_sec=sec)


# What a run is computed on


NO_GPU = "engine.device: expected a GPU that can be used, found none"
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


def losses(folder: Path, stage: Stage) -> list[dict[str, Any]]:
    """The log of a stage, but for the seconds."""
    found = [json.loads(line) for line in (folder / stage / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


@no_gpu
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine.device=cuda"], NO_GPU),
        (["engine.cuda_graph=on"], "engine.cuda_graph: expected base steps that can be captured, but CUDA graphs need"),
    ],
)
def test_a_missing_gpu_is_answered_in_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    message: str,
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr("sys.argv", ["potloc-fast", "train", "synthetic", *overrides, "--run-dir", str(folder)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.startswith(f"potloc-fast: {message}")
    assert err.count("\n") == 1
    assert not folder.exists()


@no_gpu
def test_the_device_of_a_prediction(run: Run, tested: tuple[Recording, ...]) -> None:
    with pytest.raises(InputError, match=NO_GPU):
        potloc_fast.predict(run, tested, device="cuda")
    trained_on_gpu = replace(run, config=tiny("engine.device=cuda"))
    with pytest.raises(InputError, match=NO_GPU):
        potloc_fast.Detector.load(trained_on_gpu)
    expected = (run.folder / "potloc" / "detections.json").read_text()
    assert json.dumps(potloc_fast.predict(trained_on_gpu, tested, device="cpu").to_results()) + "\n" == expected


@pytest.fixture
def fake_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Two GPUs that kernels run on, as far as `pick_device` looks; words that are put into the list fail a kernel."""
    refusals: list[str] = []

    def kernel(*_: object) -> None:
        if refusals:
            raise RuntimeError(f"sigmoid_focal_loss: {refusals[0]}\nand more")

    device.say.cache_clear()
    device.unusable.cache_clear()
    monkeypatch.setattr(device, "_C", SimpleNamespace(cuda_architectures="9.0", without_cuda=""))
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_name": lambda _: "a GPU",
        "get_device_capability": lambda _: (7, 5),
        "synchronize": lambda _: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: [None, None])
    monkeypatch.setattr(torch.ops.potloc_fast, "sigmoid_focal_loss", kernel)
    yield refusals
    device.unusable.cache_clear()


def test_what_auto_takes(
    fake_gpus: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without = SimpleNamespace(cuda_architectures="", without_cuda="nvcc was not found")
    monkeypatch.setattr(device, "_C", without)
    for _ in range(2):
        assert device.pick_device(EngineConfig()) == torch.device("cpu")
    reason = "potloc_fast was built without CUDA kernels (nvcc was not found)"
    assert capsys.readouterr().err == f"engine.device: cpu ({reason})\n"  # once
    with pytest.raises(InputError, match=f"found none: {re.escape(reason)}"):
        device.pick_device(EngineConfig(device="cuda"))
    device.unusable.cache_clear()
    monkeypatch.setattr(device, "_C", SimpleNamespace(cuda_architectures="9.0"))
    assert device.pick_device(EngineConfig()) == torch.device("cuda", 0)
    assert capsys.readouterr().err == "engine.device: cuda:0 (a GPU)\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device.pick_device(EngineConfig(device="cuda")) == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="found none: 2 for process 2 of this machine"):
        device.pick_device(EngineConfig(device="cuda"))


@pytest.mark.parametrize(
    "said",
    [
        "CUDA says no kernel image is available for execution on the device",
        "CUDA says CUDA driver version is insufficient for CUDA runtime version",
    ],
)
def test_a_gpu_that_runs_no_kernel_is_not_taken(
    said: str, fake_gpus: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_gpus.append(said)
    reason = f"the kernels, built for 9.0, don't run on a GPU (7.5): {said}"
    assert device.pick_device(EngineConfig()) == torch.device("cpu")
    assert capsys.readouterr().err == f"engine.device: cpu ({reason})\n"
    with pytest.raises(InputError) as refusal:
        device.pick_device(EngineConfig(device="cuda"))
    assert str(refusal.value) == f"engine.device: expected a GPU that can be used, found none: {reason}"
    assert len(str(refusal.value)) <= 300
    fake_gpus.clear()  # it is tried once
    assert device.pick_device(EngineConfig()) == torch.device("cpu")


def test_info_says_why_a_gpu_is_not_used(
    fake_gpus: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_gpus.append("CUDA says no kernel image is available for execution on the device")
    monkeypatch.setattr("sys.argv", ["potloc-fast", "info", "--json"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    facts = json.loads(capsys.readouterr().out)["cuda"]
    assert not facts["usable"]
    assert ("no kernel image" in facts["reason"]) == facts["compiled"]


def test_batches_are_copied_on_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    now = threading.local()

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def record_event(self) -> str:
            return f"what {self.name} did"

        def wait_event(self, event: str) -> None:
            events.append(f"{self.name} waits for {event}")

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        now.name = chosen.name
        yield
        now.name = "main"

    def to(batch: Batch, _: object) -> Batch:
        events.append(f"copied on {now.name}")
        return batch

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(Batch, "to", to)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: events.append(f"read on {stream.name}"))
    given = [Batch(*(torch.full((1,), number) for _ in fields(Batch))) for number in range(3)]
    for number, batch in enumerate(device.bring(given, torch.device("cuda"))):
        assert batch.features == number
        events.append(f"computed {number}")
    assert events.count("copied on side") == 3
    own = [event for event in events if event != "copied on side"]
    assert own == [
        event
        for number in range(3)
        for event in ("main waits for what side did", *["read on main"] * len(fields(Batch)), f"computed {number}")
    ]


def test_bfloat16_learns_what_float32_does(tmp_path: Path) -> None:
    shared = ("supervision=ground-truth", "train.epochs=20", "engine.device=cpu")
    logs, maps = [], []
    for precision in ("fp32", "bf16"):
        config = load_config("synthetic", [*shared, f"engine.precision={precision}"])
        trained = potloc_fast.train(config, tmp_path / precision, ["potloc", "detect"])
        logs.append(losses(trained.folder, "potloc"))
        maps.append(evaluate_run(trained, "potloc").mean)
        assert all(value.dtype == torch.float32 for value in weights(trained, "potloc").values())
    totals = [[row["total"] for row in log] for log in logs]
    assert totals[0] != totals[1]
    np.testing.assert_allclose(totals[0][:10], totals[1][:10], rtol=0.02)
    assert maps[0] > 10
    assert maps[1] == pytest.approx(maps[0], abs=4)  # seeds are as far apart


def test_float16_scales_the_loss(run: Run, tmp_path: Path) -> None:
    half = potloc_fast.train(tiny("engine.precision=fp16", "train.clip=1"), tmp_path, ["base"])
    for row, other in zip(losses(run.folder, "base"), losses(half.folder, "base"), strict=True):
        assert row["total"] != other["total"]
        # The logged loss and gradient are those before scaling, which is by 65536 at first.
        assert other["total"] == pytest.approx(row["total"], rel=0.02)
        assert other["grad_norm"] == pytest.approx(row["grad_norm"], rel=0.05)


def test_float16_goes_on_after_a_step_that_ended_half_way() -> None:
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for ends_half_way in (True, False):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(2, 3)).sum()).backward()
        if ends_half_way:  # as a step does whose capture fails
            scaler.unscale_(optimizer)
    before = model.weight.detach().clone()
    engine_fit.update(model, optimizer, None, scaler)
    torch.testing.assert_close(model.weight.detach(), before - 0.1 * 2)


def test_tf32_is_for_the_run_alone() -> None:
    def state() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = state()
    with device.float32_products("tf32"):
        assert state() == ("high", True)
        with device.float32_products("fp32"):
            assert state() == ("highest", False)
        assert state() == ("high", True)
    assert state() == before


def test_a_compiled_model_trains_as_it_does_otherwise(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def compiled_form(model: torch.nn.Module) -> Any:  # stands for torch.compile, which takes a minute
        def forward(*args: Any) -> Any:
            calls.append(type(model))
            return model(*args)

        return forward

    monkeypatch.setattr(torch, "compile", compiled_form)
    shutil.copyfile(run.folder / "pseudo_labels.json", tmp_path / "pseudo_labels.json")
    compiled = potloc_fast.train(tiny("engine.compile=true"), tmp_path, ["potloc"])
    assert calls == [POTLoc] * STEPS_OF_A_STAGE
    assert losses(compiled.folder, "potloc") == losses(run.folder, "potloc")
    assert same_weights(run, compiled, "potloc")


def test_a_late_log_is_that_of_one_in_time(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_fit, "Metrics", lambda *args: Metrics(*args[:-1], 3))  # more than the steps of an epoch
    late = potloc_fast.train(tiny(), tmp_path, ["base"])
    assert losses(late.folder, "base") == losses(run.folder, "base")
    assert same_weights(run, late, "base")


@pytest.mark.parametrize("delay", [0, 3])
def test_a_late_log_names_the_step_that_failed(tmp_path: Path, delay: int) -> None:
    values = [torch.tensor([float(step)]) if step != 5 else torch.tensor([math.nan]) for step in range(20)]
    steps = []

    def log() -> None:
        with Metrics(tmp_path, "base", 20, 0, delay) as metrics:
            for step, value in enumerate(values):
                steps.append(step)
                metrics.add(step // 4, step, 0.1, ["total"], value)
                if step == 3:
                    metrics.flush()
                    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4

    with pytest.raises(InputError, match="base: expected a finite loss, got nan at step 5, epoch 1: lower"):
        log()
    assert steps[-1] == 5 + delay
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["total"]) for row in rows] == [(step, float(step)) for step in range(5)]


def test_items_are_read_ahead_in_order() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for item in range(6):
            made.append(item)
            yield item
        raise OSError("gone")

    ahead = device.read_ahead(items(), 2)
    assert next(ahead) == 0
    while len(made) < 3:  # two more, without being asked
        time.sleep(0.001)
    taken = [0]
    with pytest.raises(OSError, match="gone"):
        taken.extend(ahead)
    assert list(device.read_ahead(iter([3, 4, 5]), 2)) == [3, 4, 5]
    assert list(device.read_ahead([], 2)) == []


def test_a_pass_is_bounded(run: Run, tested: tuple[Recording, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    longest = max(len(recording.features) for recording in tested)
    passes = []
    model = run.load("potloc")
    model.register_forward_pre_hook(lambda _, given: passes.append(given[0].shape[:2].numel()))
    found = []
    for limit in (detect_module.SNIPPETS, longest + 1, 1):
        monkeypatch.setattr(detect_module, "SNIPPETS", limit)
        found.append(detect(model, tested, run.classes, run.config.detect, run.config.loss.topk_ratio))
    assert len(passes) == 1 + 2 * len(tested)
    assert max(passes[1:]) == longest
    for other in found[1:]:
        assert other.videos == found[0].videos
        np.testing.assert_array_equal(other.label, found[0].label)
        np.testing.assert_allclose(other.score, found[0].score, atol=1e-4)


def test_a_recording_of_200000_snippets() -> None:
    config = load_config("synthetic")
    torch.manual_seed(0)
    model = POTLoc(features=4, classes=3, width=8, heads=2, levels=4, window=9).eval()
    torch.nn.init.normal_(model.classifier.weight)
    features = np.random.default_rng(0).standard_normal((200_000, 4), dtype=np.float32)
    recording = Recording("long", features, Grid(fps=25, window=16, stride=16), "test")
    found = detect(model, [recording], ["a", "b", "c"], config.detect, config.loss.topk_ratio)
    assert len(found) > 10_000
    assert found.end_sec.max() == pytest.approx(recording.duration_sec, rel=0.01)
    # What is detected far from the cut is what is detected in a part of it.
    part = Recording("part", features[:2000], recording.grid, "test")
    alone = detect(model, [part], ["a", "b", "c"], config.detect, config.loss.topk_ratio)
    bound = part.duration_sec / 2
    found_segments, own_segments = (
        {(round(s, 3), round(e, 3)) for s, e in zip(x.start_sec, x.end_sec, strict=True) if e < bound}
        for x in (found, alone)
    )
    assert len(own_segments & found_segments) > 0.9 * len(own_segments) > 90


@no_gpu
def test_what_a_captured_step_is_fed_trains_alike(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # All but the capture itself: lengths rounded up, as many labels in every batch, a learning rate in a tensor.
    device.say.cache_clear()
    shapes = set()

    class Taken(CapturedStep):
        def __call__(self, batch: Batch) -> torch.Tensor:
            shapes.add(tuple(tensor.shape for tensor in vars(batch).values()))
            return super().__call__(batch)

    monkeypatch.setattr(engine_fit, "CapturedStep", Taken)
    monkeypatch.setattr(engine_fit, "capture_obstacle", lambda *_: None)
    shutil.copyfile(run.folder / "pseudo_labels.json", tmp_path / "pseudo_labels.json")
    static = potloc_fast.train(tiny(), tmp_path, ["potloc"])
    assert "engine.cuda_graph: off, as CUDA graphs need a GPU" in capsys.readouterr().err
    [shape] = shapes
    assert shape[0] == (2, engine_fit.MULTIPLE, run.features)
    rows = [[{**row, "stage": 0} for row in losses(of.folder, "potloc")] for of in (static, run)]
    assert rows[0] == [{name: pytest.approx(value, rel=1e-5) for name, value in row.items()} for row in rows[1]]


def test_features_that_stay_on_the_device_train_alike(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_fit, "batches", None)  # what would read them again
    kept = potloc_fast.train(tiny("data.resident=on"), tmp_path)
    for stage in STAGES:
        assert losses(kept.folder, stage) == losses(run.folder, stage)
        assert same_weights(run, kept, stage)


def test_aligned_labels_need_no_base_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ("pseudo_labels.variant=aligned", "rounds=2", "train.epochs=1", "auto=[loss.topk_ratio]")
    config = tiny(*changes)
    run = potloc_fast.train(config, tmp_path)
    assert "loss.topk_ratio=" in capsys.readouterr().err
    assert not (tmp_path / "base").exists()
    assert load_config(tmp_path / "config.yaml") == run.config != config
    assert run.config.auto == ()
    assert (tmp_path / "round_1" / "pseudo_labels.json").is_file()
    labels, written = tmp_path / "pseudo_labels.json", (tmp_path / "potloc" / "model.safetensors").read_bytes()
    points = sum(len(recording.points) for recording in load_dataset(config).subset("train"))
    assert sum(map(len, json.loads(labels.read_text())["results"].values())) == points
    # A resumption keeps what is there.
    before = labels.stat().st_mtime_ns
    potloc_fast.train(config, tmp_path, resume=True)
    assert labels.stat().st_mtime_ns == before
    assert (tmp_path / "potloc" / "model.safetensors").read_bytes() == written
