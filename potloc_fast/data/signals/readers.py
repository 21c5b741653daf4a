"""Files of samples: a reader for each format."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potloc_fast.config.schema import SignalsConfig
from potloc_fast.data.recording import allow_open_files, map_array
from potloc_fast.data.signals import poses
from potloc_fast.data.signals.signal import Signal, bridge
from potloc_fast.data.signals.windows import Floats
from potloc_fast.data.sources import check_packed, reading
from potloc_fast.errors import InputError, quote, shorten
from potloc_fast.files import read_lines
from potloc_fast.numbers import to_number

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
SPELLED = {"sec": "s", "secs": "s", "second": "s", "seconds": "s", "msec": "ms", "millis": "ms", "µs": "us"}
TIME = re.compile(
    r"(?:(?:unix|epoch|sensor|elapsed|recording)[ _]?)?(?:times?|timestamps?|time[ _]stamps?|datetime|t)"
    r"(?:[ _]*[\[(]?(?P<unit>s|secs?|seconds?|ms|msec|millis|us|µs|ns)[\])]?)?$"
)
RATES = ("rate_hz", "sampling_rate", "sample_rate", "samplerate", "sampling_frequency", "sfreq", "fs", "fps")
EPOCHS = (("ns", 1e17), ("us", 1e14), ("ms", 1e11), ("s", 1e8))  # from which on a number counts from 1970 in a unit
SHOWN = 100  # rows that are looked at for what a column holds
NOTHING = ("", "na", "nan", "null", "none", "n/a")


def read_signals(path: Path, options: SignalsConfig) -> list[Signal]:
    """Open a file of samples.

    Args:
        path: a file in one of `FORMATS`.
        options: which columns, and what the time stamps are.

    Returns:
        Its channels: a signal for all that were sampled together.

    Raises:
        InputError: the file can't be read, or lacks what `options` name.
    """
    read = FORMATS.get(path.suffix.lower())
    if read is None:
        raise InputError(f"{path}: expected samples in one of {', '.join(FORMATS)}, got {quote(path.suffix)}")
    signals = read(path, options)
    for signal in signals:
        count, channels = signal.samples.shape
        if not count or not channels:
            raise InputError(f"{path}: expected samples [samples, channels], got shape {[count, channels]}")
        if signal.time_sec is None and count < channels:
            raise InputError(
                f"{path}: expected an array [samples, channels], got shape {[count, channels]}, which looks transposed"
            )
    return signals


def _read_npy(path: Path, options: SignalsConfig) -> list[Signal]:
    array = map_array(path)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path}: expected an array of numbers, got {array.dtype}")
    if array.ndim not in (1, 2):
        raise InputError(f"{path}: expected an array [samples, channels], got shape {list(array.shape)}")
    names = [str(number) for number in range(array.shape[1] if array.ndim == 2 else 1)]
    return [_select(path, names, array[:, None] if array.ndim == 1 else array, options)]


def _read_text(path: Path, options: SignalsConfig) -> list[Signal]:
    lines = {number: line for number, line in enumerate(read_lines(path), 1) if line and not line.startswith("#")}
    numbers, rows = list(lines), list(lines.values())
    if not rows:
        raise InputError(f"{path}: expected a line of numbers for each sample, found none")
    mark = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=rows[0].count)
    if mark not in rows[0] and all(map(_is_number, rows[-1].split())):  # blanks part the numbers
        mark, rows = ",", [",".join(row.split()) for row in rows]
    if mark == ";":
        rows = [row.replace(",", ".") for row in rows]  # decimal commas
    try:
        heads = list(csv.reader(rows[:SHOWN], delimiter=mark, skipinitialspace=True))
    except csv.Error as error:
        raise InputError(f"{path}: expected a table of samples, but: {error}") from None
    if poses.is_deeplabcut(heads):
        table = _numbers(path, numbers, rows[poses.header_rows(heads) :], mark, range(1, len(heads[0])))
        return [poses.deeplabcut(path, heads, table)]
    named = not all(map(_is_number, heads[0]))
    names = [cell.strip() for cell in heads[0]] if named else [str(i) for i in range(len(heads[0]))]
    shown = heads[1:] if named else heads
    if not shown:
        raise InputError(
            f"{path}: expected a line of numbers for each sample, found none below the names of the columns"
        )
    for number, row in zip(numbers, rows, strict=True):
        if row.count(mark) >= len(names) and any(next(csv.reader([row], delimiter=mark))[len(names) :]):
            raise InputError(f"{path}: expected {len(names)} cells in line {number}, got {quote(row)}")
    kept = [i for i in range(len(names)) if _holds_numbers([row[i] for row in shown if i < len(row)])]
    numbers, rows = numbers[named:], rows[named:]
    if options.columns is None and not named and not kept:
        raise InputError(f"{path}: expected a line of numbers for each sample, got {quote(rows[0])}")
    time = _time_column(path, names, options)
    columns = _chosen(path, [names[i] for i in kept if names[i] != time], names, options)
    wanted = [names.index(name) for name in columns]
    stamps = None
    if time is not None:
        place = names.index(time)
        if place in kept:
            table = _numbers(path, numbers, rows, mark, [place, *wanted])
            stamps, table = _seconds(path, time, table[:, 0], options), table[:, 1:]
            return [_stamped(path, columns, table, stamps, numbers)]
        cells = [row[place].strip() if place < len(row) else "" for row in csv.reader(rows, delimiter=mark)]
        stamps = _dates(path, cells, numbers)
    table = _numbers(path, numbers, rows, mark, wanted)
    return [_stamped(path, columns, table, stamps, numbers)]


def _numbers(
    path: Path, lines: Sequence[int], rows: Sequence[str], mark: str, columns: Sequence[int]
) -> NDArray[np.float64]:
    """The numbers in some columns of a table; NaN where a cell is empty."""
    lines = lines[len(lines) - len(rows) :]
    try:
        return np.loadtxt(rows, np.float64, comments=None, delimiter=mark, usecols=list(columns), ndmin=2)
    except ValueError:
        pass  # cells that are empty or quoted, and what is wrong, are looked for one by one
    table = np.empty((len(rows), len(columns)))
    for index, cells in enumerate(csv.reader(rows, delimiter=mark, skipinitialspace=True)):
        for place, column in enumerate(columns):
            text = cells[column].strip() if column < len(cells) else ""
            try:
                table[index, place] = math.nan if text.lower() in NOTHING else to_number(text)
            except ValueError:
                raise InputError(
                    f"{path}: expected a number in line {lines[index]}, column {column + 1}, got {quote(text)}"
                ) from None
    return table


def _stamped(
    path: Path,
    columns: Sequence[str],
    table: NDArray[np.float64],
    stamps: NDArray[np.float64] | None,
    lines: Sequence[int] = (),
) -> Signal:
    """A signal of a table, with what is missing between two samples bridged by straight lines."""
    if stamps is not None:
        bad = np.flatnonzero(~np.isfinite(stamps))
        if len(bad):
            where = f"line {lines[bad[0]]}" if len(lines) else f"row {bad[0] + 1}"
            raise InputError(f"{path}: expected a time stamp in {where}, found none")
        order = np.argsort(stamps, kind="stable")
        stamps, table = stamps[order], table[order]
    return Signal(path, tuple(columns), bridge(table).astype(np.float32), None, stamps)


def _is_number(text: str) -> bool:
    try:
        to_number(text)
    except ValueError:
        return text.strip().lower() in NOTHING
    return True


def _holds_numbers(cells: Sequence[str]) -> bool:
    """Whether cells are numbers or empty, and some are numbers."""
    return all(map(_is_number, cells)) and any(cell.strip().lower() not in NOTHING for cell in cells)


def _time_column(path: Path, names: Sequence[str], options: SignalsConfig) -> str | None:
    if options.time is not None:
        if options.time not in names:
            raise InputError(
                f"{path}: expected a column {quote(options.time)} (data.signals.time), "
                f"found {shorten(', '.join(names))}"
            )
        return options.time
    found = [name for name in names if TIME.match(name.lower()) and name not in (options.columns or ())]
    if len(found) > 1:
        raise InputError(
            f"{path}: expected one column of time stamps, found {shorten(', '.join(found))}: set data.signals.time"
        )
    return found[0] if found else None


def _chosen(path: Path, found: Sequence[str], names: Sequence[str], options: SignalsConfig) -> list[str]:
    """The columns to read: those that are asked for, or all that were found to hold numbers."""
    if options.columns is None:
        if not found:
            raise InputError(f"{path}: expected columns of numbers, found {shorten(', '.join(names)) or 'none'}")
        return list(found)
    for name in options.columns:
        if name not in names:
            raise InputError(
                f"{path}: expected a column {quote(name)} (data.signals.columns), found {shorten(', '.join(names))}"
            )
    return list(options.columns)


def _seconds(path: Path, name: str, stamps: NDArray[np.float64], options: SignalsConfig) -> NDArray[np.float64]:
    """Time stamps in seconds."""
    named = TIME.match(name.lower())
    unit = options.time_unit or (SPELLED.get(named["unit"] or "", named["unit"]) if named else None)
    if unit is None and len(stamps):
        largest = float(np.nanmax(np.abs(stamps))) if np.isfinite(stamps).any() else 0.0
        unit = next((unit for unit, size in EPOCHS if largest >= size), None)
        if unit is None:
            steps = np.diff(stamps[np.isfinite(stamps)])
            step = float(np.median(steps)) if len(steps) else 0.0
            if step >= 1:
                raise InputError(
                    f"{path}: expected to know the unit of the time stamps in column {quote(name)}, which are usually "
                    f"{step:g} apart: set data.signals.time_unit to s, ms, us or ns"
                )
            unit = "s"
    return stamps * UNITS[unit or "s"]


def _dates(path: Path, cells: Sequence[str], lines: Sequence[int]) -> NDArray[np.float64]:
    """Seconds since 1970 of dates and times such as 2024-05-01 12:00:00.25."""
    try:
        found = np.array([cell.removesuffix("Z") for cell in cells], dtype="datetime64[us]")
    except ValueError:
        for cell, line in zip(cells, lines, strict=True):
            with suppress(ValueError):
                np.datetime64(cell.removesuffix("Z"), "us")
                continue
            raise InputError(
                f"{path}: expected a time stamp in line {line}, a number or YYYY-MM-DD HH:MM:SS.SSS, got {quote(cell)}"
            ) from None
        raise
    return np.where(np.isnat(found), np.nan, found.astype(np.int64) * 1e-6)


def _select(
    path: Path,
    names: Sequence[str],
    samples: Any,
    options: SignalsConfig,
    rate_hz: float | None = None,
) -> Signal:
    """Some columns of an array that is read block by block."""
    columns = _chosen(path, names, names, options)
    if columns != list(names):
        samples = _Columns(samples, [names.index(name) for name in columns])
    return Signal(path, tuple(columns), samples, rate_hz)


@dataclass(frozen=True, eq=False)
class _Columns:
    """Some columns of samples, when they are read."""

    samples: Any
    columns: list[int]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.samples.shape[0], len(self.columns))

    def __getitem__(self, rows: slice) -> Floats:
        return np.asarray(self.samples[rows][:, self.columns], dtype=np.float32)


def _library(path: Path, name: str) -> Any:
    """A library that some formats need.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        raise InputError(
            f"{path}: expected the library {name.partition('.')[0]} to read {path.suffix} files, found none: "
            "pip install 'potloc_fast[signals]'"
        ) from None
    except OSError as error:  # a library that it is built on
        raise InputError(f"{path}: expected a library {name} that works, got: {error}") from None


@dataclass(frozen=True)
class _Sound:
    """A sound file, opened for each block: threads may read it at once."""

    path: Path
    shape: tuple[int, int]

    def __getitem__(self, rows: slice) -> Floats:
        begin, end, _ = rows.indices(self.shape[0])
        soundfile = _library(self.path, "soundfile")
        with reading(self.path, "a sound file"):
            block, _ = soundfile.read(str(self.path), end - begin, begin, dtype="float32", always_2d=True)
            return np.asarray(block)


def _read_sound(path: Path, options: SignalsConfig) -> list[Signal]:
    soundfile = _library(path, "soundfile")
    with reading(path, "a sound file"):
        path.stat()
        info = soundfile.info(str(path))
    names = [str(number) for number in range(info.channels)]
    return [_select(path, names, _Sound(path, (info.frames, info.channels)), options, float(info.samplerate))]


@dataclass(frozen=True, eq=False)
class _Edf:
    """Signals of one rate in an EDF or BDF file, which is memory-mapped."""

    path: Path
    signals: list[Any]
    rate_hz: float
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count, len(self.signals))

    def __getitem__(self, rows: slice) -> Floats:
        begin, end, _ = rows.indices(self.count)
        with reading(self.path, "an EDF or BDF file"):
            parts = [signal.get_data_slice(begin / self.rate_hz, end / self.rate_hz) for signal in self.signals]
            return np.stack(parts, axis=1, dtype=np.float32, casting="same_kind")


def _read_edf(path: Path, options: SignalsConfig) -> list[Signal]:
    edfio = _library(path, "edfio")
    allow_open_files()
    with reading(path, "an EDF or BDF file"):
        file = (edfio.read_bdf if path.suffix.lower() == ".bdf" else edfio.read_edf)(path)
        if not file.is_continuous:
            raise InputError(f"{path}: expected a continuous recording (EDF+C), got one with breaks (EDF+D)")
        found = list(file.signals)
        names = [signal.label for signal in found]
        rates = [float(signal.sampling_frequency) for signal in found]
        counts = [round(float(file.duration) * rate) for rate in rates]
    wanted = _chosen(path, names, names, options)
    groups: dict[float, list[int]] = {}
    for name in dict.fromkeys(wanted):
        for place in [i for i, other in enumerate(names) if other == name]:
            groups.setdefault(rates[place], []).append(place)
    return [
        Signal(
            path,
            tuple(names[i] for i in places),
            _Edf(path, [found[i] for i in places], rate, counts[places[0]]),
            rate,
        )
        for rate, places in groups.items()
    ]


def _read_parquet(path: Path, options: SignalsConfig) -> list[Signal]:
    parquet, types = _library(path, "pyarrow.parquet"), _library(path, "pyarrow.types")
    with reading(path, "a Parquet file"):
        file = parquet.ParquetFile(path)
        fields = {field.name: field.type for field in file.schema_arrow}
        names = list(fields)
        kept = [n for n, t in fields.items() if types.is_integer(t) or types.is_floating(t)]
        time = _time_column(path, names, options)
        columns = _chosen(path, [name for name in kept if name != time], names, options)
        content = file.read([*columns, *([time] if time else [])])
        table = np.empty((content.num_rows, len(columns)), np.float32)
        for place, name in enumerate(columns):
            table[:, place] = content.column(name).to_numpy()
        stamps = None
        if time is not None and types.is_timestamp(fields[time]):
            stamps = content.column(time).to_numpy().astype("datetime64[us]").astype(np.int64) * 1e-6
        elif time is not None:
            stamps = np.asarray(content.column(time).to_numpy(), dtype=np.float64)
    if time is not None and stamps is not None and not types.is_timestamp(fields[time]):
        stamps = _seconds(path, time, stamps, options)
    return [_stamped(path, columns, table, stamps)]


@dataclass(frozen=True)
class _Hdf5:
    """Datasets of an HDF5 file side by side, opened for each block."""

    path: Path
    names: tuple[str, ...]
    shape: tuple[int, int]

    def __getitem__(self, rows: slice) -> Floats:
        import h5py

        with reading(self.path, "an HDF5 file"), h5py.File(self.path, "r") as file:
            parts = [np.asarray(file[name][rows], dtype=np.float32) for name in self.names]
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def _read_hdf5(path: Path, options: SignalsConfig) -> list[Signal]:
    import h5py

    with reading(path, "an HDF5 file"), h5py.File(path, "r") as file:
        found: dict[str, Any] = {}

        def note(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                check_packed(item, path / name)
            if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu" and item.ndim in (1, 2) and item.size:
                found[name] = item

        file.visititems(note)
        if poses.is_sleap(file):
            return [poses.sleap(path, file)]
        if (frames := poses.deeplabcut_hdf5(path, file)) is not None:
            return [frames]
        time = _time_column(path, list(found), options)
        names = _chosen(path, [name for name in found if name != time], list(found), options)
        lengths = {found[name].shape[0] for name in names}
        if len(lengths) > 1:
            shapes = ", ".join(f"{name} {list(found[name].shape)}" for name in names)
            raise InputError(
                f"{path}: expected datasets of as many samples, found {shorten(shapes, 120)}: name those to read in "
                "data.signals.columns"
            )
        columns = [
            name if found[name].ndim == 1 else f"{name}/{number}"
            for name in names
            for number in range(1 if found[name].ndim == 1 else found[name].shape[1])
        ]
        places = [file, *(found[name] for name in names), *(found[name].parent for name in names)]
        said = (np.ravel(place.attrs[key]).tolist() for place in places for key in RATES if key in place.attrs)
        rates = (to_number(values[0]) for values in said if values)
        rate = next((rate for rate in rates if math.isfinite(rate) and rate > 0), None)
        stamps = None if time is None else np.asarray(found[time][()], dtype=np.float64).ravel()
    samples = _Hdf5(path, tuple(names), (lengths.pop(), len(columns)))
    if time is None or stamps is None:
        return [Signal(path, tuple(columns), samples, rate)]
    if len(stamps) != samples.shape[0]:
        raise InputError(f"{path}: expected {samples.shape[0]} time stamps in {time}, got {len(stamps)}")
    return [_stamped(path, columns, np.asarray(samples[:]), _seconds(path, time, stamps, options))]


FORMATS: dict[str, Callable[[Path, SignalsConfig], list[Signal]]] = {
    ".npy": _read_npy,
    ".csv": _read_text,
    ".tsv": _read_text,
    ".txt": _read_text,
    ".parquet": _read_parquet,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".wav": _read_sound,
    ".flac": _read_sound,
    ".edf": _read_edf,
    ".bdf": _read_edf,
}
