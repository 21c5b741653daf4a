"""The layout of LACP and POTLoc, with I3D features of two streams.

```
gt.json                           {"database": {video: {"annotations": [{"segment": ["18.6", "24.8"], "label"}]}}}
split_train.txt, split_test.txt   one video a line: these alone decide what belongs to the data set
point_gaussian/point_labels.csv   columns class, video_id and point (native frames); or point_labels.csv in the root
fps_dict.json                     {video: native fps}, for the table of points
point_dict.json                   {video: [[label, seconds], ...]}, read where there is no table
features/{train,test}/{rgb,flow}/<video>.npy    T x 1024 each; or i3d_features/...
```
"""

from __future__ import annotations

import csv
from pathlib import Path

from potloc_fast.config.schema import FolderData
from potloc_fast.data.grid import Grid
from potloc_fast.data.listing import Entry, Listing, NpyFile
from potloc_fast.data.recording import Instance, Point
from potloc_fast.errors import InputError
from potloc_fast.files import read_json, read_text

I3D = Grid(fps=25, window=16, stride=16)


def recognize(root: Path) -> str | None:
    """Say what of the layout is there, if it is."""
    streams = [path for name in ("features", "i3d_features") if (path := root / name / "train" / "rgb").is_dir()]
    return f"gt.json and {streams[0].relative_to(root)}/" if (root / "gt.json").is_file() and streams else None


def read(root: Path, options: FolderData) -> Listing:
    """List a data set in the layout of LACP and POTLoc.

    Args:
        root: its folder, whose name becomes the name of the data set.
        options: where files lie that are not where the layout has them.

    Raises:
        InputError: a file is missing or can't be used.
    """
    truth = options.annotations or root / "gt.json"
    instances = _read_instances(truth)
    points_file = options.points_file or _first(
        root, "point_gaussian/point_labels.csv", "point_labels.csv", "point_dict.json"
    )
    if points_file.suffix == ".json":
        points = _read_point_dict(points_file)
    else:
        points = _read_point_table(points_file, root / "fps_dict.json")
    folder = options.features or _first(root, "features", "i3d_features")
    entries = []
    for subset in ("train", "test"):
        split_file = root / f"split_{subset}.txt"
        for video in read_text(split_file).split():
            if video not in instances:
                raise InputError(f"{truth}: expected {video}, which {split_file.name} lists, found no such video")
            streams = tuple(NpyFile(folder / subset / stream / f"{video}.npy") for stream in ("rgb", "flow"))
            entries.append(Entry(video, subset, streams, I3D, instances[video], points.get(video, ())))
    classes = sorted({instance.label for found in instances.values() for instance in found})
    return Listing(root.resolve().name, tuple(classes), tuple(entries))


def _first(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).exists():
            return root / name
    raise InputError(f"{root}: expected one of {', '.join(names)} in it, found none")


def _read_instances(path: Path) -> dict[str, tuple[Instance, ...]]:
    content = read_json(path)
    found = {}
    video = "the top"
    try:
        for video, entry in content["database"].items():
            found[video] = tuple(
                Instance(str(item["label"]), *map(float, item["segment"])) for item in entry["annotations"]
            )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(
            f'{path}: expected a "database" of videos with "annotations" that have a "label" and a "segment" of two '
            f"times, got something else at {video}"
        ) from None
    return found


def _read_point_dict(path: Path) -> dict[str, tuple[Point, ...]]:
    content = read_json(path)
    found = {}
    video = "the top"
    try:
        for video, entry in content.items():
            found[video] = tuple(Point(str(label), float(sec)) for label, sec in entry)
    except (AttributeError, TypeError, ValueError):
        raise InputError(
            f"{path}: expected a list of [label, seconds] for each video, got something else at {video}"
        ) from None
    return found


def _read_point_table(path: Path, fps_path: Path) -> dict[str, tuple[Point, ...]]:
    fps = read_json(fps_path)
    if not isinstance(fps, dict):
        raise InputError(f"{fps_path}: expected the fps of each video by its name, got something else")
    rows = csv.DictReader(read_text(path).splitlines())
    columns = rows.fieldnames or ["none"]
    missing = {"class", "video_id", "point"} - set(columns)
    if missing:
        raise InputError(f"{path}: expected a column {min(missing)} in the first line, found {', '.join(columns)}")
    found: dict[str, tuple[Point, ...]] = {}
    for row in rows:
        video = row["video_id"]
        try:
            point = Point(row["class"], float(row["point"]) / float(fps[video]))
        except KeyError:
            raise InputError(f"{fps_path}: expected the fps of {video}, which {path.name} names, found none") from None
        except (TypeError, ValueError, ZeroDivisionError):
            raise InputError(
                f"{path}: expected a frame number in line {rows.line_num}, got {row['point']!r} at {fps[video]!r} fps"
            ) from None
        found[video] = (*found.get(video, ()), point)
    return found
