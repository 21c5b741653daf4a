from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from potloc_fast.data.dataset import Batch, TrainingSet, batches
from potloc_fast.data.grid import Grid
from potloc_fast.data.recording import JoinedFeatures, Point, Recording
from potloc_fast.data.resident import ResidentSet, resident
from potloc_fast.errors import InputError

GRID = Grid(fps=25, window=16, stride=16)
CPU = torch.device("cpu")


def training_set(labels: bool = False, **options: Any) -> TrainingSet:
    """Recordings of 1 to 90 snippets, the second of them joined from two arrays and without points."""
    rng = np.random.default_rng(0)
    recordings = []
    for number, length in enumerate([40, 90, 1, 60, 61, 33, 7]):
        features = rng.standard_normal((length, 6)).astype(np.float32)
        places = rng.uniform(0, length, 0 if number == 1 else 5)
        recordings.append(
            Recording(
                str(number),
                JoinedFeatures(features[:, :2], features[:, 2:]) if number == 1 else features,
                GRID,
                "train",
                points=tuple(Point("ab"[i % 2], GRID.to_sec(x)) for i, x in enumerate(places)),
            )
        )
    segments = {"0": [("a", 5.0, 3.0, 9.0)], "3": [("b", 20.0, 18.0, 30.0), ("a", 1.0, 0.0, 2.0)]}
    return TrainingSet(recordings, "ab", labels=segments if labels else None, **options)


def assert_same(found: Batch, want: Batch) -> None:
    for name, tensor in vars(want).items():
        other = getattr(found, name)
        assert other.dtype == tensor.dtype, name
        assert torch.equal(other, tensor), name


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize(
    ("options", "padding"),
    [
        ({}, {}),
        ({}, {"length": 100, "slots": 24}),
        ({"length": 40}, {}),
        ({"length": 40}, {"length": 40, "slots": 16}),
        ({"length": 1}, {"drop_last": True}),
        ({"length": 37, "sampling": "linear"}, {"slots": 19}),
        ({"length": 200, "sampling": "linear"}, {"length": 200, "shuffle": False}),
        ({"length": 37, "sampling": "linear"}, {"multiple": 16}),
        ({"length": 40}, {"multiple": 16}),
        ({"length": 40}, {"share": 0, "shares": 2}),
        ({"length": 40}, {"share": 1, "shares": 2}),
        ({"length": 40, "sampling": "linear"}, {"share": 1, "shares": 2}),
    ],
)
def test_gathered_batches_are_the_collated_ones(
    options: Any, padding: Any, labels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potloc_fast.data.recording.BLOCK", 16)  # recordings reach the device in pieces
    data = training_set(labels, **options)
    source = ResidentSet(data, CPU)
    for epoch in range(3):
        gathered = list(source.batches(3, epoch, 7, **padding))
        collated = list(batches(data, 3, epoch, 7, **padding))
        assert len(gathered) == len(collated)
        for found, want in zip(gathered, collated, strict=True):
            assert_same(found, want)


def test_both_kinds_of_batches_are_asked_for_alike() -> None:
    gathered, collated = (inspect.signature(kind).parameters for kind in (ResidentSet.batches, batches))
    assert list(gathered.values())[1:] == list(collated.values())[1:]


def test_bfloat16_is_rounded_once() -> None:
    data = training_set(length=40)
    (found,) = ResidentSet(data, CPU, torch.bfloat16).batches(7, 0, 0)
    (want,) = batches(data, 7, 0, 0)
    assert torch.equal(found.features, want.features.bfloat16())
    data = training_set(length=40, sampling="linear")
    (found,) = ResidentSet(data, CPU, torch.bfloat16).batches(7, 0, 0)
    (want,) = batches(data, 7, 0, 0)
    assert found.features.dtype == torch.bfloat16
    torch.testing.assert_close(found.features.float(), want.features, atol=0.02, rtol=0.02)


def test_features_are_on_the_device_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    data = training_set()
    assert resident(data, "off", CPU, torch.float32) is None
    assert resident(data, "auto", CPU, torch.float32) is None
    kept = resident(data, "on", CPU, torch.bfloat16)
    assert kept is not None
    assert kept.features.dtype == torch.bfloat16
    # "auto" on a GPU: the 292 snippets of 6 numbers, 7008 bytes, must fit into half of what is free.
    monkeypatch.setattr("potloc_fast.data.resident.ResidentSet", lambda *arguments: arguments)
    gpu = torch.device("cuda")
    # What torch holds without using it is free as well.
    for free, unused, want in (
        (2 * 7008, 0, True),
        (2 * 7008 - 1, 0, False),
        (8, 2 * 7008 - 8, True),
        (8, 2 * 7008 - 9, False),
    ):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10**9))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _, unused=unused: 10**6 + unused)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 10**6)
        assert resident(data, "auto", gpu, torch.float32) == ((data, gpu, torch.float32) if want else None)


def test_too_large_a_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(
        InputError, match=r"^data.resident: expected features that fit into the memory of cpu, got 0.0 GiB"
    ):
        ResidentSet(training_set(), CPU)


@pytest.mark.parametrize("sampling", ["random", "linear"])
def test_a_gpu_gathers_what_the_cpu_does(sampling: Any, cuda: torch.device) -> None:
    data = training_set(length=40, sampling=sampling)
    source = ResidentSet(data, cuda)
    for found, want in zip(source.batches(3, 0, 0, slots=16), batches(data, 3, 0, 0, slots=16), strict=True):
        assert found.features.is_cuda
        assert_same(found.to("cpu"), want)
