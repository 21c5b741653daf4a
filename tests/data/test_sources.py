from __future__ import annotations

import pickle
import re
import resource
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from potloc_fast.data.grid import Grid
from potloc_fast.data.listing import Entry, NpyFile, Source
from potloc_fast.data.sources import (
    CsvFile,
    Hdf5Dataset,
    NpzMember,
    PickleFile,
    TensorFile,
    locate,
    read_npz,
    sources_of,
)
from potloc_fast.errors import InputError

rng = np.random.default_rng(0)
FEATURES = rng.standard_normal((37, 6)).astype(np.float32)


def write_hdf5(path: Path, array: np.ndarray, **how: object) -> Source:
    with h5py.File(path, "w") as file:
        file.create_dataset("v_1", data=array, **how)
    return Hdf5Dataset(path, "v_1")


def write_npz(path: Path, array: np.ndarray) -> Source:
    np.savez_compressed(path, feats=array)
    return NpzMember(path)


def write_tensor(path: Path, array: np.ndarray) -> Source:
    torch.save(torch.from_numpy(array), path)
    return TensorFile(path)


def write_csv(path: Path, array: np.ndarray) -> Source:
    np.savetxt(path, array, fmt="%.9g", delimiter=",")
    return CsvFile(path)


def write_pickle(path: Path, array: np.ndarray) -> Source:
    path.write_bytes(pickle.dumps(array))
    return PickleFile(path, trusted=True)


def write_npy(path: Path, array: np.ndarray) -> Source:
    np.save(path, array)
    return NpyFile(path)


WRITERS: dict[str, Callable[[Path, np.ndarray], Source]] = {
    "npy": write_npy,
    "npz": write_npz,
    "hdf5": write_hdf5,
    "pt": write_tensor,
    "csv": write_csv,
    "pkl": write_pickle,
}


@pytest.fixture(params=WRITERS)
def suffix(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_every_format_gives_what_was_written(suffix: str, dtype: str, tmp_path: Path) -> None:
    array = FEATURES.astype(dtype)
    features = WRITERS[suffix](tmp_path / f"v1.{suffix}", array).load()
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, array.astype(np.float32))


@pytest.mark.parametrize("suffix", ["npy", "npz", "hdf5", "pkl"])
def test_another_byte_order_is_read(suffix: str, tmp_path: Path) -> None:
    features = WRITERS[suffix](tmp_path / f"v1.{suffix}", FEATURES.astype(">f4")).load()
    assert features.dtype == np.float32
    assert features.dtype.isnative
    np.testing.assert_array_equal(features, FEATURES)


@pytest.mark.parametrize("suffix", ["npy", "hdf5", "pt"])
def test_features_stay_on_disk_where_they_can(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"v1.{suffix}"
    features = WRITERS[suffix](path, FEATURES).load()
    # Written over in place, the file shows through: nothing was copied.
    content = path.read_bytes()
    first = content.index(FEATURES.tobytes())
    with path.open("r+b") as file:
        file.seek(first)
        file.write(np.float32(1234).tobytes())
    assert features[0, 0] == 1234


@pytest.mark.parametrize("suffix", ["npy", "hdf5"])
def test_more_files_stay_mapped_than_the_limit_on_open_ones_says(suffix: str, tmp_path: Path) -> None:
    source = WRITERS[suffix](tmp_path / f"v1.{suffix}", FEATURES)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        mapped = [source.load() for _ in range(100)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all(isinstance(features, np.memmap) for features in mapped)


@pytest.mark.parametrize(
    "how",
    [{"chunks": (5, 6)}, {"compression": "gzip"}, {"compression": "lzf", "shuffle": True}, {"maxshape": (None, 6)}],
)
def test_any_storage_of_hdf5_is_read(how: dict[str, object], tmp_path: Path) -> None:
    np.testing.assert_array_equal(write_hdf5(tmp_path / "f.h5", FEATURES, **how).load(), FEATURES)


def test_hdf5_after_a_block_of_other_bytes_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w", userblock_size=512) as file:
        file["v_1"] = FEATURES
    np.testing.assert_array_equal(Hdf5Dataset(tmp_path / "f.h5", "v_1").load(), FEATURES)


def test_tensors_of_other_kinds_are_read(tmp_path: Path) -> None:
    path = tmp_path / "v1.pt"
    tensor = torch.from_numpy(FEATURES)
    torch.save(tensor.bfloat16(), path)
    np.testing.assert_array_equal(TensorFile(path).load(), tensor.bfloat16().float().numpy())
    torch.save(tensor.clone().requires_grad_(), path)
    np.testing.assert_array_equal(TensorFile(path).load(), FEATURES)
    torch.save(tensor, path, _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(TensorFile(path).load(), FEATURES)
    torch.save(tensor.T, path)
    np.testing.assert_array_equal(TensorFile(path).load(), FEATURES.T)


def test_an_empty_hdf5_file_is_named(tmp_path: Path) -> None:
    h5py.File(tmp_path / "x.h5", "w").close()
    with pytest.raises(InputError, match=r"x\.h5: expected a dataset for each recording, found none$"):
        sources_of(tmp_path / "x.h5", trusted=False)


@pytest.mark.parametrize("head", ["", "f0,f1,f2\n", "0,1,2\n", "\ufefff0,f1,f2\r\n", "\n\nrgb, flow, x\n\n"], ids=repr)
def test_the_first_line_of_a_table_may_name_columns(head: str, tmp_path: Path) -> None:
    path = tmp_path / "v1.csv"
    path.write_bytes(f"{head}1.5,  2,-3e-2\r\n\r\n4,5,6\n".encode())
    np.testing.assert_array_equal(CsvFile(path).load(), np.float32([[1.5, 2, -3e-2], [4, 5, 6]]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n\n3,x\n", "expected 2 numbers in each line, got something else in line 4"),
        ("1,2\n3\n", "expected 2 numbers in each line, got something else in line 2"),
        ("1,2\n3,4_0\n", "expected 2 numbers in each line, got something else in line 2"),
        ("a,b\n", "expected a line of numbers for each snippet, found none"),
        ("", "expected a line of numbers for each snippet, found none"),
    ],
)
def test_each_fault_of_a_table_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "v1.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {message}')}$"):
        CsvFile(path).load()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3), np.int64), "expected an array of floats, got int64"),
        (np.zeros(3, np.float32), "expected an array of shape [snippets, channels], got shape [3]"),
        (np.float32(3), "expected an array of shape [snippets, channels], got shape []"),
        (np.zeros((1, 2, 3), np.float32), "expected an array of shape [snippets, channels], got shape [1, 2, 3]"),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz", "hdf5", "pt", "pkl"])
def test_other_arrays_are_named(suffix: str, array: np.ndarray, message: str, tmp_path: Path) -> None:
    source = WRITERS[suffix](tmp_path / f"v1.{suffix}", np.asarray(array))
    with pytest.raises(InputError, match=f"^{re.escape(f'{source.path}: {message}')}$"):
        source.load()


@pytest.mark.parametrize("suffix", ["npz", "hdf5", "pt", "pkl"])
def test_empty_arrays_are_left_to_the_checks_of_a_data_set(suffix: str, tmp_path: Path) -> None:
    assert WRITERS[suffix](tmp_path / f"v1.{suffix}", np.zeros((0, 6), np.float32)).load().shape == (0, 6)


def test_a_missing_file_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"v1.{suffix}"
    source = WRITERS[suffix](path, FEATURES)
    path.unlink()
    message = "expected a file, found none" if suffix == "csv" else "expected a feature file, found none"
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {message}')}$"):
        source.load()


def test_truncated_files_are_answered_in_a_sentence(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"v1.{suffix}"
    array = rng.standard_normal((400, 8)).astype(np.float32)
    source = WRITERS[suffix](path, array)
    content = path.read_bytes()
    errors = []
    for size in sorted({0, 1, 5, 7, 100, *range(0, len(content), len(content) // 40), len(content) - 1}):
        path.write_bytes(content[:size])
        try:
            source.load()
        except InputError as error:
            errors.append(str(error))
    assert all(error.startswith(str(path)) and "\n" not in error for error in errors)
    # A table that ends early is a shorter table.
    assert len(errors) >= (1 if suffix == "csv" else 40)


def test_damaged_files_are_answered_in_a_sentence(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"v1.{suffix}"
    source = WRITERS[suffix](path, rng.standard_normal((20, 3)).astype(np.float32))
    content = path.read_bytes()
    changes = np.random.default_rng(1)
    errors = []
    for _ in range(60):
        damaged = bytearray(content)
        for at in changes.integers(0, min(len(content), 600), 3):
            damaged[at] = changes.integers(256)
        path.write_bytes(damaged)
        try:
            source.load()
        except InputError as error:
            errors.append(str(error))
    assert errors
    assert all(error.startswith(str(path)) and "\n" not in error for error in errors)


@pytest.mark.parametrize("suffix", ["npz", "hdf5", "pt", "pkl"])
def test_text_in_place_of_a_file_is_answered_in_a_sentence(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"v1.{suffix}"
    source = WRITERS[suffix](path, FEATURES)
    path.write_text("<html>404</html>")
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: expected an? [^\n]*, got [^\n]*$"):
        source.load()


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled_that_is_not_trusted(tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    np.savez(tmp_path / "v1.npz", feats=np.array([trap], dtype=object))
    torch.save(trap, tmp_path / "v1.pt")
    (tmp_path / "v1.pkl").write_bytes(pickle.dumps(trap))
    np.save(tmp_path / "v1.npy", np.array([trap], dtype=object))
    pickled = (
        "pickled Python objects, which can run any code: set data.trusted=true (predict: --trusted) if you trust where "
        "they come from"
    )
    for source, message in (
        (NpzMember(tmp_path / "v1.npz"), f"expected an .npz archive of plain arrays, got {pickled}"),
        (PickleFile(tmp_path / "v1.pkl"), f"expected an array, got {pickled}"),
        (TensorFile(tmp_path / "v1.pt"), "a tensor as torch.save writes it, got pickled Python objects, or a damaged"),
        (NpyFile(tmp_path / "v1.npy"), "expected an array of floats, got pickled Python objects"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            source.load()
    assert not trap.path.exists()
    with pytest.raises(InputError):
        PickleFile(tmp_path / "v1.pkl", trusted=True).load()
    assert trap.path.exists()


@pytest.mark.parametrize("kind", ["rows", "numbers", "whole"])
def test_pickled_members_are_read_where_they_are_trusted(kind: str, tmp_path: Path) -> None:
    array = np.empty(len(FEATURES), dtype=object)
    array[:] = list(FEATURES)
    if kind == "numbers":
        array = FEATURES.astype(object)
    elif kind == "whole":
        array = np.array(None, dtype=object)
        array[()] = FEATURES
    np.savez(tmp_path / "v1.npz", feats=array)
    features = NpzMember(tmp_path / "v1.npz", trusted=True).load()
    np.testing.assert_array_equal(features, FEATURES)


def test_pickled_tensors_and_lists_are_read_where_they_are_trusted(tmp_path: Path) -> None:
    path = tmp_path / "v1.pkl"
    for value in (torch.from_numpy(FEATURES), FEATURES.astype(np.float64).tolist()):
        path.write_bytes(pickle.dumps(value))
        np.testing.assert_array_equal(PickleFile(path, trusted=True).load(), FEATURES)


def test_what_is_in_a_container_under_another_name_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "v1.npz", features=FEATURES)
    with pytest.raises(InputError, match=r"v1\.npz/feats: expected an array of this name in the archive, found none$"):
        NpzMember(tmp_path / "v1.npz").load()
    torch.save({"feats": torch.from_numpy(FEATURES)}, tmp_path / "v1.pt")
    with pytest.raises(InputError, match=r"v1\.pt: expected a tensor, got a dict$"):
        TensorFile(tmp_path / "v1.pt").load()
    with h5py.File(tmp_path / "f.hdf5", "w") as file:
        file["v1/rgb"] = FEATURES
        file.create_group("v2")
    for name, message in (
        ("v1", "expected a dataset, got a group of rgb"),
        ("v2", "expected a dataset, got a group of nothing"),
        ("v3", "expected a dataset of this name in the file, found none"),
    ):
        with pytest.raises(InputError, match=rf"f\.hdf5/{name}: {message}$"):
            Hdf5Dataset(tmp_path / "f.hdf5", name).load()
    np.testing.assert_array_equal(Hdf5Dataset(tmp_path / "f.hdf5", "v1/rgb").load(), FEATURES)


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    path = tmp_path / "v1.npz"
    np.savez(path, feats=FEATURES, fps=30.0, name="v1")
    content = bytearray(path.read_bytes())
    content[content.index(FEATURES.tobytes())] ^= 255
    path.write_bytes(content)
    assert {name: array.item() for name, array in read_npz(path, ["fps", "name", "no"]).items()} == {
        "fps": 30.0,
        "name": "v1",
    }
    with pytest.raises(
        InputError, match=r"v1\.npz: expected an \.npz archive of plain arrays, got a damaged file, .*CRC"
    ):
        read_npz(path, ["feats"])


def test_files_are_found_by_the_names_of_videos(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", FEATURES)
    write_tensor(tmp_path / "v_b.PT", FEATURES)
    write_csv(tmp_path / "-c.csv", FEATURES)
    write_pickle(tmp_path / "d.pkl", FEATURES)
    (tmp_path / "missing_files.txt").write_text("e\n")
    (tmp_path / "a.json").write_text("{}")
    sources = locate(tmp_path, ["a", "b", "v_-c", "d", "e"], trusted=True)
    assert sources == {
        "a": NpzMember(tmp_path / "a.npz", trusted=True),
        "b": TensorFile(tmp_path / "v_b.PT"),
        "v_-c": CsvFile(tmp_path / "-c.csv"),
        "d": PickleFile(tmp_path / "d.pkl", trusted=True),
        "e": NpyFile(tmp_path / "e.npy"),
    }
    for name in ("a", "b", "v_-c", "d"):
        np.testing.assert_array_equal(sources[name].load(), FEATURES)
    with pytest.raises(InputError, match=r"e\.npy: expected a feature file, found none$"):
        sources["e"].load()
    with pytest.raises(InputError, match=r"d\.pkl: expected an array, got pickled Python objects"):
        locate(tmp_path, ["d"], trusted=False)["d"].load()


def test_two_files_for_a_video_are_refused(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", FEATURES)
    write_npy(tmp_path / "a.npy", FEATURES)
    with pytest.raises(InputError, match=r": expected one file for a, found a\.npy and a\.npz$"):
        locate(tmp_path, ["a"], trusted=False)


def test_datasets_are_found_by_the_names_of_videos(tmp_path: Path) -> None:
    path = tmp_path / "features.hdf5"
    write_hdf5(path, FEATURES)
    sources = locate(path, ["1", "2"], trusted=False)
    assert sources == {"1": Hdf5Dataset(path, "v_1"), "2": Hdf5Dataset(path, "2")}
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"features\.hdf5: expected an HDF5 file, got a damaged file, or .*truncated"):
        locate(path, ["1"], trusted=False)


def test_a_missing_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none: expected a folder of features or an \.hdf5 file, found none$"):
        locate(tmp_path / "none", [], trusted=False)
    with pytest.raises(InputError, match=r"none\.h5: expected a feature file, found none$"):
        locate(tmp_path / "none.h5", [], trusted=False)


def test_transposed_arrays_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "v1.npy", np.zeros((64, 250), np.float32))
    grid = Grid(fps=25, window=16, stride=4)
    entry = Entry("v1", "train", (NpyFile(tmp_path / "v1.npy"),), grid, duration_sec=40.6)
    message = (
        "expected an array [snippets, channels] of about 252 snippets, got shape [64, 250], which looks transposed"
    )
    with pytest.raises(InputError, match=f"^{re.escape(f'{tmp_path}/v1.npy: {message}')}$"):
        entry.open()
    # Features of another length, or that are about as wide as long, are none of that.
    for shape in ((64, 200), (251, 250), (250, 64)):
        np.save(tmp_path / "v1.npy", np.zeros(shape, np.float32))
        assert entry.open().features.shape == shape
