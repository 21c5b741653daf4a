"""Fetching of the HAPT archive from the UCI repository."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from potloc_fast.data.layouts.hapt import open_hapt
from potloc_fast.errors import InputError
from potloc_fast.files import is_hidden

URL = (
    "https://archive.ics.uci.edu/static/public/341/"
    "smartphone+based+recognition+of+human+activities+and+postural+transitions.zip"
)
SHA256 = "c62e0b2b810838f087357d0a23dbb5e69a6d4aa22901e31eee3f3d3ab194973e"
ADVICE = "give the path of the archive as DATA=path, or make recordings up with DATA=synthetic"


def fetch_hapt(cache_dir: str | Path, *, url: str = URL, sha256: str = SHA256) -> Path:
    """Download the HAPT archive, unless an earlier call did; a download that broke off goes on where it stopped.

    Args:
        cache_dir: the folder to keep the archive in.
        url: where from.
        sha256: what `digest` gives for the archive, which may be repacked but must hold the same recordings.

    Returns:
        The path of the archive.

    Raises:
        InputError: no network, a broken-off download, or other recordings than expected.
    """
    archive = Path(cache_dir) / "hapt_uci.zip"
    if archive.exists():
        return archive
    part = archive.with_suffix(".zip.part")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        _download(url, part)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{url}: expected to download the HAPT archive, got: {getattr(error, 'reason', error)}; {ADVICE}"
        ) from None
    try:
        found = digest(part)
    except (InputError, zipfile.BadZipFile, zlib.error):
        found = "no HAPT archive"
    if found != sha256:
        part.unlink()
        raise InputError(f"{url}: expected the HAPT recordings with SHA-256 {sha256}, got {found}; {ADVICE}")
    return part.replace(archive)


def digest(path: str | Path) -> str:
    """SHA-256 over the names and contents of the files in `RawData`, in the order of their names."""
    total = hashlib.sha256()
    files = {file.name: file for file in (open_hapt(path) / "RawData").iterdir() if not is_hidden(file.name)}
    for name in sorted(files):
        content = files[name].read_bytes()
        total.update(f"{name} {len(content)}\n".encode())
        total.update(content)
    return total.hexdigest()


def _download(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # nothing is left to send: the checksum tells whether what is here is whole
            return
        raise
    with (
        response,
        part.open("ab" if response.status == 206 else "wb") as file,  # a server may send all of it again
        Progress(
            TextColumn("HAPT recordings"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        ) as progress,
    ):
        left = response.length  # None where the server does not say
        total = None if left is None else file.tell() + left
        task = progress.add_task("", total=total, completed=file.tell())
        while chunk := response.read(1 << 16):
            file.write(chunk)
            progress.update(task, completed=file.tell())
        if total is not None and file.tell() < total:
            raise OSError(f"the connection broke after {file.tell()} of {total} bytes (run it again to go on)")
