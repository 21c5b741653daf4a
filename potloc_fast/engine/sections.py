"""Recordings of any length, and streams without an end: passes of the model that overlap, and sections of scores.

What a model says of a snippet depends on the snippets within its reach alone. So a long recording is scored in passes
that overlap by the reach: every score is that of one pass over the whole. On the CPU it is so bit for bit as long as
matrix products compute a row alike whatever the number of rows. Torch's do so from some dozen rows on; on one thread,
its convolutions do so from 20,481 values on. So no pass has fewer than `LEAST` snippets, unless it is the only one.

Which classes are looked for, and which proposals suppress which, depends on a whole recording, which a stream never is.
So beyond `1.5 * section` snippets detections are made in sections: each is looked at with half a section before and
after it, and keeps the detections whose centre lies in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potloc_fast.models.pyramid import Pyramid

SECTION = 2**15  # snippets of a section, unless another size is asked for
PASS = 2**13  # snippets that a pass adds to the scores
LEAST = 2**9  # snippets of a pass, enough values from 41 channels on; the coarsest level has at least 16

Score = Callable[[Tensor, Tensor], Pyramid]  # features `[1, T, F]` and their mask


@dataclass(frozen=True)
class Section:
    """Scores of a section and of what lies around it.

    Attributes:
        first: the snippet at which the scores begin.
        pyramid: scores of one "recording", which begins there.
        start: the detections whose centre lies in [start, end), on the grid of the whole recording, are the section's.
        end: see `start`.
    """

    first: int
    pyramid: Pyramid
    start: float
    end: float


Levels = list[tuple[Tensor, ...]]  # of each level the logits, the mask and, where there are some, the distances


class Sections:
    """Cuts a recording that comes in parts into sections with their scores.

    However the parts are cut, passes and sections are the same. Memory depends on the size of a section alone.

    Args:
        score: the model.
        levels: number of its down-sampling blocks.
        reach: snippets to either side that a score depends on.
        section: snippets of a section at least; it is rounded up so that passes and levels divide it.
        padded: the length to which a recording of some length is padded, if it is.

    Attributes:
        section: snippets of a section.
        latency: a section is complete once so many snippets have come from its start on.
    """

    def __init__(
        self, score: Score, levels: int, reach: int, section: int, padded: Callable[[int], int] | None = None
    ) -> None:
        self._score, self._padded, self._reach, self._unit = score, padded, reach, 2**levels
        half = -(-section // 2)
        self._pass = _up(min(PASS, half), self._unit)
        self._least = max(LEAST, 16 * self._unit)
        self._half = _up(half, self._pass)
        self.section = 2 * self._half
        self.latency = 3 * self._half + reach
        self._parts: list[NDArray[np.float32]] = []  # the features that passes may still need ...
        self._parts_from = 0  # ... from this snippet on
        self._known = 0  # snippets that have come
        self._scored = 0  # and those that have their scores
        self._scores: list[Levels] = []  # of each pass ...
        self._scores_from = 0  # ... from this snippet on
        self._start = 0  # of the next section

    def push(self, features: NDArray[np.float32]) -> Iterator[Section]:
        """Take the next snippets, `[n, F]`, and give the sections that are complete with them."""
        for first in range(0, len(features), PASS):
            self._parts.append(features[first : first + PASS])
            self._known += len(self._parts[-1])
            while self._known >= self._scored + self._pass + self._reach:
                self._score_to(self._scored + self._pass)
                yield from self._complete()

    def close(self) -> Iterator[Section]:
        """Give the sections that are left: no snippets come any more."""
        if self._scored < self._known:
            self._score_to(None)
            yield from self._complete()
        if self._known:
            yield self._cut(None)

    def _complete(self) -> Iterator[Section]:
        while self._scored >= self._start + 3 * self._half:
            yield self._cut(self._start + self.section)

    def _score_to(self, end: int | None) -> None:
        """Score the snippets up to `end`, or all that there are."""
        last = self._known if end is None else end + self._reach
        # From one that all levels have.
        first = max(0, min(self._scored - self._reach, last - self._least)) // self._unit * self._unit
        known = np.concatenate(self._parts)
        features = known[first - self._parts_from : last - self._parts_from]
        count, padding = len(features), 0
        if end is not None:
            padding = max(0, self._least - count)  # is beyond the reach of what is taken
        elif self._padded is not None:
            padding = self._padded(self._known) - self._known
        features = np.pad(features, ((0, padding), (0, 0)))
        pyramid = self._score(torch.from_numpy(features)[None], torch.arange(len(features))[None] < count)
        self._scores.append(_take(_split(pyramid), self._scored - first, None if end is None else end - first))
        self._scored = last if end is None else end
        # What later passes read.
        kept = max(0, self._scored - max(self._reach, self._least)) // self._unit * self._unit
        self._parts, self._parts_from = [known[kept - self._parts_from :].copy()], kept

    def _cut(self, end: int | None) -> Section:
        """The section that ends at a snippet, or the last one."""
        first = max(0, self._start - self._half)
        last = None if end is None else end + self._half - self._scores_from
        scores = _joined(self._scores)
        section = Section(
            first,
            _pyramid(_take(scores, first - self._scores_from, last)),
            -inf if self._start == 0 else self._start,
            inf if end is None else end,
        )
        if end is not None:
            kept = end - self._half
            self._scores, self._scores_from = [_take(scores, kept - self._scores_from, None)], kept
            self._start = end
        return section


def _up(snippets: int, multiple: int) -> int:
    return -(-snippets // multiple) * multiple


def _split(pyramid: Pyramid) -> Levels:
    tensors = (pyramid.logits, pyramid.mask, *(() if pyramid.distances is None else (pyramid.distances,)))
    parts = (torch.split(tensor, list(pyramid.level_lengths), dim=1) for tensor in tensors)
    return list(zip(*parts, strict=True))


def _take(levels: Levels, first: int, end: int | None) -> Levels:
    """The snippets [first, end) of level 0, multiples of all strides, and what belongs to them on the other levels."""
    return [
        tuple(tensor[:, first >> level : None if end is None else end >> level] for tensor in own)
        for level, own in enumerate(levels)
    ]


def _joined(passes: list[Levels]) -> Levels:
    return [tuple(torch.cat(parts, dim=1) for parts in zip(*own, strict=True)) for own in zip(*passes, strict=True)]


def _pyramid(levels: Levels) -> Pyramid:
    logits, mask, *distances = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
    return Pyramid(logits, mask, tuple(own[0].shape[1] for own in levels), distances[0] if distances else None)
