"""The model in a program: called from threads, pickled, fed piece by piece; and recordings longer than a pass."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potloc_fast import Detector
from potloc_fast.config import Config, load_config
from potloc_fast.config.schema import DetectConfig, FolderData, WindowsConfig
from potloc_fast.data import Grid
from potloc_fast.data.signals.windows import Windows
from potloc_fast.engine import sections
from potloc_fast.engine.predict import sources_in
from potloc_fast.engine.sections import Sections
from potloc_fast.errors import InputError
from potloc_fast.models import BaseModel, POTLoc, Pyramid

FEATURES, CLASSES = 48, ("sit", "stand", "walk")
GRID = Grid(fps=50, window=100, stride=25)
SMALL = {"width": 48, "heads": 2, "levels": 2, "window": 5, "stem": 1, "layer_scale": 0.5, "prior": 0.3}


def config(**detect: object) -> Config:
    base = load_config("own", ["data.root=x"])
    rules = DetectConfig.model_validate({**base.detect.model_dump(), **detect})
    return base.model_copy(update={"detect": rules})


def detector(section: int = sections.SECTION, **detect: object) -> Detector:
    torch.manual_seed(0)
    settings = config(**detect)
    model = POTLoc(FEATURES, len(CLASSES), **SMALL, boundary_head=settings.detect.proposals == "boundaries")  # type: ignore[arg-type]
    return Detector(settings, CLASSES, FEATURES, GRID, model, section)


def features(length: int, seed: int = 0) -> np.ndarray:
    """Random snippets that change slowly, so that there is something to detect."""
    steps = np.random.default_rng(seed).standard_normal((length, FEATURES)).astype(np.float32)
    return np.cumsum(steps, axis=0) / np.float32(4)


# How far a score sees


@pytest.mark.parametrize(("stem", "levels", "window"), [(0, 0, 1), (1, 0, 5), (2, 1, 3), (0, 3, 1), (1, 4, 13)])
def test_the_reach_is_exact(stem: int, levels: int, window: int) -> None:
    torch.manual_seed(0)
    model = POTLoc(3, 2, width=8, heads=2, levels=levels, window=window, stem=stem, layer_scale=1.0).double().eval()
    middle = 2**levels * 64
    x = torch.randn(1, 2 * middle + 1, 3, dtype=torch.float64)

    def changed(at: int) -> bool:
        """Whether another snippet changes a score that is `at` snippets away, at any level."""
        other = x.clone()
        other[0, middle + at] += 100
        pairs = zip(model(x).levels(), model(other).levels(), strict=True)
        return any(not torch.equal(a[0, middle >> n], b[0, middle >> n]) for n, ((a, _), (b, _)) in enumerate(pairs))

    with torch.no_grad():
        for side in (-1, 1):
            assert changed(side * model.reach)
            assert not any(changed(side * (model.reach + more)) for more in (1, 2, 3, 7))


class Steps:
    """Sizes at which long recordings are cut, small enough for a test."""

    def __init__(self, patch: pytest.MonkeyPatch, step: int, least: int) -> None:
        patch.setattr(sections, "PASS", step)
        patch.setattr(sections, "LEAST", least)


def test_passes_give_bit_for_bit_what_one_pass_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for trial in range(8):
        levels, window, stem = (int(rng.integers(*bounds)) for bounds in ((0, 5), (0, 10), (0, 3)))
        torch.manual_seed(trial)
        width, wide = int(rng.choice([64, 128])), int(rng.choice([50, 300]))
        model: POTLoc | BaseModel = POTLoc(
            wide, 12, width=width, levels=levels, window=2 * window + 1, stem=stem, layer_scale=0.5, boundary_head=True
        ).eval()
        if trial % 4 == 3:
            model = BaseModel(wide, 12, hidden=64).eval()
        length = int(rng.integers(1100, 2500))
        Steps(monkeypatch, step=int(rng.integers(60, 600)), least=512)
        x = rng.standard_normal((length, wide)).astype(np.float32)
        with torch.inference_mode():
            whole = model(torch.from_numpy(x)[None])
            cut = Sections(model, model.levels, model.reach, 2 * length)
            edges = np.sort(rng.integers(0, length, 5))
            assert not [section for part in np.split(x, edges) for section in cut.push(part)]
            [section] = cut.close()
        assert section.pyramid.level_lengths == whole.level_lengths
        assert torch.equal(section.pyramid.logits, whole.logits), (trial, length)
        assert torch.equal(section.pyramid.mask, whole.mask)
        if whole.distances is not None:
            assert section.pyramid.distances is not None
            assert torch.equal(section.pyramid.distances, whole.distances)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 90), st.integers(0, 3), st.integers(0, 40), st.data())
def test_sections_hold_every_snippet_once_however_it_comes(
    length: int, size: int, levels: int, reach: int, data: st.DataObject
) -> None:
    """With a model that repeats what it is given."""

    def score(x: torch.Tensor, mask: torch.Tensor) -> Pyramid:
        parts = [x[:, :: 2**level] for level in range(levels + 1)]
        masks = [mask[:, :: 2**level] for level in range(levels + 1)]
        return Pyramid(torch.cat(parts, 1), torch.cat(masks, 1), tuple(part.shape[1] for part in parts))

    x = np.arange(length, dtype=np.float32)[:, None]
    cuts = Sections(score, levels, reach, size)
    pushed, found, waited = 0, [], 0
    while pushed < length:
        more = data.draw(st.integers(1, length - pushed))
        before = len(found)
        found += cuts.push(x[pushed : pushed + more])
        pushed += more
        if more == 1 and len(found) > before:
            waited = max(waited, pushed - int(max(found[-1].start, 0)))
    assert waited <= cuts.latency
    found += cuts.close()
    bounds = [(section.start, section.end) for section in found]
    assert (bounds[0][0], bounds[-1][1]) == (-np.inf, np.inf)
    assert all(before[1] == after[0] for before, after in pairwise(bounds))
    for section in found:
        for level, (values, mask) in enumerate(section.pyramid.levels()):
            last = length if section.end == np.inf else int(section.end) + cuts.section // 2
            assert values.flatten().tolist() == list(range(section.first, last, 2**level))
            assert mask.all()


# Streams


def pieces(x: np.ndarray, size: int) -> Iterator[np.ndarray]:
    buffer = np.empty((size, x.shape[1]), np.float32)  # the same one for all, as drivers of sensors have it
    for first in range(0, len(x), size):
        part = buffer[: len(x) - first]
        part[:] = x[first : first + size]
        yield part


@pytest.mark.parametrize("proposals", ["thresholds", "boundaries"])
@pytest.mark.parametrize("section", [16, 64, sections.SECTION])
def test_a_stream_gives_what_the_whole_recording_gives(section: int, proposals: str) -> None:
    of = detector(section, proposals=proposals)
    x = features(400)
    expected = sorted(of(x, "stream"))
    assert len(expected) > 10
    for size in (1, 7, 400) if section == 64 else (3,):
        stream, found = detector(proposals=proposals).stream("stream", section), []
        for count, piece in enumerate(pieces(x, size), 1):
            now = stream.push(piece)
            ready = [d for d in now if GRID.to_grid((d.start_sec + d.end_sec) / 2) > count * size]
            assert not ready  # nothing is found before it came
            found += now
        early = len(found)
        found += stream.close()
        assert sorted(found) == expected
        assert (early > 0) == (section < 200)


def of_windows(windows: Windows, channels: int = 3, **rules: object) -> Detector:
    """A detector of a run on raw recordings."""
    torch.manual_seed(0)
    base = config(**rules)
    assert isinstance(base.data, FolderData)
    cut = WindowsConfig.model_validate(vars(windows))
    base = base.model_copy(update={"data": base.data.model_copy(update={"windows": cut})})
    boundaries = base.detect.proposals == "boundaries"
    width = windows.width(channels)
    model = POTLoc(width, len(CLASSES), **SMALL, boundary_head=boundaries)  # type: ignore[arg-type]
    return Detector(base, CLASSES, width, Grid(1 / windows.stride_sec, 1, 1), model)


@pytest.mark.parametrize(
    "windows",
    [
        Windows(0.1, 0.1, "raw", 50),
        Windows(0.5, 0.1, "raw", 50),
        Windows(0.06, 0.12, "statistics", 50),
        Windows(0.4, 0.1, "statistics", 50),
    ],
)
def test_a_stream_of_samples_gives_what_the_file_gives(windows: Windows, tmp_path: Path) -> None:
    of, rng = of_windows(windows), np.random.default_rng(0)
    samples = np.cumsum(rng.standard_normal((1700, 3)), axis=0, dtype=np.float32) / 4
    np.save(tmp_path / "belt.npy", samples)
    of.section = 64
    ((name, source),) = sources_in(of, [tmp_path / "belt.npy"])
    wanted = of(of.recording(name, source.load()))
    assert len(wanted) > 10
    for most in (1, 300):
        stream, found, first, early = of.stream("belt", rate_hz=50), [], 0, 0
        while first < len(samples):
            size = int(rng.integers(1, most + 1))
            found += stream.push(samples[first : first + size] if size > 1 else samples[first])
            first, early = first + size, len(found)
        found += stream.close()
        assert early > 0
        found, ours = (sorted(each, key=lambda d: (d.label, *np.round(d[2:4], 3))) for each in (found, wanted))
        if windows.features == "raw":
            assert found == ours
        assert [d[:2] for d in found] == [d[:2] for d in ours]
        np.testing.assert_allclose([d[2:] for d in found], [d[2:] for d in ours], rtol=1e-4, atol=1e-4)


def test_the_latency_of_samples_counts_what_a_window_reads_on() -> None:
    of = of_windows(Windows(1.0, 0.1, "raw", 50))
    samples = np.cumsum(np.random.default_rng(0).standard_normal((3000, 3)), axis=0, dtype=np.float32) / 4
    stream = of.stream(section=64, rate_hz=50)
    waited = 0.0
    for count, sample in enumerate(samples, 1):
        for found in stream.push(sample):
            waited = max(waited, count / 50 - (found.start_sec + found.end_sec) / 2)
    snippets = of.stream(section=64)
    assert stream.latency == snippets.latency + 5
    assert snippets.latency_sec - 6.4 < waited <= stream.latency_sec


def test_one_channel_comes_as_numbers() -> None:
    stream = of_windows(Windows(0.1, 0.1, "raw", 500), channels=1).stream(section=32, rate_hz=500)
    samples = np.cumsum(np.random.default_rng(0).standard_normal(9000), dtype=np.float32)
    found = stream.push(samples) + stream.close()
    assert found
    assert stream.push(samples[:, None]) + stream.close() == found


def test_samples_are_refused_where_there_are_no_windows() -> None:
    of = detector()
    with pytest.raises(InputError, match=r"^rate_hz: expected none, as detector was trained on snippets, .*, got 50$"):
        of.stream(rate_hz=50)
    of = of_windows(Windows(0.1, 0.1, "raw", 50))
    for bad in (0, -1, np.nan, np.inf):
        with pytest.raises(InputError, match=r"^rate_hz: expected samples a second, got "):
            of.stream(rate_hz=bad)
    of.snippet_sec = 1
    with pytest.raises(InputError, match=r"^snippet_sec: expected none, as the run makes snippets of 0.1 s itself"):
        of.stream(rate_hz=50)


def test_samples_that_cannot_be_used_are_refused_and_leave_the_stream_as_it_was() -> None:
    of = of_windows(Windows(0.1, 0.1, "raw", 50))
    samples = np.cumsum(np.random.default_rng(0).standard_normal((900, 3)), axis=0, dtype=np.float32) / 4
    stream = of.stream("belt", 32, rate_hz=50)
    found = stream.push(samples[:401])
    for bad in (np.zeros(5), np.zeros((2, 7)), np.full((1, 3), np.nan), np.zeros((1, 2, 3))):
        with pytest.raises(InputError, match=r"^belt from sample 401 on: expected"):
            stream.push(bad)
    found += stream.push(samples[401:]) + stream.close()
    again = of.stream("belt", 32, rate_hz=50)
    assert found == again.push(samples) + again.close()


def test_a_stream_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    Steps(monkeypatch, step=32, least=32)
    stream = detector(64).stream()
    held = []
    for seed in range(30):
        stream.push(features(64, seed))
        cuts = stream._sections
        scores = sum(tensor.numel() for own in cuts._scores for level in own for tensor in level)
        held.append(scores + sum(part.size for part in cuts._parts))
    assert max(held[10:]) <= max(held[:10])


def test_a_closed_stream_begins_anew() -> None:
    stream, x = detector(32).stream("again"), features(100)
    first = stream.push(x) + stream.close()
    assert {found.recording for found in first} == {"again"}
    assert stream.push(x) + stream.close() == first
    assert stream.close() == []


def test_snippets_that_cannot_be_used_are_refused_and_leave_the_stream_as_it_was() -> None:
    of, x = detector(32), features(100)
    stream = of.stream("belt")
    found = stream.push(x[:50])
    for bad in (np.zeros(5), np.zeros((2, 7)), np.full((1, FEATURES), np.nan), np.zeros((1, 2, FEATURES))):
        with pytest.raises(InputError, match=r"^belt from snippet 50 on: expected"):
            stream.push(bad)
    assert stream.push(np.zeros((0, FEATURES))) == []
    found += stream.push(torch.from_numpy(x[50:])) + stream.close()
    assert sorted(found) == sorted(of(x, "belt"))


def test_padded_recordings_are_padded_at_their_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the released code pads: a recording that is scored in passes is detected in as in one."""
    Steps(monkeypatch, step=64, least=600)
    of = detector(4096, pad={"shortest": 100, "multiple": 32})
    x = features(1500)
    expected = of(x)
    monkeypatch.setattr("potloc_fast.engine.detect.LONGEST_PASS", 700)
    assert of(x) == expected


# In a program


def test_the_calls_agree() -> None:
    of = detector()
    given = {"a": features(90, 1), "b": features(60, 2)}
    both = of.batch(given)
    for (name, x), found in zip(given.items(), both, strict=True):
        alone = of(x, name)
        assert [d[:2] for d in found] == [d[:2] for d in alone]
        np.testing.assert_allclose([d[2:] for d in found], [d[2:] for d in alone], atol=1e-4)
        scores = [d.score for d in found]
        assert scores == sorted(scores, reverse=True)
        assert {d.recording for d in found} == {name}
        assert {d.label for d in found} <= set(CLASSES)
    assert of.batch([]) == of.batch({}) == []
    assert of(torch.from_numpy(given["a"]), "a") == of(of.recording("a", given["a"])) == of(given["a"], "a")


def test_scores_of_long_recordings_are_those_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    of, x = detector(), features(2000)
    whole = of.scores(x)
    assert whole.shape == (2000, len(CLASSES))
    Steps(monkeypatch, step=128, least=600)
    monkeypatch.setattr("potloc_fast.detector.LONGEST_PASS", 100)
    monkeypatch.setattr("potloc_fast.detector.SECTION", 512)
    np.testing.assert_array_equal(of.scores(x), whole)


def test_threads_share_a_detector() -> None:
    of = detector()
    given = [features(40 + 7 * i, i) for i in range(12)]
    expected = [of(x) for x in given]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(of, given)) == expected


def test_a_detector_can_be_sent_elsewhere() -> None:
    of, x = detector(64), features(200)
    of.snippet_sec = 0.5
    there = pickle.loads(pickle.dumps(of))
    assert there(x) == of(x)
    assert (there.section, there.snippet_sec) == (64, 0.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((5, 4), np.float32), "recording: expected width 48, which the model was trained on, got 4"),
        (np.zeros(48), "recording: expected float32 features of shape"),
        (np.float32(1), "recording: expected width 48"),
        (np.zeros((0, 48)), "recording: expected at least one snippet, found an empty recording"),
        (np.full((2, 48), np.nan), "recording: expected finite features, got nan at snippet 0, channel 0"),
    ],
)
def test_features_that_cannot_be_used_are_refused(given: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        detector()(given)


def test_the_length_of_a_snippet_must_be_known() -> None:
    of = detector()
    unknown = Detector(of.config, CLASSES, FEATURES, None, of.model)
    for call in (lambda: unknown(features(9)), lambda: unknown.stream("recording")):
        with pytest.raises(InputError, match="recording: expected how long a snippet lasts"):
            call()
    assert unknown(of.recording("a", features(9))) == of(features(9), "a")
