"""The layout of ActionFormer.

```
annotations/thumos14.json           or anet1.3_tsp_filtered.json, anet1.3_i3d_filtered.json, see `read_database`
i3d_features/<video>.npy            T x 2048; for ActivityNet also tsp_features/v_<video>.npy (T x 512),
                                    or one .hdf5 file with a dataset for each video
```

There are no points: draw them (`data.points`), or name a table of them (`data.points_file`), see
`videos.read_points`.
"""

from __future__ import annotations

from pathlib import Path

from potloc_fast.config.schema import FolderData
from potloc_fast.data.annotations import read_database
from potloc_fast.data.layouts.signs import Signs
from potloc_fast.data.layouts.videos import list_videos, only_one
from potloc_fast.data.listing import Listing
from potloc_fast.data.sources import HDF5_SUFFIXES, locate
from potloc_fast.files import listed

ANNOTATIONS = ("annotations/thumos14.json", "annotations/anet1.3_*_filtered.json")
SIGNS = Signs(ANNOTATIONS)
recognize = SIGNS.recognize
# fps (None is a video's own), window and stride of the published features, by the annotations that come with them.
GRIDS: dict[str, tuple[float | None, int, int]] = {
    "thumos14": (None, 16, 4),
    "anet1.3_tsp_filtered": (15, 16, 16),
    "anet1.3_i3d_filtered": (25, 16, 16),
}


def read(root: Path, options: FolderData) -> Listing:
    """List a data set in the layout of ActionFormer; `assign_subsets` says what is trained on.

    Args:
        root: the folder that holds `annotations`.
        options: where files lie that are not where the layout has them, and the grid, where features are not those
            that are published with the annotations. Of annotations that are not known by name, snippets without a
            stride in `data.grid` divide the duration evenly.

    Raises:
        InputError: a file is missing or can't be used.
    """
    found = [path for pattern in ANNOTATIONS for path in listed(root, pattern)]
    database = read_database(options.annotations or only_one(found, root / "annotations", "data.annotations"))
    place = options.features
    if place is None:
        kind = "tsp" if "tsp" in database.path.stem else "i3d"
        folders = [path for path in listed(root, "*features") if path.is_dir()]
        files = [path for path in listed(root) if path.suffix.lower() in HDF5_SUFFIXES]
        several = [*folders, *files]
        place = only_one([path for path in several if kind in path.name.lower()] or several, root, "data.features")
    fps, window, stride = GRIDS.get(database.path.stem, (None, None, None))
    entries, notes = list_videos(
        database, locate(place, database.videos, trusted=options.trusted), options, fps, window, stride
    )
    return Listing(options.name or root.resolve().name, database.classes, entries, notes)
