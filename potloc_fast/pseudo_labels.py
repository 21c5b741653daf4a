"""Pseudo-labels: a segment for each annotated point, from the proposals of the base model (Algorithm 1)."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from potloc_fast.compiled import compiled
from potloc_fast.data.annotations import read_marks
from potloc_fast.data.recording import SAME, Recording
from potloc_fast.data.tables import read_table
from potloc_fast.errors import InputError, quote, shorten
from potloc_fast.evaluation.segments import Segments, renumber
from potloc_fast.files import read_json
from potloc_fast.fused_labels import fuse
from potloc_fast.held_points import held_points
from potloc_fast.names import find_name, find_names
from potloc_fast.numbers import to_number

Variant = Literal["paper", "released", "fused"]


@dataclass(frozen=True, eq=False)
class Points:
    """Annotated points of many videos, a column each.

    Attributes:
        videos: names of the videos, in file order.
        labels: names of the classes, in the order in which they first appear.
        video: int64[N], index into `videos`.
        label: int64[N], index into `labels`.
        time_sec: float64[N], in seconds.
        notes: a sentence for each thing that was left out.
    """

    videos: tuple[str, ...]
    labels: tuple[str, ...]
    video: NDArray[np.int64]
    label: NDArray[np.int64]
    time_sec: NDArray[np.float64]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.video)


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """The segment that stands for each labelled point.

    Attributes:
        segments: N segments with the label of their point and the score of the proposal that they come from, in the
            order of the points; `videos` and `labels` are those of the points.
        point_sec: float64[N], the points, in seconds.
        notes: a sentence for each thing that was left out.
    """

    segments: Segments
    point_sec: NDArray[np.float64]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.segments)

    def to_results(self) -> dict[str, Any]:
        """Give the form of `Segments.to_results` with the time of the "point" added to each entry."""
        value = self.segments.to_results()
        # `to_results` keeps the order of segments within a video.
        times = iter(self.point_sec[np.argsort(self.segments.video, kind="stable")].tolist())
        for entries in value["results"].values():
            entries[:] = [{"label": entry["label"], "point": next(times), **entry} for entry in entries]
        return value


def read_pseudo_labels(path: str | Path) -> PseudoLabels:
    """Read pseudo-labels from a JSON file in the form of `PseudoLabels.to_results`.

    Raises:
        InputError: the file can't be read or has another form.
    """
    value = read_json(path)
    segments = Segments.from_results(value, path)
    times = []
    for video, entries in value["results"].items():
        for number, entry in enumerate(entries):
            time = entry.get("point")
            if type(time) not in (int, float) or not abs(time) <= sys.float_info.max:
                where = f"{path}: results[{quote(video)}][{number}]"
                raise InputError(f"{where}: expected a point in seconds, got {quote(time)}")
            times.append(time)
    return PseudoLabels(segments, np.array(times, dtype=np.float64))


def read_points(path: str | Path, fps: str | Path | None = None) -> Points:
    """Read point labels in native frames, as LACP, HR-Pro and POTLoc publish them, or from an annotation tool's files.

    Args:
        path: CSV with a header and the columns `class`, `video_id` and `point`; others are ignored. Or what
            `data.annotations.read_marks` takes.
        fps: JSON `{video: frames per second}`, which the table needs.

    Returns:
        The points at `frame / fps` seconds, in file order.

    Raises:
        InputError: a file can't be read, a column or a video's rate is missing, or a number is not one.
    """
    marks = read_marks(Path(path))
    if marks is not None:
        named, notes = marks
        numbers = {name: i for i, name in enumerate(dict.fromkeys(name for name, _ in named))}
        kinds = {name: i for i, name in enumerate(dict.fromkeys(point.label for _, point in named))}
        found = Points(
            videos=tuple(numbers),
            labels=tuple(kinds),
            video=np.array([numbers[name] for name, _ in named], dtype=np.int64),
            label=np.array([kinds[point.label] for _, point in named], dtype=np.int64),
            time_sec=np.array([point.time_sec for _, point in named], dtype=np.float64),
            notes=notes,
        )
        return merge_doubled(found, path)
    if fps is None:
        raise InputError(f"{path}: expected --fps, the frame rates of the videos whose frames it counts, got none")
    rates = read_json(fps)
    if not isinstance(rates, dict):
        raise InputError(f"{fps}: expected an object with the frames per second of each video, got {quote(rates)}")
    videos: dict[str, int] = {}
    labels: dict[str, int] = {}
    video, label, time_sec = array("q"), array("q"), array("d")
    for row in read_table(Path(path), ("class", "video_id", "point")):
        name, frame = row.text("video_id"), row.number("point")
        rate = rates.get(find_name(name, rates) or "", "no")
        try:
            time = frame / to_number(rate)
        except (TypeError, ValueError, ZeroDivisionError, OverflowError):
            time = nan
        if not 0 <= time < inf:
            raise InputError(
                f"{path}: line {row.line}: expected a frame of 0 or more and a rate above 0, got {frame:g} at "
                f"{shorten(str(rate))} fps of {quote(name)}, see {fps}"
            )
        video.append(videos.setdefault(name, len(videos)))
        label.append(labels.setdefault(row.text("class"), len(labels)))
        time_sec.append(time)
    return merge_doubled(
        Points(
            videos=tuple(videos),
            labels=tuple(labels),
            video=np.array(video, dtype=np.int64),
            label=np.array(label, dtype=np.int64),
            time_sec=np.array(time_sec, dtype=np.float64),
        ),
        path,
    )


def collect_points(recordings: Sequence[Recording], classes: Sequence[str]) -> Points:
    """The point labels of recordings, in columns."""
    rows = [
        (video, classes.index(point.label), point.time_sec)
        for video, recording in enumerate(recordings)
        for point in recording.points
    ]
    video, label, time = zip(*rows, strict=True)
    return Points(
        videos=tuple(recording.id for recording in recordings),
        labels=tuple(classes),
        video=np.array(video),
        label=np.array(label),
        time_sec=np.array(time),
    )


def merge_doubled(points: Points, source: str | Path = "points") -> Points:
    """Take points that stand twice as one, with a note: each would halve what proposals say of the other."""
    order = np.lexsort((points.time_sec, points.label, points.video))
    video, label, time = points.video[order], points.label[order], points.time_sec[order]
    near = np.diff(time) <= SAME * np.maximum(1.0, np.abs(time[1:]))
    doubled = order[1:][near & (np.diff(video) == 0) & (np.diff(label) == 0)]
    if not len(doubled):
        return points
    first = points.videos[points.video[doubled].min()]
    note = f"{source}: points merged, as they stand twice: {len(doubled)}, the first in {first}"
    kept = np.setdiff1d(np.arange(len(points)), doubled)
    return Points(
        points.videos,
        points.labels,
        points.video[kept],
        points.label[kept],
        points.time_sec[kept],
        (*points.notes, note),
    )


def generate(proposals: Segments, points: Points, variant: Variant = "paper") -> PseudoLabels:
    """Choose a segment for each point among the proposals of its video and class (Algorithm 1 of the paper).

    A proposal holds a point where `start <= point <= end`. The points are independent of each other; equal scores are
    decided by the order of the proposals; d is the mean length over the proposals (or parts) of a class in S*.

    - "paper": S* has the proposals that hold exactly one point. A point takes the best proposal of S* that holds it,
      else the best proposal of all, cut to +-d/2 around the point (not at all where the class has nothing in S*).
      A point that lies in no proposal gets no label.
    - "released": a proposal that holds several points is first split at the midpoints between them, and its parts,
      each with the score of the whole, are in S* as well. A point that lies in no proposal gets
      `[max(0, point - d/2), point + d/2]` with score 0, or no label where the class has no d.
    - "fused": past the paper, a segment estimated from all proposals around the point, from the usual duration of the
      class and from where in an instance its points lie (`fused_labels.fuse`). A point has no label where its class has
      no such duration.

    Args:
        proposals: proposals of the base model on the training videos; those without any point don't matter.
        points: the annotated points.
        variant: "paper", "released" for what the authors' code does, or "fused" for better boundaries.

    Returns:
        At most one pseudo-label for each point, in the order of the points.

    Raises:
        InputError: there is no such variant, or proposals and points share no video or no class.
    """
    if variant not in get_args(Variant):
        raise InputError(f"variant: expected one of {', '.join(get_args(Variant))}, got {quote(variant)}")
    points = merge_doubled(points)
    proposal_names = find_names(proposals.videos, points.videos, "proposals")
    for what, ours, theirs in (
        ("videos", points.videos, tuple(proposal_names.values())),
        ("labels", points.labels, proposals.labels),
    ):
        if ours and theirs and not {*ours} & {*theirs}:
            raise InputError(
                f"proposals: expected {what} of the points such as {quote(ours[0])}, got {quote(theirs[0])}"
            )

    # A group is a video and a class. The points by group, then time.
    group = points.video * len(points.labels) + points.label
    by_time = np.lexsort((points.time_sec, group))
    time, label = points.time_sec[by_time], points.label[by_time]
    by_video = {name: i for i, name in enumerate(points.videos)}
    proposal_video = renumber(tuple(proposal_names.values()), by_video)[proposals.video]
    proposal_label = renumber(proposals.labels, {name: i for i, name in enumerate(points.labels)})[proposals.label]
    known = (proposal_video >= 0) & (proposal_label >= 0)
    proposal_group = np.where(known, proposal_video * len(points.labels) + proposal_label, -1)
    start, end, score = proposals.start_sec, proposals.end_sec, proposals.score
    if variant == "fused":
        columns = fuse(proposal_group, start, end, score, group[by_time], time, label, len(points.labels))
        point = np.flatnonzero(np.isfinite(columns[0]))
        new_start, new_end, new_score = (column[point] for column in columns)
    else:
        first, last = held_points(proposal_group, start, end, group[by_time], time)
        point, new_start, new_end, new_score = _choose(
            first, last, start, end, score, proposal_label, time, label, len(points.labels), variant
        )

    origin = by_time[point]
    back = np.argsort(origin)
    origin = origin[back]
    segments = Segments(
        videos=points.videos,
        labels=points.labels,
        video=points.video[origin],
        label=points.label[origin],
        start_sec=new_start[back],
        end_sec=new_end[back],
        score=new_score[back],
    )
    return PseudoLabels(segments, points.time_sec[origin], points.notes)


def _choose(
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    score: NDArray[np.float64],
    proposal_label: NDArray[np.int64],
    time: NDArray[np.float64],
    label: NDArray[np.int64],
    classes: int,
    variant: Variant,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Algorithm 1 on sorted points, [first, last) of which a proposal holds: labelled points, starts, ends, scores."""
    count = last - first

    # Lines 4 to 8: S* and the mean length d of its members. What is split in k parts has k members.
    member = count == 1 if variant == "paper" else count > 0
    inside = proposal_label[member]
    total = np.bincount(inside, weights=(end - start)[member], minlength=classes)
    number = np.bincount(inside, weights=count[member], minlength=classes)
    half = np.divide(total, 2 * number, out=np.full(len(number), np.nan), where=number > 0)[label]

    # Lines 9 to 19: members of S* come before all others, then the best score, then the first.
    best = _best_of_each(first, last, member, score, len(time))
    point = np.flatnonzero(best >= 0)
    chosen = best[point]
    new_score = score[chosen]
    if variant == "paper":
        several = count[chosen] > 1
        # fmax and fmin pass over a half that is NaN.
        new_start = np.where(several, np.fmax(start[chosen], time[point] - half[point]), start[chosen])
        new_end = np.where(several, np.fmin(end[chosen], time[point] + half[point]), end[chosen])
    else:
        middle = np.concatenate(([-inf], (time[:-1] + time[1:]) / 2, [inf]))
        new_start = np.where(point > first[chosen], middle[point], start[chosen])
        new_end = np.where(point + 1 < last[chosen], middle[point + 1], end[chosen])
        lonely = np.flatnonzero((best < 0) & np.isfinite(half))
        point = np.concatenate((point, lonely))
        new_start = np.concatenate((new_start, np.maximum(0.0, time[lonely] - half[lonely])))
        new_end = np.concatenate((new_end, time[lonely] + half[lonely]))
        new_score = np.concatenate((new_score, np.zeros(len(lonely))))
    return point, new_start, new_end, new_score


@compiled
def _best_of_each(first, last, member, score, size):  # type: ignore[no-untyped-def]
    """Find the best of the proposals that hold each of `size` points: int64[size], -1 for none.

    What holds n points is entered for two runs of 2^k points that cover them, where 2^k <= n < 2^(k + 1), however many
    they are. In the end the best of each run is entered for both of its halves, down to single points.
    """
    longest = 0
    for j in range(len(first)):
        longest = max(longest, last[j] - first[j])
    levels = 1
    while 1 << levels <= longest:
        levels += 1
    best = np.full((levels, size), -1)
    for j in range(len(first)):
        if last[j] > first[j]:
            level = 0
            while 1 << (level + 1) <= last[j] - first[j]:
                level += 1
            for i in (first[j], last[j] - (1 << level)):
                if _is_better(j, best[level, i], member, score):
                    best[level, i] = j
    for level in range(levels - 1, 0, -1):
        for run in range(size - (1 << level) + 1):
            for i in (run, run + (1 << (level - 1))):
                if _is_better(best[level, run], best[level - 1, i], member, score):
                    best[level - 1, i] = best[level, run]
    return best[0]


@compiled
def _is_better(j, other, member, score):  # type: ignore[no-untyped-def]
    """Tell whether proposal j comes before the other; -1 stands for none."""
    if j < 0 or other < 0:
        return other < j
    if member[j] != member[other]:
        return member[j]
    return score[j] > score[other] or (score[j] == score[other] and j < other)
