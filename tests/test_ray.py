"""Detection in a Ray cluster: the recipe of docs/archives.md, with a worker that is killed."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import potloc_fast
from potloc_fast.config import load_config
from potloc_fast.data import Dataset, Grid, Recording
from potloc_fast.detector import Detection, Detector
from potloc_fast.engine.run import Run
from potloc_fast.integrations.ray import COLUMNS, Predictor

FEATURES = 6
DOCS = Path(__file__).parents[1] / "docs" / "archives.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose model was never trained: it finds enough."""
    config = load_config("synthetic", ['model={"width": 8, "heads": 2, "levels": 1, "stem": 0, "window": 3}'])
    recording = Recording("v1", np.zeros((9, FEATURES), np.float32), Grid(2, 1, 1), "train")
    run = Run.create(tmp_path_factory.mktemp("ray") / "run", config, Dataset("d", ("a", "b"), (recording,)))
    model = run.build("potloc")
    torch.nn.init.zeros_(model.classifier.bias)  # type: ignore[union-attr,arg-type]
    torch.nn.init.normal_(model.classifier.weight)  # type: ignore[arg-type]
    run.save("potloc", model)
    return run


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    (folder / "deep").mkdir(parents=True)
    for seed in range(60):
        steps = np.random.default_rng(seed).standard_normal((40 + seed, FEATURES))
        np.save(folder / ("deep" if seed % 2 else "") / f"{seed}.npy", np.cumsum(steps, axis=0, dtype=np.float32))
    return folder


def expected(run: Run, folder: Path) -> dict[str, list[Detection]]:
    detector = Detector.load(run)
    return {str(path): detector(np.load(path), path.stem) for path in folder.rglob("*.npy")}


def assert_same(rows: dict[str, list[object]], want: dict[str, list[Detection]]) -> None:
    found: dict[str, list[Detection]] = {path: [] for path in want}
    for path, *fields in zip(*(rows[name] for name in COLUMNS), strict=True):
        found[str(path)].append(Detection._make(fields))
    for path, own in want.items():
        ours = sorted(found[path], key=lambda detection: -detection.score)
        assert [row[:2] for row in ours] == [row[:2] for row in own]
        np.testing.assert_allclose([row[2:] for row in ours], [row[2:] for row in own], rtol=1e-5, atol=1e-5)


def test_a_batch(run: Run, recordings: Path) -> None:
    want = expected(run, recordings)
    rows = Predictor(run.folder)({"path": np.array(list(want))})
    assert_same({name: column.tolist() for name, column in rows.items()}, want)


def test_where_nothing_is_found_columns_have_their_types(run: Run, recordings: Path) -> None:
    predictor = Predictor(run.folder)
    some = predictor({"path": np.array([str(recordings / "0.npy")])})
    predictor._detector.batch = lambda recordings: [[]]  # type: ignore[method-assign,assignment]
    none = predictor({"path": np.array([str(recordings / "0.npy")])})
    assert {name: (column.dtype.kind, len(column)) for name, column in none.items()} == {
        name: (column.dtype.kind, 0) for name, column in some.items()
    }


def workers() -> list[int]:
    """The processes of Ray that hold a model."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if (entry / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


def test_the_recipe_on_two_nodes_with_a_worker_killed(
    run: Run, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="ray is an extra")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")
    from ray.cluster_utils import Cluster

    (recipe,) = re.findall(r"```python\n(from pathlib.+?)```", DOCS.read_text(), re.DOTALL)
    into = tmp_path / "found"
    for place, here in (("/archive", recordings), ("/shared/runs/own", run.folder), ("/shared/found", into)):
        assert place in recipe
        recipe = recipe.replace(f'"{place}"', repr(str(here)))
    recipe = recipe.replace("// 32", "// 4")  # blocks enough that one is done before the last is begun
    monkeypatch.setenv("PYTHONPATH", str(Path(potloc_fast.__file__).parents[1]))  # of workers
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    killed: list[int] = []

    def kill() -> None:
        while not killed and not ended.wait(0.01):
            if list(into.glob("*.parquet")):
                killed.extend(workers()[:1])
                os.kill(killed[0], signal.SIGKILL)

    ended = threading.Event()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        killer = threading.Thread(target=kill)
        killer.start()
        exec(compile(recipe, "recipe", "exec"), {})
        assert len(ray.nodes()) == 2
    finally:
        ended.set()
        ray.shutdown()
        cluster.shutdown()
    killer.join()
    assert killed
    table = parquet.read_table(into).to_pydict()
    assert_same(table, expected(run, recordings))
