"""Detection in Ray with one worker and with two, what it waits for, and an estimate for clusters.

    python -m benchmarks.ray_cluster RUN RECORDINGS

prints two tables: what was measured here, with a core a worker; and what follows for more nodes. It follows from the
processor time that a recording takes, so that whatever else this machine does counts for little there. What the driver
does once is told from what it does for each recording by detecting in all of them again, several times in one job. Take
a thousand recordings or more. RAY_worker_niceness=0 lets workers compute beside other work.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from potloc_fast.detector import Detection
from potloc_fast.integrations.ray import Predictor

BATCH = 8  # recordings, as in docs/archives.md
TIMES = 4  # that the longest job has each recording
CORES = 16  # of a node in the estimate, each a worker
NODES = (1, 2, 4, 8)
ARCHIVE = 1_000_000  # recordings of the estimate's last column


class Timed(Predictor):
    """Writes a line for each batch: when it was begun and ended, and what it took."""

    def __init__(self, run: Path, log: Path) -> None:
        super().__init__(run)
        self._log, self._model_sec, self._snippets, self._bytes = log / f"{os.getpid()}.jsonl", 0.0, 0, 0
        batch = self._detector.batch

        def timed(recordings: Any) -> list[list[Detection]]:
            begin = time.time()
            found = batch(recordings)
            self._model_sec = time.time() - begin
            self._snippets = sum(len(recording.features) for recording in recordings)
            self._bytes = sum(recording.features.nbytes for recording in recordings)
            return found

        self._detector.batch = timed  # type: ignore[method-assign]

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Detect in some recordings."""
        begin, cpu = time.time(), time.process_time()
        found = super().__call__(batch)
        row = {
            "recordings": len(batch["path"]),
            "snippets": self._snippets,
            "bytes": self._bytes,
            "begin": begin,
            "end": time.time(),
            "model": self._model_sec,
            "cpu": time.process_time() - cpu,
        }
        with self._log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return found


def measure(run: Path, paths: Sequence[Path], workers: int) -> dict[str, float]:
    """Detect in all recordings, and say what it took."""
    import ray

    with tempfile.TemporaryDirectory() as log:
        ray.init(num_cpus=workers, include_dashboard=False)
        begin, driver = time.time(), time.process_time()
        ray.data.from_items(
            [{"path": str(path)} for path in paths], override_num_blocks=len(paths) // 32 + 1
        ).map_batches(
            Timed,
            fn_constructor_args=[run.resolve(), Path(log)],
            batch_size=BATCH,
            num_cpus=1,
            concurrency=workers,
        ).materialize()
        driver = time.process_time() - driver
        ray.shutdown()
        rows = [json.loads(line) for path in Path(log).iterdir() for line in path.read_text().splitlines()]
    total = {key: sum(row[key] for row in rows) for key in rows[0]}
    first, last = min(row["begin"] for row in rows), max(row["end"] for row in rows)
    busy = total["end"] - total["begin"]
    return {
        "workers": workers,
        "recordings": total["recordings"],
        "start": first - begin,
        "seconds": last - first,
        "snippets a second": total["snippets"] / (last - first),
        "model": total["model"] / (workers * (last - first)),
        "reading": (busy - total["model"]) / (workers * (last - first)),
        "waiting": 1 - busy / (workers * (last - first)),
        "cpu": total["cpu"] / total["recordings"],
        "driver": driver,
        "length": total["snippets"] / total["recordings"],
        "megabytes": total["bytes"] / total["recordings"] / 1e6,
    }


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows in Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measured(row: Mapping[str, float]) -> dict[str, str]:
    """A row of the first table."""
    return {
        "workers": f"{row['workers']:.0f}",
        "recordings": f"{row['recordings']:.0f}",
        "start (s)": f"{row['start']:.0f}",
        "then (s)": f"{row['seconds']:.0f}",
        "snippets a second": f"{row['snippets a second']:,.0f}",
        "model (%)": f"{100 * row['model']:.1f}",
        "reading and checks (%)": f"{100 * row['reading']:.1f}",
        "waiting for Ray (%)": f"{100 * row['waiting']:.1f}",
        "processor time a recording (ms)": f"{1e3 * row['cpu']:.1f}",
        "of the driver (s)": f"{row['driver']:.1f}",
    }


def estimated(row: Mapping[str, float], driver: float, nodes: int) -> dict[str, str]:
    """A row of the second table: workers scale until one driver, which needs some seconds a recording, can no more."""
    of_workers, of_driver = nodes * CORES * (1 - row["waiting"]) / row["cpu"], 1 / driver
    rate = min(of_workers, of_driver)
    return {
        "nodes": f"{nodes}",
        "recordings an hour": f"{3600 * rate:,.0f}",
        "read (MB/s)": f"{rate * row['megabytes']:,.0f}",
        f"hours for {ARCHIVE:,}": f"{(ARCHIVE / rate + row['start']) / 3600:.2f}",
        "bound by": "the model" if of_workers <= of_driver else "the driver",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("recordings", type=Path)
    arguments = parser.parse_args()
    paths = sorted(path.resolve() for path in arguments.recordings.rglob("*.npy"))
    _, short, long = rows = [
        measure(arguments.run, paths * times, workers) for workers, times in ((1, 1), (2, 1), (2, TIMES))
    ]
    print(table([measured(row) for row in rows]))
    driver = (long["driver"] - short["driver"]) / (long["recordings"] - short["recordings"])
    print(
        f"\nAn estimate, for recordings of {long['length']:.0f} snippets, {CORES} workers a node, and "
        f"{1e3 * driver:.2f} ms of the driver a recording:\n"
    )
    print(table([estimated(long, driver, nodes) for nodes in NODES]))


if __name__ == "__main__":
    main()
