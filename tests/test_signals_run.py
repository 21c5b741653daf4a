"""The main job from raw recordings: what a run learned from files of samples, it finds in files of samples."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import potloc_fast
from potloc_fast.config import load_config
from potloc_fast.config.schema import FolderData
from potloc_fast.engine.run import Run
from potloc_fast.errors import InputError
from potloc_fast.evaluation import Segments, read_detections

MODEL = {"width": 8, "heads": 2, "levels": 1, "stem": 0, "window": 3, "boundary_head": True, "mlp_ratio": 1}
SMALL = (f"model={json.dumps(MODEL)}", "detect.finest_level=0", "supervision=ground-truth", "train.epochs=1")
WINDOWS = {"tug": (0.5, 0.1, 300), "ecg": (0.04, 0.01, 240)}  # of ../shared/data/README.md


@pytest.fixture
def few(shared_data: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Two training recordings of a real data set and one to test in, with its own files and tables."""
    source, root = shared_data / request.param, tmp_path / request.param
    root.mkdir()
    for name in ("signals", "points.csv", "instances.csv"):
        (root / name).symlink_to(source / name)
    with (source / "recordings.csv").open(newline="") as file:
        head, *rows = list(csv.reader(file))
    kept = [row for row in rows if row[1] == "train"][:2] + [row for row in rows if row[1] == "test"][:1]
    (root / "recordings.csv").write_text("\n".join(map(",".join, [head, *kept])) + "\n")
    return root


def rows(found: Segments) -> list[float]:
    """All numbers of detections, in the order of a file."""
    (items,) = found.to_results()["results"].values()
    assert len(items) > 0
    ordered = sorted(items, key=lambda item: (item["label"], -item["score"], item["segment"]))
    return [number for item in ordered for number in (item["score"], *item["segment"])]


@pytest.mark.parametrize("few", WINDOWS, indirect=True)
def test_from_raw_files_to_detections(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    length, stride, width = WINDOWS[few.name]
    windows = (f"data.windows.length_sec={length}", f"data.windows.stride_sec={stride}", "data.windows.features=raw")
    config = load_config("own", [f"data.root={few}", *windows, *SMALL])
    potloc_fast.train(config, tmp_path / "run", ["potloc", "detect"])
    assert "data.windows.rate_hz=" in capsys.readouterr().err
    run = Run.open(tmp_path / "run")  # as a later process does
    assert (run.features, run.grid and run.grid.snippet_sec) == (width, stride)
    assert isinstance(run.config.data, FolderData)
    assert run.config.data.windows.resolved
    found = read_detections(run.folder / "potloc" / "detections.json")
    name = found.videos[0]
    assert len(found.videos) == 1
    # The same file given by hand, and the same samples in a table.
    raw, table = few / "signals" / f"{name}.npy", tmp_path / f"{name}.csv"
    np.savetxt(table, np.load(raw), delimiter=",", fmt="%.9g")
    for path in (raw, table):
        again = potloc_fast.predict(run, [path])
        assert rows(again) == pytest.approx(rows(found), abs=2e-3)  # of what is written, three decimals
    with pytest.raises(InputError, match=r"walk.pt: expected a raw recording, one of .npy, .csv, .*got '.pt'$"):
        potloc_fast.predict(run, ["walk.pt"])
    message = f"^snippet_sec: expected none, as the run makes snippets of {stride:g} s itself, got 1$"
    with pytest.raises(InputError, match=message):
        potloc_fast.predict(run, [raw], snippet_sec=1)
