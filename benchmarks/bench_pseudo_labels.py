"""Algorithm 1, from proposals and points in memory to pseudo-labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness import Case, Scaling, Unavailable, Work
from benchmarks.peers.pseudo_labels import Point, Proposal, choose
from potloc_fast.evaluation import Segments, read_detections
from potloc_fast.pseudo_labels import Points, PseudoLabels, Variant, generate, read_points

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "thumos14"


def compared(proposals: Segments, points: Points, variant: Variant, with_peer: bool = True) -> Work:
    """One input for both sides; the peer has it by video."""
    by_video: dict[str, list[Proposal]] = {}
    marks: dict[str, list[Point]] = {}
    places = []
    if with_peer:
        columns = (proposals.video, proposals.label, proposals.start_sec, proposals.end_sec, proposals.score)
        for video, label, *numbers in zip(*(column.tolist() for column in columns), strict=True):
            by_video.setdefault(proposals.videos[video], []).append(Proposal(proposals.labels[label], *numbers))
        for video, label, time in zip(
            *(c.tolist() for c in (points.video, points.label, points.time_sec)), strict=True
        ):
            of_video = marks.setdefault(points.videos[video], [])
            places.append((points.videos[video], len(of_video)))
            of_video.append(Point(points.labels[label], time))

    def check(ours: PseudoLabels, peer: dict[tuple[str, int], Proposal]) -> None:
        chosen = [peer[place] for place in places if place in peer]
        segments = ours.segments
        assert [segments.labels[label] for label in segments.label] == [label for label, *_ in chosen]
        got = np.stack((segments.start_sec, segments.end_sec, segments.score), axis=1)
        np.testing.assert_allclose(got, [numbers for _, *numbers in chosen], rtol=0, atol=1e-9)

    peers = {"loops in Python": partial(choose, by_video, marks, variant == "released")} if with_peer else {}
    return Work(partial(generate, proposals, points, variant), peers, check)


def thumos14(variant: Variant) -> Work:
    """The proposals and points of THUMOS'14."""
    if not DATA.is_dir():
        raise Unavailable("../shared/data is not there")
    points = read_points(DATA / "point_labels.csv", DATA / "fps_dict.json")
    return compared(read_detections(DATA / "base_proposals.json"), points, variant)


def growing(size: int) -> Work:
    """As many proposals in videos of 100 proposals and 15 points, one video after the other."""
    rng = np.random.default_rng(0)
    videos = size // 100
    label = rng.integers(0, 20, videos)
    start = rng.uniform(0, 480, size)
    proposals = Segments(
        videos=tuple(f"v{i}" for i in range(videos)),
        labels=tuple(f"c{i}" for i in range(20)),
        video=np.repeat(np.arange(videos), 100),
        label=np.repeat(label, 100),
        start_sec=start,
        end_sec=start + rng.exponential(20, size),
        score=rng.random(size),
    )
    points = Points(
        videos=proposals.videos,
        labels=proposals.labels,
        video=np.repeat(np.arange(videos), 15),
        label=np.repeat(label, 15),
        time_sec=rng.uniform(0, 480, videos * 15),
    )
    return compared(proposals, points, "released", with_peer=size <= 10_000)


CASES: list[Case | Scaling] = [
    Case(
        "algorithm1",
        "Algorithm 1, as released",
        "19,384 proposals, 3,003 points",
        "float64",
        partial(thumos14, "released"),
        limit_s=0.003,
    ),
    Case(
        "algorithm1-paper",
        "Algorithm 1, as in the paper",
        "19,384 proposals, 3,003 points",
        "float64",
        partial(thumos14, "paper"),
        limit_s=0.003,
    ),
    Scaling(
        "algorithm1-10m",
        "Algorithm 1, as released",
        "proposals",
        "float64",
        [10**n for n in range(4, 8)],
        growing,
        # Each proposal is looked at twice, whatever their number; the points are sorted, which takes n log n.
        spread=0.5,
        steady=10**5,
        slow=True,
    ),
]
