"""Points and instances in the files of annotation tools, wherever layouts read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potloc_fast.config.schema import FolderData
from potloc_fast.data.annotations import Database, Video, read_database
from potloc_fast.data.layouts import read_listing
from potloc_fast.data.layouts.videos import read_points
from potloc_fast.data.listing import Listing
from potloc_fast.data.recording import Instance, Point
from potloc_fast.errors import InputError
from potloc_fast.formats import FORMATS, Events, write

FORMS = [name for name, form in FORMATS.items() if form.SUFFIX and name != "csv"]
CLICKS = {"v1": (Point("dive", 8.0), Point("jump", 2.5)), "v2": (Point("jump", 4.0),)}
ACTIONS = {"v3": (Instance("dive", 2.0, 4.5), Instance("jump", 4.0, 6.25))}


def listing(layout: str, root: Path, **options: Any) -> Listing:
    return read_listing(FolderData.model_validate({"layout": layout, "root": root, **options}))


def points_of(found: Listing) -> dict[str, tuple[Point, ...]]:
    return {
        entry.id: tuple(sorted(entry.points, key=lambda point: (point.label, point.time_sec)))
        for entry in found.entries
        if entry.points
    }


def write_points(path: Path, points: dict[str, tuple[Point, ...]]) -> Path:
    events = Events(path)
    for name, own in points.items():
        for point in own:
            events.add("made", name, point.label, point.time_sec, point.time_sec)
    return write(path, events)


@pytest.mark.parametrize("form", FORMS)
def test_the_plain_layout(form: str, mine: Path, tmp_path: Path) -> None:
    clicks = write_points(tmp_path / f"clicks{FORMATS[form].SUFFIX}", CLICKS)
    truth = tmp_path / f"truth{FORMATS[form].SUFFIX}"
    if not FORMATS[form].SEVERAL:
        truth = tmp_path / "truth"
        truth.mkdir()
    events = Events(tmp_path)
    for name, own in ACTIONS.items():
        for action in own:
            events.add("made", name, action.label, action.start_sec, action.end_sec)
    write(truth, events, form)
    found = listing("plain", mine, points_file=clicks, annotations=truth, grid={"fps": 2})
    assert points_of(found) == CLICKS
    assert {entry.id: entry.instances for entry in found.entries if entry.instances} == ACTIONS
    assert [entry.subset for entry in found.entries] == ["train", "train", "test"]
    assert found.notes == ()


def test_the_layout_is_found_where_points_lie_elsewhere(mine: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"features/v1\.npy as in plain, but no points\.csv or instances\.csv"):
        listing("auto", mine, grid={"fps": 2})
    clicks = write_points(tmp_path / "clicks.boris", CLICKS)
    found = listing("auto", mine, points_file=clicks, grid={"fps": 2})
    assert points_of(found) == CLICKS
    assert found.notes == (f"{mine}: layout plain, seen from features/v1.npy",)


def test_a_folder_of_tables(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "clicks").mkdir()
    for name, own in CLICKS.items():
        rows = "".join(f"{point.label},{point.time_sec}\n" for point in own)
        (tmp_path / "clicks" / f"{name}.csv").write_text(f"label,time_sec\n{rows}")
    assert points_of(listing("plain", mine, points_file=tmp_path / "clicks", grid={"fps": 2})) == CLICKS


def test_segments_stand_for_their_middles(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "v1.txt").write_text("1\t2\tjump\n3\t3\tjump\n")
    found = listing("plain", mine, points_file=tmp_path / "v1.txt", grid={"fps": 2})
    assert points_of(found) == {"v1": (Point("jump", 1.5), Point("jump", 3.0))}
    (note,) = found.notes
    assert note == f"{tmp_path / 'v1.txt'}: segments among the points, of which the middles are taken: 1"


def test_recordings_that_are_not_listed_are_counted(mine: Path, tmp_path: Path) -> None:
    write_points(tmp_path / "p.boris", {**CLICKS, "v9": (Point("jump", 1.0),)})
    (note,) = listing("plain", mine, points_file=tmp_path / "p.boris", grid={"fps": 2}).notes
    assert "1 row is left out, of v9, which is not in the data set" in note
    write_points(tmp_path / "other.eaf", {"v9": (Point("jump", 1.0),)})
    with pytest.raises(
        InputError, match=r"other\.eaf: expected recordings of the data set, such as v1, found only other"
    ):
        listing("plain", mine, points_file=tmp_path / "other.eaf", grid={"fps": 2})


@pytest.mark.parametrize("layout", ["lacp", "hrpro", "wtalc"])
@pytest.mark.parametrize("form", ["boris", "textgrid"])
def test_published_points_by_way_of_a_tool(layout: str, form: str, real: Callable[..., Any], tmp_path: Path) -> None:
    root = getattr(real("thumos14" if layout == "lacp" else "gtea"), f"as_{layout}")(tmp_path / layout)
    options = {"trusted": True} if layout == "wtalc" else {}
    expected = points_of(listing(layout, root, **options))
    path = write_points(tmp_path / f"clicks{FORMATS[form].SUFFIX}", expected)
    found = points_of(listing(layout, root, points_file=path, **options))
    assert found.keys() == expected.keys()
    for name, own in expected.items():
        assert [point.label for point in found[name]] == [point.label for point in own]
        times = [point.time_sec for point in own]
        assert [point.time_sec for point in found[name]] == pytest.approx(times, abs=0.5e-3)


def test_points_of_videos(tmp_path: Path) -> None:
    database = Database(tmp_path / "gt.json", {name: Video("", (), 10.0, None) for name in CLICKS}, (), None)
    path = write_points(tmp_path / "clicks.boris", CLICKS)
    points, notes = read_points(FolderData(layout="actionformer", points_file=path), database)
    assert {name: sorted(own, key=lambda p: p.label) for name, own in points.items()} == {
        name: list(own) for name, own in CLICKS.items()
    }
    assert notes == ()


def test_a_database(tmp_path: Path) -> None:
    (tmp_path / "v1.txt").write_text("1\t2\tjump\n3\t5\tdive\n")
    database = read_database(tmp_path / "v1.txt")
    assert database.videos["v1"].instances == (Instance("jump", 1.0, 2.0), Instance("dive", 3.0, 5.0))
    assert database.classes == ("dive", "jump")
