"""Tables in CSV files."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from potloc_fast.errors import InputError, quote, shorten
from potloc_fast.files import read_text
from potloc_fast.names import find_name, normalize
from potloc_fast.numbers import to_number

Item = TypeVar("Item")


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        path: the file.
        line: its line there, counted from 1.
        cells: the text of each column, without blanks around it.
    """

    path: Path
    line: int
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        """The text of a column; "" where it is empty or there is no such column."""
        return self.cells.get(column, "")

    def text(self, column: str) -> str:
        """The text of a column that may not be empty.

        Raises:
            InputError: it is.
        """
        if not self[column]:
            raise InputError(f"{self.path}: expected a {column} in line {self.line}, found none")
        return self[column]

    def number(self, column: str) -> float:
        """The number in a column.

        Raises:
            InputError: there is something else, or it is not finite.
        """
        try:
            number = to_number(self[column])
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(
                f"{self.path}: expected a number as {column} in line {self.line}, got {quote(self[column])}"
            )
        return number


def read_table(path: Path, columns: Sequence[str]) -> list[Row]:
    """Read a table whose first line names its columns; blank lines are left out.

    Args:
        path: a CSV file.
        columns: those that it must have; others may be there.

    Raises:
        InputError: the file is missing or unreadable, a column is missing or stands twice, or a row has more cells than
            there are columns.
    """
    lines = csv.reader(io.StringIO(normalize(read_text(path)), newline=""), skipinitialspace=True)
    try:
        return _read_rows(path, lines, columns)
    except csv.Error as error:
        raise InputError(f"{path}: expected a table with commas, but line {lines.line_num}: {error}") from None


def _read_rows(path: Path, lines: Any, columns: Sequence[str]) -> list[Row]:
    names = [name.strip() for name in next(lines, [])]
    for column in columns:
        if column not in names:
            hint = ": cells are separated by commas" if {";", "\t"} & set("".join(names)) else ""
            found = shorten(",".join(names)) or "none"
            raise InputError(f"{path}: expected a column {column} in the first line, found {found}{hint}")
    for name, count in Counter(filter(None, names)).items():
        if count > 1:
            raise InputError(f"{path}: expected each column once in the first line, found {quote(name)} {count} times")
    rows = []
    for line in lines:
        cells = [cell.strip() for cell in line]
        if any(cells[len(names) :]):
            raise InputError(
                f"{path}: expected {len(names)} cells in line {lines.line_num}, got {len(cells)}: "
                f"{shorten(','.join(cells))}"
            )
        if any(cells):
            rows.append(Row(path, lines.line_num, dict(zip(names, cells, strict=False))))
    return rows


def group_by_recording(
    path: Path, rows: Iterable[tuple[str, Item]], listed: Collection[str]
) -> tuple[dict[str, list[Item]], tuple[str, ...]]:
    """Give rows to the recordings that they name.

    Args:
        path: the file that has the rows.
        rows: name and content of each.
        listed: the names of the recordings of the data set.

    Returns:
        The contents of each recording that has any; and a note that counts the rows of recordings that are not listed,
        where there are such rows.

    Raises:
        InputError: none of the rows is of a recording that is listed.
    """
    listed = frozenset(listed)
    found: dict[str, list[Item]] = {}
    outside: list[str] = []
    for name, item in rows:
        recording = find_name(name, listed)
        if recording is None:
            outside.append(name)
        else:
            found.setdefault(recording, []).append(item)
    if not outside:
        return found, ()
    if listed and not found:
        raise InputError(f"{path}: expected recordings of the data set, such as {min(listed)}, found only {outside[0]}")
    count = len(set(outside))
    what = "1 row is" if len(outside) == 1 else f"{len(outside)} rows are"
    others = f"{outside[0]}, which is" if count == 1 else f"{count} recordings such as {outside[0]} that are"
    return found, (f"{path}: {what} left out, of {others} not in the data set",)
