from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from potloc_fast.config.schema import FolderData
from potloc_fast.data.layouts import read_listing
from potloc_fast.data.signals.windows import SILENCE, Features, Windows, mel_filters
from potloc_fast.errors import InputError


def by_hand(samples: NDArray[np.float64], windows: Windows) -> NDArray[np.float64]:
    """Window after window, as the words say it."""
    step, rows = windows.stride_sec * windows.rate_hz, []
    length = round(windows.length_sec * windows.rate_hz)
    for i in range(int(len(samples) / step + 1e-9)):
        begin = int(np.round(round(i * step, 6) + (round(step, 6) - length) / 2))
        window = samples[[min(max(j, 0), len(samples) - 1) for j in range(begin, begin + length)]]
        row: list[float] = []
        for x in window.T:
            if windows.features == "raw":
                row += x.tolist()
            elif windows.features == "statistics":
                slope = np.polyfit(np.arange(length) / windows.rate_hz, x, 1)[0] if length > 1 else 0.0
                row += [x.mean(), x.std(), x.min(), x.max(), slope]
                scale = 1
                while 2 * scale <= length:
                    pairs = [
                        (x[j : j + scale].mean() - x[j + scale : j + 2 * scale].mean()) / 2
                        for j in range(length - 2 * scale + 1)
                    ]
                    row.append(np.sqrt(np.mean(np.square(pairs))))
                    scale *= 2
            else:
                hann = np.sin(np.pi * np.arange(1, length + 1) / (length + 1)) ** 2
                power = np.abs(np.fft.fft(x * hann / hann.sum())[: length // 2 + 1]) ** 2
                row += np.log(power @ mel_filters(length, windows.rate_hz) + SILENCE).tolist()
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("features", ["raw", "statistics", "log-mel"])
@pytest.mark.parametrize(
    ("length_sec", "stride_sec", "rate_hz", "samples"),
    [(0.5, 0.1, 50, 333), (0.1, 0.5, 50, 333), (1.0, 0.25, 30, 100), (0.04, 0.04, 25, 9), (2.0, 0.1, 10, 7)],
)
def test_windows_are_those_made_one_by_one(
    features: Features,
    length_sec: float,
    stride_sec: float,
    rate_hz: float,
    samples: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(0).normal(9.81, 2.0, (samples, 3)).cumsum(axis=0).astype(np.float32)
    windows = Windows(length_sec, stride_sec, features, rate_hz)
    wanted = by_hand(values.astype(np.float64), windows)
    made = windows.load(values, Path("v1"))
    assert made.shape == (windows.count(samples), windows.width(3)) == wanted.shape
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=2e-4)
    monkeypatch.setattr("potloc_fast.data.signals.windows.BYTES", 1)  # a snippet at a time
    np.testing.assert_allclose(windows.load(values, Path("v1")), wanted, rtol=1e-4, atol=2e-4)


def test_statistics_of_large_values_keep_their_digits() -> None:
    ripple = np.round(8 * np.sin(np.arange(5000) / 3)) / 8  # which float32 holds beside the level, too
    windows = Windows(0.5, 0.1, "statistics", 100)
    small, large = (windows.load((ripple + level)[:, None].astype(np.float32), Path("v1")) for level in (0, 1 << 20))
    np.testing.assert_allclose(large[:, [1, 4, 5, 6]], small[:, [1, 4, 5, 6]], atol=1e-5)


def test_a_tone_is_loudest_in_its_band_and_scales_are_octaves() -> None:
    seconds = np.arange(16_000) / 16_000
    mel = Windows(0.1, 0.05, "log-mel", 16_000)
    loudest = [
        int(mel.load(np.sin(2 * np.pi * hertz * seconds)[:, None], Path("v1"))[5].argmax())
        for hertz in (300, 1000, 4000)
    ]
    centres = 700 * np.expm1(np.linspace(0, np.log1p(8000 / 700), 66)[1:-1])
    assert loudest == [int(np.abs(centres - hertz).argmin()) for hertz in (300, 1000, 4000)]
    assert mel_filters(8, 16_000).sum(axis=0).min() > 0  # no band falls between two values of a short spectrum


@pytest.mark.parametrize(
    ("name", "length_sec", "stride_sec", "width"), [("tug", 0.5, 0.1, 300), ("ecg", 0.04, 0.01, 240)]
)
def test_raw_windows_of_shared_recordings(
    shared_data: Path, name: str, length_sec: float, stride_sec: float, width: int
) -> None:
    """Window i is centred on snippet i's cell, channel by channel, ends repeated, as the table of the data says."""
    windows = {
        "length_sec": length_sec,
        "stride_sec": stride_sec,
        "features": "raw",
        "rate_hz": 50 if name == "tug" else 500,
    }
    listing = read_listing(FolderData(layout="plain", root=shared_data / name, windows=windows))
    with (shared_data / name / "recordings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(entry.id, entry.subset) for entry in listing.entries] == [
        (row["recording"], row["subset"]) for row in rows
    ]
    for entry, row in list(zip(listing.entries, rows, strict=True))[::50]:
        recording, rate = entry.open(), float(row["rate_hz"])
        samples = np.load(shared_data / name / "signals" / f"{entry.id}.npy").astype(np.float32)
        length, stride = round(length_sec * rate), round(stride_sec * rate)
        count = len(samples) // stride
        first = np.round(np.arange(count) * stride + (stride - length) / 2).astype(int)
        picked = samples[np.clip(first[:, None] + np.arange(length), 0, len(samples) - 1)]
        assert recording.features.shape == (count, width)
        np.testing.assert_array_equal(recording.features, picked.transpose(0, 2, 1).reshape(count, -1))
        assert recording.grid.snippet_of(3.5 * stride_sec, count) == 3
        assert recording.duration_sec == pytest.approx(count * stride_sec)


def test_a_recording_shorter_than_a_snippet_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^v1: expected at least 0.5 s, which is one snippet, got 9 samples at 50 Hz$"
    ):
        Windows(1.0, 0.5, "raw", 50).load(np.zeros((9, 2), np.float32), Path("v1"))
