"""ELAN's .eaf: tiers of annotations in XML, milliseconds."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import NamedTuple
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from potloc_fast.errors import quote
from potloc_fast.formats.events import Event, Events, fault, milliseconds, one_line, share_out
from potloc_fast.formats.source import Options, Source
from potloc_fast.formats.textgrid import SCORES

TITLE = "ELAN"
SUFFIX = ".eaf"
OWN: tuple[str, ...] = (".eaf",)
SHARED: tuple[str, ...] = ()
SEVERAL = False

MOST_DIGITS = 15  # of a time that a float holds to the millisecond
BLOCK = 1 << 20  # characters that the XML parser is given at a time
SHORTEST = 1  # ms: ELAN knows no points; what is no longer than this is one


class _Annotation(NamedTuple):
    line: int
    name: str  # ANNOTATION_ID
    slots: tuple[str, str] | None  # of an annotation of its own
    refers: str  # to the annotation that another one belongs to
    text: str


def recognize(source: Source) -> bool:
    """The suffix is ELAN's own."""
    return False


class _Document:
    """What an .eaf file says, gathered by the XML parser."""

    def __init__(self, source: Source) -> None:
        self.path = source.path
        self.slots: dict[str, int | None] = {}
        self.tiers: dict[str, list[_Annotation]] = {}
        self.parents: dict[str, str] = {}
        self._tier: list[_Annotation] | None = None
        self._open: tuple[int, str, tuple[str, str] | None, str] | None = None
        self._text: list[str] = []
        self._parser = expat.ParserCreate("utf-8")  # whatever the first line names: the text is decoded
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._begin
        self._parser.StartDoctypeDeclHandler = self._refuse
        try:
            for begin in range(0, len(source.text), BLOCK):
                self._parser.Parse(source.text[begin : begin + BLOCK].encode("utf-8", "surrogatepass"), False)
            self._parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise fault(self.path, error.lineno, f"expected XML, got: {expat.ErrorString(error.code)}") from None

    @property
    def _line(self) -> int:
        return self._parser.CurrentLineNumber

    def _refuse(self, *_: object) -> None:
        """A document type may define entities, which grow without bound or name other files; ELAN writes none."""
        raise fault(self.path, self._line, "expected no document type (DOCTYPE), as ELAN writes none, found one")

    def _begin(self, tag: str, _: object) -> None:
        if tag != "ANNOTATION_DOCUMENT":
            raise fault(self.path, self._line, f"expected an ANNOTATION_DOCUMENT, got {quote(tag)}")
        self._parser.StartElementHandler = self._start

    def _start(self, tag: str, given: dict[str, str]) -> None:
        try:
            if tag == "ANNOTATION":  # those that there are most of come first
                return
            if tag == "TIME_SLOT":
                value = given.get("TIME_VALUE")
                if value is not None and not (value.isdecimal() and len(value) <= MOST_DIGITS):
                    raise fault(self.path, self._line, f"expected milliseconds, got {quote(value)}")
                self.slots[given["TIME_SLOT_ID"]] = None if value is None else int(value)
            elif tag == "ANNOTATION_VALUE":  # what lies between elements elsewhere, and their ends, say nothing
                self._text.clear()
                self._parser.CharacterDataHandler = self._text.append
                self._parser.EndElementHandler = self._end
            elif tag == "ALIGNABLE_ANNOTATION":
                slots = (given["TIME_SLOT_REF1"], given["TIME_SLOT_REF2"])
                self._open = (self._parser.CurrentLineNumber, given["ANNOTATION_ID"], slots, "")
            elif tag == "REF_ANNOTATION":
                self._open = (self._parser.CurrentLineNumber, given["ANNOTATION_ID"], None, given["ANNOTATION_REF"])
            elif tag == "TIER":
                self._tier = self.tiers.setdefault(given["TIER_ID"], [])
                if "PARENT_REF" in given:
                    self.parents[given["TIER_ID"]] = given["PARENT_REF"]
            elif tag == "HEADER" and given.get("TIME_UNITS", "milliseconds") != "milliseconds":
                raise fault(self.path, self._line, f"expected times in milliseconds, got {quote(given['TIME_UNITS'])}")
        except KeyError as error:
            raise fault(self.path, self._line, f"expected {error.args[0]} in {tag}, found none") from None

    def _end(self, tag: str) -> None:
        if tag == "ANNOTATION_VALUE":
            self._parser.CharacterDataHandler = self._parser.EndElementHandler = None
            if self._open is not None and self._tier is not None:
                self._tier.append(_Annotation(*self._open, "".join(self._text).strip()))
                self._open = None


def read(source: Source, options: Options, events: Events) -> None:
    """Take the annotations of all tiers that have times of their own.

    A label is the text of an annotation, or the name of its tier where it has none. A dependent tier whose name is that
    of its parent with " score" behind it holds scores. Other dependent tiers and annotations that were not aligned are
    left out, with a note.
    """
    document = _Document(source)
    recording = options.recording or source.path.stem
    events.recordings[recording] = None
    left_out = 0
    for name, tier in document.tiers.items():
        parent = document.parents.get(name)
        if parent is not None and name == parent + SCORES:
            continue
        scores = {
            item.refers: events.number(item.line, item.text, "a score")
            for item in (document.tiers.get(name + SCORES, ()) if document.parents.get(name + SCORES) == name else ())
        }
        for line, key, slots, _, text in tier:
            if slots is None:
                left_out += 1
                continue
            try:
                start, end = document.slots[slots[0]], document.slots[slots[1]]
            except KeyError as error:
                raise fault(source.path, line, f"expected a time slot of the file, got {quote(*error.args)}") from None
            if start is None or end is None:
                left_out += 1
                continue
            point = 0 <= end - start <= SHORTEST
            end = start if point else end
            events.add(line, recording, text or name, start / 1000, end / 1000, scores.get(key, 1.0))
    if left_out:
        events.notes.append(f"{source.path}: annotations left out that have no times of their own: {left_out}")


_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="{date}" FORMAT="3.0" VERSION="3.0" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">
    <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">
        <PROPERTY NAME="lastUsedAnnotationId">{annotations}</PROPERTY>
    </HEADER>
"""  # noqa: E501
_TAIL = """    <LINGUISTIC_TYPE GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="default-lt" TIME_ALIGNABLE="true"/>
    <LINGUISTIC_TYPE CONSTRAINTS="Symbolic_Association" GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="score" TIME_ALIGNABLE="false"/>
    <CONSTRAINT DESCRIPTION="1-1 association with a parent annotation" STEREOTYPE="Symbolic_Association"/>
</ANNOTATION_DOCUMENT>
"""  # noqa: E501


def write(events: Events, options: Options) -> str:
    """A tier for each label, and further ones for what overlaps in it; scores in a dependent tier.

    A point lasts a millisecond, as nothing shorter can be written.
    """
    ((recording, rows),) = events.by_recording().items()
    labels: dict[str, list[tuple[int, int, Event]]] = {}
    for row in rows:
        start = milliseconds(recording, row.start_sec)
        end = max(milliseconds(recording, row.end_sec), start + SHORTEST)
        labels.setdefault(row.label, []).append((start, end, row))
    slots: list[int] = []
    tiers: list[str] = []
    used = 0  # annotations
    scored = events.scored
    taken: set[str] = set()
    for label, own in labels.items():
        own.sort()  # rounding may have changed the order
        text = f"<ANNOTATION_VALUE>{escape(one_line(label))}</ANNOTATION_VALUE>"
        for tier in share_out(own, [(start, end) for start, end, _ in own]):
            name, number = one_line(label), 1
            while name in taken or name + SCORES in taken:
                number += 1
                name = f"{one_line(label)} {number}"
            taken |= {name, name + SCORES}
            tiers.append(f'    <TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID={quoteattr(name)}>\n')
            tiers += [
                f'        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a{i}" TIME_SLOT_REF1="ts{slot}" '
                f'TIME_SLOT_REF2="ts{slot + 1}">{text}</ALIGNABLE_ANNOTATION></ANNOTATION>\n'
                for i, slot in enumerate(range(len(slots) + 1, len(slots) + 2 * len(tier) + 1, 2), start=used + 1)
            ]
            slots += [time for start, end, _ in tier for time in (start, end)]
            first, used = used, used + len(tier)
            if scored:
                tiers.append(
                    f'    </TIER>\n    <TIER LINGUISTIC_TYPE_REF="score" PARENT_REF={quoteattr(name)} '
                    f"TIER_ID={quoteattr(name + SCORES)}>\n"
                )
                tiers += [
                    f'        <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a{used + i}" ANNOTATION_REF="a{first + i}">'
                    f"<ANNOTATION_VALUE>{row.score:.4f}</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>\n"
                    for i, (_, _, row) in enumerate(tier, start=1)
                ]
                used += len(tier)
            tiers.append("    </TIER>\n")
    order = "".join(
        [
            f'        <TIME_SLOT TIME_SLOT_ID="ts{i + 1}" TIME_VALUE="{slots[i]}"/>\n'
            for i in sorted(range(len(slots)), key=slots.__getitem__)
        ]
    )
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    head = _HEAD.format(date=date, annotations=used)
    return f"{head}    <TIME_ORDER>\n{order}    </TIME_ORDER>\n{''.join(tiers)}{_TAIL}"
