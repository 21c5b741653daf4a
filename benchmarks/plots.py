"""Time and memory against size, a row of two panels for each scaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.harness import OURS, Scaling, provenance
from benchmarks.report import Result


def draw(series: Mapping[Scaling, Sequence[Result]], path: Path) -> None:
    """Draw measured scalings into a PNG."""
    figure = Figure(figsize=(10, 3.2 * len(series)), layout="constrained")
    origin = provenance(next(iter(series)).device)
    figure.suptitle(f"{origin['device']}, {origin['threads']} threads", fontsize=10)
    panels = figure.subplots(len(series), 2, squeeze=False)
    for (case, results), (time, memory) in zip(series.items(), panels, strict=True):
        names = {name: None for result in results for name in result.timings}  # in order of appearance
        for colour, name in enumerate(names):
            ran = [result for result in results if name in result.timings]
            style = {"marker": "o", "markersize": 3, "color": f"C{colour}", "linewidth": 2 if name == OURS else 1.2}
            time.plot([r.size for r in ran], [r.timings[name].median for r in ran], label=name, **style)
            peaks = [(r.size, peak / 2**20) for r in ran if (peak := r.timings[name].peak_bytes)]
            if peaks:
                memory.plot(*zip(*peaks, strict=True), label=name, **style)
        time.set_title(f"{case.what} ({case.dtype})", fontsize=9)
        time.set_ylabel("median time (s)")
        memory.set_title("peak memory of a call", fontsize=9)
        memory.set_ylabel("MiB")
        for panel in (time, memory):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xlabel(case.axis)
            panel.grid(alpha=0.3)
            low, high = panel.get_ylim()
            if high < 10 * low:  # what hardly changes should look so
                panel.set_ylim(low / 5, high * 5)
        time.legend(fontsize=8)
    with mpl.rc_context({"savefig.dpi": 130}):
        figure.savefig(path)
