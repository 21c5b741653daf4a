"""Detection in a Ray cluster: a class for Ray Data's `map_batches`. Ray itself is imported by those who use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potloc_fast.detector import Detector
from potloc_fast.engine.predict import sources_in

COLUMNS = {
    "path": np.str_,
    "recording": np.str_,
    "label": np.str_,
    "start_sec": float,
    "end_sec": float,
    "score": float,
}


class Predictor:
    """Detects in batches of recordings; each worker loads the model once.

    Args:
        run: the folder of a run, or of an exported model, which all nodes see.
        options: what `Detector.load` takes.

    Example:
        >>> found = paths.map_batches(Predictor, fn_constructor_args=["/shared/run"], concurrency=2)  # doctest: +SKIP
    """

    def __init__(self, run: str | Path, **options: Any) -> None:
        self._detector = Detector.load(run, **options)

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Detect in some recordings.

        Args:
            batch: in the column `path` a file a row, of the kind that `potloc_fast.predict` takes.

        Returns:
            A row for each detection: `path`, then the fields of `Detection`.

        Raises:
            InputError: a file can't be used.
        """
        sources = [
            (path, name, source)
            for path in map(str, batch["path"])
            for name, source in sources_in(self._detector, [Path(path)])
        ]
        found = self._detector.batch(
            [self._detector.recording(name, source.load(), path) for path, name, source in sources]
        )
        rows = [(path, *detection) for (path, *_), own in zip(sources, found, strict=True) for detection in own]
        columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
        return {name: np.array(column, kind) for (name, kind), column in zip(COLUMNS.items(), columns, strict=True)}
