from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from potloc_fast import cli
from potloc_fast.config import load_config
from potloc_fast.config.schema import FolderData, WindowsConfig
from potloc_fast.data.init import init, look
from potloc_fast.data.layouts import read_listing
from potloc_fast.data.recording import Dataset
from potloc_fast.data.tables import read_table
from potloc_fast.errors import InputError
from potloc_fast.formats import read, write


def open_data(folder: Path) -> tuple[FolderData, Dataset]:
    """The data set as the configuration that was written has it."""
    data = load_config(folder / "config.yaml").data
    assert isinstance(data, FolderData)
    return data, read_listing(data).open()


@pytest.fixture
def phones(shared_data: Path, tmp_path: Path) -> Path:
    """Original files of phones and watches with their points, as a user has them."""
    root = tmp_path / "phones"
    shutil.copytree(shared_data / "tug" / "original", root / "signals")
    lines = (shared_data / "tug" / "points.csv").read_text().splitlines()
    names = {"s01_01", "s02_01", "s03_01"}
    (root / "points.csv").write_text(
        "\n".join([lines[0], *(line for line in lines[1:] if line.split(",")[0] in names)]) + "\n"
    )
    return root


def test_sensors_rates_and_windows_are_understood(phones: Path) -> None:
    plan = init(phones)
    assert plan.said[1] == "3 recordings with a file for each of the sensors sp, sw"
    data, dataset = open_data(phones)
    assert (data.layout, data.root, data.signals.sensors) == ("plain", phones, ("sp", "sw"))
    assert data.windows == WindowsConfig(length_sec=0.1, stride_sec=0.1, features="raw", rate_hz=100)
    assert [recording.id for recording in dataset.recordings] == ["s01_01", "s02_01", "s03_01"]
    assert dataset.recordings[0].features.shape == (131, 12 * 10)
    # What was written is kept.
    (phones / "config.yaml").write_text("preset: own\n")
    with pytest.raises(InputError, match=r"config.yaml: expected no such file, .* go on with check-data"):
        init(phones)
    assert (phones / "config.yaml").read_text() == "preset: own\n"


def test_recordings_are_split_by_people(shared_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    (root / "signals").mkdir(parents=True)
    names = [f"s{person:02}_{trial}" for person in range(1, 9) for trial in (1, 2)]
    for name in names:
        np.save(root / "signals" / f"{name}.npy", np.random.default_rng(0).normal(size=(500, 3)))
    rows = [f"{name},jump,{sec},{sec + 1}" for name in names for sec in (1, 4, 8)]
    (root / "instances.csv").write_text("\n".join(["recording,label,start_sec,end_sec", *rows]))
    plan = init(root)
    assert "names tell of 8 people, of which 2 are there to test in" in plan.said
    assert any("fill in rate_hz" in sentence for sentence in plan.said)
    table = read_table(root / "recordings.csv", ("recording", "subset", "person", "rate_hz"))
    assert {row["person"] for row in table if row["subset"] == "test"} == {"s02", "s06"}
    assert [row["recording"] for row in table] == names
    assert sum(row["subset"] == "train" for row in table) == 12
    text = (root / "config.yaml").read_text()
    assert "# windows: {length_sec: 0.5, stride_sec: 0.1}  # not known yet: " in text
    assert "points: gaussian  # there is no points.csv" in text


def test_tables_that_are_there_stay(shared_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "tug"
    root.mkdir()
    for name in ("signals", "points.csv", "instances.csv", "recordings.csv"):
        (root / name).symlink_to(shared_data / "tug" / name)
    plan = init(root)
    assert plan.recordings is None
    assert "recordings.csv: 223 recordings (153 train, 70 test, 23 people); it stays as it is" in plan.said
    data, dataset = open_data(root)
    assert data.windows == WindowsConfig(length_sec=0.1, stride_sec=0.1, features="raw", rate_hz=50)
    assert len(dataset.subset("test")) == 70


def test_features_need_their_rate(tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / "walk1.npy", np.zeros((20, 4), np.float32))
    (tmp_path / "points.csv").write_text("recording,label,time_sec\nwalk1,jump,2.5\n")
    plan = init(tmp_path)
    assert plan.said[:2] == (
        "features/: 1 array, such as walk1.npy",
        "points.csv: 1 point; classes: jump",
    )
    config = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("# grid", "grid"))
    assert open_data(tmp_path)[1].recordings[0].duration_sec == 10


def test_what_no_labels_and_what_other_tools_leave(phones: Path) -> None:
    events = read(phones / "points.csv")
    (phones / "points.csv").unlink()
    (phones / "other.json").write_text("{")  # of some other program
    (phones / "notes.txt").write_text("walked twice")
    assert any("no labels yet: put a table points.csv" in sentence for sentence in look(phones).said)
    tabular = "\n".join(
        f"{name},{label},POINT,{sec}"
        for name, label, sec in zip(events.recording, events.label, events.start_sec, strict=True)
    )
    for name, form, title in (
        ("clicks.boris", "boris", "BORIS project"),
        ("clicks.json", "boris", "BORIS project"),  # suffixes that several formats share
        ("clicks.csv", "", "BORIS export"),
        ("clicks/all.json", "label-studio", "Label Studio"),
        ("clicks.TextGrid", "textgrid", "Praat TextGrid"),  # a file a recording, in a folder
    ):
        place = phones / name
        if form:
            place = write(place, events, form)
        else:
            place.write_text(f"Observation id,Behavior,Behavior type,Time\n{tabular}\n")
        plan = look(phones)
        assert any(f"({title}), such as clicks" in said and said.endswith("for the points") for said in plan.said)
        assert f'points_file: "{place}"' in plan.config
        assert "  stride_sec: 0.1  # " in plan.config
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    for path in write(phones / "clicks.eaf", events).iterdir():
        path.rename(phones / path.name)
    assert any("move them into a folder of their own" in said for said in look(phones).said)


def test_other_layouts_are_named(shared_data: Path, tmp_path: Path) -> None:
    shutil.copytree(shared_data / "gtea", tmp_path / "gtea")
    (tmp_path / "gtea" / "features" / "train").mkdir(parents=True)
    np.save(tmp_path / "gtea" / "features" / "train" / "S1_Cheese_C1.npy", np.zeros((9, 4), np.float32))
    plan = look(tmp_path / "gtea")
    assert plan.recordings is None
    assert "layout: hrpro" in plan.config


def test_the_command(phones: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["potloc-fast", "init", str(phones)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = capsys.readouterr().out
    assert not end.value.code
    assert printed.endswith(f"next: potloc-fast check-data {phones}/config.yaml\n")
    assert "  length_sec: 0.1  # " in printed


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"expected recordings in signals/ \(raw\) or as .npy files in features/, found none"
    ):
        init(tmp_path)
    (tmp_path / "walk1.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"found 1 file such as walk1.wav beside them: move them there"):
        init(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["walk1.wav"]
