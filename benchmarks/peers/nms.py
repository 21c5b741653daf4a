"""Non-maximum suppression as others do it, written from the description of each.

- NumPy: the usual loop, vectorised over what is left, for hard and for Gaussian soft suppression (Bodla et al. 2017).
- C++: the single-thread O(N^2) algorithm of ActionFormer's `nms_1d_cpu`, see `nms.cpp`, compiled on the spot.

tIoU is computed in float64 everywhere, so that all decide alike.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Unavailable

Array = NDArray[Any]


def numpy_nms(segments: Array, scores: Array, threshold: float) -> Array:
    """Keep the best, drop what overlaps it, and so on; indices by descending score."""
    left = np.argsort(-scores, kind="stable")
    start, end = segments[left].astype(np.float64).T
    keep = []
    while len(left):
        keep.append(left[0])
        apart = _tiou(start, end, start[0], end[0]) < threshold
        apart[0] = False
        left, start, end = left[apart], start[apart], end[apart]
    return np.array(keep, dtype=np.int64)


def numpy_soft_nms(segments: Array, scores: Array, sigma: float, min_score: float) -> tuple[Array, Array]:
    """Keep the best, lower the scores of the others by exp(-tIoU^2 / sigma), drop what falls under the least score."""
    start, end = segments.astype(np.float64).T
    lowered = scores.astype(np.float64)
    left = np.arange(len(scores))
    keep, kept_scores = [], []
    while True:
        alive = lowered >= min_score
        left, start, end, lowered = left[alive], start[alive], end[alive], lowered[alive]
        if not len(left):
            return np.array(keep, dtype=np.int64), np.array(kept_scores, dtype=scores.dtype)
        best = int(lowered.argmax())
        keep.append(left[best])
        kept_scores.append(lowered[best])
        lowered = lowered * np.exp(-(_tiou(start, end, start[best], end[best]) ** 2) / sigma)
        lowered[best] = -1


def numpy_batched_nms(segments: Array, scores: Array, groups: Array, threshold: float) -> Array:
    """`numpy_nms` in one group after the other, by ascending group."""
    members, begin = _grouped(groups)
    parts = np.split(members, begin[1:-1])
    return np.concatenate([part[numpy_nms(segments[part], scores[part], threshold)] for part in parts])


def cpp_nms(segments: Array, scores: Array, threshold: float) -> Array:
    """ActionFormer's double loop; indices by descending score."""
    keep = np.empty(len(scores), dtype=np.int64)
    members = np.arange(len(scores))
    found = _library().nms_1d(*_at(segments, scores, members), len(scores), ctypes.c_double(threshold), *_at(keep))
    return keep[:found]


def cpp_soft_nms(segments: Array, scores: Array, sigma: float, min_score: float) -> tuple[Array, Array]:
    """ActionFormer's soft suppression, Gaussian."""
    keep, lowered = np.empty(len(scores), dtype=np.int64), np.empty(len(scores), dtype=np.float32)
    numbers = (len(scores), ctypes.c_double(sigma), ctypes.c_double(min_score))
    members = np.arange(len(scores))
    found = _library().soft_nms_1d(*_at(segments, scores, members), *numbers, *_at(keep, lowered))
    return keep[:found], lowered[:found]


def cpp_batched_nms(segments: Array, scores: Array, groups: Array, threshold: float) -> Array:
    """ActionFormer's double loop in one group after the other, grouped by a stable sort."""
    keep = np.empty(len(scores), dtype=np.int64)
    members, begin = _grouped(groups)
    numbers = (len(begin) - 1, ctypes.c_double(threshold))
    found = _library().batched_nms_1d(*_at(segments, scores, members, begin), *numbers, *_at(keep))
    return keep[:found]


def _tiou(start: Array, end: Array, from_: float, to: float) -> Array:
    intersection = np.maximum(np.minimum(end, to) - np.maximum(start, from_), 0)
    return intersection / (end - start + (to - from_) - intersection)


def _grouped(groups: Array) -> tuple[Array, Array]:
    """The indices by group, and where each group begins in them."""
    members = np.argsort(groups, kind="stable")
    changes = np.flatnonzero(np.diff(groups[members])) + 1
    return members, np.concatenate([[0], changes, [len(groups)]])


def _at(*arrays: Array) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(array.ctypes.data) for array in arrays]


@cache
def _library() -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise Unavailable("no C++ compiler on the path")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "nms.so"
        source = Path(__file__).with_suffix(".cpp")
        flags = ["-O3", "-march=native", "-ffp-contract=off", "-std=c++17", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
        found = ctypes.CDLL(str(library))
    for function in (found.nms_1d, found.soft_nms_1d, found.batched_nms_1d):
        function.restype = ctypes.c_int64
    return found
