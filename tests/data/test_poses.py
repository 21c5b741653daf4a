from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from potloc_fast.config.schema import SignalsConfig
from potloc_fast.data.signals.readers import read_signals
from potloc_fast.data.signals.signal import Signal
from potloc_fast.errors import InputError

PARTS = ("nose", "tail")
FRAMES = 40


def walk() -> np.ndarray:
    """A body of two points, 4 long, that walks 3 a frame to the right and turns around half way: [frames, 2, 2]."""
    middle = np.stack([3.0 * np.arange(FRAMES), np.full(FRAMES, 50.0)], axis=1)
    side = np.where(np.arange(FRAMES) < FRAMES // 2, 2.0, -2.0)
    return np.stack([middle + [[1, 0]] * side[:, None], middle - [[1, 0]] * side[:, None]], axis=1)


def assert_walk(signal: Signal, prefix: str = "", parts: tuple[str, str] = PARTS) -> None:
    nose, tail = parts
    assert signal.columns[:5] == tuple(
        f"{prefix}{name}" for name in ("speed", f"{nose} x", f"{nose} y", f"{nose} speed", f"{nose} confidence")
    )
    table = dict(zip(signal.columns, np.asarray(signal.samples[:]).T, strict=True))
    np.testing.assert_allclose(table[f"{prefix}speed"], 1.5, atol=1e-5)  # 3 a frame, of a body of size 2
    np.testing.assert_allclose(table[f"{prefix}{nose} x"][:20], 1, atol=1e-5)
    np.testing.assert_allclose(table[f"{prefix}{nose} x"][20:], -1, atol=1e-5)
    np.testing.assert_allclose(table[f"{prefix}{tail} y"], 0, atol=1e-5)
    np.testing.assert_allclose(table[f"{prefix}{nose} confidence"], 0.9, atol=1e-5)


def write_deeplabcut(path: Path, places: np.ndarray, individuals: tuple[str, ...] = ()) -> None:
    """Rows of names, then a frame a line."""
    who = individuals or ("",)
    heads = {
        "scorer": ["net"] * 3 * len(PARTS) * len(who),
        "individuals": [name for name in who for _ in range(3 * len(PARTS))],
        "bodyparts": [part for _ in who for part in PARTS for _ in range(3)],
        "coords": ["x", "y", "likelihood"] * len(PARTS) * len(who),
    }
    if not individuals:
        del heads["individuals"]
    lines = [",".join([name, *cells]) for name, cells in heads.items()]
    for frame, points in enumerate(places):
        row = [f"{value}" for _ in who for x, y in points for value in (x, y, 0.9)]
        lines.append(",".join([f"{frame}", *row]))
    path.write_text("\n".join(lines) + "\n")


def test_deeplabcut_as_csv(tmp_path: Path) -> None:
    write_deeplabcut(tmp_path / "a.csv", walk())
    (signal,) = read_signals(tmp_path / "a.csv", SignalsConfig())
    assert signal.samples.shape == (FRAMES, 1 + 2 * 4)
    assert_walk(signal)


def test_deeplabcut_with_several_animals(tmp_path: Path) -> None:
    write_deeplabcut(tmp_path / "a.csv", walk(), ("mouse1", "mouse2"))
    (signal,) = read_signals(tmp_path / "a.csv", SignalsConfig())
    assert signal.samples.shape == (FRAMES, 2 * (1 + 2 * 4))
    assert_walk(signal, "mouse1 ")


def test_deeplabcut_as_hdf5(tmp_path: Path) -> None:
    rows = np.concatenate([walk(), np.full((FRAMES, 2, 1), 0.9)], axis=2).reshape(FRAMES, -1)
    table = np.zeros(FRAMES, [("index", "i8"), ("values_block_0", "f8", (6,))])
    table["values_block_0"] = rows
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["df_with_missing/table"] = table
    (signal,) = read_signals(tmp_path / "a.h5", SignalsConfig())
    assert signal.columns[1] == "0 x"  # names are pickled there, and not read
    write_deeplabcut(tmp_path / "a.csv", walk())
    (other,) = read_signals(tmp_path / "a.csv", SignalsConfig())
    np.testing.assert_allclose(signal.samples[:], other.samples[:])


def test_sleap(tmp_path: Path) -> None:
    tracks = walk().transpose(2, 1, 0)[None]  # [tracks, 2, nodes, frames]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["tracks"], file["node_names"] = tracks, [name.encode() for name in PARTS]
        file["point_scores"] = np.full((1, 2, FRAMES), 0.9)
        file["track_occupancy"] = np.ones((FRAMES, 1))
    (signal,) = read_signals(tmp_path / "a.h5", SignalsConfig())
    assert_walk(signal, "0 ", ("0", "1"))


def test_points_that_are_missing_are_bridged(tmp_path: Path) -> None:
    places = walk()
    tracks = places.transpose(2, 1, 0)[None].copy()
    tracks[0, :, 0, 5:9] = np.nan
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["tracks"], file["node_names"] = tracks, [b"nose", b"tail"]
    (signal,) = read_signals(tmp_path / "a.h5", SignalsConfig())
    table = dict(zip(signal.columns, np.asarray(signal.samples[:]).T, strict=True))
    np.testing.assert_allclose(table["0 0 x"][:20], 1, atol=1e-5)
    assert table["0 0 confidence"][4:10].tolist() == [1, 0, 0, 0, 0, 1]


def test_a_point_that_is_never_sure_stays_in_the_middle(tmp_path: Path) -> None:
    write_deeplabcut(tmp_path / "a.csv", walk())
    text = (tmp_path / "a.csv").read_text().splitlines()
    rows = [",".join([*line.split(",")[:-1], "0.1"]) for line in text[3:]]
    (tmp_path / "a.csv").write_text("\n".join([*text[:3], *rows]))
    (signal,) = read_signals(tmp_path / "a.csv", SignalsConfig())
    table = dict(zip(signal.columns, np.asarray(signal.samples[:]).T, strict=True))
    assert not table["tail x"].any()
    assert not table["tail speed"].any()
    assert np.isfinite(signal.samples[:]).all()


def test_what_is_no_pose_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("scorer,n,n\nbodyparts,nose,nose\ncoords,x,y\n0,1,2\n")
    with pytest.raises(InputError, match=r"a.csv: expected the columns x, y and likelihood for each body part, got"):
        read_signals(tmp_path / "a.csv", SignalsConfig())
    (tmp_path / "a.csv").write_text("scorer,n,n,n\nbodyparts,nose\ncoords,x,y,likelihood\n0,1,2,1\n")
    with pytest.raises(
        InputError, match=r"a.csv: expected as many cells in each of the first lines, got \[1, 1, 3, 3\]"
    ):
        read_signals(tmp_path / "a.csv", SignalsConfig())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["tracks"], file["node_names"] = np.zeros((1, 2, 3, 9)), [b"nose"]
    with pytest.raises(InputError, match=r"a.h5: expected tracks \[tracks, 2, nodes, frames\] with as many node_names"):
        read_signals(tmp_path / "a.h5", SignalsConfig())
