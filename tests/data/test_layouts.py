"""Finding out a layout, and training on what was found."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import potloc_fast
from potloc_fast.config import load_config, preset_names
from potloc_fast.config.schema import FolderData
from potloc_fast.data.layouts import LAYOUTS, read_listing
from potloc_fast.errors import InputError

TINY = (
    "base.model.hidden=8",
    "base.train.epochs=1",
    "base.train.batch_size=2",
    "model.width=8",
    "model.heads=2",
    "model.levels=1",
    "model.stem=1",
    "train.epochs=1",
    "train.batch_size=2",
)


def auto(root: Path, **options: Any) -> FolderData:
    return FolderData(layout="auto", root=root, **options)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    (root / "features").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        np.save(root / "features" / f"{name}.npy", rng.standard_normal((40, 4)).astype(np.float32))
    (root / "points.csv").write_text("recording,label,time_sec\na,x,3\nb,y,5\nb,x,9\n")
    return root


@pytest.mark.parametrize(
    ("layout", "data_set", "signs"),
    [
        ("lacp", "thumos14", "gt.json and split_train.txt and features/train"),
        ("hrpro", "gtea", "gt_full.json and split_train.txt and features/train"),
        ("hrpro", "activitynet13", "point_labels/point_gaussian.csv and split_train.txt and features/train"),
        ("wtalc", "gtea", "GTEA-Annotations/videoname.npy and GTEA-I3D-JOINTFeatures.npy"),
    ],
)
def test_a_layout_is_found_out(
    real: Callable[..., Any], tmp_path: Path, layout: str, data_set: str, signs: str
) -> None:
    root = getattr(real(data_set), f"as_{layout}")(tmp_path / "root")
    listing = read_listing(auto(root, trusted=True))
    assert listing.notes[0] == f"{root}: layout {layout}, seen from {signs}"
    options = FolderData(layout=layout, root=root, trusted=True)  # type: ignore[arg-type]
    named = read_listing(options)
    assert named.notes == listing.notes[1:]
    assert [entry.id for entry in named.entries] == [entry.id for entry in listing.entries]


def test_data_of_ones_own_are_found_out(plain: Path) -> None:
    listing = read_listing(auto(plain, grid={"fps": 2}))
    assert listing.notes == (f"{plain}: layout plain, seen from points.csv and features/a.npy",)


def test_hapt_is_found_out(small_hapt: Path) -> None:
    listing = read_listing(auto(small_hapt))
    assert listing.notes == (f"{small_hapt}: layout hapt, seen from {small_hapt / 'RawData' / 'labels.txt'}",)


def test_two_layouts_in_one_folder_are_named(real: Callable[..., Any], tmp_path: Path) -> None:
    root = real("thumos14").as_lacp(tmp_path / "root")
    shutil.copyfile(root / "gt.json", root / "gt_full.json")
    message = (
        f"{root}: expected one layout, found lacp (gt.json and split_train.txt and features/train); "
        "hrpro (gt_full.json and split_train.txt and features/train): set data.layout"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        read_listing(auto(root))
    assert read_listing(FolderData(layout="lacp", root=root)).entries


def test_the_nearest_layout_is_named_with_what_is_missing(real: Callable[..., Any], tmp_path: Path) -> None:
    root = real("thumos14").as_lacp(tmp_path / "root")
    shutil.rmtree(root / "features")
    message = (
        f"{root}: expected one of the layouts {', '.join(LAYOUTS)}, found gt.json and split_train.txt as in lacp, "
        "but no features/train or i3d_features/train: set data.layout"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        read_listing(auto(root))
    (root / "split_train.txt").unlink()
    with pytest.raises(InputError, match=r"found gt.json as in lacp, but no split_train.txt and no features/train or "):
        read_listing(auto(root))


@pytest.mark.parametrize("name", ["empty", "file.txt"])
def test_where_nothing_is_found_the_layouts_are_named(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    root.write_text("x") if name.endswith(".txt") else root.mkdir()
    with pytest.raises(InputError, match=r"found none of their files: set data.layout$") as caught:
        read_listing(auto(root))
    assert f"expected one of the layouts {', '.join(LAYOUTS)}, found" in str(caught.value)


@pytest.mark.parametrize("layout", ["auto", "lacp"])
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, layout: Any) -> None:
    message = f"{tmp_path / 'x'}: expected the folder or archive of a data set, found none"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        read_listing(FolderData(layout=layout, root=tmp_path / "x"))


@pytest.mark.parametrize(
    ("preset", "data_set", "layout"),
    [
        ("thumos14", "thumos14", "lacp"),
        ("thumos14_released", "thumos14", "lacp"),
        ("gtea", "gtea", "hrpro"),
        ("gtea", "gtea", "wtalc"),
        ("beoid", "beoid", "hrpro"),
        ("activitynet12", "activitynet13", "hrpro"),
        ("activitynet13", "activitynet13", "hrpro"),
    ],
)
def test_a_preset_runs_from_end_to_end(
    real: Callable[..., Any], tmp_path: Path, preset: str, data_set: str, layout: str
) -> None:
    taken = real(data_set, train=4, test=2)
    root = getattr(taken, f"as_{layout}")(tmp_path / "root")
    trusted = f"data.trusted={layout == 'wtalc'}"
    run = potloc_fast.train(load_config(preset, [f"data.root={root}", trusted, *TINY]), tmp_path / "run")
    detections = potloc_fast.evaluation.read_detections(run.folder / "potloc" / "detections.json")
    assert set(detections.videos) == set(taken.videos["test"])
    assert (run.folder / "pseudo_labels.json").is_file()
    # There is no ground truth of ActivityNet to evaluate against.
    assert (run.folder / "potloc" / "evaluation.json").is_file() == bool(taken.database)


def test_every_preset_for_videos_is_run() -> None:
    [marks] = [mark for mark in test_a_preset_runs_from_end_to_end.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    assert {preset for preset, *_ in marks.args[1]} == set(preset_names()) - {
        "hapt",
        "hapt_boundaries",
        "own",
        "synthetic",
    }


def test_data_of_ones_own_run_from_end_to_end(plain: Path, tmp_path: Path) -> None:
    config = load_config("own", [f"data.root={plain}", "data.grid.fps=2", *TINY])
    run = potloc_fast.train(config, tmp_path / "run")
    detections = potloc_fast.evaluation.read_detections(run.folder / "potloc" / "detections.json")
    assert detections.videos == ("c",)
    assert set(detections.labels) <= {"x", "y"}
    assert not (run.folder / "potloc" / "evaluation.json").exists()


def test_the_grids_of_presets() -> None:
    grids = {name: load_config(name).data.grid for name in ("thumos14", "gtea", "beoid", "activitynet13")}  # type: ignore[union-attr]
    assert {name: (grid.fps, grid.window, grid.stride) for name, grid in grids.items()} == {
        "thumos14": (None, None, None),
        "gtea": (15, 16, 16),
        "beoid": (30, 16, 16),
        "activitynet13": (None, None, None),
    }
