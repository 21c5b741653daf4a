"""Reading and writing of small files: nothing is ever left half-written."""

from __future__ import annotations

import codecs
import errno
import fcntl
import gc
import io
import json
import os
import shutil
import socket
import stat
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from json.decoder import JSONObject  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from potloc_fast.errors import InputError, quote, shorten
from potloc_fast.names import normalize

LARGE = 1 << 26  # bytes of an unpacked file that is no burden, ...
PACKED = 100  # ... and how much smaller a larger one may be while it is packed: text to a tenth, features to a half

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
    with writing(path, "a file to write"):
        target, replaced = Path(os.path.realpath(path)), replaceable(path)
        if target.is_symlink():  # one that leads back to itself
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
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
        with suppress(FileNotFoundError):  # the folder that the process is in is gone
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
    write_json_parts(path, (f"{json.dumps(whole, allow_nan=False)}\n" for whole in (value,)))


def write_json_parts(path: str | Path, parts: Iterable[str]) -> None:
    """Do as `write_json` with JSON that comes in parts, which raise ValueError where there is NaN or infinity."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        try:
            file.writelines(parts)
        except ValueError:
            raise InputError(f"{path}: expected finite numbers to write, got NaN or infinity among them") from None


def check_kind(path: str | Path) -> None:
    """Refuse to read what is no file: to open a pipe may wait for ever, and a device may never end.

    A pipe that this process was given open is one, as `<(command)` and /dev/stdin are; a folder or a path where there
    is nothing is left to whoever opens it.

    Raises:
        InputError: there is a pipe, a device or a socket.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    given = stat.S_ISFIFO(mode) and os.path.realpath(path).startswith(("/dev/", "/proc/"))
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or given):
        raise InputError(f"{path}: expected a file, found a pipe, a device or a socket")


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text file, or one of UTF-16 that begins with a byte-order mark; the mark is dropped.

    Raises:
        InputError: the file is missing, unreadable or of another encoding.
    """
    check_kind(path)
    try:
        content = Path(path).read_bytes()
        encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        return io.TextIOWrapper(io.BytesIO(content), encoding=encoding).read()
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file, found none") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, found other bytes at offset {error.start}") from None
    except OSError as error:
        raise InputError(f"{path}: expected a readable file, got: {error.strerror}") from None
    except ValueError:
        raise InputError(f"{path}: expected the path of a file, got one with a NUL character") from None


def read_lines(path: str | Path) -> list[str]:
    """Read the lines of a UTF-8 text file, without blanks around them, as `normalize` has them.

    Only line ends end a line: what else Unicode or Python take for one may be part of a label.

    Raises:
        InputError: the file is missing, unreadable or not UTF-8.
    """
    return [line.strip() for line in normalize(read_text(path)).split("\n")]


def listed(folder: str | Path, pattern: str = "*") -> list[Path]:
    """The paths in a folder that match a pattern, sorted, without hidden ones, which systems leave beside files.

    A folder that is none has none.
    """
    folder = Path(folder)
    found = folder.glob(pattern) if os.path.isdir(folder) else ()  # unlike pathlib's, it answers for any path
    return sorted(path for path in found if not is_hidden(path.relative_to(folder).as_posix()))


def is_hidden(path: str) -> bool:
    """Whether a part of a relative path is hidden, as macOS' `._walk.npy` and what lies in `__MACOSX` are."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def check_members(archive: zipfile.ZipFile, path: str | Path) -> None:
    """Refuse an archive that is small on disk and would fill the memory, or of which one member hides another.

    Raises:
        InputError: a member is large, and packed as features and tables never are; or two have the same name.
    """
    for name, count in Counter(archive.namelist()).items():
        if count > 1:
            raise InputError(f"{path}: expected each file once in the archive, found {shorten(name)} {count} times")
    for member in archive.infolist():
        packed = min(member.compress_size, archive.start_dir)  # the first is what the archive says of itself
        if member.file_size > max(LARGE, PACKED * packed):
            raise InputError(
                f"{path}: expected files packed to a {PACKED}th at most, got {shorten(member.filename)} of "
                f"{member.file_size} bytes in {packed}"
            )


def find_path(path: Path) -> Path:
    """The file at a path, or the one beside it whose name is the same once normalized; the path where there is none."""
    same = (other for other in listed(path.parent) if normalize(other.name) == normalize(path.name))
    return path if os.path.exists(path) else next(same, path)


def read_json(path: str | Path) -> Any:
    """Read a JSON file; text in it is as `normalize` has it.

    Raises:
        InputError: the file is missing, unreadable or not JSON, or a key stands twice in an object.
    """
    text = read_text(path)
    # A pair of key and value has a colon, after a quote or blanks: where there are as many, no key stood twice.
    composed = text.isascii() and "\\u" not in text
    try:
        if composed:
            value = from_json(text)
            if _pairs(value) == sum(text.count(f"{before}:") for before in '" \t\r\n'):
                return value
    except ValueError:
        pass
    # The standard library takes more (lone surrogates), says best what is wrong and where, and shows every pair.
    decoder = json.JSONDecoder(object_pairs_hook=_once if composed else _unique)
    try:
        return decoder.decode(text) if composed else _normalized(decoder.decode(text))
    except _TwiceError as error:
        raise InputError(
            f"{path}: expected each key once, found {quote(error.key)} twice in {_object_with_two(text)}"
        ) from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: expected JSON, but line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, got: {error}") from None


class _TwiceError(Exception):
    """A key that stands twice in an object."""

    def __init__(self, key: str) -> None:
        self.key = key


def _pairs(value: Any) -> int:
    """The number of pairs of keys and values within a JSON value, or fewer where lists hold objects of many kinds."""
    if type(value) is dict:
        return len(value) + sum([_pairs(one) for one in value.values() if type(one) in (dict, list)])
    if type(value) is not list or set(map(type, value)) != {dict}:
        return 0
    alike = not any(map(_pairs, value[0].values()))  # hundreds of thousands of detections hold nothing further
    return sum(map(len, value)) if alike else sum(map(_pairs, value))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object, where each key stands once in it; quick, for text that is composed as it is."""
    found = dict(pairs)
    return found if len(found) == len(pairs) else _unique(pairs)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        key = normalize(key)
        if key in found:
            raise _TwiceError(key)
        found[key] = _normalized(value)
    return found


def _normalized(value: Any) -> Any:
    """Text, and text in lists, as `normalize` has it; objects are as `_unique` made them."""
    if type(value) is str:
        return normalize(value)
    return list(map(_normalized, value)) if type(value) is list else value  # half as many frames as a loop takes


def _object_with_two(text: str) -> str:
    """Say where the innermost object begins in which a key stands twice: the standard library's decoder in Python."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    begin = 0

    def parse_object(at: tuple[str, int], *rest: Any) -> Any:
        nonlocal begin
        try:
            return JSONObject(at, *rest)
        except _TwiceError:
            begin = begin or at[1] - 1
            raise

    vars(decoder)["parse_object"] = parse_object
    vars(decoder)["scan_once"] = py_make_scanner(decoder)
    with suppress(_TwiceError, RecursionError):
        decoder.decode(text)
    line = text.count("\n", 0, begin) + 1
    return f"the object that begins in line {line}, column {begin - text.rfind(chr(10), 0, begin)}"
