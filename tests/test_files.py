from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import stat
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potloc_fast.errors import InputError
from potloc_fast.files import (
    LOCK,
    TEMPORARY,
    atomic,
    check_members,
    locked,
    read_json,
    read_text,
    without_collection,
    write_bytes,
    write_json,
    write_text,
)
from potloc_fast.names import normalize

LittleRoom: TypeAlias = Callable[[int], contextlib.AbstractContextManager[None]]


def test_atomic_takes_the_place_of_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "scores.npz"
    for text in ("old", "new"):
        with atomic(path) as temporary:
            assert temporary.suffix == ".npz"
            assert temporary.parent == path.parent
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(InputError, match=r"^file\.json: expected a file to write, got: No such file or directory$"):
        write_text("file.json", "x")


def interrupted_write(path: Path) -> None:
    with atomic(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_atomic_leaves_the_old_file_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(tmp_path / "file.json")
    assert list(tmp_path.iterdir()) == []


def test_files_have_the_rights_that_the_user_asked_for(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "file.txt", "text")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o640


def test_what_was_there_keeps_its_rights(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    path.chmod(0o600)
    write_text(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_replaced(there: bool, tmp_path: Path) -> None:
    target, link = tmp_path / "other" / "target.json", tmp_path / "link.json"
    if there:
        target.parent.mkdir()
        target.write_text("old")
    link.symlink_to(target)
    write_json(link, 1)
    assert link.is_symlink()
    assert read_json(target) == 1
    assert [path.name for path in target.parent.iterdir()] == ["target.json"]


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()), daemon=True)
    reader.start()
    write_json(pipe, [1, 2])
    reader.join(10)
    assert found == ["[1, 2]\n"]
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_the_file_that_is_printed_to_is_written_to(capfd: pytest.CaptureFixture[str]) -> None:
    os.write(1, b"before, ")
    write_text("/dev/stdout", "between, ")
    os.write(1, b"after")
    assert capfd.readouterr().out == "before, between, after"


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 125 + ".json")  # 255 bytes
    write_json(path, 1)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_and_the_old_file_stays(little_room: LittleRoom, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with little_room(1000), pytest.raises(InputError) as caught:
        write_bytes(path, bytes(5000))
    assert str(caught.value) == f"{path}: expected a file to write, got: File too large"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "file.bin", []

    def fsync(handle: int) -> None:
        folder = os.path.samestat(os.fstat(handle), tmp_path.stat())
        seen.append(("folder" if folder else os.fstat(handle).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_bytes(path, bytes(7))
    assert seen == [(7, False), ("folder", True)]


def test_a_locked_folder_is_for_one_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with locked(folder):
        with pytest.raises(InputError) as caught, locked(folder):
            pass
        message = str(caught.value)
        assert message.startswith(f"{folder}: expected a folder that no other training writes to, found process ")
        assert f" {os.getpid()} on " in message
        with locked(tmp_path / "other"):
            write_text(folder / "file.txt", "text")
    with locked(folder):
        assert read_text(folder / "file.txt") == "text"


def test_what_killed_processes_left_is_removed_under_the_lock(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("file.txt", ".hidden", f"a/b/c/{TEMPORARY}other")]
    left = [tmp_path / name for name in (f"{TEMPORARY}1.json", f"base/{TEMPORARY}2.pt")]
    for path in (*kept, *left):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with atomic(tmp_path / "file.txt") as temporary:
        assert temporary.name.startswith(TEMPORARY)  # what is looked for is what is made
    with locked(tmp_path):
        assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*kept, tmp_path / LOCK}


@pytest.mark.parametrize("moved", [True, False])
def test_a_folder_that_vanished_is_not_made_again(moved: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked(folder):
        write_text(folder / "base" / "file.txt", "text")
        if moved:
            folder.rename(tmp_path / "elsewhere")
        else:
            shutil.rmtree(folder)
        with pytest.raises(InputError) as caught:
            write_text(folder / "base" / "file.txt", "text")
    assert str(caught.value) == f"{folder}: expected the folder that this run began in, found that it was taken away"
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file/text.txt", "file: expected a folder to write to, got: File exists"),
        ("file/new/text.txt", "file/new: expected a folder to write to, got: Not a directory"),
        ("folder", "folder: expected a file to write, got: Is a directory"),
        ("loop", "loop: expected a file to write, got: Too many levels of symbolic links"),
    ],
)
def test_a_place_where_no_file_can_be_is_named(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError) as caught:
        write_text(tmp_path / name, "text")
    assert str(caught.value) == f"{tmp_path}/{message}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "loop"]
    assert (tmp_path / "loop").is_symlink()


def test_an_archive_has_each_file_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("a", "b"):
            archive.writestr(name, name)
        check_members(archive, "x.zip")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a", "c")
        with pytest.raises(InputError, match=r"^x\.zip: expected each file once in the archive, found a 2 times$"):
            check_members(archive, "x.zip")


def test_text_round_trip(tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "Ünïcode\n")
    assert (tmp_path / "file.txt").read_bytes() == "Ünïcode\n".encode()
    assert read_text(tmp_path / "file.txt") == "Ünïcode\n"


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "file.json") == {"a": 1}


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"version": "1", "results": {"v": [{"label": "läuft", "segment": [0.25, 1e-7], "score": None}]}}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value
    assert json.loads((tmp_path / "file.json").read_text()) == value


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_has_no_nan(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="expected finite numbers to write"):
        write_json(tmp_path / "file.json", {"score": number})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b" 2}', "expected JSON, but line 2, column 6: Expecting ':' delimiter"),
        (b"", "expected JSON, but line 1, column 1: Expecting value"),
        (b'{"a": "\xff"}', "expected UTF-8 text, found other bytes at offset 7"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [("[" * 100_000, "expected JSON, got: maximum recursion depth"), ("9" * 5000, "expected JSON, got: Exceeds the")],
)
def test_a_file_too_deep_or_a_number_too_long_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: {message}")


COMPOSED = st.text().map(normalize)  # other text is composed when it is read, see below


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | COMPOSED, st.lists) | COMPOSED)
def test_json_is_read_as_the_standard_library_has_it(value: Any) -> None:
    text = json.dumps(value)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(text)
        file.flush()
        assert repr(read_json(file.name)) == repr(json.loads(text))


def test_what_the_fast_parser_refuses_is_read_too(tmp_path: Path) -> None:
    # Half of a surrogate pair, nesting of 500.
    text = '{"a": "\\ud800", "b": ' + "[" * 500 + "]" * 500 + "}"
    (tmp_path / "file.json").write_text(text)
    assert read_json(tmp_path / "file.json") == json.loads(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"v1": [1],\n "v2": {}, "v1": [2]}', "'v1' twice in the object that begins in line 1, column 1"),
        ('{"http://v": 1,\n "b": [{"x": 1}, {"c": {"x": 1, "\\u0078": 2}}]}', "'x' twice in .* line 2, column 24"),
        ('{"v1" : "a: b", "c"\n: "d",\n "v1"\t: 2}', "'v1' twice in the object that begins in line 1, column 1"),
        ('[{"x": 1, "x": ' + "[" * 600 + "]" * 600 + "}]", "'x' twice"),
        ('{"U\\u0308": 1, "\u00dc": 2}', "'\u00dc' twice in the object"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_place(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "file.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"file.json: expected each key once, found {place}"):
        read_json(tmp_path / "file.json")


def test_json_text_is_composed(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text('{"U\\u0308": ["o\u0308", {"a\u0308": "u\\u0308"}]}', encoding="utf-8")
    assert read_json(tmp_path / "file.json") == {"\u00dc": ["\u00f6", {"\u00e4": "\u00fc"}]}


@pytest.mark.parametrize("enabled", [True, False])
def test_collection_goes_on_as_it_was(enabled: bool) -> None:
    try:
        gc.enable() if enabled else gc.disable()
        with contextlib.suppress(KeyError), without_collection():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_json(tmp_path / "file.json")
    assert str(caught.value) == f"{tmp_path / 'file.json'}: expected a file, found none"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_text(tmp_path)
    assert str(caught.value) == f"{tmp_path}: expected a readable file, got: Is a directory"
