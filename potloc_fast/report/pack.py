"""Arrays as text in a page, and curves in levels of detail."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 8  # bytes: typed arrays in a browser begin at multiples of their item size
COARSER = 4  # values of a level that the next one has the smallest and the largest of
COARSEST = 256  # values of a level that needs no coarser one


def pack(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Compress facts and arrays into base64, which static/unpack.js reads.

    Unpacked it is the length of the head (uint32, little-endian), the head (JSON: `facts`, and of each array its type
    and length), and the arrays one after the other, each at a multiple of eight bytes.

    Args:
        facts: what JSON can hold.
        arrays: of one dimension, and of the types uint8, uint16, int32, float32 or float64.
    """
    described = {name: [array.dtype.name, len(array)] for name, array in arrays.items()}
    head = json.dumps({"facts": facts, "arrays": described}).encode()
    parts = [len(head).to_bytes(4, "little"), head, bytes(-(4 + len(head)) % ALIGNMENT)]
    for array in arrays.values():
        content = array.astype(array.dtype.newbyteorder("<")).tobytes()
        parts += [content, bytes(-len(content) % ALIGNMENT)]
    return base64.b64encode(gzip.compress(b"".join(parts), mtime=0)).decode()


def quantize(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Give values between two bounds as steps of 1/255 between them: uint8 of the same shape."""
    steps = (np.asarray(values, np.float64) - low) * (255 / max(high - low, 1e-12))
    return np.clip(np.rint(steps), 0, 255).astype(np.uint8)


def levels_of_detail(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A curve for every zoom: its values, then of each four neighbours the smallest and the largest, of these again.

    So what is drawn of a long curve costs as much as what is drawn of a short one, and no peak is lost.

    Args:
        values: uint8[T].

    Returns:
        The values, then for each coarser level all smallest and then all largest ones, until a level has no more than
        `COARSEST`. Level k has ceil(T / 4**k).
    """
    parts, low, high = [values], values, values
    while len(low) > COARSEST:
        missing = -len(low) % COARSER
        low = np.pad(low, (0, missing), mode="edge").reshape(-1, COARSER).min(axis=1)
        high = np.pad(high, (0, missing), mode="edge").reshape(-1, COARSER).max(axis=1)
        parts += [low, high]
    return np.concatenate(parts)
