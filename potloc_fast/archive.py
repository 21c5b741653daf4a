"""Detection in archives: one result a recording, written as soon as it is done, by any number of processes.

All that the processes know of each other lies in the folder of results. A recording is done when its result is there,
and in work while its claim is fresh. So what is started again goes on, and what was killed is done by others. Where two
take the same recording, because one of them stood still for long, both write the same result.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import IO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from potloc_fast.data import Recording
from potloc_fast.data.listing import Source
from potloc_fast.detector import Detection, Detector, typed
from potloc_fast.engine.device import read_ahead
from potloc_fast.engine.predict import is_input, sources_in
from potloc_fast.errors import InputError, quote
from potloc_fast.evaluation import Segments, write_detections
from potloc_fast.files import TEMPORARY, atomic, is_hidden, listed, read_json, write_json, write_text
from potloc_fast.names import file_name

CLAIMS, MANIFEST, ABOUT = ".claims", "manifest", "archive.json"
EXPIRY_SEC = 120.0  # a claim that was not renewed for so long is nobody's; it is renewed four times as often
LOT = 2**15  # snippets that are claimed, read and detected in together
LOT_RECORDINGS = 32
LINE_SEC = 30.0  # between two lines of progress where there is no terminal
POLL_SEC = 1.0  # between two looks at what others do, or at a folder that is watched


@dataclass(frozen=True)
class Item:
    """A recording of an archive.

    Attributes:
        key: where its result lies in the folder of results, without a suffix.
        name: of the recording, with that of the folder that it lies in.
        source: where its features are.
    """

    key: str
    name: str
    source: Source

    def stamp(self) -> tuple[int, int]:
        """Size and time of the file, which change while it is written."""
        found = os.stat(getattr(self.source, "file", self.source.path))
        return found.st_size, found.st_mtime_ns


@dataclass
class Outcome:
    """What came of an archive.

    Attributes:
        done: recordings that this process detected in.
        snippets: of these recordings.
        detections: in these recordings.
        there: recordings that had a result before, or got one from another process.
        failed: a sentence for each recording that can't be used, by its key.
        seconds: how long it took.
        model_sec: how much of it the model and what follows it took.
    """

    done: int = 0
    snippets: int = 0
    detections: int = 0
    there: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    model_sec: float = 0.0


# What there is to detect in


def find(
    detector: Detector, inputs: Iterable[str | Path], trusted: bool = False, into: str | Path | None = None
) -> tuple[list[Item], dict[str, str]]:
    """List the recordings of an archive; no features are read.

    Args:
        detector: what will detect in them.
        inputs: files; folders, of which all files in a known format are taken, at any depth; or patterns such as
            `"2024/*.npy"`.
        trusted: whether pickled features may be loaded, which can run any code.
        into: the folder of results, which is no input where it lies in one.

    Returns:
        The recordings by key; and a sentence for each file that can't be opened.

    Raises:
        InputError: an input is not there, or two recordings would have the same result.
    """
    found: dict[str, Item] = {}
    failed: dict[str, str] = {}
    for prefix, paths in _folders(inputs, detector, None if into is None else Path(into)):
        for name, source in _opened(detector, paths, trusted, failed):
            parts = (*Path(prefix).parts, *Path(name).parts)
            key = "/".join(map(file_name, parts))
            if key in found:
                raise InputError(
                    f"{source.path}: expected recordings of different names in a folder, got {quote(key)} from "
                    f"{found[key].source.path} too"
                )
            found[key] = Item(key, "/".join(parts), source)
    return sorted(found.values(), key=lambda item: item.key), failed


def _folders(inputs: Iterable[str | Path], detector: Detector, into: Path | None) -> Iterator[tuple[str, list[Path]]]:
    """The files of each folder, with the folder's place in the results."""
    single: dict[Path, None] = {}  # each once, in order
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            for folder, subfolders, names in os.walk(path):
                below = os.path.relpath(folder, path)
                subfolders[:] = sorted(
                    name for name in subfolders if not is_hidden(name) and not _same(Path(folder, name), into)
                )
                files = [Path(folder, name) for name in sorted(names) if not is_hidden(name)]
                yield "" if below == "." else below, [file for file in files if is_input(detector, file)]
        elif path.exists() or not any(map(_is_pattern, path.parts)):
            single[path] = None
        else:
            first = next(place for place, part in enumerate(path.parts) if _is_pattern(part))
            matched = listed(Path(*path.parts[:first]), str(Path(*path.parts[first:])))
            if not matched:
                raise InputError(f"{path}: expected a pattern that files match, found none")
            single.update(dict.fromkeys(file for file in matched if file.is_file()))
    yield "", list(single)


def _is_pattern(part: str) -> bool:
    return any(letter in part for letter in "*?[")


def _same(path: Path, other: Path | None) -> bool:
    return other is not None and other.exists() and path.samefile(other)


def _opened(
    detector: Detector, paths: Sequence[Path], trusted: bool, failed: dict[str, str]
) -> list[tuple[str, Source]]:
    try:
        return sources_in(detector, paths, trusted)
    except InputError as error:
        if len(paths) > 1:
            return [found for path in paths for found in _opened(detector, [path], trusted, failed)]
        failed[str(paths[0])] = str(error)
        return []


# What is done, and by whom


class Claims:
    """Which recordings are in work, by files that a process makes, renews and removes.

    Args:
        folder: where claims lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: set[Path] = set()
        self._me = {"host": socket.gethostname(), "process": os.getpid(), "begun": _begun(os.getpid())}
        self._ended = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        self._renewing = threading.Thread(target=self._renew, daemon=True)
        self._renewing.start()

    def take(self, key: str) -> bool:
        """Claim a recording, unless another process has."""
        path = self._path(key)
        # It appears with its owner in it: else the claim of a process that is killed here would hold until it expires.
        with tempfile.NamedTemporaryFile("w", dir=self._folder, prefix=TEMPORARY) as made:
            json.dump(self._me, made)
            made.flush()
            os.fchmod(made.fileno(), 0o644)
            for _ in range(2):
                try:
                    os.link(made.name, path)
                except FileExistsError:
                    if path in self._own or not self._is_stale(path):
                        return False
                    path.unlink(missing_ok=True)
                else:
                    self._own.add(path)
                    return True
        return False

    def release(self, key: str) -> None:
        """Give a claim back."""
        path = self._path(key)
        self._own.discard(path)
        path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give all claims back."""
        self._ended.set()
        self._renewing.join()
        for path in self._own:
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / sha256(key.encode(errors="surrogatepass")).hexdigest()[:32]

    def _is_stale(self, path: Path) -> bool:
        """Whether who made a claim is gone: a process that ended here, or one that has not renewed it for long."""
        try:
            renewed = path.stat().st_mtime
            owner = json.loads(path.read_text())
            if owner["host"] == self._me["host"] and _begun(owner["process"]) != owner["begun"]:
                return True
        except FileNotFoundError:  # it was given back; another may make one before this process does
            return False
        except (ValueError, TypeError, KeyError):  # a disk was full, or it is nobody's
            pass
        return self._now() - renewed > EXPIRY_SEC

    def _now(self) -> float:
        """The time by the clock of the file system, which other machines share."""
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=TEMPORARY) as probe:
            return os.fstat(probe.fileno()).st_mtime

    def _renew(self) -> None:
        while not self._ended.wait(EXPIRY_SEC / 4):
            for path in tuple(self._own):
                with suppress(OSError):
                    os.utime(path)


def _begun(process: int) -> str | None:
    """When a process of this machine began, which tells it from a later one of the same number; None if it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


# The work


class Archive:
    """A folder of results.

    Args:
        detector: what detects.
        into: the folder.
        form: "json", "jsonl", "csv" or "parquet".
        min_score: leave out detections that score less.
        plots: draw a picture of each recording beside its result.

    Raises:
        InputError: the folder holds results of another run, or in another form.
    """

    def __init__(
        self,
        detector: Detector,
        into: str | Path,
        form: str = "json",
        min_score: float | None = None,
        plots: bool = False,
    ) -> None:
        self.detector, self.into, self.min_score, self.plots = detector, Path(into), min_score, plots
        self._write = writer(form)
        self._suffix = f".{form}"
        about = {
            "run": detector.source,
            "digest": detector.digest,
            "form": form,
            "min_score": min_score,
            "snippet_sec": detector.grid and detector.grid.snippet_sec,
            "section": detector.section,
        }
        place = self.into / ABOUT
        if not place.exists():
            write_json(place, about)
        there = read_json(place)
        # The run may have been moved.
        for name in about.keys() - {"run"}:
            found = there.get(name) if isinstance(there, dict) else None
            if found != about[name]:
                raise InputError(
                    f"{place}: expected results with {name} {quote(about[name])}, found {quote(found)}: take another "
                    "folder"
                )

    def result(self, item: Item) -> Path:
        """Where the result of a recording lies."""
        return self.into / f"{item.key}{self._suffix}"

    def detect(self, items: Sequence[Item], progress: Callable[[Outcome], None] | None = None) -> Outcome:
        """Detect in all recordings that have no result yet, with others that do the same, until all have one.

        Args:
            items: the recordings.
            progress: called whenever some are done, with what came of it so far.
        """
        outcome, begin, ended = Outcome(), time.perf_counter(), threading.Event()
        left = [item for item in items if not self.result(item).is_file()]
        outcome.there = len(items) - len(left)
        random.Random(os.urandom(8)).shuffle(left)
        with (
            closing(Claims(self.into / CLAIMS)) as claims,
            self._manifest() as log,
            ThreadPoolExecutor(1) as behind,
            closing(read_ahead(self._lots(left, claims, outcome, ended), 1)) as lots,
        ):
            written: deque[Future[None]] = deque()
            try:
                for lot in lots:
                    started = time.perf_counter()
                    found = self._found([recording for _, recording in lot])
                    took = time.perf_counter() - started
                    outcome.model_sec += took
                    written.append(behind.submit(self._finish, lot, found, took, claims, log, outcome))
                    if len(written) > 2:
                        written.popleft().result()
                    if progress is not None:
                        progress(outcome)
                while written:
                    written.popleft().result()
            finally:
                ended.set()
                outcome.seconds = time.perf_counter() - begin
        return outcome

    def _found(self, recordings: list[Recording]) -> list[Segments]:
        """Detections in each recording.

        On the CPU each is detected in by itself, so that a result is the same to the last bit whatever recordings were
        claimed with it. A GPU gets those of like length together, which rounds otherwise.
        """
        if self.detector.device.type == "cpu":
            return [self.detector.segments([recording]) for recording in recordings]
        found = self.detector.segments(recordings)
        one = [found.take(found.video == video) for video in range(len(recordings))]
        return [
            replace(own, videos=(recording.id,), video=np.zeros(len(own), np.int64))
            for recording, own in zip(recordings, one, strict=True)
        ]

    def _manifest(self) -> IO[str]:
        path = self.into / MANIFEST / f"{file_name(socket.gethostname())}-{os.getpid()}-{time.time_ns()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", encoding="utf-8")

    def _lots(
        self, left: list[Item], claims: Claims, outcome: Outcome, ended: threading.Event
    ) -> Iterator[list[tuple[Item, Recording]]]:
        """Claim recordings and read them, several at a time."""
        others: list[Item] = []
        while left or others:
            lot: list[tuple[Item, Recording]] = []
            snippets = 0
            while left and snippets < LOT and len(lot) < LOT_RECORDINGS:
                item = left.pop()
                if not claims.take(item.key):
                    others.append(item)
                elif self.result(item).is_file():
                    claims.release(item.key)
                    outcome.there += 1
                else:
                    try:
                        recording = self.detector.recording(item.name, item.source.load(), str(item.source.path))
                    except InputError as error:
                        claims.release(item.key)
                        outcome.failed[item.key] = str(error)
                        continue
                    lot.append((item, recording))
                    snippets += len(recording.features)
            if lot:
                yield lot
            elif others:
                if ended.wait(POLL_SEC):
                    return
                left, others = others, []

    def _finish(
        self,
        lot: list[tuple[Item, Recording]],
        found: list[Segments],
        took: float,
        claims: Claims,
        log: IO[str],
        outcome: Outcome,
    ) -> None:
        """Write the results of recordings that were detected in together."""
        total = sum(len(recording.features) for _, recording in lot)
        for (item, recording), own in zip(lot, found, strict=True):
            own = own.scored(self.min_score)
            result, length = self.result(item), len(recording.features)
            if self.plots:
                self._draw(recording, own, result.with_name(f"{file_name(item.key.rpartition('/')[2])}.png"))
            self._write(result, own)
            row = {
                "recording": recording.id,
                "source": str(item.source.path),
                "result": str(result.relative_to(self.into)),
                "snippets": length,
                "detections": len(own),
                "model_sec": round(took * length / total, 6),
                "run": self.detector.digest,
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            log.write(json.dumps(row) + "\n")
            claims.release(item.key)
            outcome.done += 1
            outcome.snippets += length
            outcome.detections += len(own)
        log.flush()

    def _draw(self, recording: Recording, found: Segments, path: Path) -> None:
        from potloc_fast.plots import draw

        try:
            draw(self.detector, recording, found, path)
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            print(f"warning: {path}: a picture was left out: {reason}", file=sys.stderr)


def shard(items: Sequence[Item], text: str) -> list[Item]:
    """The share of recordings that `I/N` names, I from 1 to N."""
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and len(text) < 20 and 1 <= int(first) <= int(count)):
        raise InputError(f"--shard: expected I/N, such as 3/16, with I from 1 to N, got {quote(text)}")
    return list(items[int(first) - 1 :: int(count)])


def watch(
    archive: Archive, folder: str | Path, trusted: bool = False, report: Callable[[Outcome], None] | None = None
) -> None:
    """Detect in what appears in a folder, once it has stopped to change. It never ends by itself.

    Args:
        archive: where results go.
        folder: what is looked at, with all folders in it.
        trusted: whether pickled features may be loaded, which can run any code.
        report: called with what came of new recordings.
    """
    before: dict[str, tuple[int, int]] = {}
    refused: dict[str, tuple[int, int]] = {}
    while True:
        items, _ = find(archive.detector, [folder], trusted, archive.into)
        now = {}
        for item in items:
            with suppress(OSError):  # it may be gone again
                now[item.key] = item.stamp()
        ready = [
            item
            for item in items
            if item.key in now
            and before.get(item.key) == now[item.key] != refused.get(item.key)
            and not archive.result(item).is_file()
        ]
        if ready:
            outcome = archive.detect(ready)
            refused.update((key, now[key]) for key in outcome.failed)
            if report is not None:
                report(outcome)
        before = now
        time.sleep(POLL_SEC)


# Forms of results


def writer(form: str) -> Callable[[Path, Segments], object]:
    """What writes the detections in a recording; all forms of results are here.

    Raises:
        InputError: there is no such form, or what it needs is not installed.
    """
    if form == "parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise InputError(
                "--format: expected pyarrow to write parquet, found none: pip install 'potloc_fast[parquet]'"
            ) from None
    forms: dict[str, Callable[[Path, Segments], object]] = {
        "json": write_detections,
        "csv": write_detections,
        "jsonl": _write_lines,
        "parquet": _write_parquet,
    }
    if form not in forms:
        raise InputError(f"--format: expected one of {', '.join(forms)}, got {quote(form)}")
    return forms[form]


def _write_lines(path: Path, found: Segments) -> None:
    write_text(path, "".join(json.dumps(detection._asdict()) + "\n" for detection in typed(found)))


def _write_parquet(path: Path, found: Segments) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = typed(found)
    kinds = (*[pyarrow.string()] * 2, *[pyarrow.float64()] * 3)
    table = pyarrow.table(
        {
            name: pyarrow.array([row[column] for row in rows], kind)
            for column, (name, kind) in enumerate(zip(Detection._fields, kinds, strict=True))
        }
    )
    with atomic(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


# What is shown meanwhile


class Meter:
    """Shows on stderr how far the work is; without a terminal, a line now and then.

    Args:
        total: number of recordings.
    """

    def __init__(self, total: int) -> None:
        self._total, self._begin, self._said = total, time.monotonic(), time.monotonic()
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("recordings", total=total, rate="")

    def __enter__(self) -> Meter:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, outcome: Outcome) -> None:
        """Take what came of the work so far."""
        now = time.monotonic()
        finished = outcome.done + outcome.there + len(outcome.failed)
        rate = outcome.snippets / max(now - self._begin, 1e-9)
        self._bar.update(self._task, completed=finished, rate=f"{rate:,.0f} snippets/s")
        if self._bar.disable and now - self._said >= LINE_SEC:
            self._said = now
            left = (
                f", {(self._total - finished) / outcome.done * (now - self._begin):.0f} s left" if outcome.done else ""
            )
            print(f"{finished} of {self._total} recordings, {rate:,.0f} snippets/s{left}", file=sys.stderr)
