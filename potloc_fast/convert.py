"""From the annotations of one tool to those of another."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from potloc_fast.errors import InputError, quote
from potloc_fast.evaluation.segments import Segments
from potloc_fast.files import without_collection, write_json
from potloc_fast.formats import FORMATS, Events, Options, Source, format_for, format_of, read, write

ACTIVITYNET = "json"  # detections and ground truth in the ActivityNet form


@without_collection()
def convert(
    source: str | Path,
    target: str | Path,
    *,
    read_as: str | None = None,
    write_as: str | None = None,
    options: Options | None = None,
    min_score: float | None = None,
) -> tuple[Events, Path]:
    """Read annotations or detections in one format and write them in another.

    Args:
        source: a file, or a folder of files.
        target: the file to write; the folder, where the format holds one recording a file and there are several.
        read_as: the format of the source, a key of `FORMATS` or "json"; None finds out.
        write_as: that of the target; None takes its suffix.
        options: what the source doesn't say, and frames a second, which some formats count.
        min_score: events that score less are left out.

    Returns:
        What was written, and where.

    Raises:
        InputError: a format is not known, the source is malformed, or the target can't be written.
    """
    options = options or Options()
    _check("--from", read_as)
    _check("--to", write_as)
    if options.fps is not None and not 0 < options.fps < float("inf"):
        raise InputError(f"--fps: expected frames a second over 0, got {options.fps:g}")
    events = _read(Source(source), read_as, options)
    if min_score is not None:
        events = events.over(min_score)
    return events, _write(Path(target), events, write_as, options)


def parse_columns(text: str) -> dict[str, str]:
    """Take apart what `--columns` says; a pair with a comma in it is in double quotes.

    Raises:
        InputError: it says no such thing.

    >>> parse_columns("label=behavior,start=Start (s)")
    {'label': 'behavior', 'start': 'Start (s)'}
    >>> parse_columns('"label=behavior, coded",time=t')
    {'label': 'behavior, coded', 'time': 't'}
    """
    pairs = [cell.partition("=") for cell in next(csv.reader([text], skipinitialspace=True), [])]
    found = {key.strip(): name.strip() for key, _, name in pairs}
    if not all(found.values()) or "" in found or len(found) < len(pairs):
        raise InputError(f"--columns: expected pairs such as label=behavior,start=Start (s), got {quote(text)}")
    return found


def _check(option: str, form: str | None) -> None:
    if form is not None and form not in (*FORMATS, ACTIVITYNET):
        raise InputError(f"{option}: expected one of {', '.join((*FORMATS, ACTIVITYNET))}, got {quote(form)}")


def _read(source: Source, form: str | None, options: Options) -> Events:
    if form is None and source.name.endswith(".json") and source.path.is_file() and format_of(source) is None:
        form = ACTIVITYNET
    if form != ACTIVITYNET:
        return read(source, form, options)
    truth = isinstance(source.json, Mapping) and "database" in source.json
    take = Segments.from_ground_truth if truth else Segments.from_results
    return take(source.json, source=source.path).to_events(source.path)


def _write(path: Path, events: Events, form: str | None, options: Options) -> Path:
    if form == ACTIVITYNET or (form is None and format_for(path) is None and path.suffix.lower() == ".json"):
        write_json(path, Segments.from_events(events).to_results())
        return path
    return write(path, events, form, options)
