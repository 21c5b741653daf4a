"""Studies: their arms, what they share, that they go on where they stopped, and their tables."""

from __future__ import annotations

import csv
import json
import os
import queue
from pathlib import Path

import pytest
import torch

from potloc_fast.config import Config, load_config
from potloc_fast.config.load import merge
from potloc_fast.engine.ablate import (
    STUDIES,
    Outcome,
    ablate,
    arms_of,
    base_folder,
    summary,
    take_gpu,
    to_csv,
    to_markdown,
)
from potloc_fast.errors import InputError

TINY = (
    "data.recordings=6",
    "data.length=80",
    "data.width=6",
    "data.classes=2",
    "base.model.hidden=8",
    "base.train.epochs=1",
    "model.width=8",
    "train.epochs=1",
)


def tiny() -> Config:
    return load_config("synthetic", TINY)


def test_table_2_has_the_papers_fourteen_rows() -> None:
    rows = [tuple(arm.settings.values()) for arm in arms_of("supervision", tiny())]
    kinds = [("ground-truth", "sampled"), ("ground-truth", "whole"), ("pseudo-labels", "sampled")]
    kinds += [("pseudo-labels", "whole"), ("proposals", "sampled"), ("proposals", "whole"), ("points", "whole")]
    assert rows == [(backbone, *kind) for backbone in ("transformer", "convolutions") for kind in kinds]


def test_convolutions_take_losses_training_and_thresholds_of_the_base_model() -> None:
    config = load_config("hapt")
    arms = {tuple(arm.settings.values()): arm.changes for arm in arms_of("supervision", config)}
    changes = arms["convolutions", "pseudo-labels", "sampled"]
    assert changes["loss"] == {**config.base.loss.model_dump(mode="json"), "radius": 2.0}
    assert changes["train"] == config.base.train.model_dump(mode="json")
    assert changes["detect"] == config.base.detect.model_dump(mode="json")
    assert arms["transformer", "ground-truth", "whole"] == {
        "backbone": "transformer",
        "supervision": "ground-truth",
        "loss": {"radius": None},
    }


def test_table_3_goes_from_0_to_5_levels() -> None:
    assert [arm.changes for arm in arms_of("levels", tiny())] == [{"model": {"levels": n}} for n in range(6)]


def test_extensions_are_taken_away_from_a_model_that_has_them() -> None:
    config = load_config("hapt_boundaries")
    first, *_, last = arms_of("extensions", config)
    plain = Config.model_validate(merge(config.model_dump(mode="json"), first.changes))
    without = load_config("hapt", ["model.levels=4", "detect.finest_level=1"])
    assert plain == without
    whole = Config.model_validate(merge(config.model_dump(mode="json"), last.changes))
    assert (whole.model, whole.detect, whole.rounds) == (config.model, config.detect, 2)
    with pytest.raises(InputError, match=r"^extensions: expected a configuration with model\.boundary_head"):
        arms_of("extensions", tiny())


def test_windows_lie_around_those_of_the_configuration(tmp_path: Path) -> None:
    windows = ["length_sec=0.5", "stride_sec=0.1", "features=statistics", "rate_hz=50"]
    config = load_config("own", [f"data.root={tmp_path}", *(f"data.windows.{value}" for value in windows)])
    rows = [tuple(arm.settings.values()) for arm in arms_of("windows", config)]
    sizes = [("0.5", "0.1"), ("0.25", "0.1"), ("1", "0.1"), ("0.5", "0.05"), ("0.5", "0.2"), ("0.5", "0.5")]
    assert rows == [*((*size, "statistics") for size in sizes), ("0.5", "0.1", "raw")]
    for arm in arms_of("windows", config):
        changed = Config.model_validate(merge(config.model_dump(mode="json"), arm.changes)).data.windows
        found = (f"{changed.length_sec:g}", f"{changed.stride_sec:g}", changed.features)
        assert found == tuple(arm.settings.values())
    with pytest.raises(InputError, match=r"^windows: expected a configuration with raw recordings"):
        arms_of("windows", tiny())


@pytest.mark.parametrize("study", [study for study in STUDIES if study != "windows"])
def test_every_arm_is_a_configuration_of_its_own(study: str) -> None:
    config = load_config("hapt_boundaries") if study == "extensions" else tiny()
    arms = arms_of(study, config)
    changed = [merge(config.model_dump(mode="json"), arm.changes) for arm in arms]
    assert len({Config.model_validate(values).model_dump_json() for values in changed}) == len(arms)
    assert len({arm.folder for arm in arms}) == len(arms)


def test_a_study_is_run_resumed_and_written(tmp_path: Path) -> None:
    outcomes = ablate("algorithm", tiny(), tmp_path, seeds=(0, 3), jobs=2)
    assert [(outcome.settings["algorithm"], outcome.seed) for outcome in outcomes] == [
        (variant, seed) for variant in ("paper", "released", "fused", "aligned") for seed in (0, 3)
    ]
    runs = {path.parent.parent for path in tmp_path.glob("algorithm/*/*/potloc/evaluation.json")}
    assert len(runs) == 8
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
    # What is finished is kept; what is missing is done again and comes out the same.
    gone = sorted(runs)[0] / "potloc" / "evaluation.json"
    before = json.loads(gone.read_text())
    gone.unlink()
    assert ablate("algorithm", tiny(), tmp_path, seeds=(0, 3)) == outcomes
    assert json.loads(gone.read_text()) == before
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")} == kept
    rows = list(csv.DictReader((tmp_path / "algorithm.csv").read_text().splitlines()))
    assert [float(row["mean"]) for row in rows] == pytest.approx([outcome.mean for outcome in outcomes], abs=1e-4)
    assert (tmp_path / "algorithm.md").read_text().startswith("# Variant of Algorithm 1\n")
    # Arms that agree in data and seed share the base model.
    assert len(list((tmp_path / "base").iterdir())) == 2
    assert len({path.read_bytes() for path in tmp_path.rglob("proposals.json")}) == 2
    with pytest.raises(InputError, match=r"8 of 8 runs failed, the first: .*expected the configuration that is to be"):
        ablate("algorithm", load_config("synthetic", [*TINY, "train.epochs=2"]), tmp_path, seeds=(0, 3))


def test_arms_with_other_points_have_base_models_of_their_own() -> None:
    config = tiny().model_dump(mode="json")
    arms = [Config.model_validate(merge(config, arm.changes)) for arm in arms_of("points", tiny())]
    assert len({base_folder(Path("out"), arm) for arm in arms}) == len(arms) == 5


@pytest.mark.parametrize(("gpus", "taken"), [(0, "0000"), (1, "0000"), (2, "0101"), (3, "0120")])
def test_processes_take_gpus_in_turns(monkeypatch: pytest.MonkeyPatch, gpus: int, taken: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", "9")
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    found = ""
    for number in range(4):
        numbers.put(number)
        take_gpu(numbers)
        found += os.environ["LOCAL_RANK"]
    assert found == taken


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(InputError, match=r"^depth: expected a study among supervision, levels, "):
        ablate("depth", tiny(), "nowhere")
    with pytest.raises(InputError, match=r"^gamma: expected one or more seeds and jobs, got seeds \[\] and 1 jobs$"):
        ablate("gamma", tiny(), "nowhere", seeds=())


def test_tables_by_hand() -> None:
    outcomes = [
        Outcome({"levels": level}, seed, (0.5, 0.7), values, sum(values) / 2)
        for level, seed, values in (("0", 0, (50.0, 30.0)), ("0", 1, (54.0, 40.0)), ("4", 0, (60.0, 40.0)))
    ]
    assert to_csv(outcomes).splitlines() == [
        "levels,seed,0.5,0.7,mean",
        "0,0,50.0000,30.0000,40.0000",
        "0,1,54.0000,40.0000,47.0000",
        "4,0,60.0000,40.0000,50.0000",
    ]
    # Sample standard deviations: 4 / sqrt(2), 10 / sqrt(2), 7 / sqrt(2).
    assert summary(outcomes) == [
        ({"levels": "0"}, ["52.0 ± 2.8", "35.0 ± 7.1", "43.5 ± 4.9"]),
        ({"levels": "4"}, ["60.0", "40.0", "50.0"]),
    ]
    assert "| 0 | 52.0 ± 2.8 | 35.0 ± 7.1 | 43.5 ± 4.9 |" in to_markdown(outcomes, "Levels")
