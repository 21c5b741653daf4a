"""Sensors of a recording on one time axis: time stamps evened, rates brought to one, gaps bridged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from potloc_fast.data.signals.signal import Signal
from potloc_fast.data.signals.windows import Floats, Samples
from potloc_fast.errors import InputError

GAP_SEC = 0.5  # without a sample, which is said ...
GAP_STEPS = 10  # ... where it is also so many usual steps
EVENED_SEC = 0.25  # before and after a stamp, over which stamps are averaged where samples came in bursts
DENSE = 1.5  # given samples for one that is made, from which on they are averaged
SPARSE_SEC = 3600.0  # from which on a recording can't be nearly empty: ...
SPARSE = 100  # ... with so many times the samples it would be without gaps, ...
FILLED = 100_000  # ... nor with so many to be made of each
NEAR = 1e-6  # of a rate that two may differ by and be the same


@dataclass(frozen=True, eq=False)
class Resampled:
    """Samples at a constant rate made of samples at given times, when they are read.

    Sample k is the signal at k / `rate_hz`, with straight lines between the given samples; where there
    are more of these than are made, it is their mean over the time from half a sample before to half a sample after.
    """

    samples: Samples
    time_sec: NDArray[np.float64] | float  # when they were taken, or how many there are in a second
    rate_hz: float
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Samples that are made, and channels."""
        return (self.count, self.samples.shape[1])

    def __getitem__(self, rows: slice) -> Floats:
        """The samples of some rows, without a step."""
        begin, end, _ = rows.indices(self.count)
        wanted, half = np.arange(begin, end) / self.rate_hz, 0.5 / self.rate_hz
        total = self.samples.shape[0]
        if isinstance(self.time_sec, float):
            given = self.time_sec
            first, last = int((wanted[0] - half) * given) - 1, int((wanted[-1] + half) * given) + 3
        else:
            given = usual_rate(self.time_sec)
            first = int(np.searchsorted(self.time_sec, wanted[0] - half, "right")) - 1
            last = int(np.searchsorted(self.time_sec, wanted[-1] + half, "left")) + 1
        first = min(max(first, 0), total - 1)
        rows = slice(first, min(max(last, first + 1), total))
        time = np.arange(rows.start, rows.stop) / given if isinstance(self.time_sec, float) else self.time_sec[rows]
        block = np.asarray(self.samples[rows], dtype=np.float64)
        if given <= DENSE * self.rate_hz:
            return np.stack([np.interp(wanted, time, channel) for channel in block.T], axis=1, dtype=np.float32)
        edges = np.append(wanted - half, wanted[-1] + half)
        steps = np.diff(time)[:, None]
        areas = np.concatenate([np.zeros((1, block.shape[1])), np.cumsum((block[1:] + block[:-1]) / 2 * steps, axis=0)])
        place = np.clip(np.searchsorted(time, edges, "right") - 1, 0, max(len(time) - 2, 0))
        # The integral up to an edge: whole steps, and a part of one, or of the repeated first and last sample.
        inside = np.clip(edges, time[0], time[-1])
        part = (inside - time[place])[:, None]
        at = np.stack([np.interp(inside, time, channel) for channel in block.T], axis=1)
        outside = (edges - inside)[:, None] * at
        integral = areas[place] + (block[place] + at) / 2 * part + outside
        means: Floats = (np.diff(integral, axis=0) * self.rate_hz).astype(np.float32)
        return means


@dataclass(frozen=True, eq=False)
class Joined:
    """Channels of several sensors at one rate, side by side when they are read."""

    parts: tuple[Samples, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """As long as the shortest part, and all channels."""
        return (min(part.shape[0] for part in self.parts), sum(part.shape[1] for part in self.parts))

    def __getitem__(self, rows: slice) -> Floats:
        """The samples of some rows, without a step."""
        begin, end, _ = rows.indices(self.shape[0])
        return np.concatenate([np.asarray(part[begin:end], np.float32) for part in self.parts], axis=1)


def same_rate(given_hz: float, rate_hz: float) -> bool:
    """Whether samples at one rate need not be brought to another."""
    return abs(given_hz - rate_hz) <= NEAR * rate_hz


def at_rate(samples: Samples, given_hz: float, rate_hz: float) -> Samples:
    """Bring samples of one rate to another."""
    if same_rate(given_hz, rate_hz):
        return samples
    return Resampled(samples, float(given_hz), rate_hz, int(samples.shape[0] / given_hz * rate_hz + 1e-6))


def usual_rate(time_sec: NDArray[np.float64]) -> float:
    """Samples a second while there are any: gaps are left out."""
    steps = np.diff(time_sec)
    kept = steps[steps <= longest_step(time_sec)]
    return len(kept) / max(float(kept.sum()), 1e-9) if len(kept) and kept.sum() > 0 else 0.0


def longest_step(time_sec: NDArray[np.float64]) -> float:
    """Seconds between two samples over which it is a gap."""
    steps = np.diff(time_sec)
    steps = steps[steps > 0]
    return max(GAP_SEC, GAP_STEPS * float(np.median(steps))) if len(steps) else GAP_SEC


def gaps(time_sec: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Beginnings and ends of the gaps in time stamps, in seconds after the first one."""
    late = np.flatnonzero(np.diff(time_sec) > longest_step(time_sec))
    return [(float(time_sec[i] - time_sec[0]), float(time_sec[i + 1] - time_sec[0])) for i in late]


def even(time_sec: NDArray[np.float64]) -> NDArray[np.float64]:
    """When samples were taken that a device delivers in bursts: several have one time stamp, or nearly so.

    Those of one stamp are spread up to the next one, and between gaps each time becomes the mean of those around it, as
    far before as after. Stamps that all differ stay as they are.

    >>> even(np.array([0.0, 0.0, 1.0, 1.0])).tolist()
    [0.0, 0.5, 1.0, 1.5]
    """
    if len(time_sec) < 3 or not (np.diff(time_sec) == 0).any():
        return time_sec
    longest = longest_step(time_sec)
    stamp, first, count = np.unique(time_sec, return_index=True, return_counts=True)
    span = np.diff(stamp)
    step = float(np.median(span / count[:-1])) if len(span) else 0.0
    span = np.append(np.where(span > longest, step * count[:-1], span), step * count[-1])
    within = np.arange(len(time_sec)) - np.repeat(first, count)
    spread = np.repeat(stamp, count) + within * np.repeat(span / count, count)
    breaks = np.flatnonzero(np.diff(spread) > longest) + 1
    reach = int(EVENED_SEC * max(usual_rate(time_sec), 0.0))
    return np.concatenate([_smooth(piece, reach) for piece in np.split(spread, breaks)])


def _smooth(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Each value's mean with up to `reach` values on either side, as many on both."""
    index = np.arange(len(values))
    side = np.minimum(np.minimum(index, index[::-1]), reach)
    sums = np.concatenate([[0.0], np.cumsum(values - values[0])])
    smooth: NDArray[np.float64] = (sums[index + side + 1] - sums[index - side]) / (2 * side + 1) + values[0]
    return smooth


def _check_filled(signal: Signal, length_sec: float, rate_hz: float) -> None:
    """Refuse samples between which there is nearly nothing: a time stamp or a rate is wrong."""
    count = signal.samples.shape[0]
    usual = signal.rate_hz or 0.0 if signal.time_sec is None else usual_rate(signal.time_sec)
    if length_sec > SPARSE_SEC and (length_sec * usual > SPARSE * count or length_sec * rate_hz > FILLED * count):
        raise InputError(
            f"{signal.path}: expected samples of one recording, found {count} in {length_sec:.3g} s: a time stamp or a "
            "rate may be wrong"
        )


def align(signals: Sequence[Signal], rate_hz: float) -> Samples:
    """Bring the signals of a recording to one rate and one time axis.

    Time 0 is the first moment from which on all sensors with time stamps record; those without begin there too. The
    recording ends with the sensor that ends first.

    Args:
        signals: of one recording.
        rate_hz: the rate to bring them to; what says no rate is taken to have it.

    Raises:
        InputError: there is no time at which all sensors record.
    """
    stamped = [signal.time_sec for signal in signals if signal.time_sec is not None]
    start = max((float(time[0]) for time in stamped), default=0.0)
    parts: list[Samples] = []
    for signal in signals:
        count, rate = signal.samples.shape[0], signal.rate_hz or rate_hz
        if signal.time_sec is not None:
            length = float(signal.time_sec[-1]) - start
            if length < 0:
                raise InputError(
                    f"{signal.path}: expected time stamps that overlap with those of the other sensors, found that "
                    f"they end {-length:.3g} s before another one begins"
                )
            _check_filled(signal, length, rate_hz)
            made = int(length * rate_hz + 1e-6) + 1
            parts.append(Resampled(signal.samples, even(signal.time_sec - start), rate_hz, made))
        else:
            _check_filled(signal, count / rate, rate_hz)
            parts.append(at_rate(signal.samples, rate, rate_hz))
    return parts[0] if len(parts) == 1 else Joined(tuple(parts))
