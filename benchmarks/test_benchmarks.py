"""The cases under pytest-benchmark: `pytest benchmarks`, `pytest benchmarks -k nms`. Results are checked first."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.__main__ import discover
from benchmarks.harness import Case, Unavailable

CASES = {name: case for name, case in discover().items() if isinstance(case, Case) and not case.slow}


@pytest.mark.parametrize("name", CASES)
def test_benchmark(benchmark: Any, name: str) -> None:
    try:
        work = CASES[name].setup()
    except Unavailable as reason:
        pytest.skip(str(reason))
    ours = work.ours()
    for peer in work.peers.values():
        work.check(ours, peer())
    benchmark(work.ours)
