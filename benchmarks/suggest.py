"""mAP against the number of clicks, suggested against drawn at random: `python -m benchmarks.suggest --data hapt`.

Begins with a few labelled recordings of the training people, trains `own`, labels as many more as `suggest` names or as
chance draws, trains again, and so on. Each run is scored on the held-out training people of benchmarks.protocol. What
is done is kept: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.protocol import Table, prepare, read_rows, write_table
from potloc_fast.config import load_config
from potloc_fast.data import Recording
from potloc_fast.engine.run import Run
from potloc_fast.engine.train import load_dataset, train
from potloc_fast.files import read_json
from potloc_fast.suggest import suggest


def run(root: Path, labelled: set[str], seed: int, overrides: Sequence[str], place: Path) -> tuple[Run, int, float]:
    """Train on the labelled recordings alone; the run, the number of clicks, and mAP in percent."""
    data, rows = place / "data", read_rows(root / "recordings.csv")
    data.mkdir(parents=True, exist_ok=True)
    for inputs in ("features", "signals"):
        if (root / inputs).exists() and not (data / inputs).exists():
            (data / inputs).symlink_to((root / inputs).resolve())
    held = {row["recording"] for row in rows if row["subset"] == "test"}
    points = [row for row in read_rows(root / "points.csv") if row["recording"] in labelled]
    instances = [row for row in read_rows(root / "instances.csv") if row["recording"] in held]
    write_table(data / "recordings.csv", [row for row in rows if row["recording"] in labelled | held])
    write_table(data / "points.csv", points)
    write_table(data / "instances.csv", instances)
    config = load_config("own", [f"data.root={data}", f"seed={seed}", *overrides])
    trained = train(config, place / "run", resume=True)
    return trained, len(points), read_json(place / "run" / "potloc" / "evaluation.json")["mean"]


def curve(
    root: Path, pool: Sequence[Recording], chosen: bool, step: int, turns: int, seed: int, out: Path, *more: str
) -> Table:
    """Clicks and mAP of the turns of one arm and seed."""
    rng, names = np.random.default_rng(seed), [recording.id for recording in pool]
    labelled, rows = set(rng.choice(names, step, replace=False).tolist()), []
    for turn in range(turns):
        # Both arms begin with the same recordings.
        place = out / (f"seed_{seed}/{'suggested' if chosen else 'random'}_{turn}" if turn else f"seed_{seed}/first")
        trained, clicks, score = run(root, labelled, seed, more, place)
        rows.append({"arm": "suggested" if chosen else "random", "seed": seed, "clicks": clicks, "map": score})
        left = [replace(recording, points=(), instances=()) for recording in pool if recording.id not in labelled]
        if chosen:
            labelled |= {suggestion.recording for suggestion in suggest(trained, left)[:step]}
        else:
            labelled |= set(rng.choice([recording.id for recording in left], step, replace=False).tolist())
    return rows


def main() -> None:
    """Read the arguments, train, and write and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suggest", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to every run")
    parser.add_argument("--data", default="hapt", metavar="NAME[=FOLDER]")
    parser.add_argument("--step", type=int, default=3, help="recordings that are labelled at a time")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/protocol"))
    options = parser.parse_args()
    name, _, folder = options.data.partition("=")
    root = prepare(name, folder or None, False, options.out / "held_out")
    pool = load_dataset(load_config("own", [f"data.root={root}"])).subset("train")
    out, rows = options.out / "suggest" / name, []
    for seed in range(options.seeds):
        for chosen in (True, False):
            rows += curve(root, pool, chosen, options.step, options.turns, seed, out, *options.overrides)
            write_table(out / "suggest.csv", rows)
    print("| arm | seed | clicks | mAP |\n| --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row['arm']} | {row['seed']} | {row['clicks']} | {row['map']:.1f} |")


if __name__ == "__main__":
    main()
