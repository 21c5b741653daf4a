"""Reading and writing of small files: nothing is ever left half-written."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from potloc_fast.errors import InputError

TEMPORARY = ".potloc-unfinished-"  # what the name of a file that is being written begins with
LOCK = ".lock"

_locked: dict[int, Path] = {}  # folders that this process has locked, by the descriptor of the lock


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
    """Yield a temporary path that takes the place of `path` when the block ends without an exception.

    What was written is on the disk by then. A link stays and its target is replaced; a file that was there keeps its
    owner and rights. What is no regular file (a pipe, a terminal, /dev/null) is written to, not replaced, and so is the
    file that standard output goes to.

    Args:
        path: the file to write; its folder is made where it is missing, unless it is that of a run and has vanished.

    Yields:
        The path to write to, with the same suffix as `path`.

    Raises:
        InputError: there can't be a file at `path`, or it can't be written whole.
    """
    path = Path(path)
    target, replaced = Path(os.path.realpath(path)), replaceable(path)
    folder = target.parent if replaced else Path(tempfile.gettempdir())
    _check_locks(target)
    with writing(path, "a file to write"):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    with writing(path.parent, "a folder to write to"):
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=TEMPORARY, suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        with writing(path, "a file to write"):
            yield temporary
            if replaced:
                _replace(temporary, target)
            else:
                _write_through(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replaceable(path: Path) -> bool:
    """Whether `path` is a regular file, or none yet; the file that standard output goes to doesn't count."""
    try:
        found = path.stat()
    except OSError:
        return True
    return stat.S_ISREG(found.st_mode) and not _is_output(found)


def _is_output(found: os.stat_result) -> bool:
    """Whether a file is the one that standard output goes to, as /dev/stdout is."""
    with suppress(OSError):
        return os.path.samestat(found, os.fstat(1))
    return False


def _replace(temporary: Path, target: Path) -> None:
    if target.exists():
        there = target.stat()
        with suppress(OSError):  # only root may give files away
            os.chown(temporary, there.st_uid, there.st_gid)
        mode = stat.S_IMODE(there.st_mode)
    else:
        # mkstemp makes the file private; the user's umask decides, as for any other file.
        umask = os.umask(0)
        os.umask(umask)
        mode = 0o666 & ~umask
    temporary.chmod(mode)
    sync(temporary)
    temporary.replace(target)
    sync(target.parent)


def _write_through(temporary: Path, path: Path) -> None:
    handle = os.dup(1) if _is_output(path.stat()) else os.open(path, os.O_WRONLY)
    with open(handle, "wb") as there, temporary.open("rb") as content:
        shutil.copyfileobj(content, there)


def sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems can't sync a folder
            raise
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path, what: str) -> Iterator[None]:
    """Answer what the system refuses, such as a full disk, in a sentence: `path` was expected to be `what`."""
    try:
        yield
    except OSError as error:
        _check_locks(Path(os.path.realpath(path)))
        raise InputError(f"{path}: expected {what}, got: {error.strerror or error}") from None


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep a folder, which is made where it is missing, for this process until the end of the block.

    Nobody else holds a lock then, so that temporary files in it are what a process left that was killed: they are
    removed. Where the folder vanishes meanwhile, `atomic` refuses to write into it.

    Raises:
        InputError: another process has locked the folder.
    """
    folder = Path(folder)
    with writing(folder, "a folder to write to"):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 300, 0).decode("utf-8", "replace") or "another process"
            raise InputError(
                f"{folder}: expected a folder that no other training writes to, found {owner} at work: wait for it, "
                "or take another folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        with writing(folder, "a folder to write to"):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            for path in (*folder.glob(f"{TEMPORARY}*"), *folder.glob(f"*/{TEMPORARY}*")):
                path.unlink(missing_ok=True)
        _locked[handle] = folder.resolve()
        yield
    finally:
        _locked.pop(handle, None)
        os.close(handle)


def _check_locks(target: Path) -> None:
    """Refuse to write below a folder that this process has locked, and that is no longer where it was."""
    for handle, folder in tuple(_locked.items()):
        if target.is_relative_to(folder):
            there = False
            with suppress(OSError):
                there = os.path.samestat(os.stat(folder / LOCK), os.fstat(handle))
            if not there:
                raise InputError(
                    f"{folder}: expected the folder that this run began in, found that it was taken away"
                ) from None


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` in one step."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Write `content` to `path` in one step."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


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
