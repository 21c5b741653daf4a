"""The command line: what it writes, what it prints, and how it answers mistakes."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

import potloc_fast
from potloc_fast import cli
from potloc_fast.engine.run import Run
from potloc_fast.evaluation import analyse, evaluate, read_detections

TINY_MODELS = (
    "base.model.hidden=8",
    "base.train.epochs=1",
    "model.width=8",
    "model.heads=2",
    "model.levels=1",
    "train.epochs=1",
)
TINY = (*TINY_MODELS, "data.recordings=6", "data.length=80", "data.width=6", "data.classes=3")
PNG = b"\x89PNG\r\n\x1a\n"

Call: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command: exit status, standard output and standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["potloc-fast", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


def assert_refused(answer: tuple[int, str, str], message: str) -> None:
    """One sentence on standard error, exit status 2, and nothing else."""
    status, out, err = answer
    assert (status, out) == (2, "")
    assert err.startswith("potloc-fast: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on synthetic recordings, trained from the command line."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["potloc-fast", "train", "synthetic", *TINY, "--run-dir", str(folder)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert not end.value.code
    return Run.open(folder)


@pytest.fixture
def recording(trained: Run, tmp_path: Path) -> Path:
    path = tmp_path / "walk.npy"
    np.save(path, np.random.default_rng(0).standard_normal((70, trained.features)).astype(np.float32))
    return path


VIDEOS = {"train": ("v1", "v2"), "test": ("v3", "v4")}
SNIPPETS = 60  # 38.4 s


@pytest.fixture
def lacp(tmp_path: Path) -> Path:
    """Four videos in the layout of LACP, 3 + 2 channels wide, with the classes dive and jump."""
    root = tmp_path / "lacp"
    rng = np.random.default_rng(0)
    database = {}
    for subset, videos in VIDEOS.items():
        for video in videos:
            annotations = [
                {"segment": ["4.0", "9.5"], "label": "dive"},
                {"segment": ["20.0", "26.0"], "label": "jump"},
            ]
            database[video] = {"subset": subset, "annotations": annotations}
            for stream, width in (("rgb", 3), ("flow", 2)):
                (root / "features" / subset / stream).mkdir(parents=True, exist_ok=True)
                features = rng.standard_normal((SNIPPETS, width)).astype(np.float32)
                np.save(root / "features" / subset / stream / f"{video}.npy", features)
        (root / f"split_{subset}.txt").write_text("\n".join(videos) + "\n")
    (root / "gt.json").write_text(json.dumps({"database": database}))
    (root / "fps_dict.json").write_text(json.dumps(dict.fromkeys(database, 30.0)))
    points = [
        f"{label},{video},{frame}" for video in VIDEOS["train"] for label, frame in (("dive", 200), ("jump", 690))
    ]
    (root / "point_labels.csv").write_text("\n".join(["class,video_id,point", *points]) + "\n")
    return root


# What is printed and written


def test_the_installed_command() -> None:
    command = Path(sysconfig.get_path("scripts")) / "potloc-fast"
    done = subprocess.run(
        [command, "evaluate", "nowhere.json", "gt.json"], capture_output=True, text=True, check=False, timeout=60
    )
    message = "potloc-fast: nowhere.json: expected a file, found none\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


COMMANDS = (
    "train",
    "ablate",
    "predict",
    "evaluate",
    "analyse",
    "pseudo-labels",
    "check-data",
    "import-released",
    "report",
    "plot",
)


@pytest.mark.parametrize("command", [*COMMANDS, "demo", "info"])
def test_help_has_an_example(call: Call, command: str) -> None:
    status, out, _ = call(command, "--help")
    assert status == 0
    assert f"Example: potloc-fast {command}" in out


def test_help_names_the_presets(call: Call) -> None:
    presets = [path.stem for path in (Path(potloc_fast.__file__).parent / "config" / "presets").glob("*.yaml")]
    for command in ("train", "check-data", "ablate"):
        shown = re.sub(r"[│\s]+", " ", call(command, "--help")[1])
        assert not [name for name in presets if not re.search(rf"[( ]{name}[, )]", shown)]


def test_info_as_json(call: Call) -> None:
    status, out, err = call("info", "--json")
    assert (status, err) == (0, "")
    facts = json.loads(out)
    assert facts.keys() == {"version", "torch", "cuda", "cpu"}
    assert facts["version"] == potloc_fast.__version__
    assert facts["torch"] == torch.__version__
    assert facts["cuda"].keys() == {"compiled", "archs", "usable", "reason"}
    assert isinstance(facts["cuda"]["compiled"], bool)
    assert isinstance(facts["cuda"]["usable"], bool)
    assert facts["cuda"]["compiled"] == bool(facts["cuda"]["archs"])
    assert facts["cpu"]["threads"] == torch.get_num_threads()


def test_info_as_a_table(call: Call) -> None:
    status, out, _ = call("info")
    assert status == 0
    assert potloc_fast.__version__ in out


def test_train_writes_a_run_with_pictures(trained: Run) -> None:
    names = {path.name for path in (trained.folder / "plots").iterdir()}
    # Four of the six recordings are for training; the first of either subset is drawn.
    drawn = {"train_synthetic_000.png", "test_synthetic_004.png"}
    assert names == {"base_losses.png", "potloc_losses.png", "quality.png", *drawn}
    assert all((trained.folder / "plots" / name).read_bytes().startswith(PNG) for name in names)


def test_train_on_files(call: Call, lacp: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    status, out, _ = call("train", "thumos14", f"data.root={lacp}", *TINY_MODELS, "--run-dir", folder)
    assert status == 0
    assert "base model" in out
    assert "POTLoc" in out
    assert f"detections: {folder / 'potloc' / 'detections.json'}" in out
    assert f"everything is in {folder}" in out
    assert re.search(r"Of 4 points in recordings that were trained on, \d", out)
    run = Run.open(folder)
    assert (run.classes, run.features) == (("dive", "jump"), 5)
    assert set(read_detections(folder / "potloc" / "detections.json").videos) == set(VIDEOS["test"])


def test_without_ground_truth_nothing_is_scored(call: Call, lacp: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ("train", "thumos14", f"data.root={lacp}", *TINY_MODELS, "--run-dir", folder)
    assert call(*arguments)[0] == 0
    truth = json.loads((lacp / "gt.json").read_text())
    for name in VIDEOS["test"]:
        truth["database"][name]["annotations"] = []
    (lacp / "gt.json").write_text(json.dumps(truth))
    status, out, _ = call(*arguments)
    assert status == 0
    assert f"detections, with no ground truth to score them: {folder / 'potloc' / 'detections.json'}" in out
    assert not list(folder.glob("*/evaluation.json"))


def test_train_one_step(call: Call, lacp: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ("train", "thumos14", f"data.root={lacp}", *TINY_MODELS, "--run-dir", folder)
    assert call(*arguments, "--steps", "base")[0] == 0
    assert not (folder / "pseudo_labels.json").exists()
    assert call(*arguments, "--steps", "pseudo-labels")[0] == 0
    assert (folder / "pseudo_labels.json").is_file()
    assert not (folder / "potloc").exists()


def test_train_again_in_a_folder(call: Call, lacp: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ("train", "thumos14", f"data.root={lacp}", *TINY_MODELS, "--run-dir", folder)
    assert "replaced" not in call(*arguments)[2]
    status, out, err = call(*arguments, "--steps", "base")
    assert status == 0
    assert f"{folder}: models of an earlier run are replaced: base" in err
    assert "mAP" not in out  # what was scored is of the earlier training
    assert "replaced" not in call(*arguments, "--resume")[2]


def test_an_interrupted_training_names_resume(
    call: Call, lacp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def terminate(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    for stop, expected in ((interrupt, 130), (terminate, 143)):
        monkeypatch.setattr("potloc_fast.engine.train.train", stop)
        status, _, err = call("train", "thumos14", f"data.root={lacp}", "--run-dir", tmp_path / "run")
        assert status == expected
        assert err == "\ninterrupted: the same command with --resume goes on\n"
        status, _, err = call("demo", "--data", "synthetic", "--run-dir", tmp_path / "run")
        assert status == expected
        assert "interrupted: potloc-fast train " in err
        assert "--resume goes on" in err
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_a_file_or_the_system_refuses_is_no_riddle(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(error: Exception) -> None:
        raise error

    full = OSError(errno.ENOSPC, "No space left on device", "runs/new")
    monkeypatch.setattr("potloc_fast.evaluation.evaluate", lambda *_, **__: refuse(full))
    message = "runs/new: expected a file that can be used, got: No space left on device"
    assert_refused(call("evaluate", "a.json", "b.json"), message)
    # A fault of the program, of which typer would say no more than "Aborted."
    monkeypatch.setattr("potloc_fast.evaluation.evaluate", lambda *_, **__: refuse(EOFError("Ran out of input")))
    monkeypatch.setattr(sys, "argv", ["potloc-fast", "evaluate", "a.json", "b.json"])
    with pytest.raises(RuntimeError, match="a file ended before it should") as caught:
        cli.main()
    assert isinstance(caught.value.__cause__, EOFError)


def test_predict(call: Call, trained: Run, recording: Path, tmp_path: Path) -> None:
    # What looks like markup is part of a name.
    other = tmp_path / "run [b].npy"
    np.save(other, np.load(recording)[:40])
    output = tmp_path / "out" / "found.json"
    status, out, err = call("predict", trained.folder, recording, other, "-o", output, "--min-score", "0")
    assert (status, err) == (0, "")
    assert {path.name for path in output.parent.iterdir()} == {
        "found.json",
        "found_walk.png",
        "found_run [b].png",
    }
    assert (output.parent / "found_walk.png").read_bytes().startswith(PNG)
    found = read_detections(output)
    assert found.videos == ("walk", "run [b]")
    expected = potloc_fast.predict(trained, [recording, other])
    assert json.loads(output.read_text()) == expected.to_results()
    assert f"{len(found)} detections: {output}" in out
    assert "walk: " in out
    assert "run [b]: " in out
    best = max(expected.to_results()["results"]["walk"], key=lambda entry: entry["score"])
    assert re.search(rf"{best['label']} +│ +{best['segment'][0]:.2f} +│ +{best['segment'][1]:.2f}", out)


NAMES = ["cash$a", "c$1^$", "last $x_{$", "läuft", "\udcff\udcfe", "ж" * 120]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_any_name_can_be_drawn_and_printed(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    paths = [tmp_path / f"{name}.npy" for name in NAMES]
    for path in paths:
        np.save(path, np.zeros((9, trained.features), np.float32))
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    arguments = ["predict", trained.folder, *paths, "-o", tmp_path / "out.json"]
    monkeypatch.setattr(sys, "argv", ["potloc-fast", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    for stream in streams.values():
        stream.flush()
    printed, warned = (stream.buffer.getvalue().decode(encoding) for stream in streams.values())  # type: ignore[attr-defined]
    assert (end.value.code or 0, warned) == (0, "")
    shown = ["läuft", "\\udcff\\udcfe"] if encoding == "utf-8" else ["l\\xe4uft", "\\udcff\\udcfe", "\\u0436"]
    assert all(f"{name}" in printed for name in ["cash$a", "c$1^$", "last $x_{$", *shown])
    assert len(list(tmp_path.glob("out_*.png"))) == len(NAMES)
    assert read_detections(tmp_path / "out.json").videos == tuple(NAMES)


def test_a_picture_that_fails_is_a_warning(
    call: Call, trained: Run, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no font\nfound")

    monkeypatch.setattr("potloc_fast.plots.plot_recording", fail)
    monkeypatch.setattr("potloc_fast.plots.plot_losses", fail)
    output = tmp_path / "out.json"
    status, out, err = call("predict", trained.folder, recording, "-o", output)
    assert status == 0
    assert err == f"warning: {tmp_path / 'out_walk.png'}: a picture was left out: no font\n"
    assert f"detections: {output}" in out
    status, out, err = call("train", "synthetic", *TINY, "--run-dir", tmp_path / "run")
    assert status == 0
    assert err.count("warning: ") == 4
    assert f"everything is in {tmp_path / 'run'}" in out


def test_no_picture_is_drawn_of_a_recording_that_is_too_long(
    call: Call, trained: Run, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potloc_fast.plots.LONGEST", 10)
    snippets = len(np.load(recording))
    because = f"a picture was left out: {snippets} snippets are more than a picture can show, 10\n"
    for where in (("-o", tmp_path / "out.json"), ("--into", tmp_path / "into", "--plots")):
        status, _, err = call("predict", trained.folder, recording, *where)
        assert status == 0
        assert because in err
    assert not list(tmp_path.rglob("*.png"))


def test_plot_draws_any_recording(call: Call, trained: Run) -> None:
    name = json.loads((trained.folder / "ground_truth.json").read_text())["database"]
    chosen = [next(video for video in name if name[video]["subset"] == subset) for subset in ("train", "test")]
    status, out, err = call("plot", trained.folder, *chosen, "--format", "svg")
    assert (status, err) == (0, "")
    pictures = [trained.folder / "plots" / f"{s}_{v}.svg" for s, v in zip(("train", "test"), chosen, strict=True)]
    assert out.splitlines() == [f"picture: {picture}" for picture in pictures]
    assert all("</svg>" in picture.read_text() for picture in pictures)
    status, out, err = call("plot", trained.folder, "nobody")
    assert (status, out) == (2, "")
    assert err.startswith("potloc-fast: 'nobody': expected a recording of synthetic such as ")


def test_pictures_need_no_pseudo_labels(call: Call, tmp_path: Path) -> None:
    arguments = ("train", "synthetic", *TINY, "supervision=points", "--run-dir", tmp_path / "run")
    status, _, err = call(*arguments, "--steps", "potloc,detect")
    assert (status, err) == (0, "")
    assert len(list((tmp_path / "run" / "plots").iterdir())) == 4


def test_no_picture_goes_beside_a_pipe(call: Call, trained: Run, recording: Path, tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(json.loads(pipe.read_text())), daemon=True)
    reader.start()
    before = set(tmp_path.iterdir())
    assert call("predict", trained.folder, recording, "-o", pipe)[0] == 0
    reader.join(10)
    assert found == [potloc_fast.predict(trained, [recording]).to_results()]
    assert set(tmp_path.iterdir()) == before


def test_predict_to_a_table(call: Call, trained: Run, recording: Path, tmp_path: Path) -> None:
    expected = potloc_fast.predict(trained, [recording])
    for least, kept in ((expected.score.min(), len(expected)), (expected.score.max() + 0.01, 0)):
        status, out, _ = call("predict", trained.folder, recording, "-o", tmp_path / "d.csv", "--min-score", least)
        assert status == 0
        assert f"{kept} detections: " in out
        with (tmp_path / "d.csv").open(newline="") as file:
            assert [row["recording"] for row in csv.DictReader(file)] == kept * ["walk"]


def test_what_people_read_begins_at_the_score_that_training_chose(
    call: Call, trained: Run, recording: Path, tmp_path: Path
) -> None:
    expected, run = potloc_fast.predict(trained, [recording]), tmp_path / "run"
    shutil.copytree(trained.folder, run)
    known = json.loads((run / "potloc" / "quality.json").read_text())
    for chosen, kept in ((expected.score.min(), len(expected)), (expected.score.max() + 0.01, 0)):
        (run / "potloc" / "quality.json").write_text(json.dumps({**known, "min_score": chosen}))
        status, out, _ = call("predict", run, recording, "-o", tmp_path / "d.csv")
        assert (status, len((tmp_path / "d.csv").read_text().splitlines())) == (0, 1 + kept)
        assert f"best of {kept} detections" in out
        status, out, _ = call("predict", run, recording, "-o", tmp_path / "d.json")
        assert json.loads((tmp_path / "d.json").read_text()) == expected.to_results()
        assert f"best of {kept} detections" in out
        assert ("--min-score 0 shows all" in out) == (kept == 0)


def test_evaluate_real_detections(call: Call, shared_data: Path, tmp_path: Path) -> None:
    detections = shared_data / "detections" / "pmil_thumos14_test.json"
    arguments = (detections, shared_data / "thumos14" / "gt.json", "--subset", "test", "--tiou", "0.1:0.7:0.1")
    status, out, err = call("evaluate", *arguments, "--json", "-")
    assert status == 0
    value = json.loads(out)
    assert list(value) == ["tiou", "map", "mean", "per_class"]
    assert value["tiou"] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    expected = [69.0908, 63.1278, 54.2449, 44.5892, 33.9444, 23.2795, 12.4661]
    assert [round(figure, 4) for figure in value["map"]] == expected
    assert round(value["mean"], 4) == 42.9632
    assert len(value["per_class"]) == 20
    assert all(list(entry) == ["ap", "mean", "instances"] for entry in value["per_class"].values())
    # Its two videos that the ground truth lacks are named, aside.
    assert err.startswith("warning: ")
    output = tmp_path / "out" / "scores.json"
    status, out, _ = call("evaluate", *arguments, "--json", output)
    assert status == 0
    assert json.loads(output.read_text()) == value
    assert "69.1" in out


@pytest.mark.parametrize("text", ["0.1:0.5:1e-12", "0.1:0.5:0", "0.5:0.1:0.1", "0,5", "nan", "0.5,0.5"])
def test_thresholds_that_are_none_are_refused(call: Call, text: str) -> None:
    assert_refused(call("evaluate", "d.json", "t.json", "--tiou", text), "--tiou: expected FIRST:LAST:STEP or a list")


def test_evaluate_all_subsets_at_a_list_of_thresholds(call: Call, shared_data: Path) -> None:
    folder = shared_data / "detections"
    files = (folder / "autoloc_thumos14_detections.json", folder / "autoloc_thumos14_gt.json")
    status, out, _ = call("evaluate", *files, "--tiou", "0.1,0.5,0.9", "--json", "-")
    assert status == 0
    value = json.loads(out)
    assert value["tiou"] == [0.1, 0.5, 0.9]
    assert [round(figure, 4) for figure in value["map"]] == [46.6737, 21.2054, 0.2086]


def test_evaluate_as_thumos_does(call: Call, shared_data: Path) -> None:
    detections = shared_data / "detections" / "pmil_thumos14_test.json"
    truth, ambiguous = shared_data / "thumos14" / "gt.json", shared_data / "thumos14" / "Ambiguous_test.txt"
    rules = ("--protocol", "thumos", "--ambiguous", ambiguous, "--tiou", "0.5")
    status, out, _ = call("evaluate", detections, truth, "--subset", "test", *rules, "--json", "-")
    assert status == 0
    expected = evaluate(detections, truth, tiou=[0.5], protocol="thumos", subset="test", ambiguous=ambiguous)
    assert json.loads(out) == json.loads(json.dumps(expected.to_json()))
    assert round(expected.mean, 4) != 33.9444  # the ActivityNet protocol's


def test_analyse_real_detections(call: Call, shared_data: Path, tmp_path: Path) -> None:
    files = (shared_data / "detections" / "pmil_thumos14_test.json", shared_data / "thumos14" / "gt.json")
    output, picture = tmp_path / "analysis.json", tmp_path / "analysis.png"
    status, out, err = call("analyse", *files, "--subset", "test", "--json", output, "--plot", picture)
    assert status == 0
    assert "video_test_0000270" in err
    assert re.search(r"localization +8248", out)
    expected = json.loads(json.dumps(analyse(*files, subset="test").to_json()))
    assert json.loads(output.read_text()) == expected
    assert picture.read_bytes().startswith(PNG)
    status, out, _ = call("analyse", *files, "--subset", "test", "--tiou", "0.3", "--json", "-")
    assert (status, round(json.loads(out)["map"], 4)) == (0, 54.2449)


def test_analyse_refuses(call: Call, shared_data: Path, tmp_path: Path) -> None:
    files = (shared_data / "detections" / "pmil_thumos14_test.json", shared_data / "thumos14" / "gt.json")
    assert_refused(call("analyse", *files, "--tiou", "0"), "tiou: expected a threshold in (0, 1], got 0.0")
    assert_refused(call("analyse", *files, "--subset", "val"), "gt.json: expected one of the subsets")
    assert_refused(call("analyse", tmp_path / "no.json", files[1]), "no.json: expected a file, found none")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("variant", "count"), [("paper", 2997), ("released", 3003)])
def test_pseudo_labels_of_real_proposals(
    call: Call, shared_data: Path, tmp_path: Path, variant: str, count: int
) -> None:
    folder, output = shared_data / "thumos14", tmp_path / "labels.json"
    files = (folder / "base_proposals.json", folder / "point_labels.csv", "--fps", folder / "fps_dict.json")
    status, out, err = call("pseudo-labels", *files, "--variant", variant, "-o", output)
    assert (status, err) == (0, "")
    assert out == f"{count} pseudo-labels for 3003 points: {output}\n"
    value = json.loads(output.read_text())
    assert list(value) == ["version", "external_data", "results"]
    entries = [entry for found in value["results"].values() for entry in found]
    assert len(entries) == count
    assert all(entry.keys() == {"label", "point", "score", "segment"} for entry in entries)
    status, out, _ = call("evaluate", output, folder / "gt.json", "--subset", "train", "--json", "-")
    assert status == 0
    assert round(json.loads(out)["mean"], 2) == {"paper": 66.37, "released": 69.49}[variant]


# How mistakes are answered


def save(path: Path, *shape: int, value: float = 0.0) -> None:
    array = np.zeros(shape, np.float32)
    if array.size:
        array[-1, -1] = value
    np.save(path, array)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(root: Path) -> None:
    save(root / "features/test/rgb/v3.npy", 0, 3)
    save(root / "features/test/flow/v3.npy", 0, 2)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


RGB = "features/test/rgb/v3.npy"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / RGB).unlink(), "v3.npy: expected a feature file, found none"),
        (lambda root: save(root / RGB, SNIPPETS, 4), "v3.npy: expected width 3 as in the other recordings, got 4"),
        (
            lambda root: save(root / RGB, SNIPPETS, 3, value=np.nan),
            "v3.npy: expected finite features, got nan at snippet 59, channel 2",
        ),
        (
            lambda root: save(root / RGB, SNIPPETS, 3, value=-np.inf),
            "v3.npy: expected finite features, got -inf at snippet 59, channel 2",
        ),
        (empty, "v3.npy: expected at least one snippet, found an empty recording"),
        (lambda root: truncate(root / RGB), "v3.npy: expected an array of floats, got a truncated or damaged file"),
        (lambda root: (root / RGB).write_bytes(b""), "v3.npy: expected a .npy file"),
        (lambda root: (root / RGB).write_text("1,2,3"), "v3.npy: expected a .npy file"),
        (
            lambda root: np.save(root / RGB, np.array([{}], dtype=object)),
            "v3.npy: expected an array of floats, got pickled Python objects",
        ),
        (
            lambda root: replace(root / "point_labels.csv", "jump,v2,690", "jump,v2,9000"),
            "v2: expected points inside the recording, which lasts 38.40 s, got one of jump at 300.00 s",
        ),
        (
            lambda root: replace(root / "point_labels.csv", "jump,v2,690", "jump,v2,-30"),
            "v2: expected points inside the recording, which lasts 38.40 s, got one of jump at -1.00 s",
        ),
        (
            lambda root: replace(root / "point_labels.csv", "jump,v2", "swim,v2"),
            "v2: expected a label among the 2 classes of lacp, got 'swim'",
        ),
        (lambda root: replace(root / "point_labels.csv", "point\n", "frame\n"), "expected a column point"),
        (lambda root: (root / "point_labels.csv").write_text("class,video_id,point\n"), "lacp: expected point labels"),
        (lambda root: truncate(root / "gt.json"), "gt.json: expected JSON, but line 1"),
        (lambda root: replace(root / "gt.json", '"9.5"', '"soon"'), "expected a label and a segment [start, end], got"),
        (lambda root: shutil.rmtree(root), "lacp: expected the folder or archive of a data set, found none"),
    ],
)
def test_train_refuses_data(
    call: Call, lacp: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(lacp)
    before = sorted(tmp_path.iterdir())
    answer = call("train", "thumos14", f"data.root={lacp}", *TINY_MODELS, "--run-dir", tmp_path / "run")
    assert_refused(answer, message)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sintetic"], "sintetic: expected a YAML file or one of the presets"),
        (["synthetic", "train.epoch=3"], "unknown key train.epoch, did you mean train.epochs?"),
        (["synthetic", "train.epochs=-3"], "key train.epochs: expected greater than 0, got -3"),
        (["synthetic", "train.epochs"], "train.epochs: expected an override of the form KEY=VALUE"),
        (["synthetic", "train.lr=[1"], "override train.lr: expected YAML"),
        (["thumos14"], "key data.root: expected the folder or archive of the data set, got none"),
        (["hapt", "data.root=nowhere"], "nowhere"),
        (["synthetic", "--steps", "base,potlock"], "potlock: expected steps among base, pseudo-labels, potloc, detect"),
        (["synthetic", "--steps", "potloc"], "run/pseudo_labels.json: expected what the step pseudo-labels writes"),
        (["synthetic", "evaluate.subset=validation"], "expected a subset among test, train, got 'validation'"),
        (["missing.yaml"], "missing.yaml: expected a file, found none"),
    ],
)
def test_train_refuses_a_configuration(call: Call, tmp_path: Path, arguments: list[str], message: str) -> None:
    assert_refused(call("train", *arguments, "--run-dir", tmp_path / "run"), message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset: synthetic\ntrain: {epochs: 3", "own.yaml: expected YAML, got"),
        ("- 3", "own.yaml: expected a mapping of keys to values, got list"),
        ("", "own.yaml: expected a mapping of keys to values, got NoneType"),
        ("train: {epochs: 3}", "own.yaml: key data is missing"),
        (
            "data: {layout: lcap}",
            "own.yaml: key data.layout: expected 'auto', 'plain', 'lacp', 'hrpro', 'wtalc', "
            "'backtal', 'actionformer', 'opentad', 'hapt', 'synthetic', got 'lcap'",
        ),
        ("preset: synthetic\ndata: {length: x}", "own.yaml: key data.length: expected a valid integer"),
    ],
)
def test_train_refuses_a_file(call: Call, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    assert_refused(call("train", path, "--run-dir", tmp_path / "run"), message)
    assert list(tmp_path.iterdir()) == [path]


def test_train_refuses_an_archive_without_the_recordings(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    assert_refused(call("train", "hapt", f"data.root={path}", "--run-dir", tmp_path / "run"), "other.zip: expected")
    assert_refused(call("demo", "--data", path, "--run-dir", tmp_path / "run"), "other.zip: expected")
    truncate(path)
    assert_refused(call("train", "hapt", f"data.root={path}", "--run-dir", tmp_path / "run"), "other.zip: expected")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "walk.npy: expected a feature file, found none"),
        (lambda path: save(path, 70, 5), "walk.npy: expected width 6, which the model was trained on, got 5"),
        (lambda path: save(path, 70, 6, value=np.nan), "walk.npy: expected finite features, got nan at snippet 69"),
        (lambda path: save(path, 70, 6, value=np.inf), "walk.npy: expected finite features, got inf at snippet 69"),
        (lambda path: save(path, 0, 6), "walk.npy: expected at least one snippet, found an empty recording"),
        (lambda path: np.save(path, np.zeros(6)), "walk.npy: expected an array of shape [snippets, channels]"),
        (lambda path: np.save(path, np.zeros((70, 6), int)), "walk.npy: expected an array of floats, got int64"),
        (truncate, "walk.npy: expected an array of floats, got a truncated or damaged file"),
        (lambda path: path.write_bytes(path.read_bytes()[:30]), "walk.npy: expected an array of floats, got"),
        (lambda path: (path.unlink(), path.mkdir()), "walk.npy: expected a readable feature file"),
    ],
)
def test_predict_refuses_features(
    call: Call, trained: Run, recording: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    good = tmp_path / "good.npy"
    shutil.copyfile(recording, good)
    spoil(recording)
    assert_refused(call("predict", trained.folder, good, recording, "-o", tmp_path / "out" / "found.json"), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "run: expected the folder of a run"),
        (lambda run: (run / "dataset.json").unlink(), "run: expected the folder of a run"),
        (lambda run: (run / "config.yaml").unlink(), "config.yaml: expected a file, found none"),
        (lambda run: truncate(run / "dataset.json"), "dataset.json: expected JSON, but line 1"),
        (lambda run: (run / "dataset.json").write_text("{}"), "dataset.json: expected classes, features and grid"),
        (lambda run: (run / "dataset.json").write_text("[]"), "dataset.json: expected classes, features and grid"),
        (lambda run: replace(run / "config.yaml", "epochs:", "epoch:"), "config.yaml: unknown key"),
        (lambda run: (run / "potloc/model.safetensors").unlink(), "model.safetensors: expected the weights of the"),
        (lambda run: truncate(run / "potloc/model.safetensors"), "model.safetensors: expected weights that fit"),
        (lambda run: (run / "potloc/model.safetensors").write_bytes(b""), "model.safetensors: expected weights that"),
        (
            lambda run: shutil.copyfile(run / "base/model.safetensors", run / "potloc/model.safetensors"),
            "model.safetensors: expected weights that fit",
        ),
    ],
)
def test_predict_refuses_a_run(
    call: Call, trained: Run, recording: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    spoil(folder)
    assert_refused(call("predict", folder, recording, "-o", tmp_path / "out" / "found.json"), message)
    assert not (tmp_path / "out").exists()


TRUTH = {"database": {"v": {"subset": "test", "annotations": [{"label": "dive", "segment": [0, 10]}]}}}
FOUND = {"results": {"v": [{"label": "dive", "score": 0.9, "segment": [0, 6]}]}}


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """A folder with found.json and truth.json."""
    (tmp_path / "found.json").write_text(json.dumps(FOUND))
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    return tmp_path


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda f: (f / "found.json").unlink(), (), "found.json: expected a file, found none"),
        (lambda f: truncate(f / "found.json"), (), "found.json: expected JSON, but line 1"),
        (lambda f: truncate(f / "truth.json"), (), "truth.json: expected JSON, but line 1"),
        (lambda f: (f / "found.json").write_bytes(b"\xff\x00"), (), "found.json: expected UTF-8 text"),
        (
            lambda f: replace(f / "found.json", "dive", "swim"),
            (),
            "expected labels of the ground truth (dive), got swim",
        ),
        (lambda f: replace(f / "found.json", "0.9", "NaN"), (), "found.json: results['v'][0]: expected a label, a"),
        (lambda f: replace(f / "found.json", "[0, 6]", "[6, 0]"), (), "found.json: results['v'][0]: expected a label"),
        (lambda f: replace(f / "truth.json", "[0, 10]", "[0]"), (), "truth.json: database['v'].annotations[0]"),
        (
            lambda f: replace(f / "truth.json", "database", "data"),
            (),
            'truth.json: expected an object with a "database"',
        ),
        (lambda f: None, ("--subset", "val"), "truth.json: expected one of the subsets test, got 'val'"),
        (lambda f: None, ("--ambiguous", "nowhere.txt"), "nowhere.txt: expected a file, found none"),
        *(
            (lambda f: None, ("--tiou", tiou), "tiou: expected")
            for tiou in ("x", "0.1:0.7", "0.1:0.7:0", "0.7:0.1:0.1")
        ),
        *((lambda f: None, ("--tiou", tiou), "tiou: expected") for tiou in ("50", "0.5,nan", "0:0:0.1", "0.1:inf:0.1")),
    ],
)
def test_evaluate_refuses(
    call: Call, scored: Path, spoil: Callable[[Path], object], options: tuple[str, ...], message: str
) -> None:
    files, output = (scored / "found.json", scored / "truth.json"), scored / "scores.json"
    assert call("evaluate", *files, "--json", output)[0] == 0
    output.unlink()
    spoil(scored)
    assert_refused(call("evaluate", *files, *options, "--json", output), message)
    assert not output.exists()
    assert_refused(call("evaluate", *files, *options, "--json", "-"), message)


@pytest.fixture
def labelled(scored: Path) -> Path:
    """A folder with found.json, points.csv and fps.json."""
    (scored / "points.csv").write_text("class,video_id,point\ndive,v,60\n")
    (scored / "fps.json").write_text('{"v": 30.0}')
    return scored


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: truncate(f / "found.json"), "found.json: expected JSON, but line 1"),
        (lambda f: (f / "points.csv").unlink(), "points.csv: expected a file, found none"),
        (lambda f: replace(f / "points.csv", "point\n", "frame\n"), "points.csv: "),
        (
            lambda f: replace(f / "points.csv", "60", "soon"),
            "points.csv: expected a number as point in line 2, got 'soon'",
        ),
        (lambda f: replace(f / "fps.json", "30.0", "0"), "got 60 at 0 fps of 'v'"),
        (lambda f: replace(f / "fps.json", '"v"', '"w"'), "got 60 at no fps of 'v'"),
        (lambda f: (f / "fps.json").write_text("{"), "fps.json: expected JSON, but line 1"),
    ],
)
def test_pseudo_labels_refuses(call: Call, labelled: Path, spoil: Callable[[Path], object], message: str) -> None:
    output = labelled / "labels.json"
    arguments = (labelled / "found.json", labelled / "points.csv", "--fps", labelled / "fps.json", "-o", output)
    assert call("pseudo-labels", *arguments)[0] == 0
    output.unlink()
    spoil(labelled)
    assert_refused(call("pseudo-labels", *arguments), message)
    assert not output.exists()


@pytest.mark.parametrize(
    "arguments",
    [("evalute",), ("evaluate", "found.json"), ("evaluate", "a", "b", "--protocol", "coco"), ("predict",)],
)
def test_usage_is_explained(call: Call, arguments: tuple[str, ...]) -> None:
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert "Usage: potloc-fast" in err
    assert "Traceback" not in err


# Files of annotation tools


@pytest.mark.parametrize("suffix", [".boris", ".TextGrid", ".eaf", ".txt", ".selections.txt", ".srt", ".via.json"])
def test_predict_to_an_annotation_tool(call: Call, trained: Run, recording: Path, tmp_path: Path, suffix: str) -> None:
    other = tmp_path / "run 2.npy"
    shutil.copyfile(recording, other)
    expected = potloc_fast.predict(trained, [recording])
    least = float(np.median(expected.score)) * (1 - 1e-5)  # two in a batch may round differently from one alone
    expected = expected.take(expected.score >= least)
    output = tmp_path / "out" / f"found{suffix}"
    status, out, err = call("predict", trained.folder, recording, other, "-o", output, "--min-score", least)
    assert (status, err) == (0, "")
    several = suffix in (".boris", ".via.json")
    written = output if several else tmp_path / "out" / "found"
    assert f"{2 * len(expected)} detections: {written}\n" in out
    if not several:
        assert sorted(path.name for path in written.iterdir()) == [f"run 2{suffix}", f"walk{suffix}"]
    found = read_detections(written)
    assert sorted(found.videos) == ["run 2", "walk"]
    for video in range(2):
        own = found.take(found.video == video)
        np.testing.assert_allclose(np.sort(own.start_sec), np.sort(expected.start_sec), rtol=0, atol=0.5e-3)
        np.testing.assert_allclose(np.sort(own.end_sec), np.sort(expected.end_sec), rtol=0, atol=1e-3)
        assert sorted(own.labels[i] for i in own.label) == sorted(expected.labels[i] for i in expected.label)


@pytest.mark.parametrize("suffix", [".boris", ".TextGrid", ".csv"])
def test_evaluate_what_tools_wrote(call: Call, tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)

    def some(count: int) -> list[dict[str, Any]]:
        starts = np.cumsum(rng.uniform(1, 3, count)).round(3)
        return [
            {"label": f"class {i % 3}", "score": round(rng.random(), 4), "segment": [start, round(start + 2.5, 3)]}
            for i, start in enumerate(starts.tolist())
        ]

    truth = {name: {"annotations": some(30)} for name in ("v1", "v2")}
    files = {"found": {"results": {name: some(40) for name in truth}}, "truth": {"database": truth}}
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        assert call("convert", tmp_path / f"{name}.json", tmp_path / f"{name}{suffix}")[0] == 0
    end = "" if suffix == ".TextGrid" else suffix
    for command in ("evaluate", "analyse"):
        expected = call(command, tmp_path / "found.json", tmp_path / "truth.json", "--json", "-")
        answer = call(command, tmp_path / f"found{end}", tmp_path / f"truth{end}", "--json", "-")
        assert (answer[0], answer[2]) == (0, "")
        assert json.loads(answer[1]) == json.loads(expected[1])
    answer = call("evaluate", tmp_path / f"found{end}", tmp_path / f"truth{end}", "--subset", "test")
    assert_refused(answer, "expected one of the subsets (none), got 'test'")


def test_pseudo_labels_from_a_tools_points(call: Call, labelled: Path) -> None:
    (labelled / "clicks.csv").write_text("recording,label,time_sec\nv,dive,2\n")
    assert call("convert", labelled / "clicks.csv", labelled / "clicks.boris")[0] == 0
    arguments = ("pseudo-labels", labelled / "found.json")
    assert call(*arguments, labelled / "points.csv", "--fps", labelled / "fps.json", "-o", labelled / "a.json")[0] == 0
    assert call(*arguments, labelled / "clicks.boris", "-o", labelled / "b.json")[0] == 0
    assert (labelled / "a.json").read_bytes() == (labelled / "b.json").read_bytes()
    answer = call(*arguments, labelled / "points.csv", "-o", labelled / "c.json")
    assert_refused(answer, "points.csv: expected --fps, the frame rates of the videos")


def test_convert(call: Call, tmp_path: Path) -> None:
    (tmp_path / "walk.csv").write_text("behavior,Start (s),end\njump,1.5,1.75\nrun,3,5\n")
    columns = ("--columns", "label=behavior,start=Start (s),end=end")
    status, out, err = call("convert", tmp_path / "walk.csv", tmp_path / "walk.TextGrid", *columns)
    assert (status, out, err) == (0, f"2 events of 1 recording: {tmp_path / 'walk.TextGrid'}\n", "")
    status, out, _ = call("convert", tmp_path / "walk.TextGrid", tmp_path / "out.json", "--recording", "day 1")
    assert status == 0
    assert json.loads((tmp_path / "out.json").read_text())["results"] == {
        "day 1": [
            {"label": "jump", "score": 1.0, "segment": [1.5, 1.75]},
            {"label": "run", "score": 1.0, "segment": [3.0, 5.0]},
        ]
    }
    shutil.copyfile(tmp_path / "walk.TextGrid", tmp_path / "walk.dat")
    status, _, _ = call("convert", tmp_path / "walk.dat", tmp_path / "labels", "--from", "textgrid", "--to", "audacity")
    assert status == 0
    assert (tmp_path / "labels").read_text() == "1.500000\t1.750000\tjump\n3.000000\t5.000000\trun\n"
    (tmp_path / "found.json").write_text(json.dumps(FOUND))
    status, out, _ = call("convert", tmp_path / "found.json", tmp_path / "found.boris", "--min-score", "0.95")
    assert (status, out) == (0, f"0 events of 1 recording: {tmp_path / 'found.boris'}\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--from", "elam"), "--from: expected one of csv, boris,"),
        (("--to", "elam"), "--to: expected one of csv, boris,"),
        (("--to", "boris-export"), "boris-export: expected a format that BORIS reads"),
        (("--columns", "label"), "--columns: expected pairs such as label=behavior"),
        (("--columns", "name=behavior"), "--columns: expected columns for recording, label, start, end, time, score"),
        (("--columns", "label=behaviour"), "walk.csv: expected a line with the columns behaviour"),
        (("--columns", "label=behavior", "--recording", "x"), "walk.csv: line 1: expected a column time_sec"),
        (("--fps", "0"), "--fps: expected frames a second over 0, got 0"),
        (("--from", "srt"), "walk.csv: line 1: expected HH:MM:SS,mmm --> HH:MM:SS,mmm, got 'behavior,"),
    ],
)
def test_convert_refuses(call: Call, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    (tmp_path / "walk.csv").write_text("behavior,Start (s)\njump,1.5\n")
    with_columns = (
        () if "--columns" in options or "--from" in options else ("--columns", "label=behavior,start=Start (s)")
    )
    assert_refused(call("convert", tmp_path / "walk.csv", tmp_path / "out.boris", *with_columns, *options), message)
    assert [path.name for path in tmp_path.iterdir()] == ["walk.csv"]


def test_convert_names_one_recording_alone(call: Call, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("recording,label,time_sec\nv,dive,2\n")
    for source, message in (
        (tmp_path / "p.csv", "p.csv: expected a file that names no"),
        (tmp_path, "--recording: exp"),
    ):
        assert_refused(call("convert", source, tmp_path / "out.boris", "--recording", "x"), message)
    (tmp_path / "notes.txt").write_text("dear diary\n")
    assert_refused(call("convert", tmp_path / "notes.txt", tmp_path / "o.boris"), "notes.txt: expected a file of CSV")
