"""Pictures: loss curves, a recording with all that is known and found about it (Figure 2), and what detections miss."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from potloc_fast.data import Recording
from potloc_fast.errors import InputError
from potloc_fast.evaluation import Analysis, Segments
from potloc_fast.evaluation.analysis import CHARACTERISTICS, group_name
from potloc_fast.files import atomic, read_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from potloc_fast.detector import Detector
    from potloc_fast.engine.ablate import Outcome
    from potloc_fast.engine.quality import Quality

LONGEST = 1 << 17  # snippets that are drawn: some 60 to a pixel
SHOWN_HITS = 30  # classes with their points and detections
SHOWN_CLASSES = 8  # more rows than this can't be told apart on one page
KIND_COLOURS = {  # told apart by the colour-blind, too
    "true positive": "#009e73",
    "double detection": "#f0e442",
    "wrong label": "#cc79a7",
    "localization": "#e69f00",
    "confusion": "#0072b2",
    "background": "#999999",
}
HIT_COLOURS = {"once": "#009e73", "shared": "#56b4e9", "doubled": "#f0e442", "missed": "#e69f00"}
HIT_NAMES = {
    "once": "points in a detection of their own",
    "shared": "in one with other points",
    "doubled": "in several",
    "missed": "in none",
}
GROUP_COLOURS = ("#56b4e9", "#e69f00", "#009e73")
ScoredSegment: TypeAlias = tuple[float, float, float]  # start and end in seconds, score
SHOWN_LETTERS = 80  # of a name
NO_GLYPH = "\u25a1"  # for a letter that no font has


@contextmanager
def _drawing() -> Iterator[None]:
    """Draw as Matplotlib comes, whatever backend and style the environment and the user's files ask for."""
    told = os.environ.get("MPLBACKEND")
    if "matplotlib" not in sys.modules and told is not None:
        # A notebook passes on its backend, and where that is not installed Matplotlib can't even be imported.
        del os.environ["MPLBACKEND"]
        try:
            import matplotlib
        finally:
            os.environ["MPLBACKEND"] = told
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = told
    import matplotlib

    defaults: Any = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with matplotlib.rc_context(defaults):
        yield


def _shown(name: str, longest: int = SHOWN_LETTERS) -> str:
    """A name as text that Matplotlib can draw: without maths, not too long, without letters that no font has."""
    name = name if len(name) <= longest else f"{name[: longest - 3]}..."
    name = name.encode("utf-8", "replace").decode()
    name = "".join(c if (c.isascii() and c.isprintable()) or _font_with(c) else NO_GLYPH for c in name)
    return name.replace("$", r"\$")


def _use_fonts(figure: Any) -> None:
    """Let each text of a figure be drawn in fonts that have its letters."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        fonts = [font for letter in text.get_text() if not letter.isascii() and (font := _font_with(letter))]
        if fonts:
            text.set_fontfamily(list(dict.fromkeys(("DejaVu Sans", *fonts))))


@cache
def _font_with(letter: str) -> str | None:
    """The name of an installed font that has a letter, Matplotlib's own where it does; None for what can't be seen."""
    if not letter.isprintable():
        return None
    from matplotlib.font_manager import fontManager, get_font

    usual = [entry for entry in fontManager.ttflist if entry.name == "DejaVu Sans"]
    for entry in (*usual, *fontManager.ttflist):
        if entry.style != "normal" or entry.name.startswith("Last Resort"):  # which has a box for each script
            continue
        with suppress(OSError, RuntimeError):
            if get_font(entry.fname).get_char_index(ord(letter)):
                return str(entry.name)
    return None


@_drawing()
def plot_losses(metrics: str | Path, output: str | Path | None = None) -> Figure:
    """Draw the losses of a stage against its steps, each smoothed over a fiftieth of them.

    Args:
        metrics: a metrics.jsonl.
        output: the picture to write; its suffix decides the format.

    Returns:
        The figure, which a notebook shows.
    """
    rows = [json.loads(line) for line in read_text(metrics).splitlines()]
    steps = np.array([row["step"] for row in rows])
    width = max(1, len(rows) // 50)
    figure, axes = _figure(8, 4)
    for name in (name for name in ("total", "mil", "act", "bg", "boundary") if name in rows[0]):
        values = np.array([row[name] for row in rows])
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        line = axes.plot(steps, values, alpha=0.2, linewidth=0.8)[0]
        axes.plot(steps[width - 1 :], smooth, color=line.get_color(), label=name)
    totals = [row["total"] for row in rows]
    first, last = np.mean(totals[:width]), np.mean(totals[-width:])
    title = f"{rows[0]['stage']}: the total loss went from {first:.3g} to {last:.3g}"
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=title)
    figure.legend(title="terms before weighing", loc="outside right upper", frameon=False)
    return _saved(figure, output)


def draw(
    detector: Detector,
    recording: Recording,
    detections: Segments,
    output: str | Path,
    pseudo_labels: Segments | None = None,
) -> None:
    """Draw a recording as `plot_recording` does, with the scores that a detector gives.

    Raises:
        InputError: the recording is too long for a picture, which would take more time and memory than detecting.
    """
    if len(recording.features) > LONGEST:
        raise InputError(f"{len(recording.features):,} snippets are more than a picture can show, {LONGEST:,}")
    plot_recording(recording, detector.classes, detector.scores(recording), detections, output, pseudo_labels)


@_drawing()
def plot_recording(
    recording: Recording,
    classes: Sequence[str],
    curves: NDArray[np.float32],
    detections: Segments,
    output: str | Path | None = None,
    pseudo_labels: Segments | None = None,
) -> Figure:
    """Draw a recording: for each class its score with ground truth, points, pseudo-labels and detections below it.

    A detection is drawn where its score is at least half of the class's best and no better one of its class overlaps
    it. The classes shown are those that the ground truth has, else those with the best detections, at most eight.

    Args:
        recording: what was detected in, with whatever labels it has.
        classes: names of the columns of `curves`.
        curves: `[T, C]`, class scores of the snippets.
        detections: detections, also of other recordings.
        output: the picture to write; its suffix decides the format.
        pseudo_labels: pseudo-labels, also of other recordings.

    Returns:
        The figure, which a notebook shows.
    """
    truth: dict[str, list[ScoredSegment]] = {}
    for item in recording.instances:
        truth.setdefault(item.label, []).append((item.start_sec, item.end_sec, 1.0))
    labelled, found = _by_label(pseudo_labels, recording.id), _by_label(detections, recording.id)
    best = {name: max((score for _, _, score in found.get(name, ())), default=0.0) for name in classes}
    shown = sorted(classes, key=lambda name: (name not in truth, -best[name]))[:SHOWN_CLASSES]
    shown = [name for name in classes if name in shown and (name in truth or best[name] > 0)] or list(classes[:1])
    lanes = [
        ("truth", "#009e73", truth),
        ("pseudo-labels", "#e69f00", labelled),
        ("detections", "#0072b2", {name: _clearest(found.get(name, ())) for name in shown}),
    ]
    lanes = [lane for lane in lanes if any(lane[2].get(name) for name in shown)]
    centres = recording.grid.to_sec(np.arange(len(curves), dtype=np.float64) + 0.5)
    figure, all_axes = _figure(14, 1.1 * len(shown) + 1, rows=len(shown))
    for axes, name in zip(np.atleast_1d(all_axes), shown, strict=True):
        curve = curves[:, list(classes).index(name)]
        axes.fill_between(centres, curve / max(float(curve.max()), 1e-6), color="0.8", step="mid", linewidth=0)
        for depth, (lane, colour, segments) in enumerate(lanes):
            bottom = -0.3 * (depth + 1)
            for start, end, score in segments.get(name, ()):
                fades = lane == "detections" and best[name] != 0
                opacity = 0.3 + 0.7 * score / best[name] if fades else 1.0
                axes.broken_barh([(start, end - start)], (bottom, 0.24), color=colour, alpha=opacity, linewidth=0)
        times = [point.time_sec for point in recording.points if point.label == name]
        axes.plot(times, np.full(len(times), -0.18), "k|", markersize=8, label="points")
        axes.set(ylim=(-0.3 * len(lanes) - 0.05, 1.05), xlim=(0, recording.duration_sec), yticks=[])
        heading = _shown(name, 40).replace("_", "\n") + (f"\nbest {best[name]:.2f}" if name in found else "")
        axes.set_ylabel(heading, rotation=0, ha="right", va="center", fontsize=7)
    handles: list[Any] = [_patch(colour, lane) for lane, colour, _ in lanes] + [_patch("0.8", "score")]
    figure.legend(handles=handles, loc="outside lower right", ncol=len(handles), fontsize=8, frameon=False)
    counted = [f"{len(recording.instances)} instances"] if recording.instances else []
    counted += [f"{len(recording.points)} points (bars |)"] if recording.points else []
    drawn = sum(len(lane[2].get(name, ())) for lane in lanes if lane[0] == "detections" for name in shown)
    title = f"{_shown(recording.id)}: {', '.join([*counted, f'{drawn} clear detections'])}"
    figure.suptitle(title, x=0.02, ha="left")
    np.atleast_1d(all_axes)[-1].set_xlabel("time (s)")
    return _saved(figure, output)


@_drawing()
def plot_ablation(outcomes: Sequence[Outcome], output: str | Path | None = None) -> Figure:
    """Draw what the arms of a study score: the mean mAP and that at the highest threshold, a dot for each seed.

    Args:
        outcomes: by arm, then seed.
        output: the picture to write; its suffix decides the format.

    Returns:
        The figure, which a notebook shows.
    """
    arms: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        arms.setdefault(", ".join(outcome.settings.values()), []).append(outcome)
    figure, axes = _figure(8, 0.42 * len(arms) + 1.4)
    rows = np.arange(len(arms))
    last = f"at tIoU {outcomes[0].tiou[-1]:g}"
    for colour, name, shift in (("tab:blue", "mean", -0.17), ("tab:orange", last, 0.17)):
        values = [[item.mean if name == "mean" else item.map[-1] for item in own] for own in arms.values()]
        means = [float(np.mean(own)) for own in values]
        axes.barh(rows + shift, means, 0.32, color=colour, alpha=0.6, label=f"mAP, {name}")
        for row, own in zip(rows, values, strict=True):
            axes.plot(own, np.full(len(own), row + shift), "k.", markersize=4)
    axes.set(yticks=rows, xlabel="mAP (%)", ylabel=", ".join(outcomes[0].settings))
    axes.set_yticklabels([_shown(arm) for arm in arms])
    axes.invert_yaxis()
    best = max(arms, key=lambda arm: float(np.mean([item.mean for item in arms[arm]])))
    score = np.mean([item.mean for item in arms[best]])
    figure.suptitle(f"{_shown(best)} is best: mean mAP {score:.1f}%", x=0.02, ha="left", fontsize="medium")
    figure.legend(loc="outside lower right", ncol=2, frameon=False)
    return _saved(figure, output)


@_drawing()
def plot_analysis(analysis: Analysis, output: str | Path | None = None) -> Figure:
    """Draw what detections find, miss and get wrong, on one page.

    Above: the kinds of errors by rank, what each kind costs, and average recall against the number of proposals. Below:
    mAP_N and misses by characteristics of the instances, and the reliability of the scores.

    Args:
        analysis: the figures.
        output: the picture to write; its suffix decides the format.

    Returns:
        The figure, which a notebook shows.
    """
    figure, axes = _figure(13, 7.5, rows=2, columns=3)
    (profile, cost, recall), (found, missed, reliability) = axes
    _draw_profile(profile, analysis)
    _draw_cost(cost, analysis)
    _draw_recall(recall, analysis)
    sensitivity = analysis.sensitivity
    _draw_groups(found, analysis, "map_n", sensitivity.map_n)
    found.set(ylabel="mAP$_N$ (%)", title="Sensitivity")
    _draw_groups(missed, analysis, "missed", sensitivity.missed)
    missed.set(ylabel="missed instances (%)", title="False negatives")
    _draw_reliability(reliability, analysis)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_axisbelow(True)
    handles, names = profile.get_legend_handles_labels()
    f1 = ", ".join(f"{name} {value:.1f}" for name, value in analysis.f1.segmental.items())
    figure.legend(
        handles,
        names,
        loc="outside upper center",
        ncol=len(names),
        frameon=False,
        title=f"mAP {analysis.map:.1f} at tIoU {analysis.tiou:g}, frame-level F1 {analysis.f1.frame:.1f}, {f1}",
        title_fontsize="large",
    )
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.08)
    return _saved(figure, output)


def _draw_profile(axes: Any, analysis: Analysis) -> None:
    counts = np.array(list(analysis.errors.counts.values()))
    shares = 100 * counts / np.maximum(counts.sum(axis=0), 1)
    names = [f"{k}G" for k in range(1, counts.shape[1] + 1)]
    bottom = np.zeros(counts.shape[1])
    for kind, share in zip(analysis.errors.counts, shares, strict=True):
        axes.bar(names, share, 0.85, bottom, color=KIND_COLOURS[kind], label=kind)
        bottom += share
    axes.set(xlabel="detections by rank (G: instances of the class)", ylabel="share (%)", ylim=(0, 100))
    axes.set_title("False positive profile")


def _draw_cost(axes: Any, analysis: Analysis) -> None:
    gains = analysis.errors.gains
    bars = axes.barh(list(gains), list(gains.values()), color=[KIND_COLOURS[kind] for kind in gains])
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.15 * max(gains.values()), 1))
    axes.set(xlabel=f"points gained over mAP$_N$ {analysis.errors.map_n:.1f}", title="Removing one kind of error")


def _draw_recall(axes: Any, analysis: Analysis) -> None:
    curve = analysis.recall.recall
    axes.plot(analysis.recall.proposals, curve, color="black")
    axes.fill_between(analysis.recall.proposals, curve, color="0.9")
    axes.grid(alpha=0.3)
    axes.annotate(f"{curve[-1]:.1f}", (100, curve[-1]), xytext=(0, 4), textcoords="offset points", ha="right")
    top = max(10 * np.ceil(curve[-1] / 10 + 0.5), 10)
    axes.set(xlim=(0, 100), ylim=(0, top), xlabel="mean number of proposals in a video", ylabel="average recall (%)")
    axes.set_title(f"Average recall (area {analysis.recall.area:.1f})")


def _draw_groups(axes: Any, analysis: Analysis, figure: str, overall: float) -> None:
    """A bar for each group of instances, one characteristic beside the other."""
    left, ticks = 0, []
    for number, (characteristic, groups) in enumerate(analysis.sensitivity.characteristics.items()):
        position = np.arange(left, left + len(groups))
        values = [getattr(group, figure) for group in groups]
        bars = axes.bar(position, values, color=GROUP_COLOURS[number])
        labels = axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=7)
        for label in labels:
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.3})
        axes.text(
            position.mean(),
            1.0,
            CHARACTERISTICS[characteristic],
            ha="center",
            va="top",
            fontsize=9,
            transform=axes.get_xaxis_transform(),
        )
        ticks += [(x, group_name(group)) for x, group in zip(position, groups, strict=True)]
        left += len(groups) + 1
    axes.axhline(overall, color="black", linestyle="--", linewidth=1, zorder=0)
    axes.annotate(
        f"all {overall:.1f}", (1, overall), xycoords=("axes fraction", "data"), ha="left", va="center", fontsize=8
    )
    axes.set_xticks(*zip(*ticks, strict=True), rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_ylim(0, max(1.15 * max(bar.get_height() for bar in axes.patches), 1))


def _draw_reliability(axes: Any, analysis: Analysis) -> None:
    score, precision = (np.array(x, np.float64) for x in (analysis.calibration.score, analysis.calibration.precision))
    filled = np.array(analysis.calibration.counts) > 0
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    axes.plot(score[filled], precision[filled], "o-", color="black", markersize=4)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score", ylabel="precision")
    error = analysis.calibration.error
    axes.set_title("Reliability" + ("" if error is None else f" (expected calibration error {error:.1f})"))
    counts = axes.twinx()
    bins = len(analysis.calibration.counts)
    counts.bar((np.arange(bins) + 0.5) / bins, analysis.calibration.counts, 1 / bins, color="tab:blue", alpha=0.25)
    counts.set_ylim(0, max(1.05 * max(analysis.calibration.counts), 1))
    counts.set_ylabel("detections", color="tab:blue")
    counts.spines[["top"]].set_visible(False)


@_drawing()
def plot_quality(quality: Quality, output: str | Path | None = None) -> Figure:
    """Draw what points tell of a run: points and detections of each class, and of all for other scores.

    Of the classes those with the most points and detections without one are shown, at most thirty.

    Args:
        quality: the figures.
        output: the picture to write, if any; its suffix decides the format.

    Returns:
        The figure.
    """
    known = sorted(quality.per_class.items(), key=lambda item: -item[1].points - item[1].empty)[:SHOWN_HITS]
    rows = np.arange(len(known))
    figure, (bars, curve) = _figure(13, max(0.34 * len(known) + 2, 4.5), columns=2)
    left = np.zeros(len(known))
    for kind, colour in HIT_COLOURS.items():
        counts = np.array([getattr(hits, kind) for _, hits in known])
        bars.barh(rows - 0.2, counts, 0.38, left, color=colour, label=HIT_NAMES[kind])
        left += counts
    empty = np.array([hits.empty for _, hits in known])
    filled = np.array([hits.detections for _, hits in known]) - empty
    bars.barh(rows + 0.2, filled, 0.38, color="0.75", label="detections with a point")
    bars.barh(rows + 0.2, empty, 0.38, filled, color="0.45", label="detections without one")
    bars.set_yticks(rows, [_shown(name) for name, _ in known])
    bars.invert_yaxis()
    bars.set(xlabel="points (above) and detections (below)", title=f"From a score of {quality.min_score:.2f} on")
    scores = [score for score, _ in quality.curve]
    hits = [own for _, own in quality.curve]
    for label, colour, values in (
        ("points in a detection of their own", "tab:green", [own.once / max(own.points, 1) for own in hits]),
        ("detections without a point", "0.45", [own.empty / max(own.detections, 1) for own in hits]),
        ("F1 of both", "black", [own.f1 for own in hits]),
    ):
        curve.plot(scores, 100 * np.array(values), color=colour, label=label)
    curve.axvline(quality.min_score, color="tab:red", linestyle="--", linewidth=1, label="the score that is chosen")
    curve.set(xlabel="least score of a detection", ylabel="share (%)", ylim=(0, 102), title="For other scores")
    where = "not trained on" if quality.held_out else "trained on"
    figure.suptitle(f"Points against detections, in recordings that were {where}")
    for axes, place in ((bars, "outside lower left"), (curve, "outside lower right")):
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(*axes.get_legend_handles_labels(), fontsize=8, loc=place, ncol=2)
    return _saved(figure, output)


def _by_label(segments: Segments | None, video: str) -> dict[str, list[ScoredSegment]]:
    """The segments of one recording, a list for each label that it has."""
    found: dict[str, list[ScoredSegment]] = {}
    if segments is None or video not in segments.videos:
        return found
    rows = segments.take(segments.video == segments.videos.index(video))
    columns = (rows.label, rows.start_sec, rows.end_sec, rows.score)
    for label, start, end, score in zip(*(column.tolist() for column in columns), strict=True):
        found.setdefault(rows.labels[label], []).append((start, end, score))
    return found


def _clearest(rows: Sequence[ScoredSegment]) -> list[ScoredSegment]:
    """Of detections of a class those worth drawing: no better one overlaps, and the score is half of the best."""
    drawn: list[ScoredSegment] = []
    for start, end, score in sorted(rows, key=lambda row: -row[2]):
        if drawn and score < drawn[0][2] / 2:
            break
        if all(end <= other[0] or other[1] <= start for other in drawn):
            drawn.append((start, end, score))
    return drawn


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    # Figures of their own, without pyplot: no display is needed and nothing is left open.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, sharex=columns == 1)


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _saved(figure: Any, output: str | Path | None) -> Figure:
    _use_fonts(figure)
    if output is not None:
        suffix = Path(output).suffix
        if suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
            raise InputError(f"{output}: expected a picture such as .png, .pdf or .svg, got {suffix!r}")
        with atomic(output) as path:
            figure.savefig(path, dpi=120)
    drawn: Figure = figure
    return drawn
