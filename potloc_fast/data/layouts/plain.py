"""A layout for data of one's own: an array for each recording, and tables.

```
points.csv        recording,label,time_sec
features/         <recording>.npy, T x F; or signals/, samples as they were recorded (`potloc_fast.data.signals`)
recordings.csv    recording, and where wanted subset, snippet_sec, duration_sec, features, rate_hz, signals
instances.csv     recording,label,start_sec,end_sec
```

The tables are optional, but points or instances must be there, and it must be said somewhere how long a snippet lasts:
in `snippet_sec`, by `duration_sec`, which snippets divide evenly, or in the configuration as `data.grid`; for signals
`data.windows` says it.
"""

from __future__ import annotations

from pathlib import Path

from potloc_fast.config.schema import FolderData
from potloc_fast.data.annotations import choose_grid
from potloc_fast.data.grid import Grid
from potloc_fast.data.layouts.signs import Signs
from potloc_fast.data.listing import Entry, Listing, NpyFile, Source, collect_classes
from potloc_fast.data.recording import Instance, Point
from potloc_fast.data.signals.source import SignalSource, group_files
from potloc_fast.data.tables import Row, group_by_recording, read_table
from potloc_fast.errors import InputError, quote, shorten
from potloc_fast.files import find_path, listed
from potloc_fast.names import by_name

SIGNS = Signs(("points.csv", "instances.csv"), ("features/*.npy", "signals/*", "recordings.csv"))
recognize = SIGNS.recognize


def read(root: Path, options: FolderData) -> Listing:
    """List a data set of one's own.

    Where `subset` does not say it, recordings with points (with instances, where points are drawn from them) are for
    training, the others for testing.

    Args:
        root: its folder, whose name becomes the name of the data set.
        options: where the features, the points and (as annotations) the instances lie if not in their places; `grid`.

    Raises:
        InputError: a file is missing or can't be used, or it is nowhere said how long a snippet lasts.
    """
    raw = has_signals(root, options)
    folder = options.features or root / ("signals" if raw else "features")
    found = group_files(listed(folder), options.signals.sensors, folder) if raw else _arrays(folder)
    files = by_name(found.items(), folder)
    table = root / "recordings.csv"
    if table.exists():
        rows = read_table(table, ("recording",))
    else:
        # A row of no table: all that is known is that there are features.
        rows = [Row(folder, 0, {"recording": name}) for name in files]
    names = [row.text("recording") for row in rows]
    if not names:
        kind = "files of samples" if raw else ".npy files"
        raise InputError(f"{root}: expected recordings in recordings.csv or as {kind} in {folder}, found none")

    truth, clicks = options.annotations or root / "instances.csv", options.points_file or root / "points.csv"
    instances: dict[str, list[Instance]] = {}
    points: dict[str, list[Point]] = {}
    notes: tuple[str, ...] = ()
    if options.annotations or truth.exists():
        instances, notes = group_by_recording(
            truth,
            [
                (row.text("recording"), Instance(row.text("label"), row.number("start_sec"), row.number("end_sec")))
                for row in read_table(truth, ("recording", "label", "start_sec", "end_sec"))
            ],
            names,
        )
    if options.points == "file" and (options.points_file or clicks.exists() or not instances):
        points, note = group_by_recording(
            clicks,
            [
                (row.text("recording"), Point(row.text("label"), row.number("time_sec")))
                for row in read_table(clicks, ("recording", "label", "time_sec"))
            ],
            names,
        )
        notes += note
    labelled = points or instances
    entries = []
    for row in rows:
        name = row["recording"]
        named = row["signals" if raw else "features"]
        paths = tuple(find_path(root / part.strip()) for part in named.split(";")) if named else files.get(name)
        duration = _positive(row, "duration_sec")
        source: Source
        if raw:
            source = SignalSource(
                paths or _no_file(folder, name, options), options.signals, options.windows, _positive(row, "rate_hz")
            )
        else:
            source = NpyFile(paths[0] if paths else folder / f"{name}.npy")
        entries.append(
            Entry(
                id=name,
                subset=_subset(row) or ("train" if name in labelled else "test"),
                sources=(source,),
                grid=_windows_grid(options) if raw else _grid(row, duration, options, root),
                instances=tuple(instances.get(name, ())),
                points=tuple(points.get(name, ())),
                duration_sec=duration,
            )
        )
    return Listing(options.name or root.resolve().name, collect_classes(entries), tuple(entries), notes)


def has_signals(root: Path, options: FolderData) -> bool:
    """Whether the recordings of a folder are signals: `data.windows` is set, or there are no features in it."""
    if options.windows.given:
        return True
    return options.features is None and not (root / "features").is_dir() and bool(listed(root / "signals"))


def _arrays(folder: Path) -> dict[str, tuple[Path, ...]]:
    return {path.stem: (path,) for path in listed(folder, "*.npy")}


def _no_file(folder: Path, name: str, options: FolderData) -> tuple[Path, ...]:
    alike = [path.name for path in listed(folder) if path.stem.startswith(name)]
    if alike and not options.signals.sensors:
        raise InputError(
            f"{folder}: expected a file of samples called {name}, found {shorten(', '.join(alike))}: where a recording "
            "has several files, data.signals.sensors says how their names end"
        )
    raise InputError(f"{folder}: expected a file of samples called {name}, found none")


def _windows_grid(options: FolderData) -> Grid | None:
    stride = options.windows.stride_sec
    return Grid(1 / stride, 1, 1) if stride else None


def _positive(row: Row, column: str) -> float | None:
    if not row[column]:
        return None
    number = row.number(column)
    if number <= 0:
        raise InputError(f"{row.path}: expected {column} over 0 in line {row.line}, got {number:g}")
    return number


def _subset(row: Row) -> str:
    if row["subset"] not in ("", "train", "test"):
        raise InputError(f"{row.path}: expected subset train or test in line {row.line}, got {quote(row['subset'])}")
    return row["subset"]


def _grid(row: Row, duration: float | None, options: FolderData, root: Path) -> Grid | None:
    snippet = _positive(row, "snippet_sec")
    fps = 1 / snippet if snippet else None
    # fps alone is that of the snippets.
    stride = 1 if snippet or options.grid.fps else None
    grid = choose_grid(options.grid, fps, None, stride, row["recording"])
    if grid is None and duration is None:
        raise InputError(
            f"{root}: expected how long a snippet of {row['recording']} lasts, as snippet_sec or duration_sec in "
            "recordings.csv or as data.grid.fps (snippets a second), found none"
        )
    return grid
