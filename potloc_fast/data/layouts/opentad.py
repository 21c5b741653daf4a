"""The layout of OpenTAD.

```
annotations/thumos_14_anno.json     or that of another data set, see `read_database`
annotations/category_idx.txt        the classes, one a line, in their order; by name where there is no such file
features/<name>/<video>.npy         or v_<video>.npy; also .npz (with an array "feats"), .pt, .csv and .pkl
features/<name>/missing_files.txt   videos that have no features, one a line
```

Names of features say how they were made, as in `i3d_actionformer_stride4_thumos` or
`slowfast101_15fps_stride8_len32_hacs`. There are no points: draw them (`data.points`), or name a table of them
(`data.points_file`), see `videos.read_points`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from potloc_fast.config.schema import FolderData
from potloc_fast.data.annotations import Database, read_database
from potloc_fast.data.layouts.signs import Signs
from potloc_fast.data.layouts.videos import list_videos, only_one
from potloc_fast.data.listing import Listing
from potloc_fast.data.sources import locate
from potloc_fast.errors import InputError
from potloc_fast.files import listed, read_lines
from potloc_fast.names import find_name

SIGNS = Signs(("annotations/category_idx.txt", "annotations/thumos_14_anno.json"))
recognize = SIGNS.recognize


def read(root: Path, options: FolderData) -> Listing:
    """List a data set in the layout of OpenTAD; `assign_subsets` says what is trained on.

    Snippets have the stride that the name of the features says. Where it says none and `data.grid` neither, they divide
    the duration evenly. Instances that are labelled Ambiguous, as THUMOS'14 has some, are left out.

    Args:
        root: the folder that holds `annotations` and `features`.
        options: where files lie that are not where the layout has them; `features` is one folder of features.

    Raises:
        InputError: a file is missing or can't be used.
    """
    folder = root / "annotations"
    found = [path for path in listed(folder, "*.json") if path.name != "blocked.json"]
    database = _without_ambiguous(read_database(options.annotations or only_one(found, folder, "data.annotations")))
    place = options.features
    if place is None:
        folders = [path for path in listed(root / "features") if path.is_dir()]
        place = only_one(folders, root / "features", "data.features")
    missing = place / "missing_files.txt"
    blocked = set(read_lines(missing)) if missing.exists() else set()
    kept = {name: video for name, video in database.videos.items() if find_name(name, blocked) is None}
    fps, window, stride = _parse(place.name)
    entries, notes = list_videos(
        replace(database, videos=kept), locate(place, kept, trusted=options.trusted), options, fps, window, stride
    )
    left_out = len(database.videos) - len(kept)
    if left_out:
        notes = (*notes, f"{missing}: videos left out, as they have no features: {left_out}")
    classes = folder / "category_idx.txt"
    return Listing(
        options.name or root.resolve().name,
        _read_classes(classes, database) if classes.exists() else database.classes,
        entries,
        notes,
    )


def _without_ambiguous(database: Database) -> Database:
    videos = {
        name: replace(video, instances=tuple(item for item in video.instances if item.label != "Ambiguous"))
        for name, video in database.videos.items()
    }
    return replace(database, videos=videos, classes=tuple(name for name in database.classes if name != "Ambiguous"))


def _read_classes(path: Path, database: Database) -> tuple[str, ...]:
    classes = tuple(filter(None, read_lines(path)))
    unknown = sorted(set(database.classes) - set(classes))
    if unknown:
        raise InputError(f"{path}: expected the class {unknown[0]} of {database.path.name}, found no such line")
    return classes


def _parse(name: str) -> tuple[float | None, int | None, int | None]:
    """The fps, window and stride that a name of features says; TSN looks at single frames, the others at 16."""
    said = {key: int(value) for key, value in re.findall(r"_(stride|len|interval)([1-9]\d*)", name)}
    fps = re.search(r"_([1-9]\d*)fps", name)
    frames = said.get("len", 1 if name.startswith("tsn") else 16) * said.get("interval", 1)
    return (float(fps[1]) if fps else None), frames, said.get("stride")
