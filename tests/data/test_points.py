from __future__ import annotations

import numpy as np
import pytest

from potloc_fast.data.layouts.synthetic import load_synthetic
from potloc_fast.data.points import draw_points, sample_points, thin_points
from potloc_fast.data.recording import Instance

MANY = [Instance("a", 10.0, 18.0)] * 20_000


def times(distribution: str, instances=MANY, seed: int = 0, recording_id: str = "v") -> np.ndarray:
    points = sample_points(instances, distribution, seed=seed, recording_id=recording_id)
    assert [point.label for point in points] == [instance.label for instance in instances]
    return np.array([point.time_sec for point in points])


def test_gaussian_has_the_centre_as_mean_and_an_eighth_of_the_length_as_deviation() -> None:
    drawn = times("gaussian")
    assert drawn.mean() == pytest.approx(14.0, abs=0.03)
    assert drawn.std() == pytest.approx(1.0, abs=0.02)
    # A normal distribution, not just one with these moments.
    assert np.mean(np.abs(drawn - 14.0) < 1) == pytest.approx(0.6827, abs=0.015)


def test_uniform_takes_every_part_alike() -> None:
    counts = np.histogram(times("uniform"), bins=8, range=(10, 18))[0]
    assert counts.sum() == len(MANY)
    assert counts.min() > 2300
    assert counts.max() < 2700


def test_centre_start_and_end_are_these_moments() -> None:
    assert set(times("centre")) == {14.0}
    assert set(times("start")) == {10.0}
    assert set(times("end")) == {np.nextafter(18.0, 10.0)}


def test_a_human_clicks_late_and_all_over_the_instance() -> None:
    drawn = times("human")
    assert drawn.mean() == pytest.approx(10 + 0.45 * 8 + 0.3, abs=0.05)
    assert drawn.std() == pytest.approx(np.hypot(0.2 * 8, 0.2), abs=0.05)


def test_points_of_a_data_set_are_drawn_and_thinned() -> None:
    made = load_synthetic(recordings=4)
    drawn = draw_points(made, "uniform", seed=2)
    for recording in drawn.recordings:
        assert recording.points == sample_points(recording.instances, "uniform", seed=2, recording_id=recording.id)
    whole, half, few = (thin_points(drawn, share, seed=0) for share in (1.0, 0.5, 0.01))
    for one, two, three, four in zip(drawn.recordings, whole.recordings, half.recordings, few.recordings, strict=True):
        assert one.points == two.points
        assert len(three.points) == -(-len(one.points) // 2)
        assert len(four.points) == 1  # rounded up
        assert set(four.points) <= set(three.points) <= set(one.points)
        assert list(three.points) == sorted(three.points, key=one.points.index)
    assert any(
        a.points != b.points for a, b in zip(half.recordings, thin_points(drawn, 0.5, seed=1).recordings, strict=True)
    )


@pytest.mark.parametrize("distribution", ["gaussian", "uniform", "centre", "start", "end", "human"])
def test_points_lie_inside_their_instances(distribution: str) -> None:
    # About one draw in 16,000 of the normal distribution falls outside; 200,000 draws show the clipping.
    drawn = times(distribution, [Instance("a", 1.0, 1.5)] * 200_000)
    assert drawn.min() >= 1.0
    assert drawn.max() < 1.5


def test_the_draw_depends_on_seed_and_recording_alone() -> None:
    assert (times("gaussian") == times("gaussian")).all()
    assert (times("gaussian") != times("gaussian", seed=1)).any()
    assert (times("gaussian") != times("gaussian", recording_id="w")).any()
    # Known values: the same on every machine, in every process (Python's own hash() would not be).
    assert times("uniform", [Instance("a", 0.0, 1.0)], seed=3, recording_id="exp01_user01") == pytest.approx(
        0.3571715418
    )


def test_an_unknown_distribution_is_refused() -> None:
    with pytest.raises(
        ValueError, match="expected a distribution among gaussian, uniform, centre, start, end, human, got 'normal'"
    ):
        sample_points(MANY, "normal", seed=0, recording_id="v")  # type: ignore[arg-type]
