"""Arrays as NumPy stores them, .npy and .npz, believed only as far as there are bytes.

A header of some bytes can declare terabytes, and a megabyte of an archive unpack to a gigabyte.  So
what a header declares is compared with what is there before memory is asked for; of an archive
nothing is unpacked but what is read; and nothing is unpickled.
"""

import math
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from pyro_vae.datasets.data.checks import first_names
from pyro_vae.program.frames import free_memory
from pyro_vae.program.stored import large

MOST_DIRECTORY = 1 << 22  # bytes, of the directory of an archive: some ten thousand arrays
# Zeros unpack to a thousand times their size; counts of words, dense, to some fifty.  What is small
# may do as it likes.
MOST_RATIO, SMALL = 200, 1 << 26
MOST_NAMES = 10


def read_npy(path: Path) -> np.ndarray:
    """The array of a .npy: a large one stays in its file, as a ``numpy.memmap``.

    Raises:
        TypeError: it holds objects.
        ValueError: other bytes, or more or fewer of them than it declares.
    """
    with path.open("rb") as file:
        _require_magic(file, b"\x93NUMPY", path)
        return _undamaged(lambda: _array(file, os.fstat(file.fileno()).st_size, path))


def read_npz(path: Path, choose: Callable[[list[str]], Sequence[str | None]]) -> list[Any]:
    """Some arrays of a .npz; the others are not looked at.

    Args:
        path: the file.
        choose: says by the names of all which to read; None stands for none.

    Raises:
        TypeError: one holds objects.
        ValueError: no archive of arrays, or one that stands for more than it holds.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        _require_magic(file, b"PK", path)
        with _undamaged(lambda: _opened(file)) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            twice = [n for n, times in Counter(archive.namelist()).items() if times > 1]
            if twice:
                raise ValueError(f"got two arrays {twice[0]!r}, expected one; save it again")
            wanted = choose(list(members))
            return [n if n is None else _member(archive, members[n], size) for n in wanted]


def named(names: Sequence[str]) -> str:
    """The names of arrays or columns, as many as one reads."""
    return first_names([repr(name) for name in names], MOST_NAMES)


# --- parts --------------------------------------------------------------------------------------


def _require_magic(file: IO[bytes], magic: bytes, path: Path) -> None:
    if file.read(len(magic)) != magic:  # else numpy takes any bytes for a pickle
        raise ValueError(f"got other bytes than a {path.suffix} begins with; save it again")
    file.seek(0)


def _undamaged(read: Callable[[], Any]) -> Any:
    """What ``read`` gives, its errors as ours: zipfile, zlib, ast, struct, tokenize have theirs."""
    try:
        return read()
    except _Refused as error:
        raise ValueError(str(error)) from error
    except TypeError:
        raise
    except Exception as error:
        raise ValueError(
            f"got a damaged file ({error}), expected a complete one: save it again"
        ) from error


class _Refused(Exception):
    """What is whole, and refused none the less."""


def _array(file: IO[bytes], size: int, path: Path | None = None) -> np.ndarray:
    """The array at the beginning of a file of so many bytes, ``path`` where that is its own."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"format {version[0]}.{version[1]}, known are 1.0, 2.0 and 3.0")
    first = version == (1, 0)  # (3.0 is 2.0 with names of fields in UTF-8)
    reader = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(file)
    if dtype.hasobject:
        raise TypeError("got an array of objects, expected numbers; save it with .astype(float)")
    if any(isinstance(n, bool) or n < 0 for n in shape):
        raise ValueError(f"its header says shape {shape}")
    declared, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if declared != there:
        raise ValueError(
            f"its header says shape {shape} of {dtype}, which is {declared:,} bytes, and "
            f"{there:,} follow"
        )
    if path is not None and shape and large(shape):
        return np.load(path, mmap_mode="r", allow_pickle=False)
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


class _Directory:
    """A file of which the reader of archives takes no directory that fills the memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        if size > MOST_DIRECTORY:
            raise _Refused(
                f"got a directory of {size:,} bytes, expected {MOST_DIRECTORY:,} at most: save "
                "fewer arrays"
            )
        return self.file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _opened(file: IO[bytes]) -> zipfile.ZipFile:
    return zipfile.ZipFile(_Directory(file))


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int) -> np.ndarray:
    """One array, refused where it unpacks to much more than it takes.

    Args:
        archive, info: what it is of, and what is said of it there.
        size: of the archive, in bytes.
    """
    name, declared, packed = info.filename, info.file_size, min(info.compress_size, size)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"got {name!r} packed by method {info.compress_type}, expected what numpy writes: save "
            "it by np.savez or np.savez_compressed"
        )
    if declared > SMALL and declared > MOST_RATIO * packed:
        raise ValueError(
            f"got {name!r}, whose {packed:,} bytes unpack to {declared:,}, more than {MOST_RATIO} "
            "times as many: save it as .npy if that is meant"
        )
    free = free_memory()
    if free is not None and declared > free:
        raise ValueError(
            f"got {name!r} of {declared / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB are free: "
            "save fewer rows"
        )

    def read() -> np.ndarray:
        with archive.open(info) as file:
            if file.read(6) != b"\x93NUMPY":
                raise _Refused(f"got {name!r}, which is no array, expected one saved by np.savez")
            file.seek(0)
            return _array(file, declared)

    return _undamaged(read)
