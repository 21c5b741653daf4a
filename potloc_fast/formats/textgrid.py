"""Praat's TextGrid: interval and point tiers, seconds in double precision.

Praat reads a text file as a row of values: text in double quotes, free-standing numbers and `<flags>`. All else
explains them. So the long form and the short form, which leaves the explanations out, are the same row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import inf, nextafter
from typing import NamedTuple

from potloc_fast.errors import InputError, quote
from potloc_fast.formats.events import Event, Events, fault, lanes, one_line
from potloc_fast.formats.source import Options, Source

TITLE = "Praat TextGrid"
SUFFIX = ".TextGrid"
OWN: tuple[str, ...] = (".textgrid",)
SHARED: tuple[str, ...] = ()
SEVERAL = False

SCORES = " score"  # what the name of a tier ends with that holds the scores of another

_VALUE = re.compile(
    r'"([^"]*(?:""[^"]*)*)"'  # text
    r"|(?<!\S)([-+]?[\d.][\d.eE+-]*)(?!\S)"  # a number
    r"|(?<!\S)<(\w+)>(?!\S)"  # a flag
    r"|![^\n]*"  # a comment
)


class _Mark(NamedTuple):
    place: int  # where its text stands
    start_sec: float
    end_sec: float
    text: str


class _Values:
    """The values of a text file, one after the other."""

    def __init__(self, source: Source) -> None:
        self.path = source.path
        self._text = source.text
        self._found = _VALUE.finditer(source.text)
        self.at = 0

    def line(self, at: int) -> int:
        return self._text.count("\n", 0, at) + 1

    def _next(self, group: int, what: str) -> str:
        for match in self._found:
            self.at = match.start()
            kind = match.lastindex
            if kind is None:  # a comment
                continue
            if kind != group:
                raise fault(self.path, self.line(self.at), f"expected {what}, got {quote(match[0])}")
            return match[kind]
        raise fault(self.path, self.line(len(self._text)), f"expected {what}, got the end of the file")

    def text(self, what: str = "text in quotes") -> str:
        return self._next(1, what).replace('""', '"')

    def flag(self) -> str:
        return self._next(3, "<exists>")

    def number(self, what: str = "a number") -> float:
        text = self._next(2, what)
        try:
            return float(text)
        except ValueError:
            raise fault(self.path, self.line(self.at), f"expected {what}, got {quote(text)}") from None

    def count(self, what: str) -> int:
        number = self.number(what)
        if not 0 <= number < inf or number != int(number):
            raise fault(self.path, self.line(self.at), f"expected {what}, got {number:g}")
        return int(number)


def recognize(source: Source) -> bool:
    """The suffix is Praat's own."""
    return False


def read(source: Source, options: Options, events: Events) -> None:
    """Take the marks of all tiers.

    A label is the text of a mark. Intervals without text are what lies between; a point without text is called as its
    tier. A tier whose name is that of another with " score" behind it holds the scores of that one.
    """
    values = _Values(source)
    kinds = (values.text("ooTextFile"), values.text("TextGrid"))
    if kinds != ("ooTextFile", "TextGrid"):
        raise InputError(
            f"{source.path}: expected a TextGrid in a text file (ooTextFile), got {quote(' '.join(kinds))}"
        )
    values.number(), values.number()
    tiers: dict[str, list[_Mark]] = {}
    if values.flag() == "exists":
        for _ in range(values.count("the number of tiers")):
            kind = values.text("IntervalTier or TextTier")
            if kind not in ("IntervalTier", "TextTier"):
                raise fault(
                    source.path, values.line(values.at), f"expected IntervalTier or TextTier, got {quote(kind)}"
                )
            name = values.text("the name of a tier")
            values.number(), values.number()
            marks = tiers.setdefault(name, [])
            for _ in range(values.count("the number of marks")):
                start = values.number("a time")
                end = values.number("a time") if kind == "IntervalTier" else start
                text = values.text("the text of a mark").strip()
                if text or kind == "TextTier":
                    marks.append(_Mark(values.at, start, end, text or name))
    recording = options.recording or source.path.stem
    events.recordings[recording] = None
    scores = {name: found for name in tiers if (found := _scores(tiers.get(name + SCORES, ())))}
    for name, marks in tiers.items():
        if name.removesuffix(SCORES) in scores and name.endswith(SCORES):
            continue
        own = scores.get(name, {})
        for place, start, end, text in marks:
            score = own.get((start, end), 1.0)
            try:
                events.add(0, recording, text, start, end, score)
            except InputError:  # lines are counted where they are needed alone
                events.add(values.line(place), recording, text, start, end, score)


def _scores(marks: Sequence[_Mark]) -> dict[tuple[float, float], float]:
    """The scores that a tier holds; none where one of its texts is no number."""
    try:
        return {(mark.start_sec, mark.end_sec): float(mark.text) for mark in marks}
    except ValueError:
        return {}


def write(events: Events, options: Options) -> str:
    """A tier for each label, and further ones for what overlaps in it; scores in a tier of their own."""
    (rows,) = events.by_recording().values()
    first = min(0.0, *(row.start_sec for row in rows)) if rows else 0.0
    last = max((row.end_sec for row in rows), default=0.0)
    last = last if last > first else first + 1.0
    scored = events.scored
    tiers: list[str] = []
    names: set[str] = set()
    for points in (False, True):
        labels: dict[str, list[Event]] = {}
        for row in rows:
            if (row.start_sec == row.end_sec) == points:
                labels.setdefault(row.label, []).append(row)
        for label, own in labels.items():
            shares = lanes([(row.start_sec, max(row.end_sec, nextafter(row.start_sec, inf))) for row in own])
            for lane in range(max(shares) + 1):
                name = _unused(one_line(label), names)
                tier = [row for row, share in zip(own, shares, strict=True) if share == lane]
                tiers.append(_tier(name, tier, [row.label for row in tier], points, first, last))
                if scored:
                    texts = [f"{row.score:.4f}" for row in tier]
                    tiers.append(_tier(name + SCORES, tier, texts, points, first, last))
    head = (
        f'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = {first!r}\nxmax = {last!r}\n'
        f"tiers? <exists>\nsize = {len(tiers)}\nitem []:\n"
    )
    return head + "".join(f"    item [{i}]:\n{tier}" for i, tier in enumerate(tiers, start=1))


def _unused(name: str, names: set[str]) -> str:
    """A name for a tier that no other one has."""
    number, found = 1, name
    while found in names or found + SCORES in names:
        number += 1
        found = f"{name} {number}"
    names |= {found, found + SCORES}
    return found


def _tier(name: str, rows: Sequence[Event], texts: Sequence[str], points: bool, first: float, last: float) -> str:
    marks: list[tuple[float, float, str]] = []
    at = first
    for (start, end, _, _), text in zip(rows, texts, strict=True):
        if not points and start > at:  # intervals leave no gap
            marks.append((at, start, ""))
        marks.append((start, end, text))
        at = end
    if not points and at < last:
        marks.append((at, last, ""))
    kind, list_name = ("TextTier", "points") if points else ("IntervalTier", "intervals")
    lines = [
        f'        class = "{kind}"\n        name = {_quoted(name)}\n        xmin = {first!r}\n        xmax = {last!r}\n'
        f"        {list_name}: size = {len(marks)}\n"
    ]
    for number, (start, end, text) in enumerate(marks, start=1):
        times = (
            f"            number = {start!r}\n            mark"
            if points
            else f"            xmin = {start!r}\n            xmax = {end!r}\n            text"
        )
        lines.append(f"        {list_name} [{number}]:\n{times} = {_quoted(text)}\n")
    return "".join(lines)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
