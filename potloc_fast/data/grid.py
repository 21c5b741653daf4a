"""The mapping between seconds, frames and snippets. Nothing else in the package knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

FPS_RANGE = 1e-6, 1e9  # frames a second, from the least to the most
MOST_FRAMES = 10**9  # in a window or stride, at most

Times = TypeVar("Times", float, NDArray[np.float64])


@dataclass(frozen=True)
class Grid:
    """Snippets cut at a constant rate: snippet i is made of frames [i * stride, i * stride + window).

    On the grid it owns the cell [i, i + 1), whose centre in time is the centre of those frames. So cells tile the time
    axis also where windows overlap. With I3D features (25 fps, 16 frames, no overlap) boundary x lies at x * 16 / 25 s.

    Args:
        fps: frames (or samples) a second of what the snippets were cut from.
        window: frames in a snippet.
        stride: frames from one snippet to the next.

    >>> Grid(fps=25, window=16, stride=16).to_sec(50.0)
    32.0
    >>> Grid(fps=50, window=50, stride=25).to_sec(0.0)
    0.25
    """

    fps: float
    window: int
    stride: int

    def __post_init__(self) -> None:
        least, most = FPS_RANGE
        if not (least <= self.fps <= most and all(1 <= frames <= MOST_FRAMES for frames in (self.window, self.stride))):
            raise ValueError(
                f"expected {least:g} to {most:g} frames a second, and 1 to {MOST_FRAMES:g} frames a window and stride, "
                f"got {self.fps:g}, {self.window:g} and {self.stride:g}"
            )

    @property
    def snippet_sec(self) -> float:
        """Duration of a cell in seconds."""
        return self.stride / self.fps

    def to_sec(self, boundary: Times) -> Times:
        """Seconds of a position on the grid, a float or an array."""
        return (boundary * self.stride + (self.window - self.stride) / 2) / self.fps

    def to_grid(self, sec: Times) -> Times:
        """Position on the grid of a time in seconds, a float or an array: the inverse of `to_sec`."""
        return (sec * self.fps - (self.window - self.stride) / 2) / self.stride

    def snippet_of(self, sec: ArrayLike, length: int) -> NDArray[np.int64]:
        """Index of the snippet whose cell holds each time.

        With I3D features this is int(frame * 25 / (native_fps * 16)) for sec = frame / native_fps.

        Args:
            sec: times in seconds.
            length: number of snippets; times before the first or after the last are given to that one.

        Returns:
            int64 of the shape of `sec`.
        """
        position = self.to_grid(np.asarray(sec, dtype=np.float64))
        # Rounding first: 3.2 s * 25 / 16 must be in snippet 5 even where floating point ends just below.
        return np.clip(np.floor(np.round(position, 6)), 0, length - 1).astype(np.int64)
