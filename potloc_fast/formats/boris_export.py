"""BORIS' exports of events, CSV or TSV: aggregated, tabular, and tabular after a preamble as older versions wrote."""

from __future__ import annotations

from potloc_fast.errors import InputError, quote
from potloc_fast.formats.boris import Pairs, score_in
from potloc_fast.formats.events import Events, fault
from potloc_fast.formats.source import Options, Source, Table

TITLE = "BORIS export"
SUFFIX = ""
OWN: tuple[str, ...] = ()
SHARED: tuple[str, ...] = (".csv", ".tsv", ".txt")
SEVERAL = True

_ID = "Observation id"
_AGGREGATED = ("Behavior", "Start (s)", "Stop (s)")
_STATUS = ("Behavior type", "Status")  # of newer and older versions


def recognize(source: Source) -> bool:
    """Whether the first line names an observation, or a column for it, as every export of BORIS does."""
    return source.head.lstrip('"').startswith(_ID) or all(name in source.head for name in _AGGREGATED)


def read(source: Source, options: Options, events: Events) -> None:
    """Take the events of a file, whichever of its forms it has."""
    if any(all(name in line for name in _AGGREGATED) for line in source.first_lines):
        _read_aggregated(Table(source, _AGGREGATED), options, events)
    else:
        _read_tabular(Table(source, ("Time", "Behavior")), options, events)


def _name(table: Table, options: Options) -> str:
    """The observation that a preamble names, else what the options or the file say."""
    named = next((cells[1] for cells in table.before if len(cells) > 1 and cells[0] == _ID and cells[1]), None)
    return named or options.recording or table.path.stem


def _read_aggregated(table: Table, options: Options, events: Events) -> None:
    behaviour, start, stop = (table.names.index(name) for name in _AGGREGATED)
    observation, comment = table.index(_ID), table.index("Comment start")
    alone = _name(table, options)
    for line, cells in table.rows():
        name = alone if observation is None else cells[observation].strip() or alone
        first, last = (events.number(line, cells[i], table.names[i]) for i in (start, stop))
        score = 1.0 if comment is None else score_in(cells[comment])
        events.add(line, name, cells[behaviour], first, last, score)


def _read_tabular(table: Table, options: Options, events: Events) -> None:
    status = next((at for name in _STATUS if (at := table.index(name)) is not None), None)
    if status is None:
        raise fault(table.path, table.line, f"expected a column Behavior type or Status, found {quote(table.names)}")
    time, behaviour = table.names.index("Time"), table.names.index("Behavior")
    observation, subject, comment = (table.index(name) for name in (_ID, "Subject", "Comment"))
    offset = table.index("Time offset (s)")
    before = next((cells[1] for cells in table.before if len(cells) > 1 and cells[0] == "Time offset (s)"), "")
    modifiers = [i for i, name in enumerate(table.names) if name.startswith("Modifier")]
    alone = _name(table, options)
    pairs = Pairs(events)
    for line, cells in table.rows():
        name = alone if observation is None else cells[observation].strip() or alone
        label, kind = cells[behaviour].strip(), cells[status].strip().upper()
        shift = before if offset is None else cells[offset].strip()
        sec = events.number(line, cells[time], "Time")
        if shift:
            sec = round(sec - events.number(line, shift, "Time offset (s)"), 6)
        key = (name, label, "" if subject is None else cells[subject], *(cells[i] for i in modifiers))
        score = 1.0 if comment is None else score_in(cells[comment])
        if kind == "POINT":
            events.add(line, name, label, sec, sec, score)
        elif kind == "START":
            pairs.begin(key, line, sec, score)
        elif kind == "STOP":
            pairs.end(key, line, sec)
        else:
            raise fault(table.path, line, f"expected POINT, START or STOP, got {quote(cells[status])}")
    pairs.close()


def write(events: Events, options: Options) -> str:
    """Exports are for other programs: BORIS reads its projects alone.

    Raises:
        InputError: always.
    """
    raise InputError(
        "boris-export: expected a format that BORIS reads, got that of its exports: write a .boris project"
    )
