"""Names of recordings: when two are the same, and what a file is called that is written for one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from potloc_fast.errors import InputError

Item = TypeVar("Item")

LONGEST_FILE_NAME = 100  # bytes: file systems take 255, and what is written has a prefix and a suffix


def normalize(text: str) -> str:
    """Text with composed characters (NFC): macOS writes an accent as a character of its own, others don't.

    >>> normalize("Cafe\u0301") == "Caf\u00e9"
    True
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def by_name(items: Iterable[tuple[str, Item]], where: str | Path) -> dict[str, Item]:
    """What belongs to each name, once normalized.

    Args:
        items: names and what belongs to them.
        where: names the place in errors.

    Raises:
        InputError: two names become equal.
    """
    found: dict[str, Item] = {}
    for name, item in items:
        if normalize(name) in found:
            raise InputError(f"{where}: expected each name once, found {name} twice: Unicode's forms of it are one")
        found[normalize(name)] = item
    return found


def find_name(name: str, names: Collection[str]) -> str | None:
    """The name of a video among `names`, where YouTube's ids may have been given the prefix `v_`, or lost it.

    >>> find_name("v_walk", {"walk", "run"})
    'walk'
    """
    return next((found for found in (name, f"v_{name}", name.removeprefix("v_")) if found in names), None)


def find_names(names: Iterable[str], known: Collection[str], where: str | Path) -> dict[str, str]:
    """What each of `names` is called among those that are known; one that is not among them keeps its name.

    Args:
        names: names of videos, each once.
        known: the names to find.
        where: names in errors what has `names`.

    Raises:
        InputError: two of them are the same video.
    """
    known = known if isinstance(known, Mapping | set | frozenset) else frozenset(known)
    found = {name: find_name(name, known) or name for name in names}
    if len(set(found.values())) < len(found):
        taken: dict[str, str] = {}
        for name, other in found.items():
            if taken.setdefault(other, name) != name:
                raise InputError(f"{where}: expected each video once, found {taken[other]} and {name}, which are one")
    return found


def file_name(name: str) -> str:
    """What a file for a recording is called, without a suffix: safe, short, and different for different names.

    A name stays as it is where it can. Else what is not safe is replaced, and a few digits tell it from others.

    >>> file_name("walk 1"), file_name("../walk")
    ('walk 1', '_._walk-659448fa')
    """
    safe = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in name)
    if safe[:1] in ("", ".", "-", "~"):
        safe = "_" + safe[1:]
    short = safe.encode()[:LONGEST_FILE_NAME].decode(errors="ignore")
    if short == name and not re.search(r"-[0-9a-f]{8}$", name):  # which could be one that was replaced
        return name
    return f"{short}-{sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"
