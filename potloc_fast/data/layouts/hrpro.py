"""The layout of HR-Pro, with I3D features of two streams joined in one file.

```
gt_full.json                      {"database": {video: {"duration", "fps", "annotations": [{"segment", "label"}]}}}
split_train.txt, split_test.txt   one video a line: these alone decide what belongs to the data set
point_labels/point_gaussian.csv   columns class, video_id and point (native frames); or point_labels.csv in the root
fps_dict.json                     {video: native fps}, where the ground truth does not say it
features/{train,test}/<video>.npy T x 2048
```
"""

from __future__ import annotations

from pathlib import Path

from potloc_fast.config.schema import FolderData
from potloc_fast.data.annotations import read_database
from potloc_fast.data.layouts.lacp import list_splits
from potloc_fast.data.layouts.signs import Signs
from potloc_fast.data.listing import Listing

SIGNS = Signs(("gt_full.json", "point_labels/point_gaussian.csv"), ("split_train.txt",), ("features/train",))
recognize = SIGNS.recognize


def read(root: Path, options: FolderData) -> Listing:
    """List a data set in the layout of HR-Pro.

    Without a ground truth, classes are those of the points, and detections can't be evaluated.

    Args:
        root: its folder, whose name becomes the name of the data set.
        options: where files lie that are not where the layout has them, and `grid`: by default that of the features of
            THUMOS'14, 25 fps and 16 frames. Those of GTEA and BEOID were made at the native 15 and 30 fps.

    Raises:
        InputError: a file is missing or can't be used.
    """
    truth = options.annotations or root / "gt_full.json"
    known = read_database(truth).videos if options.annotations or truth.exists() else None
    return list_splits(root, options, truth, known)
