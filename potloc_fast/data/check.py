"""What training would stumble over in a data set, what a user should look at again, and what is in it."""

from __future__ import annotations

import difflib
import itertools
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from potloc_fast.config.schema import Config
from potloc_fast.data.derive import derive
from potloc_fast.data.grid import Grid
from potloc_fast.data.listing import Entry, Listing, load_notes
from potloc_fast.data.points import draw_points, thin_points
from potloc_fast.data.recording import (
    Dataset,
    Finding,
    JoinedFeatures,
    Recording,
    feature_faults,
    label_faults,
    shared_faults,
    training_faults,
)
from potloc_fast.errors import InputError
from potloc_fast.files import listed

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

READERS = 8  # recordings in memory at once: enough to keep a disk busy
SHOWN = 5  # findings of a kind in the terminal
SHOWN_CLASSES = 24
LENGTH_TOLERANCE = 0.05  # of a duration, ...
SNIPPET_TOLERANCE = 3  # ... and never less than so many snippets
POINT_TOLERANCE_SEC = 0.1  # annotators' tools round to frames, ...
POINT_TOLERANCE = 0.1  # ... but instances may be as short as that: no more than this share of one
ALIKE = 0.75  # of two names, from which one may be the other misspelt ...
RARE = 0.1  # ... where it has no more than this share of the other's points
LARGE = 1e3  # beyond what networks give that features are taken from
RATES = (15, 24, 25, 30, 50, 60)  # of videos; what differs by less than a few percent (29.97) does no harm


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        name: of the data set.
        notes: how it was read, and what follows from it for the keys in `auto`.
        faults: why training would fail; none where it would not.
        warnings: what it would not notice, and a user may not have meant.
        statistics: counts, lengths in seconds and where points lie, made of what JSON knows.
    """

    name: str
    notes: tuple[str, ...]
    faults: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    statistics: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return asdict(self)

    def render(self) -> RenderableType:
        """All of it for the terminal, a few lines for each kind of finding."""
        from rich.console import Group
        from rich.text import Text

        verdict = "training would fail" if self.faults else "training can start"
        counts = f"{_count(len(self.faults), 'fault')}, {_count(len(self.warnings), 'warning')}"
        return Group(
            *(Text(note) for note in self.notes),
            _subset_table(self.statistics["subsets"]),
            _class_table(self.statistics),
            _histograms(self.statistics),
            *_findings("fault", self.faults, "red"),
            *_findings("warning", self.warnings, "yellow"),
            Text(f"{self.name}: {verdict}: {counts}", style="bold red" if self.faults else "bold green"),
        )


def check(found: Listing | Dataset, config: Config, windows: Sequence[str] = ()) -> Report:
    """Read a data set whole, in parallel, a few recordings in memory at a time, and say what is in it.

    Faults follow the rules that training itself goes by. Progress is shown on standard error.

    Args:
        found: the data set, as it is listed or already in memory.
        config: says which points are trained on, which subset is tested, and whether features are standardized.
        windows: what was chosen for raw recordings, and why.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    items = found.entries if isinstance(found, Listing) else found.recordings
    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    console = Console(stderr=True)
    with (
        ThreadPoolExecutor(READERS) as readers,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        read = list(progress.track(readers.map(_read, items), total=len(items)))

    whole = Dataset(found.name, found.classes, tuple(one.recording for one in read))
    drawn = whole
    if config.data.points != "file":
        drawn = draw_points(whole, config.data.points, seed=config.seed)
    trained = thin_points(drawn, config.data.kept_points, seed=config.seed)

    faults = [fault for one in read for fault in one.faults]
    faults += shared_faults(whole)
    for recording in whole.recordings:
        faults += label_faults(recording, found.classes, found.name)
    if items:
        faults += training_faults(trained, config.evaluate.subset)

    warnings = [*(found.taken_out if isinstance(found, Listing) else ()), *_surplus_files(items)]
    if whole.only_trains and config.evaluate.subset != "train":
        message = f"{found.name}: all recordings are there to train on, so that nothing will be detected in"
        warnings.append(Finding("no recordings to test in", message))
    warnings += _feature_warnings(read, config.data.standardize)
    warnings += [Finding("gaps", note) for note in load_notes(item for item in items if isinstance(item, Entry))]
    warnings += _length_warnings(items, read)
    if any(recording.points for recording in drawn.recordings if recording.subset == "train"):
        warnings += _point_warnings(drawn)
        warnings += _class_warnings(trained)
    chosen = () if faults else derive(config, trained.subset("train"))[1]
    return Report(found.name, (*found.notes, *windows, *chosen), tuple(faults), tuple(warnings), _statistics(trained))


class _Values(NamedTuple):
    """What is kept of an array of features."""

    largest: float  # magnitude
    constant: bool  # whether all snippets, of more than one, are the same
    fingerprint: int  # of its shape and the extremes of its channels


@dataclass(frozen=True, eq=False)
class _Read:
    """What is kept of a recording once it is read.

    Attributes:
        recording: with features that take no memory, of shape [0, 0] where they can't be read.
        faults: of the features.
        values: of each part of the features; none where there are faults.
    """

    recording: Recording
    faults: tuple[Finding, ...]
    values: tuple[_Values, ...] = ()


def _read(item: Entry | Recording) -> _Read:
    faults = []
    recording = item if isinstance(item, Recording) else None
    if isinstance(item, Entry):
        parts = []
        for source in item.sources:
            try:
                parts.append(source.load())
            except InputError as error:
                kind = "unreadable files" if os.path.exists(_file_of(source.path)) else "missing files"
                faults.append(Finding(kind, str(error)))
        if not faults:
            try:
                recording = item.join(parts)
            except InputError as error:
                faults.append(Finding("features that don't fit the annotations", str(error)))
    if recording is None:
        none = np.zeros((0, 0), np.float32)
        stand_in = Recording(
            item.id, none, item.grid or Grid(fps=1, window=1, stride=1), item.subset, item.instances, item.points
        )
        return _Read(stand_in, tuple(faults))
    faults += feature_faults(recording)
    arrays = [part for _, part in recording.parts]
    shapes = [np.broadcast_to(np.float32(0), part.shape) for part in arrays]
    stand_in = replace(recording, features=shapes[0] if len(shapes) == 1 else JoinedFeatures(*shapes))
    return _Read(stand_in, tuple(faults), () if faults else tuple(map(_values, arrays)))


def _values(part: NDArray[np.float32]) -> _Values:
    low, high = part.min(axis=0), part.max(axis=0)
    return _Values(
        largest=max(float(high.max()), -float(low.min())),
        constant=len(part) > 1 and np.array_equal(low, high),
        fingerprint=hash((part.shape, low.tobytes(), high.tobytes())),
    )


def _surplus_files(items: Sequence[Entry | Recording]) -> Iterator[Finding]:
    """Files of the kind of the features beside them that no recording uses."""
    users: dict[Path, set[str]] = defaultdict(set)
    for item in items:
        for source in item.sources if isinstance(item, Entry) else ():
            for path in getattr(source, "files", (source.path,)):
                users[_file_of(path)].add(item.id)
    # What lies beside a file of many recordings is of other data sets. Text of HAPT stands beside its labels, and its
    # folder is itself the list of recordings.
    shared = {file.parent for file, ids in users.items() if len(ids) > 1}
    for folder, suffix in dict.fromkeys((file.parent, file.suffix) for file in users):
        if folder in shared or suffix in ("", ".txt") or not os.path.isdir(folder):
            continue
        for file in listed(folder, f"*{suffix}"):
            if file not in users:
                yield Finding("surplus files", f"{file}: no recording of the annotations uses it")


def _file_of(path: Path) -> Path:
    """The file that a source lies in: a path may go on with what it is called there."""
    return next((file for file in (path, *path.parents) if os.path.isfile(file)), path)


def _feature_warnings(read: Sequence[_Read], standardized: bool) -> Iterator[Finding]:
    seen: dict[int, str] = {}
    for one in read:
        for (name, part), values in zip(one.recording.parts, one.values, strict=False):  # none where there are faults
            if values.largest == 0:
                yield Finding("constant features", f"{name}: all values are 0")
            elif values.constant:
                yield Finding("constant features", f"{name}: all {len(part)} snippets are the same")
            elif values.fingerprint in seen:
                yield Finding("equal features", f"{name}: the same features as {seen[values.fingerprint]}")
            else:
                seen[values.fingerprint] = name
            if values.largest > LARGE and not standardized:
                yield Finding(
                    "large values",
                    f"{name}: values of up to {values.largest:.3g}: data.standardize=true would scale them",
                )


def _length_warnings(items: Sequence[Entry | Recording], read: Sequence[_Read]) -> Iterator[Finding]:
    fixed = [
        one.recording
        for item, one in zip(items, read, strict=True)
        if item.grid is not None and len(one.recording.features)
    ]
    usual = float(np.median([recording.grid.snippet_sec for recording in fixed])) if fixed else 0.0
    for recording in fixed:
        if abs(recording.grid.snippet_sec - usual) > 0.01 * usual:
            yield Finding(
                "other rates of snippets",
                f"{recording.id}: a snippet each {recording.grid.snippet_sec:.3g} s, in most recordings {usual:.3g} s",
            )
    for item, one in zip(items, read, strict=True):
        recording = one.recording
        if not len(recording.features):
            continue
        covered, slack = recording.duration_sec, SNIPPET_TOLERANCE * recording.grid.snippet_sec
        known = item.duration_sec
        if known and known > 0 and abs(covered - known) > max(LENGTH_TOLERANCE * known, slack):
            yield Finding(
                "lengths that differ from the annotations",
                f"{recording.id}: features cover {covered:.1f} s, of {known:.1f} s annotated ({covered / known:.2f} x)",
            )
        late = [i for i in recording.instances if i.start_sec < -slack or i.end_sec > covered + slack]
        if late:
            yield Finding(
                "instances beyond the features",
                f"{recording.id}: {len(late)} of {_count(len(recording.instances), 'instance')} beyond the features, "
                f"which cover {covered:.1f} s, the last one until {late[-1].end_sec:.1f} s",
            )


def _inside(recording: Recording, scale: float = 1.0) -> NDArray[np.bool_]:
    """Whether each point, its time scaled, lies in each instance and has its class, `[points, instances]`."""
    times = scale * np.array([point.time_sec for point in recording.points])[:, None]
    start = np.array([instance.start_sec for instance in recording.instances])
    end = np.array([instance.end_sec for instance in recording.instances])
    numbers: dict[str, int] = {}
    own, other = (
        np.array([numbers.setdefault(item.label, len(numbers)) for item in items], dtype=np.int64)
        for items in (recording.points, recording.instances)
    )
    same: NDArray[np.bool_] = own[:, None] == other
    slack = np.minimum(POINT_TOLERANCE_SEC, POINT_TOLERANCE * (end - start))
    inside: NDArray[np.bool_] = same & (times >= start - slack) & (times <= end + slack)
    return inside


def _point_warnings(dataset: Dataset) -> Iterator[Finding]:
    """Points and instances of the training recordings that do not go together."""
    train = [recording for recording in dataset.recordings if recording.subset == "train"]
    for recording in train:
        if not recording.points:
            yield Finding("recordings without points", f"{recording.id}: no point: training takes it for background")
    insides = {recording: _inside(recording) for recording in train if recording.points and recording.instances}
    scales = {assumed / true for assumed, true in itertools.permutations(RATES, 2)}
    fits = {
        recording: [scale for scale in scales if _inside(recording, scale).any(axis=1).all()]
        for recording, inside in insides.items()
        if len(inside) >= 3 and np.count_nonzero(~inside.any(axis=1)) >= 2
    }
    votes = Counter(scale for fitting in fits.values() for scale in fitting)
    for recording, inside in insides.items():
        if fitting := fits.get(recording):
            scale = max(fitting, key=lambda scale: (votes[scale], -abs(math.log(scale))))
            yield Finding(
                "points at another rate",
                f"{recording.id}: all points would lie in instances of their class if their times were {scale:.3g} x: "
                "is the frame rate right?",
            )
            continue
        outside = [point for point, found in zip(recording.points, np.any(inside, axis=1), strict=True) if not found]
        if outside:
            yield Finding(
                "points outside instances",
                f"{recording.id}: {len(outside)} of {_count(len(recording.points), 'point')} in no instance of their "
                f"class, the first one of {outside[0].label} at {outside[0].time_sec:.2f} s",
            )
        bare = [item for item, found in zip(recording.instances, np.any(inside, axis=0), strict=True) if not found]
        if bare:
            yield Finding(
                "instances without a point",
                f"{recording.id}: {len(bare)} of {_count(len(recording.instances), 'instance')} without a point, the "
                f"first one of {bare[0].label} at [{bare[0].start_sec:.2f}, {bare[0].end_sec:.2f}) s",
            )


def _class_warnings(dataset: Dataset) -> Iterator[Finding]:
    trained = Counter(point.label for item in dataset.recordings if item.subset == "train" for point in item.points)
    other = Counter(i.label for item in dataset.recordings if item.subset != "train" for i in item.instances)
    for label in dataset.classes:
        if label not in trained:
            tested = f", {_count(other[label], 'instance')} outside of training" if other[label] else ""
            yield Finding("classes without points", f"{label}: no point in the training recordings{tested}")
    for label, count in trained.items():
        common = [name for name, other_count in trained.items() if count <= RARE * other_count]
        for name in difflib.get_close_matches(label, common, n=1, cutoff=ALIKE):
            yield Finding(
                "classes with similar names",
                f"{label}: {_count(count, 'point')}, and {trained[name]} of {name}: is it the same class?",
            )


def _statistics(dataset: Dataset) -> dict[str, Any]:
    recordings = dataset.recordings
    names = sorted({recording.subset for recording in recordings}, key=lambda name: (name != "train", name))
    subsets: dict[str, dict[str, float]] = {}
    classes: dict[str, dict[str, dict[str, int]]] = {label: {} for label in dataset.classes}
    instance_sec: list[float] = []
    positions: list[float] = []
    for name in names:
        members = [recording for recording in recordings if recording.subset == name]
        counts = {
            "instances": Counter(instance.label for item in members for instance in item.instances),
            "points": Counter(point.label for item in members for point in item.points),
        }
        subsets[name] = {
            "recordings": len(members),
            "hours": sum(item.duration_sec for item in members if len(item.features)) / 3600,
            "snippets": sum(len(item.features) for item in members),
            "instances": counts["instances"].total(),
            "points": counts["points"].total(),
        }
        for label, of_class in classes.items():
            of_class[name] = {kind: number[label] for kind, number in counts.items()}
        for item in members:
            instance_sec += [i.end_sec - i.start_sec for i in item.instances if 0 < i.end_sec - i.start_sec < math.inf]
            if name == "train":
                positions += _positions(item)
    recording_sec = [recording.duration_sec for recording in recordings if len(recording.features)]
    return {
        "subsets": subsets,
        "classes": classes,
        "recording_sec": _histogram(recording_sec, _edges(recording_sec)),
        "instance_sec": _histogram(instance_sec, _edges(instance_sec)),
        "point_position": _histogram(positions, [i / 10 for i in range(11)]),
    }


def _positions(recording: Recording) -> Iterator[float]:
    """Where points lie in the shortest instance that holds them, from 0 to 1."""
    lengths = np.array([instance.end_sec - instance.start_sec for instance in recording.instances])
    holds = _inside(recording) & (lengths > 0) & (lengths < math.inf)
    for point, held in zip(recording.points, holds, strict=True):
        if held.any():
            index = int(np.where(held, lengths, math.inf).argmin())
            position = (point.time_sec - recording.instances[index].start_sec) / float(lengths[index])
            yield min(max(position, 0.0), 1.0)


def _edges(values: Sequence[float]) -> list[float]:
    """Round edges of some ten bins around positive values: in equal steps, or 1, 2, 5, 10... if they range widely."""
    if not values:
        return [0.0, 1.0]
    low, high = min(values), max(values)
    steps = [float(f"{digit}e{power}") for power in range(-6, 9) for digit in (1, 2, 5)]
    if high > 8 * low:
        first = max((step for step in steps if step <= low), default=steps[0])
        last = min((step for step in steps if step > high), default=steps[-1])
        return [step for step in steps if first <= step <= last]
    step = next((step for step in steps if high - low <= 8 * step and step >= high / 100), steps[-1])
    return [round(i * step, 9) for i in range(math.floor(low / step), math.floor(high / step) + 2)]


def _histogram(values: ArrayLike, edges: Sequence[float]) -> dict[str, Any]:
    """Counts in `[edge, next edge)`, with the mean, the spread and the quartiles; null where there are no values."""
    values = np.asarray(values, dtype=np.float64)
    figures = dict.fromkeys(("mean", "std", "min", "median", "max"))
    if values.size:
        figures = {
            "mean": float(values.mean()),
            "std": float(values.std()),
            "min": float(values.min()),
            "median": float(np.median(values)),
            "max": float(values.max()),
        }
    return figures | {"edges": list(edges), "counts": np.histogram(values, edges)[0].tolist()}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _findings(title: str, found: Sequence[Finding], style: str) -> Iterator[RenderableType]:
    from rich.text import Text

    kinds: dict[str, list[str]] = defaultdict(list)
    for finding in found:
        kinds[finding.kind].append(finding.message)
    for kind, messages in kinds.items():
        yield Text(f"{title}: {kind} ({len(messages)})", style=style)
        yield from (Text(f"  {message}") for message in messages[:SHOWN])
        if len(messages) > SHOWN:
            yield Text(f"  and {len(messages) - SHOWN} more", style="dim")


def _subset_table(subsets: dict[str, dict[str, float]]) -> Table:
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    table = Table("subset", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("recordings", "hours", "snippets", "instances", "points"):
        table.add_column(name, justify="right")
    for name, row in subsets.items():
        hours = f"{row['hours']:.2f}"
        table.add_row(escape(name), *(hours if key == "hours" else f"{row[key]:,}" for key in row))
    return table


def _class_table(statistics: dict[str, Any]) -> Table:
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    names, classes = list(statistics["subsets"]), list(statistics["classes"].items())
    table = Table("class", box=SIMPLE, padding=(0, 1, 0, 0))
    # Points outside of training are of no use.
    columns = [(name, kind) for name in names for kind in ("instances", "points")[: 1 + (name == "train")]]
    for name, kind in columns:
        table.add_column(f"{escape(name)}\n{kind}", justify="right")
    order = sorted(classes, key=lambda item: -sum(item[1][name][kind] for name, kind in columns))
    middle = len(order) - SHOWN_CLASSES
    for rank, (label, counts) in enumerate(order):
        if middle > 0 and SHOWN_CLASSES // 2 <= rank < SHOWN_CLASSES // 2 + middle:
            if rank == SHOWN_CLASSES // 2:
                table.add_row(f"({middle} classes between)", *("" for _ in columns), style="dim")
            continue
        table.add_row(escape(label), *(f"{counts[name][kind]:,}" for name, kind in columns))
    return table


def _histograms(statistics: dict[str, Any]) -> Table:
    from rich.table import Table

    row = Table.grid(padding=(0, 3))
    titles = {
        "recording_sec": "recordings (s)",
        "instance_sec": "instances (s)",
        "point_position": "points in instances",
    }
    tables = []
    for key, title in titles.items():
        histogram = statistics[key]
        counts, edges = histogram["counts"], histogram["edges"]
        if not any(counts):
            continue
        table = Table.grid(padding=(0, 1))
        for justify in ("right", "left", "right"):
            table.add_column(justify=justify, no_wrap=True)
        for first, last, number in zip(edges[:-1], edges[1:], counts, strict=True):
            bar = "█" * round(10 * number / max(counts)) or ("▏" if number else "")
            table.add_row(f"{first:g}-{last:g}", bar, f"{number:,}")
        table.title, table.title_style = f"{title}\nmedian {histogram['median']:.3g}", "italic"
        table.title_justify = "left"
        tables.append(table)
    row.add_row(*tables)
    return row
