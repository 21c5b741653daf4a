"""Audacity's label tracks: a line `start, end, label` with tabs for each label, seconds with six decimals."""

from __future__ import annotations

import re

from potloc_fast.errors import quote
from potloc_fast.formats.events import Events, fault, one_line
from potloc_fast.formats.source import Options, Source

TITLE = "Audacity labels"
SUFFIX = ".txt"
OWN: tuple[str, ...] = ()
SHARED: tuple[str, ...] = (".txt",)
SEVERAL = False

_LINE = re.compile(r"\s*[-+]?[\d.]+\t[-+]?[\d.]+(\t|$)")


def recognize(source: Source) -> bool:
    """Whether the first line begins with two numbers; a track without labels is an empty file."""
    return _LINE.match(source.head) is not None if source.head else not source.text.strip()


def read(source: Source, options: Options, events: Events) -> None:
    """Take the labels; lines that begin with a backslash give frequencies, and are passed over."""
    recording = options.recording or source.path.stem
    events.recordings[recording] = None
    for line, text in enumerate(source.text.split("\n"), start=1):
        if not text.strip() or text.startswith("\\"):
            continue
        cells = text.split("\t", maxsplit=2)
        if len(cells) < 3:
            raise fault(source.path, line, f"expected start, end and label with tabs between them, got {quote(text)}")
        start, end = (events.number(line, cell, "seconds") for cell in cells[:2])
        events.add(line, recording, cells[2], start, end)


def write(events: Events, options: Options) -> str:
    """A line for each event. There is no place for scores."""
    (rows,) = events.by_recording().values()
    return "".join([f"{start:.6f}\t{end:.6f}\t{one_line(label)}\n" for start, end, label, _ in rows])
