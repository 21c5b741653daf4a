from __future__ import annotations

import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from potloc_fast.data.download import ADVICE, SHA256, digest, fetch_hapt
from potloc_fast.errors import InputError


class Server(ThreadingHTTPServer):
    """Serves one file; can break off after some bytes and ignore ranges."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.breaks_after: int | None = None
        self.knows_ranges = True
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/hapt.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.knows_ranges else 0
        if self.path != "/hapt.zip":
            self.send_error(404)
            return
        if start and start >= len(self.server.content):
            self.send_error(416)
            return
        rest = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.breaks_after])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def content(small_hapt: Path, tmp_path: Path) -> bytes:
    archive = tmp_path / "source.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(small_hapt.rglob("*.txt")):
            file.write(path, str(path.relative_to(tmp_path)))
    return archive.read_bytes()


@pytest.fixture
def server(content: bytes) -> Iterator[Server]:
    with Server(content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def sha256(tmp_path: Path, content: bytes) -> str:
    return digest(tmp_path / "source.zip")


def test_checksum_is_that_of_the_real_recordings(shared_data: Path) -> None:
    assert digest(shared_data / "hapt" / "hapt_uci.zip") == SHA256


def test_checksum_is_of_the_recordings_not_of_their_packing(small_hapt: Path, sha256: str) -> None:
    assert digest(small_hapt) == sha256
    with (small_hapt / "RawData" / "labels.txt").open("a") as file:
        file.write("\n")
    assert digest(small_hapt) != sha256


def test_one_download_is_enough(server: Server, sha256: str, tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "cache"
    path = fetch_hapt(cache, url=server.url, sha256=sha256)
    assert path.read_bytes() == server.content
    assert fetch_hapt(cache, url=server.url, sha256=sha256) == path
    assert server.ranges == [None]
    assert list(cache.iterdir()) == [path]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_download_goes_on_where_it_stopped(
    server: Server, sha256: str, tmp_path: Path, knows_ranges: bool
) -> None:
    server.knows_ranges = knows_ranges
    server.breaks_after = 1000
    with pytest.raises(InputError, match=r"the connection broke after 1000 of .* bytes \(run it again to go on\)"):
        fetch_hapt(tmp_path / "cache", url=server.url, sha256=sha256)
    assert not (tmp_path / "cache" / "hapt_uci.zip").exists()
    server.breaks_after = None
    path = fetch_hapt(tmp_path / "cache", url=server.url, sha256=sha256)
    assert path.read_bytes() == server.content
    assert server.ranges == [None, "bytes=1000-"]


def test_a_download_that_was_whole_but_never_checked_is_checked(server: Server, sha256: str, tmp_path: Path) -> None:
    (tmp_path / "hapt_uci.zip.part").write_bytes(server.content)
    assert fetch_hapt(tmp_path, url=server.url, sha256=sha256).read_bytes() == server.content


@pytest.mark.parametrize("served", ["other recordings", "a web page"])
def test_other_recordings_are_refused_and_not_kept(server: Server, sha256: str, tmp_path: Path, served: str) -> None:
    if served == "a web page":
        server.content, expected, found = b"<html>", sha256, "no HAPT archive"
    else:
        expected, found = "0" * 64, sha256
    with pytest.raises(InputError) as caught:
        fetch_hapt(tmp_path / "cache", url=server.url, sha256=expected)
    assert str(caught.value) == (
        f"{server.url}: expected the HAPT recordings with SHA-256 {expected}, got {found}; {ADVICE}"
    )
    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_archive_is_refused(server: Server, sha256: str, tmp_path: Path) -> None:
    damaged = bytearray(server.content)
    damaged[300:400] = bytes(100)
    server.content = bytes(damaged)
    with pytest.raises(InputError, match="got no HAPT archive"):
        fetch_hapt(tmp_path / "cache", url=server.url, sha256=sha256)


def test_no_server_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/hapt.zip"
        with pytest.raises(InputError) as caught:
            fetch_hapt(tmp_path, url=url)
    message = str(caught.value)
    assert message.startswith(f"{url}: expected to download the HAPT archive, got: ")
    assert "Connection refused" in message
    assert message.endswith("; give the path of the archive as DATA=path, or make recordings up with DATA=synthetic")
    assert "\n" not in message


def test_a_missing_page_is_one_sentence(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected to download the HAPT archive, got: Not Found; give the path"):
        fetch_hapt(tmp_path, url=server.url + "x")
