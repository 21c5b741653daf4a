"""What tells one layout from another."""

from __future__ import annotations

from pathlib import Path

from potloc_fast.files import listed


class Signs:
    """What the folder of a layout can't be without.

    Args:
        patterns: for each sign the patterns of paths in the folder, of which one is enough.
    """

    def __init__(self, *patterns: tuple[str, ...]) -> None:
        self.patterns = patterns

    def look_for(self, root: Path) -> tuple[list[str], list[str]]:
        """Look for the signs in a folder.

        Returns:
            found, missing: for each sign that is there a path in the folder, for each other one the patterns.
        """
        found, missing = [], []
        for patterns in self.patterns:
            paths = (path for pattern in patterns for path in listed(root, pattern)[:1])
            if path := next(paths, None):
                found.append(str(path.relative_to(root)))
            else:
                missing.append(" or ".join(patterns))
        return found, missing

    def recognize(self, root: Path) -> str | None:
        """Say what of the layout is in a folder, if all signs are."""
        found, missing = self.look_for(root)
        return None if missing else " and ".join(found)
