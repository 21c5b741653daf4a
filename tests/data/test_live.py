"""Samples that come piece by piece give the snippets of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potloc_fast.data.signals.live import Cutter
from potloc_fast.data.signals.timeline import at_rate
from potloc_fast.data.signals.windows import Features, Floats, Windows
from potloc_fast.errors import InputError


def walk(length: int, channels: int) -> Floats:
    steps = np.random.default_rng(length).normal(9.8, 2.0, (length, channels))
    return steps.cumsum(axis=0).astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_pieces_give_what_the_whole_gives(data: st.DataObject) -> None:
    features: Features = data.draw(st.sampled_from(["raw", "statistics", "log-mel"]))
    rate = data.draw(st.sampled_from([50.0, 33.3, 100.0]))
    come = rate * data.draw(st.sampled_from([1.0, 1.0, 0.5, 1.2, 1.9, 7.3]))
    length, stride = (data.draw(st.sampled_from(sizes)) for sizes in ((0.02, 0.1, 0.5, 1.0), (0.03, 0.1, 0.25, 0.5)))
    windows = Windows(length, stride, features, rate)
    samples = walk(data.draw(st.integers(1, 300)), data.draw(st.integers(1, 3)))
    steady = at_rate(samples, come, rate)
    wanted = np.concatenate([np.empty((0, windows.width(samples.shape[1]))), *windows.cut(steady)])
    cutter, found, most = Cutter(windows, samples.shape[1], come), [], data.draw(st.sampled_from([1, 9, 300]))
    came = made = 0
    while came < len(samples):
        piece = samples[came : came + data.draw(st.integers(1, most))]
        came += len(piece)
        found.append(cutter.push(piece, "v1"))
        made += len(found[-1])
        if len(piece) == 1 and made < windows.count(steady.shape[0]):  # the next snippet is not late
            assert came / come < (made + 1) * stride + cutter.lag_sec + 1 / come + 1e-9
    found.append(cutter.close("v1"))
    snippets = np.concatenate(found)
    assert snippets.shape == wanted.shape
    if features == "raw" and come == rate:
        np.testing.assert_array_equal(snippets, wanted)
    else:
        if features == "log-mel":  # a faint band beside loud ones rounds as they do
            snippets, wanted = np.exp(snippets), np.exp(wanted)
        np.testing.assert_allclose(snippets, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max(initial=1))


@pytest.mark.parametrize(("length_sec", "stride_sec"), [(1.0, 0.1), (0.1, 1.0)])
@pytest.mark.parametrize("come", [50.0, 180.0])
def test_samples_that_nothing_reads_are_forgotten(length_sec: float, stride_sec: float, come: float) -> None:
    cutter = Cutter(Windows(length_sec, stride_sec, "raw", 50.0), 2, come)
    for sample in walk(2000, 2):
        cutter.push(sample[None], "v1")
        assert sum(map(len, cutter._parts)) <= 1.2 * come + 10


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_samples_that_cannot_be_used_leave_all_as_it_was() -> None:
    windows, samples = Windows(0.2, 0.1, "statistics", 50.0), walk(60, 2)
    cutter = Cutter(windows, 2, 50.0)
    found = [cutter.push(samples[:33], "belt")]
    for bad, message in (
        (np.zeros((4, 3)), r"expected samples \[n, 2\], as many channels .*, got shape \[4, 3\]"),
        (np.zeros((1, 4, 2)), r"got shape \[1, 4, 2\]"),
        (np.array([[0, 1], [np.nan, 1]]), "expected finite samples, got nan at sample 1, channel 0: a stream can't"),
        (np.full((20, 2), 3e38) * (np.arange(20) % 2)[:, None], "finite statistics, got values up to 3e\\+38"),
    ):
        with pytest.raises(InputError, match=f"^belt: .*{message}"):
            cutter.push(bad.astype(np.float32), "belt")
    found += [cutter.push(samples[33:], "belt"), cutter.close("belt")]
    wanted = windows.load(samples, Path("belt"))
    np.testing.assert_allclose(np.concatenate(found), wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
