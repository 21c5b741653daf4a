"""Training that is killed at file events and resumed, over and over: it must end byte for byte as undisturbed.

    python -m tests.faults.kills --count 500

A kill comes right before a file of the run is opened for writing, renamed, removed or given its rights, or a folder
is made. A chain begins in an empty folder, over a finished run or over one that was killed, both of another seed. The
first kills of the chains are spread over all the events of a run. After a kill the log of what is being trained may end
in half a row, as a kill within a write leaves it.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

import potloc_fast
from potloc_fast.config import Config, load_config
from potloc_fast.errors import InputError

TINY = (
    "data.recordings=6",
    "data.length=50",
    "data.width=4",
    "data.classes=3",
    "base.model.hidden=4",
    "base.train.epochs=2",
    "base.train.batch_size=2",
    "model.width=4",
    "model.heads=2",
    "model.levels=1",
    "train.epochs=2",
    "train.batch_size=2",
    "engine.device=cpu",
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
GOLDEN = 0.618034  # multiples of it fall evenly everywhere between the whole numbers


class Events:
    """Counts this process' file events in a folder, and kills it right before one of them."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.kill_at: int | None = None
        self.count = 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod"):
            return
        if event == "open" and not args[2] & WRITES:
            return
        if str(args[0]).startswith(f"{self.folder}{os.sep}"):
            self.count += 1
            if self.count == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


EVENTS = Events()


def train(config: Config, folder: Path, resume: bool, kill_at: int | None = None) -> int:
    """Train in a process of its own, a fork of this one, which has imported and compiled everything.

    Returns:
        0 where it ended, else -1 where it was killed, 2 where it refused, 1 where it failed.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with (folder.parent / "log.txt").open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            EVENTS.folder, EVENTS.kill_at, EVENTS.count = folder, kill_at, 0
            potloc_fast.train(config, folder, resume=resume)
            status = 0
        except InputError as error:
            print(error, file=sys.stderr)
            status = 2
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return -1 if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def content(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for TensorBoard's files, whose names hold the time, and for how long steps took."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.parent.name != "tensorboard"):
        name = str(path.relative_to(folder))
        if path.name == "metrics.jsonl":
            found[name] = re.sub(r'"seconds": [0-9.]+', "", path.read_text())
        elif path.name != ".lock":
            found[name] = path.read_bytes()
    return found


def chain(
    number: int, folder: Path, config: Config, written: bytes, before: Callable[[Path], None], total: int
) -> tuple[int, str]:
    """Kill and resume a run, whose config.yaml is `written`, some times, then let it end.

    Returns:
        How often it was killed, and what went wrong; empty where nothing did.
    """
    draw = random.Random(number)
    before(folder)
    positions = [1 + int(total * (number * GOLDEN % 1)), *(draw.randint(1, total) for _ in range(number % 4))]
    kills, began = 0, False
    for kill_at in [*positions, None]:
        outcome = train(config, folder, began, kill_at)
        if outcome > 0:
            return kills, f"killed at the events {positions[:kills]}, it ended with status {outcome}"
        if outcome == 0:
            break
        kills += 1
        path = folder / "config.yaml"
        began = path.is_file() and path.read_bytes() == written  # else there is nothing to resume
        for log in folder.glob("*/metrics.jsonl") if draw.random() < 0.3 else ():
            if not log.with_name("model.safetensors").exists():
                with log.open("a") as file:
                    file.write('{"stage": "half a row')
    return kills, ""


def main() -> int:
    """Run chains until there were so many kills; the status is 1 where one ended otherwise than undisturbed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="how many kills")
    parser.add_argument("--first", type=int, default=0, help="the number of the first chain")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place).resolve()
        config = load_config("synthetic", [*TINY, "rounds=2"])
        other = load_config("synthetic", [*TINY, "rounds=3", "seed=1"])
        sys.addaudithook(EVENTS)
        totals = []
        for settings, name in ((config, "whole"), (other, "other")):
            EVENTS.folder, EVENTS.count = root / name, 0
            with (root / "log.txt").open("w") as log, redirect_stdout(log), redirect_stderr(log):
                potloc_fast.train(settings, root / name)
            totals.append(EVENTS.count)
        EVENTS.folder, (total, others) = None, totals
        expected = content(root / "whole")

        def over_finished(folder: Path) -> None:
            shutil.copytree(root / "other", folder)

        def over_killed(folder: Path) -> None:
            train(other, folder, False, 1 + int(others * (kills * GOLDEN % 1)))

        kills, number, failures = 0, options.first, []
        while kills < options.count:
            folder = root / "run"
            start = (lambda _: None, over_finished, over_killed)[number % 3]
            count, failure = chain(number, folder, config, expected["config.yaml"], start, total)
            if not failure:
                found = content(folder)
                differ = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
                failure = f"these files differ: {', '.join(sorted(differ))}" if differ else ""
            if failure:
                failures.append(failure)
                print(f"chain {number}: {failure}\n{(root / 'log.txt').read_text()[-2000:]}", file=sys.stderr)
            kills += count
            number += 1
            shutil.rmtree(folder)
            (root / "log.txt").unlink()
    chains = number - options.first
    print(
        f"kills: {kills} at the {total} file events of a run, in {chains} chains: {chains - len(failures)} ended byte "
        f"for byte as undisturbed, {len(failures)} did not ({time.perf_counter() - begin:.0f} s)"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
