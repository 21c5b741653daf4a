"""What a mean average precision hides: errors, sensitivity, recall, F1 and calibration of detections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from potloc_fast.data.annotations import as_database, parse_database, read_events
from potloc_fast.errors import InputError, quote
from potloc_fast.evaluation.align import align
from potloc_fast.evaluation.average_precision import average_precision, class_bounds, match, rank
from potloc_fast.evaluation.calibration import Calibration, calibration
from potloc_fast.evaluation.errors import ErrorProfile, error_profile
from potloc_fast.evaluation.frames import F1, OVERLAPS, f1
from potloc_fast.evaluation.recall import AverageRecall, average_recall
from potloc_fast.evaluation.segments import Segments
from potloc_fast.evaluation.sensitivity import InstanceGroup, Sensitivity, sensitivity
from potloc_fast.evaluation.shifts import BoundaryShifts, Shift, boundary_shifts
from potloc_fast.files import without_collection
from potloc_fast.formats import Source
from potloc_fast.names import by_name

if TYPE_CHECKING:
    from rich.table import Table

CHARACTERISTICS = {"length": "length (s)", "coverage": "coverage (%)", "instances": "# instances"}


@dataclass(frozen=True)
class Analysis:
    """What detections find, miss and get wrong.

    Attributes:
        tiou: the threshold of `map`, `errors`, `sensitivity` and `calibration`.
        map: mAP at this threshold, in percent, as `evaluate` gives it.
        errors: kinds of errors, and what each costs.
        sensitivity: mAP and misses by length, coverage and number of instances.
        recall: average recall against the number of proposals.
        f1: frame-level and segmental F1.
        calibration: reliability of the scores.
        boundaries: in which direction starts and ends are off, and by how much.
        warnings: one sentence for each oddity of the files that may lower the figures, or leaves some out.
    """

    tiou: float
    map: float
    errors: ErrorProfile
    sensitivity: Sensitivity
    recall: AverageRecall
    f1: F1
    calibration: Calibration
    boundaries: BoundaryShifts
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Give all figures as nested objects, named like the attributes, without the warnings."""
        return {name: value for name, value in asdict(self).items() if name != "warnings"}

    def tables(self) -> tuple[Table, ...]:
        """Give tables for the terminal: the figures on the whole, errors, groups of instances, shifts of boundaries."""
        from rich.box import SIMPLE
        from rich.markup import escape
        from rich.table import Table

        calibration_error = "-" if self.calibration.error is None else f"{self.calibration.error:.1f}"
        frame = "frame-level F1" + (f", scores from {self.f1.threshold:.3g}" if self.f1.threshold is not None else "")
        overall = Table(title="Overall (%)", box=SIMPLE, padding=0, show_header=False)
        overall.add_column()
        overall.add_column(justify="right")
        for name, value in (
            (f"mAP at tIoU {self.tiou:g}", f"{self.map:.1f}"),
            (f"mAP_N at tIoU {self.tiou:g}", f"{self.sensitivity.map_n:.1f}"),
            *((f"AR@{n}", f"{self.recall.recall[n - 1]:.1f}") for n in (1, 5, 10, 50, 100)),
            ("area under AR", f"{self.recall.area:.1f}"),
            (frame, f"{self.f1.frame:.1f}"),
            *((name, f"{value:.1f}") for name, value in self.f1.segmental.items()),
            ("expected calibration error", calibration_error),
        ):
            overall.add_row(name, value)

        title = f"The top 10G detections at tIoU {self.tiou:g}: mAP_N {self.errors.map_n:.1f}"
        errors = Table(title=title, box=SIMPLE, padding=0)
        errors.add_column("kind")
        for name in ("n", "%", "% of 1G", "mAP_N gain"):
            errors.add_column(name, justify="right")
        counts = np.array(list(self.errors.counts.values()))
        sizes, (every, best) = counts.sum(axis=1), np.maximum((counts.sum(), counts[:, 0].sum()), 1)
        for kind, size, first in zip(self.errors.counts, sizes, counts[:, 0], strict=True):
            gain = f"{self.errors.gains[kind]:+.1f}" if kind in self.errors.gains else ""
            errors.add_row(kind, str(size), f"{100 * size / every:.1f}", f"{100 * first / best:.1f}", gain)
        errors.add_row("no errors", "", "", "", f"{self.errors.map_n_without_errors - self.errors.map_n:+.1f}")

        groups = Table(title=f"Instances at tIoU {self.tiou:g}", box=SIMPLE, padding=0)
        groups.add_column("by their")
        for name in ("from - to", "n", "mAP_N", "missed %"):
            groups.add_column(name, justify="right")
        for characteristic, members in self.sensitivity.characteristics.items():
            for number, group in enumerate(members):
                groups.add_row(
                    "" if number else CHARACTERISTICS[characteristic],
                    group_name(group),
                    str(group.instances),
                    f"{group.map_n:.1f}",
                    f"{group.missed:.1f}",
                    end_section=number == len(members) - 1,
                )
        n = sum(group.instances for group in self.sensitivity.characteristics["length"])
        groups.add_row("all", "", str(n), f"{self.sensitivity.map_n:.1f}", f"{self.sensitivity.missed:.1f}")

        shifts = Table(title="How far boundaries are off (s): + is too late, - too early", box=SIMPLE, padding=0)
        shifts.add_column("class", overflow="fold")
        for name in ("found", "start", "half are within", "end", "half are within"):
            shifts.add_column(name, justify="right")
        for name, own in self.boundaries.per_class.items():
            shifts.add_row(escape(name), str(own.found), *_off(own.start), *_off(own.end))
        whole = self.boundaries.overall
        shifts.add_section()
        shifts.add_row("all", str(whole.found), *_off(whole.start), *_off(whole.end))
        return overall, errors, groups, shifts


def _off(shift: Shift | None) -> tuple[str, str]:
    """Give the median and the quartiles of a shift as text."""
    return ("", "") if shift is None else (f"{shift.median:+.2f}", f"{shift.low:+.2f} to {shift.high:+.2f}")


def group_name(group: InstanceGroup) -> str:
    """Give the range of a group of instances, with three digits."""
    low, high = (f"{value:.3g}" for value in (group.low, group.high))
    return low if low == high else f"{low} - {high}"


def analyse(
    detections: str | Path | Mapping[str, Any] | Segments,
    ground_truth: str | Path | Mapping[str, Any] | Segments,
    *,
    tiou: float = 0.5,
    subset: str | None = None,
) -> Analysis:
    """Say what detections find, miss and get wrong.

    Detections count as in `evaluate` under the ActivityNet protocol: those of unknown classes are ignored, also as
    proposals, and those on videos that the ground truth lacks are false positives.

    Args:
        detections: a file (see `read_detections`), the content of a JSON file, or segments.
        ground_truth: a file (see `read_ground_truth`), the content of a JSON file, or segments. Where each video with
            instances has a "duration" in seconds, instances are grouped by coverage, too.
        tiou: the threshold t in (0, 1].
        subset: the subset of the ground truth to use, whatever its case; all of it if None.

    Returns:
        The figures.

    Raises:
        InputError: a file is malformed, the ground truth is empty, or it shares no class with the detections.

    Example:
        >>> truth = {"database": {"v": {"subset": "test", "annotations": [{"label": "a", "segment": [0, 10]}]}}}
        >>> found = {"results": {"v": [{"label": "a", "score": 0.9, "segment": [0, 4]}]}}
        >>> analysis = analyse(found, truth)
        >>> analysis.map, analysis.errors.counts["localization"][0], analysis.f1.recall
        (0.0, 1, 40.0)
    """
    if not 0 < tiou <= 1:
        raise InputError(f"tiou: expected a threshold in (0, 1], got {tiou}")
    durations: dict[str, float] = {}
    if not isinstance(ground_truth, Segments):
        ground_truth, durations = _read(ground_truth, subset)
        subset = None
    found, truth, warnings = align(detections, ground_truth, subset)
    ranked = found.take(rank(found))
    taken = match(ranked, truth, np.array([tiou, *OVERLAPS]))
    hit = taken[:, :1] >= 0
    instances = np.bincount(truth.label)
    every = np.zeros(len(ranked), dtype=np.bool_)
    ap = average_precision(hit, every, *class_bounds(ranked), instances, np.ones(len(instances)), True)
    outside = int(((ranked.score < 0) | (ranked.score > 1)).sum())
    if outside:
        clipped = f"{outside} of {len(ranked)} scores outside 0 to 1: calibration takes them as 0 or 1"
        warnings = (*warnings, clipped)
    return Analysis(
        tiou=float(tiou),
        map=float((100 * ap).mean(axis=0)[0]),  # to the last digit as evaluate has it
        errors=error_profile(ranked, truth, taken[:, 0], tiou),
        sensitivity=sensitivity(ranked, truth, taken[:, 0], _of_instances(durations, truth)),
        recall=average_recall(found, truth),
        f1=f1(ranked, truth, taken[:, 1:]),
        calibration=calibration(ranked.score, hit[:, 0]),
        boundaries=boundary_shifts(ranked, truth, taken[:, 1 + OVERLAPS.index(0.1)]),
        warnings=warnings,
    )


@without_collection()
def _read(value: str | Path | Mapping[str, Any], subset: str | None) -> tuple[Segments, dict[str, float]]:
    """Take ground truth, and the durations of the videos that have one."""
    source: str | Path = "ground truth"
    content: Any = value
    if isinstance(value, str | Path):
        source, file = value, Source(value)
        events = read_events(file)
        if events is not None:
            return Segments.from_database(as_database(events), subset), {}
        content = file.json
    database = parse_database(content, source)
    truth = Segments.from_database(database, subset)
    durations = {name: seconds for name in truth.videos if (seconds := database.videos[name].duration_sec) is not None}
    found = set(truth.videos)
    for name, entry in by_name(content["database"].items(), source).items():
        duration = entry.get("duration")
        if name in found and duration is not None and name not in durations:
            raise InputError(
                f"{source}: database[{quote(name)}].duration: expected a number above 0, got {quote(duration)}"
            )
    return truth, durations


def _of_instances(durations: dict[str, float], truth: Segments) -> NDArray[np.float64] | None:
    """Give the duration of the video of each instance, None where one is unknown."""
    known = np.array([durations.get(video, np.nan) for video in truth.videos])[truth.video]
    return None if np.isnan(known).any() else known
