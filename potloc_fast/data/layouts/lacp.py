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

from potloc_fast.data.grid import Grid
from potloc_fast.data.recording import Dataset, Instance, JoinedFeatures, Point, Recording, load_features, validate
from potloc_fast.errors import InputError
from potloc_fast.files import read_json, read_text

I3D = Grid(fps=25, window=16, stride=16)


def load_lacp(root: str | Path, *, points_file: str | Path | None = None) -> Dataset:
    """Load a data set in the layout of LACP and POTLoc.

    Args:
        root: its folder, whose name becomes the name of the data set.
        points_file: a table (.csv) or a .json file of points as above; by default the first that `root` has.

    Returns:
        A data set whose features stay on disk; RGB and flow are joined on channels as they are read.

    Raises:
        InputError: a file is missing or can't be used.
    """
    root = Path(root)
    instances = _read_instances(root / "gt.json")
    if points_file is None:
        points_file = _first(root, "point_gaussian/point_labels.csv", "point_labels.csv", "point_dict.json")
    points_file = Path(points_file)
    if points_file.suffix == ".json":
        points = _read_point_dict(points_file)
    else:
        points = _read_point_table(points_file, root / "fps_dict.json")
    folder = _first(root, "features", "i3d_features")
    widths: dict[str, int] = {}  # of each stream, as the first recording has it
    recordings = []
    for subset in ("train", "test"):
        split_file = root / f"split_{subset}.txt"
        for video in read_text(split_file).split():
            if video not in instances:
                raise InputError(
                    f"{root / 'gt.json'}: expected {video}, which {split_file.name} lists, found no such video"
                )
            streams = []
            for stream in ("rgb", "flow"):
                path = folder / subset / stream / f"{video}.npy"
                streams.append(load_features(path, widths.get(stream)))
                widths[stream] = streams[-1].shape[1]
                if len(streams[-1]) != len(streams[0]):
                    raise InputError(f"{path}: expected {len(streams[0])} snippets as in rgb, got {len(streams[-1])}")
            features = JoinedFeatures(*streams)
            recordings.append(Recording(video, features, I3D, subset, instances[video], points.get(video, ())))
    classes = sorted({instance.label for found in instances.values() for instance in found})
    return validate(Dataset(root.resolve().name, tuple(classes), tuple(recordings)))


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
