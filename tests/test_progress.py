"""How far work is, in a log file."""

from __future__ import annotations

import pytest

from potloc_fast.engine import progress
from potloc_fast.engine.progress import Progress, tracked


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def run(clock: list[float], total: int, seconds: float, first: int = 0, shown: bool = True) -> None:
    with Progress("potloc", total, first, shown) as own:
        for step in range(first, total):
            clock[0] += seconds
            own.update(step + 1, f"loss {step}")


def test_a_line_a_twentieth(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 100, 1.0)
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert printed.err == ""
    assert lines[0] == "potloc: 5 of 100 (5%), loss 4, about 1 min 35 s left"
    assert lines[-1] == "potloc: 100 of 100 (100%), loss 99, took 1 min 40 s"
    assert len(lines) == 20


def test_a_line_a_minute_where_a_twentieth_takes_longer(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 1000, 30.0)
    assert capsys.readouterr().out.count("\n") == 500


def test_short_work_has_one_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 100, 0.04)
    assert capsys.readouterr().out == "potloc: 100 of 100 (100%), loss 99, took 4 s\n"


def test_what_is_left_follows_from_this_session_alone(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 100, 10.0, first=90)
    assert "95 of 100 (95%), loss 94, about 50 s left" in capsys.readouterr().out


def test_other_processes_say_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 100, 10.0, shown=False)
    assert capsys.readouterr().out == ""


def test_counting(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked("align", "abc")) == ["a", "b", "c"]
    assert "align: 3 of 3 (100%), took 0 s" in capsys.readouterr().out
