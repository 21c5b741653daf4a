"""Every way in answers bad input alike: one sentence that names the file or key, status 2, and nothing is written."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import potloc_fast
from potloc_fast import cli, formats
from potloc_fast.config import load_config
from potloc_fast.config.schema import FolderData, SignalsConfig, WindowsConfig
from potloc_fast.data import Dataset, Grid, Recording, load_features
from potloc_fast.data.layouts import LAYOUTS, read_listing
from potloc_fast.data.signals.readers import FORMATS as SIGNALS
from potloc_fast.data.signals.source import SignalSource
from potloc_fast.data.sources import FORMATS, sources_of
from potloc_fast.data.tables import read_table
from potloc_fast.engine.quality import read_quality
from potloc_fast.engine.run import Run
from potloc_fast.errors import InputError
from potloc_fast.evaluation import analyse, evaluate, read_ambiguous, read_detections, read_ground_truth
from potloc_fast.interop import load_released
from potloc_fast.pseudo_labels import read_points, read_pseudo_labels

GOOD = {
    "found.json": {"results": {"v1": [{"label": "a", "score": 0.5, "segment": [0, 1]}]}},
    "truth.json": {"database": {"v1": {"subset": "test", "annotations": [{"label": "a", "segment": [0, 1]}]}}},
    "fps.json": {"v1": 25},
}

WINDOWS = WindowsConfig(length_sec=0.5, stride_sec=0.5, features="raw", rate_hz=2)

Way = Callable[[Path, Path], object]  # a bad file, and a folder with good ones


def python_ways() -> dict[str, Way]:
    return {
        "config": lambda bad, _: load_config(bad),
        "load_features": lambda bad, _: load_features(bad),
        **{f"features{end}": _features(end) for end in (*FORMATS, ".h5", ".txt")},
        **{f"signals{end}": _signals(end) for end in SIGNALS},
        **{f"annotations as {form}": _annotations(form) for form in formats.FORMATS},
        **{f"plain, {key}": _plain(key) for key in ("points_file", "annotations")},
        "table": lambda bad, _: read_table(bad, ("recording",)),
        "detections": lambda bad, _: read_detections(bad),
        "ground truth": lambda bad, _: read_ground_truth(bad),
        "ambiguous": lambda bad, _: read_ambiguous(bad),
        "pseudo-labels": lambda bad, _: read_pseudo_labels(bad),
        "points": lambda bad, good: read_points(bad, good / "fps.json"),
        "rates": lambda bad, good: read_points(good / "points.csv", bad),
        "evaluate": lambda bad, good: evaluate(bad, good / "truth.json"),
        "analyse": lambda bad, good: analyse(good / "found.json", bad),
        "run": lambda bad, _: Run.open(bad),
        "dataset.json": _run("dataset.json"),
        "config.yaml": _run("config.yaml"),
        "weights": _run("potloc/model.safetensors"),
        "quality": _quality,
        "predict": lambda bad, good: potloc_fast.predict(good / "run", [bad]),
        "released": lambda bad, _: load_released(bad, "main"),
        "archive": lambda bad, _: read_listing(FolderData(layout="hapt", root=bad)),
        **{f"layout {name}": _layout(name) for name in (*LAYOUTS, "auto")},
    }


def _features(suffix: str) -> Way:
    def read(bad: Path, _: Path) -> object:
        named = bad.with_name(bad.name + suffix)
        if bad.exists():
            bad.rename(named)
        return [source.load() for source in sources_of(named, trusted=False).values()]

    return read


def _signals(suffix: str) -> Way:
    def read(bad: Path, _: Path) -> object:
        named = bad.with_name(bad.name + suffix)
        if bad.exists():
            bad.rename(named)
        return SignalSource((named,), SignalsConfig(), WINDOWS).load()

    return read


def _annotations(form: str) -> Way:
    return lambda bad, _: formats.read(bad, form)


def _plain(key: str) -> Way:
    def read(bad: Path, good: Path) -> object:
        options = {"layout": "plain", "root": good / "plain", "grid": {"fps": 2}, key: bad}
        return read_listing(FolderData.model_validate(options))

    return read


def _run(name: str) -> Way:
    def read(bad: Path, good: Path) -> object:
        target = good / "run" / name
        content = target.read_bytes()
        target.unlink()
        try:
            if bad.exists():
                bad.rename(target)
            return Run.open(good / "run").load("potloc")
        finally:
            if target.is_dir():
                target.rmdir()
            target.unlink(missing_ok=True)
            target.write_bytes(content)

    return read


def _quality(bad: Path, good: Path) -> object:
    target = good / "run" / "potloc" / "quality.json"
    bad.rename(target)
    try:
        return read_quality(Run.open(good / "run"))
    finally:
        target.rmdir() if target.is_dir() else target.unlink()


def _layout(name: str) -> Way:
    def read(bad: Path, _: Path) -> object:
        return read_listing(FolderData.model_validate({"layout": name, "root": bad})).open()

    return read


COMMANDS: dict[str, Callable[[Path, Path], tuple[object, ...]]] = {
    "train CONFIG": lambda bad, out: ("train", bad, "--run-dir", out),
    "train data.root": lambda bad, out: ("train", "own", f"data.root={bad}", "--run-dir", out),
    "ablate CONFIG": lambda bad, out: ("ablate", "levels", bad, "--out", out),
    "check-data CONFIG": lambda bad, out: ("check-data", bad, "--json", out),
    "init": lambda bad, _: ("init", bad),
    "import-released": lambda bad, out: ("import-released", out, "--main", bad),
    "predict RUN": lambda bad, out: ("predict", bad, "x.npy", "-o", out),
    "predict RUN --into": lambda bad, out: ("predict", bad, "x.npy", "--into", out),
    "export": lambda bad, out: ("export", bad, out),
    "predict FILES": lambda bad, out: ("predict", "good/run", bad, "-o", out),
    "evaluate DETECTIONS": lambda bad, out: ("evaluate", bad, "good/truth.json", "--json", out),
    "evaluate TRUTH": lambda bad, out: ("evaluate", "good/found.json", bad, "--json", out),
    "evaluate --ambiguous": lambda bad, out: (
        *("evaluate", "good/found.json", "good/truth.json", "--ambiguous", bad, "--json", out),
    ),
    "analyse": lambda bad, out: ("analyse", bad, "good/truth.json", "--json", out),
    "report RUN": lambda bad, out: ("report", bad, "-o", out),
    "report DETECTIONS": lambda bad, out: ("report", bad, "good/truth.json", "-o", out),
    "report TRUTH": lambda bad, out: ("report", "good/found.json", bad, "-o", out),
    "plot RUN": lambda bad, _: ("plot", bad),
    "pseudo-labels PROPOSALS": lambda bad, out: (
        *("pseudo-labels", bad, "good/points.csv", "--fps", "good/fps.json", "-o", out),
    ),
    "pseudo-labels POINTS": lambda bad, out: (
        *("pseudo-labels", "good/found.json", bad, "--fps", "good/fps.json", "-o", out),
    ),
    "pseudo-labels --fps": lambda bad, out: (
        *("pseudo-labels", "good/found.json", "good/points.csv", "--fps", bad, "-o", out),
    ),
    "convert IN": lambda bad, out: ("convert", bad, out.with_suffix(".boris")),
    "convert --from": lambda bad, out: ("convert", bad, out.with_suffix(".boris"), "--from", "textgrid"),
    "demo --data": lambda bad, out: ("demo", "--data", bad, "--run-dir", out),
}

CONTENTS: dict[str, bytes | None] = {
    "missing": None,
    "a folder": b"",
    "a pipe": b"",
    "a device": b"",
    "empty": b"",
    "bytes": bytes(range(256)) * 8,
    "not UTF-8": b"\xff\xfe\xff",
    "other JSON": b"[3]",
    "a long text": b'"' + b"x" * 300_000 + b'"',
    "a long list": b"[" + b"1, " * 100_000 + b"1]",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 5000,
    "keys twice": b'{"database": {}, "database": {}}',
    "aliases": b"".join(
        b"a%d: &a%d [%s]\n" % (i, i, b",".join([b"*a%d" % (i - 1) if i else b"x"] * 9)) for i in range(9)
    ),
    "long numbers": b"%s,%s\n" % (b"9" * 5000, b"9" * 5000),
    "long cells": b"a" * 200_000 + b",b\n",
    "lines that are none": "a\u2028b\x85c\x0bd".encode(),
    "a pickle that would run": b"cos\nsystem\n(S'touch harm'\ntR.",
    "half an archive": b"PK\x03\x04" + bytes(100),
}

FINE = {
    ("quality", "missing"),
    ("ambiguous", "empty"),
    ("evaluate --ambiguous", "empty"),
    ("features.csv", "long numbers"),
    ("annotations as audacity", "empty"),
    ("annotations as srt", "empty"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ways") / "good"
    model = {"width": 8, "heads": 2, "levels": 1, "stem": 0, "window": 3}
    config = load_config("synthetic", [f"model={json.dumps(model)}"])
    recording = Recording("v1", np.zeros((9, 4), np.float32), Grid(2, 1, 1), "train")
    run = Run.create(folder / "run", config, Dataset("d", ("a", "b"), (recording,)))
    run.save("potloc", run.build("potloc"))
    for name, value in GOOD.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "points.csv").write_text("class,video_id,point\na,v1,10\n")
    (folder / "plain" / "features").mkdir(parents=True)
    np.save(folder / "plain" / "features" / "v1.npy", recording.features)
    return folder


@pytest.fixture(autouse=True)
def no_end_of_waiting() -> Iterator[None]:
    """End a test that waits for ever, as one does that opens a pipe."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(folder: Path, kind: str, name: str = "bad") -> Path:
    path, content = folder / name, CONTENTS[kind]
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/null")  # without an end, as /dev/zero, it would fill the memory where it is read
    elif content is not None:
        path.write_bytes(content)
    return path


def assert_one_sentence(message: str, name: str) -> None:
    assert 0 < len(message) <= 300
    assert message.isprintable()
    assert name in message


@pytest.mark.parametrize("kind", CONTENTS)
def test_python(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    for number, (name, way) in enumerate(python_ways().items()):
        if (name, kind) in FINE:
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        bad = put(folder, kind)
        with pytest.raises(InputError) as caught:
            pytest.fail(f"{name} takes {kind}: {way(bad, good)!r:.100}")
        assert_one_sentence(str(caught.value), ("run" if bad.name not in str(caught.value) else bad.name))
    assert not list(tmp_path.rglob("harm"))


@pytest.mark.parametrize("kind", CONTENTS)
def test_commands(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.chdir(good.parent)
    bad = put(tmp_path, kind)
    before = sorted(tmp_path.rglob("*"))
    for name, arguments in COMMANDS.items():
        if (name, kind) in FINE:
            continue
        monkeypatch.setattr(sys, "argv", ["potloc-fast", *map(str, arguments(bad, tmp_path / "out"))])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        assert (end.value.code, printed.out) == (2, ""), (name, kind, printed)
        start, _, message = printed.err.partition("potloc-fast: ")
        assert start == "", (name, kind)
        assert_one_sentence(message.removesuffix("\n"), bad.name)
        assert sorted(tmp_path.rglob("*")) == before, (name, kind)


@pytest.mark.parametrize(
    ("option", "value"), [("--min-score", "nan"), ("--snippet-sec", "nan"), ("--snippet-sec", "0")]
)
def test_numbers_that_are_none(
    good: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((9, 4), np.float32))
    monkeypatch.setattr(sys, "argv", ["potloc-fast", "predict", str(good / "run"), "x.npy", option, value])
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = capsys.readouterr()
    assert (end.value.code, printed.out) == (2, "")
    assert_one_sentence(
        printed.err.removeprefix("potloc-fast: ").removesuffix("\n"), option[2:].replace("-sec", "_sec")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_empty_arguments(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(good.parent)  # which an empty path would be
    for arguments in COMMANDS.values():
        given = ["" if argument == tmp_path else str(argument) for argument in arguments(tmp_path, tmp_path / "out")]
        if "" not in given:  # where it is part of an override
            continue
        monkeypatch.setattr(sys, "argv", ["potloc-fast", *given])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        assert (end.value.code, printed.out) == (2, "")
        assert_one_sentence(
            printed.err.removeprefix("potloc-fast: ").removesuffix("\n"),
            f"argument {given.index('') + 1}: expected text",
        )
    assert not list(tmp_path.iterdir())


NUMBERS: dict[str, tuple[str, str, Callable[[Path, Path], object]]] = {
    "time of a detection": (
        "x.json",
        '{"results": {"v": [{"label": "a", "score": 1, "segment": [0, 1]}]}}',
        lambda bad, _: read_detections(bad),
    ),
    "time of an instance": (
        "x.json",
        '{"database": {"v": {"annotations": [{"label": "a", "segment": [0, 1]}]}}}',
        lambda bad, _: read_ground_truth(bad),
    ),
    "duration": ("x.json", '{"database": {"v": {"duration": 1}}}', lambda bad, _: read_ground_truth(bad)),
    "rate": ("x.json", '{"v1": 1}', lambda bad, good: read_points(good / "points.csv", bad)),
    "point of a pseudo-label": (
        "x.json",
        '{"results": {"v": [{"label": "a", "score": 0.5, "segment": [0, 2], "point": 1}]}}',
        lambda bad, _: read_pseudo_labels(bad),
    ),
    "BORIS": (
        "x.boris",
        '{"behaviors_conf": {"0": {"code": "a", "type": "Point event"}}, '
        '"observations": {"v": {"events": [[1, "", "a", "", ""]]}}}',
        lambda bad, _: formats.read(bad),
    ),
    "Label Studio": (
        "x.json",
        '[{"data": {"csv": "v"}, "annotations": [{"result": [{"value": {"start": 0, "end": 1, "labels": ["a"]}}]}]}]',
        lambda bad, _: formats.read(bad),
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_what_python_alone_takes_for_numbers(name: str, good: Path, tmp_path: Path) -> None:
    file, text, read = NUMBERS[name]
    path = tmp_path / file
    head, _, tail = text.rpartition("1")
    path.write_text(text)
    read(path, good)
    for number in ("true", '"1_0"', "9" * 400):
        path.write_text(f"{head}{number}{tail}")
        with pytest.raises(InputError) as caught:
            read(path, good)
        assert_one_sentence(str(caught.value), file)


def test_a_pipe_that_is_given_open_is_a_file(good: Path) -> None:
    read, write = os.pipe()
    os.write(write, (good / "found.json").read_bytes())
    os.close(write)
    assert evaluate(f"/dev/fd/{read}", good / "truth.json").mean == 100
    os.close(read)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=-1", "seed"),
        (f"seed={'9' * 5000}", "override seed"),
        ("train.epochs=[" + "1," * 5000 + "1]", "train.epochs"),
        ("train={epochs: 1, epochs: 2}", "override train"),
        ("train.lr=.inf", "train.lr"),
        ("train.epochs=yes", "train.epochs"),
        ("train.epochs=010", "override train.epochs"),  # 8 to YAML
        ("train.epochs=1:30", "override train.epochs"),  # 90
        ("data.kept_points=true", "data.kept_points"),
        ("evaluate.tiou=[true]", "evaluate.tiou"),
        ("detect.class_thresholds={start: 0, stop: 1, step: 1.0e-12}", "detect.class_thresholds.step"),
        ("model.levels=1000000000", "model.levels"),
        ("data.root=" + "x" * 5000, "data.root"),
        ("data.root=~nobody-has-this-name/x", "data.root"),
        ("data.root=a\0b", "data.root"),
        ("data.grid.fps=1e300", "data.grid.fps"),
        ("data.grid.stride=" + "1" * 300, "data.grid.stride"),
        ("a" * 5000, "expected an override"),
        ("seed=&a [*a]", "override seed"),
        ("\x1b[31m=1", "unknown key"),
    ],
)
def test_overrides(override: str, key: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config("own", [override])
    assert_one_sentence(str(caught.value), key)


def test_values_that_python_hands_over() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    for value in (
        None,
        3,
        [],
        {"results": deep},
        {"results": {"v": deep}},
        {"results": {"v": [{"label": "x" * 10**6}]}},
    ):
        with pytest.raises(InputError) as caught:
            evaluate(value, GOOD["truth.json"])
        assert_one_sentence(str(caught.value), "detections")
        with pytest.raises(InputError) as caught:
            evaluate(GOOD["found.json"], value)
        assert_one_sentence(str(caught.value), "ground truth")
