"""A recording's files of samples as the features of its snippets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from potloc_fast.config.schema import SignalsConfig, WindowsConfig
from potloc_fast.data.signals.readers import FORMATS, read_signals
from potloc_fast.data.signals.signal import Signal
from potloc_fast.data.signals.timeline import align, gaps
from potloc_fast.data.signals.windows import Windows
from potloc_fast.errors import InputError
from potloc_fast.names import normalize

PARTED = "_.- "  # what may stand between the name of a recording and that of a sensor


@dataclass(frozen=True)
class SignalSource:
    """The features of a recording, made of its samples when they are loaded.

    Attributes:
        files: of its sensors.
        signals: how they are read.
        windows: how samples become snippets.
        rate_hz: samples a second, where the table of recordings says it.
        notes: what a user should know of the files once they are loaded: where samples are missing.
    """

    files: tuple[Path, ...]
    signals: SignalsConfig
    windows: WindowsConfig
    rate_hz: float | None = None
    notes: list[str] = field(default_factory=list, compare=False)

    @property
    def path(self) -> Path:
        """The first file."""
        return self.files[0]

    def load(self) -> NDArray[np.float32]:
        """Read the samples, and make and memory-map the snippets, see `Windows.load`."""
        windows, signals = windows_of(self.windows), self.read()
        self.notes[:] = [note for signal in signals for note in _gap_notes(signal)]
        return windows.load(align(signals, windows.rate_hz), self.path)

    def read(self) -> list[Signal]:
        """Open the files. What the table says of the rate goes before what they say."""
        found = [signal for file in self.files for signal in read_signals(file, self.signals)]
        return found if self.rate_hz is None else [replace(signal, rate_hz=self.rate_hz) for signal in found]


def _gap_notes(signal: Signal) -> list[str]:
    found = [] if signal.time_sec is None else gaps(signal.time_sec)
    if not found:
        return []
    begin, end = max(found, key=lambda gap: gap[1] - gap[0])
    lost = sum(end - begin for begin, end in found)
    many = f" in {len(found)} gaps, the longest" if len(found) > 1 else ","
    return [
        f"{signal.path}: no samples for {lost:.3g} s{many} from {begin:.2f} to {end:.2f} s: straight lines bridge what "
        "is missing"
    ]


def windows_of(config: WindowsConfig) -> Windows:
    """The transformation that a configuration with all keys set describes.

    Raises:
        InputError: one is not set.
    """
    if config.length_sec is None or config.stride_sec is None or config.features is None or config.rate_hz is None:
        missing = next(key for key, value in config.model_dump().items() if value is None)
        raise InputError(f"key data.windows.{missing}: expected a value to read signals with, got none")
    if config.length_sec * config.rate_hz < 1:
        raise InputError(
            f"key data.windows.length_sec: expected at least a sample at {config.rate_hz:g} Hz, got "
            f"{config.length_sec:g} s"
        )
    return Windows(config.length_sec, config.stride_sec, config.features, config.rate_hz)


def group_files(files: Iterable[Path], sensors: Sequence[str], where: str | Path) -> dict[str, tuple[Path, ...]]:
    """Files of samples by the recording that they are of.

    Args:
        files: files of samples; those of other kinds are left out.
        sensors: what the names of a recording's files end with; none where each has one file.
        where: names the place in errors.

    Returns:
        The files of each recording, in the order of the sensors.

    Raises:
        InputError: a file is of no sensor, or a recording has not one file for each.
    """
    found: dict[str, dict[str, Path]] = {}
    ending = re.compile(rf"(.+)[{re.escape(PARTED)}]({'|'.join(map(re.escape, sensors))})") if sensors else None
    for path in files:
        if path.suffix.lower() not in FORMATS:
            continue
        name, sensor = normalize(path.stem), ""
        if ending is not None:
            match = ending.fullmatch(name)
            if match is None:
                raise InputError(
                    f"{path}: expected a name that ends with a sensor ({', '.join(sensors)}), as data.signals.sensors "
                    "says, found another"
                )
            name, sensor = match[1], match[2]
        other = found.setdefault(name, {}).setdefault(sensor, path)
        if other != path:
            raise InputError(f"{where}: expected one file for {path.stem}, found {other.name} and {path.name}")
    for name, of_sensor in found.items():
        for sensor in sensors:
            if sensor not in of_sensor:
                raise InputError(f"{where}: expected a file of the sensor {sensor} for {name}, found none")
    return {name: tuple(of_sensor[sensor] for sensor in sensors or ("",)) for name, of_sensor in found.items()}
