"""The common form of all formats: labelled events of recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

from potloc_fast.errors import InputError, quote, shorten
from potloc_fast.names import normalize
from potloc_fast.numbers import to_number

Item = TypeVar("Item")
Place: TypeAlias = int | str  # a line, counted from 1; or what says where in other words


def fault(path: str | Path, place: Place, message: str) -> InputError:
    """What is wrong at a place in a file, to be raised."""
    return InputError(f"{path}: {f'line {place}' if isinstance(place, int) else shorten(place)}: {message}")


class Event(NamedTuple):
    """An event of a recording; a point where it ends when it starts."""

    start_sec: float
    end_sec: float
    label: str
    score: float


@dataclass(eq=False)
class Events:
    """Labelled segments and points of recordings, a column each, as they stand in a file.

    Attributes:
        path: the file or folder; names it in errors.
        recordings: the names of all recordings, also of those without events.
        recording: the recording of each event.
        label: its label.
        start_sec: its start in seconds.
        end_sec: its end, which is the start of a point.
        score: its score; 1 where there is none.
        notes: a sentence for each thing that was left out when they were read.
    """

    path: Path
    recordings: dict[str, None] = field(default_factory=dict)
    recording: list[str] = field(default_factory=list)
    label: list[str] = field(default_factory=list)
    start_sec: list[float] = field(default_factory=list)
    end_sec: list[float] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)  # what a label is compared as

    def __len__(self) -> int:
        return len(self.label)

    def add(
        self, place: Place, recording: str, label: object, start_sec: float, end_sec: float, score: float = 1.0
    ) -> None:
        """Add an event that was found at a place in the file.

        Raises:
            InputError: it has no label, it ends before it starts, or a number is not finite.
        """
        name = self._names.get(label) if isinstance(label, str) else None
        if name is None:
            name = normalize(label.strip()) if isinstance(label, str) else ""
            if not name:
                raise fault(self.path, place, f"expected a label, got {quote(label)}")
            self._names[label] = name  # type: ignore[index]  # a str, as it has a name
        if not (-inf < start_sec <= end_sec < inf and -inf < score < inf):
            raise fault(
                self.path,
                place,
                f"expected finite times and an end that is not before the start, got [{start_sec:g}, {end_sec:g}] s "
                f"with score {score:g}",
            )
        if recording not in self.recordings:
            self.recordings[recording] = None
        self.recording.append(recording)
        self.label.append(name)
        self.start_sec.append(start_sec)
        self.end_sec.append(end_sec)
        self.score.append(score)

    def number(self, place: Place, text: object, what: str) -> float:
        """The number that stands at a place.

        Raises:
            InputError: there is something else.
        """
        try:
            return to_number(text)
        except (TypeError, ValueError, OverflowError):
            raise fault(self.path, place, f"expected a number as {what}, got {quote(text)}") from None

    @property
    def scored(self) -> bool:
        """Whether scores say anything."""
        return any(score != 1 for score in self.score)

    def over(self, min_score: float) -> Events:
        """The events that score no less."""
        kept = [i for i, score in enumerate(self.score) if score >= min_score]
        return Events(
            self.path,
            dict(self.recordings),
            [self.recording[i] for i in kept],
            [self.label[i] for i in kept],
            [self.start_sec[i] for i in kept],
            [self.end_sec[i] for i in kept],
            [self.score[i] for i in kept],
            list(self.notes),
        )

    def by_recording(self) -> dict[str, list[Event]]:
        """The events of each recording, by time."""
        found: dict[str, list[Event]] = {name: [] for name in self.recordings}
        rows = map(Event._make, zip(self.start_sec, self.end_sec, self.label, self.score, strict=True))
        for name, row in zip(self.recording, rows, strict=True):
            found[name].append(row)
        for rows_of_one in found.values():
            rows_of_one.sort()
        return found


def share_out(items: Sequence[Item], spans: Sequence[tuple[float, float]]) -> list[list[Item]]:
    """Share items out so that no two overlap that are in the same list, for formats that can't overlap them.

    Args:
        items: what is shared out.
        spans: start and end of each, by start; each ends after it starts.

    Returns:
        As few lists as are needed; each item is in the first one that was free.

    >>> share_out("abc", [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0)])
    [['a', 'c'], ['b']]
    """
    busy: list[tuple[float, int]] = []  # by end
    free: list[int] = []
    found: list[list[Item]] = []
    for item, (start, end) in zip(items, spans, strict=True):
        while busy and busy[0][0] <= start:
            heappush(free, heappop(busy)[1])
        if free:
            lane = heappop(free)
            found[lane].append(item)
        else:
            lane = len(found)
            found.append([item])
        heappush(busy, (end, lane))
    return found


def milliseconds(recording: str, time_sec: float) -> int:
    """A time in whole milliseconds, for formats that know no others.

    Raises:
        InputError: it is before the start of the recording, for which these formats have no form.
    """
    if time_sec < 0:
        raise InputError(f"{recording}: expected times of 0 s or later, which can be written, got {time_sec:g} s")
    return round(1000 * time_sec)


def one_line(text: str) -> str:
    r"""Text for a cell of a line: what can't be printed, such as a tab, becomes a blank.

    >>> one_line("stand\tup")
    'stand up'
    """
    return text if text.isprintable() else " ".join("".join(c if c.isprintable() else " " for c in text).split())
