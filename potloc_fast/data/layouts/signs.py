"""What tells one layout from another."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

Signs: TypeAlias = tuple[tuple[str, ...], ...]
"""What a layout can't be without: for each sign the patterns of paths in its folder, of which one is enough."""


def look_for(signs: Signs, root: Path) -> tuple[list[str], list[str]]:
    """Look for the signs of a layout.

    Returns:
        found, missing: for each sign that is there a path in the folder, for each other one the patterns.
    """
    found, missing = [], []
    for patterns in signs:
        paths = (path for pattern in patterns if (path := min(root.glob(pattern), default=None)) is not None)
        path = next(paths, None)
        if path is None:
            missing.append(" or ".join(patterns))
        else:
            found.append(str(path.relative_to(root)))
    return found, missing


def recognize(signs: Signs, root: Path) -> str | None:
    """Say what of a layout is there, if all of its signs are."""
    found, missing = look_for(signs, root)
    return None if missing else " and ".join(found)
