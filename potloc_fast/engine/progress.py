"""How far work is: a bar on a terminal, and lines in a log file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

Item = TypeVar("Item")

MINUTE = 60.0
SHARE = 20  # a line for each twentieth, ...
LEAST = 5.0  # ... but no more often than in so many seconds


class Progress:
    """Shows how far work is: as a bar on a terminal, else a line every minute or twentieth of it.

    Args:
        what: the name of the work.
        total: number of steps.
        completed: steps that were done earlier.
        shown: False shows nothing, in processes that are not the first.
    """

    def __init__(self, what: str, total: int, completed: int = 0, shown: bool = True) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        console = Console()
        self._bar = Bar(*columns, console=console, disable=not (shown and console.is_terminal))
        self._task = self._bar.add_task(what, total=total, completed=completed, words="")
        self._lines = shown and not console.is_terminal
        self.what, self.total, self.first = what, total, completed
        self._begin = self._told = time.perf_counter()
        self._told_of = completed

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, completed: int, words: str = "") -> None:
        """Say how many steps are done, and a few words on the last one."""
        self._bar.update(self._task, completed=completed, words=words)
        now = time.perf_counter()
        waited, done = now - self._told, (completed - self._told_of) * SHARE >= self.total
        if self._lines and (completed == self.total or waited >= MINUTE or (done and waited >= LEAST)):
            taken = now - self._begin
            left = taken / max(completed - self.first, 1) * (self.total - completed)
            rest = f"about {duration(left)} left" if completed < self.total else f"took {duration(taken)}"
            line = f"{self.what}: {completed} of {self.total} ({100 * completed // self.total}%)"
            print(", ".join(filter(None, (line, words, rest))), flush=True)
            self._told, self._told_of = now, completed


def tracked(what: str, items: Sequence[Item]) -> Iterator[Item]:
    """Give one item after the other, and show how far it is."""
    with Progress(what, len(items)) as progress:
        for number, item in enumerate(items, start=1):
            yield item
            progress.update(number)


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(41.6), duration(130), duration(7260)
    ('42 s', '2 min 10 s', '2 h 1 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
