"""What arms score on several data sets, beside the ceiling: `python -m benchmarks.protocol --data hapt tug ecg`.

A data set is hapt, tug or ecg (`../shared/data`), synthetic, or NAME=FOLDER, any layout that the package reads. The
ceiling is the same network trained on the true boundaries. Models are trained on three quarters of the training people
and score on the fourth quarter, so that the test people are left for the end (`--test`). What is done is kept: the same
command goes on where it stopped. Writes protocol.csv and protocol.md.
"""

from __future__ import annotations

import argparse
import csv
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potloc_fast.config import load_config
from potloc_fast.data import Dataset, Grid
from potloc_fast.engine.train import load_dataset, train
from potloc_fast.evaluation import evaluate
from potloc_fast.files import read_json, write_json, write_text

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SIGNALS = ("tug", "ecg")  # raw recordings: windows follow from them
PLAIN = ("data.layout=plain", "data.grid.window=null")
HEAD = (*PLAIN, "pseudo_labels.variant=fused")
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "own": ("own", ()),
    "fused": ("hapt_boundaries", HEAD),
    "thresholds": ("hapt", PLAIN),
    "one round": ("own", ("rounds=1",)),
    "ceiling": ("own", ("supervision=ground-truth", "loss.radius=null")),
}
HELD_OUT = 4  # every fourth person

Table = list[dict[str, Any]]


def read(name: str, folder: str | None, seed: int) -> Dataset:
    """The data set, with the points that it has, if any."""
    if folder is None and name == "synthetic":
        return load_dataset(load_config("synthetic", [f"seed={seed}"]))
    root = Path(folder) if folder else SHARED / ("hapt/hapt_uci.zip" if name == "hapt" else name)
    points = "gaussian" if name == "hapt" else "file"
    return load_dataset(load_config("own", [f"data.root={root}", f"data.points={points}", f"seed={seed}"]))


def write(dataset: Dataset, held: set[str], test: bool, folder: Path) -> None:
    """Write a data set in the plain layout, or without `test` its training recordings, those in `held` to test in."""
    tables: dict[str, Table] = {"recordings": [], "instances": [], "points": []}
    for recording in dataset.recordings if test else dataset.subset("train"):
        tested = recording.subset == "test" if test else recording.id in held
        step, name = recording.grid.snippet_sec, recording.id

        def seconds(time_sec: float, grid: Grid = recording.grid) -> float:
            return float(grid.to_grid(time_sec) * grid.snippet_sec)  # windows that overlap begin before their cells

        tables["recordings"].append({"recording": name, "subset": "test" if tested else "train", "snippet_sec": step})
        for item in recording.instances:
            span = {"start_sec": max(0.0, seconds(item.start_sec)), "end_sec": seconds(item.end_sec)}
            tables["instances"].append({"recording": name, "label": item.label, **span})
        for point in () if tested else recording.points:
            row = {"recording": name, "label": point.label, "time_sec": max(0.0, seconds(point.time_sec))}
            tables["points"].append(row)
        (folder / "features").mkdir(parents=True, exist_ok=True)
        np.save(folder / "features" / f"{name}.npy", np.asarray(recording.features))
    for table, rows in tables.items():
        if rows:
            write_table(folder / f"{table}.csv", rows)


def write_signals(source: Path, held: set[str], folder: Path) -> None:
    """Write the tables of a folder of raw signals without its test people, those in `held` to test in."""
    tables = {table: read_rows(source / f"{table}.csv") for table in ("recordings", "instances", "points")}
    subset = {row["recording"]: row["subset"] for row in tables["recordings"]}
    tables["points"] = [row for row in tables["points"] if row["recording"] not in held]
    for table, rows in tables.items():
        kept = [row for row in rows if subset[row["recording"]] == "train"]
        for row in kept if table == "recordings" else ():
            row["subset"] = "test" if row["recording"] in held else "train"
        write_table(folder / f"{table}.csv", kept)
    (folder / "signals").symlink_to((source / "signals").resolve())


def prepare(name: str, folder: str | None, test: bool, out: Path) -> Path:
    """The data set as a folder in the plain layout, made once."""
    place = out / "data" / name
    if (place / "recordings.csv").is_file():
        return place
    if folder is None and name in SIGNALS:
        if test:
            return SHARED / name
        place.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_rows(SHARED / name / "recordings.csv") if row["subset"] == "train"]
        write_signals(SHARED / name, held_out({row["recording"]: row["person"] for row in rows}), place)
    else:
        dataset = read(name, folder, 0)
        trained = [recording.id for recording in dataset.subset("train")]
        write(dataset, held_out({id: (re.findall(r"user\d+", id) or [id])[0] for id in trained}), test, place)
    return place


def held_out(people: dict[str, str]) -> set[str]:
    """The recordings of every fourth person, of those whose recordings these are."""
    held = set(sorted(set(people.values()))[1::HELD_OUT])
    return {recording for recording, person in people.items() if person in held}


def read_rows(path: Path) -> Table:
    """The rows of a table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run(root: Path, points: str, arm: str, seed: int, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Train one arm, or go on with it; what it scores, in percent."""
    done = folder / "protocol.json"
    if done.is_file():
        return dict(read_json(done))
    preset, changes = ARMS[arm]
    places = [f"data.root={root}", f"data.points={'file' if points == 'own' else points}", f"seed={seed}"]
    config = load_config(preset, [*places, *changes, *overrides])
    labelled = config.supervision == "pseudo-labels"
    begun = time.monotonic()
    trained = train(config, folder, None if labelled else ("potloc", "detect"), resume=True)
    minutes = (time.monotonic() - begun) / 60
    score = read_json(folder / "potloc" / "evaluation.json")
    found = {"map": score["mean"], "last": score["map"][-1], "labels": None, "minutes": minutes}
    if labelled:
        labels = evaluate(trained.pseudo_labels, folder / "ground_truth.json", subset="train")
        found["labels"] = labels.mean
    write_json(done, found)
    return found


def summary(rows: Table) -> Table:
    """A row for each data set, kind of points and arm: means over the seeds, and the share of the ceiling."""
    groups: dict[tuple[str, str, str], Table] = {}
    for row in rows:
        groups.setdefault((row["data"], row["points"], row["arm"]), []).append(row)

    def mean(group: Iterable[dict[str, Any]], key: str) -> float | None:
        values = [row[key] for row in group if row[key] is not None]
        return float(np.mean(values)) if values else None

    table = []
    for (data, points, arm), group in groups.items():
        best, score = mean(groups.get((data, points, "ceiling"), ()), "map"), mean(group, "map")
        share = None if best is None or score is None else 100 * score / best
        keys = {key: mean(group, key) for key in ("map", "last", "labels", "minutes")}
        table.append({"data": data, "points": points, "arm": arm, "seeds": len(group), **keys, "share": share})
    return table


def markdown(table: Table) -> str:
    """The summary for people."""
    heads = ["data", "points", "arm", "seeds", "mAP", "at the last tIoU", "labels' mAP", "minutes", "% of the ceiling"]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for row in table:
        cells = [
            "" if cell is None else f"{cell:.1f}" if isinstance(cell, float) else f"{cell}" for cell in row.values()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def write_table(path: Path, rows: Table) -> None:
    """A CSV with the keys of the first row as its header."""
    text = [",".join(rows[0]), *(",".join("" if cell is None else str(cell) for cell in row.values()) for row in rows)]
    write_text(path, "\n".join([*text, ""]))


def main() -> None:
    """Read the arguments, train, and write the tables after each run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.protocol", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to every arm")
    parser.add_argument("--data", nargs="+", default=["hapt", "tug", "ecg"], metavar="NAME[=FOLDER]")
    parser.add_argument("--points", nargs="+", default=["own"], help="own, gaussian, uniform, human, start, ...")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--test", action="store_true", help="score on the test people: once, at the end")
    parser.add_argument("--out", type=Path, default=Path("runs/protocol"))
    options = parser.parse_args()
    out, rows = options.out / ("test" if options.test else "held_out"), []
    for entry in options.data:
        name, _, folder = entry.partition("=")
        root = prepare(name, folder or None, options.test, out)
        for points in options.points:
            for arm in options.arms:
                for seed in range(options.seeds):
                    place = out / name / points / arm / f"seed_{seed}"
                    found = run(root, points, arm, seed, options.overrides, place)
                    rows.append({"data": name, "points": points, "arm": arm, "seed": seed, **found})
                    write_table(out / "protocol.csv", rows)
                    write_text(out / "protocol.md", markdown(summary(rows)))
    print(markdown(summary(rows)))


if __name__ == "__main__":
    main()
