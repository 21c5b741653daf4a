"""Label Studio's tasks in JSON: labels of time series in units of its time, of audio in seconds, of video in frames.

Exports (JSON and JSON-MIN) and tasks come in; tasks with predictions, which are imported as pre-annotations, go out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from potloc_fast.errors import InputError, quote
from potloc_fast.formats.events import Events, fault
from potloc_fast.formats.source import Options, Source, media_stem

TITLE = "Label Studio"
SUFFIX = ".label-studio.json"
OWN: tuple[str, ...] = (".label-studio.json",)
SHARED: tuple[str, ...] = (".json",)
SEVERAL = True

_KINDS = ("timeserieslabels", "timelinelabels", "labels")
_PARTS = {"annotations", "predictions"}
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file


def recognize(source: Source) -> bool:
    """Whether there are tasks with results."""
    tasks = source.json if isinstance(source.json, list) else [source.json]
    mappings = [task for task in tasks[:100] if isinstance(task, dict)]
    return len(mappings) == len(tasks[:100]) and any(
        ("data" in task and not _PARTS.isdisjoint(task)) or any(_minimal(task)) for task in mappings
    )


def _minimal(task: dict[str, Any]) -> Iterator[Any]:
    """The regions that a task of JSON-MIN has among its data."""
    for value in task.values():
        if isinstance(value, list):
            yield from (item for item in value if isinstance(item, dict) and any(kind in item for kind in _KINDS))


def read(source: Source, options: Options, events: Events) -> None:
    """Take the labels of all tasks, each a recording that is called as its file.

    Of several annotations of a task the first one that was not cancelled counts, or that which is marked as ground
    truth; predictions count where there are no annotations.
    """
    if not recognize(source):
        raise InputError(f"{source.path}: expected tasks with data and annotations, got {quote(source.json)}")
    tasks = source.json if isinstance(source.json, list) else [source.json]
    others = 0
    for number, task in enumerate(tasks):
        if not isinstance(task, dict):
            raise fault(source.path, f"[{number}]", f"expected a task, got {quote(task)}")
        name = _recording(task)
        if name in events.recordings:
            raise fault(source.path, f"[{number}]", f"expected each recording once, got {quote(name)} again")
        events.recordings[name] = None
        results, where, more = _results(source, task, number)
        others += more
        for index, result in enumerate(results):
            _take(events, options, f"{where}[{index}]", name, result)
    if others:
        events.notes.append(f"{source.path}: annotations left out beside another of the same task: {others}")


def _recording(task: dict[str, Any]) -> str:
    """The name of a task's file, without the digits that Label Studio puts before those that are uploaded."""
    data = task.get("data", task)
    texts = [value for value in data.values() if isinstance(value, str)] if isinstance(data, dict) else []
    name = media_stem(next((text for text in texts if PurePosixPath(text).suffix), texts[0] if texts else ""))
    uploaded = any("/upload/" in text for text in texts)
    return (_UPLOAD.sub("", name) if uploaded else name) or str(task.get("id", ""))


def _results(source: Source, task: dict[str, Any], number: int) -> tuple[list[Any], str, int]:
    """The results that count of a task, where they are, and how many annotations beside them do not."""
    if "data" not in task:
        return [{"value": item} for item in _minimal(task)], f"[{number}]", 0
    for key in ("annotations", "predictions"):
        found = task.get(key) or []
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise fault(source.path, f"[{number}].{key}", f"expected a list of objects, got {quote(found)}")
        kept = [i for i, item in enumerate(found) if not item.get("was_cancelled")]
        if kept:
            chosen = next((i for i in kept if found[i].get("ground_truth")), kept[0])
            results = found[chosen].get("result")
            where = f"[{number}].{key}[{chosen}].result"
            if not isinstance(results, list):
                raise fault(source.path, where, f"expected a list, got {quote(results)}")
            return results, where, len(kept) - 1
    return [], "", 0


def _take(events: Events, options: Options, place: str, name: str, result: Any) -> None:
    """Add the events of a result, where it is one that labels times."""
    value = result.get("value") if isinstance(result, dict) else None
    if not isinstance(value, dict):
        raise fault(events.path, place, f"expected a result with a value, got {quote(result)}")
    kind = next(filter(value.__contains__, _KINDS), None)
    if kind is None or (kind == "labels" and "start" not in value):  # a choice, or a box in a picture
        return
    labels = value[kind]
    if not isinstance(labels, list):
        raise fault(events.path, place, f"expected a list of labels, got {quote(labels)}")
    score = events.number(place, 1 if result.get("score") is None else result["score"], "a score")
    if kind == "timelinelabels":
        spans = list(_frames(events, options, place, value.get("ranges")))
    else:
        spans = [(events.number(place, value.get("start"), "start"), events.number(place, value.get("end"), "end"))]
    for label in labels:
        for start, end in spans:
            events.add(place, name, label, start, end, score)


def _frames(events: Events, options: Options, place: str, ranges: Any) -> Iterator[tuple[float, float]]:
    """Seconds of ranges of frames, the first of which is 1 and both ends of which belong to them."""
    if options.fps is None:
        raise fault(events.path, place, "expected --fps, as videos are labelled in frames, got none")
    if not isinstance(ranges, list) or not all(isinstance(item, dict) for item in ranges):
        raise fault(events.path, place, f"expected ranges with start and end, got {quote(ranges)}")
    for item in ranges:
        first, last = (events.number(place, item.get(key), key) for key in ("start", "end"))
        if first == last:  # a single frame is a moment
            yield ((first - 0.5) / options.fps, (first - 0.5) / options.fps)
        else:
            yield ((first - 1) / options.fps, last / options.fps)


def write(events: Events, options: Options) -> str:
    """A task for each recording, with its events as a prediction: of a video with `fps`, else of a time series.

    They fit the labels `label` of a time series `ts` (a video `video`) whose file `csv` (`video`) names.
    """
    tasks = []
    names: dict[str, str] = {}  # of labels, in JSON
    key, kind, object_name = ("csv", "timeserieslabels", "ts")
    if options.fps is not None:
        key, kind, object_name = ("video", "timelinelabels", "video")
    head = f'"from_name": "label", "to_name": "{object_name}", "type": "{kind}"'
    for number, (recording, rows) in enumerate(events.by_recording().items()):
        results = []
        for i, (start, end, label, score) in enumerate(rows):
            text = names.get(label) or names.setdefault(label, json.dumps([label]))
            if options.fps is None:
                instant = "true" if start == end else "false"
                value = f'"start": {start!r}, "end": {end!r}, "instant": {instant}'
            else:
                first = int(start * options.fps) + 1 if start == end else round(start * options.fps) + 1
                last = first if start == end else max(round(end * options.fps), first + 1)
                value = f'"ranges": [{{"start": {first}, "end": {last}}}]'
            results.append(
                f'{{"id": "{number}-{i}", {head}, "score": {score:.4f}, "value": {{{value}, "{kind}": {text}}}}}'
            )
        mean = min(max(sum(row.score for row in rows) / max(len(rows), 1), 0.0), 1.0)  # no other is imported
        tasks.append(
            f'{{"data": {{"{key}": {json.dumps(recording)}}}, "predictions": [{{"model_version": "potloc_fast", '
            f'"score": {mean:.4f}, "result": [{", ".join(results)}]}}]}}'
        )
    return "[" + ",\n".join(tasks) + "]\n"
