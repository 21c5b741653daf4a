"""Pictures of a run."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from potloc_fast.data import Grid, Instance, Point, Recording
from potloc_fast.engine.ablate import Outcome
from potloc_fast.errors import InputError
from potloc_fast.evaluation import Segments, analyse
from potloc_fast.plots import (
    KIND_COLOURS,
    _font_with,
    _shown,
    plot_ablation,
    plot_analysis,
    plot_losses,
    plot_recording,
)

GRID = Grid(fps=25, window=16, stride=16)
CLASSES = ("dive", "high_jump", "rest")
T = 60


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def inked(path: Path) -> float:
    """The part of the picture that is not white."""
    return float((imread(path)[..., :3] < 1).any(axis=-1).mean())


def shades(path: Path) -> set[str]:
    pixels = (imread(path)[..., :3] * 255).round().astype(int).reshape(-1, 3)
    return {f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in np.unique(pixels, axis=0).tolist()}


def log(path: Path, steps: int, **more: float) -> Path:
    row = {"stage": "base", "epoch": 0, "total": 2.5, "mil": 1.0, "act": 1.0, "bg": 1.0, **more}
    path.write_text("".join(json.dumps(row | {"step": step}) + "\n" for step in range(steps)))
    return path


def curves() -> NDArray[np.float32]:
    return np.random.default_rng(0).random((T, len(CLASSES)), dtype=np.float32)


def segments(*rows: tuple[int, float, float, float], video: str = "v") -> Segments:
    label, start, end, score = (np.array(column) for column in zip(*rows, strict=True)) if rows else [np.zeros(0)] * 4
    return Segments((video,), CLASSES, np.zeros(len(rows), np.int64), label.astype(np.int64), start, end, score)


DETECTIONS = segments((0, 2.0, 6.0, 0.9), (0, 20.0, 24.0, 0.2), (1, 8.0, 15.0, 0.5))
UNLABELLED = Recording("v", np.zeros((T, 4), np.float32), GRID, "test")
LABELLED = Recording(
    "v",
    np.zeros((T, 4), np.float32),
    GRID,
    "train",
    (Instance("dive", 1.0, 6.5), Instance("high_jump", 9.0, 14.0)),
    (Point("dive", 4.0), Point("high_jump", 11.0)),
)


@pytest.mark.parametrize("steps", [1, 2, 49, 500])
def test_losses_of_any_number_of_steps(tmp_path: Path, steps: int) -> None:
    output = tmp_path / "plots" / "losses.png"
    plot_losses(log(tmp_path / "metrics.jsonl", steps), output)
    assert png_size(output) == (960, 480)
    assert inked(output) > 0.005
    assert [path.name for path in output.parent.iterdir()] == ["losses.png"]


def test_the_loss_of_a_boundary_head_is_drawn(tmp_path: Path) -> None:
    for name, more in (("without", {}), ("with", {"boundary": 0.3})):
        plot_losses(log(tmp_path / "metrics.jsonl", 50, **more), tmp_path / f"{name}.png")
    fifth_colour = "#9467bd"
    assert fifth_colour in shades(tmp_path / "with.png") - shades(tmp_path / "without.png")


def test_losses_without_a_log(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics\.jsonl: expected a file, found none"):
        plot_losses(tmp_path / "metrics.jsonl", tmp_path / "losses.png")
    assert not list(tmp_path.iterdir())


def test_a_recording_with_all_that_is_known(tmp_path: Path) -> None:
    bare, full = tmp_path / "bare.png", tmp_path / "full.png"
    plot_recording(UNLABELLED, CLASSES, curves(), segments(), bare)
    plot_recording(LABELLED, CLASSES, curves(), DETECTIONS, full, segments((0, 1.5, 6.0, 1.0), (1, 9.0, 14.0, 1.0)))
    width, height = png_size(full)
    assert width == 1680
    assert 300 < height < 600
    lanes = {"#009e73", "#e69f00", "#0072b2"}  # truth, pseudo-labels, detections
    assert lanes <= shades(full)
    assert not lanes & shades(bare)


def test_a_recording_without_truth(tmp_path: Path) -> None:
    output = tmp_path / "v.png"
    plot_recording(UNLABELLED, CLASSES, curves(), DETECTIONS, output)
    # A row for each of the two classes that were detected.
    assert png_size(output) == (1680, round(120 * (1.1 * 2 + 1)))


def test_other_recordings_are_left_out(tmp_path: Path) -> None:
    own, other = tmp_path / "own.png", tmp_path / "other.png"
    plot_recording(UNLABELLED, CLASSES, curves(), segments(), own)
    plot_recording(UNLABELLED, CLASSES, curves(), segments((1, 2.0, 6.0, 0.9), video="w"), other)
    np.testing.assert_array_equal(imread(own), imread(other))


def test_no_more_classes_than_a_page_can_show(tmp_path: Path) -> None:
    names = tuple(f"class_{index}" for index in range(20))
    scores = np.random.default_rng(0).random((T, 20), dtype=np.float32)
    column = np.arange(20)
    found = Segments(("v",), names, column * 0, column, column * 1.0, column + 2.0, 0.1 + column / 20)
    output = tmp_path / "v.png"
    plot_recording(UNLABELLED, names, scores, found, output)
    assert png_size(output) == (1680, round(120 * (1.1 * 8 + 1)))


def test_scores_of_zero_and_one_snippet(tmp_path: Path) -> None:
    recording = Recording("v", np.zeros((1, 4), np.float32), GRID, "test")
    output = tmp_path / "v.png"
    plot_recording(recording, CLASSES, np.zeros((1, 3), np.float32), segments((2, 0.0, 0.5, 0.0)), output)
    assert png_size(output)[0] == 1680


@pytest.mark.parametrize("score", [0.0, -0.2])
def test_the_best_detection_can_score_zero_or_less(tmp_path: Path, score: float) -> None:
    output = tmp_path / "v.png"
    plot_recording(LABELLED, CLASSES, curves(), segments((0, 2.0, 6.0, score), (0, 8.0, 9.0, score)), output)
    assert "#0072b2" in shades(output)


def test_a_study_gets_a_row_for_each_arm_and_a_longer_bar_for_a_better_one(tmp_path: Path) -> None:
    def drawn(name: str, *means: float) -> Path:
        outcomes = [
            Outcome({"levels": str(arm)}, seed, (0.5, 0.7), (mean, mean / 2), mean + seed)
            for arm, mean in enumerate(means)
            for seed in range(2)
        ]
        plot_ablation(outcomes, tmp_path / name)
        return tmp_path / name

    two, four = drawn("two.png", 60.0, 60.0), drawn("four.png", 60.0, 60.0, 60.0, 60.0)
    assert png_size(four)[1] > png_size(two)[1]
    worse = drawn("worse.png", 60.0, 6.0)
    assert inked(worse) < inked(two) - 0.05


def test_an_analysis(tmp_path: Path) -> None:
    truth = segments((0, 0.0, 10.0, 1.0), (1, 20.0, 30.0, 1.0))
    found = segments(
        (0, 0.0, 9.0, 0.9),
        (0, 0.0, 8.0, 0.8),
        (0, 0.0, 3.0, 0.7),
        (0, 20.0, 29.0, 0.6),
        (0, 20.0, 23.0, 0.5),
        (1, 40.0, 50.0, 0.4),
    )
    output = tmp_path / "plots" / "analysis.png"
    plot_analysis(analyse(found, truth), output)
    assert png_size(output) == (1560, 900)
    assert set(KIND_COLOURS.values()) <= shades(output)


def test_an_analysis_of_nothing_and_of_all(tmp_path: Path) -> None:
    truth = segments((0, 0.0, 10.0, 1.0), (1, 20.0, 30.0, 1.0))
    pictures = []
    for name, found in (("nothing", segments()), ("all", truth)):
        pictures.append(tmp_path / f"{name}.png")
        plot_analysis(analyse(found, truth), pictures[-1])
        assert png_size(pictures[-1]) == (1560, 900)
    assert inked(pictures[0]) < inked(pictures[1])


def test_a_picture_of_unknown_format_is_refused(tmp_path: Path) -> None:
    truth = segments((0, 0.0, 10.0, 1.0))
    with pytest.raises(InputError, match=r"x\.json: expected a picture such as \.png, \.pdf or \.svg, got '\.json'$"):
        plot_analysis(analyse(truth, truth), tmp_path / "x.json")
    assert not list(tmp_path.iterdir())


def test_somebody_else_s_style_and_names_with_dollars_do_not_matter(tmp_path: Path) -> None:
    odd = replace(LABELLED, id="cash $x_{$ \udcff" + "v" * 300, instances=(Instance("c$1^$_{", 1.0, 6.5),), points=())
    plot_recording(odd, ("c$1^$_{",), curves()[:, :1], segments(), tmp_path / "plain.png")
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "red", "savefig.format": "svg"}):
        plot_recording(odd, ("c$1^$_{",), curves()[:, :1], segments(), tmp_path / "styled.png")
        assert matplotlib.rcParams["text.usetex"]
    assert (tmp_path / "styled.png").read_bytes() == (tmp_path / "plain.png").read_bytes()
    assert png_size(tmp_path / "plain.png")[0] == 1680


def test_a_backend_that_is_not_here_does_not_matter(tmp_path: Path) -> None:
    log(tmp_path / "metrics.jsonl", 9)
    program = f"""
import os
from potloc_fast.plots import plot_losses
plot_losses({str(tmp_path / "metrics.jsonl")!r}, {str(tmp_path / "losses.png")!r})
print(os.environ["MPLBACKEND"])
"""
    for backend in ("module://matplotlib_inline.backend_inline", "nonsense", "agg"):
        environment = {**os.environ, "MPLBACKEND": backend}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{backend}\n", "")
        assert png_size(tmp_path / "losses.png") == (960, 480)


def test_letters_of_every_script(tmp_path: Path) -> None:
    """Each letter in a font that has it, else as a box; nothing is warned of."""
    names = ("\u8d70\u308b", "\u092e\u0930", "$x^2$ <img>", "\U0001f3c3", "a\u2028b", "\ud800", "a" * 300)
    recording = replace(LABELLED, id="\u9332\u97f3 $5", instances=tuple(Instance(name, 1.0, 5.0) for name in names))
    label = np.arange(len(names))
    times = np.full(len(names), 1.5)
    rows = Segments(("\u9332\u97f3 $5",), names, label * 0, label, times, times + 3, times / 2)
    scores = np.random.default_rng(0).random((T, len(names)), dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for suffix in ("png", "svg", "pdf"):
            plot_recording(recording, names, scores, rows, tmp_path / f"a.{suffix}", rows)
            assert (tmp_path / f"a.{suffix}").stat().st_size > 10_000


def test_a_letter_is_drawn_in_a_font_that_has_it() -> None:
    from matplotlib.font_manager import fontManager, get_font

    for letter in "\u00e9\u8d70\u0416\u092e":
        font = _font_with(letter)
        if font is not None:
            paths = [entry.fname for entry in fontManager.ttflist if entry.name == font]
            assert any(get_font(path).get_char_index(ord(letter)) for path in paths)
    assert _font_with("\u00e9") == "DejaVu Sans"
    assert _font_with("\ud800") is None
    assert _shown("\ud800$") == "?\\$"


def test_figures_are_returned_and_legends_cover_nothing(tmp_path: Path) -> None:
    outcome = Outcome({"levels": "3"}, 0, (0.5,), (80.0,), 80.0)
    found = analyse(segments((0, 0.0, 9.0, 0.9), (1, 0.0, 8.0, 0.8)), segments((0, 0.0, 10.0, 1.0)))
    figures = {
        "losses": plot_losses(log(tmp_path / "metrics.jsonl", 100)),
        "recording": plot_recording(LABELLED, CLASSES, curves(), DETECTIONS, None, DETECTIONS),
        "ablation": plot_ablation([outcome]),
        "analysis": plot_analysis(found),
    }
    assert not list(tmp_path.glob("*.png"))
    for name, figure in figures.items():
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        for axes in figure.axes:
            assert not box.overlaps(axes.get_window_extent()), name
