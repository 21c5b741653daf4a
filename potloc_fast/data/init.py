"""A configuration for a folder of one's own recordings, and their table: what `potloc-fast init` writes."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from potloc_fast.config.schema import FolderData, SignalsConfig
from potloc_fast.data.layouts import LAYOUTS, read_listing
from potloc_fast.data.signals.choose import choose_windows
from potloc_fast.data.signals.readers import FORMATS, read_signals
from potloc_fast.data.signals.source import PARTED, group_files
from potloc_fast.data.tables import Row, read_table
from potloc_fast.errors import InputError, shorten
from potloc_fast.files import listed, write_text
from potloc_fast.formats import FORMATS as TOOLS
from potloc_fast.formats import Source, format_of

TABLES = ("points.csv", "instances.csv", "recordings.csv")
HELD_OUT = 4  # every fourth person is there to test in
PERSON = re.compile(
    r"(?:^|[_\-. ])((?:subject|sub|subj|user|person|participant|patient|pat|p|s|id)[-_]?\d+)(?=$|[_\-. ])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Plan:
    """What was understood of a folder, and what is to be written into it.

    Attributes:
        said: a sentence for each thing.
        config: the content of config.yaml.
        recordings: the content of recordings.csv; None where there is one.
    """

    said: tuple[str, ...]
    config: str
    recordings: str | None


def init(folder: Path) -> Plan:
    """Look at a folder, and write config.yaml and, where there is none, recordings.csv into it.

    Raises:
        InputError: it is no folder of recordings, something in it can't be used, or it has a config.yaml.
    """
    path = folder / "config.yaml"
    if os.path.lexists(path):
        raise InputError(f"{path}: expected no such file, as init writes it, found one: go on with check-data {path}")
    plan = look(folder)
    if plan.recordings is not None:
        write_text(folder / "recordings.csv", plan.recordings)
    write_text(path, plan.config)
    return plan


def look(folder: Path) -> Plan:
    """Say what lies in a folder, and what configuration suits it; nothing is written.

    Raises:
        InputError: it is no folder of recordings, or something in it can't be used.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: expected a folder with recordings, found none")
    for name, layout in LAYOUTS.items():
        if name != "plain" and (seen := layout.recognize(folder)) is not None:
            said = (f"layout {name}, seen from {seen}: its own tables say what is there",)
            return Plan(said, _config(folder, name, ["points: file  # or gaussian: drawn from the instances"]), None)
    arrays = listed(folder / "features", "*.npy")
    raw = [path for path in listed(folder / "signals") if path.suffix.lower() in FORMATS]
    if not arrays and not raw:
        loose = [path for path in listed(folder) if path.suffix.lower() in FORMATS and path.name not in TABLES]
        found = (
            f"found {_count(len(loose), 'file')} such as {loose[0].name} beside them: move them there"
            if loose
            else "found none"
        )
        raise InputError(f"{folder}: expected recordings in signals/ (raw) or as .npy files in features/, {found}")
    if arrays:
        return _of_features(folder, arrays)
    return _of_signals(folder, raw)


def _of_features(folder: Path, arrays: Sequence[Path]) -> Plan:
    said = [f"features/: {_count(len(arrays), 'array')}, such as {arrays[0].name}"]
    if listed(folder / "signals"):
        said.append("signals/ is left alone, as there are features: data.windows.stride_sec=SECONDS takes the signals")
    labels, keys, _ = _labels(folder)
    names = [path.stem for path in arrays]
    table, about = _table(folder, names, rates=False)
    keys.append(
        "# grid: {fps: 2}  # snippets a second, where recordings.csv has no snippet_sec: the package can't know it"
    )
    return Plan((*said, *labels, *about), _config(folder, "plain", keys), table)


def _of_signals(folder: Path, raw: Sequence[Path]) -> Plan:
    kinds = Counter(path.suffix.lower() for path in raw)
    count = ", ".join(f"{number} {suffix}" for suffix, number in kinds.items())
    said = [f"raw recordings in signals/: {count}"]
    sensors = find_sensors([path.stem for path in raw])
    files = group_files(raw, sensors, folder / "signals")
    keys = []
    if sensors:
        said.append(f"{len(files)} recordings with a file for each of the sensors {', '.join(sensors)}")
        keys.append(f"signals: {{sensors: {json.dumps(list(sensors))}}}  # what the names of files end with")
    first = next(iter(files.values()))
    channels, rateless = [], False
    for path in first:
        for signal in read_signals(path, SignalsConfig()):
            how = "time stamps" if signal.time_sec is not None else f"{signal.rate_hz:g} Hz" if signal.rate_hz else ""
            rateless = rateless or not how
            channels.append(f"{path.name}: {shorten(', '.join(signal.columns))}; {how or 'no rate'}")
    said += channels
    labels, more, points = _labels(folder)
    keys += more
    table, about = _table(folder, list(files), rates=rateless)
    if rateless and table is not None:
        about.append(
            "no file says how many samples there are in a second: fill in rate_hz in recordings.csv, or set "
            "data.windows.rate_hz where it is the same for all"
        )
    keys += [
        "# what init proposes; check-data and train choose anew what is not set",
        *_windows(folder, sensors, points),
    ]
    return Plan((*said, *labels, *about), _config(folder, "plain", keys), table)


def _windows(folder: Path, sensors: tuple[str, ...], points: Path | None) -> list[str]:
    """The section `windows` with a reason for each key; a comment where the folder does not say enough yet."""
    data = FolderData(layout="plain", root=folder, signals=SignalsConfig(sensors=sensors))
    if points is not None:
        data = data.model_copy(update={"points_file": points})
    elif not (folder / "points.csv").exists():
        data = data.model_copy(update={"points": "gaussian"})
    try:
        chosen, reasons = choose_windows(data, read_listing(data))
    except InputError as error:
        return [f"# windows: {{length_sec: 0.5, stride_sec: 0.1}}  # not known yet: {error}"]
    lines = ["windows:"]
    for reason in reasons:
        key, _, why = reason.partition(": ")
        name, _, value = key.removeprefix("data.windows.").partition("=")
        lines.append(f"  {name}: {value}  # {why}")
    return lines if chosen.windows.resolved else []


def _labels(folder: Path) -> tuple[list[str], list[str], Path | None]:
    """What tables of labels say, the keys that they need, and the file or folder of an annotation tool, if any."""
    said: list[str] = []
    keys: list[str] = []
    for name, what in (("points.csv", "point"), ("instances.csv", "instance")):
        if (folder / name).exists():
            rows = read_table(folder / name, ("recording", "label"))
            classes = sorted({row["label"] for row in rows})
            said.append(f"{name}: {_count(len(rows), what)}; classes: {shorten(', '.join(classes))}")
    if (folder / "points.csv").exists():
        return said, keys, None
    if (folder / "instances.csv").exists():
        keys.append("points: gaussian  # there is no points.csv: drawn from the instances")
        return said, keys, None
    found = _annotations(folder)
    if not found:
        said.append("no labels yet: put a table points.csv with the columns recording, label and time_sec there")
        return said, keys, None
    files, places = list(found), {path.parent for path in found}
    titles = ", ".join(dict.fromkeys(found.values()))
    said.append(f"{_count(len(files), 'file')} ({titles}), such as {files[0].relative_to(folder)}, for the points")
    if len(files) > 1 and (len(places) > 1 or folder in places):
        said.append(
            "move them into a folder of their own, such as annotations/, which data.points_file takes as a whole"
        )
        keys.append("# points_file: annotations  # the folder of these files, once they are in one of their own")
        return said, keys, None
    place = (files[0] if len(files) == 1 else files[0].parent).resolve()
    keys.append(f"points_file: {json.dumps(str(place), ensure_ascii=False)}")
    return said, keys, place


def _annotations(folder: Path) -> dict[Path, str]:
    """The files of annotation tools in a folder and those below it, and what each tool is called.

    Tables with commas are not among them, as any may be one; and in signals/ and features/ are samples.
    """
    found = {}
    for path in (*listed(folder), *listed(folder, "*/*")):
        samples = (
            path.parent != folder and path.parent.name in ("features", "signals") and path.suffix.lower() in FORMATS
        )
        with suppress(InputError):  # JSON of other programs may be odd
            if path.is_file() and not samples and (form := format_of(Source(path))) not in (None, "csv"):
                found[path] = TOOLS[form].TITLE
    return found


def _table(folder: Path, names: Sequence[str], rates: bool) -> tuple[str | None, list[str]]:
    """The table of recordings, where there is none, and what it says."""
    path = folder / "recordings.csv"
    if path.exists():
        rows = read_table(path, ("recording",))
        return None, [f"recordings.csv: {len(rows)} recordings{_split(rows)}; it stays as it is"]
    people = find_people(names)
    scored = (folder / "instances.csv").exists()
    columns = ["recording", "subset", *(["person"] if people else []), *(["rate_hz"] if rates else [])]
    held = set(sorted(set(people.values()))[1::HELD_OUT]) if scored else set()
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    for name in names:
        row = {"recording": name}
        if people:
            row["person"] = people[name]
            row["subset"] = "" if not held else "test" if people[name] in held else "train"
        table.writerow(row)
    about = [f"recordings.csv: {len(names)} recordings"]
    if held:
        about.append(f"names tell of {len(set(people.values()))} people, of which {len(held)} are there to test in")
    elif people:
        about.append(
            f"names tell of {len(set(people.values()))} people; without true boundaries (instances.csv) there is "
            "nothing to score, so that all recordings with points are trained on"
        )
    return text.getvalue(), about


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _split(rows: Sequence[Row]) -> str:
    count = Counter(row["subset"] for row in rows if row["subset"])
    people = len({row["person"] for row in rows if row["person"]})
    parts = [f"{number} {name}" for name, number in count.items()] + [f"{people} people"] * (people > 0)
    return f" ({', '.join(parts)})" if parts else ""


def find_sensors(names: Sequence[str]) -> tuple[str, ...]:
    """What the names of files end with, where each recording has one file for each of several sensors.

    >>> find_sensors(["walk1_phone", "walk1_watch", "walk2_phone", "walk2_watch"])
    ('phone', 'watch')
    >>> find_sensors(["walk1", "walk2"])
    ()
    """
    parts = [re.fullmatch(rf"(.+)[{re.escape(PARTED)}]([^{re.escape(PARTED)}]+)", name) for name in names]
    if not all(parts):
        return ()
    endings: dict[str, set[str]] = {}
    for part in parts:
        if part is not None:
            endings.setdefault(part[2], set()).add(part[1])
    groups = list(endings.values())
    # Numbers count recordings: s01_01 and s01_02 are two of them.
    if len(groups) < 2 or any(group != groups[0] for group in groups) or any(name.isdigit() for name in endings):
        return ()
    return tuple(endings)


def find_people(names: Sequence[str]) -> dict[str, str]:
    """Whose each recording is, where all names tell it and some person has several; else nothing.

    >>> find_people(["s01_01", "s01_02", "s02_01"])
    {'s01_01': 's01', 's01_02': 's01', 's02_01': 's02'}
    """
    found = {name: match[1].lower() for name in names if (match := PERSON.search(name))}
    people = set(found.values())
    return found if len(found) == len(names) and 1 < len(people) < len(names) else {}


def _config(folder: Path, layout: str, keys: Sequence[str]) -> str:
    lines = [
        "# What potloc-fast init understood. Every key and its meaning: potloc_fast/config/schema.py.",
        "# potloc-fast check-data THIS_FILE says what is in the data; potloc-fast train THIS_FILE --run-dir RUN trains",
        "preset: own  # labels from the points and the recordings themselves, small models",
        "data:",
        f"  layout: {layout}",
        f"  root: {json.dumps(str(folder.resolve()), ensure_ascii=False)}",
        *(f"  {key}" for key in keys),
    ]
    return "\n".join([*lines, ""])
