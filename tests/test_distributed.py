"""Several processes against one: they share every batch and all detections."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import potloc_fast
from potloc_fast.config import load_config
from potloc_fast.engine import distributed, fit
from potloc_fast.engine.run import Run
from potloc_fast.engine.train import load_dataset
from potloc_fast.errors import InputError
from potloc_fast.losses import total_loss

# Without what is drawn at random in each process. Batches of 3 and 1 recordings: the second process computes one of the
# first and none of the second. Whole recordings and crops of different lengths: shares are padded alike.
TINY = (
    "data.recordings=7",
    "data.length=90",
    "data.width=6",
    "data.classes=3",
    "base.model.hidden=8",
    "base.model.dropout=0",
    "base.train.epochs=3",
    "base.train.batch_size=3",
    "model.width=8",
    "model.levels=2",
    "model.drop_path=0",
    "model.boundary_head=true",
    "train.epochs=3",
    "train.batch_size=3",
    "train.length=64",
    "train.ema=0.9",
    "detect.batch_size=1",
    "engine.device=cpu",
)


def start(*arguments: str | Path, program: Sequence[str | Path] = ("-m", "potloc_fast")) -> subprocess.Popen[str]:
    """Start the command line, or another program, in two processes, which are started anew once where one dies."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    return subprocess.Popen(
        [*command, *map(str, program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        },  # docs/several_machines.md
        cwd=Path(potloc_fast.__file__).parents[1],  # the package under test, wherever it is installed
    )


def torchrun(
    *arguments: str | Path, program: Sequence[str | Path] = ("-m", "potloc_fast")
) -> subprocess.CompletedProcess[str]:
    """Do as `start`, and wait for the end."""
    with start(*arguments, program=program) as process:
        out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_a_scheduler_that_ends_all_processes_is_told_how_to_go_on(tmp_path: Path) -> None:
    with start("train", "synthetic", *TINY, "base.train.epochs=100000", "--run-dir", tmp_path / "run") as process:
        try:
            deadline = time.monotonic() + 300
            while not (tmp_path / "run" / "base" / "checkpoint.pt").is_file():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            process.terminate()
            _, err = process.communicate(timeout=300)
        finally:
            process.kill()
    assert err.count("interrupted: the same command with --resume goes on") == 1
    assert "forcefully" not in err  # as torchrun says of a process that waits for the others


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return potloc_fast.train(load_config("synthetic", TINY), tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that one process began, and that two go on with after the first epoch."""
    folder = tmp_path_factory.mktemp("shared") / "run"
    calls = iter(range(100))

    def interrupted(*args: Any) -> Any:
        if next(calls) == 3:  # in the second epoch of the base model
            raise KeyboardInterrupt
        return total_loss(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "total_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            potloc_fast.train(load_config("synthetic", TINY), folder)
    done = torchrun("train", "synthetic", *TINY, "--run-dir", folder, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("everything is in") == 1  # the first process alone prints
    return Run.open(folder)


def detections(path: Path) -> list[tuple[str, str, float, float, float]]:
    results = json.loads(path.read_text())["results"]
    return [(video, row["label"], *row["segment"], row["score"]) for video, rows in results.items() for row in rows]


def assert_same_detections(path: Path, other: Path) -> None:
    found, want = detections(path), detections(other)
    assert want
    assert [row[:2] for row in found] == [row[:2] for row in want]
    np.testing.assert_allclose([row[2:] for row in found], [row[2:] for row in want], atol=1e-4)


@pytest.mark.parametrize("stage", ["base", "potloc"])
def test_two_processes_train_as_one_does(alone: Run, shared: Run, stage: str) -> None:
    logs = [
        [json.loads(line) for line in (run.folder / stage / "metrics.jsonl").read_text().splitlines()]
        for run in (alone, shared)
    ]
    assert len(logs[0]) >= 6
    for row, other in zip(*logs, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"seconds"}:
            assert other[name] == (row[name] if name == "stage" else pytest.approx(row[name], rel=1e-5, abs=1e-5)), name


def test_two_processes_detect_as_one_does(alone: Run, shared: Run) -> None:
    for name in ("base/proposals.json", "base/detections.json", "potloc/detections.json"):
        assert_same_detections(shared.folder / name, alone.folder / name)


def test_two_processes_write_the_same_files(alone: Run, shared: Run) -> None:
    names = [
        {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.suffix in (".json", ".yaml")}
        for run in (alone, shared)
    ]
    assert names[0] == names[1]
    # One process writes, a file of losses and one of scores; the base model's was begun by another.
    assert [len(list((shared.folder / stage / "tensorboard").iterdir())) for stage in ("base", "potloc")] == [3, 2]


KILLED = """
import os, signal
from itertools import count
from potloc_fast.engine import fit

calls, total_loss = count(), fit.total_loss

def killed(*args):
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and next(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # in the second epoch
    return total_loss(*args)

fit.total_loss = killed
if __name__ == "__main__":
    from potloc_fast.cli import main
    main()
"""


def test_training_goes_on_when_a_process_was_killed(alone: Run, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    done = torchrun("train", "synthetic", *TINY, "--run-dir", tmp_path / "run", "--resume", program=[script])
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr
    for stage in ("base", "potloc"):
        rows = [
            [json.loads(line) for line in (folder / stage / "metrics.jsonl").read_text().splitlines()]
            for folder in (tmp_path / "run", alone.folder)
        ]
        steps = [[(row["step"], pytest.approx(row["total"], rel=1e-5, abs=1e-5)) for row in each] for each in rows]
        assert steps[0] == steps[1]
    # The base model's training was begun twice, the other once; scores are a file of their own.
    logs = [len(list((tmp_path / "run" / stage / "tensorboard").iterdir())) for stage in ("base", "potloc")]
    assert logs == [3, 2]
    assert_same_detections(tmp_path / "run" / "potloc" / "detections.json", alone.folder / "potloc" / "detections.json")


@pytest.mark.parametrize("number", [0, 1])
def test_the_first_process_writes_while_the_others_wait(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    calls: list[str] = []
    refusals: list[InputError | None] = [None, None]  # what the processes hold

    def collect(refusal: InputError | None) -> list[InputError | None]:
        calls.append("waited")
        refusals[number] = refusal
        return refusals

    def refuse() -> None:
        raise InputError("no room")

    monkeypatch.setattr(distributed, "rank", lambda: number)
    monkeypatch.setattr(distributed, "collect", collect)
    distributed.once(calls.append, "written")
    assert calls == (["written", "waited"] if number == 0 else ["waited"])
    refusals[0] = InputError("no room")
    with pytest.raises(InputError, match="no room"):  # in all processes
        distributed.once(refuse)


def test_the_cause_is_the_last_thing_that_a_process_says(tmp_path: Path) -> None:
    # The second process fails alone, the first waits for it: both end at once, long before the wait is over.
    script = tmp_path / "fails.py"
    script.write_text(
        "import torch\nfrom potloc_fast.engine.distributed import collect, joined, rank\n"
        "with joined(torch.device('cpu')):\n"
        "    collect(rank())\n"
        "    if rank() == 1:\n        raise OSError('the disk of the second is gone')\n"
        "    collect(rank())\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--redirects=3"]
    done = subprocess.run(
        [*command, "--log-dir", str(tmp_path / "logs"), str(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(potloc_fast.__file__).parents[1])},
        cwd=tmp_path,
    )
    assert done.returncode != 0
    (said,) = tmp_path.glob("logs/**/1/stderr.log")
    assert said.read_text().splitlines()[-1].endswith("OSError: the disk of the second is gone")


def test_a_group_is_left_at_the_end_but_not_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(device))
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **given: calls.append((backend, given)))
    monkeypatch.setattr(distributed.atexit, "register", lambda call: calls.append("registered"))
    monkeypatch.setattr(distributed.atexit, "unregister", lambda call: calls.append("unregistered"))
    gpu = torch.device("cuda", 1)
    with distributed.joined(gpu):
        pass
    assert calls == [gpu, ("nccl", {"timeout": distributed.WAIT, "device_id": gpu}), "registered"]
    calls.clear()
    with pytest.raises(KeyboardInterrupt), distributed.joined(torch.device("cpu")):
        raise KeyboardInterrupt
    assert calls[0] == ("gloo", {"timeout": distributed.WAIT, "device_id": None})
    assert calls[1:] == ["registered", "unregistered", "registered"]


def test_two_processes_predict_as_one_does(alone: Run, tmp_path: Path) -> None:
    tested = load_dataset(alone.config).subset("test")
    assert len(tested) > 1
    for recording in tested:
        np.save(tmp_path / f"{recording.id}.npy", recording.features)
    files = sorted(tmp_path.glob("*.npy"))
    done = torchrun("predict", alone.folder, *files, "-o", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("detections: ") == 1
    assert_same_detections(tmp_path / "found.json", alone.folder / "potloc" / "detections.json")
