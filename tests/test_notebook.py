"""What a notebook shows of segments, evaluations and runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from potloc_fast.config import load_config
from potloc_fast.data import Dataset, Grid, Recording
from potloc_fast.engine.run import Run
from potloc_fast.evaluation import Segments, evaluate
from potloc_fast.evaluation.segments import SHOWN

TRUTH = {"database": {"v<": {"subset": "test", "annotations": [{"label": "<b>", "segment": [0, 10]}]}}}


def found(count: int) -> Segments:
    rows = [{"label": "<b>", "score": i / count, "segment": [0, 10]} for i in range(count)]
    return Segments.from_results({"results": {"v<": rows}})


def test_segments() -> None:
    html = found(100)._repr_html_()
    assert html.count("<tr>") == 1 + SHOWN
    assert "<caption>100 segments in 1 recordings, the best</caption>" in html
    assert "<td>v&lt;</td><td>&lt;b&gt;</td><td>0.00</td><td>10.00</td><td>0.990</td>" in html
    assert "<b>" not in html
    assert found(2)._repr_html_().count("<tr>") == 3


def test_evaluations() -> None:
    html = evaluate(found(2), TRUTH, tiou=(0.5, 0.7))._repr_html_()
    assert "<td>&lt;b&gt;</td><td>1</td><td>100.0</td><td>100.0</td><td>100.0</td>" in html
    assert "<td>mAP</td>" in html


def test_runs(tmp_path: Path) -> None:
    recording = Recording("v1", np.zeros((9, 4), np.float32), Grid(2, 1, 1), "train")
    run = Run.create(tmp_path / "<i>", load_config("synthetic"), Dataset("d", ("a", "<b>"), (recording,)))
    html = run._repr_html_()
    assert "a, &lt;b&gt;" in html
    assert "&lt;i&gt;" in html
    assert "<i>" not in html
