"""What to label next."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from potloc_fast import cli, suggest
from potloc_fast.config import load_config
from potloc_fast.data import Grid, Instance, Point, Recording
from potloc_fast.engine.run import Run
from potloc_fast.engine.train import load_dataset
from potloc_fast.errors import InputError
from potloc_fast.evaluation import Segments

SURE, UNSURE = 0.01, 0.5


class Known:
    """A detector whose scores are the recording's features; it sees an action of 4 s for each that is asked."""

    actions: ClassVar[dict[str, list[float]]] = {}

    def scores(self, recording: Recording) -> np.ndarray:
        return np.asarray(recording.features)

    def segments(self, recordings: list[Recording]) -> Segments:
        [own] = recordings
        start = np.array(self.actions.get(own.id, []), float)
        same = np.zeros(len(start), int)
        return Segments((own.id,), ("jump",), same, same, start, start + 4, np.full(len(start), 0.9))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run in the plain layout whose model was not trained; of its four recordings two have points."""
    data = tmp_path / "data"
    (data / "features").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c", "d"):
        np.save(data / "features" / f"{name}.npy", rng.standard_normal((80, 4)).astype(np.float32))
    (data / "points.csv").write_text("recording,label,time_sec\na,jump,3\na,run,20.5\nb,jump,30\n")
    config = load_config("own", [f"data.root={data}", "data.grid.fps=2"])
    dataset = load_dataset(config)
    made = Run.create(tmp_path / "run", config.model_copy(update={"auto": ()}), dataset)
    made.save("potloc", made.build("potloc"))
    return made


def recording(name: str, p: float, points: tuple[Point, ...] = (), instances: tuple[Instance, ...] = ()) -> Recording:
    return Recording(name, np.full((60, 1), p, np.float32), Grid(1, 1, 1), "test", instances, points)


def test_the_least_sure_come_first_for_each_click(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suggest.Detector, "load", lambda *_, **__: Known())
    monkeypatch.setattr(Known, "actions", {"many": [0.0, 10.0, 20.0], "one": [30.0, 5.0]})
    recordings = [
        recording("sure", SURE),
        recording("many", UNSURE),
        recording("one", UNSURE),
        recording("labelled", UNSURE, points=(Point("jump", 3.0),)),
        recording("known", UNSURE, instances=(Instance("jump", 3.0, 5.0),)),
    ]
    found = suggest.suggest(run, recordings)
    assert [each.recording for each in found] == ["one", "many", "sure"]
    # 60 snippets of ln 2 each, over three actions and one more.
    assert found[1].doubt == pytest.approx(60 * np.log(2) / 4)
    assert [action.start_sec for action in found[0].actions] == [5.0, 30.0]
    with pytest.raises(InputError, match="recordings without points to choose from, found none"):
        suggest.suggest(run, recordings[3:])


def test_the_table_is_read_once_it_is_filled_in(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "more.csv"
    monkeypatch.setattr(sys, "argv", ["potloc-fast", "suggest", str(run.folder), "--count", "1", "-o", str(path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    old, new = [row for row in rows if row["label"]], [row for row in rows if not row["label"]]
    assert [(row["recording"], row["label"], float(row["time_sec"])) for row in old] == [
        ("a", "jump", 3.0),
        ("a", "run", 20.5),
        ("b", "jump", 30.0),
    ]
    assert len(new) > 1
    assert len({row["recording"] for row in new} & {"c", "d"}) == 1
    assert {row["guess"] for row in new} <= {"jump", "run"}

    again = load_config("own", [f"data.root={tmp_path / 'data'}", "data.grid.fps=2", f"data.points_file={path}"])
    with pytest.raises(InputError, match=r"more\.csv: expected .*label.* in line 5"):
        load_dataset(again)
    for row in new:
        row["label"] = row["guess"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    read = load_dataset(again)
    assert sum(len(each.points) for each in read.subset("train")) == len(rows)
