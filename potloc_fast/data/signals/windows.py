"""Samples to snippets: windows of a recording, each centred on its snippet's cell."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from potloc_fast.data.recording import intact
from potloc_fast.errors import InputError
from potloc_fast.files import writing

BYTES = 1 << 20  # of snippets, or of their samples, that are made at a time: what a processor keeps at hand
MEL_BANDS = 64
SILENCE = 1e-10  # the energy that silence is taken to have

Floats: TypeAlias = NDArray[np.float32]
Features = Literal["raw", "statistics", "log-mel"]


class Samples(Protocol):
    """Samples at a constant rate that are read block by block: `[N, C]` of numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N and C."""

    def __getitem__(self, rows: slice, /) -> Floats:
        """The samples of some rows."""


@dataclass(frozen=True)
class Windows:
    """How the samples of a recording become snippets.

    Snippet i owns the cell `[i, i + 1)` times the stride, sample j stands at j / `rate_hz`. The window of a snippet has
    round(`length_sec` * `rate_hz`) samples around the middle of its cell; before the first and after the last sample,
    these are repeated.

    Args:
        length_sec: seconds of a window.
        stride_sec: seconds from one snippet to the next.
        features: "raw", the samples, channel by channel; "statistics", see `statistics`; "log-mel", see `log_mel`.
        rate_hz: samples a second.
    """

    length_sec: float
    stride_sec: float
    features: Features
    rate_hz: float

    @property
    def length(self) -> int:
        """Samples of a window."""
        return max(1, round(self.length_sec * self.rate_hz))

    def count(self, samples: int) -> int:
        """The number of snippets: a last cell that is not full is left out."""
        return math.floor(samples / (self.stride_sec * self.rate_hz) + 1e-9)

    def first(self, snippets: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first sample of the windows of some snippets, which may lie before the recording."""
        stride = round(self.stride_sec * self.rate_hz, 9)  # 0.1 s at 50 Hz are 5 samples, not 5.000000000000001
        return np.round(snippets * stride + (stride - self.length) / 2).astype(np.int64)

    def width(self, channels: int) -> int:
        """Channels of a snippet."""
        each = {"raw": self.length, "statistics": 5 + len(octaves(self.length)), "log-mel": mel_bands(self.length)}
        return channels * each[self.features]

    def cut(self, samples: Samples, begin: int = 0, end: int | None = None) -> Iterator[Floats]:
        """Make the snippets `[T, F]`, block by block.

        Args:
            samples: `[N, C]`.
            begin: the first snippet to make.
            end: the one after the last; by default all are made.

        Yields:
            Blocks of consecutive snippets, `[n, F]`.
        """
        total, channels = samples.shape
        transform = self._transform(channels)
        sizes = (self.width(channels), channels * self.stride_sec * self.rate_hz, 4 * channels)
        rows = max(1, int(BYTES / 4 / max(sizes)))
        end = self.count(total) if end is None else end
        for number in range(begin, end, rows):
            first = self.first(np.arange(number, min(number + rows, end)))
            low, high = int(first[0]), int(first[-1]) + self.length
            inside = slice(min(max(low, 0), total - 1), max(min(high, total), 1))
            block = np.asarray(intact(samples[inside]), dtype=np.float32)
            if low < inside.start or high > inside.stop:
                block = np.pad(block, ((inside.start - low, high - inside.stop), (0, 0)), mode="edge")
            yield transform(np.ascontiguousarray(block.T), first - low)

    def load(self, samples: Samples, path: Path) -> Floats:
        """Make the snippets and memory-map them, so that neither samples nor snippets have to fit into memory.

        They lie in a temporary file, in the folder that the variable TMPDIR names, which is gone with the process.

        Args:
            samples: `[N, C]`.
            path: names the recording in errors.

        Returns:
            `[T, F]` of float32.

        Raises:
            InputError: the recording is shorter than a snippet, or there is no room for the temporary file.
        """
        total, channels = samples.shape
        if self.count(total) == 0:
            raise InputError(
                f"{path}: expected at least {self.stride_sec:g} s, which is one snippet, got {total} samples at "
                f"{self.rate_hz:g} Hz"
            )
        with (
            writing(Path(tempfile.gettempdir()), "room for the snippets of a recording"),
            tempfile.TemporaryFile() as file,
        ):
            for block in self.cut(samples):
                file.write(np.ascontiguousarray(block).data)
            file.flush()
            return np.memmap(file, np.float32, "r", shape=(self.count(total), self.width(channels)))

    def _transform(self, channels: int) -> Callable[[Floats, NDArray[np.int64]], Floats]:
        if self.features == "statistics":
            return lambda block, first: statistics(block, first, self.length, self.rate_hz)
        if self.features == "log-mel":
            filters = mel_filters(self.length, self.rate_hz)
            return lambda block, first: log_mel(block, first, self.length, filters)
        return lambda block, first: _windows(block, first, self.length).reshape(len(first), channels * self.length)


def _windows(block: Floats, first: NDArray[np.int64], length: int) -> Floats:
    """Windows `[n, C, length]` of samples `[C, N]`."""
    return sliding_window_view(block, length, axis=1)[:, first].transpose(1, 0, 2)


def octaves(length: int) -> list[int]:
    """The scales of the wavelet deviations of a window, in samples: 1, 2, 4 and so on while two of them fit."""
    return [1 << k for k in range(length.bit_length()) if 2 << k <= length]


def statistics(block: Floats, first: NDArray[np.int64], length: int, rate_hz: float) -> Floats:
    """What each channel does in each window, in its own unit.

    Mean, standard deviation, least and greatest value, slope of the least-squares line (a second), and for each scale m
    of 1, 2, 4, ... samples the Haar wavelet deviation, the root of the mean of ((a - b) / 2)^2 over all neighbouring
    means a, b of m samples within the window: how much goes on at frequencies around the rate over 3 m (Percival,
    Biometrika 1995; it is the Allan deviation over the root of two).

    Args:
        block: samples `[C, N]`.
        first: the first sample of each window, `[n]`.
        length: samples of a window.
        rate_hz: samples a second.

    Returns:
        `[n, C * (5 + scales)]`, channel by channel.
    """
    # All but the extremes are differences of running sums, whatever the overlap: in float64, around a middle value.
    centre = block.mean(axis=1, dtype=np.float64)[:, None]
    x = block - centre
    last = first + length
    sums = _running(x)
    mean = (sums[:, last] - sums[:, first]) / length
    squares = _running(x * x)
    power = (squares[:, last] - squares[:, first]) / length
    weighted = _running(x * np.arange(x.shape[1]))
    moment = (weighted[:, last] - weighted[:, first]) / length - (first + (length - 1) / 2) * mean
    spread = max((length * length - 1) / 12, 1.0)  # of 0, ..., length - 1; a single sample has no slope
    found = [mean + centre, np.sqrt(np.maximum(power - mean * mean, 0)), *_extremes(block, first, length)]
    found.append(moment / spread * rate_hz)
    for scale in octaves(length):
        middle = sums[:, scale:-scale]
        detail = (2 * middle - sums[:, : -2 * scale] - sums[:, 2 * scale :]) / (2 * scale)
        energy = _running(detail * detail)
        pairs = length - 2 * scale + 1
        found.append(np.sqrt((energy[:, first + pairs] - energy[:, first]) / pairs))
    return np.stack(found, axis=-1, dtype=np.float32, casting="same_kind").transpose(1, 0, 2).reshape(len(first), -1)


def _running(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of the first 0, 1, 2, ... values of each channel."""
    sums = np.zeros((len(values), values.shape[1] + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def _extremes(block: Floats, first: NDArray[np.int64], length: int) -> tuple[Floats, Floats]:
    """Least and greatest value in windows: of two pieces of a power of two, which doubling makes."""
    low = high = block
    size = 1
    while 2 * size <= length:
        low, high = np.minimum(low[:, :-size], low[:, size:]), np.maximum(high[:, :-size], high[:, size:])
        size *= 2
    other = first + length - size
    return np.minimum(low[:, first], low[:, other]), np.maximum(high[:, first], high[:, other])


def mel_bands(length: int) -> int:
    """The number of mel bands of a window: fewer where its spectrum has few values."""
    return min(MEL_BANDS, length // 2 + 1)


def mel_filters(length: int, rate_hz: float) -> NDArray[np.float64]:
    """Triangles at equal distances in mel, 2595 log10(1 + f / 700), up to half the rate: `[length // 2 + 1, bands]`.

    Each triangle is averaged over the width of a value of the spectrum, so that none falls between two of them.
    """
    bins, bands, fine = length // 2 + 1, mel_bands(length), 32
    edges = 700 * np.expm1(np.linspace(0, np.log1p(rate_hz / 2 / 700), bands + 2))
    at = (np.arange(bins * fine) + 0.5) / fine - 0.5  # in values of the spectrum
    hertz = np.clip(at, 0, bins - 1)[:, None] * rate_hz / length
    rising = (hertz - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - hertz) / np.diff(edges)[1:]
    triangles = np.maximum(np.minimum(rising, falling), 0)
    filters: NDArray[np.float64] = triangles.reshape(bins, fine, bands).mean(axis=1)
    return filters


def log_mel(block: Floats, first: NDArray[np.int64], length: int, filters: NDArray[np.float64]) -> Floats:
    """The logarithm of a sound's energy in mel bands: a spectrum of each window under a Hann window.

    Args:
        block: samples `[C, N]`.
        first: the first sample of each window, `[n]`.
        length: samples of a window.
        filters: see `mel_filters`.

    Returns:
        `[n, C * bands]`, channel by channel.
    """
    hann = np.hanning(length + 2)[1:-1].astype(np.float32)
    spectrum = np.fft.rfft(_windows(block, first, length) * (hann / hann.sum()), axis=-1)
    power = spectrum.real**2 + spectrum.imag**2
    return np.log(power @ filters + SILENCE).astype(np.float32).reshape(len(first), -1)
