"""What to label next: the recordings that a run is least sure of, with the moments to look at."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from potloc_fast.config.schema import Device
from potloc_fast.data import Recording
from potloc_fast.detector import Detection, Detector, typed
from potloc_fast.engine.progress import tracked
from potloc_fast.engine.quality import listed_from
from potloc_fast.engine.run import Run
from potloc_fast.errors import InputError
from potloc_fast.files import write_text


@dataclass(frozen=True)
class Suggestion:
    """A recording to label.

    Attributes:
        recording: its name.
        doubt: what the model does not know of it, in nats for each click that it would take: the entropy of the class
            probabilities of its snippets, summed, over the actions that the model sees and one more.
        actions: what the model sees in it, by time.
    """

    recording: str
    doubt: float
    actions: tuple[Detection, ...]


def suggest(run: Run, recordings: Sequence[Recording], *, device: Device | None = None) -> list[Suggestion]:
    """Rank recordings without labels by what a click in them would teach.

    Whole recordings are suggested, as training takes what has no point for background.

    Args:
        run: a trained run.
        recordings: the recordings of its data set. Those with points or instances are left out.
        device: where to compute; by default as in training.

    Returns:
        The suggestions, by falling doubt.

    Raises:
        InputError: every recording has labels.
    """
    unlabelled = [recording for recording in recordings if not recording.points and not recording.instances]
    if not unlabelled:
        raise InputError(f"{run.folder}: expected recordings without points to choose from, found none")
    detector = Detector.load(run, device=device)
    found = []
    for recording in tracked("suggest", unlabelled):
        actions = typed(detector.segments([recording]).scored(listed_from(run)))
        p = detector.scores(recording).astype(np.float64).clip(1e-6, 1 - 1e-6)
        entropy = -(p * np.log(p) + (1 - p) * np.log1p(-p)).sum()
        by_time = tuple(sorted(actions, key=lambda action: action.start_sec))
        found.append(Suggestion(recording.id, float(entropy) / (len(actions) + 1), by_time))
    return sorted(found, key=lambda suggestion: -suggestion.doubt)


def write_suggestions(path: str | Path, recordings: Sequence[Recording], suggestions: Sequence[Suggestion]) -> None:
    """Write a table of points: those that there are, and below them one row for each action that the model sees.

    The rows below lack their label, which stands in the column `guess`: somebody has to look. Filled in, the file is
    what `data.points_file` takes.

    Args:
        path: CSV with the columns recording, label, time_sec, guess and score.
        recordings: recordings with points.
        suggestions: what to label next.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["recording", "label", "time_sec", "guess", "score"])
    for recording in recordings:
        for point in recording.points:
            writer.writerow([recording.id, point.label, f"{point.time_sec:.3f}", "", ""])
    for suggestion in suggestions:
        for action in suggestion.actions:
            middle = f"{(action.start_sec + action.end_sec) / 2:.3f}"
            writer.writerow([suggestion.recording, "", middle, action.label, f"{action.score:.4f}"])
    write_text(path, text.getvalue())
