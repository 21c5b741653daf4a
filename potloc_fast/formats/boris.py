"""BORIS' projects (.boris): JSON with an ethogram and the events of observations, seconds with three decimals."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from potloc_fast.errors import InputError, quote
from potloc_fast.formats.events import Event, Events, fault, share_out
from potloc_fast.formats.source import Options, Source

TITLE = "BORIS project"
SUFFIX = ".boris"
OWN: tuple[str, ...] = (".boris",)
SHARED: tuple[str, ...] = (".json",)
SEVERAL = True

_SCORE = re.compile(r"score (-?[\d.]+(?:e-?\d+)?)", re.IGNORECASE)
_OVERLAP = "overlap"  # the set of modifiers that tells events of a behaviour that overlap


def recognize(source: Source) -> bool:
    """Whether there are an ethogram and observations."""
    content = source.json
    return isinstance(content, Mapping) and {"behaviors_conf", "observations"} <= set(content)


def score_in(comment: str) -> float:
    """The score in a comment that `write` made, 1 in any other."""
    found = _SCORE.fullmatch(comment.strip()) if comment else None
    try:
        return 1.0 if found is None else float(found[1])
    except ValueError:
        return 1.0


class Pairs:
    """Events of state behaviours come in pairs: what has begun ends with the next event of the same kind.

    Args:
        events: takes the pairs.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._open: dict[tuple[str, ...], tuple[int | str, float, float]] = {}

    def has_begun(self, key: tuple[str, ...]) -> bool:
        """Whether the events of this recording, label and whatever else tells kinds have one that did not end."""
        return key in self._open

    def begin(self, key: tuple[str, ...], place: int | str, time_sec: float, score: float) -> None:
        """An event begins."""
        if key in self._open:
            raise fault(self._events.path, place, f"expected a STOP of {quote(key[1])} first, got another START")
        self._open[key] = (place, time_sec, score)

    def end(self, key: tuple[str, ...], place: int | str, time_sec: float) -> None:
        """The event ends that has begun."""
        if key not in self._open:
            raise fault(self._events.path, place, f"expected a START of {quote(key[1])} before its STOP, found none")
        _, start, score = self._open.pop(key)
        self._events.add(place, key[0], key[1], start, time_sec, score)

    def close(self) -> None:
        """See that all have ended.

        Raises:
            InputError: one has not.
        """
        for (_, label, *_), (place, *_) in self._open.items():
            raise fault(self._events.path, place, f"expected a STOP of {quote(label)} after its START, found none")


def read(source: Source, options: Options, events: Events) -> None:
    """Take the events of all observations, each a recording. The time offset of an observation is taken off."""
    content = source.json
    if not recognize(source):
        raise InputError(
            f"{source.path}: expected a project with behaviors_conf and observations, got {quote(content)}"
        )
    try:
        kinds = {entry["code"]: "STATE" in entry["type"].upper() for entry in content["behaviors_conf"].values()}
        observations = list(content["observations"].items())
    except (AttributeError, KeyError, TypeError):
        raise InputError(
            f"{source.path}: expected behaviors_conf with a code and a type of each behaviour, and observations by "
            f"their ids, got {quote(content['behaviors_conf'])}"
        ) from None
    pairs = Pairs(events)
    for name, observation in observations:
        events.recordings[name] = None
        where = f"observations[{quote(name)}]"
        rows = observation.get("events") if isinstance(observation, Mapping) else None
        if not isinstance(rows, list):
            raise fault(source.path, where, f"expected events, got {quote(observation)}")
        offset = events.number(where, observation.get("time offset") or 0, "time offset")
        timed = []
        for number, row in enumerate(rows):
            if type(row) is not list or len(row) < 5 or {*map(type, row[1:5])} != {str}:
                expected = "[time, subject, behaviour, modifiers, comment]"
                raise fault(source.path, f"{where}.events[{number}]", f"expected {expected}, got {quote(row)}")
            time = row[0] if type(row[0]) is float else events.number(f"{where}.events[{number}]", row[0], "a time")
            timed.append((round(time - offset, 6), number, row))
        timed.sort(key=itemgetter(0))
        for time, number, (_, subject, code, modifiers, comment, *_) in timed:
            place = f"{where}.events[{number}]"
            if code not in kinds:
                raise fault(source.path, place, f"expected a behaviour of the ethogram, got {quote(code)}")
            if not kinds[code]:
                events.add(place, name, code, time, time, score_in(comment))
                continue
            key = (name, code, subject, modifiers)
            if pairs.has_begun(key):
                pairs.end(key, place, time)
            else:
                pairs.begin(key, place, time, score_in(comment))
    pairs.close()


def write(events: Events, options: Options) -> str:
    """An observation for each recording, and an ethogram of all labels; scores as comments.

    Behaviours are point events where all events of their label are points. BORIS pairs starts and stops of the same
    behaviour, subject and modifiers, so that what overlaps has a modifier, which the ethogram defines.
    """
    found, scored = events.by_recording(), events.scored
    states = {row.label for rows in found.values() for row in rows if row.start_sec < row.end_sec}
    observations: list[str] = []
    most: dict[str, int] = {}  # modifiers of each label
    for name, rows in found.items():
        timed: list[tuple[float, str]] = []
        by_label: dict[str, list[Event]] = {}
        for row in rows:
            by_label.setdefault(row.label, []).append(row)
        for label, own in by_label.items():
            shares = [own]
            if label in states:
                spans = [(round(row.start_sec, 3), round(row.end_sec, 3)) for row in own]
                shares = share_out(own, [(start, max(end, start + 0.0005)) for start, end in spans])
            most[label] = max(most.get(label, 0), len(shares) - 1)
            for share, part in enumerate(shares):
                head = f'"", {json.dumps(label)}, "{share + 1 if share else ""}", '
                for start, end, _, score in part:
                    comment = f'"score {score:.4f}"' if scored else '""'
                    timed.append((round(start, 3), head + comment))
                    if label in states:
                        timed.append((round(end, 3), head + '""'))
        timed.sort(key=itemgetter(0))
        observation = {
            "file": {str(player): [] for player in range(1, 9)},
            "type": "LIVE",  # without media: whoever has them names them when editing the observation
            "date": "2000-01-01T00:00:00",
            "description": "",
            "time offset": 0.0,
            "observation time interval": [0, 0],
            "independent_variables": {},
            "scan_sampling_time": 0,
            "start_from_current_time": False,
            "start_from_current_epoch_time": False,
            "close_behaviors_between_videos": False,
            "visualize_spectrogram": False,
            "visualize_waveform": False,
            "media_info": {"length": {}, "fps": {}, "hasVideo": {}, "hasAudio": {}, "offset": {}},
        }
        listed = ", ".join([f"[{time!r}, {rest}]" for time, rest in timed])
        observations.append(f'{json.dumps(name)}: {json.dumps(observation)[:-1]}, "events": [{listed}]}}')
    project = {
        "time_format": "s",
        "project_date": "2000-01-01T00:00:00",
        "project_name": "",
        "project_description": "",
        "project_format_version": "7.0",
        "subjects_conf": {},
        "behaviors_conf": {
            str(number): {
                "type": "State event" if label in states else "Point event",
                "key": "",
                "code": label,
                "description": "",
                "category": "",
                "excluded": "",
                "coding map": "",
                "modifiers": _modifiers(share),
                "color": "",
            }
            for number, (label, share) in enumerate(most.items())
        },
        "behavioral_categories": [],
        "independent_variables": {},
        "coding_map": {},
        "behaviors_coding_map": [],
        "converters": {},
    }
    return f'{json.dumps(project)[:-1]}, "observations": {{{", ".join(observations)}}}}}\n'


def _modifiers(share: int) -> dict[str, Any]:
    values = [str(number + 2) for number in range(share)]
    return (
        {"0": {"name": _OVERLAP, "description": "", "type": 0, "ask at stop": False, "values": values}} if share else {}
    )
