"""Pictures of a run: loss curves, and a recording with everything that is known and found about it (Figure 2)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from potloc_fast.data import Recording
from potloc_fast.evaluation import Segments
from potloc_fast.files import atomic, read_text

if TYPE_CHECKING:
    from potloc_fast.engine.ablate import Outcome

SHOWN_CLASSES = 8  # more rows than this can't be told apart on one page


def plot_losses(metrics: str | Path, output: str | Path) -> None:
    """Draw the losses of a stage against its steps, each smoothed over a fiftieth of them.

    Args:
        metrics: a metrics.jsonl.
        output: the picture to write; its suffix decides the format.
    """
    rows = [json.loads(line) for line in read_text(metrics).splitlines()]
    steps = np.array([row["step"] for row in rows])
    width = max(1, len(rows) // 50)
    figure, axes = _figure(8, 4)
    for name in ("total", "mil", "act", "bg"):
        values = np.array([row[name] for row in rows])
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        line = axes.plot(steps, values, alpha=0.2, linewidth=0.8)[0]
        axes.plot(steps[width - 1 :], smooth, color=line.get_color(), label=name)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=f"{rows[0]['stage']}: losses")
    axes.legend()
    _save(figure, output)


def plot_recording(
    recording: Recording,
    classes: Sequence[str],
    curves: NDArray[np.float32],
    detections: Segments,
    output: str | Path,
    pseudo_labels: Segments | None = None,
) -> None:
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
    """
    own = [_of(segments, recording.id) for segments in (pseudo_labels, detections)]
    best = {name: max((row[2] for row in own[1] if row[3] == name), default=0.0) for name in classes}
    known = {instance.label for instance in recording.instances}
    shown = sorted(classes, key=lambda name: (name not in known, -best[name]))[:SHOWN_CLASSES]
    shown = [name for name in classes if name in shown and (name in known or best[name] > 0)] or list(classes[:1])
    lanes: list[tuple[str, str, dict[str, list[tuple[float, float, float]]]]] = [
        (
            "truth",
            "tab:green",
            {name: [(i.start_sec, i.end_sec, 1.0) for i in recording.instances if i.label == name] for name in shown},
        ),
        ("pseudo-labels", "tab:orange", {name: [row[:3] for row in own[0] if row[3] == name] for name in shown}),
        ("detections", "tab:blue", {name: _clearest([row for row in own[1] if row[3] == name]) for name in shown}),
    ]
    lanes = [lane for lane in lanes if any(lane[2].values())]
    centres = recording.grid.to_sec(np.arange(len(curves), dtype=np.float64) + 0.5)
    figure, all_axes = _figure(14, 1.1 * len(shown) + 1, rows=len(shown))
    for axes, name in zip(np.atleast_1d(all_axes), shown, strict=True):
        score = curves[:, list(classes).index(name)]
        axes.fill_between(centres, score / max(float(score.max()), 1e-6), color="0.8", step="mid", linewidth=0)
        for depth, (lane, colour, segments) in enumerate(lanes):
            bottom = -0.3 * (depth + 1)
            for start, end, weight in segments[name]:
                opacity = 1.0 if lane != "detections" else 0.3 + 0.7 * weight / best[name]
                axes.broken_barh([(start, end - start)], (bottom, 0.24), color=colour, alpha=opacity, linewidth=0)
        times = [point.time_sec for point in recording.points if point.label == name]
        axes.plot(times, np.full(len(times), -0.18), "k|", markersize=8, label="points")
        axes.set(ylim=(-0.3 * len(lanes) - 0.05, 1.05), xlim=(0, recording.duration_sec), yticks=[])
        axes.set_ylabel(name.replace("_", "\n"), rotation=0, ha="right", va="center", fontsize=7)
    handles: list[Any] = [_patch(colour, lane) for lane, colour, _ in lanes] + [_patch("0.8", "score")]
    figure.legend(handles=handles, loc="upper right", ncol=len(handles), fontsize=8)
    figure.suptitle(
        f"{recording.id} (bars | are point labels)" if recording.points else recording.id, x=0.02, ha="left"
    )
    np.atleast_1d(all_axes)[-1].set_xlabel("seconds")
    _save(figure, output)


def plot_ablation(outcomes: Sequence[Outcome], output: str | Path) -> None:
    """Draw what the arms of a study score: the mean mAP and that at the highest threshold, a dot for each seed.

    Args:
        outcomes: by arm, then seed.
        output: the picture to write; its suffix decides the format.
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
    axes.set_yticklabels(list(arms))
    axes.invert_yaxis()
    figure.legend(loc="outside upper right", ncol=2)
    _save(figure, output)


def _of(segments: Segments | None, video: str) -> list[tuple[float, float, float, str]]:
    """(start, end, score, label) of one recording."""
    if segments is None or video not in segments.videos:
        return []
    rows = np.flatnonzero(segments.video == segments.videos.index(video))
    return [
        (segments.start_sec[i], segments.end_sec[i], segments.score[i], segments.labels[segments.label[i]])
        for i in rows
    ]


def _clearest(rows: list[tuple[float, float, float, str]]) -> list[tuple[float, float, float]]:
    """Of detections of a class those worth drawing: no better one overlaps, and the score is half of the best."""
    drawn: list[tuple[float, float, float]] = []
    for start, end, score, _ in sorted(rows, key=lambda row: -row[2]):
        if (not drawn or score >= drawn[0][2] / 2) and all(end <= other[0] or other[1] <= start for other in drawn):
            drawn.append((start, end, score))
    return drawn


def _figure(width: float, height: float, rows: int = 1) -> tuple[Any, Any]:
    # Figures of their own, without pyplot: no display is needed and nothing is left open.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, sharex=True)


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _save(figure: Any, output: str | Path) -> None:
    with atomic(output) as path:
        figure.savefig(path, dpi=120)
