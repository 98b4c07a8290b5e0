"""Your own .npy, .npz and .csv files as `Data`.

As with arrays nothing is guessed, and as with every file here nothing is unpickled: a pickle can
run any program when it is read.
"""

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.datasets.data.arrays import from_array
from pyro_vae.datasets.data.base import Data
from pyro_vae.datasets.data.checks import Binarize


def from_file(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    labels_key: str | None = None,
    binarize: Binarize = "none",
    scale: float | None = None,
    seed: int = 0,
) -> Data:
    """Read a .npy, .npz or .csv file as `Data`.

    Args:
        path: the file. A .csv holds comma-separated numbers; a first line that is not all
            numbers is a header.
        key: which array of a .npz; not needed if there is but one, or one named "x".
        labels_key: the array of a .npz, or the column of a .csv, that holds integer labels.
        binarize, scale, seed: as in `from_array`.

    Raises:
        TypeError: the file holds text or objects (nothing is unpickled).
        ValueError: no such file, another suffix, a damaged file, no such array, and all that
            `from_array` refuses.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in _READERS:
        raise ValueError(
            f"{path}: got suffix {path.suffix!r}, expected one of {', '.join(_READERS)}; save the "
            "array with np.save or np.savez, or as comma-separated text"
        )
    if not path.is_file():
        raise ValueError(f"{path}: got no such file; check the path (from {Path.cwd()})")
    try:
        x, labels = _READERS[path.suffix.lower()](path, key, labels_key)
        return from_array(x, labels, binarize=binarize, scale=scale, seed=seed)
    except TypeError as error:
        raise TypeError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_npy(path: Path, key: str | None, labels_key: str | None) -> tuple[Any, Any]:
    if key is not None or labels_key is not None:
        raise ValueError("got a key, expected none: a .npy holds one array; use a .npz for more")
    return _numpy_load(path, b"\x93NUMPY"), None


def _read_npz(path: Path, key: str | None, labels_key: str | None) -> tuple[Any, Any]:
    arrays = _numpy_load(path, b"PK")
    others = [name for name in arrays if name != labels_key]
    if key is None and ("x" in others or len(others) == 1):
        key = "x" if "x" in others else others[0]
    missing = [name for name in (key, labels_key) if name is not None and name not in arrays]
    if key is None or missing:
        got = f"no array {missing[0]!r}" if missing else "no key"
        raise ValueError(f"got {got}, expected key= to be one of {', '.join(map(repr, arrays))}")
    return arrays[key], None if labels_key is None else arrays[labels_key]


def _numpy_load(path: Path, magic: bytes) -> Any:
    """The array of a .npy, the dictionary of a .npz."""
    with path.open("rb") as file:
        if file.read(len(magic)) != magic:  # else numpy takes any bytes for a pickle
            raise ValueError(f"got other bytes than a {path.suffix} begins with; save it again")
        file.seek(0)
        try:
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else dict(loaded.items())
        except (
            Exception
        ) as error:  # a damaged file raises errors of zipfile, zlib, ast, struct, ...
            if "allow_pickle" in str(error):
                raise TypeError(
                    "got an array of objects, expected numbers; save it with .astype(float)"
                ) from error
            raise ValueError(f"got a damaged file ({error}), expected a complete one") from error


def _read_csv(path: Path, key: str | None, labels_key: str | None) -> tuple[Any, Any]:
    import pandas as pd  # slow to import, and only this function needs it

    if key is not None:
        raise ValueError("got key=, expected none for a .csv: all its columns are read")
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            first = next((fields for fields in csv.reader(file) if fields), [])
        except csv.Error as error:  # such as a field of more than 131072 characters
            raise ValueError(f"got no comma-separated text ({error})") from error
    header = None if all(map(_is_number, first)) else 0
    if header == 0 and not first[0].strip():
        # What DataFrame.to_csv writes: row numbers would be taken for a feature.
        raise ValueError("got a first column without a name, an index?; write it with index=False")
    frame = pd.read_csv(path, header=header, encoding="utf-8-sig")
    if not isinstance(frame.index, pd.RangeIndex):  # pandas makes surplus fields an index
        raise ValueError(f"got rows longer than the header of {len(first)} columns; complete it")
    if labels_key is None:
        return frame, None
    if labels_key not in frame.columns:
        columns = ", ".join(repr(str(column)) for column in frame.columns)
        raise ValueError(f"got no column {labels_key!r}, expected labels_key= one of {columns}")
    return frame.drop(columns=labels_key), frame[labels_key]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_READERS: dict[str, Callable[[Path, str | None, str | None], tuple[Any, Any]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
}
