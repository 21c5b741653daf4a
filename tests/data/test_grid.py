from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potloc_fast.data.grid import Grid

I3D = Grid(fps=25, window=16, stride=16)
HAPT = Grid(fps=50, window=50, stride=25)
grids = st.builds(
    Grid,
    fps=st.sampled_from([15, 23.976043137696813, 25, 29.97002997002997, 50]),
    window=st.integers(1, 64),
    stride=st.integers(1, 64),
)


def test_i3d_boundaries_are_exact() -> None:
    index = np.arange(3000.0)
    assert (I3D.to_sec(index) == index * 16 / 25).all()
    assert (I3D.to_sec(index + 1) == (index + 1) * 16 / 25).all()
    assert I3D.snippet_sec == 0.64


def test_every_thumos14_point_falls_where_the_integer_formula_puts_it(shared_data) -> None:
    folder = shared_data / "thumos14"
    fps = json.loads((folder / "fps_dict.json").read_text())
    rows = list(csv.DictReader((folder / "point_labels.csv").read_text().splitlines()))
    assert len(rows) == 3003
    frames = np.array([int(row["point"]) for row in rows])
    rates = np.array([fps[row["video_id"]] for row in rows])
    expected = [int(frame * 25 / (rate * 16)) for frame, rate in zip(frames.tolist(), rates.tolist(), strict=True)]
    seconds = frames / rates
    assert I3D.snippet_of(seconds, 10**6).tolist() == expected
    # Plain truncation of the seconds misses some of them, so the rounding is needed.
    assert (seconds * 25 / 16).astype(int).tolist() != expected


def test_centre_of_a_cell_is_the_centre_of_its_window() -> None:
    # Snippet 3 of HAPT is made of samples 75 to 124, [1.5, 2.5) s.
    assert HAPT.to_sec(3.5) == 2.0
    assert HAPT.to_sec(0.0) == 0.25
    assert HAPT.to_grid(0.25) == 0.0


def test_snippets_are_clamped() -> None:
    assert I3D.snippet_of([-1.0, 0.0, 0.639, 0.64, 6.39, 6.4, 99.0], 10).tolist() == [0, 0, 0, 1, 9, 9, 9]
    assert HAPT.snippet_of(0.1, 10) == 0


@given(grids, st.integers(0, 100_000))
def test_boundaries_survive_the_round_trip(grid: Grid, index: int) -> None:
    sec = grid.to_sec(float(index))
    assert grid.to_grid(sec) == pytest.approx(index, abs=1e-6)
    assert grid.snippet_of(sec, 10**6) == index
    assert grid.snippet_of(sec + 0.999 * grid.snippet_sec, 10**6) == index


@pytest.mark.parametrize(
    "values",
    [(0, 16, 16), (25, 0, 16), (25, 16, 0), (float("nan"), 16, 16), (1e300, 1, 1), (1e-300, 1, 1), (25, 10**300, 1)],
)
def test_impossible_grids_are_refused(values: tuple[float, int, int]) -> None:
    with pytest.raises(ValueError, match=r"expected 1e-06 to 1e\+09 frames a second, and 1 to 1e\+09 frames"):
        Grid(*values)
