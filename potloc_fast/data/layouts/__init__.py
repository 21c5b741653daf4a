"""The layouts of data sets on disk, one file each.

A layout is a module with `SIGNS`, what its folder can't be without, and two functions: `recognize(root)` says what of
the layout it finds in a folder, or None (mostly by the signs alone), and `read(root, options)` lists the data set.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from potloc_fast.config.schema import FolderData
from potloc_fast.data.layouts import actionformer, backtal, hapt, hrpro, lacp, opentad, plain, wtalc
from potloc_fast.data.layouts.signs import Signs
from potloc_fast.data.listing import Listing
from potloc_fast.data.recording import Tidy
from potloc_fast.errors import InputError


class Layout(Protocol):
    """What a module of this package offers."""

    @property
    def SIGNS(self) -> Signs:
        """What the folder can't be without."""

    def recognize(self, root: Path) -> str | None:
        """Say what of the layout is there, if it is."""

    def read(self, root: Path, options: FolderData) -> Listing:
        """List the data set."""


LAYOUTS: dict[str, Layout] = {
    "plain": plain,
    "lacp": lacp,
    "hrpro": hrpro,
    "wtalc": wtalc,
    "backtal": backtal,
    "actionformer": actionformer,
    "opentad": opentad,
    "hapt": hapt,
}


def read_listing(options: FolderData) -> Listing:
    """List the data set that a configuration names, finding out its layout where that is "auto".

    Raises:
        InputError: nothing, or more than one layout, is recognised; or the annotations can't be used.
    """
    root = options.root
    if root is None:
        raise InputError("key data.root: expected the folder or archive of the data set, got none: give data.root=PATH")
    if not root.exists():
        raise InputError(f"{root}: expected the folder or archive of a data set, found none")
    name, seen = _find_layout(root) if options.layout == "auto" else (options.layout, "")
    if options.windows.given and name != "plain":
        raise InputError(
            f"key data.windows: expected raw recordings, as the layout plain has them, got the layout {name}"
        )
    notes = (f"{root}: layout {name}, seen from {seen}",) if seen else ()
    listing = LAYOUTS[name].read(root, options)
    tidy = Tidy(root)
    entries = tuple(
        replace(entry, instances=tidy.instances(entry.id, entry.instances), points=tidy.points(entry.id, entry.points))
        for entry in listing.entries
    )
    return replace(listing, entries=entries, notes=notes + listing.notes, taken_out=tidy.findings)


def _find_layout(root: Path) -> tuple[str, str]:
    seen = {name: what for name, layout in LAYOUTS.items() if (what := layout.recognize(root)) is not None}
    if len(seen) == 1:
        return next(iter(seen.items()))
    if seen:
        several = "; ".join(f"{name} ({what})" for name, what in seen.items())
        raise InputError(f"{root}: expected one layout, found {several}: set data.layout")
    looked = {name: layout.SIGNS.look_for(root) for name, layout in LAYOUTS.items()}
    nearest = max(looked, key=lambda name: len(looked[name][0]))
    found, missing = looked[nearest]
    if not found:
        names = ", ".join(LAYOUTS)
        raise InputError(f"{root}: expected one of the layouts {names}, found none of their files: set data.layout")
    raise InputError(
        f"{root}: expected one of the layouts {', '.join(LAYOUTS)}, "
        f"found {' and '.join(found)} as in {nearest}, but no {' and no '.join(missing)}: set data.layout"
    )
