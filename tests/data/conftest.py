"""Data sets shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from potloc_fast.config.schema import FolderData
from potloc_fast.data.layouts import read_listing
from potloc_fast.data.points import draw_points
from potloc_fast.data.recording import Dataset


@pytest.fixture(scope="session")
def hapt(shared_data: Path) -> Dataset:
    """The real HAPT recordings, loaded once."""
    listing = read_listing(FolderData(layout="hapt", root=shared_data / "hapt" / "hapt_uci.zip"))
    return draw_points(listing.open(), "gaussian", seed=0)


@pytest.fixture
def small_hapt(tmp_path: Path) -> Path:
    """A folder in the layout of HAPT with two recordings of 130 and 99 samples."""
    root = tmp_path / "HAPT Data Set"
    for name in ("RawData", "Train", "Test"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, length in (("exp01_user07", 130), ("exp02_user03", 99)):
        for sensor in ("acc", "gyro"):
            np.savetxt(root / "RawData" / f"{sensor}_{name}.txt", rng.standard_normal((length, 3)))
    (root / "RawData" / "labels.txt").write_text("1 7 2 11 60\n1 7 1 61 130\n2 3 1 1 50\n")
    (root / "activity_labels.txt").write_text("1 WALKING   \n2 SITTING\n")
    (root / "Train" / "subject_id_train.txt").write_text("7\n7\n")
    (root / "Test" / "subject_id_test.txt").write_text("3\n")
    return root
