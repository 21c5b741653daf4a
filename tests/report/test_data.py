"""What a report is made of: arrays packed and unpacked, curves in levels of detail, and what is right and wrong."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from potloc_fast import cli
from potloc_fast.engine.run import Run
from potloc_fast.errors import InputError
from potloc_fast.evaluation import Segments, analyse, evaluate
from potloc_fast.evaluation.errors import KINDS
from potloc_fast.report import Report, of_files, of_run, page, render
from potloc_fast.report.charts import charts
from potloc_fast.report.pack import COARSER, COARSEST, levels_of_detail, pack, quantize
from potloc_fast.report.segments import UNJUDGED, judge, overlaps, renamed, strongest
from potloc_fast.report.signals import Curve, pack_curves
from tests.report.conftest import HOSTILE, LABELS, LONG


def unpack(text: str) -> tuple[Mapping[str, Any], dict[str, NDArray[Any]]]:
    content = gzip.decompress(base64.b64decode(text))
    size = int.from_bytes(content[:4], "little")
    head = json.loads(content[4 : 4 + size])
    arrays, offset = {}, -(-(4 + size) // 8) * 8
    for name, (dtype, length) in head["arrays"].items():
        assert offset % 8 == 0
        arrays[name] = np.frombuffer(content, dtype, length, offset)
        offset += -(-arrays[name].nbytes // 8) * 8
    assert offset == len(content)
    return head["facts"], arrays


def segments(*rows: tuple[int, int, float, float, float]) -> Segments:
    video, label, start, end, score = (np.array(column) for column in zip(*rows, strict=True))
    return Segments(("v", "w", "x"), ("a", "b"), video, label, start * 1.0, end * 1.0, score * 1.0)


def test_packed_arrays_come_back() -> None:
    arrays = {
        "a": np.arange(3, dtype=np.uint8),
        "b": np.array([], np.float64),
        "c": np.array([1.5, np.nan]),
        "d": np.array([7], np.int32),
    }
    facts, found = unpack(pack({"name": "<ü>"}, arrays))
    assert facts == {"name": "<ü>"}
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("length", [1, COARSEST, COARSEST + 1, 5000])
def test_levels_of_detail_lose_no_peak(length: int) -> None:
    values = np.random.default_rng(length).integers(0, 256, length).astype(np.uint8)
    found, size = levels_of_detail(values), length
    np.testing.assert_array_equal(found[:size], values)
    offset = size
    width = 1
    while offset < len(found):
        width *= COARSER
        size = -(-length // width)
        low, high = found[offset : offset + size], found[offset + size : offset + 2 * size]
        for i in (0, size // 2, size - 1):
            own = values[i * width : (i + 1) * width]
            assert (low[i], high[i]) == (own.min(), own.max())
        offset += 2 * size
    assert size <= COARSEST


def test_curves_fit_into_their_room() -> None:
    rng = np.random.default_rng(0)
    curves = [
        Curve(kind, 0, level, 2**level, rng.random(20_000 // 2**level, np.float32))  # type: ignore[arg-type]
        for kind, level in (("energy", 0), ("channel", 0), ("score", 0), ("score", 1))
    ]
    whole = pack_curves(curves, 10**9)
    facts, arrays = unpack(whole)
    assert [curve["kind"] for curve in facts["curves"]] == ["energy", "channel", "score", "score"]
    np.testing.assert_array_equal(arrays["2"][:20_000], quantize(curves[2].values, 0, 1))
    small = pack_curves(curves, len(whole) // 20)
    assert len(small) <= len(whole) // 20
    facts, arrays = unpack(small)
    assert [(curve["kind"], curve["level"]) for curve in facts["curves"]] == [("energy", 0), ("score", 0)]
    stride = facts["curves"][1]["stride"]
    assert arrays["1"].max() == quantize(curves[2].values, 0, 1).max()  # a peak stays
    assert facts["curves"][1]["length"] == -(-20_000 // stride)


def test_detections_are_judged_as_analyse_counts_them(shared_data: Path) -> None:
    files = (shared_data / "detections" / "pmil_thumos14_test.json", shared_data / "thumos14" / "gt.json")
    report = of_files(*files, subset="test")
    _, arrays = unpack(report.segments)
    kinds = arrays["detections.kind"]
    judged = kinds[kinds != UNJUDGED]
    analysis = analyse(*files, subset="test")
    # The profile counts the best of each class; at most all of a kind are among them.
    for number, kind in enumerate(KINDS):
        assert (judged == number).sum() >= sum(analysis.errors.counts[kind])
    found = arrays["truth.found"]
    assert (judged == 0).sum() == (~np.isnan(found)).sum()
    rows = np.flatnonzero(arrays["detections.took"] >= 0)
    np.testing.assert_array_equal(arrays["detections.score"][rows], found[arrays["detections.took"][rows]])
    assert (kinds == UNJUDGED).sum() == 198  # in two videos that the ground truth lacks
    assert report.evaluations["detections"].map == evaluate(*files, subset="test").map


def test_who_is_what() -> None:
    truth = segments((0, 0, 0, 10, 1), (0, 1, 20, 30, 1), (1, 0, 0, 10, 1))
    found = segments(
        *((0, 0, 0, 10, 0.9), (0, 0, 1, 10, 0.8), (0, 0, 20, 30, 0.7), (0, 1, 20, 24, 0.6)),
        *((0, 0, 50, 60, 0.5), (2, 0, 0, 10, 0.4)),
    )
    judged = judge(found, truth, 0.5)
    names = [KINDS[kind] if kind != UNJUDGED else "" for kind in judged.kinds]
    assert names == ["true positive", "double detection", "wrong label", "localization", "background", ""]
    np.testing.assert_array_equal(judged.took, [0, -1, -1, -1, -1, -1])
    np.testing.assert_array_equal(judged.found, np.array([0.9, np.nan, np.nan], np.float32))
    np.testing.assert_allclose(overlaps(truth, found), [1, 0.4, 0])


def test_the_strongest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potloc_fast.report.segments.MOST", 6)
    monkeypatch.setattr("potloc_fast.report.segments.LEAST_EACH", 1)
    rng = np.random.default_rng(0)
    score = rng.permutation(30) / 30
    own = segments(*((i % 3, 0, i, i + 1, score[i]) for i in range(30)))
    kept = strongest(own)
    for video in range(3):
        best = np.sort(score[own.video == video])[-2:]
        np.testing.assert_array_equal(np.sort(score[kept[own.video[kept] == video]]), best)


def test_other_vocabularies() -> None:
    own = renamed(segments((0, 0, 5, 6, 1), (1, 1, 3, 4, 1), (1, 0, 1, 2, 1)), {"w": 0, "v": 1}, {"a": 0})
    assert (own.videos, own.labels) == (("w", "v"), ("a",))
    assert list(zip(own.video.tolist(), own.start_sec.tolist(), strict=True)) == [(0, 1.0), (1, 5.0)]


def test_a_run_is_gathered(report: Report) -> None:
    listed = report.browser["recordings"]
    assert [item["id"] for item in listed] == [*HOSTILE, LONG]
    _, arrays = unpack(report.segments)
    assert set(np.unique(arrays["detections.video"])) == {0, 1, 2, 3, 4}  # training recordings are detected in, too
    assert len(arrays["points.start"]) == 6
    assert len(arrays["pseudo.start"]) == 2
    facts, _ = unpack(report.signals[4] or "")
    kinds = [curve["kind"] for curve in facts["curves"]]
    assert kinds.count("energy") == 1
    assert {curve["level"] for curve in facts["curves"]} == {0, 1, 2}
    assert len(report.signals) == 5
    assert report.analysis is not None
    settings = [key for key, _, changed in report.settings if changed]
    assert "data.root" in settings
    assert "model.width" in settings
    assert dict(report.facts)["training potloc"].startswith("24 s") or dict(report.facts)["training potloc"].startswith(
        "25 s"
    )
    assert dict(report.facts)["torch"]
    assert report.labels[0].labels == 2


def test_a_run_without_its_data(run: Run, data: Path) -> None:
    hidden = data.with_name("elsewhere")
    data.rename(hidden)
    try:
        report = of_run(run)
    finally:
        hidden.rename(data)
    assert "data can't be read any more" in report.notes[0]
    assert set(report.signals) == {None}
    assert report.analysis is not None
    assert len(report.browser["recordings"]) == 5


def test_a_run_without_true_boundaries(run: Run, tmp_path: Path) -> None:
    # As people's own runs are, which learned from points alone.
    bare = Run.open(shutil.copytree(run.folder, tmp_path / "run"))
    database = json.loads((bare.folder / "ground_truth.json").read_text())
    for video in database["database"].values():
        video["annotations"] = []
    (bare.folder / "ground_truth.json").write_text(json.dumps(database))
    (bare.folder / "potloc" / "evaluation.json").unlink()
    report = of_run(bare)
    assert report.analysis is None
    _, arrays = unpack(report.segments)
    assert len(arrays["detections.start"]) >= 12
    assert len(report.browser["recordings"]) == 5
    # Points still tell something, and choose the score that is shown first.
    assert report.quality is not None
    assert report.browser["threshold"] == report.quality.min_score
    text = unescape(render(report))
    for sentence in report.quality.sentences():
        assert sentence in text
    assert charts(report)[0].title.startswith("Points against detections: from a score of ")


def test_names_are_text_everywhere(report: Report) -> None:
    text = render(report)
    outside = re.sub(r"<script>/\* \w+\.js \*/.*?</script>", "", text, flags=re.DOTALL)
    for name in (HOSTILE[0], HOSTILE[1], LABELS[0], "run <b>"):
        assert name not in outside
    tags = set(re.findall(r"<\s*([a-z0-9]+)", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)))
    assert not tags & {"img", "b"}
    facts = re.search(r'<script type="application/json" id="facts">(.*?)</script>', text, re.DOTALL)
    assert facts
    assert [item["id"] for item in json.loads(facts[1])["recordings"]] == [*HOSTILE, LONG]
    titles = [unescape(title) for title in re.findall(r"<figcaption>(.*?)</figcaption>", text)]
    assert titles == [chart.title for chart in charts(report)]


def test_nothing_is_fetched(report: Report) -> None:
    text = render(report)
    assert "default-src 'none'" in text
    assert not re.findall(
        r"""(?:src|href)\s*=\s*["'](?!#)""", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    )


def test_the_command(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "deep" / "r.html"
    monkeypatch.setattr("sys.argv", ["potloc-fast", "report", str(run.folder), "-o", str(output)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert capsys.readouterr().out == f"report: {output}\n"
    assert output.stat().st_size < 5_000_000


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"expected the package jinja2, found none: pip install 'potloc_fast\[report\]'"
    ):
        page.check_packages()
