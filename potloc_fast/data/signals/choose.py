"""Which windows: length, stride and features from the rate, the points and the signal itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from potloc_fast.config.schema import FolderData, WindowsConfig
from potloc_fast.data.listing import Entry, Listing
from potloc_fast.data.signals.source import SignalSource
from potloc_fast.data.signals.timeline import align, usual_rate
from potloc_fast.errors import InputError

LOOKED_AT = 8  # recordings whose samples are looked at
SAMPLES = 1 << 16  # of each
SHORTEST = 0.05  # the share of the distances between points that may be shorter than the one that counts as shortest
STRIDES = (10, 20)  # snippets from point to point where points are near, at least and at most
RAW = 1024  # values in a snippet of raw samples, at most
SOUND = (".wav", ".flac")
SOUND_SEC = 0.025  # least window of a sound


def choose_windows(data: FolderData, listing: Listing) -> tuple[FolderData, list[str]]:
    """Set the keys of `data.windows` that are not set, where the recordings of a data set are signals.

    Args:
        data: section `data` of a configuration.
        listing: the data set, as it is listed with that.

    Returns:
        The section with all keys of the windows set, and for each key that was not a line that says what was chosen and
        why. The same section and no line where there are no signals.

    Raises:
        InputError: samples can't be read, or it is nowhere said how many there are in a second.
    """
    entries = [entry for entry in listing.entries if any(isinstance(s, SignalSource) for s in entry.sources)]
    if not entries or data.windows.resolved:
        return data, []
    trained = [entry for entry in entries if entry.subset == "train"] or entries
    seen = [trained[i] for i in np.unique(np.linspace(0, len(trained) - 1, LOOKED_AT).astype(int))]
    sources = [source for entry in seen for source in entry.sources if isinstance(source, SignalSource)]
    given, reasons = data.windows, []
    values = given.model_dump()

    def put(key: str, value: float | str, reason: str) -> None:
        if values[key] is None:
            values[key] = value
            reasons.append(f"data.windows.{key}={value}: {reason}")

    if given.rate_hz is None:
        put("rate_hz", *_rate(sources))
    rate = float(values["rate_hz"])
    sound = all(source.path.suffix.lower() in SOUND for source in sources)
    near, usual = _distances(trained)
    blocks = [_some(source, rate) for source in sources]
    scale = max(float(np.median([own_time(block, rate) for block in blocks])), 1 / rate)
    distances = f"points are {near:.3g} s apart where they are near, usually {usual:.3g} s"
    if sound:
        put("stride_sec", max(_round(near / STRIDES[0]), SOUND_SEC / 2), f"{distances}: 10 snippets between them")
        put("length_sec", max(2 * values["stride_sec"], SOUND_SEC), "two strides of a sound")
        put("features", "log-mel", "a sound")
    else:
        wanted = min(max(scale, near / STRIDES[1]), near / STRIDES[0])
        put(
            "stride_sec",
            max(_round(wanted), 1 / rate),
            f"{distances}: {near / wanted:.0f} snippets between them, as the signal goes on alike for {scale:.2g} s",
        )
        put(
            "length_sec",
            values["stride_sec"],
            "a stride, so that each sample is in one snippet: windows that overlap smear boundaries",
        )
        count = blocks[0].shape[1] * max(1, round(values["length_sec"] * rate))
        if count <= RAW:
            put("features", "raw", f"{count} samples of {blocks[0].shape[1]} channels in a window")
        else:
            put("features", "statistics", f"{count} samples of {blocks[0].shape[1]} channels are many for a snippet")
    return data.model_copy(update={"windows": WindowsConfig.model_validate(values)}), reasons


def _rate(sources: Sequence[SignalSource]) -> tuple[float, str]:
    """The usual rate of recordings: as their files or table say, or as their time stamps do, rounded to two digits."""
    said, stamped = [], []
    for source in sources:
        for signal in source.read():
            if signal.time_sec is not None:
                stamped.append(usual_rate(signal.time_sec))
            elif signal.rate_hz is not None:
                said.append(signal.rate_hz)
    if said:
        rate = float(max(said))
        return rate, "the rate of the recordings" if min(said) == rate else "the highest rate of the recordings"
    rate = float(np.median(stamped)) if stamped else 0.0
    if rate <= 0:
        raise InputError(
            f"{sources[0].path}: expected samples a second in the file, as rate_hz in recordings.csv or as "
            "data.windows.rate_hz, found none"
        )
    return float(f"{rate:.2g}"), f"time stamps come at {rate:.4g} Hz"


def _distances(entries: Sequence[Entry]) -> tuple[float, float]:
    """Seconds between neighbouring points of a recording (or middles of instances): nearly the shortest, and usual."""
    gaps = []
    for entry in entries:
        times = [point.time_sec for point in entry.points]
        gaps += np.diff(np.sort(times or [(i.start_sec + i.end_sec) / 2 for i in entry.instances])).tolist()
    gaps = [gap for gap in gaps if 0 < gap < math.inf]
    if not gaps:
        raise InputError(
            f"{entries[0].id}: expected recordings with several points to choose windows by, found none: set "
            "data.windows.length_sec and data.windows.stride_sec"
        )
    return float(np.quantile(gaps, SHORTEST)), float(np.median(gaps))


def _some(source: SignalSource, rate_hz: float) -> NDArray[np.float64]:
    """Samples from the middle of a recording."""
    samples = align(source.read(), rate_hz)
    begin = max(0, (samples.shape[0] - SAMPLES) // 2)
    return np.asarray(samples[begin : begin + SAMPLES], dtype=np.float64)


def own_time(samples: NDArray[np.float64], rate_hz: float) -> float:
    """For how long a signal goes on alike: seconds until its autocorrelation, the mean of all channels, falls to half.

    Args:
        samples: `[N, C]`.
        rate_hz: samples a second.
    """
    x = samples - samples.mean(axis=0)
    spread = x.std(axis=0)
    moving = spread > 1e-6 * np.abs(samples).max(initial=1e-30)
    if not moving.any():
        return len(x) / rate_hz
    x = x[:, moving] / spread[moving]
    spectrum = np.abs(np.fft.rfft(x, 2 * len(x), axis=0)) ** 2
    correlation = np.fft.irfft(spectrum.mean(axis=1))[: len(x)] / np.arange(len(x), 0, -1)
    below = np.flatnonzero(correlation < 0.5 * correlation[0])
    return float(below[0] if len(below) else len(x)) / rate_hz


def _round(value: float) -> float:
    """The nearest of 1, 2 and 5 times a power of ten.

    >>> _round(0.096), _round(0.41), _round(1.03)
    (0.1, 0.5, 1.0)
    """
    power = math.floor(math.log10(value))
    choices = [float(f"{digit}e{power}") for digit in (1, 2, 5, 10)]
    return min(choices, key=lambda choice: abs(math.log(choice / value)))
