"""How good a run is, as far as points can tell: no true boundary is looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from potloc_fast.config.schema import NmsConfig
from potloc_fast.data import Recording
from potloc_fast.engine.detect import detect
from potloc_fast.engine.run import Run
from potloc_fast.errors import InputError, quote
from potloc_fast.evaluation import Segments
from potloc_fast.evaluation.points import Hits, PointHits, pairs, tiou
from potloc_fast.evaluation.segments import renumber
from potloc_fast.files import read_json
from potloc_fast.pseudo_labels import Points, collect_points, read_pseudo_labels

SCORES = 60  # at which the curve is drawn
LEAST_WEIGHT = 1e-6  # scores of 0 and less may occur


class Quality(BaseModel):
    """What is known of a run without true boundaries.

    Attributes:
        min_score: a score from which detections in the training recordings fit the points (`fitting_score`).
        held_out: whether what follows was counted in recordings that were not trained on.
        hits: points and detections from `min_score` on.
        per_class: the same for each class.
        agreement: mean tIoU of the proposals that hold a point, each weighted by its score, with the best detection of
            the point; 0 for a point that no detection from `min_score` on holds.
        boundary_sec: how far the boundaries of these proposals usually lie apart: the median of their deviations, in
            seconds; None where no proposal holds a point.
        label_tiou: mean tIoU of the pseudo-labels with the best detection of their point, in the training recordings,
            counted as `agreement`; None where pseudo-labels were not learned from.
        curve: `hits` for other scores, from low ones to high ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_score: FiniteFloat
    held_out: bool
    hits: Hits
    per_class: dict[str, Hits]
    agreement: FiniteFloat
    boundary_sec: FiniteFloat | None
    label_tiou: FiniteFloat | None
    curve: tuple[tuple[FiniteFloat, Hits], ...]

    def sentences(self) -> list[str]:
        """What to tell people, in plain words."""
        own, several = self.hits, self.hits.doubled + self.hits.shared
        where = "were not trained on" if self.held_out else "were trained on"
        told = [
            f"Of {own.points} points in recordings that {where}, {own.once} ({_percent(own.once, own.points)}) lie in "
            f"a detection of their own, counting detections with a score of {self.min_score:.2f} or more; {own.missed} "
            f"lie in none, {several} in several or beside other points.",
            f"Of {own.detections} such detections {own.empty} ({_percent(own.empty, own.detections)}) hold no point.",
        ]
        if self.boundary_sec is not None:
            told.append(f"Boundaries are uncertain by about {self.boundary_sec:.2f} s: so much do proposals differ.")
        if not self.held_out:
            told.append("New recordings will fare worse than these.")
        return told


def assess(run: Run, trained: Sequence[Recording], held_out: Sequence[Recording], device: torch.device) -> Quality:
    """Hold the detections of a run's POTLoc model against points.

    Of several processes (`distributed`) each detects in a share of the recordings.

    Args:
        run: the run.
        trained: the recordings that it was trained on, at least one with a point. The score is chosen on them.
        held_out: recordings that it was not trained on, with points. Where there are none, all is counted in those
            that it was trained on.
        device: what to detect on.

    Returns:
        What is known.
    """
    found = _detect(run, trained, device)
    hits = PointHits(found, collect_points(trained, run.classes))
    min_score = hits.fitting_score()
    labels = _label_tiou(run, found, min_score)
    counted = held_out or trained
    if held_out:
        hits = PointHits(_detect(run, held_out, device), collect_points(held_out, run.classes))
    agreement, boundary_sec = _agreement(hits, _detect(run, counted, device, all_proposals=True), min_score)
    scores = np.unique(np.append(hits.detections.score, min_score))
    return Quality(
        min_score=min_score,
        held_out=bool(held_out),
        hits=hits.at(min_score),
        per_class={name: hits.at(min_score, label) for label, name in enumerate(run.classes)},
        agreement=agreement,
        boundary_sec=boundary_sec,
        label_tiou=labels,
        curve=tuple((score, hits.at(score)) for score in np.linspace(scores[0], scores[-1], SCORES).tolist()),
    )


def _detect(run: Run, recordings: Sequence[Recording], device: torch.device, all_proposals: bool = False) -> Segments:
    """Detections, or all proposals that they are chosen from."""
    config = run.config.detect
    if all_proposals:
        config = config.model_copy(update={"nms": NmsConfig(method="hard", iou=1.0)})
    model, topk_ratio = run.load("potloc").to(device), run.config.loss.topk_ratio
    return detect(model, recordings, run.classes, config, topk_ratio, run.config.engine.precision)


def _label_tiou(run: Run, found: Segments, min_score: float) -> float | None:
    """The mean tIoU of the pseudo-labels that were learned from with the best detections of their points."""
    if run.config.supervision != "pseudo-labels":
        return None
    if not run.pseudo_labels.is_file():
        return None
    labels = read_pseudo_labels(run.pseudo_labels)
    own = labels.segments
    video = renumber(own.videos, {name: number for number, name in enumerate(found.videos)})[own.video]
    label = renumber(own.labels, {name: number for number, name in enumerate(found.labels)})[own.label]
    known = (video >= 0) & (label >= 0)
    own = own.take(known)
    hits = PointHits(found, Points(found.videos, found.labels, video[known], label[known], labels.point_sec[known]))
    hit = hits.hit(min_score)
    best = hits.best[hit]
    values = tiou(found.start_sec[best], found.end_sec[best], own.start_sec[hit], own.end_sec[hit])
    return float(values.sum() / max(len(own), 1))


def _agreement(hits: PointHits, proposals: Segments, min_score: float) -> tuple[float, float | None]:
    """`Quality.agreement` and `Quality.boundary_sec`."""
    found, size = hits.detections, len(hits.points)
    hit = hits.hit(min_score)
    if not hit.any():
        return 0.0, None
    point, proposal = pairs(proposals, hits.points)
    point, proposal = point[hit[point]], proposal[hit[point]]
    start, end = proposals.start_sec[proposal], proposals.end_sec[proposal]
    weight = proposals.score[proposal].clip(LEAST_WEIGHT)
    total = np.bincount(point, weight, size)

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(point, weight * values, size) / np.where(total > 0, total, 1.0)

    best = hits.best[point]
    overlap = mean(tiou(found.start_sec[best], found.end_sec[best], start, end))
    deviations = [np.sqrt(mean((times - mean(times)[point]) ** 2))[hit] for times in (start, end)]
    return float(overlap.sum() / size), float(np.median(np.concatenate(deviations)))


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.0f} %"


def read_quality(run: Run) -> Quality | None:
    """What training found out about a run; None where it was not asked, as for runs of older versions.

    Raises:
        InputError: the file can't be used.
    """
    path = run.folder / "potloc" / "quality.json"
    if not path.exists():
        return None
    value = read_json(path)
    try:
        return Quality.model_validate(value)
    except ValidationError:
        raise InputError(f"{path}: expected what training writes, got {quote(value)}: train again") from None


def listed_from(run: Run, min_score: float | None = None, form: str | None = None) -> float | None:
    """The score from which on detections are shown and written; None where all are.

    What people read, tables and files, begins at `Quality.min_score`. JSON holds all, as evaluation needs them.

    Args:
        run: whose detections they are.
        min_score: what holds instead wherever it is given.
        form: of a file, "json" or any other; None for tables.
    """
    if min_score is not None or form == "json":
        return min_score
    known = read_quality(run)
    return None if known is None else known.min_score
