from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from potloc_fast.data.signals.signal import Signal
from potloc_fast.data.signals.timeline import Resampled, align, even, gaps, usual_rate
from potloc_fast.errors import InputError


def wave(time_sec: np.ndarray) -> np.ndarray:
    """A movement of half a hertz, and where it is a quarter of a period later."""
    return np.stack([np.sin(np.pi * time_sec), np.cos(np.pi * time_sec)], axis=1)


def stamped(time_sec: np.ndarray, taken: np.ndarray | None = None, name: str = "a.csv") -> Signal:
    return Signal(Path(name), ("x", "y"), wave(time_sec if taken is None else taken).astype(np.float32), None, time_sec)


def test_bursts_of_equal_stamps_are_evened() -> None:
    """Samples of a steady sensor that a phone hands over five at a time, all with the time of the last one."""
    taken = np.arange(1000) / 100
    delivered = np.repeat(taken[4::5], 5)
    evened = even(delivered)
    assert (np.diff(evened) > 0).all()
    assert np.abs(np.diff(evened) - 0.01).max() < 1e-9
    late = evened - taken
    assert np.ptp(late) < 1e-9  # all are late by as much


def test_stamps_of_whole_seconds() -> None:
    taken = np.arange(0, 60, 1 / 20)
    evened = even(np.floor(taken))
    np.testing.assert_allclose(evened, taken, atol=1e-6)


def test_stamps_that_all_differ_stay_as_they_are() -> None:
    time = np.cumsum(np.random.default_rng(0).uniform(0.001, 0.02, 500))
    np.testing.assert_array_equal(even(time), time)


def test_jitter_is_resampled() -> None:
    time = np.arange(1000) / 100 + np.random.default_rng(0).uniform(-0.003, 0.003, 1000)
    samples = align([stamped(time)], 50)
    made = samples[0 : samples.shape[0]]
    np.testing.assert_allclose(made[2:-2], wave(time[0] + np.arange(len(made)) / 50)[2:-2], atol=2e-3)
    # As on a disk, block after block.
    np.testing.assert_array_equal(np.concatenate([samples[i : i + 7] for i in range(0, len(made), 7)]), made)


@pytest.mark.parametrize("rate_hz", [20.0, 100.0, 130.0, 300.0])
def test_rates_are_brought_to_one(rate_hz: float) -> None:
    signal = Signal(Path("a.npy"), ("x", "y"), wave(np.arange(1000) / 100).astype(np.float32), 100.0)
    samples = align([signal], rate_hz)
    assert samples.shape == (int(1000 / 100 * rate_hz), 2)
    np.testing.assert_allclose(samples[5:-5][3:-9], wave(np.arange(samples.shape[0]) / rate_hz)[8:-14], atol=4e-3)


def test_what_is_too_fast_for_the_new_rate_is_averaged_away() -> None:
    hum = np.where(np.arange(4000) % 2, 1.0, -1.0)[:, None].astype(np.float32)  # 500 Hz
    made = Resampled(hum, 1000.0, 50.0, 200)[0:200]
    assert np.abs(made[1:-1]).max() < 0.06


def test_sensors_are_joined_where_both_record() -> None:
    phone = stamped(np.arange(0, 10, 0.01) + 100.03, np.arange(0, 10, 0.01) + 0.03)
    watch = stamped(np.arange(0, 9, 0.02) + 100.0, np.arange(0, 9, 0.02), "b.csv")
    samples = align([phone, watch], 50)
    assert samples.shape == (int((8.98 - 0.03) * 50) + 1, 4)
    made = samples[0 : samples.shape[0]]
    np.testing.assert_allclose(made[3:-3, :2], made[3:-3, 2:], atol=1e-3)
    np.testing.assert_allclose(made[3:-3, :2], wave(0.03 + np.arange(len(made)) / 50)[3:-3], atol=1e-3)


def test_sensors_that_never_record_together_are_refused() -> None:
    with pytest.raises(InputError, match=r"^a.csv: expected time stamps that overlap .* end 5.01 s before another one"):
        align([stamped(np.arange(100) / 100), stamped(np.arange(100) / 100 + 6, name="b.csv")], 50)


def test_gaps_are_found_and_bridged() -> None:
    time = np.concatenate([np.arange(0, 4, 0.01), np.arange(7, 10, 0.01)])
    assert gaps(time) == [(pytest.approx(3.99), pytest.approx(7.0))]
    assert usual_rate(time) == pytest.approx(100)
    line = Signal(Path("a.csv"), ("x",), time[:, None].astype(np.float32), None, time)
    samples = align([line], 100)
    np.testing.assert_allclose(samples[0 : samples.shape[0]][:, 0], np.arange(samples.shape[0]) / 100, atol=1e-5)


def test_bursts_before_and_after_a_gap_are_not_drawn_into_it() -> None:
    taken = np.concatenate([np.arange(0, 4, 0.01), np.arange(7, 10, 0.01)])
    evened = even(np.ceil(taken * 20) / 20)
    assert np.abs(evened - taken).max() < 0.06
    assert gaps(evened) == [(pytest.approx(4.0, abs=0.06), pytest.approx(7.0, abs=0.06))]


@pytest.mark.parametrize("time", [np.append(np.arange(1000) / 100, 1e9), np.array([0.0, 1e9])])
def test_stamps_that_lie_years_apart_are_refused(time: np.ndarray) -> None:
    with pytest.raises(InputError, match=rf"^a.csv: expected samples of one recording, found {len(time)} in 1e\+09 s:"):
        align([stamped(time)], 50)


def test_a_rate_that_asks_for_too_much_is_refused() -> None:
    slow = Signal(Path("a.edf"), ("x",), np.zeros((100, 1), np.float32), 1e-5)
    with pytest.raises(InputError, match=r"^a.edf: expected samples of one recording, found 100 in 1e\+07 s:"):
        align([slow], 50)
