"""A small run whose names and labels would be markup, if they were not taken as text."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from potloc_fast.config import load_config
from potloc_fast.engine.quality import assess
from potloc_fast.engine.run import Run
from potloc_fast.engine.train import evaluate_run, load_dataset
from potloc_fast.files import write_json
from potloc_fast.report import Report, of_run

HOSTILE = (
    '<img src=x onerror="window.hacked=1">',
    "</script><script>window.hacked=1</script>",
    '走る, "quoted" & $x$',
    "__proto__",
)
LABELS = ("<b>jump</b><!--", 'turn, "left" ${1}')
LONG = "long"
SNIPPETS, LONG_SNIPPETS, FPS = 60, 100_000, 2.0


def table(path: Path, rows: list[tuple[object, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own recordings: two to train on, two to test in, and a long one."""
    root = tmp_path_factory.mktemp("report") / "data"
    (root / "features").mkdir(parents=True)
    rng = np.random.default_rng(0)
    recordings: list[tuple[object, ...]] = [("recording", "subset", "features")]
    instances: list[tuple[object, ...]] = [("recording", "label", "start_sec", "end_sec")]
    points: list[tuple[object, ...]] = [("recording", "label", "time_sec")]
    for number, name in enumerate((*HOSTILE, LONG)):
        length = LONG_SNIPPETS if name == LONG else SNIPPETS
        np.save(root / "features" / f"{number}.npy", rng.normal(size=(length, 4)).astype(np.float32))
        subset = "train" if number < 2 else "test"
        recordings.append((name, subset, f"features/{number}.npy"))
        for start, label in zip((3.0, 12.0, 20.0), (*LABELS, LABELS[0]), strict=True):
            instances.append((name, label, start, start + 4))
            if subset == "train":
                points.append((name, label, start + 1.5))
    table(root / "recordings.csv", recordings)
    table(root / "instances.csv", instances)
    table(root / "points.csv", points)
    return root


@pytest.fixture(scope="session")
def run(data: Path) -> Run:
    """A run that was not trained: random weights, and detections of which one finds, one is double, one is nothing."""
    sizes = {"width": 8, "heads": 2, "levels": 2, "stem": 0, "window": 3}
    overrides = [f"data.root={data}", f"data.grid.fps={FPS}", *(f"model.{key}={value}" for key, value in sizes.items())]
    config = load_config("own", overrides)
    dataset = load_dataset(config)
    run = Run.create(data.parent / "run <b>", config, dataset)
    run.save("potloc", run.build("potloc"))
    found = {
        name: [
            {"label": LABELS[0], "score": 0.9, "segment": [3.5, 7.5]},
            {"label": LABELS[0], "score": 0.8, "segment": [3.0, 7.6]},
            {"label": LABELS[1], "score": 0.7, "segment": [26.0, 28.0]},
            {"label": LABELS[1], "score": 0.2, "segment": [12.0, 16.0]},
        ]
        for name in (*HOSTILE[2:], LONG)
    }
    write_json(run.folder / "potloc" / "detections.json", {"results": found})
    write_json(run.folder / "potloc" / "evaluation.json", evaluate_run(run, "potloc").to_json())
    known = assess(run, dataset.subset("train"), (), torch.device("cpu"))
    write_json(run.folder / "potloc" / "quality.json", known.model_dump(mode="json"))
    labels = {name: [{"label": LABELS[0], "point": 4.5, "score": 1, "segment": [2.5, 7.0]}] for name in HOSTILE[:2]}
    write_json(run.folder / "pseudo_labels.json", {"results": labels})
    rows = [
        {"stage": "potloc", "epoch": 0, "step": step, "seconds": step / 2, "total": 2.0 - step / 50}
        for step in range(50)
    ]
    (run.folder / "potloc" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.fixture(scope="session")
def report(run: Run) -> Report:
    """The report on it."""
    return of_run(run)
