"""Files of samples in each format, and recordings made of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from potloc_fast.config.schema import FolderData, SignalsConfig, WindowsConfig
from potloc_fast.data.layouts import read_listing
from potloc_fast.data.signals.choose import choose_windows, own_time
from potloc_fast.data.signals.readers import FORMATS, read_signals
from potloc_fast.data.signals.source import SignalSource, group_files
from potloc_fast.data.signals.timeline import align
from potloc_fast.errors import InputError

NAMES = ("x", "y", "z")
RATE = 50.0
WINDOWS = WindowsConfig(length_sec=0.2, stride_sec=0.1, features="raw", rate_hz=RATE)
PLAIN = SignalsConfig()


@pytest.fixture
def samples() -> NDArray[np.float32]:
    """10 s of three channels, in steps that 16 bits can hold."""
    return (np.random.default_rng(0).integers(-2000, 2000, (500, 3)) / 2048).astype(np.float32)


def write_rows(path: Path, samples: NDArray[Any], mark: str = ",", head: tuple[str, ...] = NAMES) -> None:
    rows = [mark.join(head)] if head else []
    path.write_text("\n".join([*rows, *(mark.join(map(str, row)) for row in samples.tolist())]) + "\n")


def write_hdf5(path: Path, samples: NDArray[Any]) -> None:
    with h5py.File(path, "w") as file:
        for name, column in zip(NAMES, samples.T, strict=True):
            file[name] = column
        file.attrs["sampling_rate"] = RATE


def write_array_in_hdf5(path: Path, samples: NDArray[Any]) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("imu/acc", data=samples, compression="gzip").attrs["fs"] = RATE


def write_sound(path: Path, samples: NDArray[Any]) -> None:
    pytest.importorskip("soundfile").write(path, samples, int(RATE))


def write_edf(path: Path, samples: NDArray[Any]) -> None:
    edfio = pytest.importorskip("edfio")
    kind, file = (edfio.BdfSignal, edfio.Bdf) if path.suffix == ".bdf" else (edfio.EdfSignal, edfio.Edf)
    file([kind(column.astype(float), RATE, label=name) for name, column in zip(NAMES, samples.T, strict=True)]).write(
        path
    )


def write_parquet(path: Path, samples: NDArray[Any]) -> None:
    table = pytest.importorskip("pyarrow").table(
        dict(zip(NAMES, samples.T, strict=True)) | {"who": ["s1"] * len(samples)}
    )
    pytest.importorskip("pyarrow.parquet").write_table(table, path, row_group_size=100)


WRITERS: dict[str, Callable[[Path, NDArray[Any]], None]] = {
    "a.npy": np.save,
    "a.csv": write_rows,
    "b.csv": lambda path, samples: write_rows(path, samples, ";"),
    "c.csv": lambda path, samples: write_rows(path, samples, head=()),
    "a.tsv": lambda path, samples: write_rows(path, samples, "\t"),
    "a.txt": lambda path, samples: write_rows(path, samples, "\t"),
    "b.txt": lambda path, samples: write_rows(path, samples, "  "),
    "a.h5": write_hdf5,
    "a.hdf5": write_array_in_hdf5,
    "a.wav": write_sound,
    "a.flac": write_sound,
    "a.edf": write_edf,
    "a.bdf": write_edf,
    "a.parquet": write_parquet,
}


def test_every_format_is_tried() -> None:
    assert {Path(name).suffix for name in WRITERS} == set(FORMATS)


@pytest.mark.parametrize("name", WRITERS)
def test_samples_are_read_as_they_were_written(tmp_path: Path, samples: NDArray[np.float32], name: str) -> None:
    WRITERS[name](tmp_path / name, samples)
    (signal,) = read_signals(tmp_path / name, PLAIN)
    assert signal.samples.shape == samples.shape
    assert signal.rate_hz == (RATE if Path(name).suffix in (".h5", ".hdf5", ".wav", ".flac", ".edf", ".bdf") else None)
    assert signal.time_sec is None
    for begin, end in ((0, 500), (123, 321), (499, 500)):
        block = np.asarray(signal.samples[begin:end])
        np.testing.assert_allclose(block, samples[begin:end], atol=1e-4)
    features = SignalSource((tmp_path / name,), PLAIN, WINDOWS).load()
    assert features.shape == (100, 30)
    np.testing.assert_allclose(features[7].reshape(3, 10), samples[32:42].T, atol=1e-4)  # around 7.5 strides


@pytest.mark.parametrize(
    "name", [name for name in WRITERS if name not in ("a.npy", "c.csv", "a.hdf5", "a.wav", "a.flac")]
)
def test_columns_are_chosen_by_name(tmp_path: Path, samples: NDArray[np.float32], name: str) -> None:
    WRITERS[name](tmp_path / name, samples)
    (signal,) = read_signals(tmp_path / name, SignalsConfig(columns=("z", "x")))
    assert signal.columns == ("z", "x")
    np.testing.assert_allclose(np.asarray(signal.samples[10:20]), samples[10:20, [2, 0]], atol=1e-4)
    with pytest.raises(InputError, match=r"expected a column 'w' \(data.signals.columns\), found x, y, z"):
        read_signals(tmp_path / name, SignalsConfig(columns=("w",)))


def test_columns_of_an_array_have_numbers(tmp_path: Path, samples: NDArray[np.float32]) -> None:
    np.save(tmp_path / "a.npy", samples)
    (signal,) = read_signals(tmp_path / "a.npy", SignalsConfig(columns=("2", "0")))
    assert signal.samples.shape == (500, 2)
    np.testing.assert_array_equal(signal.samples[10:20], samples[10:20, [2, 0]])


def test_whole_numbers_are_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(100, dtype=np.int16))
    (signal,) = read_signals(tmp_path / "a.npy", PLAIN)
    assert signal.samples.shape == (100, 1)


def test_cells_that_are_empty_are_bridged(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,note,y\n0,a,5\n,b,NaN\n2,c,7\n3,,\n")
    (signal,) = read_signals(tmp_path / "a.csv", PLAIN)
    assert signal.columns == ("x", "y")
    assert np.asarray(signal.samples[:]).tolist() == [[0, 5], [1, 6], [2, 7], [3, 7]]


def test_decimal_commas(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x;y\n0,5;1\n0,75;2\n")
    (signal,) = read_signals(tmp_path / "a.csv", PLAIN)
    assert np.asarray(signal.samples[:]).tolist() == [[0.5, 1], [0.75, 2]]


@pytest.mark.parametrize(
    ("head", "cells", "seconds"),
    [
        ("timestamp", ["1657533977813", "1657533977863", "1657533977913"], [0, 0.05, 0.1]),
        ("timestamp", ["1657533977.5", "1657533978.5", "1657533979"], [0, 1, 1.5]),
        ("time_ms", ["0", "20", "40"], [0, 0.02, 0.04]),
        ("Time (s)", ["0", "20", "40"], [0, 20, 40]),
        ("t", ["0.0", "0.02", "0.04"], [0, 0.02, 0.04]),
        ("Elapsed Time [us]", ["0", "2000", "4000"], [0, 0.002, 0.004]),
        ("datetime", ["2024-05-01 12:00:00.25", "2024-05-01 12:00:00.5", "2024-05-01 12:00:01"], [0, 0.25, 0.75]),
        ("time", ["2024-05-01T12:00:00Z", "2024-05-01T12:00:01Z", "2024-05-01T12:00:02Z"], [0, 1, 2]),
    ],
)
def test_time_stamps(tmp_path: Path, head: str, cells: list[str], seconds: list[float]) -> None:
    (tmp_path / "a.csv").write_text(f"x,{head}\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))
    (signal,) = read_signals(tmp_path / "a.csv", PLAIN)
    assert signal.columns == ("x",)
    assert signal.time_sec is not None
    np.testing.assert_allclose(signal.time_sec - signal.time_sec[0], seconds, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "x,time\n1,0\n2,20\n",
            {},
            "column 'time', which are usually 20 apart: set data.signals.time_unit to s, ms, us",
        ),
        ("x,time\n1,0\n2,20\n", {"time": "clock"}, r"expected a column 'clock' \(data.signals.time\), found x, time"),
        ("x,time,t\n1,0,0\n", {}, "expected one column of time stamps, found time, t: set data.signals.time"),
        ("x,time\n1,0.0\n2,\n3,0.2\n", {}, "expected a time stamp in line 3, found none"),
        ("x,time\n1,2024-05-01 12:00\n2,noon\n", {}, "expected a time stamp in line 3, .* got 'noon'"),
        ("x,y\n1,2\n3,4\n", {"columns": ["y", "w"]}, "expected a column 'w'"),
        ("x\n" + "1\n" * 200 + "one\n", {}, "expected a number in line 202, column 1, got 'one'"),
        ("x\n" + "1\n" * 200 + "1_0\n", {}, "expected a number in line 202, column 1, got '1_0'"),
        ("x,y\n1,2,\n3,4,5\n", {}, "expected 2 cells in line 3, got '3,4,5'"),
        ("name,note\na,b\n", {}, "expected columns of numbers, found name, note"),
        ("x,y\n", {}, "expected a line of numbers for each sample, found none below"),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=rf"a.csv: .*{message}"):
        read_signals(tmp_path / "a.csv", SignalsConfig(**options))


def test_arrays_that_lie_on_their_side_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 500)))
    with pytest.raises(InputError, match=r"got shape \[3, 500\], which looks transposed"):
        read_signals(tmp_path / "a.npy", PLAIN)


def test_datasets_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["y"] = np.zeros(100), np.zeros(90)
    with pytest.raises(
        InputError, match=r"expected datasets of as many samples, found x \[100\], y \[90\]: name those"
    ):
        read_signals(tmp_path / "a.h5", PLAIN)
    assert read_signals(tmp_path / "a.h5", SignalsConfig(columns=("y",)))[0].samples.shape == (90, 1)


def test_rates_within_a_file_are_brought_to_one(tmp_path: Path) -> None:
    edfio = pytest.importorskip("edfio")
    slow, fast = np.sin(np.arange(80) / 8 * np.pi), np.sin(np.arange(500) / 50 * np.pi)
    edfio.Edf([edfio.EdfSignal(slow, 8, label="slow"), edfio.EdfSignal(fast, 50, label="fast")]).write(
        tmp_path / "a.edf"
    )
    found = read_signals(tmp_path / "a.edf", PLAIN)
    assert [(signal.columns, signal.rate_hz) for signal in found] == [(("slow",), 8), (("fast",), 50)]
    joined = align(found, 50)
    assert joined.shape == (500, 2)
    block = joined[0:480]
    np.testing.assert_allclose(block[:, 0], block[:, 1], atol=0.03)


@pytest.mark.parametrize(
    ("suffix", "library"), [(".parquet", "pyarrow"), (".wav", "soundfile"), (".flac", "soundfile"), (".edf", "edfio")]
)
def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, library: str
) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"anything")

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("potloc_fast.data.signals.readers.import_module", missing)
    message = (
        rf"a{suffix}: expected the library {library} to read {suffix} files, found none: pip install '.*\[signals\]'"
    )
    with pytest.raises(InputError, match=message):
        read_signals(tmp_path / f"a{suffix}", PLAIN)


# Recordings


def test_phones_and_watches_as_they_wrote_them(shared_data: Path) -> None:
    """The original files, brought to 50 Hz, are the arrays that were made of them elsewhere."""
    files = group_files((shared_data / "tug" / "original").iterdir(), ("sp", "sw"), "original")
    assert sorted(files) == ["s01_01", "s02_01", "s03_01"]
    for name, paths in files.items():
        known = np.load(shared_data / "tug" / "signals" / f"{name}.npy")
        source = SignalSource(paths, PLAIN, WINDOWS)
        signals = source.read()
        assert [signal.columns[0] for signal in signals] == ["x_acc", "x_acc"]  # without stamps and labels
        made = align(signals, 50)
        block = made[0 : made.shape[0]]
        assert abs(len(block) - len(known)) <= 2
        both = min(len(block), len(known))
        for channel in range(12):
            assert np.corrcoef(block[5 : both - 5, channel], known[5 : both - 5, channel])[0, 1] > 0.95
        assert source.load().shape == (made.shape[0] // 5, 120)
        assert source.notes == []


def test_silence_of_a_sensor_is_told(tmp_path: Path) -> None:
    time = np.concatenate([np.arange(0, 4, 0.02), np.arange(7, 10, 0.02)])
    write_rows(tmp_path / "a.csv", np.stack([time, time], axis=1), head=("time", "x"))
    source = SignalSource((tmp_path / "a.csv",), PLAIN, WINDOWS)
    features = source.load()
    assert len(features) == 100
    assert source.notes == [
        f"{tmp_path}/a.csv: no samples for 3.02 s, from 3.98 to 7.00 s: straight lines bridge what is missing"
    ]


def test_files_are_grouped_by_sensors() -> None:
    files = [Path(name) for name in ("w1_phone.csv", "w1_watch.npy", "w_2-watch.csv", "w_2-phone.csv", "notes.md")]
    assert group_files(files, ("phone", "watch"), "here") == {
        "w1": (Path("w1_phone.csv"), Path("w1_watch.npy")),
        "w_2": (Path("w_2-phone.csv"), Path("w_2-watch.csv")),
    }
    with pytest.raises(InputError, match=r"^here: expected a file of the sensor watch for w1, found none$"):
        group_files(files[:1], ("phone", "watch"), "here")
    with pytest.raises(InputError, match=r"^w1_watch.npy: expected a name that ends with a sensor \(phone\)"):
        group_files(files[:2], ("phone",), "here")
    with pytest.raises(InputError, match=r"^here: expected one file for a, found a.csv and a.npy$"):
        group_files([Path("a.csv"), Path("a.npy")], (), "here")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Three recordings of 60 s at 50 Hz as tables of time stamps, with a point each 2 s in two of them."""
    root = tmp_path / "mine"
    (root / "signals").mkdir(parents=True)
    rng, points = np.random.default_rng(0), ["recording,label,time_sec"]
    time = np.arange(0, 60, 1 / RATE)
    for name in ("v1", "v2", "v3"):
        move = np.sin(time[:, None] * np.pi * 2 + rng.uniform(0, 6, 2)) + rng.normal(0, 0.1, (len(time), 2))
        write_rows(root / "signals" / f"{name}.csv", np.column_stack([time, move]).round(4), head=("time", "x", "y"))
        points += [f"{name},{'jump' if i % 4 else 'turn'},{i}" for i in range(2, 60, 2) if name != "v3"]
    (root / "points.csv").write_text("\n".join(points))
    return root


def test_windows_follow_from_rate_points_and_signal(mine: Path) -> None:
    data = FolderData(layout="auto", root=mine)
    chosen, reasons = choose_windows(data, read_listing(data))
    # The sine turns from 1 to 1/2 in a sixth of its period.
    assert chosen.windows == WindowsConfig(length_sec=0.2, stride_sec=0.2, features="raw", rate_hz=50)
    assert [reason.split(":")[0] for reason in reasons] == [
        "data.windows.rate_hz=50.0",
        "data.windows.stride_sec=0.2",
        "data.windows.length_sec=0.2",
        "data.windows.features=raw",
    ]
    dataset = read_listing(chosen).open()
    assert {recording.features.shape for recording in dataset.recordings} == {(300, 20)}
    assert [recording.subset for recording in dataset.recordings] == ["train", "train", "test"]
    again, nothing = choose_windows(chosen, read_listing(chosen))
    assert (again, nothing) == (chosen, [])


@pytest.mark.parametrize(("hertz", "stride"), [(0.02, 0.2), (1.0, 0.2), (20.0, 0.1)])
def test_strides_give_10_to_20_snippets_between_near_points(mine: Path, hertz: float, stride: float) -> None:
    time = np.arange(0, 60, 1 / RATE)
    for path in (mine / "signals").iterdir():
        write_rows(path, np.column_stack([time, np.sin(time * np.pi * 2 * hertz)]).round(4), head=("time", "x"))
    data = FolderData(layout="plain", root=mine)
    assert choose_windows(data, read_listing(data))[0].windows.stride_sec == stride


def test_what_is_set_is_kept(mine: Path) -> None:
    data = FolderData(layout="plain", root=mine, windows={"length_sec": 3, "features": "statistics"})
    chosen, reasons = choose_windows(data, read_listing(data))
    assert (chosen.windows.length_sec, chosen.windows.features, len(reasons)) == (3, "statistics", 2)
    assert read_listing(chosen).open().recordings[0].features.shape == (300, 2 * (5 + 7))


def test_own_time_of_a_wave() -> None:
    wave = np.sin(np.arange(5000) / 100 * 2 * np.pi * 2)[:, None]  # 2 Hz
    assert own_time(wave, 100) == pytest.approx(0.5 / 6, abs=0.011)
    assert own_time(np.ones((500, 2)), 100) == 5


def test_features_go_before_signals_unless_windows_are_set(mine: Path) -> None:
    (mine / "features").mkdir()
    for name in ("v1", "v2", "v3"):
        np.save(mine / "features" / f"{name}.npy", np.zeros((120, 4), np.float32))
    data = FolderData(layout="plain", root=mine, grid={"fps": 2})
    assert choose_windows(data, read_listing(data)) == (data, [])
    assert read_listing(data).open().recordings[0].features.shape == (120, 4)
    windows = {"length_sec": 0.5, "stride_sec": 0.2, "features": "raw", "rate_hz": 50}
    assert (
        read_listing(FolderData(layout="plain", root=mine, windows=windows)).open().recordings[0].features.shape[1]
        == 50
    )


def test_the_table_of_recordings_says_files_and_rates(mine: Path, tmp_path: Path) -> None:
    shutil.rmtree(mine / "signals")
    np.save(tmp_path / "left.npy", np.zeros((600, 2)))
    np.save(tmp_path / "right.npy", np.ones((600, 1)))
    (mine / "recordings.csv").write_text(
        f"recording,rate_hz,signals\nv1,100,{tmp_path}/left.npy;{tmp_path}/right.npy\n"
    )
    data = FolderData(layout="plain", root=mine, windows=WINDOWS)
    (entry,) = read_listing(data).entries
    features = entry.open().features
    assert features.shape == (60, 30)  # 6 s at 100 Hz, of which 50 a second are left
    assert np.asarray(features)[3].reshape(3, 10).mean(axis=1).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: (root / "signals" / "v2.csv").unlink(),
            r"signals: expected a file of samples called v2, found none",
        ),
        (
            lambda root: (root / "signals" / "v2.csv").rename(root / "signals" / "v2_phone.csv"),
            r"signals: expected a file of samples called v2, found v2_phone.csv: .* data.signals.sensors says how",
        ),
    ],
)
def test_files_that_are_missing_are_named(mine: Path, change: Callable[[Path], Any], message: str) -> None:
    (mine / "recordings.csv").write_text("recording\nv1\nv2\nv3\n")
    change(mine)
    with pytest.raises(InputError, match=message):
        read_listing(FolderData(layout="plain", root=mine))


def test_a_rate_must_be_known(mine: Path) -> None:
    for path in (mine / "signals").iterdir():
        path.unlink()
        np.save(path.with_suffix(".npy"), np.zeros((500, 2)))
    data = FolderData(layout="plain", root=mine)
    with pytest.raises(
        InputError, match=r"v1.npy: expected samples a second .* or as data.windows.rate_hz, found none$"
    ):
        choose_windows(data, read_listing(data))


def test_windows_are_for_signals(mine: Path) -> None:
    with pytest.raises(InputError, match=r"^key data.windows: expected raw recordings, .* got the layout lacp$"):
        read_listing(FolderData(layout="lacp", root=mine, windows={"stride_sec": 1}))
