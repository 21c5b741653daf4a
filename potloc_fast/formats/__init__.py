"""The files of annotation tools, read into and written from one form, `Events`.

A format is a module with what `Format` lists. This package knows files alone, and no other one of the library: data,
evaluation and the command line take it up.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from potloc_fast.errors import InputError, quote
from potloc_fast.files import listed, without_collection, write_text
from potloc_fast.formats import (
    audacity,
    boris,
    boris_export,
    elan,
    label_studio,
    raven,
    srt,
    table,
    textgrid,
    via,
)
from potloc_fast.formats.events import Event, Events
from potloc_fast.formats.source import Options, Source
from potloc_fast.names import file_name

__all__ = ["FORMATS", "Event", "Events", "Options", "Source", "format_for", "format_of", "read", "write"]


class Format(Protocol):
    """What a module of this package offers."""

    @property
    def TITLE(self) -> str:
        """What its files are called."""

    @property
    def SUFFIX(self) -> str:
        """What the names of files end with that are written."""

    @property
    def OWN(self) -> tuple[str, ...]:
        """What the names of files end with that are of this format and no other, in lower case."""

    @property
    def SHARED(self) -> tuple[str, ...]:
        """What the names of files of other formats may end with as well: `recognize` tells."""

    @property
    def SEVERAL(self) -> bool:
        """Whether a file holds several recordings."""

    def recognize(self, source: Source) -> bool:
        """Whether a file with a shared suffix is of this format."""

    def read(self, source: Source, options: Options, events: Events) -> None:
        """Add what a file holds to `events`."""

    def write(self, events: Events, options: Options) -> str:
        """The content of a file, of a single recording where it holds one."""


FORMATS: dict[str, Format] = {
    "csv": table,
    "boris": boris,
    "boris-export": boris_export,
    "elan": elan,
    "textgrid": textgrid,
    "audacity": audacity,
    "raven": raven,
    "srt": srt,
    "label-studio": label_studio,
    "via": via,
}


def format_of(source: Source) -> str | None:
    """The format of a file that is there, by its content where several formats share its suffix; None if none."""
    for name, form in FORMATS.items():
        if source.name.endswith(form.SHARED) and form.recognize(source):
            return name
    return next((name for name, form in FORMATS.items() if source.name.endswith(form.OWN)), None)


def format_for(path: Path) -> str | None:
    """The format that the name of a file to be written asks for; None if none."""
    name = path.name.lower()
    found = [
        (len(form.SUFFIX), key) for key, form in FORMATS.items() if form.SUFFIX and name.endswith(form.SUFFIX.lower())
    ]
    return max(found)[1] if found else None


@without_collection()
def read(path: str | Path | Source, form: str | None = None, options: Options | None = None) -> Events:
    """Read a file, or a folder of files.

    Args:
        path: a file; or a folder, in which those files are read whose suffix is one of a format.
        form: a key of `FORMATS`; None finds out.
        options: what the files themselves don't say.

    Raises:
        InputError: there is no such file, it is of no format that is known, or malformed; or two files of a folder hold
            the same recording.
    """
    source = path if isinstance(path, Source) else Source(path)
    options = options or Options()
    if not os.path.isdir(source.path):
        return _read_file(source, form, options)
    if options.recording is not None:
        raise InputError(f"--recording: expected a single file, which it names, got the folder {source.path}")
    known = tuple({suffix for module in FORMATS.values() for suffix in (*module.OWN, *module.SHARED)})
    files = [file for file in listed(source.path) if file.is_file() and file.name.lower().endswith(known)]
    if not files:
        raise InputError(f"{source.path}: expected files of annotations in the folder, found none")
    found = Events(source.path)
    owner: dict[str, Path] = {}
    for file in files:
        own = _read_file(Source(file), form, options)
        for name in own.recordings:
            if owner.setdefault(name, file) != file:
                raise InputError(
                    f"{file}: expected each recording in one file, found {quote(name)} in {owner[name].name}"
                )
        found.recordings |= own.recordings
        for column in ("recording", "label", "start_sec", "end_sec", "score", "notes"):
            getattr(found, column).extend(getattr(own, column))
    return found


def _read_file(source: Source, form: str | None, options: Options) -> Events:
    form = form or format_of(source)
    if options.columns and form not in ("csv", "raven"):
        form = "csv"
    if form is None:
        titles = ", ".join(module.TITLE for module in FORMATS.values())
        raise InputError(f"{source.path}: expected a file of {titles}, found none of them: --from says which")
    events = Events(source.path)
    FORMATS[form].read(source, options, events)
    if options.recording is not None and options.recording not in events.recordings:
        raise InputError(
            f"{source.path}: expected a file that names no recording, as --recording does, got one that does"
        )
    return events


@without_collection()
def write(path: str | Path, events: Events, form: str | None = None, options: Options | None = None) -> Path:
    """Write a file; or, where the format holds one recording a file and there are several, a folder of files.

    Args:
        path: the file. A folder for several is called as it, without its suffix; one that is there is written into.
        events: what to write.
        form: a key of `FORMATS`; None takes the suffix of the path.
        options: frames a second, for formats that count frames.

    Returns:
        The file or the folder.

    Raises:
        InputError: the suffix is of no format, or there can't be such a file.
    """
    path = Path(path)
    form = form or format_for(path)
    if form is None:
        known = ", ".join(sorted(module.SUFFIX for module in FORMATS.values() if module.SUFFIX))
        raise InputError(f"{path}: expected one of the suffixes {known}, got {quote(path.suffix)}")
    if not events.recordings:
        raise InputError(f"{events.path}: expected events to write, found none")
    module, options = FORMATS[form], options or Options()
    if module.SEVERAL or (len(events.recordings) == 1 and not path.is_dir()):
        write_text(path, module.write(events, options))
        return path
    named = path.name.lower().endswith(module.SUFFIX.lower()) and not path.is_dir()
    folder = path.with_name(path.name[: -len(module.SUFFIX)]) if named else path
    texts = {}
    for name, rows in events.by_recording().items():
        one = Events(events.path, {name: None})
        for start, end, label, score in rows:
            one.add(name, name, label, start, end, score)
        texts[folder / f"{file_name(name)}{module.SUFFIX}"] = module.write(one, options)
    for file, text in texts.items():
        write_text(file, text)
    return folder
