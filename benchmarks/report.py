"""What was measured, as a table in the terminal, Markdown, CSV and JSON; and the comparison with an earlier CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.harness import OURS, Case, Scaling, Timing, provenance

COLUMNS = (
    *("id", "what", "on", "dtype", "provider", "runs", "p20_s", "median_s", "p80_s", "peak_bytes", "ratio", "goal"),
    *("device", "capability", "threads", "python", "torch", "cuda", "driver", "commit"),
)


@dataclass(frozen=True)
class Result:
    """The outcome of one case, or of one size of a scaling.

    Attributes:
        case: what was measured.
        size: the value of a scaling's axis.
        timings: by provider, ours first; empty where a peer's result differed from ours.
        parts: seconds of the parts of one run of ours.
        error: how a peer's result differed.
    """

    case: Case | Scaling
    size: int | None
    timings: Mapping[str, Timing]
    parts: Mapping[str, float]
    error: str | None = None

    @property
    def on(self) -> str:
        """The input's shape."""
        return self.case.on if isinstance(self.case, Case) else f"{self.case.axis} {self.size}"

    @property
    def goals(self) -> Mapping[str, float]:
        """The ratio aimed at, by peer."""
        return self.case.goals if isinstance(self.case, Case) else {}

    @property
    def limit_s(self) -> float | None:
        """The seconds aimed at, for ours."""
        return self.case.limit_s if isinstance(self.case, Case) else None

    def ratio(self, peer: str) -> float:
        """A peer's median over ours."""
        return self.timings[peer].median / self.timings[OURS].median

    def rows(self) -> list[dict[str, Any]]:
        """One row for each provider, with the columns of `COLUMNS`."""
        return [
            {
                "id": self.case.id,
                "what": self.case.what,
                "on": self.on,
                "dtype": self.case.dtype,
                "provider": name,
                "runs": len(timing.seconds),
                "p20_s": f"{timing.quantile(0.2):.3e}",
                "median_s": f"{timing.median:.3e}",
                "p80_s": f"{timing.quantile(0.8):.3e}",
                "peak_bytes": timing.peak_bytes,
                "ratio": "" if name == OURS else f"{self.ratio(name):.3g}",
                "goal": self.limit_s if name == OURS else self.goals.get(name),
                **provenance(self.case.device),
            }
            for name, timing in self.timings.items()
        ]


def to_json(case: Case | Scaling, results: Sequence[Result]) -> dict[str, Any]:
    """One case as a JSON value; of a scaling, the seconds are those of the largest size that a provider ran at."""
    value: dict[str, Any] = {"id": case.id, "what": case.what, "dtype": case.dtype, "equal": True}
    errors = [f"{result.on}: {result.error}" for result in results if result.error]
    if errors:
        return value | {"equal": False, "error": errors[0], "ours_s": None, "peers": {}, "ratio": {}}
    largest = {name: result for result in results for name in result.timings}
    value |= {
        "on": largest[OURS].on,
        "ours_s": largest[OURS].timings[OURS].median,
        "peers": {name: result.timings[name].median for name, result in largest.items() if name != OURS},
        "ratio": {name: result.ratio(name) for name, result in largest.items() if name != OURS},
        "goals": dict(largest[OURS].goals),
        "limit_s": largest[OURS].limit_s,
        "parts_s": dict(largest[OURS].parts),
        "peak_bytes": {name: result.timings[name].peak_bytes for name, result in largest.items()},
    }
    if isinstance(case, Scaling):
        value["sizes"] = [
            {
                "size": result.size,
                "seconds": {name: timing.median for name, timing in result.timings.items()},
                "peak_bytes": {name: timing.peak_bytes for name, timing in result.timings.items()},
            }
            for result in results
        ]
        value["spread"] = spread(case, results)
        value["spread_goal"] = case.spread
    return value | {"measured_on": provenance(case.device)}


def spread(case: Scaling, results: Sequence[Result]) -> float:
    """The share by which our time per item differs between sizes: largest over smallest, less one."""
    per_item = [
        result.timings[OURS].median / (result.size or 1) for result in results if (result.size or 0) >= case.steady
    ]
    return max(per_item) / min(per_item) - 1


def table(case: Case | Scaling, results: Sequence[Result]) -> Table:
    """One case for the terminal."""
    on = f", {case.on}" if isinstance(case, Case) else ""
    title = f"{case.id}: {case.what}{on}" + (f" ({case.dtype})" if case.dtype else "")
    grid = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    if isinstance(case, Scaling):
        grid.add_column(case.axis, justify="right")
    for name in ("", "median", "p20", "p80", "MiB", "ratio", "goal"):
        grid.add_column(name, justify="right" if name else "left", no_wrap=True)
    for result in results:
        size = [str(result.size)] if isinstance(case, Scaling) else []
        for cells in _cells(result):
            grid.add_row(*size, *cells)
            size = [""] * len(size)
    return grid


def markdown(results: Iterable[Result]) -> str:
    """All results, of one device, as a Markdown table under a line that says where they were measured."""
    results = list(results)
    origin = provenance(results[0].case.device)
    lines = [
        f"# Speed on {origin['device']}",
        "",
        f"{origin['device']}, {origin['threads']} threads, {origin['capability']}; torch {origin['torch']}, "
        f"Python {origin['python']}, commit {origin['commit']}. Ratio: a peer's median over that of {OURS}.",
        "",
        "| id | on | | median | p20 | p80 | MiB | ratio | goal |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        head = (f"`{result.case.id}`", f"{result.on}, {result.case.dtype}".rstrip(", "))
        for cells in _cells(result):
            lines.append("| " + " | ".join((*head, *cells)) + " |")
            head = ("", "")
    return "\n".join(lines) + "\n"


def _cells(result: Result) -> Iterable[tuple[str, ...]]:
    for name, timing in result.timings.items():
        goal = result.limit_s if name == OURS else result.goals.get(name)
        yield (
            name,
            duration(timing.median),
            duration(timing.quantile(0.2)),
            duration(timing.quantile(0.8)),
            "" if timing.peak_bytes is None else f"{timing.peak_bytes / 2**20:.1f}",
            "" if name == OURS else f"{result.ratio(name):.3g}x",
            "" if goal is None else f"<= {duration(goal)}" if name == OURS else f">= {goal:g}x",
        )


def missed(result: Result) -> Iterable[str]:
    """A sentence for each goal that was not reached."""
    if result.timings and result.limit_s is not None and result.timings[OURS].median > result.limit_s:
        yield f"{result.case.id}: {duration(result.timings[OURS].median)}, aimed at {duration(result.limit_s)}"
    for peer, goal in result.goals.items():
        if peer in result.timings and result.ratio(peer) < goal:
            yield f"{result.case.id}: {result.ratio(peer):.3g}x of {peer}, aimed at {goal:g}x"


def duration(seconds: float) -> str:
    """A time with three digits and its unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1 or unit == "us":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError


def to_csv(results: Iterable[Result]) -> str:
    """All results as CSV, a row for each provider."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for result in results for row in result.rows())
    return text.getvalue()


def read_ratios(path: Path) -> tuple[dict[tuple[str, str, str], float], int]:
    """The ratios of an earlier CSV, by id, input and peer.

    Returns:
        Those measured on the processor, with the instruction set and the number of threads in use here, for ratios
        from others say nothing about this machine; and how many were left out.
    """
    here = provenance()
    ratios, left_out = {}, 0
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if not row["ratio"]:
                continue
            if all(row[key] == here[key] for key in ("device", "capability", "threads")):
                ratios[row["id"], row["on"], row["provider"]] = float(row["ratio"])
            else:
                left_out += 1
    return ratios, left_out


def regressions(
    results: Iterable[Result], earlier: Mapping[tuple[str, str, str], float], max_regression: float
) -> dict[tuple[str, str, str], str]:
    """A sentence for each ratio that fell by more than a share of what it was."""
    return {
        key: f"{result.case.id}, {result.on}: {result.ratio(peer):.3g}x of {peer}, was {earlier[key]:.3g}x"
        for result in results
        for peer in result.timings
        if (key := (result.case.id, result.on, peer)) in earlier
        and result.ratio(peer) < earlier[key] * (1 - max_regression)
    }
