"""Input files of every kind, mutated: each reading ends, in bounded time and memory, in success or in `InputError`.

    python -m tests.faults.files --count 50000

mutates more of them, and prints one line with what came of it.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from potloc_fast.config import Config, load_config, parse_config
from potloc_fast.config.schema import FolderData, SignalsConfig, WindowsConfig
from potloc_fast.data import Dataset, Grid, Recording
from potloc_fast.data.layouts import read_listing
from potloc_fast.data.signals.source import SignalSource
from potloc_fast.data.sources import sources_of
from potloc_fast.engine.quality import read_quality
from potloc_fast.engine.run import Run
from potloc_fast.errors import LONGEST, InputError
from potloc_fast.evaluation import evaluate, read_ambiguous, read_detections
from potloc_fast.evaluation.points import Hits
from potloc_fast.files import read_json
from potloc_fast.interop import load_released, save_released
from potloc_fast.models import BaseModel
from potloc_fast.pseudo_labels import read_points, read_pseudo_labels

SECONDS = 20  # of computing that one reading may take
WAITING = 600  # seconds in all: a busy machine is no fault, and what waits for ever is
GROWTH = 512  # MiB that the most memory used may rise by in one reading
ADDRESSES = 4 << 30  # bytes of address space that one reading may ask for

Read = Callable[[Path], object]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of the file, within its folder.
        content: of a good one.
        read: reads it.
    """

    name: str
    content: bytes
    read: Read


# Mutations: from content to content

Mutate = Callable[[random.Random, bytes], bytes]
WORDS = (
    *(b"1e999", b"-1", b"0", b"NaN", b"Infinity", b"99999999999999999999", b"1" * 5000, b"null", b"true", b"[]", b"{}"),
    *(
        b'""',
        b"~",
        b"&a [*a]",
        b"\xff",
        b"\x00",
        b"\xe2\x80\xa8",
        b"\x85",
        b"\x0b",
        b"\r",
        b"\n",
        b",",
        b":",
        b"'",
        b"#",
    ),
    *(b"\\ud800", b"u\xcc\x88", b"../../x", b"!!python/name:os.system", b"[" * 3000, b"{a: " * 3000, b"- " * 3000),
    *(bytes(4), b"\xff" * 4, b"\xff\xff\xff\x7f", b"\xff" * 8, b"\x00\x00\x00\x00\x00\x00\x00\x80"),
)


def flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def remove(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.choice((1, 4, 16, 64)) :]


def repeat(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content))
    end = start + rng.choice((4, 16, 64, 256))
    return content[:end] + content[start:end] * rng.choice((1, 1, 30)) + content[end:]


def put(rng: random.Random, content: bytes) -> bytes:
    start, word = rng.randrange(len(content) + 1), rng.choice(WORDS)
    return content[:start] + word + content[start + rng.choice((0, len(word), 1)) :]


def replace_token(rng: random.Random, content: bytes) -> bytes:
    """Put a word in place of a whole number or name, so that what is around it stays in form."""
    letters = b"0123456789.eE+-abcdfghijklmnopqrstuvwxyz_ABCDFGHIJKLMNOPQRSTUVWXYZ\"'"
    start = end = rng.randrange(len(content))
    while start and content[start - 1] in letters:
        start -= 1
    while end < len(content) and content[end] in letters:
        end += 1
    return content[:start] + rng.choice(WORDS) + content[end:]


def nudge(rng: random.Random, content: bytes) -> bytes:
    """Put one digit or letter in place of another, so that the file mostly stays in form."""
    changed = bytearray(content)
    start = rng.randrange(len(content))
    for place in (*range(start, len(content)), *range(start)):
        for some in (b"0123456789", b"abcdefghijklmnopqrstuvwxyz"):
            if changed[place] in some:
                changed[place] = rng.choice(some)
                return bytes(changed)
    return content


def swap(rng: random.Random, content: bytes) -> bytes:
    a, b, c = sorted(rng.randrange(len(content) + 1) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


MUTATIONS: tuple[Mutate, ...] = (flip, cut, remove, repeat, put, nudge, nudge, replace_token, replace_token, swap)


# Kinds of files


def packed(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def features(path: Path) -> object:
    return [np.array(source.load()).sum() for source in sources_of(path, trusted=False).values()]


def signals(path: Path) -> object:
    windows = WindowsConfig(length_sec=0.5, stride_sec=0.25, features="statistics", rate_hz=8)
    return float(SignalSource((path,), SignalsConfig(), windows).load().sum())


def raw_files(folder: Path) -> Iterator[str]:
    """Write a good file of samples of each kind whose library is there; their names."""
    folder.mkdir()
    samples = np.random.default_rng(0).uniform(-1, 1, (64, 3)).astype(np.float32)
    stamps = [1_700_000_000_000 + 125 * i // 250 * 250 for i in range(64)]  # in twos
    rows = [
        ("timestamp", "x", "y", "label"),
        *((t, f"{x:.4f}", f"{y:.4f}", "a") for t, (x, y, _) in zip(stamps, samples, strict=True)),
    ]
    heads = [("scorer", *"nnnnnn"), ("bodyparts", *"aaabbb"), ("coords", *("x", "y", "likelihood") * 2)]
    poses = [(i, *(f"{value:.3f}" for value in (*row, *row))) for i, row in enumerate(np.abs(samples))]
    for name, content in (("stamps.csv", table(*rows)), ("poses.csv", table(*heads, *poses))):
        (folder / name).write_bytes(content)
        yield name
    np.save(folder / "whole.npy", (1000 * samples).astype(np.int16))
    yield "whole.npy"
    with h5py.File(folder / "sleap.h5", "w") as file:
        file["tracks"], file["node_names"] = samples[:, :2].reshape(1, 2, 1, 64), [b"nose"]
    yield "sleap.h5"
    with h5py.File(folder / "columns.h5", "w") as file:
        file["x"], file["time"] = samples[:, 0], np.arange(64) / 8
    yield "columns.h5"
    if find_spec("soundfile"):
        import soundfile

        for name in ("a.wav", "a.flac"):
            soundfile.write(folder / name, samples[:, 0], 8)
            yield name
    if find_spec("edfio"):
        import edfio

        edfio.Edf(
            [edfio.EdfSignal(x.astype(float), 8, label=name) for name, x in zip("xyz", samples.T, strict=True)]
        ).write(folder / "a.edf")
        edfio.Bdf(
            [edfio.BdfSignal(x.astype(float), 8, label=name) for name, x in zip("xyz", samples.T, strict=True)]
        ).write(folder / "a.bdf")
        yield from ("a.edf", "a.bdf")
    if find_spec("pyarrow"):
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"t": np.arange(64) / 8, "x": samples[:, 0]}), folder / "a.parquet")
        yield "a.parquet"


def hapt_archive() -> bytes:
    rng = np.random.default_rng(0)

    def write(buffer: io.BytesIO) -> None:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("exp01_user01", "exp02_user02"):
                for sensor in ("acc", "gyro"):
                    rows = "\n".join(" ".join(f"{x:.3f}" for x in row) for row in rng.standard_normal((60, 3)))
                    archive.writestr(f"RawData/{sensor}_{name}.txt", rows)
            archive.writestr("RawData/labels.txt", "1 1 1 1 50\n2 2 2 5 60\n")
            archive.writestr("activity_labels.txt", "1 WALKING\n2 SITTING\n")
            archive.writestr("Train/subject_id_train.txt", "1\n")
            archive.writestr("Test/subject_id_test.txt", "2\n")

    return packed(write)


def table(*rows: tuple[object, ...]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


RESULTS = {
    "v1": [{"label": "walk", "score": 0.9, "segment": [0.5, 9.25]}, {"label": 1, "score": 0.1, "segment": [2, 3]}]
}
TRUTH = {
    video: {
        "subset": subset,
        "duration": 30.0,
        "fps": 25,
        "annotations": [{"segment": ["1.0", 9.5], "label": "walk", "label_id": 0}],
    }
    for video, subset in (("v1", "training"), ("v2", "validation"))
}


def kinds(folder: Path) -> Iterator[Kind]:
    """Every kind, with the files in `folder` that a reading needs beside the one that is mutated."""
    rng = np.random.default_rng(0)
    array = rng.standard_normal((12, 5)).astype(np.float32)

    def file(name: str, content: object) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    npy = packed(lambda buffer: np.save(buffer, array))
    yield Kind("a.npy", npy, features)
    yield Kind("double.npy", packed(lambda buffer: np.save(buffer, array.astype(np.float64))), features)
    yield Kind("a.npz", packed(lambda buffer: np.savez(buffer, feats=array)), features)
    yield Kind("packed.npz", packed(lambda buffer: np.savez_compressed(buffer, feats=array)), features)
    yield Kind("a.pt", packed(lambda buffer: torch.save(torch.from_numpy(array), buffer)), features)
    yield Kind("a.csv", "\n".join(",".join(map(str, row)) for row in array.tolist()).encode(), features)
    for name, options in (("a.h5", {}), ("packed.h5", {"chunks": (4, 5), "compression": "gzip"})):
        with h5py.File(folder / name, "w") as opened:
            opened.create_dataset("v1", data=array, **options)
        yield Kind(name, (folder / name).read_bytes(), features)

    for name in raw_files(folder / "raw"):
        yield Kind(f"raw/{name}", (folder / "raw" / name).read_bytes(), signals)

    def plain(options: Mapping[str, Any]) -> Read:
        def read(path: Path) -> object:
            settings = {"layout": "plain", "root": path.parent, "grid": {"fps": 2}, **options}
            return read_listing(FolderData.model_validate(settings)).open()

        return read

    for name in ("v1", "v2", "v3"):
        file(f"plain/features/{name}.npy", npy)
    tables = {
        "points.csv": table(("recording", "label", "time_sec"), ("v1", "walk", 1.5), ("v2", "run", 2)),
        "instances.csv": table(
            ("recording", "label", "start_sec", "end_sec"), ("v1", "walk", 1, 2), ("v2", "run", 2, 4)
        ),
        "recordings.csv": table(
            ("recording", "subset", "features"), ("v1", "train", ""), ("v2", "train", "features/v1.npy")
        ),
    }
    for name, content in tables.items():
        file(f"plain/{name}", content)
        yield Kind(f"plain/{name}", content, plain({}))

    def layout(name: str, root: Path) -> Read:
        return lambda _: read_listing(FolderData(layout=name, root=root)).open()  # type: ignore[arg-type]

    truth = json.dumps({"database": TRUTH}).encode()
    lacp = folder / "lacp"
    for subset, video in (("train", "v1"), ("test", "v2")):
        file(f"lacp/split_{subset}.txt", f"{video}\n".encode())
        for stream in ("rgb", "flow"):
            file(f"lacp/features/{subset}/{stream}/{video}.npy", packed(lambda b: np.save(b, np.zeros((50, 2), "f4"))))
    points = table(("class", "video_id", "point"), ("walk", "v1", 100), ("walk", "v1", 200))
    for name, content in (
        ("gt.json", truth),
        ("fps_dict.json", b'{"v1": 25, "v2": 30.0}'),
        ("point_labels.csv", points),
        ("split_train.txt", b"v1\n"),
    ):
        file(f"lacp/{name}", content)
        yield Kind(f"lacp/{name}", content, layout("lacp", lacp))
    yield Kind("hapt.zip", hapt_archive(), lambda path: layout("hapt", path)(path))

    found, known = file("found.json", {"results": RESULTS}), file("truth.json", truth)
    yield Kind("found.json", found.read_bytes(), lambda path: evaluate(path, known))
    yield Kind("truth.json", truth, lambda path: evaluate(found, path))
    labels = {"results": {"v1": [{**entry, "point": 1.5} for entry in RESULTS["v1"]]}}
    yield Kind("labels.json", json.dumps(labels).encode(), read_pseudo_labels)
    yield Kind("detections.json", found.read_bytes(), read_detections)
    yield Kind("any.json", truth, read_json)
    rates = file("fps.json", {"v1": 25})
    yield Kind("thumos.csv", points, lambda path: read_points(path, rates))
    yield Kind("ambiguous.txt", b"v1 0.5 3\nv2 1 2.5\n", read_ambiguous)
    yield Kind(
        "config.yaml", b"preset: own\nseed: 1\ndata: {root: x, grid: {fps: 2}}\ntrain: &t {epochs: 7}\n", load_config
    )

    config = parse_config(small_config(), "small")
    dataset = Dataset("small", ("run", "walk"), (Recording("v1", array, Grid(2, 1, 1), "train"),))
    run = Run.create(folder / "run", config, dataset)
    run.save("potloc", run.build("potloc"))
    load: Read = lambda _: Run.open(folder / "run").load("potloc")  # noqa: E731
    for name in ("config.yaml", "dataset.json", "potloc/model.safetensors"):
        yield Kind(f"run/{name}", (folder / "run" / name).read_bytes(), load)
    hits = dict.fromkeys(Hits.__dataclass_fields__, 1)
    figures = {"min_score": 0.5, "held_out": False, "hits": hits, "per_class": {"run": hits}, "agreement": 0.5}
    figures |= {"boundary_sec": None, "label_tiou": 0.5, "curve": [[0.5, hits]]}
    told = file("run/potloc/quality.json", figures)
    yield Kind("run/potloc/quality.json", told.read_bytes(), lambda _: read_quality(run))
    save_released(BaseModel(5, 2, 4), folder / "base.pkl")
    yield Kind("base.pkl", (folder / "base.pkl").read_bytes(), lambda path: load_released(path, "base"))


def small_config() -> dict[str, Any]:
    model = {"width": 8, "heads": 2, "levels": 1, "stem": 1, "mlp_ratio": 1, "window": 3}
    return Config.model_validate({"data": {"layout": "synthetic"}, "model": model}).model_dump(mode="json")


# The bounds


@contextmanager
def bounded() -> Iterator[None]:
    """End what runs too long or asks for too much address space."""

    def stop(*_: object) -> None:
        raise TimeoutError

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    limits = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, WAITING))
    handlers = [signal.signal(number, stop) for number, _, _ in limits]
    for _, timer, seconds in limits:
        signal.setitimer(timer, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)
        for (number, timer, _), handler in zip(limits, handlers, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def memory() -> int:
    """The most memory that the process ever had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def judge(kind: Kind, path: Path) -> tuple[str, str]:
    """Read a file: "read", "refused" or "fault", and what was wrong in the last case."""
    before, begin, outcome, fault = memory(), time.process_time(), "read", ""
    try:
        with bounded(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read(path)
    except InputError as error:
        outcome, message = "refused", str(error)
        if len(message) > LONGEST or not message.isprintable():
            fault = f"message {message!r}"
    except BaseException as error:
        fault = f"{type(error).__name__}: {error}"
    if time.process_time() - begin > SECONDS:
        fault = f"more than {SECONDS} s"
    if memory() - before > GROWTH:
        fault = f"{memory() - before} MiB"
    return ("fault", fault) if fault else (outcome, "")


def mutate_all(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Mutate `count` files, each kind as often as the others: how often what happened, and a line for each fault."""
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    faults = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = list(kinds(folder))
        for kind in known:  # the good ones are read, so that what follows tests more than their first line
            (folder / kind.name).write_bytes(kind.content)
            outcome, fault = judge(kind, folder / kind.name)
            assert outcome == "read", (kind.name, outcome, fault)
        for number in range(count):
            kind = known[number % len(known)]
            content = kind.content
            steps = [rng.choice(MUTATIONS) for _ in range(rng.choice((1, 1, 1, 2, 4)))]
            for step in steps:
                content = step(rng, content) or b"\0"
            path = folder / kind.name
            path.write_bytes(content)
            outcome, fault = judge(kind, path)
            path.write_bytes(kind.content)
            outcomes[outcome] += 1
            if fault:
                faults.append(f"{kind.name}, seed {seed}, file {number}, {[s.__name__ for s in steps]}: {fault}")
    return outcomes, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000, help="how many files")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    outcomes, faults = mutate_all(arguments.count, arguments.seed)
    print(*faults, sep="\n", file=sys.stderr)
    print(
        f"files: {outcomes.total()} mutated, {outcomes['read']} read, {outcomes['refused']} refused in a sentence, "
        f"{outcomes['fault']} faults, {time.perf_counter() - begin:.0f} s"
    )
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
