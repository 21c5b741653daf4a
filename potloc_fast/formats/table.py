"""Tables with commas or tabs, whose columns may have other names."""

from __future__ import annotations

import csv
import io

from potloc_fast.errors import InputError, quote
from potloc_fast.formats.events import Events, fault
from potloc_fast.formats.source import Options, Source, Table

TITLE = "CSV"
SUFFIX = ".csv"
OWN: tuple[str, ...] = (".csv", ".tsv")
SHARED: tuple[str, ...] = ()
SEVERAL = True

COLUMNS = {
    "recording": "recording",
    "label": "label",
    "start": "start_sec",
    "end": "end_sec",
    "time": "time_sec",
    "score": "score",
}


def recognize(source: Source) -> bool:
    """Any table may be one: only the suffix says so."""
    return False


def read(source: Source, options: Options, events: Events) -> None:
    """Take the rows of a table: a point where there is a time, or a start without an end; else a segment."""
    asked = dict(options.columns)
    for key in asked:
        if key not in COLUMNS:
            raise InputError(f"--columns: expected columns for {', '.join(COLUMNS)}, got one for {quote(key)}")
    table = Table(source, [asked.get("label", COLUMNS["label"]), *asked.values()])
    at = {key: table.index(asked.get(key, name)) for key, name in COLUMNS.items()}
    label, recording, score = at["label"], at["recording"], at["score"]
    timed = "time" in asked or (at["start"] is None and "start" not in asked)
    start, end = (at["time"], None) if timed else (at["start"], at["end"])
    if label is None or start is None:
        found = f"found {quote(','.join(table.names))}: --columns names others"
        raise fault(source.path, table.line, f"expected a column time_sec or start_sec, {found}")
    alone = options.recording or source.path.stem
    for line, cells in table.rows():
        first = events.number(line, cells[start], table.names[start])
        last = first if end is None or not cells[end].strip() else events.number(line, cells[end], table.names[end])
        sure = 1.0 if score is None or not cells[score].strip() else events.number(line, cells[score], "a score")
        name = alone if recording is None else cells[recording].strip()
        if not name:
            raise fault(source.path, line, "expected a recording, found none")
        events.add(line, name, cells[label], first, last, sure)


def write(events: Events, options: Options) -> str:
    """The rows of the plain layout's tables, by recording and falling score.

    Events that are all points without scores get the columns of its points, else there are columns start_sec, end_sec
    and score.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    points = bool(len(events)) and not events.scored and events.start_sec == events.end_sec
    writer.writerow(["recording", "label", *(["time_sec"] if points else ["start_sec", "end_sec", "score"])])
    numbers = {name: i for i, name in enumerate(events.recordings)}
    recording, score = events.recording, events.score
    order = sorted(range(len(events)), key=lambda i: (numbers[recording[i]], -score[i]))
    for i in order:
        start = f"{events.start_sec[i]:.3f}"
        times = [start] if points else [start, f"{events.end_sec[i]:.3f}", f"{score[i]:.4f}"]
        writer.writerow([recording[i], events.label[i], *times])
    return text.getvalue()
