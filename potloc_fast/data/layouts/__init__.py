"""The layouts of data sets on disk, one file each.

A layout is a module with two functions: `recognize(root)` says what of the layout it finds in a folder, or None, and
`read(root, options)` lists the data set.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from potloc_fast.config.schema import FolderData
from potloc_fast.data.layouts import hapt, lacp
from potloc_fast.data.listing import Listing
from potloc_fast.errors import InputError


class Layout(Protocol):
    """What a module of this package offers."""

    def recognize(self, root: Path) -> str | None:
        """Say what of the layout is there, if it is."""

    def read(self, root: Path, options: FolderData) -> Listing:
        """List the data set."""


LAYOUTS: dict[str, Layout] = {"lacp": lacp, "hapt": hapt}


def read_listing(options: FolderData) -> Listing:
    """List the data set that a configuration names, finding out its layout where that is "auto".

    Raises:
        InputError: nothing, or more than one layout, is recognised; or the annotations can't be used.
    """
    root = options.root
    if root is None:
        raise InputError("key data.root: expected the folder or archive of the data set, got none: give data.root=PATH")
    if options.layout != "auto":
        return LAYOUTS[options.layout].read(root, options)
    if not root.exists():
        raise InputError(f"{root}: expected the folder or archive of a data set, found none")
    seen = {name: what for name, layout in LAYOUTS.items() if (what := layout.recognize(root)) is not None}
    if len(seen) != 1:
        found = "; ".join(f"{name} ({what})" for name, what in seen.items()) or "none"
        raise InputError(f"{root}: expected one of the layouts {', '.join(LAYOUTS)}, found {found}: set data.layout")
    [(name, what)] = seen.items()
    listing = LAYOUTS[name].read(root, options)
    return replace(listing, notes=(f"{root}: layout {name}, seen from {what}", *listing.notes))
