"""What a report says, gathered from the folder of a run or from files of detections, as plain structures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from potloc_fast.config import Config
from potloc_fast.config.load import leaves
from potloc_fast.data.annotations import read_database
from potloc_fast.engine.progress import duration
from potloc_fast.errors import InputError, quote
from potloc_fast.evaluation import Analysis, Evaluation, Segments, analyse, evaluate, read_detections
from potloc_fast.evaluation.align import align
from potloc_fast.evaluation.average_precision import class_bounds, match, rank
from potloc_fast.evaluation.errors import KINDS
from potloc_fast.files import read_json, read_lines
from potloc_fast.names import find_names
from potloc_fast.report.pack import pack
from potloc_fast.report.segments import columns, judge, overlaps, renamed, strongest
from potloc_fast.report.signals import feature_curves, pack_curves, score_curves, score_levels

if TYPE_CHECKING:
    from potloc_fast.data import Dataset, Recording
    from potloc_fast.engine.quality import Quality
    from potloc_fast.engine.run import Run

TIOU = 0.5  # at which detections are judged
CURVE_POINTS = 200  # of a precision-recall curve, and of a training curve
SIGNALS = 12_000_000  # characters for the curves of all recordings together
LEAST_SIGNALS = 4000  # that a recording may take in any case


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision at each recall of a class, both in percent, before it is interpolated."""

    label: str
    recall: list[float]
    precision: list[float]


@dataclass(frozen=True)
class Labels:
    """How good pseudo-labels are, in percent, held against the ground truth of the training recordings.

    Attributes:
        name: the round that made them.
        labels: their number.
        evaluation: their mAP.
        tiou: mean over the instances of the tIoU with the best label of their class.
    """

    name: str
    labels: int
    evaluation: Evaluation
    tiou: float


@dataclass(frozen=True)
class Training:
    """The log of a stage.

    Attributes:
        stage: its name.
        seconds: from its first to its last step.
        epochs: their number.
        step: of each row that is kept.
        losses: the terms by name, each smoothed to the rows that are kept.
    """

    stage: str
    seconds: float
    epochs: int
    step: list[int]
    losses: dict[str, list[float]]


@dataclass(frozen=True)
class Report:
    """What a report says.

    Attributes:
        title: of the page.
        facts: what was run, on what, how long: pairs of words.
        settings: keys of the configuration, their values, and whether they differ from the defaults; these come first.
        evaluations: mAP by stage.
        analysis: what lies behind the mAP of the last stage; None without ground truth.
        curves: precision and recall of each class at tIoU 0.5.
        trainings: the logs.
        labels: the quality of pseudo-labels by round.
        quality: what points tell of the run, where training asked.
        notes: a sentence for each thing that a reader should know.
        browser: names and facts of the recordings, for static/*.js.
        segments: all segments and points, packed.
        signals: curves of each recording, packed; None where there are none.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    browser: Mapping[str, Any]
    segments: str
    signals: tuple[str | None, ...]
    settings: tuple[tuple[str, str, bool], ...] = ()
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    analysis: Analysis | None = None
    curves: tuple[PrecisionRecall, ...] = ()
    trainings: tuple[Training, ...] = ()
    labels: tuple[Labels, ...] = ()
    quality: Quality | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Item:
    """A recording as the browser lists it."""

    id: str
    subset: str
    duration: float
    snippets: int = 0
    snippet_sec: float = 0.0
    first_sec: float = 0.0


def of_files(detections: str | Path, ground_truth: str | Path, subset: str | None = None) -> Report:
    """Gather a report on anybody's detections.

    Args:
        detections: a JSON file in the ActivityNet form.
        ground_truth: likewise.
        subset: only the videos of this subset.

    Raises:
        InputError: a file is malformed, the ground truth is empty, or it shares no class with the detections.
    """
    found, database = read_detections(detections), read_database(ground_truth)
    truth = Segments.from_database(database, subset)
    evaluation, analysis = evaluate(found, truth), analyse(found, ground_truth, tiou=TIOU, subset=subset)
    names = find_names(found.videos, truth.videos, detections)
    found = replace(found, videos=tuple(names.values()))
    items = []
    for name in dict.fromkeys((*truth.videos, *found.videos)):
        video = database.videos.get(name)
        items.append(_Item(name, video.subset if video else "", (video and video.duration_sec) or 0.0))
    labels = tuple(dict.fromkeys((*truth.labels, *found.labels)))
    browser, segments = _browser(items, labels, found, truth, threshold=analysis.f1.threshold)
    return Report(
        title=Path(detections).name,
        facts=(
            ("detections", f"{len(found):,} in {len(found.videos):,} recordings, from {detections}"),
            ("ground truth", f"{len(truth):,} instances of {len(truth.labels)} classes, from {ground_truth}"),
            *((("subset", subset),) if subset else ()),
        ),
        browser=browser,
        segments=segments,
        signals=(None,) * len(items),
        evaluations={"detections": evaluation},
        analysis=analysis,
        curves=_precision_recall(found, truth),
        notes=(*evaluation.warnings, *truth.notes),
    )


def of_run(run: Run) -> Report:
    """Gather a report on a run.

    Where its data can't be read any more, the report goes without features, scores of snippets and what only they know.

    Raises:
        InputError: a file of the run is damaged, or nothing was detected and no model is there to detect with.
    """
    from potloc_fast.engine.predict import predict
    from potloc_fast.engine.quality import read_quality
    from potloc_fast.engine.train import evaluate_run, load_dataset

    rules, notes = run.config.evaluate, []
    path = run.folder / "ground_truth.json"
    database = read_database(path)
    truth = Segments.from_database(database)
    detected = run.folder / "potloc" / "detections.json"
    found = read_detections(detected) if detected.is_file() else _none(run.classes)
    dataset: Dataset | None = None
    try:
        dataset = load_dataset(run.config)
    except InputError as error:
        notes.append(f"without features and scores of snippets, as the data can't be read any more: {error}")
    trained = run.weights("potloc").is_file()
    if not trained and not len(found):
        raise InputError(f"{run.folder}: expected a trained POTLoc model or its detections, found neither")
    if dataset is not None and trained:
        others = [item for item in dataset.recordings if item.id not in found.videos]
        if others:
            found = _joined(found, predict(run, others))
    records = [_of_recording(item) for item in dataset.recordings] if dataset else []
    known = {item.id for item in records}
    items = records + [
        _Item(name, video.subset, video.duration_sec or 0.0)
        for name, video in database.videos.items()
        if name not in known
    ]
    rounds = [run.folder, *sorted(path for path in run.folder.glob("round_*") if path.is_dir())]
    made = [folder / "pseudo_labels.json" for folder in rounds if (folder / "pseudo_labels.json").is_file()]
    sources = [folder / "proposals.json" for folder in (*reversed(rounds[1:]), run.folder / "base")]
    proposals = next((read_detections(path) for path in sources if path.is_file()), None)
    training = Segments.from_database(database, "train") if _has(database.videos.values(), "train") else None
    qualities = tuple(_labels(path, run, training) for path in made) if training is not None and len(training) else ()
    tested = Segments.from_database(database, rules.subset) if _has(database.videos.values(), rules.subset) else None
    evaluations: dict[str, Evaluation] = {}
    analysis: Analysis | None = None
    curves: tuple[PrecisionRecall, ...] = ()
    if tested is not None and len(tested):
        for stage in ("base", "potloc"):
            if (run.folder / stage / "detections.json").is_file():
                evaluations[stage] = evaluate_run(run, stage)
        if detected.is_file():
            analysis = analyse(detected, path, tiou=TIOU, subset=rules.subset)
            curves = _precision_recall(detected, tested)
    quality = read_quality(run)
    known_score = quality.min_score if quality else None
    browser, segments = _browser(
        items,
        run.classes,
        found,
        truth,
        points=_points(dataset.recordings) if dataset else None,
        pseudo_labels=read_detections(made[-1]) if made else None,
        proposals=proposals,
        threshold=analysis.f1.threshold if analysis else known_score,
    )
    trainings = tuple(_trainings(run.folder))
    return Report(
        title=run.folder.resolve().name,
        facts=tuple(_facts(run, items, truth, dataset, trainings)),
        browser=browser,
        segments=segments,
        signals=tuple(_signals(run, dataset, len(items), trained)),
        settings=_settings(run.config),
        evaluations=evaluations,
        analysis=analysis,
        curves=curves,
        trainings=trainings,
        labels=qualities,
        quality=quality,
        notes=tuple(notes),
    )


def _has(videos: Any, subset: str) -> bool:
    return any(video.subset == subset for video in videos)


def _none(labels: Sequence[str]) -> Segments:
    whole, real = np.zeros(0, np.int64), np.zeros(0)
    return Segments((), tuple(labels), whole, whole, real, real, real)


def _joined(first: Segments, second: Segments) -> Segments:
    videos = {name: number for number, name in enumerate((*first.videos, *second.videos))}
    labels = {name: number for number, name in enumerate(dict.fromkeys((*first.labels, *second.labels)))}
    parts = [renamed(part, videos, labels) for part in (first, second)]
    names = ("video", "label", "start_sec", "end_sec", "score")
    return Segments(
        tuple(videos), tuple(labels), *(np.concatenate([getattr(part, name) for part in parts]) for name in names)
    )


def _of_recording(item: Recording) -> _Item:
    first, last = item.grid.to_sec(0.0), item.duration_sec
    return _Item(item.id, item.subset, last, len(item.features), item.grid.snippet_sec, first)


def _points(recordings: Sequence[Recording]) -> Segments:
    """Points as segments without a length."""
    rows = [(i, point.label, point.time_sec) for i, item in enumerate(recordings) for point in item.points]
    labels = {label: number for number, label in enumerate(dict.fromkeys(label for _, label, _ in rows))}
    time = np.array([time for *_, time in rows], dtype=np.float64)
    return Segments(
        videos=tuple(item.id for item in recordings),
        labels=tuple(labels),
        video=np.array([video for video, *_ in rows], dtype=np.int64),
        label=np.array([labels[label] for _, label, _ in rows], dtype=np.int64),
        start_sec=time,
        end_sec=time,
        score=np.ones(len(rows)),
    )


def _browser(
    items: Sequence[_Item],
    classes: Sequence[str],
    detections: Segments,
    truth: Segments,
    points: Segments | None = None,
    pseudo_labels: Segments | None = None,
    proposals: Segments | None = None,
    threshold: float | None = None,
) -> tuple[dict[str, Any], str]:
    """What the browser of recordings lists, and all that lies in them, packed."""
    videos = {item.id: number for number, item in enumerate(items)}
    labels = {name: number for number, name in enumerate(classes)}
    every = renamed(detections, videos, labels)
    # Judged before the weakest are left out: what these found would else be taken for missed.
    judged = judge(every, renamed(truth, videos, labels), TIOU)
    kept = strongest(every)
    lanes = {
        "truth": judged.truth,
        "points": None if points is None else renamed(points, videos, labels),
        "pseudo": None if pseudo_labels is None else renamed(pseudo_labels, videos, labels),
    }
    arrays: dict[str, NDArray[Any]] = {}
    for name, lane in lanes.items():
        if lane is not None:
            arrays |= columns(name, lane)
    if proposals is not None:
        own = renamed(proposals, videos, labels)
        arrays |= columns("proposals", own.take(strongest(own)), np.float32)
    arrays |= columns("detections", every.take(kept), np.float32)
    arrays |= {"detections.kind": judged.kinds[kept], "detections.took": judged.took[kept], "truth.found": judged.found}
    ends = np.zeros(len(items))
    for lane in (*lanes.values(), every):
        if lane is not None:
            np.maximum.at(ends, lane.video, lane.end_sec)
    listed = [
        {
            "id": item.id,
            "subset": item.subset,
            "duration": max(item.duration, float(end)),
            "snippets": item.snippets,
            "snippet": item.snippet_sec,
            "first": item.first_sec,
        }
        for item, end in zip(items, ends, strict=True)
    ]
    facts = {
        "classes": list(classes),
        "kinds": list(KINDS),
        "tiou": TIOU,
        "threshold": threshold,
        "left_out": len(every) - len(kept),
        "recordings": listed,
    }
    return facts, pack({}, arrays)


def _precision_recall(detections: str | Path | Segments, truth: Segments) -> tuple[PrecisionRecall, ...]:
    found, truth, _ = align(detections, truth)
    ranked = found.take(rank(found))
    hit = match(ranked, truth, np.array([TIOU]))[:, 0] >= 0
    instances = np.bincount(truth.label)
    curves = []
    for label, first, last, size in zip(truth.labels, *class_bounds(ranked), instances, strict=True):
        hits = np.cumsum(hit[first:last])
        shown = np.flatnonzero(hit[first:last])  # in between, precision only falls
        if len(shown) > CURVE_POINTS:
            shown = shown[np.linspace(0, len(shown) - 1, CURVE_POINTS).round().astype(int)]
        recall, precision = 100 * hits[shown] / size, 100 * hits[shown] / (shown + 1)
        curves.append(PrecisionRecall(label, recall.round(2).tolist(), precision.round(2).tolist()))
    return tuple(curves)


def _labels(path: Path, run: Run, truth: Segments) -> Labels:
    found = read_detections(path)
    videos = {name: number for number, name in enumerate(truth.videos)}
    labels = {name: number for number, name in enumerate(run.classes)}
    tiou = overlaps(renamed(truth, videos, labels), renamed(found, videos, labels))
    name = "first" if path.parent == run.folder else f"after {path.parent.name.replace('_', ' ')}"
    return Labels(name, len(found), evaluate(found, truth), 100 * float(tiou.mean()))


def _trainings(folder: Path) -> Iterator[Training]:
    """The logs of the stages, in the order in which they are trained."""
    rounds = sorted(path.name for path in folder.glob("round_*"))
    for stage in ("base", *rounds, "potloc"):
        path = folder / stage / "metrics.jsonl"
        if not path.is_file():
            continue
        rows = [row for line in read_lines(path) if (row := _row(path, line))]
        if not rows:
            continue
        groups = np.array_split(np.arange(len(rows)), min(len(rows), CURVE_POINTS))
        names = [name for name in ("total", "mil", "act", "bg", "boundary") if name in rows[0]]
        values = {name: np.array([row.get(name, np.nan) for row in rows], dtype=np.float64) for name in names}
        yield Training(
            stage=stage,
            seconds=sum(max(after["seconds"] - before["seconds"], 0.0) for before, after in pairwise(rows)),
            epochs=rows[-1]["epoch"] + 1,
            step=[rows[group[-1]]["step"] for group in groups],
            losses={name: [float(f"{own[group].mean():.4g}") for group in groups] for name, own in values.items()},
        )


def _row(path: Path, line: str) -> dict[str, Any] | None:
    """A row of a log; None for one that was not written whole."""
    try:
        row = json.loads(line) if line else None
    except ValueError:
        return None
    if row is not None and not (isinstance(row, dict) and {"epoch", "step", "seconds"} <= row.keys()):
        raise InputError(f"{path}: expected rows as training writes them, got {quote(row)}")
    return row


def _signals(run: Run, dataset: Dataset | None, count: int, trained: bool) -> Iterator[str | None]:
    """The curves of each recording, packed."""
    if dataset is None:
        yield from (None for _ in range(count))
        return
    snippets = sum(len(item.features) for item in dataset.recordings)
    subset = "train" if any(item.subset == "train" for item in dataset.recordings) else dataset.recordings[0].subset
    mean, std = dataset.feature_stats(subset)
    numbers = {name: number for number, name in enumerate(run.classes)}
    levels = score_levels(run, dataset.recordings) if trained else repeat(None)
    for recording, own in zip(dataset.recordings, levels, strict=False):
        curves = feature_curves(recording, mean, std)
        if own is not None:
            labels = dict.fromkeys(
                [*(item.label for item in recording.instances), *(p.label for p in recording.points)]
            )
            curves += score_curves(own, [numbers[label] for label in labels if label in numbers])
        yield pack_curves(curves, max(SIGNALS * len(recording.features) // snippets, LEAST_SIGNALS))
    yield from (None for _ in range(count - len(dataset.recordings)))


def _settings(config: Config) -> tuple[tuple[str, str, bool], ...]:
    """The keys of a configuration, those first that differ from the defaults."""
    values = dict(leaves(config.model_dump(mode="json")))
    defaults = dict(leaves(Config(data={"layout": config.data.layout}).model_dump(mode="json")))  # type: ignore[arg-type]
    rows = [(key, _words(value), value != defaults.get(key)) for key, value in values.items() if key != "auto"]
    return tuple(sorted(rows, key=lambda row: not row[2]))


def _words(value: Any) -> str:
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _facts(
    run: Run, items: Sequence[_Item], truth: Segments, dataset: Dataset | None, trainings: Sequence[Training]
) -> Iterator[tuple[str, str]]:
    """What was run, on what, and how long."""
    data = run.config.data
    yield "data", f"{getattr(data, 'root', None) or data.layout} (layout {data.layout})"
    for subset in dict.fromkeys(item.subset for item in items):
        own = [item for item in items if item.subset == subset]
        hours = sum(item.duration for item in own) / 3600
        yield f"{subset} recordings", f"{len(own):,}, {hours:.2f} hours"
    yield "classes", f"{len(run.classes)}"
    yield "instances", f"{len(truth):,}"
    if dataset is not None:
        yield "points", f"{sum(len(item.points) for item in dataset.recordings):,}"
    yield "features", f"{run.features} channels" + (f", a snippet every {run.grid.snippet_sec:g} s" if run.grid else "")
    for training in trainings:
        last = training.step[-1] + 1
        yield f"training {training.stage}", f"{duration(training.seconds)}, {training.epochs} epochs, {last:,} steps"
    path = run.folder / "environment.json"
    if path.is_file():
        found = read_json(path)
        if not isinstance(found, dict):
            raise InputError(f"{path}: expected an object as training writes it, got {quote(found)}")
        yield from ((key, str(value)) for key, value in found.items() if value is not None)
    yield "folder", os.fspath(run.folder.resolve())
