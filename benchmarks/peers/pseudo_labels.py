"""Algorithm 1 as its authors released it, and as the paper has it, video by video and point by point in Python.

Written from the description of both; equal scores are decided by the order of the proposals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple


class Proposal(NamedTuple):
    """A proposal, or a part of one."""

    label: str
    start: float
    end: float
    score: float


class Point(NamedTuple):
    """An annotated point."""

    label: str
    time: float


def choose(
    proposals: Mapping[str, Sequence[Proposal]], points: Mapping[str, Sequence[Point]], released: bool
) -> dict[tuple[str, int], Proposal]:
    """Choose a segment for each point, named by its video and its place there; a point may go without."""
    reliable: dict[tuple[str, int], list[Proposal]] = {}
    lengths: dict[str, list[float]] = {}
    for video, marks in points.items():
        for proposal in proposals.get(video, ()):
            inside = [i for i, point in enumerate(marks) if _holds(proposal, point)]
            if len(inside) > 1 and not released:
                continue
            inside.sort(key=lambda i: marks[i].time)
            middles = [(marks[a].time + marks[b].time) / 2 for a, b in pairwise(inside)]
            bounds = [proposal.start, *middles, proposal.end]
            for i, (start, end) in zip(inside, pairwise(bounds), strict=False):
                reliable.setdefault((video, i), []).append(Proposal(proposal.label, start, end, proposal.score))
                lengths.setdefault(proposal.label, []).append(end - start)
    half = {label: sum(values) / len(values) / 2 for label, values in lengths.items()}

    chosen = {}
    for video, marks in points.items():
        for i, point in enumerate(marks):
            if (video, i) in reliable:
                chosen[video, i] = max(reliable[video, i], key=lambda proposal: proposal.score)
                continue
            d = half.get(point.label)
            around = [proposal for proposal in proposals.get(video, ()) if _holds(proposal, point)]
            if around:
                best = max(around, key=lambda proposal: proposal.score)
                if d is not None:
                    best = best._replace(start=max(best.start, point.time - d), end=min(best.end, point.time + d))
                chosen[video, i] = best
            elif released and d is not None:
                chosen[video, i] = Proposal(point.label, max(0.0, point.time - d), point.time + d, 0.0)
    return chosen


def _holds(proposal: Proposal, point: Point) -> bool:
    return proposal.label == point.label and proposal.start <= point.time <= proposal.end
