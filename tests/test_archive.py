"""Archives: what is written, by how many processes, and what is left when one is killed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import potloc_fast
from potloc_fast import archive, cli
from potloc_fast.archive import Archive, Claims, Item, find, shard
from potloc_fast.config import load_config
from potloc_fast.data import Dataset, Grid, Recording
from potloc_fast.data.listing import NpyFile
from potloc_fast.detector import Detector
from potloc_fast.engine import quality
from potloc_fast.engine.run import Run
from potloc_fast.errors import InputError
from potloc_fast.evaluation import read_detections
from potloc_fast.models import POTLoc

FEATURES = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose model was never trained: it finds enough."""
    small = {"width": 8, "heads": 2, "levels": 1, "stem": 0, "window": 3}
    config = load_config("synthetic", [f"model={json.dumps(small)}"])
    recording = Recording("v1", np.zeros((9, FEATURES), np.float32), Grid(2, 1, 1), "train")
    run = Run.create(tmp_path_factory.mktemp("archive") / "run", config, Dataset("d", ("a", "b"), (recording,)))
    model = run.build("potloc")
    assert isinstance(model, POTLoc)
    assert model.classifier.bias is not None
    torch.nn.init.zeros_(model.classifier.bias)
    torch.nn.init.normal_(model.classifier.weight)
    run.save("potloc", model)
    return run


@pytest.fixture
def detector(run: Run) -> Detector:
    return Detector.load(run)


def put(path: Path, seed: int = 0, length: int = 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = np.random.default_rng(seed).standard_normal((length, FEATURES))
    np.save(path, np.cumsum(steps, axis=0, dtype=np.float32))
    return path


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "recordings"
    for seed, name in enumerate(("a", "b", "deep/a", "deep/er/c", "deep/._a", ".hidden/x")):
        put(folder / f"{name}.npy", seed, 40 + seed)
    (folder / "notes.txt").write_text("no recording")
    return folder


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["potloc-fast", "predict", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return command


def results(into: Path, suffix: str = "json") -> dict[str, bytes]:
    found = sorted(into.rglob(f"*.{suffix}"))
    return {
        str(path.relative_to(into)): path.read_bytes()
        for path in found
        if path.name != "archive.json" and not path.name.startswith(".") and path.parts[len(into.parts)] != "manifest"
    }


def manifest(into: Path) -> list[dict[str, object]]:
    return [json.loads(line) for path in (into / "manifest").iterdir() for line in path.read_text().splitlines()]


# What is written


def test_a_folder_becomes_a_folder_of_results(call: Call, run: Run, recordings: Path, tmp_path: Path) -> None:
    into = recordings / "found"  # which is no input
    status, out, err = call(run.folder, recordings, "--into", into)
    assert (status, err) == (0, "")
    assert out.startswith(f"4 recordings done, 0 were there: {into} (")
    assert list(results(into)) == ["a.json", "b.json", "deep/a.json", "deep/er/c.json"]
    for name in ("a", "b", "deep/a", "deep/er/c"):
        found = read_detections(into / f"{name}.json")
        alone = potloc_fast.predict(run, {name: np.load(recordings / f"{name}.npy")})
        assert found.videos == (name,)
        assert len(found)
        assert found.label.tolist() == alone.label.tolist()
        np.testing.assert_array_equal(found.score, alone.score)
        np.testing.assert_array_equal(found.start_sec, alone.start_sec)
    rows = {row["recording"]: row for row in manifest(into)}
    assert rows.keys() == {"a", "b", "deep/a", "deep/er/c"}
    row = rows["deep/a"]
    assert row["result"] == "deep/a.json"
    assert row["source"] == str(recordings / "deep" / "a.npy")
    assert row["snippets"] == 42
    assert row["detections"] == len(read_detections(into / "deep/a.json"))
    assert row["run"] == json.loads((into / "archive.json").read_text())["digest"] == Detector.load(run).digest
    assert not list((into / ".claims").iterdir())
    # Once more: it is done.
    status, out, _ = call(run.folder, recordings, "--into", into, "--format", "json")
    assert out.startswith("0 recordings done, 4 were there")
    (into / "b.json").unlink()
    status, out, _ = call(run.folder, recordings / "*.npy", recordings / "b.npy", "--into", into)
    assert out.startswith("1 recordings done, 1 were there")


def test_a_list_on_standard_input(
    call: Call, run: Run, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = tmp_path / "list"
    listing.write_text(f"{recordings / 'a.npy'}\n\n{recordings / 'deep' / 'er' / 'c.npy'}\n")
    with listing.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert call(run.folder, "-", "--into", tmp_path / "out")[0] == 0
    assert list(results(tmp_path / "out")) == ["a.json", "c.json"]


def test_forms(call: Call, run: Run, recordings: Path, tmp_path: Path) -> None:
    expected = read_detections_of(call, run, recordings, tmp_path / "json")
    best = expected.score.max()
    arguments = (run.folder, recordings / "a.npy", "--min-score", (best + expected.score.min()) / 2)
    assert call(*arguments, "--into", tmp_path / "jsonl", "--format", "jsonl")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "jsonl" / "a.jsonl").read_text().splitlines()]
    assert 0 < len(rows) < len(expected)
    assert (rows[0]["score"], rows[0]["recording"], set(rows[0])) == (
        best,
        "a",
        {"recording", "label", "start_sec", "end_sec", "score"},
    )
    assert call(*arguments, "--into", tmp_path / "csv", "--format", "csv", "--plots")[0] == 0
    with (tmp_path / "csv" / "a.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert (tmp_path / "csv" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "jsonl").rglob("*.png"))


def test_lists_begin_at_the_score_that_training_chose(
    call: Call, run: Run, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an archive as in a file."""
    everything = read_detections_of(call, run, recordings, tmp_path / "json").score
    least = float(np.median(everything))
    monkeypatch.setattr(quality, "read_quality", lambda _: SimpleNamespace(min_score=least))
    kept = sorted(everything[everything >= least])

    def rows(path: Path) -> list[float]:
        with path.open(newline="") as file:
            return sorted(float(row["score"]) for row in csv.DictReader(file))

    assert 0 < len(kept) < len(everything)
    for arguments in (("--into", tmp_path / "csv", "--format", "csv"), ("-o", tmp_path / "csv.csv")):
        assert call(run.folder, recordings / "a.npy", *arguments)[0] == 0
    assert (
        rows(tmp_path / "csv" / "a.csv") == rows(tmp_path / "csv.csv") == pytest.approx(kept, abs=5.1e-5)
    )  # four decimals
    arguments = (recordings / "a.npy", "--into", tmp_path / "all", "--format", "csv", "--min-score", "0")
    assert call(run.folder, *arguments)[0] == 0
    assert len(rows(tmp_path / "all" / "a.csv")) == len(everything)
    assert len(read_detections_of(call, run, recordings, tmp_path / "json again")) == len(everything)


def read_detections_of(call: Call, run: Run, recordings: Path, into: Path) -> potloc_fast.evaluation.Segments:  # type: ignore[name-defined]
    assert call(run.folder, recordings / "a.npy", "--into", into)[0] == 0
    return read_detections(into / "a.json")


def test_parquet(call: Call, run: Run, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_detections_of(call, run, recordings, tmp_path / "json")
    arguments = (run.folder, recordings / "a.npy", "--into", tmp_path / "parquet", "--format", "parquet")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        status, out, err = call(*arguments)
        assert (status, out) == (2, "")
        assert "pip install 'potloc_fast[parquet]'" in err
        assert not (tmp_path / "parquet").exists()
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")
    assert call(*arguments)[0] == 0
    table = parquet.read_table(tmp_path / "parquet" / "a.parquet").to_pydict()
    assert sorted(table["score"]) == sorted(expected.score.tolist())
    assert set(table["label"]) <= set(run.classes)


# What can't be read


def test_what_cannot_be_read_is_said_and_the_others_are_done(
    call: Call, run: Run, recordings: Path, tmp_path: Path
) -> None:
    (recordings / "b.npy").write_bytes(b"\x93NUMPY rubbish")
    np.save(recordings / "wide.npy", np.zeros((5, 7), np.float32))
    (recordings / "torn.h5").write_bytes(b"no such file")
    status, out, err = call(run.folder, recordings, "--into", tmp_path / "out")
    assert status == 1
    assert out.startswith("3 recordings done, 0 were there")
    assert len(err.splitlines()) == 3
    for name in ("b.npy: expected an array", "wide.npy: expected width 6", "torn.h5: expected an HDF5 file"):
        assert f"left out: {recordings}/{name}" in err
    assert list(results(tmp_path / "out")) == ["a.json", "deep/a.json", "deep/er/c.json"]
    # Mended, it is done by the same command.
    put(recordings / "b.npy", 1)
    for name in ("wide.npy", "torn.h5"):
        (recordings / name).unlink()
    assert call(run.folder, recordings, "--into", tmp_path / "out")[0] == 0
    assert "b.json" in results(tmp_path / "out")


def test_results_of_two_runs_are_not_mixed(call: Call, run: Run, recordings: Path, tmp_path: Path) -> None:
    assert call(run.folder, recordings / "a.npy", "--into", tmp_path / "out")[0] == 0
    for change in (("--snippet-sec", "2"), ("--format", "csv"), ("--min-score", "0.5")):
        status, out, err = call(run.folder, recordings, "--into", tmp_path / "out", *change)
        assert (status, out) == (2, "")
        assert "archive.json: expected results with" in err
    other = Run.create(
        tmp_path / "other", run.config.model_copy(update={"seed": 1}), Dataset("d", run.classes, (first(run),))
    )
    other.save("potloc", other.build("potloc"))
    status, _, err = call(other.folder, recordings, "--into", tmp_path / "out")
    assert status == 2
    assert "expected results with digest" in err
    assert list(results(tmp_path / "out")) == ["a.json"]


def first(run: Run) -> Recording:
    assert run.grid is not None
    return Recording("v1", np.zeros((9, run.features), np.float32), run.grid, "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shard", "1/2"), "--shard: expected the folder of results too, --into"),
        (("--plots",), "--plots: expected the folder of results too, --into"),
        (("--into", "out", "--shard", "0/2"), "--shard: expected I/N, such as 3/16"),
        (("--into", "out", "--shard", "3/2"), "--shard: expected I/N, such as 3/16"),
        (("--into", "out", "--format", "xls"), "--format: expected one of json"),
        (("nothing*.npy", "--into", "out"), "nothing*.npy: expected a pattern that files match"),
    ],
)
def test_mistakes(
    call: Call, run: Run, recordings: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(recordings)
    status, out, err = call(run.folder, "a.npy", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"potloc-fast: {message}")
    assert not (recordings / "out").exists()


def test_two_recordings_of_a_name_are_refused(detector: Detector, recordings: Path) -> None:
    with pytest.raises(InputError, match="expected recordings of different names in a folder, got 'a'"):
        find(detector, [recordings / "a.npy", recordings / "deep" / "a.npy"])


def test_results_stay_in_their_folder(detector: Detector, tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["up"] = np.ones((9, FEATURES), np.float32)
        file["läuft $1"] = np.ones((9, FEATURES), np.float32)
    (tmp_path / "more").mkdir()
    put(tmp_path / "more" / "...npy")
    items, failed = find(detector, [tmp_path, tmp_path / "more" / "...npy"])
    assert not failed
    into = Archive(detector, tmp_path / "out")
    into.detect(items)
    assert all((tmp_path / "out") in into.result(item).resolve().parents for item in items)
    assert {item.name for item in items} == {"up", "läuft $1", ".."}
    assert len(results(tmp_path / "out")) == 3


# Many processes


def test_shards_are_the_whole(detector: Detector, recordings: Path) -> None:
    items, _ = find(detector, [recordings])
    for count in (1, 2, 3, 7):
        shares = [shard(items, f"{number}/{count}") for number in range(1, count + 1)]
        assert sorted(item.key for share in shares for item in share) == [item.key for item in items]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    for seed in range(60):
        put(folder / f"{seed}.npy", seed, 100)
    return folder


def test_workers_share_an_archive(detector: Detector, many: Path, tmp_path: Path) -> None:
    items, _ = find(detector, [many])
    alone, shared = Archive(detector, tmp_path / "alone"), Archive(detector, tmp_path / "shared")
    alone.detect(items)
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(shared.detect(items))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(outcome.done for outcome in outcomes) == 60
    assert all(outcome.done + outcome.there == 60 for outcome in outcomes)
    assert results(tmp_path / "shared") == results(tmp_path / "alone")


def begin(run: Run, many: Path, into: Path) -> subprocess.Popen[str]:
    code = "import torch; torch.set_num_threads(1); from potloc_fast.cli import main; main()"
    arguments = [sys.executable, "-c", code, "predict", run.folder, many, "--into", into]
    # Not in the repository, whose own folder of this name is not built.
    return subprocess.Popen(arguments, cwd=many, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_patterns_leave_out_what_systems_hide(detector: Detector, tmp_path: Path) -> None:
    for name in (".folder/a1/x.npy", ".folder/a2/y.npy", ".folder/a2/._y.npy", ".folder/.a3/z.npy"):
        put(tmp_path / name, 0, 40)
    items, failed = find(detector, [tmp_path / ".folder" / "*" / "*.npy"])
    assert ([item.key for item in items], failed) == (["x", "y"], {})


def test_what_was_killed_goes_on(run: Run, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many, into = tmp_path / "many", tmp_path / "out"
    for seed in range(400):
        put(many / f"{seed}.npy", seed, 40)
    items, _ = find(detector, [many])
    worker = begin(run, many, into)
    while worker.poll() is None:
        worker.send_signal(signal.SIGSTOP)  # it is to be killed amid its work, with something claimed
        if results(into) and list((into / ".claims").iterdir()):
            break
        worker.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert 0 < len(results(into)) < 400
    assert list((into / ".claims").iterdir())  # the dead worker's, which count no more
    outcome = Archive(detector, into).detect(items)
    assert outcome.done + outcome.there == 400
    assert outcome.seconds < archive.EXPIRY_SEC
    Archive(detector, tmp_path / "alone").detect(items)
    assert results(into) == results(tmp_path / "alone")


@pytest.fixture
def claims(tmp_path: Path) -> Iterator[Claims]:
    made = Claims(tmp_path / "claims")
    yield made
    made.close()


def test_claims(claims: Claims, tmp_path: Path) -> None:
    other = Claims(tmp_path / "claims")
    assert claims.take("a")
    assert not claims.take("a")
    assert not other.take("a")
    assert other.take("b")
    claims.release("a")
    assert other.take("a")
    other.close()
    assert not list((tmp_path / "claims").iterdir())


@pytest.mark.parametrize(
    ("owner", "age", "free"),
    [
        ({"host": "another machine", "process": 1, "begun": "1"}, 0, False),
        ({"host": "another machine", "process": 1, "begun": "1"}, 2 * archive.EXPIRY_SEC, True),
        ({"process": os.getpid(), "begun": "another start of this number"}, 0, True),
        ({"process": os.getpid(), "begun": archive._begun(os.getpid())}, 0, False),
        ("", 0, False),
        ("", 2 * archive.EXPIRY_SEC, True),
        ([], 2 * archive.EXPIRY_SEC, True),
    ],
)
def test_a_claim_expires(claims: Claims, tmp_path: Path, owner: object, age: float, free: bool) -> None:
    assert claims.take("x")
    [path] = [path for path in (tmp_path / "claims").iterdir() if not path.name.startswith(".")]
    claims.release("x")
    text = owner if isinstance(owner, str) else json.dumps(owner if owner == [] else {**claims._me, **owner})  # type: ignore[dict-item]
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)
    assert claims.take("x") == free


def test_claims_are_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "EXPIRY_SEC", 0.2)
    claims = Claims(tmp_path / "claims")
    claims.take("x")
    [path] = list((tmp_path / "claims").iterdir())
    os.utime(path, (0, 0))
    for _ in range(500):
        if path.stat().st_mtime > 0:
            break
        time.sleep(0.01)
    assert path.stat().st_mtime > 0
    claims.close()


def test_a_full_disk_ends_it_in_a_sentence(
    detector: Detector, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise InputError("out/1.json: expected a file to write, got: No space left on device")

    into = Archive(detector, tmp_path / "out")
    monkeypatch.setattr(into, "_write", refuse)
    items, _ = find(detector, [many])
    with pytest.raises(InputError, match="No space left"):
        into.detect(items)
    assert not list((tmp_path / "out" / ".claims").iterdir())
    assert not results(tmp_path / "out")


# A folder that is watched


def test_what_appears_is_detected_in(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before it stops to change; and what can't be used is said once."""
    monkeypatch.setattr(archive, "POLL_SEC", 0)
    folder, into = tmp_path / "new", Archive(detector, tmp_path / "out")
    folder.mkdir()
    source = put(folder / "growing.npy").read_bytes()
    looks, told = 0, []

    class EndError(Exception):
        pass

    def look(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks < 4:
            (folder / "growing.npy").write_bytes(source[: -10 * (4 - looks)])
        elif looks == 4:
            (folder / "growing.npy").write_bytes(source)
            (folder / "bad.npy").write_bytes(b"bad")
            assert not told
        elif looks == 12:
            raise EndError

    monkeypatch.setattr(archive.time, "sleep", look)
    with pytest.raises(EndError):
        archive.watch(into, folder, report=told.append)
    assert list(results(tmp_path / "out")) == ["growing.json"]
    assert sum(outcome.done for outcome in told) == 1
    assert [len(outcome.failed) for outcome in told if outcome.failed] == [1]


def test_an_item_is_stamped_by_its_file(tmp_path: Path) -> None:
    path = put(tmp_path / "a.npy")
    item = Item("a", "a", NpyFile(path))
    before = item.stamp()
    path.write_bytes(path.read_bytes() + b"x")
    assert item.stamp() != before
