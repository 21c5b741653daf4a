"""SubRip subtitles: a number, `00:00:01,500 --> 00:00:04,000`, lines of text, an empty line; milliseconds."""

from __future__ import annotations

import re

from potloc_fast.errors import quote
from potloc_fast.formats.events import Events, fault, milliseconds, one_line
from potloc_fast.formats.source import Options, Source

TITLE = "SubRip subtitles"
SUFFIX = ".srt"
OWN: tuple[str, ...] = (".srt",)
SHARED: tuple[str, ...] = ()
SEVERAL = False

_TIMES = re.compile(r"(\d+):(\d\d):(\d\d)[,.](\d{3}) *--> *(\d+):(\d\d):(\d\d)[,.](\d{3})(?: .*)?")


def recognize(source: Source) -> bool:
    """The suffix is SubRip's own."""
    return False


def read(source: Source, options: Options, events: Events) -> None:
    """Take each subtitle; its lines are one label."""
    recording = options.recording or source.path.stem
    events.recordings[recording] = None
    lines = enumerate((line.strip() for line in source.text.split("\n")), start=1)
    for number, text in lines:
        if not text:
            continue
        if text.isdecimal():
            number, text = next(lines, (number, text))
        times = _TIMES.fullmatch(text)
        if times is None:
            raise fault(source.path, number, f"expected HH:MM:SS,mmm --> HH:MM:SS,mmm, got {quote(text)}")
        h, m, s, ms, h2, m2, s2, ms2 = (int(part[:12]) for part in times.groups())
        label = []
        for _, more in lines:
            if not more:
                break
            label.append(more)
        start, end = (
            (3600 * h + 60 * m + s) + ms / 1000,
            (3600 * h2 + 60 * m2 + s2) + ms2 / 1000,
        )
        events.add(number, recording, " ".join(label), start, end)


def write(events: Events, options: Options) -> str:
    """A subtitle for each event. There is no place for scores."""
    ((recording, rows),) = events.by_recording().items()
    parts = []
    for number, (start, end, label, _) in enumerate(rows, start=1):
        times = f"{_clock(milliseconds(recording, start))} --> {_clock(milliseconds(recording, end))}"
        parts.append(f"{number}\n{times}\n{one_line(label)}\n\n")
    return "".join(parts)


def _clock(ms: int) -> str:
    seconds, ms = divmod(ms, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d},{ms:03d}"
