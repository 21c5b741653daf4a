"""Samples that come piece by piece, cut into the snippets that they would give as a file."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from potloc_fast.data.signals.timeline import at_rate, same_rate
from potloc_fast.data.signals.windows import Floats, Samples, Windows
from potloc_fast.errors import InputError

READ_ON = 3  # given samples that are read before and after the time that one at another rate stands for, at most


@dataclass(frozen=True, eq=False)
class _Arrived:
    """The samples of a recording that have come, without the first ones, which nothing reads any more."""

    kept: Floats
    first: int  # where they begin

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.first + len(self.kept), self.kept.shape[1])

    def __getitem__(self, rows: slice) -> Floats:
        begin, end, _ = rows.indices(self.shape[0])
        return self.kept[begin - self.first : end - self.first]


class Cutter:
    """Cuts a recording that comes piece by piece into snippets.

    However it is cut into pieces, they are those of `Windows.load`: bit for bit where they are raw samples at the rate
    of the windows; else up to rounding, as sums begin elsewhere. Only what the next snippet reads is kept.

    Args:
        windows: how samples become snippets.
        channels: of the samples.
        rate_hz: samples that come in a second; they are brought to the rate of the windows.
    """

    def __init__(self, windows: Windows, channels: int, rate_hz: float) -> None:
        self._windows, self._rate_hz = windows, rate_hz
        self._resamples = not same_rate(rate_hz, windows.rate_hz)
        self._parts = [np.empty((0, channels), np.float32)]  # the last samples, those that snippets may still read
        self._known = 0  # samples that have come
        self._made = 0  # snippets that were made

    @property
    def channels(self) -> int:
        """Channels of the samples."""
        return self._parts[0].shape[1]

    @property
    def lag_sec(self) -> float:
        """From the end of a snippet's cell until all that it is made of has come, at most."""
        windows = self._windows
        beyond = (windows.length + 1) / windows.rate_hz - windows.stride_sec  # a window begins at the nearest sample
        return max(0.0, beyond / 2) + (READ_ON / self._rate_hz + 0.5 / windows.rate_hz if self._resamples else 0.0)

    def push(self, samples: Floats, place: str) -> Floats:
        """Take the next samples.

        Args:
            samples: `[n, C]`.
            place: names them in errors.

        Returns:
            The snippets `[m, F]` that are complete with them.

        Raises:
            InputError: samples can't be used; all is as it was before.
        """
        if samples.ndim != 2 or samples.shape[1] != self.channels:
            raise InputError(
                f"{place}: expected samples [n, {self.channels}], as many channels as the model was trained on, got "
                f"shape {list(samples.shape)}"
            )
        if not np.isfinite(samples).all():
            sample, channel = np.argwhere(~np.isfinite(samples))[0].tolist()
            raise InputError(
                f"{place}: expected finite samples, got {samples[sample, channel]} at sample {sample}, channel "
                f"{channel}: a stream can't bridge what is missing, as it doesn't know what comes after it"
            )
        self._parts.append(samples)
        self._known += len(samples)
        try:
            return self._cut(self._complete(), place)
        except InputError:
            self._known -= len(self._parts.pop())
            raise

    def close(self, place: str) -> Floats:
        """The snippets `[m, F]` that are left: no samples come any more."""
        return self._cut(self._windows.count(self._length), place)

    def _complete(self) -> int:
        """The first snippet that is not complete yet."""
        windows, known = self._windows, self._length
        if self._resamples:  # what is to come changes the last ones
            settled = (self._known - READ_ON + 1) / self._rate_hz * windows.rate_hz - 0.5
            known = min(known, max(0, math.ceil(settled)))
        wanted = np.arange(self._made, windows.count(known))
        return self._made + int(np.searchsorted(windows.first(wanted), known - windows.length, "right"))

    @property
    def _length(self) -> int:
        """Samples at the rate of the windows, if no more come."""
        return self._at_rate(self._parts[0][:0]).shape[0]

    def _at_rate(self, kept: Floats) -> Samples:
        """The samples at the rate of the windows, of which those before `kept` can't be read."""
        return at_rate(_Arrived(kept, self._known - len(kept)), self._rate_hz, self._windows.rate_hz)

    def _cut(self, end: int, place: str) -> Floats:
        """Make the snippets up to `end`, and forget the samples that nothing after them reads."""
        windows = self._windows
        if end <= self._made:
            return np.empty((0, windows.width(self.channels)), np.float32)
        kept = np.concatenate(self._parts)
        samples = self._at_rate(kept)
        made = np.concatenate(list(windows.cut(samples, self._made, end)))
        if not np.isfinite(made).all():
            raise InputError(
                f"{place}: expected samples with finite {windows.features}, got values up to {np.abs(kept).max():g}"
            )
        # The next window begins here, but at the end the last sample is repeated.
        first = min(int(windows.first(np.array([end]))[0]), self._length - 1)
        if self._resamples:
            first = int((first - 0.5) / windows.rate_hz * self._rate_hz) - READ_ON
        self._made, self._parts = end, [kept[max(0, first - self._known + len(kept)) :].copy()]
        return made
