"""Praat's TextGrid: interval and point tiers, seconds in double precision.

Praat reads a text file as a row of values: text in double quotes, free-standing numbers and `<flags>`. All else
explains them. So the long form and the short form, which leaves the explanations out, are the same row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import inf, nextafter
from typing import NamedTuple

from potloc_fast.errors import InputError, quote
from potloc_fast.formats.events import Event, Events, fault, one_line, share_out
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
_TIME = r"([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)"
_MARK = re.compile(  # a mark in the long form, which is most of most files: quicker at once than value by value
    rf"\s+(?:intervals|points) \[\d+\]:\s+(?:xmin|number) = {_TIME}\s+(?:xmax = {_TIME}\s+)?(?:text|mark) = "
    r'"([^"]*(?:""[^"]*)*)"'
)


class _Mark(NamedTuple):
    place: int  # where its text stands
    start_sec: float
    end_sec: float
    text: str


class _Span(NamedTuple):
    start_sec: float
    end_sec: float
    start: str
    end: str


class _Values:
    """The values of a text file, one after the other."""

    def __init__(self, source: Source) -> None:
        self.path = source.path
        self._text = source.text
        self._end = 0  # of what was read
        self.at = 0

    def line(self, at: int) -> int:
        return self._text.count("\n", 0, at) + 1

    def _next(self, group: int, what: str) -> str:
        while match := _VALUE.search(self._text, self._end):
            self.at, self._end = match.span()
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

    def marks(self, intervals: bool) -> Iterator[_Mark]:
        """The marks of a tier of intervals or of points, without those intervals that have no text."""
        for _ in range(self.count("the number of marks")):
            found = _MARK.match(self._text, self._end)
            if found is not None and (found[2] is not None) == intervals:
                self.at, self._end = found.start(3), found.end()
                start, end = float(found[1]), float(found[2] or found[1])
                text = found[3].replace('""', '"').strip()
            else:
                start = self.number("a time")
                end = self.number("a time") if intervals else start
                text = self.text("the text of a mark").strip()
            if text or not intervals:
                yield _Mark(self.at, start, end, text)


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
            tiers.setdefault(name, []).extend(values.marks(kind == "IntervalTier"))
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
                events.add(0, recording, text or name, start, end, score)
            except InputError:  # lines are counted where they are needed alone
                events.add(values.line(place), recording, text or name, start, end, score)


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
            text = _quoted(label)
            for tier in share_out(own, [(row[0], max(row[1], nextafter(row[0], inf))) for row in own]):
                name = _unused(one_line(label), names)
                spans = [_Span(row.start_sec, row.end_sec, repr(row.start_sec), repr(row.end_sec)) for row in tier]
                tiers.append(_tier(name, spans, [text] * len(tier), points, first, last))
                if scored:
                    scores = [f'"{row.score:.4f}"' for row in tier]
                    tiers.append(_tier(name + SCORES, spans, scores, points, first, last))
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


def _tier(name: str, spans: Sequence[_Span], texts: Sequence[str], points: bool, first: float, last: float) -> str:
    """A tier of the marks with these texts, in quotes; intervals leave no gap."""
    marks: list[str] = []
    at, since = first, repr(first)
    for (start, end, begin, until), text in zip(spans, texts, strict=True):
        if points:
            marks.append(f"number = {begin}\n            mark = {text}")
            continue
        if start > at:
            marks.append(f'xmin = {since}\n            xmax = {begin}\n            text = ""')
        marks.append(f"xmin = {begin}\n            xmax = {until}\n            text = {text}")
        at, since = end, until
    if not points and at < last:
        marks.append(f'xmin = {since}\n            xmax = {last!r}\n            text = ""')
    kind, list_name = ("TextTier", "points") if points else ("IntervalTier", "intervals")
    head = (
        f'        class = "{kind}"\n        name = {_quoted(name)}\n        xmin = {first!r}\n        xmax = {last!r}\n'
        f"        {list_name}: size = {len(marks)}\n"
    )
    return head + "".join(
        [f"        {list_name} [{number}]:\n            {mark}\n" for number, mark in enumerate(marks, start=1)]
    )


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
