"""A file that is to be read, its text and JSON taken in once."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from potloc_fast.errors import InputError, quote, shorten
from potloc_fast.files import read_json, read_text
from potloc_fast.formats.events import fault
from potloc_fast.names import normalize


@dataclass(frozen=True)
class Options:
    """What a file itself may not say.

    Attributes:
        recording: the recording of a file that names none; by default the file's stem.
        columns: the column of a table for each of recording, label, start, end, time and score, where it has another
            name than usual.
        fps: frames a second, for formats that count frames.
    """

    recording: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    fps: float | None = None


class Source:
    """A file, read when its content is first asked for."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def name(self) -> str:
        """Its name in lower case, by which formats know their suffixes."""
        return self.path.name.lower()

    @cached_property
    def text(self) -> str:
        """Its text, UTF-8 or UTF-16, as `normalize` has it."""
        return normalize(read_text(self.path))

    @cached_property
    def json(self) -> Any:
        """Its content, where it is JSON."""
        return read_json(self.path)

    @property
    def first_lines(self) -> list[str]:
        """The lines that tell what it is."""
        return self.text[:100_000].split("\n")

    @property
    def head(self) -> str:
        """Its first line that is not empty."""
        return next(filter(str.strip, self.first_lines), "")


def media_stem(address: str) -> str:
    r"""What a recording is called whose media file lies at a path or URL.

    >>> media_stem("https://example.org/v/walk%201.mp4?signed=1"), media_stem(r"C:\walk.wav")
    ('walk 1', 'walk')
    """
    if "?d=" in address:  # Label Studio's local files
        address = unquote(address.partition("?d=")[2])
    elif "://" in address:
        address = unquote(address.partition("?")[0].partition("#")[0])
    return PurePosixPath(address.replace("\\", "/")).stem


class Table:
    """A table with commas or tabs, whose columns a line names, perhaps after other lines.

    Attributes:
        path: names it in errors.
        before: the lines before the one that names the columns.
        line: that one, counted from 1.
        names: the names of the columns.

    Args:
        source: the file.
        columns: names of which that line has all.

    Raises:
        InputError: there is no such line.
    """

    def __init__(self, source: Source, columns: Sequence[str]) -> None:
        self.path = source.path
        self.before: list[list[str]] = []
        head = next((line for line in source.first_lines if all(name in line for name in columns)), source.head)
        self._reader = csv.reader(io.StringIO(source.text, newline=""), delimiter="\t" if "\t" in head else ",")
        for _, cells in self._lines():
            self.names = [cell.strip() for cell in cells]
            self.line = self._reader.line_num
            if set(columns) <= set(self.names):
                break
            self.before.append(self.names)
        else:
            found = shorten(source.head) or "none"
            raise InputError(f"{self.path}: expected a line with the columns {', '.join(columns)}, found {found}")
        for name in columns:
            if self.names.count(name) > 1:
                raise fault(self.path, self.line, f"expected each column once, found {quote(name)} twice")

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        try:
            for cells in self._reader:
                yield self._reader.line_num, cells
        except csv.Error as error:
            raise fault(self.path, self._reader.line_num, f"expected cells of a table, got: {error}") from None

    def index(self, name: str) -> int | None:
        """Where a column stands; None where there is none."""
        return self.names.index(name) if name in self.names else None

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """The lines after the names of the columns, those left out that are empty: line and cells.

        Cells that a line lacks at its end are empty.

        Raises:
            InputError: a line has more cells than there are columns.
        """
        width = len(self.names)
        for line, cells in self._lines():
            if len(cells) != width:
                if any(map(str.strip, cells[width:])):
                    found = shorten(",".join(cells))
                    raise fault(self.path, line, f"expected {width} cells, got {len(cells)}: {found}")
                if not any(map(str.strip, cells)):
                    continue
                cells += [""] * (width - len(cells))
            yield line, cells
