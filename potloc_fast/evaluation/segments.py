"""Labelled segments in columns, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potloc_fast.data.annotations import Database, label_text, parse_database, read_database, read_events, subset_text
from potloc_fast.data.recording import Tidy
from potloc_fast.errors import InputError, quote, shorten
from potloc_fast.files import read_lines, without_collection, write_json_parts
from potloc_fast.formats import Events, Source, format_for, write
from potloc_fast.names import by_name
from potloc_fast.notebook import html_table
from potloc_fast.numbers import to_number

SHOWN = 20  # segments in a notebook
PART = 2**14  # segments that are written together
VERSION = "VERSION 1.3"  # of the ActivityNet form


@dataclass(frozen=True, eq=False)
class Segments:
    """Labelled segments of many videos: detections, proposals or ground truth, a column each.

    Attributes:
        videos: names of the videos, in file order; a video without segments may be among them.
        labels: names of the classes, in the order in which they first appear.
        video: int64[N], index into `videos`.
        label: int64[N], index into `labels`.
        start_sec: float64[N], in seconds (or whatever unit the file uses throughout).
        end_sec: float64[N], never before `start_sec`.
        score: float64[N], ones for ground truth.
        notes: a sentence for each thing that was left out when they were read.
    """

    videos: tuple[str, ...]
    labels: tuple[str, ...]
    video: NDArray[np.int64]
    label: NDArray[np.int64]
    start_sec: NDArray[np.float64]
    end_sec: NDArray[np.float64]
    score: NDArray[np.float64]
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        shapes = {column.shape for column in (self.video, self.label, self.start_sec, self.end_sec, self.score)}
        if shapes != {(len(self),)}:
            raise ValueError(f"Segments: expected columns of one length, got shapes {sorted(shapes)}")

    def __len__(self) -> int:
        return len(self.video)

    def _repr_html_(self) -> str:
        """Show the best of them in a notebook."""
        best = np.argsort(-self.score, kind="stable")[:SHOWN]
        columns = (self.video[best], self.label[best], self.start_sec[best], self.end_sec[best], self.score[best])
        rows = (
            (self.videos[video], self.labels[label], f"{start:.2f}", f"{end:.2f}", f"{score:.3f}")
            for video, label, start, end, score in zip(*(column.tolist() for column in columns), strict=True)
        )
        caption = f"{len(self)} segments in {len(self.videos)} recordings" + (", the best" if len(self) > SHOWN else "")
        return html_table(caption, ("recording", "label", "start (s)", "end (s)", "score"), rows)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Segments:
        """Give the segments of these rows, numbers or a mask, with the same `videos` and `labels`."""
        return replace(
            self,
            video=self.video[rows],
            label=self.label[rows],
            start_sec=self.start_sec[rows],
            end_sec=self.end_sec[rows],
            score=self.score[rows],
        )

    def scored(self, least: float | None) -> Segments:
        """Give the segments with this score or more; None gives all."""
        return self if least is None else self.take(self.score >= least)

    @classmethod
    def from_results(cls, value: Any, source: str | Path = "detections") -> Segments:
        """Take detections from the ActivityNet form.

        Args:
            value: `{"results": {video: [{"label", "score", "segment": [start, end]}]}}`; other keys are ignored. Labels
                may be numbers.
            source: the name that error messages give to `value`.

        Returns:
            The segments in the order of `value`.

        Raises:
            InputError: `value` has another form, a number is not finite, or a segment ends before it starts.

        Example:
            >>> entry = {"label": "Diving", "score": 0.5, "segment": [1.0, 2.5]}
            >>> segments = Segments.from_results({"results": {"v1": [entry]}})
            >>> segments.labels, segments.end_sec.tolist()
            (('Diving',), [2.5])
        """
        return _parse(_section(value, "results", source), f"{source}: results", scored=True)

    @classmethod
    def from_ground_truth(cls, value: Any, subset: str | None = None, source: str | Path = "ground truth") -> Segments:
        """Take ground truth from the ActivityNet form.

        Args:
            value: a database of videos, see `parse_database`. What `Tidy` takes out is counted in `notes`.
            subset: keep only the videos of this subset, whatever its case; None keeps all.
            source: the name that error messages give to `value`.

        Returns:
            The annotated instances in the order of `value`, each with score 1.

        Raises:
            InputError: `value` has another form, no video is in `subset`, a number is not finite, or a segment
                ends before it starts.
        """
        return cls.from_database(parse_database(value, source), subset)

    @classmethod
    def from_database(cls, database: Database, subset: str | None = None) -> Segments:
        """Take ground truth from a database that was read; the rest as in `from_ground_truth`."""
        videos, source = database.videos, database.path
        if subset is not None:
            wanted = subset_text(subset)
            videos = {name: video for name, video in videos.items() if video.subset == wanted}
            if not videos:
                known = ", ".join(sorted({video.subset for video in database.videos.values()})) or "(none)"
                raise InputError(f"{source}: expected one of the subsets {shorten(known)}, got {quote(subset)}")
        tidy = Tidy(source)
        rows = [
            (i, item) for i, (name, own) in enumerate(videos.items()) for item in tidy.instances(name, own.instances)
        ]
        names = list(videos)
        for video, item in rows:
            if not -inf < item.start_sec < item.end_sec < inf:
                raise InputError(
                    f"{source}: database[{quote(names[video])}]: expected instances that end after they start, got "
                    f"[{item.start_sec:g}, {item.end_sec:g}] of {quote(item.label)}"
                )
        labels = {label: i for i, label in enumerate(dict.fromkeys(item.label for _, item in rows))}
        return cls(
            videos=tuple(names),
            labels=tuple(labels),
            video=np.array([video for video, _ in rows], dtype=np.int64),
            label=np.array([labels[item.label] for _, item in rows], dtype=np.int64),
            start_sec=np.array([item.start_sec for _, item in rows], dtype=np.float64),
            end_sec=np.array([item.end_sec for _, item in rows], dtype=np.float64),
            score=np.ones(len(rows)),
            notes=tuple(finding.message for finding in tidy.findings),
        )

    @classmethod
    def from_events(cls, events: Events) -> Segments:
        """Take detections from the file of an annotation tool; points are segments without a length."""
        videos = {name: i for i, name in enumerate(events.recordings)}
        labels = {name: i for i, name in enumerate(dict.fromkeys(events.label))}
        return cls(
            videos=tuple(videos),
            labels=tuple(labels),
            video=np.fromiter(map(videos.__getitem__, events.recording), np.int64, len(events)),
            label=np.fromiter(map(labels.__getitem__, events.label), np.int64, len(events)),
            start_sec=np.array(events.start_sec, dtype=np.float64),
            end_sec=np.array(events.end_sec, dtype=np.float64),
            score=np.array(events.score, dtype=np.float64),
            notes=tuple(events.notes),
        )

    def to_events(self, source: str | Path = "segments") -> Events:
        """Give the segments as the files of annotation tools are written from; `source` names them in errors."""
        return Events(
            path=Path(source),
            recordings=dict.fromkeys(self.videos),
            recording=[self.videos[video] for video in self.video.tolist()],
            label=[self.labels[label] for label in self.label.tolist()],
            start_sec=self.start_sec.tolist(),
            end_sec=self.end_sec.tolist(),
            score=self.score.tolist(),
            notes=list(self.notes),
        )

    def to_results(self) -> dict[str, Any]:
        """Give the segments in the ActivityNet form, which `from_results` reads back without loss."""
        results = {video: self._entries(rows) for video, rows in self._by_video()}
        return {"version": VERSION, "external_data": {}, "results": results}

    def to_json(self) -> Iterator[str]:
        """Give `to_results` as JSON, in parts: millions of segments are never objects all at once.

        Raises:
            ValueError: a number is not finite.
        """
        yield json.dumps({"version": VERSION, "external_data": {}, "results": {}})[:-2]
        for number, (video, rows) in enumerate(self._by_video()):
            yield f"{', ' if number else ''}{json.dumps(video)}: ["
            for first in range(0, len(rows), PART):
                entries = self._entries(rows[first : first + PART])
                yield (", " if first else "") + json.dumps(entries, allow_nan=False)[1:-1]
            yield "]"
        yield "}}\n"

    def _by_video(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """The rows of each recording."""
        order = self.video.argsort(kind="stable")
        bounds = self.video[order].searchsorted(np.arange(len(self.videos) + 1))
        for video, (first, last) in zip(self.videos, pairwise(bounds), strict=True):
            yield video, order[first:last]

    def _entries(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        columns = (self.label, self.score, self.start_sec, self.end_sec)
        return [
            {"label": self.labels[label], "score": score, "segment": [start, end]}
            for label, score, start, end in zip(*(column[rows].tolist() for column in columns), strict=True)
        ]


@without_collection()
def read_detections(path: str | Path) -> Segments:
    """Read detections or proposals from a JSON file, see `Segments.from_results`; or from what `read_events` takes."""
    source = Source(path)
    events = read_events(source)
    return Segments.from_results(source.json, path) if events is None else Segments.from_events(events)


def write_detections(path: str | Path, segments: Segments) -> Path:
    """Write detections or proposals.

    Args:
        path: a file. Its suffix is one that `formats` knows, such as .csv, .boris, .eaf or .TextGrid; with any other it
            is JSON in the ActivityNet form.
        segments: what to write.

    Returns:
        The file; or the folder of files, where the format holds one recording a file and there are several.
    """
    path = Path(path)
    if format_for(path) is not None:
        return write(path, segments.to_events(path))
    write_json_parts(path, segments.to_json())
    return path


@without_collection()
def read_ground_truth(path: str | Path, subset: str | None = None) -> Segments:
    """Read ground truth from a JSON file, see `Segments.from_ground_truth`; or from what `read_events` takes."""
    return Segments.from_database(read_database(path), subset)


def read_ambiguous(path: str | Path) -> Segments:
    """Read the ambiguous regions of a data set, in the layout of THUMOS'14's `Ambiguous_test.txt`.

    Args:
        path: a text file with a line `video start end` for each region, in seconds, separated by any white space.

    Returns:
        The regions, all with the label "Ambiguous".

    Raises:
        InputError: the file can't be read, or a line has another form.
    """
    regions: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line:
            continue
        try:
            video, start, end = line.split()
            region = {"label": "Ambiguous", "segment": (to_number(start), to_number(end))}
        except ValueError:
            raise InputError(f"{path}: line {number}: expected 'video start end', got {quote(line)}") from None
        regions.setdefault(video, []).append(region)
    return _parse(regions, f"{path}: regions", scored=False)


def renumber(names: Sequence[str], index: Mapping[str, int]) -> NDArray[np.int64]:
    """Give the number of each name in `index`, -1 where it is unknown."""
    return np.array([index.get(name, -1) for name in names], dtype=np.int64)


def _section(value: Any, key: str, source: str | Path) -> Mapping[str, Any]:
    section = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(section, Mapping):
        raise InputError(f"{source}: expected an object with {key!r}, one entry a video, got {quote(value)}")
    return section


def _parse(groups: Mapping[str, Any], where: str, scored: bool) -> Segments:
    """Turn the entries of each video into columns; `where` names the groups in error messages."""
    groups = by_name(groups.items(), where)
    for name, entries in groups.items():
        if not isinstance(entries, list):
            raise InputError(f"{where}[{quote(name)}]: expected a list, got {quote(entries)}")
    try:
        labels, label, start, end, score = _columns(list(chain.from_iterable(groups.values())), scored)
    except _MALFORMED:
        expected = f"a label{', a score' if scored else ''} and a segment [start, end], start <= end, all finite"
        for name, number, entry in ((n, i, entry) for n, entries in groups.items() for i, entry in enumerate(entries)):
            try:
                _columns([entry], scored)
            except _MALFORMED:
                raise InputError(f"{where}[{quote(name)}][{number}]: expected {expected}, got {quote(entry)}") from None
        raise
    video = np.repeat(np.arange(len(groups)), [len(entries) for entries in groups.values()])
    return Segments(tuple(groups), labels, video, label, start, end, score)


_MALFORMED = (KeyError, TypeError, ValueError, OverflowError)


def _numbers(values: list[Any]) -> NDArray[np.float64]:
    if {*map(type, values)} <= {float, int}:
        return np.array(values, dtype=np.float64)
    return np.fromiter(map(to_number, values), np.float64, len(values))


def _columns(
    entries: list[Any], scored: bool
) -> tuple[tuple[str, ...], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Give the labels and the columns label, start, end and score; raises one of `_MALFORMED` if an entry is."""
    size = len(entries)
    texts = [entry["label"] for entry in entries]
    names = {text: label_text(text) for text in dict.fromkeys(texts)}
    labels = {name: index for index, name in enumerate(dict.fromkeys(names.values()))}
    numbers = {text: labels[name] for text, name in names.items()}
    spans = [entry["segment"] for entry in entries]
    times = _numbers(list(chain.from_iterable(spans)))
    score = _numbers([entry["score"] for entry in entries]) if scored else np.ones(size)
    if not {*map(len, spans)} <= {2} or any(issubclass(kind, str | Mapping) for kind in {*map(type, spans)}):
        raise ValueError  # text and mappings have parts as well
    start, end = times.reshape(size, 2).T.copy()
    if not (np.isfinite(times).all() and np.isfinite(score).all() and (start <= end).all()):
        raise ValueError
    return tuple(labels), np.fromiter(map(numbers.__getitem__, texts), np.int64, size), start, end, score
