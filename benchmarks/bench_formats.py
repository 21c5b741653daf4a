"""Annotations of other tools: 1,000,000 events from a table to each format, and back."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache, partial
from pathlib import Path

import numpy as np

from benchmarks.harness import Case, Scaling, Work
from potloc_fast.convert import convert
from potloc_fast.formats import FORMATS, Events, write

EVENTS = 1_000_000


@cache
def table() -> Path:
    """A CSV of segments of one recording that overlap within their label, with scores, as detections do."""
    rng = np.random.default_rng(0)
    start = np.cumsum(rng.random(EVENTS))
    events = Events(Path("made"), {"walk": None}, ["walk"] * EVENTS)
    events.label = rng.choice(["sit", "stand", "walk", "run", "turn"], EVENTS).tolist()
    events.start_sec, events.end_sec = start.tolist(), (start + 3 * rng.random(EVENTS)).tolist()
    events.score = rng.random(EVENTS).round(4).tolist()
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return write(folder / "walk.csv", events)


def conversion(suffix: str, back: bool) -> Work:
    """From the table to another format, or from that to a table."""
    other, again = table().with_suffix(suffix), table().with_name("again.csv")
    if not back:
        return Work(lambda: convert(table(), other), {}, lambda *_: None)
    convert(table(), other)
    return Work(lambda: convert(other, again), {}, lambda *_: None)


SUFFIXES = {name: form.SUFFIX for name, form in FORMATS.items() if form.SUFFIX and name != "csv"} | {"json": ".json"}
CASES: list[Case | Scaling] = [
    Case(
        f"convert-{'from' if back else 'to'}-{name}",
        f"{name} to CSV" if back else f"CSV to {name}",
        f"{EVENTS:,} events",
        "",
        partial(conversion, suffix, back),
        limit_s=10,
        slow=True,
    )
    for back in (False, True)
    for name, suffix in SUFFIXES.items()
]
