"""Pseudo-labels: a segment for each annotated point, from the proposals of the base model (Algorithm 1)."""

from __future__ import annotations

import csv
import io
import reprlib
from array import array
from dataclasses import dataclass
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any, Literal, get_args

import numba
import numpy as np
from numpy.typing import NDArray

from potloc_fast.errors import InputError
from potloc_fast.evaluation.segments import Segments, renumber
from potloc_fast.files import read_json, read_text

Variant = Literal["paper", "released"]


@dataclass(frozen=True, eq=False)
class Points:
    """Annotated points of many videos, a column each.

    Attributes:
        videos: names of the videos, in file order.
        labels: names of the classes, in the order in which they first appear.
        video: int64[N], index into `videos`.
        label: int64[N], index into `labels`.
        time_sec: float64[N], in seconds.
    """

    videos: tuple[str, ...]
    labels: tuple[str, ...]
    video: NDArray[np.int64]
    label: NDArray[np.int64]
    time_sec: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.video)


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """The segment that stands for each labelled point.

    Attributes:
        segments: N segments with the label of their point and the score of the proposal that they come from, in the
            order of the points; `videos` and `labels` are those of the points.
        point_sec: float64[N], the points, in seconds.
    """

    segments: Segments
    point_sec: NDArray[np.float64]

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
            if not isinstance(time, int | float) or not isfinite(time):
                raise InputError(f"{path}: results[{video!r}][{number}]: expected a point in seconds, got {time!r}")
            times.append(time)
    return PseudoLabels(segments, np.array(times, dtype=np.float64))


def read_points(path: str | Path, fps: str | Path) -> Points:
    """Read point labels in native frames, as LACP, HR-Pro and POTLoc publish them.

    Args:
        path: CSV with a header and the columns `class`, `video_id` and `point`; others are ignored.
        fps: JSON `{video: frames per second}`.

    Returns:
        The points at `frame / fps` seconds, in file order.

    Raises:
        InputError: a file can't be read, a column or a video's rate is missing, or a number is not one.
    """
    rates = read_json(fps)
    if not isinstance(rates, dict):
        raise InputError(
            f"{fps}: expected an object with the frames per second of each video, got {reprlib.repr(rates)}"
        )
    rows = csv.DictReader(io.StringIO(read_text(path)))
    columns = ("class", "video_id", "point")
    for column in columns:
        if column not in (rows.fieldnames or ()):
            raise InputError(f"{path}: expected the columns {', '.join(columns)}, found no {column!r}")
    videos: dict[str, int] = {}
    labels: dict[str, int] = {}
    video, label, time_sec = array("q"), array("q"), array("d")
    for row in rows:
        name, label_name, frame = ((row[column] or "").strip() for column in ("video_id", "class", "point"))
        if not (name or label_name or frame):
            continue
        where = f"{path}: line {rows.line_num}"
        if not name or not label_name:
            raise InputError(f"{where}: expected a class and a video_id, got {label_name!r} and {name!r}")
        if name not in rates:
            raise InputError(f"{where}: expected the frames per second of video {name!r} in {fps}, found none")
        try:
            time = float(frame) / float(rates[name])
        except (TypeError, ValueError, ZeroDivisionError):
            time = nan
        if not 0 <= time < inf:
            raise InputError(
                f"{where}: expected a frame number and a rate above 0, got point {frame!r} at {rates[name]!r} fps"
            )
        video.append(videos.setdefault(name, len(videos)))
        label.append(labels.setdefault(label_name, len(labels)))
        time_sec.append(time)
    return Points(
        videos=tuple(videos),
        labels=tuple(labels),
        video=np.array(video, dtype=np.int64),
        label=np.array(label, dtype=np.int64),
        time_sec=np.array(time_sec, dtype=np.float64),
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

    Args:
        proposals: proposals of the base model on the training videos; those without any point don't matter.
        points: the annotated points.
        variant: "paper", or "released" for what the authors' code does.

    Returns:
        At most one pseudo-label for each point, in the order of the points.

    Raises:
        InputError: proposals and points share no video or no class.
    """
    if variant not in get_args(Variant):
        raise InputError(f"variant: expected one of {', '.join(get_args(Variant))}, got {variant!r}")
    for what, ours, theirs in (
        ("videos", points.videos, proposals.videos),
        ("labels", points.labels, proposals.labels),
    ):
        if ours and theirs and not {*ours} & {*theirs}:
            raise InputError(f"proposals: expected {what} of the points such as {ours[0]!r}, got {theirs[0]!r}")

    # The points by group, that is video and class, then time; and the proposals of these groups.
    by_time = np.lexsort((points.time_sec, points.label, points.video))
    time, label = points.time_sec[by_time], points.label[by_time]
    group = points.video[by_time] * len(points.labels) + label
    proposal_video = renumber(proposals.videos, {name: i for i, name in enumerate(points.videos)})[proposals.video]
    proposal_label = renumber(proposals.labels, {name: i for i, name in enumerate(points.labels)})[proposals.label]
    known = np.flatnonzero((proposal_video >= 0) & (proposal_label >= 0))
    proposal_label = proposal_label[known]
    proposal_group = proposal_video[known] * len(points.labels) + proposal_label
    start, end, score = proposals.start_sec[known], proposals.end_sec[known], proposals.score[known]

    # A proposal holds the points [first, last): found by one binary search over (group, rank of the time).
    times = np.unique(time)
    key = group * (len(times) + 1) + np.searchsorted(times, time)
    first = np.searchsorted(key, proposal_group * (len(times) + 1) + np.searchsorted(times, start, side="left"))
    last = np.searchsorted(key, proposal_group * (len(times) + 1) + np.searchsorted(times, end, side="right"))
    count = last - first

    # Lines 4 to 8: S* and the mean length d of its members. What is split in k parts has k members.
    members = np.where(count == 1, 1, 0) if variant == "paper" else count
    total = np.bincount(proposal_label, weights=(end - start) * (members > 0), minlength=len(points.labels))
    number = np.bincount(proposal_label, weights=members, minlength=len(points.labels))
    half = np.divide(total, 2 * number, out=np.full(len(number), np.nan), where=number > 0)[label]

    # Lines 9 to 19: members of S* come before all others, then the best score, then the first.
    best = _claim(first, last, np.lexsort((-score, members == 0)), len(time))
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
    return PseudoLabels(segments, points.time_sec[origin])


@numba.njit(cache=True, nogil=True)
def _claim(first, last, order, size):  # type: ignore[no-untyped-def]
    """Let proposals, in this order, each take all points `[first, last)` that are still free: int64[size], or -1."""
    owner = np.full(size, -1)
    following = np.arange(size + 1)  # leads to the next free point; paths are halved when walked
    for j in order:
        i = first[j]
        while i < last[j]:
            if following[i] == i:
                owner[i] = j
                following[i] = i + 1
            else:
                following[i] = following[following[i]]
            i = following[i]
    return owner
