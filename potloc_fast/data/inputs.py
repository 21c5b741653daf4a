"""What a trained run is given to detect in: files of features, or raw recordings that it makes snippets of itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

from potloc_fast.config.schema import FolderData, SyntheticData
from potloc_fast.data.listing import Source
from potloc_fast.data.signals.readers import FORMATS
from potloc_fast.data.signals.source import SignalSource, group_files
from potloc_fast.data.sources import sources_of
from potloc_fast.errors import InputError, quote


def makes_snippets(data: FolderData | SyntheticData) -> TypeGuard[FolderData]:
    """Whether a run, whose section `data` this is, was trained on raw recordings and makes their snippets itself."""
    return isinstance(data, FolderData) and data.windows.resolved


def inputs_of(
    data: FolderData | SyntheticData, paths: Sequence[Path], *, trusted: bool = False
) -> list[tuple[str, Source]]:
    """The recordings in files, of the kind that a run was trained on.

    Args:
        data: section `data` of the run's configuration. Where its windows are set, files are raw recordings, of which
            several are one where there are several sensors; else they hold features.
        paths: the files.
        trusted: whether pickled features may be loaded, which can run any code.

    Returns:
        The name of each recording, and what gives the features of its snippets.

    Raises:
        InputError: a format is not known, a file can't be read, or the file of a sensor is missing.
    """
    if not makes_snippets(data):
        return [found for path in paths for found in sources_of(path, trusted=trusted).items()]
    for path in paths:
        if path.suffix.lower() not in FORMATS:
            raise InputError(
                f"{path}: expected a raw recording, one of {', '.join(FORMATS)}, as the run was trained on such, got "
                f"{quote(path.suffix)}"
            )
    groups = group_files(paths, data.signals.sensors, paths[0] if paths else "")
    return [(name, SignalSource(files, data.signals, data.windows)) for name, files in groups.items()]
