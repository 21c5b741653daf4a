"""Measure cases and say what came out: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import pkgutil
import re
import sys
import traceback
from pathlib import Path

import torch
from rich.console import Console

import benchmarks
from benchmarks import plots, report
from benchmarks.harness import Case, Scaling, Unavailable, log, measure, provenance
from benchmarks.report import Result

# Seconds for each provider of a case.
FULL_BUDGET_S, QUICK_BUDGET_S = 2.0, 0.25


def discover() -> dict[str, Case | Scaling]:
    """All cases of the `bench_*` files, by id."""
    names = [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name.startswith("bench_")]
    found = [case for name in names for case in importlib.import_module(f"benchmarks.{name}").CASES]
    cases = {case.id: case for case in found}
    assert len(cases) == len(found), "two cases share an id"
    return cases


def run(case: Case | Scaling, budget_s: float) -> list[Result]:
    """Measure one case: a result, or one for each size of a scaling.

    Raises:
        Unavailable: its data or hardware is not there.
    """
    results: list[Result] = []
    for size in case.sizes if isinstance(case, Scaling) else (None,):
        log(case.id if size is None else f"{case.id}, size {size}")
        work = case.setup() if isinstance(case, Case) else case.setup(size or 0)
        try:
            timings = measure(work, budget_s, case.device)
        except AssertionError as error:
            first_line = str(error).strip().partition("\n")[0]
            return [*results, Result(case, size, {}, {}, first_line or "a peer's result differs from ours")]
        try:
            parts = work.parts() if work.parts else {}
        except Exception as error:  # what was timed is worth more than how it is made up
            log(f"{case.id}: its parts can't be told: {error}")
            parts = {}
        results.append(Result(case, size, timings, parts))
    return results


def main() -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the operators and the steps around them beside their peers. Exit status 1: a "
        "result differs from a peer's, a case breaks, a ratio regressed (--compare), or what --id names can't be "
        "measured here.",
    )
    parser.add_argument(
        "--id", action="append", nargs="+", metavar="ID", help="what to measure, also nms-*; all without"
    )
    parser.add_argument("--list", action="store_true", help="print the ids and what they measure, and stop")
    parser.add_argument("--quick", action="store_true", help="about three minutes: shorter, and without the slow cases")
    parser.add_argument("--json", metavar="FILE", help="write JSON: an object for one id, else a list; - prints it")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="write a CSV, a Markdown table and a plot there")
    parser.add_argument("--compare", metavar="CSV", type=Path, help="compare the ratios with those of an earlier CSV")
    parser.add_argument(
        "--max-regression", metavar="SHARE", type=_share, default=0.1, help="how far a ratio may fall (default: 10%%)"
    )
    options = parser.parse_args()

    cases = discover()
    if options.list:
        for case in cases.values():
            print(f"{case.id:20} {case.what}{' (slow)' if case.slow else ''}")
        return 0
    wanted = [name for group in options.id or () for name in group]
    for name in wanted:
        if not fnmatch.filter(cases, name):
            parser.error(f"--id: expected one of {', '.join(cases)}, got {name}")
    if options.compare and not options.compare.is_file():
        parser.error(f"--compare: expected a CSV that an earlier run wrote, found no file {options.compare}")
    if wanted:
        chosen = [cases[name] for pattern in wanted for name in fnmatch.filter(cases, pattern)]
    else:
        chosen = [case for case in cases.values() if not (options.quick and case.slow)]
    budget_s = QUICK_BUDGET_S if options.quick else FULL_BUDGET_S
    torch.manual_seed(0)

    console = Console(stderr=options.json == "-")
    measured: dict[Case | Scaling, list[Result]] = {}
    values, failures, missed = [], [], []
    for case in chosen:
        try:
            results = measured[case] = run(case, budget_s)
        except Unavailable as reason:
            log(f"{case.id}: not measured: {reason}")
            values.append({"id": case.id, "unavailable": str(reason)})
            failures += [f"{case.id}: not measured"] if wanted else []
            continue
        except Exception as error:  # whatever breaks one case, the others are measured
            traceback.print_exc()
            first_line = str(error).strip().partition("\n")[0]
            values.append({"id": case.id, "error": f"{type(error).__name__}: {first_line}"})
            failures.append(f"{case.id}: {type(error).__name__}: {first_line}")
            continue
        console.print(report.table(case, results))
        value = report.to_json(case, results)
        values.append(value)
        failures += [f"{case.id}, {result.on}: {result.error}" for result in results if result.error]
        missed += [sentence for result in results for sentence in report.missed(result)]
        if value.get("parts_s"):
            shares = (f"{name} {report.duration(seconds)}" for name, seconds in value["parts_s"].items())
            console.print(f"  parts: {', '.join(shares)}\n")
        if isinstance(case, Scaling) and "spread" in value:
            aim = "" if case.spread is None else f", aimed at {case.spread:.0%}"
            console.print(f"  time per item differs by {value['spread']:.0%} from {case.axis} {case.steady}{aim}\n")
        if options.out:  # after each case: what was measured is kept, whatever ends the process
            _write(measured, options.out)
    if options.compare:
        failures += _compare(measured, options.compare, options.max_regression)
    if options.json:
        text = json.dumps(values[0] if wanted == [chosen[0].id] else values, indent=1) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            Path(options.json).write_text(text)
    if missed:
        console.print("Aims that were missed:", *missed, sep="\n  ")
    for failure in failures:
        log(failure)
    return 1 if failures else 0


def _write(measured: dict[Case | Scaling, list[Result]], folder: Path) -> None:
    """Write a CSV, a Markdown table and a plot for each device."""
    folder.mkdir(parents=True, exist_ok=True)
    for device in sorted({case.device for case in measured}):
        here = {case: results for case, results in measured.items() if case.device == device}
        everything = [result for results in here.values() for result in results]
        stem = folder / re.sub(r"[^a-z0-9]+", "-", provenance(device)["device"].lower()).strip("-")
        stem.with_suffix(".csv").write_text(report.to_csv(everything))
        stem.with_suffix(".md").write_text(report.markdown(everything))
        series = {case: results for case, results in here.items() if isinstance(case, Scaling)}
        if series:
            plots.draw(series, stem.with_suffix(".png"))


def _compare(measured: dict[Case | Scaling, list[Result]], path: Path, max_regression: float) -> list[str]:
    """What regressed against an earlier CSV; a suspect is measured twice more, and its best ratio counts."""
    earlier, left_out = report.read_ratios(path)
    count = sum(
        (r.case.id, r.on, peer) in earlier for results in measured.values() for r in results for peer in r.timings
    )
    log(f"{path}: comparing {count} ratios; {left_out} are of another processor, instruction set or number of threads")
    failures: list[str] = []
    for case, results in measured.items():
        suspects = report.regressions(results, earlier, max_regression)
        for _ in range(2):
            if suspects:
                log(f"{case.id}: slower than before, measuring again")
                again = report.regressions(run(case, FULL_BUDGET_S), earlier, max_regression)
                suspects = {key: sentence for key, sentence in again.items() if key in suspects}
        failures += suspects.values()
    return failures


def _share(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a share such as 10% or 0.1, got {text}")
    return float(match[1]) / (100 if match[2] else 1)


if __name__ == "__main__":
    sys.exit(main())
