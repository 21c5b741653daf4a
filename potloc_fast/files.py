"""Reading and writing of small files: nothing is ever left half-written."""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from potloc_fast.errors import InputError


@contextmanager
def without_collection() -> Iterator[None]:
    """Pause the search for cycles while many objects without any are made and dropped: it would cost the most time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends without an exception.

    Args:
        path: the file to write; its folder is made where it is missing.

    Yields:
        The path to write to, with the same suffix as `path`.

    Raises:
        InputError: there can't be a file at `path`.
    """
    path = Path(path)
    with _expecting(path.parent, "a folder to write to"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes the file private; the user's umask decides, as for any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with _expecting(path, "a file to write"):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _expecting(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: expected {what}, got: {error.strerror}") from None


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` in one step."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON to `path` in one step. NaN and infinity are refused, as JSON has neither."""
    write_text(path, json.dumps(value, allow_nan=False) + "\n")


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text file; a byte-order mark is dropped.

    Raises:
        InputError: the file is missing, unreadable or not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file, found none") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, found other bytes at offset {error.start}") from None
    except OSError as error:
        raise InputError(f"{path}: expected a readable file, got: {error.strerror}") from None


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, unreadable or not JSON.
    """
    text = read_text(path)
    try:
        return from_json(text)
    except ValueError:
        pass
    # The standard library takes more (lone surrogates), and says best what is wrong and where.
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: expected JSON, but line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, got: {error}") from None
