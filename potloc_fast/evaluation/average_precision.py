"""Mean average precision of detections, under the ActivityNet and the THUMOS protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray

from potloc_fast.compiled import compiled
from potloc_fast.errors import InputError, quote
from potloc_fast.evaluation.align import align
from potloc_fast.evaluation.segments import Segments, read_ambiguous
from potloc_fast.names import find_names
from potloc_fast.notebook import html_table

if TYPE_CHECKING:
    from rich.table import Table

Protocol = Literal["activitynet", "thumos"]


class ClassResult(TypedDict):
    """Average precision of one class, in percent, at each threshold, its mean, and the number of instances."""

    ap: list[float]
    mean: float
    instances: int


@dataclass(frozen=True)
class Evaluation:
    """Mean average precision of a set of detections.

    Attributes:
        tiou: the thresholds on temporal intersection over union.
        map: mAP at each threshold, in percent.
        mean: mean of `map`.
        per_class: the result of each class of the ground truth, in its order.
        warnings: one sentence for each oddity of the detections that may lower the figures.
    """

    tiou: tuple[float, ...]
    map: tuple[float, ...]
    mean: float
    per_class: dict[str, ClassResult]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Give `{"tiou": [...], "map": [...], "mean": x, "per_class": {...}}`, values in percent."""
        return {"tiou": list(self.tiou), "map": list(self.map), "mean": self.mean, "per_class": self.per_class}

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        rows = [
            (label, own["instances"], *(f"{value:.1f}" for value in (*own["ap"], own["mean"])))
            for label, own in self.per_class.items()
        ]
        total = sum(own["instances"] for own in self.per_class.values())
        rows.append(("mAP", total, *(f"{value:.1f}" for value in (*self.map, self.mean))))
        heads = ("class", "n", *(f"{threshold:g}" for threshold in self.tiou), "mean")
        return html_table("Average precision (%) at tIoU", heads, rows)

    def table(self) -> Table:
        """Give a table for the terminal: a row a class (n instances), a column a threshold, mAP below."""
        from rich.box import SIMPLE
        from rich.markup import escape
        from rich.table import Table

        table = Table(title="Average precision (%)", show_footer=True, box=SIMPLE, padding=0)
        instances = sum(result["instances"] for result in self.per_class.values())
        table.add_column("class", footer="mAP", overflow="fold")
        table.add_column("n", footer=str(instances), justify="right")
        for threshold, value in zip(self.tiou, self.map, strict=True):
            table.add_column(f"{threshold:g}", footer=f"{value:.1f}", justify="right")
        table.add_column("mean", footer=f"{self.mean:.1f}", justify="right")
        for label, result in self.per_class.items():
            values = (f"{value:.1f}" for value in (*result["ap"], result["mean"]))
            table.add_row(escape(label), str(result["instances"]), *values)
        return table


def evaluate(
    detections: str | Path | Mapping[str, Any] | Segments,
    ground_truth: str | Path | Mapping[str, Any] | Segments,
    *,
    tiou: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    protocol: Protocol = "activitynet",
    subset: str | None = None,
    ambiguous: str | Path | Segments | None = None,
) -> Evaluation:
    """Measure the mean average precision of detections.

    Every class of the ground truth counts, with 0 where nothing was detected. Every detection counts as well; on a
    video that the ground truth lacks it is a false positive. Only detections of unknown classes are ignored.

    - "activitynet": in order of falling score, a detection takes the free instance of its class and video with the
      highest tIoU >= t. AP is the area under the interpolated (monotone) precision-recall curve. Equal scores: file
      order. Equal tIoU: as the official evaluator has it where NumPy sorts with AVX-512, on any processor.
    - "thumos": as the updated kit of the THUMOS'14 challenge does it. One instance after another takes its free
      detection with the highest tIoU > t, of equal ones that with the higher score. AP is the mean over instances of
      the precision where each was found, not interpolated. Equal scores: videos by name, then file order.

    Args:
        detections: a file (see `read_detections`), the content of a JSON file, or segments.
        ground_truth: a file (see `read_ground_truth`), the content of a JSON file, or segments.
        tiou: thresholds t in (0, 1].
        protocol: "activitynet" or "thumos".
        subset: the subset of the ground truth to use, whatever its case; all of it if None.
        ambiguous: a file (see `read_ambiguous`) or segments, whose labels don't matter. Under "activitynet" all
            detections that overlap such a region are dropped beforehand (HR-Pro does so after rounding to whole
            seconds; here times are exact). Under "thumos" they are dropped only where they would be false positives.

    Returns:
        The mAP in percent.

    Raises:
        InputError: a file is malformed, the ground truth is empty, or it shares no class with the detections.

    Example:
        >>> truth = {"database": {"v": {"subset": "test", "annotations": [{"label": "a", "segment": [0, 10]}]}}}
        >>> found = {"results": {"v": [{"label": "a", "score": 0.9, "segment": [0, 6]}]}}
        >>> evaluate(found, truth, tiou=(0.5, 0.7)).map
        (100.0, 0.0)
    """
    if protocol not in get_args(Protocol):
        raise InputError(f"protocol: expected one of {', '.join(get_args(Protocol))}, got {quote(protocol)}")
    thresholds = np.array(tiou, dtype=np.float64)
    if thresholds.ndim != 1 or not thresholds.size or not np.all((thresholds > 0) & (thresholds <= 1)):
        raise InputError(f"tiou: expected one or more thresholds in (0, 1], got {quote(tiou)}")
    found, truth, warnings = align(detections, ground_truth, subset)
    regions = read_ambiguous(ambiguous) if isinstance(ambiguous, str | Path) else ambiguous
    overlapping = np.zeros(len(found), dtype=np.bool_) if regions is None else _overlap(found, regions)

    if protocol == "activitynet":
        order = rank(found)
        order = order[~overlapping[order]]
        ranked = found.take(order)
        hit = match(ranked, truth, thresholds) >= 0
    else:
        order = np.lexsort((found.video, -found.score, found.label))
        ranked = found.take(order)
        hit = _thumos_hits(_keyed(ranked), _keyed(truth), thresholds)

    instances = np.bincount(truth.label)
    bounds, weights = class_bounds(ranked), np.ones(len(instances))
    ap = 100 * average_precision(hit, overlapping[order], *bounds, instances, weights, protocol == "activitynet")
    per_class: dict[str, ClassResult] = {
        name: {"ap": row, "mean": mean, "instances": size}
        for name, row, mean, size in zip(
            truth.labels, ap.tolist(), ap.mean(axis=1).tolist(), instances.tolist(), strict=True
        )
    }
    return Evaluation(
        tiou=tuple(thresholds.tolist()),
        map=tuple(ap.mean(axis=0).tolist()),
        mean=float(ap.mean()),
        per_class=per_class,
        warnings=warnings,
    )


def rank(found: Segments) -> NDArray[np.int64]:
    """Give the order of evaluation, by class, then by falling score, of equal ones as they are: int64[N]."""
    return np.lexsort((-found.score, found.label))


def class_bounds(ranked: Segments) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the first row of each class of segments that are sorted by class, and the one after its last."""
    first, last = np.searchsorted(ranked.label, [np.arange(len(ranked.labels)), np.arange(1, len(ranked.labels) + 1)])
    return first, last


def match(ranked: Segments, truth: Segments, thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Tell which instance each detection takes under the ActivityNet protocol.

    Args:
        ranked: N aligned detections in the order of `rank`.
        truth: the instances.
        thresholds: float64[K], on tIoU; each is a matching of its own.

    Returns:
        int64[N, K], a row of `truth`, or -1 where the detection is a false positive.
    """
    instances = _keyed(truth)
    order = np.argsort(instances.key, kind="stable")
    # What exceeds the next smaller number is at least t.
    taken, _ = _match(_keyed(ranked), instances.take(order), np.nextafter(thresholds, 0.0), ties_by_network=True)
    return np.append(order, -1)[taken]  # the last one is where -1 points


class _Keyed(NamedTuple):
    """Segments in columns; those with equal key, one for each class and video, can match."""

    key: NDArray[np.int64]
    start: NDArray[np.float64]
    end: NDArray[np.float64]

    def take(self, order: NDArray[np.int64]) -> _Keyed:
        return _Keyed(self.key[order], self.start[order], self.end[order])


def _keyed(segments: Segments) -> _Keyed:
    return _Keyed(segments.label * len(segments.videos) + segments.video, segments.start_sec, segments.end_sec)


def _thumos_hits(ranked: _Keyed, instances: _Keyed, thresholds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which detections, of falling score within a class, are true positives: bool[N, K]."""
    order = np.argsort(ranked.key, kind="stable")
    _, free = _match(instances, ranked.take(order), thresholds, ties_by_network=False)
    hit = np.empty_like(free)
    hit[order] = ~free
    return hit


def _match(
    seekers: _Keyed, sought: _Keyed, above: NDArray[np.float64], ties_by_network: bool
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Let one seeker after another take the free one of its key in `sought` with the highest tIoU over a threshold.

    Args:
        seekers: the N segments that choose, in this order.
        sought: the M segments that are chosen, sorted by key.
        above: float64[K], the thresholds to exceed; each is a matching of its own.
        ties_by_network: of equal tIoU take the last by `_sorts_after`, else the first.

    Returns:
        int64[N, K], which of `sought` each took (-1: none), and bool[M, K], which of `sought` none took.
    """
    taken: NDArray[np.int64]
    free: NDArray[np.bool_]
    taken, free = _take_best(seekers, sought, np.searchsorted(sought.key, seekers.key), above, ties_by_network)
    return taken, free


@compiled
def _take_best(seekers, sought, first, above, ties_by_network):  # type: ignore[no-untyped-def]
    taken = np.full((len(seekers.key), len(above)), -1)
    free = np.ones((len(sought.key), len(above)), dtype=np.bool_)
    tiou = np.empty(len(sought.key))
    near = np.empty(len(sought.key), dtype=np.int64)
    for i in range(len(seekers.key)):
        start, end = seekers.start[i], seekers.end[i]
        size = close = 0
        while first[i] + size < len(sought.key) and sought.key[first[i] + size] == seekers.key[i]:
            s, e = sought.start[first[i] + size], sought.end[first[i] + size]
            intersection = min(end, e) - max(start, s)
            tiou[size] = 0.0
            if intersection > 0.0:
                tiou[size] = intersection / ((e - s) + (end - start) - intersection)
                near[close] = size
                close += 1
            size += 1
        for k in range(len(above)):
            best, best_tiou = -1, above[k]
            for j in near[:close]:
                if not free[first[i] + j, k] or tiou[j] < best_tiou:
                    continue
                if tiou[j] > best_tiou or (ties_by_network and best >= 0 and _sorts_after(tiou[:size], j, best)):
                    best, best_tiou = j, tiou[j]
            if best >= 0:
                taken[i, k] = first[i] + best
                free[first[i] + best, k] = False
    return taken, free


@compiled
def _sorts_after(values, i, j):  # type: ignore[no-untyped-def]
    """Tell whether element i comes after element j once a bitonic network has sorted `values`.

    The official evaluator sorts tIoUs by an unstable `argsort`, so that which of two equally overlapping instances is
    taken depends on NumPy's build and the processor. Its AVX-512 sort leaves up to 256 values as this network does,
    which here decides on every processor.
    """
    key, origin = values.copy(), np.arange(len(values))
    width = 2
    while width < 2 * len(key):
        # Merge sorted blocks of width / 2: compare each position with its mirror image, then at falling strides.
        mask, stride = width - 1, width // 2
        while mask > 0:
            for a in range(len(key)):
                b = a ^ mask
                if a < b < len(key) and key[b] < key[a]:
                    key[a], key[b] = key[b], key[a]
                    origin[a], origin[b] = origin[b], origin[a]
            stride //= 2
            mask = stride
        width *= 2
    for index in origin:
        if index == i:
            return False
        if index == j:
            break
    return True


@compiled
def average_precision(hit, ambiguous, first, last, instances, weights, interpolated):  # type: ignore[no-untyped-def]
    """Give the mean, over all instances, of the precision at the rank where each was found (0 where it was not).

    Args:
        hit: bool[N, K], which detections are true positives, by class and rank, at each threshold.
        ambiguous: bool[N], which count only where they are true positives.
        first: int64[C], the first detection of each class.
        last: int64[C], the one after its last.
        instances: int64[C], their number in each class, at least 1.
        weights: float64[C], what a true positive counts in the precision where a false one counts 1.
        interpolated: take the best precision at this rank or a later one.

    Returns:
        float64[C, K].
    """
    mean = np.empty((len(first), hit.shape[1]))
    for c in range(len(first)):
        for k in range(hit.shape[1]):
            precision = np.empty(instances[c])
            found = wrong = 0
            for i in range(first[c], last[c]):
                if hit[i, k]:
                    found += 1
                    precision[found - 1] = weights[c] * found / (weights[c] * found + wrong)
                else:
                    wrong += not ambiguous[i]
            total = best = 0.0
            for n in range(found - 1, -1, -1):
                best = max(best, precision[n]) if interpolated else precision[n]
                total += best
            mean[c, k] = total / instances[c]
    return mean


def _overlap(segments: Segments, regions: Segments) -> NDArray[np.bool_]:
    """Tell which segments share time with a region of their video, whatever its label."""
    videos = {video: i for i, video in enumerate(segments.videos)}
    known = find_names(regions.videos, videos, "ambiguous")
    order = np.argsort(segments.video, kind="stable")
    bounds = np.searchsorted(segments.video[order], np.arange(len(videos) + 1))
    overlapping = np.zeros(len(segments), dtype=np.bool_)
    for video, start, end in zip(regions.video, regions.start_sec, regions.end_sec, strict=True):
        index = videos.get(known[regions.videos[video]])
        if index is not None:
            rows = order[bounds[index] : bounds[index + 1]]
            overlapping[rows] |= np.minimum(segments.end_sec[rows], end) > np.maximum(segments.start_sec[rows], start)
    return overlapping
