"""Runs and features from elsewhere: every format is read, and what doesn't fit is refused before it is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from potloc_fast.config import load_config
from potloc_fast.data import Dataset, Grid, Recording
from potloc_fast.data.sources import sources_of
from potloc_fast.engine.predict import predict
from potloc_fast.engine.run import Run
from potloc_fast.errors import InputError

ARRAY = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    model = {"width": 8, "heads": 2, "levels": 1, "stem": 1, "window": 3, "mlp_ratio": 2}
    config = load_config("synthetic", [f"model={json.dumps(model)}"])
    run = Run.create(
        tmp_path / "run", config, Dataset("d", ("a", "b"), (Recording("v", ARRAY, Grid(2, 1, 1), "train"),))
    )
    run.save("potloc", run.build("potloc"))
    return Run.open(run.folder)


def write_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["walk"], file["run"] = ARRAY, ARRAY


FORMATS: dict[str, Callable[[Path], object]] = {
    "walk.npy": lambda path: np.save(path, ARRAY),
    "walk.npz": lambda path: np.savez(path, feats=ARRAY),
    "walk.pt": lambda path: torch.save(torch.from_numpy(ARRAY), path),
    "walk.CSV": lambda path: np.savetxt(path, ARRAY, delimiter=",", fmt="%.9g"),
    "many.hdf5": write_hdf5,
    "walk.pkl": lambda path: ARRAY.dump(path),
}


@pytest.mark.parametrize("name", FORMATS)
def test_predict_reads_what_training_reads(run: Run, tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path / name)
    found = predict(run, [tmp_path / name], trusted=name.endswith(".pkl"))
    assert found.videos == (("run", "walk") if name == "many.hdf5" else ("walk",))
    expected = predict(run, dict.fromkeys(found.videos, ARRAY))
    assert found.to_results() == expected.to_results()


def test_predict_loads_no_pickle_that_is_not_trusted(run: Run, tmp_path: Path) -> None:
    FORMATS["walk.pkl"](tmp_path / "walk.pkl")
    with pytest.raises(InputError, match=r"walk.pkl: expected an array, got pickled Python objects.*--trusted"):
        predict(run, [tmp_path / "walk.pkl"])


def test_weights_are_read_as_they_were_written(run: Run) -> None:
    before = torch.get_rng_state()
    written, read = run.build("potloc").state_dict(), run.load("potloc").state_dict()
    torch.set_rng_state(before)
    assert written.keys() == read.keys()
    assert all(torch.equal(written[name], read[name]) for name in written)


def change(path: Path, key: str, value: object) -> None:
    facts = json.loads(path.read_text())
    facts[key] = value
    path.write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("features", 10**12),
        ("features", 0),
        ("features", "many"),
        ("classes", []),
        ("classes", ["a", "a"]),
        ("classes", [f"c{i}" for i in range(10**5)]),
        ("classes", "ab"),
        ("grid", {"fps": 1e-300, "window": 1, "stride": 1}),
        ("grid", {"fps": 1, "window": 1, "stride": 10**400}),
        ("grid", [1]),
    ],
)
def test_facts_that_do_not_fit_are_refused(run: Run, key: str, value: object) -> None:
    change(run.folder / "dataset.json", key, value)
    with pytest.raises(InputError, match=r"dataset\.json"):
        Run.open(run.folder).load("potloc")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  width: 8\n", "  width: 100000000\n"),
        ("  width: 8\n", "  width: 1000000000000000000\n"),
        ("  heads: 2\n", "  heads: 3\n"),
        ("  levels: 1\n", "  levels: 1000000000\n"),
        ("  levels: 1\n", "  levels: 20\n"),
        ("  stem: 1\n", "  stem: 1000000000\n"),
        ("  mlp_ratio: 2\n", "  mlp_ratio: 1000000000\n"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_before_it_is_built(run: Run, old: str, new: str) -> None:
    path = run.folder / "config.yaml"
    head, section, rest = path.read_text().partition("\nmodel:\n")
    assert old in rest
    path.write_text(head + section + rest.replace(old, new, 1))
    with pytest.raises(InputError, match=r"config\.yaml"):
        Run.open(run.folder).load("potloc")


@pytest.mark.parametrize("name", ["classifier.bias", "more"])
@pytest.mark.parametrize("shape", [(0,), (3, 3), (10**6,)])
def test_weights_of_other_shapes_are_named(run: Run, name: str, shape: tuple[int, ...]) -> None:
    path = run.folder / "potloc" / "model.safetensors"
    save_file({**load_file(path), name: torch.zeros(shape)}, path)
    with pytest.raises(InputError, match=rf"model\.safetensors: expected weights that fit .* for {name}"):
        run.load("potloc")


def save_empty_chunks(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("walk", shape=(10**8, 1000), dtype="f4", chunks=(1000, 1000))


LARGE = np.zeros((1 << 20, 17), np.float32)  # 68 MiB


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.npz", lambda path: np.savez_compressed(path, feats=LARGE), "packed to a 100th at most, got feats.npy"),
        ("a.h5", save_empty_chunks, "packed to a 100th at most, got 400000000000 bytes"),
        (
            "a.pt",
            lambda path: torch.save(torch.zeros(1).expand(10**9, 1000), path),
            r"expected a number for each value, got shape \[1000000000, 1000\]",
        ),
    ],
)
def test_features_that_unfold_are_refused(
    tmp_path: Path, name: str, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(InputError, match=message):
        [source.load() for source in sources_of(tmp_path / name, trusted=False).values()]
    np.savez(tmp_path / "plain.npz", feats=LARGE)  # as large as it is
    [source] = sources_of(tmp_path / "plain.npz", trusted=False).values()
    assert source.load().shape == LARGE.shape
