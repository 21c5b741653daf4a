"""Names: composed and decomposed Unicode, YouTube's prefix, hidden files, and files that are named after recordings."""

from __future__ import annotations

import ast
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import potloc_fast
from potloc_fast.config.schema import FolderData
from potloc_fast.data.dataset import TrainingSet
from potloc_fast.data.layouts import read_listing
from potloc_fast.data.recording import Dataset
from potloc_fast.data.sources import locate
from potloc_fast.errors import InputError
from potloc_fast.evaluation import Segments, analyse, evaluate
from potloc_fast.names import by_name, file_name, find_names
from potloc_fast.pseudo_labels import generate, read_points

COMPOSED = "\u00dcbung"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)
HOSTILE = (
    "",
    ".",
    "..",
    "../../x",
    "a/b",
    "a\\b",
    "-rf",
    "~",
    "a\nb",
    "a\0b",
    "\udcff",
    "x" * 300,
    "\u00e9" * 120,
    ".x",
)


def test_files_of_recordings_are_safe_short_and_unique(tmp_path: Path) -> None:
    names = [*HOSTILE, "walk", "walk 1 [b]", "x" * 301, "a_b", file_name("a/b")]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    for name in files:
        path = tmp_path / f"{name}.png"
        path.touch()
        assert path.parent == tmp_path
        assert name.isprintable()
        assert name[0] not in ".-~"
        assert len(name.encode()) < 120
    assert files[len(HOSTILE) :][:2] == ["walk", "walk 1 [b]"]


def plain(root: Path, files: str, tables: str) -> Path:
    (root / "features").mkdir(parents=True)
    for name in (files, "other"):
        np.save(root / "features" / f"{name}.npy", np.ones((9, 2), np.float32))
    (root / "points.csv").write_text(f"recording,label,time_sec\n{tables},{tables},1.5\n", encoding="utf-8")
    (root / "instances.csv").write_text(f"recording,label,start_sec,end_sec\n{files},{files},1,2\n", encoding="utf-8")
    return root


def read(root: Path, **options: Any) -> Dataset:
    return read_listing(FolderData(layout="plain", root=root, grid={"fps": 2}, **options)).open()


@pytest.mark.parametrize("files", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("tables", [COMPOSED, DECOMPOSED])
def test_a_layout_takes_both_forms_of_a_name(tmp_path: Path, files: str, tables: str) -> None:
    root = plain(tmp_path / "data", files, tables)
    for name in ("recordings.csv", None):
        if name:
            (root / name).write_text(f"recording,features\n{tables},features/{tables}.npy\n", encoding="utf-8")
        else:
            (root / "recordings.csv").unlink()
        dataset = read(root)
        assert dataset.classes == (COMPOSED,)
        [found] = [recording for recording in dataset.recordings if recording.id == COMPOSED]
        assert (len(found.points), len(found.instances), found.subset) == (1, 1, "train")


def test_files_whose_names_become_equal_are_refused(tmp_path: Path) -> None:
    root = plain(tmp_path / "data", COMPOSED, COMPOSED)
    np.save(root / "features" / f"{DECOMPOSED}.npy", np.ones((9, 2), np.float32))
    with pytest.raises(InputError, match="expected each name once"):
        read(root)
    with pytest.raises(InputError, match="expected each name once"):
        by_name([(COMPOSED, 1), (DECOMPOSED, 1)], "here")


def test_hidden_files_are_no_recordings(tmp_path: Path) -> None:
    root = plain(tmp_path / "data", "walk", "walk")
    for name in ("._walk.npy", ".hidden.npy"):
        (root / "features" / name).write_bytes(b"\0\5\x16\7")
    assert [recording.id for recording in read(root).recordings] == ["other", "walk"]


def test_folders_and_lines_are_read_in_one_place() -> None:
    # `files.listed` leaves hidden files out, and `files.read_lines` cuts at line ends alone.
    package = Path(potloc_fast.__file__).parent
    elsewhere = {
        "files.py": {"glob"},
        "config/load.py": {"iterdir"},  # the package's own presets
        "data/layouts/hapt.py": {"iterdir"},  # archives too; whatever has another name is left out
        "data/download.py": {"iterdir"},
        "export.py": {"iterdir"},  # whether a folder is empty
        "report/data.py": {"glob"},  # what a run wrote itself
        "engine/train.py": {"glob"},  # what a run wrote itself
        "engine/metrics.py": {"glob"},  # TensorBoard's files, likewise
        # messages of other libraries, and a log of our own
        **{
            key: {"splitlines"}
            for key in (
                *("archive.py", "cli.py", "data/sources.py", "engine/capture.py", "engine/device.py"),
                *("engine/fit.py", "integrations/hub.py", "plots.py"),
            )
        },
    }
    for path in package.rglob("*.py"):
        called = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        name = path.relative_to(package).as_posix()
        assert called & {"glob", "rglob", "iterdir", "listdir", "scandir", "splitlines"} <= elsewhere.get(
            name, set()
        ), name


def test_what_opens_a_file_asks_first_whether_it_is_one() -> None:
    # `files.check_kind` refuses pipes and devices, on which the others may wait for ever.
    package = Path(potloc_fast.__file__).parent
    ours = {"engine/fit.py", "engine/run.py"}  # what a run wrote, after `is_file`
    opening = {"open", "np.load", "torch.load"}
    for path in package.rglob("*.py"):
        calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        called = {ast.unparse(function) for function in calls}
        names = {function.rpartition(".")[2] for function in called}
        if called & opening or names & {"open_memmap", "ZipFile", "File", "safe_open"}:
            name = path.relative_to(package).as_posix()
            assert names & {"check_kind", "reading"} or name in ours, name  # `sources.reading` asks, too


def results(*videos: str) -> dict[str, Any]:
    return {"results": {video: [{"label": "a", "score": 0.9, "segment": [0, 10]}] for video in videos}}


def truth(*videos: str) -> dict[str, Any]:
    return {"database": {video: {"annotations": [{"label": "a", "segment": [0, 10]}]} for video in videos}}


@pytest.mark.parametrize(
    ("found", "known"), [("v_x", "x"), ("x", "v_x"), (COMPOSED, DECOMPOSED), (f"v_{DECOMPOSED}", COMPOSED)]
)
def test_one_rule_for_names_everywhere(tmp_path: Path, found: str, known: str) -> None:
    assert evaluate(results(found), truth(known)).mean == 100
    assert evaluate(results(found), truth(known), subset=None).warnings == ()
    assert analyse(results(found), truth(known)).map == 100
    regions = Segments.from_ground_truth(truth(found))
    assert evaluate(results(known), truth(known), ambiguous=regions).mean == 0
    (tmp_path / "points.csv").write_text(f"class,video_id,point\na,{known},100\n", encoding="utf-8")
    (tmp_path / "fps.json").write_text(json.dumps({found: 25}))
    points = read_points(tmp_path / "points.csv", tmp_path / "fps.json")
    assert len(generate(Segments.from_results(results(found)), points)) == 1


def test_names_that_are_one_video_are_refused() -> None:
    with pytest.raises(InputError, match="detections: expected each video once, found x and v_x, which are one"):
        evaluate(results("x", "v_x"), truth("x"))
    assert evaluate(results("x", "v_x"), truth("x", "v_x")).mean == 100
    with pytest.raises(InputError, match="found x and v_x"):
        find_names(("x", "v_x"), ("x",), "here")


def test_one_video_is_not_trained_on_and_tested_in_under_two_names(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((9, 2), np.float32))
    with pytest.raises(InputError, match=f"^{tmp_path}: expected each video once, found x and v_x, which are one$"):
        locate(tmp_path, ("x", "v_x"), trusted=False)
    (tmp_path / "gt.json").write_text(json.dumps(truth("x")))
    for subset, name in (("train", "x"), ("test", "v_x")):
        (tmp_path / f"split_{subset}.txt").write_text(name)
    with pytest.raises(InputError, match=f"^{tmp_path}: expected each video once, found x and v_x, which are one$"):
        read_listing(FolderData(layout="lacp", root=tmp_path))


def test_labels_of_training_follow_the_same_rule(tmp_path: Path) -> None:
    recordings = read(plain(tmp_path / "data", "walk", "walk")).recordings
    data = TrainingSet(recordings, ("walk",), labels={"v_walk": [("walk", 1.0, 0.5, 2.0)]})
    assert [len(labels.classes) for labels in data.labels] == [0, 1]
