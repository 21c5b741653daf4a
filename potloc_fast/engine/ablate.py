"""The paper's ablations, and more of them, as studies that run many times over and go on where they stopped."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import multiprocessing
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from potloc_fast.config import Config, dump_config, parse_config
from potloc_fast.config.load import merge, nested
from potloc_fast.config.schema import FolderData, NmsConfig
from potloc_fast.errors import InputError
from potloc_fast.files import read_json, write_bytes, write_text

if TYPE_CHECKING:
    from rich.table import Table

    from potloc_fast.engine.train import Step

Settings = Mapping[str, str]
SHOWN_TIOU = 4  # thresholds in the terminal


@dataclass(frozen=True)
class Arm:
    """One row of a study.

    Attributes:
        settings: what the row is called, a column each.
        changes: what it changes, as nested keys of the configuration.
    """

    settings: Settings
    changes: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return "_".join(f"{key}-{value}" for key, value in self.settings.items()).replace(" ", "-")


def _supervision(config: Config) -> list[Arm]:
    """Table 2: backbone and losses, what is learned from, and whether labels are sampled around their points."""
    arms = []
    radius = config.loss.radius or 2.0
    for backbone, supervision, sampled in itertools.product(
        ("transformer", "convolutions"), ("ground-truth", "pseudo-labels", "proposals", "points"), (True, False)
    ):
        if supervision == "points" and sampled:
            continue  # nothing is there to sample
        changes: dict[str, Any] = {"backbone": backbone, "supervision": supervision}
        if backbone == "convolutions":  # with the losses, the training and the thresholds of the base model
            base = config.base.model_dump(mode="json")
            changes |= {section: base[section] for section in ("loss", "train", "detect")}
        changes["loss"] = {**changes.get("loss", {}), "radius": radius if sampled else None}
        settings = {"backbone": backbone, "supervision": supervision, "labels": "sampled" if sampled else "whole"}
        arms.append(Arm(settings, changes))
    return arms


def _extensions(config: Config) -> list[Arm]:
    """What goes past the paper, one step after the other, from the configuration of a model with a boundary head."""
    if not config.model.boundary_head:
        raise InputError("extensions: expected a configuration with model.boundary_head, such as hapt_boundaries")
    nms = NmsConfig().model_dump(include={"sigma", "voting"})  # the configured ones are the boundary head's
    none = {"model": {"boundary_head": False}, "detect": {"proposals": "thresholds", "nms": nms}}
    return [
        Arm(
            {"boundary head": "yes" if head else "no", "pseudo-labels": variant, "rounds": str(rounds)},
            {**({} if head else none), "pseudo_labels": {"variant": variant}, "rounds": rounds},
        )
        for head, variant, rounds in (
            (False, "released", 1),
            (False, "fused", 1),
            (True, "released", 1),
            (True, "fused", 1),
            (True, "fused", 2),
        )
    ]


def _windows(config: Config) -> list[Arm]:
    """Length, stride and features of the windows, around those that are set or follow from the recordings."""
    from potloc_fast.engine.train import settle_windows

    data = settle_windows(config)[0].data
    if not isinstance(data, FolderData) or not data.windows.resolved:
        raise InputError("windows: expected a configuration with raw recordings (signals/ in the layout plain)")
    windows = data.windows.model_dump(mode="json")
    arms: dict[tuple[str, ...], Arm] = {}
    for length, stride, features in (
        (1, 1, windows["features"]),
        (0.5, 1, windows["features"]),
        (2, 1, windows["features"]),
        (1, 0.5, windows["features"]),
        (1, 2, windows["features"]),
        (1, 5, windows["features"]),
        (1, 1, "raw"),
        (1, 1, "statistics"),
    ):
        values = windows | {
            "length_sec": round(length * windows["length_sec"], 9),
            "stride_sec": round(stride * windows["stride_sec"], 9),
            "features": features,
        }
        named = {key: f"{values[f'{key}_sec']:g}" for key in ("length", "stride")} | {"features": features}
        arms.setdefault(tuple(named.values()), Arm(named, {"data": {"windows": values}}))
    return list(arms.values())


def _one_key(column: str, path: str, values: Sequence[Any]) -> list[Arm]:
    """An arm for each value of one key."""
    arms = []
    for value in values:
        arms.append(Arm({column: "whole" if value is None else str(value)}, nested(path, value)))
    return arms


def arms_of(study: str, config: Config) -> list[Arm]:
    """The arms of a study, see `STUDIES`.

    Raises:
        InputError: there is no such study.
    """
    if study not in STUDIES:
        raise InputError(f"{study}: expected a study among {', '.join(STUDIES)}")
    if study in _OWN:
        return _OWN[study](config)
    return _one_key(study, *_KEYS[study])


_OWN: dict[str, Callable[[Config], list[Arm]]] = {
    "supervision": _supervision,
    "extensions": _extensions,
    "windows": _windows,
}
_KEYS: dict[str, tuple[str, Sequence[Any]]] = {
    "levels": ("model.levels", (0, 1, 2, 3, 4, 5)),
    "window": ("model.window", (3, 7, 13, 19, 31)),
    "radius": ("loss.radius", (0, 1, 2, 4, 8, None)),
    "gamma": ("loss.gamma", (0, 1, 2, 3)),
    "points": ("data.points", ("gaussian", "uniform", "start", "end", "human")),
    "kept-points": ("data.kept_points", (1.0, 0.75, 0.5, 0.25)),
    "algorithm": ("pseudo_labels.variant", ("paper", "released", "fused", "aligned")),
    "rounds": ("rounds", (1, 2, 3)),
}
STUDIES: dict[str, str] = {
    "supervision": "backbone and losses, what is learned from, sampling (Table 2 of the paper)",
    "levels": "levels of the pyramid (Table 3 of the paper)",
    "window": "width of the attention's band",
    "radius": "sampling radius r",
    "gamma": "focusing parameter of the losses",
    "points": "where in an instance its point lies",
    "kept-points": "share of the points that is kept",
    "algorithm": "variant of Algorithm 1",
    "rounds": "rounds of self-training",
    "windows": "length, stride and features of the windows that raw recordings are cut into",
    "extensions": "what goes past the paper: boundary head, fused pseudo-labels, self-training",
}


@dataclass(frozen=True)
class Outcome:
    """The mAP of one arm with one seed, in percent, at each threshold."""

    settings: Settings
    seed: int
    tiou: tuple[float, ...]
    map: tuple[float, ...]
    mean: float


def ablate(
    study: str, config: Config, out: str | Path, seeds: Sequence[int] = (0, 1, 2), jobs: int = 1
) -> list[Outcome]:
    """Train every arm of a study with every seed, and write a table of what they score.

    A seed decides where points are drawn and all of training. Arms that share data and seed share a base model. What an
    earlier call finished is kept, and what it began goes on after its last whole epoch.

    Args:
        study: one of `STUDIES`.
        config: what all arms share.
        out: the folder to write to: `<study>.csv` (a row for each arm and seed), `<study>.md` (mean and standard
            deviation over the seeds), `<study>.png`, and the runs in `<study>/` and `base/`.
        seeds: one or more.
        jobs: processes to spread the runs over; they share the cores evenly, and take the GPUs in turns.

    Returns:
        The outcomes, by arm, then seed.

    Raises:
        InputError: the study, the data or the configuration can't be used, or a run failed.
    """
    out = Path(out)
    if not seeds or jobs < 1:
        raise InputError(f"{study}: expected one or more seeds and jobs, got seeds {list(seeds)} and {jobs} jobs")
    runs: list[tuple[Arm, int, Config]] = [
        (arm, seed, parse_config(merge(config.model_dump(mode="json"), {**arm.changes, "seed": seed}), arm.folder))
        for arm in arms_of(study, config)
        for seed in seeds
    ]
    folders = [out / study / arm.folder / f"seed_{seed}" for arm, seed, _ in runs]
    bases = {base_folder(out, changed): _base_config(changed) for _, _, changed in runs if changed.uses_base}
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)  # cores that this process may use
    failures: list[str] = []
    context = multiprocessing.get_context("spawn")  # a forked child of a process with threads may hang
    numbers = context.SimpleQueue()
    for number in range(jobs):
        numbers.put(number)
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=take_gpu, initargs=(numbers,)) as pool:
        first: list[Task] = [(folder, changed, ("base",), None) for folder, changed in bases.items()]
        second: list[Task] = [
            (folder, changed, steps_after_base(changed), base_folder(out, changed) if changed.uses_base else None)
            for folder, (_, _, changed) in zip(folders, runs, strict=True)
        ]
        for tasks in (first, second):
            futures = {pool.submit(_run, task, threads): task[0] for task in tasks}
            for number, future in enumerate(as_completed(futures), start=1):
                failure = future.result()
                print(f"[{number}/{len(futures)}] {futures[future]}{f': {failure}' if failure else ''}", flush=True)
                if failure:
                    failures.append(f"{futures[future]}: {failure}")
            if failures:
                raise InputError(f"{len(failures)} of {len(futures)} runs failed, the first: {failures[0]}")
    outcomes = []
    for folder, (arm, seed, _) in zip(folders, runs, strict=True):
        found = read_json(folder / "potloc" / "evaluation.json")
        outcomes.append(Outcome(arm.settings, seed, tuple(found["tiou"]), tuple(found["map"]), found["mean"]))
    write_text(out / f"{study}.csv", to_csv(outcomes))
    write_text(out / f"{study}.md", to_markdown(outcomes, f"{STUDIES[study][0].upper()}{STUDIES[study][1:]}"))
    return outcomes


def _base_config(config: Config) -> Config:
    """What decides the base model and its proposals, and nothing else: runs in which it agrees share them."""
    return Config(seed=config.seed, data=config.data, base=config.base, engine=config.engine)


def base_folder(out: Path, config: Config) -> Path:
    """The folder of the base model that a run uses."""
    return out / "base" / sha256(dump_config(_base_config(config)).encode()).hexdigest()[:12]


def steps_after_base(config: Config) -> tuple[Step, ...]:
    """What a run does that takes its base model, if it needs one, from elsewhere."""
    return ("pseudo-labels", "potloc", "detect") if config.supervision == "pseudo-labels" else ("potloc", "detect")


def take_gpu(numbers: SimpleQueue[int]) -> None:
    """Give this process the next of the machine's GPUs, in turns, the way torchrun would (see `pick_device`)."""
    import torch

    os.environ["LOCAL_RANK"] = str(numbers.get() % max(1, torch.cuda.device_count()))


Task: TypeAlias = tuple[Path, Config, Sequence["Step"], Path | None]
"""The folder, the configuration and the steps of a run, and the run whose base model's proposals it uses, if any."""


def _run(task: Task, threads: int) -> str | None:
    """Do one run in a process of its own, with what it prints in train.log; returns what went wrong, in a sentence."""
    import torch

    from potloc_fast.engine.train import train

    folder, config, steps, base = task
    torch.set_num_threads(threads)
    done = folder / ("potloc/evaluation.json" if "detect" in steps else "base/proposals.json")
    if done.is_file() and (folder / "config.yaml").read_text(encoding="utf-8") == dump_config(config):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    if base is not None:
        write_bytes(folder / "base" / "proposals.json", (base / "base" / "proposals.json").read_bytes())
    with (
        (folder / "train.log").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            train(config, folder, steps, resume=True)
        except InputError as error:
            return str(error)
    return None


def to_csv(outcomes: Sequence[Outcome]) -> str:
    """A row for each arm and seed: its settings, the seed, mAP at each threshold and their mean."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*outcomes[0].settings, "seed", *(f"{tiou:g}" for tiou in outcomes[0].tiou), "mean"])
    for outcome in outcomes:
        values = (f"{value:.4f}" for value in (*outcome.map, outcome.mean))
        writer.writerow([*outcome.settings.values(), outcome.seed, *values])
    return text.getvalue()


def to_markdown(outcomes: Sequence[Outcome], title: str) -> str:
    """A row for each arm: its settings and what `summary` gives."""
    first = outcomes[0]
    heads = [*first.settings, *(f"{tiou:g}" for tiou in first.tiou), "mean"]
    rows = [heads, ["---" for _ in heads], *([*settings.values(), *cells] for settings, cells in summary(outcomes))]
    seeds = ", ".join(str(seed) for seed in sorted({outcome.seed for outcome in outcomes}))
    return "\n".join(
        [
            f"# {title}",
            "",
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            f"mAP (%) at tIoU, mean ± standard deviation over the seeds {seeds}.",
            "",
        ]
    )


def to_table(outcomes: Sequence[Outcome]) -> Table:
    """A table that fits into 80 columns: means over the seeds at every other threshold, a deviation of the last one."""
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="mAP (%) at tIoU", box=SIMPLE, padding=0)
    for name in outcomes[0].settings:
        table.add_column(name, overflow="fold")
    shown = slice(None) if len(outcomes[0].tiou) <= SHOWN_TIOU else slice(None, None, 2)
    for name in (*(f"{tiou:g}" for tiou in outcomes[0].tiou[shown]), "mean"):
        table.add_column(name, justify="right", no_wrap=True)
    for settings, (*cells, mean) in summary(outcomes):
        table.add_row(
            *map(escape, settings.values()), *(cell.split()[0] for cell in cells[shown]), mean.replace(" ", "")
        )
    return table


def summary(outcomes: Sequence[Outcome]) -> list[tuple[Settings, list[str]]]:
    """For each arm mAP (%) at each threshold and their mean, as "81.2 ± 0.7" over the seeds."""
    rows = []
    for _, group in itertools.groupby(outcomes, key=lambda outcome: tuple(outcome.settings.items())):
        own = list(group)
        cells = []
        for values in zip(*((*outcome.map, outcome.mean) for outcome in own), strict=True):
            deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{deviation}")
        rows.append((own[0].settings, cells))
    return rows
