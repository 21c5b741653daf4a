"""Where the features of recordings are kept: a file for each in one of several formats, or one HDF5 file for all."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from potloc_fast.data.listing import NpyFile, Source
from potloc_fast.data.recording import allow_open_files, to_features
from potloc_fast.errors import InputError, quote, shorten
from potloc_fast.files import LARGE, PACKED, check_kind, check_members, listed, read_lines
from potloc_fast.names import by_name, find_names, normalize
from potloc_fast.numbers import to_number

HDF5_SUFFIXES = (".hdf5", ".h5")


@dataclass(frozen=True)
class NpzMember:
    """Features in an array of an .npz archive.

    Attributes:
        file: the archive.
        member: the name of the array.
        trusted: whether it may hold pickled objects, which can run any code.
    """

    file: Path
    member: str = "feats"
    trusted: bool = False

    @property
    def path(self) -> Path:
        """The archive with the name of the array."""
        return self.file / self.member

    def load(self) -> NDArray[np.float32]:
        """Read the array."""
        members = read_npz(self.file, [self.member], trusted=self.trusted)
        if self.member not in members:
            raise InputError(f"{self.path}: expected an array of this name in the archive, found none")
        return to_features(members[self.member], self.path)


@dataclass(frozen=True)
class Hdf5Dataset:
    """Features in a dataset of an HDF5 file.

    Attributes:
        file: the file.
        name: the name of the dataset.
    """

    file: Path
    name: str

    @property
    def path(self) -> Path:
        """The file with the name of the dataset."""
        return self.file / self.name

    def load(self) -> NDArray[np.float32]:
        """Memory-map the dataset where it lies in one piece, uncompressed and in single precision; else read it."""
        import h5py

        allow_open_files()
        with reading(self.file, "an HDF5 file"), h5py.File(self.file, "r") as file:
            item = file.get(self.name)
            if item is None:
                raise InputError(f"{self.path}: expected a dataset of this name in the file, found none")
            if not isinstance(item, h5py.Dataset):
                raise InputError(
                    f"{self.path}: expected a dataset, got a group of {shorten(', '.join(item)) or 'nothing'}"
                )
            offset = item.id.get_offset()
            if offset is not None and item.size and item.dtype == np.float32:
                return to_features(np.memmap(str(self.file), item.dtype, "r", offset, item.shape), self.path)
            check_packed(item, self.path)
            return to_features(np.asarray(item[()]), self.path)


@dataclass(frozen=True)
class TensorFile:
    """Features in a tensor that `torch.save` wrote; nothing but tensors is ever loaded."""

    path: Path

    def load(self) -> NDArray[np.float32]:
        """Memory-map the tensor, or read it where it is in torch's old format."""
        import torch

        with reading(self.path, "a tensor as torch.save writes it"):
            mapped = zipfile.is_zipfile(self.path)
            if mapped:
                with zipfile.ZipFile(self.path) as archive:
                    check_members(archive, self.path)
            found = torch.load(self.path, map_location="cpu", weights_only=True, mmap=mapped)
            if not isinstance(found, torch.Tensor):
                raise InputError(f"{self.path}: expected a tensor, got a {type(found).__name__}")
            found = found.detach()
            if found.nbytes > found.untyped_storage().nbytes():
                raise InputError(
                    f"{self.path}: expected a number for each value, got shape {list(found.shape)} of fewer"
                )
            array = (found.float() if found.dtype == torch.bfloat16 else found).numpy()
        return to_features(array, self.path)


@dataclass(frozen=True)
class CsvFile:
    """Features in a table with commas, one snippet a line."""

    path: Path

    def load(self) -> NDArray[np.float32]:
        """Read the table; its first line may name the columns, by words or as 0, 1, 2, ..."""
        rows = {number: line for number, line in enumerate(read_lines(self.path), 1) if line}
        first = next(iter(rows), 0)
        if rows and _is_header(rows[first].split(",")):
            del rows[first]
        if not rows:
            raise InputError(f"{self.path}: expected a line of numbers for each snippet, found none")
        try:
            array = np.loadtxt(list(rows.values()), np.float32, comments=None, delimiter=",", ndmin=2)
        except ValueError:
            # numpy counts rows, without the first line and blank ones; look again for the line that a user can open.
            width = len(next(iter(rows.values())).split(","))
            bad = next((number for number, line in rows.items() if not _is_row(line, width)), first)
            raise InputError(
                f"{self.path}: expected {width} numbers in each line, got something else in line {bad}"
            ) from None
        return to_features(array, self.path)


@dataclass(frozen=True)
class PickleFile:
    """Features in a pickled array or tensor.

    Attributes:
        path: the file.
        trusted: whether it may be loaded, which can run any code.
    """

    path: Path
    trusted: bool = False

    def load(self) -> NDArray[np.float32]:
        """Load the array."""
        if not self.trusted:
            raise InputError(f"{self.path}: expected an array, got {PICKLED}")
        with reading(self.path, "a pickled array"), open(self.path, "rb") as file:
            array = np.asarray(pickle.load(file))
        return to_features(array, self.path)


FORMATS: dict[str, Callable[[Path, bool], Source]] = {
    ".npy": lambda path, _: NpyFile(path),
    ".npz": lambda path, trusted: NpzMember(path, trusted=trusted),
    ".pt": lambda path, _: TensorFile(path),
    ".pth": lambda path, _: TensorFile(path),
    ".csv": lambda path, _: CsvFile(path),
    ".pkl": PickleFile,
    ".pickle": PickleFile,
}
PICKLED = (
    "pickled Python objects, which can run any code: set data.trusted=true (predict: --trusted) if you trust where "
    "they come from"
)


def locate(place: Path, videos: Iterable[str], *, trusted: bool) -> dict[str, Source]:
    """Find the features of videos, without opening them.

    Files and datasets have the names of the videos; YouTube's ids may have been given the prefix `v_`, or lost it.

    Args:
        place: a folder with a file for each video in one of `FORMATS`, or an HDF5 file with a dataset for each.
        videos: names of the videos.
        trusted: whether pickled objects may be loaded, which can run any code.

    Returns:
        A source for each video. Where there is none in `place`, it fails when it is opened.

    Raises:
        InputError: there is no such place, it has two files for a video, or one for two.
    """
    if place.suffix.lower() in HDF5_SUFFIXES:
        import h5py

        with reading(place, "an HDF5 file"), h5py.File(place, "r") as file:
            names = by_name(((name, name) for name in file), place)
        found = find_names(videos, names, place)
        return {video: Hdf5Dataset(place, names.get(name, video)) for video, name in found.items()}
    if not place.is_dir():
        raise InputError(f"{place}: expected a folder of features or an .hdf5 file, found none")
    paths: dict[str, Path] = {}
    for path in listed(place):
        name = normalize(path.stem)
        if path.suffix.lower() in FORMATS and paths.setdefault(name, path) != path:
            raise InputError(f"{place}: expected one file for {name}, found {paths[name].name} and {path.name}")
    sources = {}
    for video, name in find_names(videos, paths, place).items():
        path = paths.get(name, place / f"{video}.npy")
        sources[video] = FORMATS[path.suffix.lower()](path, trusted)
    return sources


def sources_of(path: Path, *, trusted: bool) -> dict[str, Source]:
    """The features in a file, by the names of the recordings: its own, or those of the datasets of an HDF5 file.

    Args:
        path: a file in one of `FORMATS`, or an HDF5 file.
        trusted: whether pickled objects may be loaded, which can run any code.

    Raises:
        InputError: its format is not known, or it can't be read.
    """
    suffix = path.suffix.lower()
    if suffix in HDF5_SUFFIXES:
        import h5py

        with reading(path, "an HDF5 file"), h5py.File(path, "r") as file:
            if not len(file):
                raise InputError(f"{path}: expected a dataset for each recording, found none")
            return by_name(((name, Hdf5Dataset(path, name)) for name in file), path)
    if suffix not in FORMATS:
        known = ", ".join([*FORMATS, *HDF5_SUFFIXES])
        raise InputError(f"{path}: expected a feature file, one of {known}, got {quote(path.suffix)}")
    return {normalize(path.stem): FORMATS[suffix](path, trusted)}


def check_packed(item: Any, path: Path) -> None:
    """Refuse a dataset of an HDF5 file that is small on disk and would fill the memory.

    Raises:
        InputError: it is large, and packed as values never are.
    """
    stored = item.id.get_storage_size()
    if item.nbytes > max(LARGE, PACKED * stored):
        raise InputError(f"{path}: expected values packed to a {PACKED}th at most, got {item.nbytes} bytes in {stored}")


def read_npz(file: Path, members: Collection[str], *, trusted: bool = False) -> dict[str, NDArray[Any]]:
    """Read some arrays of an .npz archive, and nothing else of it.

    Args:
        file: the archive.
        members: names of the arrays.
        trusted: whether they may hold pickled objects, which can run any code.

    Returns:
        Those that are there.

    Raises:
        InputError: the archive can't be read.
    """
    with (
        reading(file, "an .npz archive of plain arrays"),
        open(file, "rb") as opened,
        zipfile.ZipFile(opened) as packed,
        NpzFile(opened, allow_pickle=trusted) as archive,
    ):
        check_members(packed, file)
        arrays = {name: archive[name] for name in members if name in archive.files}
        return {name: np.asarray(array.tolist()) if array.dtype == object else array for name, array in arrays.items()}


def _is_row(line: str, width: int) -> bool:
    try:
        return len([to_number(cell) for cell in line.split(",")]) == width
    except ValueError:
        return False


def _is_header(cells: list[str]) -> bool:
    try:
        return len(cells) > 1 and [float(cell) for cell in cells] == list(range(len(cells)))
    except ValueError:
        return True


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Answer whatever a reader raises in one sentence: on damaged files that can be nearly any exception."""
    check_kind(path)
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: expected a feature file, found none") from None
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if "allow_pickle" in reason:
            found = PICKLED
        elif isinstance(error, pickle.UnpicklingError):
            found = "pickled Python objects, or a damaged file"
        else:
            found = f"a damaged file, or something else ({reason})"
        raise InputError(f"{path}: expected {expected}, got {found}") from None
