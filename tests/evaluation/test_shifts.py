"""In which direction boundaries are off, and by how much."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from potloc_fast.evaluation import analyse
from potloc_fast.evaluation.shifts import BoundaryShift, Shift

ANNOTATIONS = [{"label": "a", "segment": [10 * i, 10 * i + 5]} for i in range(5)]
TRUTH = {
    "database": {
        "v": {"subset": "test", "annotations": [*ANNOTATIONS, {"label": "b[/]", "segment": [70, 80]}]},
    }
}


def found(*rows: tuple[str, float, float, float]) -> dict[str, object]:
    return {"results": {"v": [{"label": a, "segment": [b, c], "score": d} for a, b, c, d in rows]}}


def test_by_hand() -> None:
    starts = (0.5, 0.0, 1.0, 2.0)  # of the first four instances; all ends are half a second too early
    rows = [("a", 10 * i + late, 10 * i + 4.5, 0.5) for i, late in enumerate(starts)]
    # A better score counts, not a better overlap; what sees no instance, or one already seen, counts nowhere.
    rows += [("a", 0.0, 5.0, 0.4), ("a", 90.0, 95.0, 0.9)]
    shifts = analyse(found(*rows), TRUTH, tiou=0.95).boundaries
    assert shifts.per_class["a"].found == 4
    assert shifts.per_class["a"].start == Shift(median=0.75, low=0.375, high=1.25)
    assert shifts.per_class["a"].end == Shift(-0.5, -0.5, -0.5)
    assert shifts.per_class["b[/]"] == BoundaryShift(0, None, None)
    assert shifts.overall == shifts.per_class["a"]


def test_a_shift_is_found_again() -> None:
    rows = [("a", 10 * i - 0.25, 10 * i + 5.75, 1 - i / 10) for i in range(5)]
    shifts = analyse(found(*rows, ("b[/]", 71.0, 80.0, 0.1)), TRUTH).boundaries
    assert shifts.overall.found == 6
    for own, start, end in ((shifts.per_class["a"], -0.25, 0.75), (shifts.per_class["b[/]"], 1.0, 0.0)):
        assert own.start is not None
        assert own.end is not None
        assert (own.start.median, own.end.median) == pytest.approx((start, end))


def test_the_table_fits_into_a_terminal() -> None:
    rows = [("a", 10 * i - 0.25, 10 * i + 5.75, 0.5) for i in range(5)]
    console = Console(file=io.StringIO(), width=80)
    console.print(analyse(found(*rows), TRUTH).tables()[-1])
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    line = next(line for line in text.splitlines() if line.split()[:1] == ["a"])
    assert line.split() == ["a", "5", "-0.25", "-0.25", "to", "-0.25", "+0.75", "+0.75", "to", "+0.75"]
    assert "b[/]" in text
