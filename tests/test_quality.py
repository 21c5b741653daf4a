"""What points tell of a run, on a run whose model is replaced by detections that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from potloc_fast.config import load_config
from potloc_fast.data import Dataset, Grid, Instance, Point, Recording
from potloc_fast.engine import quality
from potloc_fast.engine.quality import Quality, assess, listed_from, read_quality
from potloc_fast.engine.run import Run
from potloc_fast.engine.train import _held_out
from potloc_fast.evaluation import Segments
from potloc_fast.evaluation.points import Hits
from potloc_fast.files import write_json
from potloc_fast.plots import plot_quality

CPU = torch.device("cpu")
GRID = Grid(fps=1, window=1, stride=1)


def recording(name: str, subset: str, *times: float, instances: tuple[Instance, ...] = ()) -> Recording:
    points = tuple(Point("jump", time) for time in times)
    return Recording(name, np.zeros((60, 4), np.float32), GRID, subset, instances, points)


TRAINED = (recording("v1", "train", 5.0, 25.0), recording("v2", "train", 15.0))
# In each recording: good detections, and a poor one that holds nothing.
FOUND = {"v1": [(2, 8, 0.9), (20, 30, 0.6), (50, 55, 0.3)], "v2": [(10, 20, 0.5), (40, 44, 0.2)], "v3": [(0, 4, 0.7)]}
MORE = {"v1": [(4, 8, 0.9)], "v2": [], "v3": []}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that detects `FOUND`, from these proposals and `MORE`."""

    def detect(_: Run, recordings: tuple[Recording, ...], __: object, all_proposals: bool = False) -> Segments:
        names = tuple(item.id for item in recordings)
        own = [(i, *row) for i, name in enumerate(names) for row in FOUND[name] + MORE[name] * all_proposals]
        video, start, end, score = np.array(own).T
        return Segments(names, ("jump",), video.astype(int), np.zeros(len(own), int), start, end, score)

    monkeypatch.setattr(quality, "_detect", detect)
    return Run.create(tmp_path / "run", load_config("synthetic"), Dataset("d", ("jump",), TRAINED))


def test_in_recordings_that_were_trained_on(run: Run) -> None:
    label = {"label": "jump", "score": 1.0}
    labels = {
        "v1": [{**label, "segment": [2, 5], "point": 5.0 - 1e-6}, {**label, "segment": [20, 30], "point": 25.0}],
        "v2": [{**label, "segment": [18, 30], "point": 25.0}],
        "another": [{**label, "segment": [0, 1], "point": 0.5}],
    }
    write_json(run.folder / "pseudo_labels.json", {"results": labels})
    known = assess(run, TRAINED, (), CPU)
    assert (known.min_score, known.held_out) == (0.5, False)
    assert (known.hits.points, known.hits.once, known.hits.detections, known.hits.empty) == (3, 3, 3, 0)
    assert known.per_class == {"jump": known.hits}
    # The labels overlap detections by 1/2 and 1; no detection holds the third one's point.
    assert known.label_tiou == pytest.approx((0.5 + 1 + 0) / 3)
    # The first point is held by [2, 8] and [4, 8], both with 0.9: starts deviate by 1 s, and tIoU is 1 and 2/3.
    assert known.agreement == pytest.approx((5 / 6 + 1 + 1) / 3)
    assert known.boundary_sec == 0.0  # the median of 1, 0, 0, 0, 0 and 0
    assert known.curve[0][1].detections == 5
    assert known.curve[-1][0] == 0.9
    told = " ".join(known.sentences())
    assert "counting detections with a score of 0.50 or more; 0 lie in none" in told
    assert "Of 3 points in recordings that were trained on, 3 (100 %) lie in a detection of their own" in told
    assert "Of 3 such detections 0 (0 %) hold no point. Boundaries are uncertain by about 0.00 s" in told
    assert "New recordings will fare worse" in told


def test_in_recordings_that_were_not(run: Run) -> None:
    known = assess(run, TRAINED, (recording("v3", "test", 1.0, 2.0, 30.0),), CPU)
    assert (known.min_score, known.held_out, known.label_tiou) == (0.5, True, None)
    own = known.hits
    assert (own.points, own.once, own.shared, own.missed, own.detections, own.empty) == (3, 0, 2, 1, 1, 0)
    told = " ".join(known.sentences())
    assert "that were not trained on, 0 (0 %)" in told
    assert "New recordings" not in told


def test_a_file_keeps_it(run: Run) -> None:
    assert read_quality(run) is None
    assert listed_from(run) is None
    known = assess(run, TRAINED, (), CPU)
    write_json(run.folder / "potloc" / "quality.json", known.model_dump(mode="json"))
    assert read_quality(run) == known
    assert isinstance(known, Quality)
    assert [listed_from(run, form=form) for form in (None, "csv", "json")] == [0.5, 0.5, None]
    assert [listed_from(run, 0.0, form) for form in (None, "csv", "json")] == [0.0] * 3


def test_a_picture(tmp_path: Path) -> None:
    def drawn(missed: int, empty: int) -> list[int]:
        """Pixels of points that are missed and of detections without a point, in the bars."""
        own = Hits(5 + missed, 5, 0, 0, missed, 5 + empty, empty)
        known = Quality(
            min_score=0.3,
            held_out=False,
            hits=own,
            per_class={f"last $x_{{${number}": own for number in range(40)},  # no maths, and more than a page holds
            agreement=0.8,
            boundary_sec=1.0,
            label_tiou=None,
            curve=((0.1, own), (0.9, own)),
        )
        plot_quality(known, tmp_path / "quality.png")
        bars = (imread(tmp_path / "quality.png")[:-150, :780, :3] * 255).round()
        return [int((bars == colour).all(axis=-1).sum()) for colour in ((0xE6, 0x9F, 0x00), (115, 115, 115))]

    assert min(drawn(5, 5)) > 10_000
    assert max(drawn(0, 0)) < 1000  # letters have shades of grey


def test_which_recordings_are_held_out() -> None:
    held, bare = recording("v3", "test", 1.0), recording("v4", "test")
    assert _held_out(Dataset("d", ("jump",), (*TRAINED, held, bare)), "test") == (held,)
    assert _held_out(Dataset("d", ("jump",), (*TRAINED, held, bare)), "train") == ()
    scored = recording("v5", "test", 1.0, instances=(Instance("jump", 0.0, 2.0),))
    assert _held_out(Dataset("d", ("jump",), (*TRAINED, held, scored)), "test") == ()
