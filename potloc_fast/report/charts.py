"""The figures of a report as charts that Plotly draws: plain JSON, without the package itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from potloc_fast.evaluation import Analysis, Evaluation
from potloc_fast.evaluation.analysis import CHARACTERISTICS, group_name
from potloc_fast.plots import KIND_COLOURS
from potloc_fast.report.data import TIOU, Labels, PrecisionRecall, Report, Training

if TYPE_CHECKING:
    from potloc_fast.engine.quality import Quality

# Okabe and Ito's colours, each with a dash and a symbol of its own.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999", "#f0e442")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "pentagon")
HATCHES = ("", "/", "x", ".", "\\", "-")
STAGES = {"base": "base model", "potloc": "POTLoc"}


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: what it shows, in words that say the finding.
        data: Plotly's traces.
        layout: Plotly's layout, without colours of paper and text.
        height: in pixels.
    """

    title: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 320


def charts(report: Report) -> tuple[Chart, ...]:
    """All charts that the figures of a report allow."""
    return tuple(_charts(report))


def _charts(report: Report) -> Iterator[Chart]:
    if report.evaluations:
        yield _map(report.evaluations)
    if report.curves:
        yield _precision_recall(report.curves)
    if report.analysis is not None:
        yield from _analysis(report.analysis)
    if report.quality is not None:
        yield _quality(report.quality)
    if report.labels:
        yield _labels(report.labels)
    yield from (_training(training) for training in report.trainings)


def _axes(x: str, y: str, **more: Any) -> dict[str, Any]:
    axes: dict[str, Any] = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    for name, value in more.items():
        axes[name] = axes[name] | value if name in axes else value
    return axes


def _line(number: int) -> dict[str, Any]:
    """How one of several lines looks."""
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
    return {"line": {"color": colour, "dash": dash}, "marker": {"color": colour, "symbol": SYMBOLS[number % 8]}}


def _map(evaluations: Mapping[str, Evaluation]) -> Chart:
    name, last = list(evaluations.items())[-1]
    data = [
        {"name": STAGES.get(stage, stage), "x": list(own.tiou), "y": own.map, "mode": "lines+markers", **_line(number)}
        for number, (stage, own) in enumerate(evaluations.items())
    ]
    words = f"mAP {last.mean:.1f}%, from {last.map[0]:.1f}% at tIoU {last.tiou[0]:g} to {last.map[-1]:.1f}%"
    title = words if len(evaluations) == 1 else f"{STAGES.get(name, name)}: {words}"
    return Chart(title, data, _axes("tIoU", "mAP (%)", yaxis={"range": [0, 100]}))


def _precision_recall(curves: Sequence[PrecisionRecall]) -> Chart:
    data = [
        {
            "name": escape(curve.label),
            "x": [0, *curve.recall],
            "y": [*curve.precision[:1], *curve.precision],
            "mode": "lines",
            "line": _line(number)["line"],
        }
        for number, curve in enumerate(curves)
        if curve.recall
    ]
    most = [curve.recall[-1] if curve.recall else 0.0 for curve in curves]
    title = f"Precision and recall at tIoU {TIOU:g}: on average {np.mean(most):.0f}% of the instances are found"
    layout = _axes("recall (%)", "precision (%)", xaxis={"range": [0, 101]}, yaxis={"range": [0, 101]})
    return Chart(title, data, layout, 340 + 15 * len(data))


def _analysis(analysis: Analysis) -> Iterator[Chart]:
    yield _profile(analysis)
    gains = analysis.errors.gains
    worst = max(gains, key=lambda kind: gains[kind])
    yield Chart(
        f"What each kind of error costs: {worst} most, {gains[worst]:.1f} points of mAP_N",
        [
            {
                "type": "bar",
                "orientation": "h",
                "y": list(gains),
                "x": [round(value, 2) for value in gains.values()],
                "text": [f"{value:.1f}" for value in gains.values()],
                "marker": {"color": [KIND_COLOURS[kind] for kind in gains]},
            }
        ],
        _axes("points gained without it", "", yaxis={"autorange": "reversed"}),
    )
    yield from _groups(analysis)
    yield _calibration(analysis)
    recall = analysis.recall
    yield Chart(
        f"Average recall {recall.recall[-1]:.1f}% with 100 proposals a recording",
        [{"x": recall.proposals, "y": recall.recall, "mode": "lines", "fill": "tozeroy", **_line(0)}],
        _axes("proposals a recording", "average recall (%)", yaxis={"rangemode": "tozero"}),
    )
    f1 = analysis.f1
    ordered = sorted(f1.per_class.items(), key=lambda item: item[1])
    at = "" if f1.threshold is None else f", with scores from {f1.threshold:.2f}"
    yield Chart(
        f"Frame-level F1 {f1.frame:.1f}%{at}: worst {ordered[0][0]}, {ordered[0][1]:.0f}%",
        [
            {
                "type": "bar",
                "orientation": "h",
                "y": [escape(label) for label, _ in ordered],
                "x": [round(value, 2) for _, value in ordered],
                "text": [f"{value:.0f}" for _, value in ordered],
                "marker": {"color": COLOURS[0]},
            }
        ],
        _axes("F1 (%)", "", xaxis={"range": [0, 100]}),
        120 + 22 * len(ordered),
    )
    yield _boundaries(analysis)


def _profile(analysis: Analysis) -> Chart:
    counts = np.array(list(analysis.errors.counts.values()))
    shares = 100 * counts / np.maximum(counts.sum(axis=0), 1)
    groups = [f"{k}G" for k in range(1, counts.shape[1] + 1)]
    right = shares[0][0]
    return Chart(
        f"Of the best detections {right:.0f}% are right (1G: as many as there are instances)",
        [
            {
                "type": "bar",
                "name": kind,
                "x": groups,
                "y": share.round(2).tolist(),
                "marker": {"color": KIND_COLOURS[kind], "pattern": {"shape": hatch, "fillmode": "overlay", "size": 7}},
            }
            for kind, share, hatch in zip(analysis.errors.counts, shares, HATCHES, strict=True)
        ],
        _axes("rank of detections (G: instances)", "share (%)", barmode="stack", yaxis={"range": [0, 100]}),
    )


def _groups(analysis: Analysis) -> Iterator[Chart]:
    for figure, name, overall in (
        ("map_n", "mAP_N (%)", analysis.sensitivity.map_n),
        ("missed", "Missed instances (%)", analysis.sensitivity.missed),
    ):
        data = []
        for number, (characteristic, groups) in enumerate(analysis.sensitivity.characteristics.items()):
            words = CHARACTERISTICS[characteristic]
            values = [getattr(group, figure) for group in groups]
            data.append(
                {
                    "type": "bar",
                    "name": words,
                    "x": [[words] * len(groups), [group_name(group) for group in groups]],
                    "y": [round(value, 2) for value in values],
                    "text": [f"{value:.0f}" for value in values],
                    "marker": {"color": COLOURS[number]},
                    "showlegend": False,
                }
            )
        groups = analysis.sensitivity.characteristics["length"]
        worst = (min if figure == "map_n" else max)(groups, key=lambda group: getattr(group, figure))
        what = "worst" if figure == "map_n" else "most missed"
        title = f"{name}: {overall:.1f} in all; {what} are instances of {group_name(worst)} s"
        yield Chart(title, data, _axes("", name), 360)


def _calibration(analysis: Analysis) -> Chart:
    found = analysis.calibration
    bins = np.array([row for row in zip(found.score, found.precision, found.counts, strict=True) if row[2]]).tolist()
    title = "Calibration: nothing was detected"
    if found.error is not None:
        mean, hit = (np.average([row[i] for row in bins], weights=[row[2] for row in bins]) for i in (0, 1))
        title = f"Calibration: scores are {'higher' if mean > hit else 'lower'} than the share that is right, "
        title += f"by {found.error:.1f} points"
    return Chart(
        title,
        [
            {"name": "ideal", "x": [0, 1], "y": [0, 1], "mode": "lines", "line": {"color": "#999999", "dash": "dash"}},
            {
                "name": "detections",
                "x": [row[0] for row in bins],
                "y": [row[1] for row in bins],
                "text": [f"{row[2]:,.0f} detections" for row in bins],
                "mode": "lines+markers",
                **_line(0),
            },
        ],
        _axes("score", "share that is right", xaxis={"range": [0, 1.02]}, yaxis={"range": [0, 1.02]}),
    )


def _boundaries(analysis: Analysis) -> Chart:
    shifts = {"all": analysis.boundaries.overall}
    shifts |= {label: own for label, own in analysis.boundaries.per_class.items() if own.found}
    data = []
    for number, side in enumerate(("start", "end")):
        rows = [(i, shift) for i, own in enumerate(shifts.values()) if (shift := getattr(own, side)) is not None]
        data.append(
            {
                "name": side,
                "y": [i + (-0.16, 0.16)[number] for i, _ in rows],
                "x": [round(shift.median, 3) for _, shift in rows],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [round(shift.high - shift.median, 3) for _, shift in rows],
                    "arrayminus": [round(shift.median - shift.low, 3) for _, shift in rows],
                },
                "mode": "markers",
                "marker": {"color": COLOURS[number], "symbol": ("triangle-right", "square")[number], "size": 9},
            }
        )
    whole = analysis.boundaries.overall
    title = "Boundaries: no instance was found"
    if whole.start is not None and whole.end is not None:
        title = f"Boundaries: starts {_late(whole.start.median)}, ends {_late(whole.end.median)} (median; bars: half)"
    names = {"tickvals": list(range(len(shifts))), "ticktext": [escape(label) for label in shifts]}
    rows_axis = {**names, "range": [len(shifts) - 0.4, -0.6], "zeroline": False}
    layout = _axes("detected - true (s); over 0: too late", "", yaxis=rows_axis)
    return Chart(title, data, layout, 140 + 26 * len(shifts))


def _late(seconds: float) -> str:
    return "right" if abs(seconds) < 0.005 else f"{abs(seconds):.2f} s too {'late' if seconds > 0 else 'early'}"


def _labels(labels: Sequence[Labels]) -> Chart:
    last = labels[-1]
    data = [
        {
            "name": own.name,
            "x": list(own.evaluation.tiou),
            "y": own.evaluation.map,
            "mode": "lines+markers",
            **_line(number),
        }
        for number, own in enumerate(labels)
    ]
    title = f"Pseudo-labels: mean tIoU {last.tiou:.1f}% with the true instances of the training recordings"
    return Chart(title, data, _axes("tIoU", "mAP of pseudo-labels (%)", yaxis={"range": [0, 100]}))


def _quality(quality: Quality) -> Chart:
    hits = [own for _, own in quality.curve]
    shares = {
        "points in a detection of their own": [own.once / max(own.points, 1) for own in hits],
        "detections without a point": [own.empty / max(own.detections, 1) for own in hits],
        "F1 of both": [own.f1 for own in hits],
    }
    scores = [score for score, _ in quality.curve]
    data: list[dict[str, Any]] = [
        {"name": name, "x": scores, "y": [round(100 * value, 2) for value in values], "mode": "lines", **_line(number)}
        for number, (name, values) in enumerate(shares.items())
    ]
    chosen = {"x": [quality.min_score] * 2, "y": [0, 100], "mode": "lines", **_line(5)}
    own = quality.hits
    title = (
        f"Points against detections: from a score of {quality.min_score:.2f} on, {own.once} of {own.points} points lie "
        "in a detection of their own"
    )
    axes = _axes("least score of a detection", "share (%)", yaxis={"range": [0, 102]})
    return Chart(title, [*data, {"name": "the score that is chosen", **chosen}], axes, 400)


def _training(training: Training) -> Chart:
    data = [
        {"name": name, "x": training.step, "y": values, "mode": "lines", **_line(number)}
        for number, (name, values) in enumerate(training.losses.items())
    ]
    first, last = training.losses["total"][0], training.losses["total"][-1]
    title = f"Training of {STAGES.get(training.stage, training.stage)}: total loss from {first:.3g} to {last:.3g}"
    return Chart(title, data, _axes("step", "loss", yaxis={"type": "log", "dtick": 1}))
