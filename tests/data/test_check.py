"""What `check-data` reports, and that training refuses what it calls a fault and nothing else."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from rich.console import Console

from potloc_fast import cli
from potloc_fast.config import load_config
from potloc_fast.data import check as module
from potloc_fast.data.check import Report, check
from potloc_fast.data.grid import Grid
from potloc_fast.data.listing import Entry, Listing
from potloc_fast.data.recording import Dataset, Instance, Point, Recording
from potloc_fast.engine.train import list_dataset, train
from potloc_fast.errors import InputError

TINY = (
    "base.model.hidden=8",
    "base.train.epochs=1",
    "base.train.length=null",
    "model.width=8",
    "model.heads=2",
    "model.levels=1",
    "train.epochs=1",
    "train.length=null",
)
VIDEOS = {"train": ("v1", "v2", "v3"), "test": ("v4", "v5")}
SNIPPETS = 60  # 38.4 s
WIDTHS = {"rgb": 3, "flow": 2}

Call: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five videos in the layout of LACP with the classes dive and jump."""
    root = tmp_path / "lacp"
    rng = np.random.default_rng(0)
    annotations = [{"segment": [4.0, 9.5], "label": "dive"}, {"segment": [20.0, 26.0], "label": "jump"}]
    for subset, videos in VIDEOS.items():
        for stream, width in WIDTHS.items():
            (root / "features" / subset / stream).mkdir(parents=True)
            for video in videos:
                np.save(npy(root, video, stream), rng.standard_normal((SNIPPETS, width)).astype(np.float32))
        (root / f"split_{subset}.txt").write_text("\n".join(videos))
    names = [*VIDEOS["train"], *VIDEOS["test"]]
    write(root / "gt.json", {"database": {video: {"annotations": annotations} for video in names}})
    write(root / "fps_dict.json", dict.fromkeys(names, 30.0))
    rows = [f"{label},{video},{frame}" for video in VIDEOS["train"] for label, frame in (("dive", 200), ("jump", 690))]
    (root / "point_labels.csv").write_text("\n".join(["class,video_id,point", *rows]) + "\n")
    return root


def npy(root: Path, video: str, stream: str = "rgb") -> Path:
    return root / "features" / ("train" if video in VIDEOS["train"] else "test") / stream / f"{video}.npy"


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def annotate(root: Path, video: str, *segments: tuple[float, float, str]) -> None:
    content = json.loads((root / "gt.json").read_text())
    annotations = [{"segment": segment, "label": label} for *segment, label in segments]
    content["database"][video] = {"annotations": annotations}
    write(root / "gt.json", content)


def save(path: Path, array: np.ndarray) -> None:
    np.save(path, array if array.dtype == object else np.asarray(array))


def with_value(root: Path, video: str, value: float, stream: str = "rgb") -> None:
    features = np.load(npy(root, video, stream))
    features[40, 1] = value
    np.save(npy(root, video, stream), features)


def streams(root: Path, video: str, length: int) -> None:
    for stream, width in WIDTHS.items():
        np.save(npy(root, video, stream), np.random.default_rng(1).standard_normal((length, width)).astype("f4"))


def report_of(root: Path, *overrides: str) -> Report:
    config = load_config("thumos14", [f"data.root={root}", *TINY, *overrides])
    return check(list_dataset(config), config)


def kinds(findings: tuple[Any, ...]) -> dict[str, int]:
    return dict(Counter(finding.kind for finding in findings))


FAULTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...], dict[str, int]]] = {
    "missing": (lambda r: npy(r, "v4").unlink(), (), {"missing files": 1}),
    "missing folder": (lambda r: shutil.rmtree(r / "features/test"), (), {"missing files": 4}),
    "truncated": (
        lambda r: npy(r, "v2").write_bytes(npy(r, "v2").read_bytes()[:-9]),
        (),
        {"unreadable files": 1},
    ),
    "text": (lambda r: npy(r, "v1").write_text("1,2"), (), {"unreadable files": 1}),
    "pickle": (lambda r: save(npy(r, "v1"), np.array([{}], dtype=object)), (), {"unreadable files": 1}),
    "integers": (lambda r: save(npy(r, "v1"), np.zeros((60, 3), int)), (), {"unreadable files": 1}),
    "three axes": (lambda r: save(npy(r, "v1"), np.zeros((1, 60, 3))), (), {"unreadable files": 1}),
    "width": (lambda r: save(npy(r, "v1"), np.ones((60, 4))), (), {"other widths": 1}),
    "streams": (lambda r: save(npy(r, "v1"), np.ones((59, 3))), (), {"streams of different lengths": 1}),
    "no channels": (
        lambda r: [save(npy(r, v), np.zeros((60, 0))) for v in ("v1", "v2", "v3", "v4", "v5")],
        (),
        {"other arrays": 5},
    ),
    "empty": (lambda r: streams(r, "v5", 0), (), {"empty recordings": 2}),
    "nan": (lambda r: with_value(r, "v5", np.nan), (), {"values that are not finite": 1}),
    "inf": (lambda r: with_value(r, "v1", -np.inf, "flow"), (), {"values that are not finite": 1}),
    "late point": (
        lambda r: edit(r / "point_labels.csv", "jump,v2,690", "jump,v2,9000"),
        (),
        {"points outside the recording": 1},
    ),
    "early point": (
        lambda r: edit(r / "point_labels.csv", "jump,v2,690", "jump,v2,-30"),
        (),
        {"points outside the recording": 1},
    ),
    "unknown class": (
        lambda r: edit(r / "point_labels.csv", "jump,v2", "swim,v2"),
        (),
        {"labels of no class": 1},
    ),
    "backward": (lambda r: annotate(r, "v1", (9, 4, "dive")), (), {"instances without a length": 1}),
    "backwards": (lambda r: annotate(r, "v1", (6.7, 6.6, "dive")), (), {"instances without a length": 1}),
    "without a start": (lambda r: annotate(r, "v1", (-np.inf, 9, "dive")), (), {"instances without a length": 1}),
    "endless": (lambda r: annotate(r, "v1", (9, np.inf, "dive")), (), {"instances without a length": 1}),
    "no points": (lambda r: (r / "point_labels.csv").write_text("class,video_id,point\n"), (), {"no points": 1}),
    "nothing to draw": (
        lambda r: [annotate(r, video) for video in VIDEOS["train"]],
        ("data.points=centre",),
        {"no points": 1},
    ),
    "no train": (
        lambda r: [
            (r / "split_train.txt").write_text(""),
            (r / "point_labels.csv").write_text("class,video_id,point\n"),
        ],
        (),
        {"missing subsets": 1, "no points": 1},
    ),
    "no recordings": (
        lambda r: [(r / f"split_{s}.txt").write_text("") for s in VIDEOS],
        (),
        {"no recordings": 1},
    ),
    "other subset": (lambda r: None, ("evaluate.subset=validation",), {"missing subsets": 1}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_a_fault_is_refused_by_training(root: Path, tmp_path: Path, name: str) -> None:
    spoil, overrides, expected = FAULTS[name]
    spoil(root)
    report = report_of(root, *overrides)
    assert kinds(report.faults) == expected
    json.dumps(report.to_json(), allow_nan=False)
    with pytest.raises(InputError) as caught:
        train(load_config("thumos14", [f"data.root={root}", *TINY, *overrides]), tmp_path / "run")
    # And in the same words.
    assert str(caught.value) in [fault.message for fault in report.faults]
    assert not (tmp_path / "run").exists()


WARNINGS: dict[str, tuple[Callable[[Path], object], tuple[str, ...], dict[str, int]]] = {
    "no test": (lambda r: (r / "split_test.txt").write_text(""), (), {"no recordings to test in": 1}),
    "nothing": (lambda r: None, (), {}),
    "surplus": (
        lambda r: [np.save(npy(r, name), np.zeros(3)) for name in ("v6", "v7", ".v1")],
        (),
        {"surplus files": 2},
    ),
    "instant": (
        lambda r: annotate(r, "v1", (6.6, 6.6, "dive")),
        (),
        {"instances left out, as they end where they start": 1},
    ),
    "doubled": (
        lambda r: annotate(r, "v1", (4.0, 9.5, "dive"), (20.0, 26.0, "jump"), (4.0, 9.5, "dive")),
        (),
        {"instances merged, as they stand twice": 1},
    ),
    "zeros": (lambda r: np.save(npy(r, "v1"), np.zeros((60, 3), "f4")), (), {"constant features": 1}),
    "constant": (
        lambda r: [np.save(npy(r, v), np.tile(np.float32([1, 2, 3]), (60, 1))) for v in ("v1", "v2")],
        (),
        {"constant features": 2},
    ),
    "copies": (lambda r: shutil.copyfile(npy(r, "v1"), npy(r, "v5")), (), {"equal features": 1}),
    "large": (lambda r: with_value(r, "v1", -2e4), (), {"large values": 1}),
    "large, to be scaled": (lambda r: with_value(r, "v1", -2e4), ("data.standardize=true",), {}),
    "short": (lambda r: streams(r, "v4", 32), (), {"instances beyond the features": 1}),
    "a little short": (lambda r: streams(r, "v4", 38), (), {}),
    "drawn past the end": (
        lambda r: streams(r, "v1", 38),
        ("data.points=end",),
        {},
    ),
    "one snippet": (lambda r: streams(r, "v4", 1), (), {"instances beyond the features": 1}),
    "half precision": (lambda r: np.save(npy(r, "v4"), np.load(npy(r, "v4")).astype("f2")), (), {}),
    "point between": (
        lambda r: edit(r / "point_labels.csv", "jump,v2,690", "jump,v2,400"),
        (),
        {"points outside instances": 1, "instances without a point": 1},
    ),
    "point at the very end": (lambda r: edit(r / "point_labels.csv", "jump,v2,690", "jump,v2,780"), (), {}),
    "point of another class": (
        lambda r: edit(r / "point_labels.csv", "jump,v2,690", "dive,v2,690"),
        (),
        {"points outside instances": 1, "instances without a point": 1},
    ),
    "no point": (lambda r: edit(r / "point_labels.csv", "jump,v2,690\n", ""), (), {"instances without a point": 1}),
    "no points": (
        lambda r: edit(r / "point_labels.csv", "dive,v2,200\njump,v2,690\n", ""),
        (),
        {"recordings without points": 1},
    ),
    "points to be thinned": (lambda r: None, ("data.kept_points=0.5",), {}),
    "class of testing alone": (lambda r: annotate(r, "v4", (1, 2, "swim")), (), {"classes without points": 1}),
    "tested on what is trained on": (lambda r: None, ("evaluate.subset=train",), {}),
    "nothing to score": (lambda r: [annotate(r, video) for video in VIDEOS["test"]], (), {}),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_training_starts_where_there_are_warnings_alone(root: Path, tmp_path: Path, name: str) -> None:
    spoil, overrides, expected = WARNINGS[name]
    spoil(root)
    report = report_of(root, *overrides)
    assert report.faults == ()
    assert kinds(report.warnings) == expected
    run = train(load_config("thumos14", [f"data.root={root}", *TINY, *overrides]), tmp_path / "run")
    assert (run.folder / "potloc" / "detections.json").is_file() == ("no recordings to test in" not in expected)


def test_the_sentences(root: Path) -> None:
    np.save(npy(root, "v9"), np.zeros(3))
    with_value(root, "v1", 2e4)
    streams(root, "v4", 32)
    edit(root / "point_labels.csv", "jump,v2,690", "jump,v2,400")
    annotate(root, "v5", (1, 2, "swim"))
    assert [warning.message for warning in report_of(root).warnings] == [
        f"{npy(root, 'v9')}: no recording of the annotations uses it",
        f"{npy(root, 'v1')}: values of up to 2e+04: data.standardize=true would scale them",
        "v4: 1 of 2 instances beyond the features, which cover 20.5 s, the last one until 26.0 s",
        "v2: 1 of 2 points in no instance of their class, the first one of jump at 13.33 s",
        "v2: 1 of 2 instances without a point, the first one of jump at [20.00, 26.00) s",
        "swim: no point in the training recordings, 1 instance outside of training",
    ]


def made(name: str, grid: Grid, duration_sec: float | None = None, **labels: Any) -> Entry:
    class Made:
        path = Path(f"{name}.npy")

        def load(self) -> np.ndarray:
            return np.random.default_rng(len(name)).standard_normal((100, 2)).astype(np.float32)

    return Entry(name, "train", (Made(),), grid, duration_sec=duration_sec, **labels)


def listing(*entries: Entry) -> Listing:
    return Listing("made", ("dive",), entries)


def warnings_of(*entries: Entry) -> list[str]:
    return [
        warning.message
        for warning in check(listing(*entries), load_config("thumos14", ["evaluate.subset=train"])).warnings
        if warning.kind not in ("recordings without points", "equal features")
    ]


def test_lengths_are_held_against_the_annotations() -> None:
    half = Grid(fps=30, window=15, stride=15)  # 100 snippets of 0.5 s
    assert warnings_of(*(made("v", half, sec) for sec in (50.0, 48.6, 51.4, 52.4, None))) == []
    assert warnings_of(made("v1", half, 60.0), made("v2", half, 40.0)) == [
        "v1: features cover 50.0 s, of 60.0 s annotated (0.83 x)",
        "v2: features cover 50.0 s, of 40.0 s annotated (1.25 x)",
    ]


def test_a_rare_class_with_the_name_of_another_is_named() -> None:
    def of(*labels: str) -> list[str]:
        points = tuple(Point(label, float(time)) for time, label in enumerate(labels))
        dataset = Listing(
            "made", tuple(sorted(set(labels))), (made("v", Grid(fps=2, window=1, stride=1), points=points),)
        )
        found = check(dataset, load_config("thumos14", ["evaluate.subset=train"])).warnings
        return [warning.message for warning in found if warning.kind == "classes with similar names"]

    assert of(*10 * ["jump"], "jmup") == ["jmup: 1 point, and 10 of jump: is it the same class?"]
    assert of(*9 * ["jump"], "jmup") == []
    assert of(*10 * ["jump"], "turn") == []


def test_rates_that_differ_are_named() -> None:
    grids = [Grid(fps=fps, window=16, stride=4) for fps in (30, 29.97, 30, 25)]
    assert warnings_of(*(made(f"v{i}", grid) for i, grid in enumerate(grids))) == [
        "v3: a snippet each 0.16 s, in most recordings 0.133 s"
    ]


def test_resampled_features_have_rates_of_their_own() -> None:
    assert warnings_of(*(made("v", None, sec) for sec in (10.0, 20.0, 70.0))) == []
    config = load_config("thumos14", ["evaluate.subset=train"])
    report = check(listing(replace(made("v1", None), points=(Point("dive", 1.0),))), config)
    assert [fault.message for fault in report.faults] == [
        "v1: expected its duration in seconds, which resampled features need, got None"
    ]
    assert report.faults[0].kind == "features that don't fit the annotations"


@pytest.mark.parametrize("recordings", [1, 2])
def test_sources_may_lie_in_files(tmp_path: Path, recordings: int) -> None:
    class Member:
        def __init__(self, file: str, name: str) -> None:
            self.path = tmp_path / file / name

        def load(self) -> np.ndarray:
            if "b" in self.path.name or not self.path.parent.is_file():
                raise InputError(f"{self.path}: expected features, found none")
            return np.random.default_rng(0).standard_normal((10, 2)).astype(np.float32)

    for name in ("used.npz", "other.npz"):
        (tmp_path / name).touch()
    entries = [
        Entry(f"v{i}", "train", (Member("used.npz", f"a{i}"), Member("used.npz", f"b{i}")), Grid(25, 16, 16))
        for i in range(recordings)
    ]
    entries.append(Entry("v2", "train", (Member("gone.npz", "a"),), Grid(25, 16, 16)))
    report = check(listing(*entries), load_config("thumos14", ["evaluate.subset=train"]))
    assert kinds(report.faults) == {"unreadable files": recordings, "missing files": 1, "no points": 1}
    # One file of several recordings says nothing on what lies beside it.
    surplus = [warning.message for warning in report.warnings]
    assert surplus == [f"{tmp_path / 'other.npz'}: no recording of the annotations uses it"][: 2 - recordings]


@pytest.mark.parametrize(("assumed", "scale"), [(25, "0.833"), (60, "2")])
def test_points_at_another_rate_are_recognised(assumed: float, scale: str) -> None:
    starts = [3.0, 11.0, 14.0, 27.0, 33.0]
    instances = tuple(Instance("dive", start, start + 1.5) for start in starts)
    points = tuple(Point("dive", (start + 0.7) * 30 / assumed) for start in starts)
    grid = Grid(fps=25, window=16, stride=16)
    assert warnings_of(made("v1", grid, instances=instances, points=points)) == [
        f"v1: all points would lie in instances of their class if their times were {scale} x: is the frame rate right?"
    ]
    near = tuple(Point("dive", (start + 0.7) * 30 / 29.97) for start in starts)
    assert warnings_of(made("v1", grid, instances=instances, points=near)) == []


def test_real_hapt(shared_data: Path) -> None:
    config = load_config("hapt", [f"data.root={shared_data / 'hapt' / 'hapt_uci.zip'}"])
    report = check(list_dataset(config), config)
    assert (report.faults, report.warnings) == ((), ())
    subsets = report.statistics["subsets"]
    assert {name: (row["recordings"], row["instances"], row["points"]) for name, row in subsets.items()} == {
        "train": (42, 849, 849),
        "test": (19, 365, 365),
    }
    assert sum(row["hours"] for row in subsets.values()) == pytest.approx(6.2, abs=0.05)
    assert len(report.statistics["classes"]) == 12
    assert sum(report.statistics["recording_sec"]["counts"]) == 61
    assert sum(report.statistics["instance_sec"]["counts"]) == 1214
    position = report.statistics["point_position"]
    assert sum(position["counts"]) == 849
    assert position["mean"] == pytest.approx(0.5, abs=0.02)
    assert position["std"] == pytest.approx(1 / 8, abs=0.01)
    # Points from a file that is not there.
    found = list_dataset(config)
    assert isinstance(found, Listing)
    few = replace(found, entries=(found.entries[0], found.entries[7]))
    assert kinds(check(few, load_config("hapt", ["data.points=file"])).faults) == {"no points": 1}


@pytest.fixture(scope="module")
def thumos(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real annotations of THUMOS'14 with made-up features that end with the last instance."""
    root = tmp_path_factory.mktemp("thumos") / "thumos14"
    root.mkdir()
    for name in ("gt.json", "fps_dict.json", "split_train.txt", "split_test.txt", "point_labels.csv"):
        shutil.copyfile(shared_data / "thumos14" / name, root / name)
    database = json.loads((root / "gt.json").read_text())["database"]
    rng = np.random.default_rng(0)
    for subset in ("train", "test"):
        for stream in WIDTHS:
            (root / "features" / subset / stream).mkdir(parents=True)
        for video in (root / f"split_{subset}.txt").read_text().split():
            end = max(float(item["segment"][1]) for item in database[video]["annotations"])
            for stream in WIDTHS:
                features = rng.standard_normal((int(end / 0.64) + 1, 2)).astype(np.float32)
                np.save(root / "features" / subset / stream / f"{video}.npy", features)
    return root


def test_real_annotations_of_thumos14(thumos: Path) -> None:
    report = report_of(thumos)
    assert report.faults == ()
    subsets = report.statistics["subsets"]
    assert {name: (row["recordings"], row["instances"], row["points"]) for name, row in subsets.items()} == {
        "train": (200, 3007, 3003),
        "test": (210, 3311, 0),
    }
    diving = {"train": {"instances": 499, "points": 499}, "test": {"instances": 388, "points": 0}}
    assert report.statistics["classes"]["Diving"] == diving
    # Four instances have no point, and no point is astray.
    assert [(warning.kind, warning.message.partition(",")[0]) for warning in report.warnings] == [
        ("instances without a point", "video_validation_0000364: 2 of 8 instances without a point"),
        ("instances without a point", "video_validation_0000856: 2 of 9 instances without a point"),
    ]
    # Known of these points: relative position 0.475 +- 0.035.
    position = report.statistics["point_position"]
    assert position["mean"] == pytest.approx(0.475, abs=0.01)
    assert position["std"] == pytest.approx(0.035, abs=0.01)


def test_a_wrong_rate_shows_in_the_points_of_thumos14(thumos: Path, tmp_path: Path) -> None:
    root = tmp_path / "thumos14"
    shutil.copytree(thumos, root)
    fps = json.loads((root / "fps_dict.json").read_text())
    write(root / "fps_dict.json", dict.fromkeys(fps, 60.0))
    found = [warning.message for warning in report_of(root).warnings if warning.kind == "points at another rate"]
    assert sum("times were 2 x" in message for message in found) > 100
    assert len(found) <= 200


def test_few_recordings_are_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    alive, most = 0, 0

    class Array(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            if self.base is None:
                alive -= 1

    class Made:
        path = Path("v.npy")

        def load(self) -> np.ndarray:
            nonlocal alive, most
            array = Array((1000, 4), np.float32)
            array[:] = 0
            alive += 1
            most = max(most, alive)
            time.sleep(0.005)
            return array

    monkeypatch.setattr(module, "READERS", 2)
    grid = Grid(fps=25, window=16, stride=16)
    entries = [Entry(f"v{i}", "train", (Made(),), grid, points=(Point("dive", 1.0),)) for i in range(50)]
    check(listing(*entries), load_config("thumos14"))
    assert alive == 0
    assert 1 <= most <= 3


def test_histograms_have_round_edges() -> None:
    assert module._edges([0.3, 7.0, 180.0]) == [0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200]
    assert module._edges([210.0, 250.0, 580.0]) == [200, 250, 300, 350, 400, 450, 500, 550, 600]
    assert module._edges([5.0, 10.0]) == [5, 6, 7, 8, 9, 10, 11]
    for values in ([38.4], [38.4, 38.4], [0.1, 0.8], [1e-3, 4000.0]):
        edges = module._edges(values)
        assert len(edges) <= 24
        assert sum(module._histogram(values, edges)["counts"]) == len(values)


def test_of_instances_that_overlap_the_shortest_holds_the_point() -> None:
    instances = (Instance("dive", 0, 20), Instance("dive", 2, 4), Instance("dive", 1, 9))
    grid = Grid(fps=25, window=16, stride=16)
    found = listing(made("v1", grid, instances=instances, points=(Point("dive", 3.0),)))
    position = check(found, load_config("thumos14")).statistics["point_position"]
    assert (position["mean"], position["counts"].index(1)) == (0.5, 5)


def test_synthetic_recordings() -> None:
    config = load_config("synthetic", ["data.recordings=6", "data.length=80"])
    report = check(list_dataset(config), config)
    assert (report.faults, report.warnings) == ((), ())
    assert report.statistics["subsets"]["train"]["recordings"] == 4


def test_data_in_memory() -> None:
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    grid = Grid(fps=25, window=16, stride=16)
    jump = (Instance("jump", 2, 4),)
    recordings = tuple(Recording(f"v{i}", x + i, grid, subset, jump) for i, subset in enumerate(("train", "test")))
    found = Dataset("own", ("jump",), recordings)
    config = load_config("thumos14", ["data.points=centre"])
    assert check(found, config).faults == ()
    assert check(found, config).statistics["point_position"]["counts"][5] == 1
    spoiled = replace(found, recordings=(recordings[0], replace(recordings[1], features=x * np.nan)))
    message = "v1: expected finite features, got nan at snippet 0, channel 0"
    assert [fault.message for fault in check(spoiled, config).faults] == [message]


# The command


@pytest.fixture
def call(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command on the folder: exit status, standard output and standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        command = ["potloc-fast", "check-data", "thumos14", f"data.root={root}", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(cli, "console", Console(width=80))
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


def test_the_command_on_good_data(call: Call, root: Path) -> None:
    status, out, err = call()
    assert (status, err) == (0, "")
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[-1] == "lacp: training can start: 0 faults, 0 warnings"
    assert any(line.split() == ["train", "3", "0.03", "180", "6", "6"] for line in lines)
    assert any(line.split() == ["jump", "3", "3", "2"] for line in lines)
    assert any("5-5.5" not in line and "█" * 10 in line for line in lines)
    assert max(map(len, lines[1:])) <= 80
    assert len(lines) < 40


def test_the_command_on_bad_data(call: Call, root: Path) -> None:
    shutil.rmtree(root / "features" / "test")
    for stream in WIDTHS:
        for video in VIDEOS["train"]:
            np.save(npy(root, video, stream), np.full((60, 2), np.nan, np.float32))
    status, out, err = call()
    assert (status, err) == (1, "")
    lines = out.splitlines()
    at = lines.index("fault: values that are not finite (6)")
    assert lines[at + 1] == f"  {npy(root, 'v1')}: expected finite features, got nan at snippet 0, channel 0"
    assert lines[at + 6] == "  and 1 more"
    assert "fault: missing files (4)" in lines
    assert lines[-1] == "lacp: training would fail: 10 faults, 0 warnings"


def test_the_command_as_json(call: Call, root: Path, tmp_path: Path) -> None:
    edit(root / "point_labels.csv", "jump,v2,690", "jump,v2,9000")
    status, out, err = call("--json", "-")
    assert (status, err) == (1, "")
    value = json.loads(out)
    assert list(value) == ["name", "notes", "faults", "warnings", "statistics"]
    assert [fault["kind"] for fault in value["faults"]] == ["points outside the recording"]
    assert value["statistics"]["subsets"]["train"]["recordings"] == 3
    assert value == json.loads(json.dumps(report_of(root).to_json()))
    status, out, _ = call("--json", tmp_path / "out" / "report.json")
    assert status == 1
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == value
    assert "training would fail" in out


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (lambda r: (r / "gt.json").write_text("{"), (), "gt.json: expected JSON, but line 1"),
        (lambda r: shutil.rmtree(r), (), "lacp: expected the folder or archive of a data set, found none"),
        (lambda r: None, ("data.rot=x",), "unknown key data.rot, did you mean data.root?"),
    ],
)
def test_what_can_not_be_read_at_all(
    call: Call, root: Path, spoil: Callable[[Path], object], arguments: tuple[str, ...], message: str
) -> None:
    spoil(root)
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("potloc-fast: ")
    assert err.count("\n") == 1
    assert message in err


def test_it_says_what_would_be_chosen_for_the_recordings() -> None:
    points = tuple(Point("jump", 10.0 * number + 5) for number in range(8))
    grid, features = Grid(fps=1, window=1, stride=1), np.random.default_rng(0).standard_normal((80, 3), np.float32)
    recordings = tuple(Recording(f"r{i}", features + i, grid, "train", points=points) for i in range(3))
    report = check(Dataset("own", ("jump",), recordings), load_config("own", ["data.root=x", "train.epochs=7"]))
    assert [note.partition(":")[0] for note in report.notes] == [
        "train.length=80",
        "train.batch_size=32",
        "train.warmup_epochs=0.47",
        "loss.topk_ratio=32.0",
    ]
