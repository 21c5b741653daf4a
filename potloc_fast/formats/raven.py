"""Raven's selection tables: tabs, a row for each view of a selection, seconds."""

from __future__ import annotations

import re

from potloc_fast.formats.events import Events, one_line
from potloc_fast.formats.source import Options, Source, Table, media_stem

TITLE = "Raven selection table"
SUFFIX = ".selections.txt"
OWN: tuple[str, ...] = (".selections.txt",)
SHARED: tuple[str, ...] = (".txt", ".tsv")
SEVERAL = False

_BEGIN, _END = "Begin Time (s)", "End Time (s)"
_LABEL = "Annotation"
_HEAD = ("Selection", "View", "Channel", _BEGIN, _END, "Low Freq (Hz)", "High Freq (Hz)", _LABEL)
_ENDS = re.compile(r"(\.Table\.\d+)?(\.selections)?\.(txt|tsv)$", re.IGNORECASE)  # as Raven calls its files


def recognize(source: Source) -> bool:
    """Whether the first line has Raven's columns of times."""
    return {_BEGIN, _END} <= set(source.head.split("\t"))


def read(source: Source, options: Options, events: Events) -> None:
    """Take each selection once, whatever the number of views that show it."""
    label_name = options.columns.get("label", _LABEL)
    table = Table(source, [_BEGIN, _END, label_name])
    at = {name: table.index(name) for name in (*_HEAD, "Begin File", "Score")}
    begin, end, label = table.names.index(_BEGIN), table.names.index(_END), table.names.index(label_name)
    selection, file, score = at["Selection"], at["Begin File"], at["Score"]
    alone = options.recording or _ENDS.sub("", source.path.name)
    if file is None:
        events.recordings[alone] = None
    seen = set()
    for line, cells in table.rows():
        name = alone
        if file is not None and cells[file].strip() and not options.recording:
            name = media_stem(cells[file].strip())
        if selection is not None:
            if (name, cells[selection]) in seen:
                continue
            seen.add((name, cells[selection]))
        sure = 1.0 if score is None or not cells[score].strip() else events.number(line, cells[score], "a score")
        first, last = (events.number(line, cells[i], table.names[i]) for i in (begin, end))
        events.add(line, name, cells[label], first, last, sure)


def write(events: Events, options: Options) -> str:
    """A row for each event in the view of the waveform; frequencies, of which nothing is known, are 0 to 1 Hz."""
    (rows,) = events.by_recording().values()
    scored = events.scored
    lines = ["\t".join((*_HEAD, *(["Score"] if scored else [])))]
    for number, (start, end, label, score) in enumerate(rows, start=1):
        lines.append(
            f"{number}\tWaveform 1\t1\t{start:.6f}\t{end:.6f}\t0.0\t1.0\t{one_line(label)}"
            + (f"\t{score:.4f}" if scored else "")
        )
    return "\n".join(lines) + "\n"
