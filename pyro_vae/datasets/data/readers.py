"""Your own .npy, .npz and .csv files as `Data`.

As with arrays nothing is guessed, and as with every file here nothing is unpickled: a pickle can
run any program when it is read.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyro_vae.datasets.data.arrays import from_array
from pyro_vae.datasets.data.base import Data
from pyro_vae.datasets.data.checks import Binarize
from pyro_vae.datasets.data.numpy_files import named, read_npy, read_npz
from pyro_vae.datasets.data.tables import Header, read_table, warn_about_row_numbers
from pyro_vae.errors import regular_file


def from_file(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    labels_key: str | None = None,
    header: Header = "auto",
    binarize: Binarize = "none",
    scale: float | None = None,
    seed: int = 0,
    missing: bool = False,
) -> Data:
    """Read a .npy, .npz or .csv file as `Data`; a .npy of more than 256 MiB as `StoredData`.

    Args:
        path: the file. A .csv holds numbers between commas, semicolons, tabs or blanks, with a
            decimal point or, without commas between them, a decimal comma; what follows a "#" is
            a comment.
        key: which array of a .npz; not needed if there is but one, or one named "x".
        labels_key: the array of a .npz, or the column of a .csv, that holds integer labels; all
            others are x. Columns without names are counted from 0.
        header: whether the first line of a .csv names its columns. "auto" takes text for names,
            and 0, 1, 2, ... over other numbers; where numbers may be either it refuses.
        binarize, scale, seed, missing: as in `from_array`; "nan" is a number in a .csv.

    Raises:
        TypeError: the file holds text or objects (nothing is unpickled).
        ValueError: no such file, another suffix, a damaged file, no such array, a first line that
            may be a header or not, and all that `from_array` refuses.

    Warns:
        PyroVaeWarning: where the first of several columns counts the rows.
    """
    given, path = path, Path(path)
    if header not in (True, False, "auto"):
        raise ValueError(f'header: got {header!r}, expected True, False or "auto"')
    if path.suffix.lower() not in _READERS:
        raise ValueError(
            f"{path}: got suffix {path.suffix!r}, expected one of {', '.join(_READERS)}; save the "
            "array with np.save or np.savez, or as comma-separated text"
        )
    path = regular_file(given, str(given), "check the path")
    try:
        if header != "auto" and path.suffix.lower() != ".csv":
            raise ValueError(f"got header={header}, expected none: only a .csv has one")
        x, labels = _READERS[path.suffix.lower()](path, key, labels_key, header)
        return from_array(
            x, labels, binarize=binarize, scale=scale, seed=seed, missing=missing, in_place=True
        )
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    except TypeError as error:
        raise TypeError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_npy(
    path: Path, key: str | None, labels_key: str | None, header: Header
) -> tuple[Any, Any]:
    if key is not None or labels_key is not None:
        raise ValueError("got a key, expected none: a .npy holds one array; use a .npz for more")
    return read_npy(path), None


def _read_npz(
    path: Path, key: str | None, labels_key: str | None, header: Header
) -> tuple[Any, Any]:
    def choose(names: list[str]) -> tuple[str, str | None]:
        others = [name for name in names if name != labels_key]
        lone = "x" if "x" in others else others[0] if len(others) == 1 else None
        wanted = lone if key is None else key
        missing = [name for name in (wanted, labels_key) if name is not None and name not in names]
        if wanted is None or missing:
            if not names:
                raise ValueError("got an archive without arrays, expected one at least")
            got = f"no array {missing[0]!r}" if missing else "no key"
            raise ValueError(f"got {got}, expected key= to be one of {named(names)}")
        return wanted, labels_key

    x, labels = read_npz(path, choose)
    return x, labels


def _read_csv(
    path: Path, key: str | None, labels_key: str | None, header: Header
) -> tuple[Any, Any]:
    if key is not None:
        raise ValueError("got key=, expected none for a .csv: all its columns are read")
    frame = read_table(path, header)
    labels = None
    if labels_key is not None:
        places = [i for i, name in enumerate(frame.columns) if str(name) == labels_key]
        if len(places) != 1:
            columns = named([str(column) for column in frame.columns])
            got = f"no column {labels_key!r}" if not places else f"{len(places)} of {labels_key!r}"
            raise ValueError(f"got {got}, expected labels_key= one of {columns}")
        labels = frame.iloc[:, places[0]]
        frame = frame.iloc[:, [i for i in range(frame.shape[1]) if i not in places]]
    warn_about_row_numbers(frame)
    return frame, labels


_READERS: dict[str, Callable[[Path, str | None, str | None, Header], tuple[Any, Any]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
}
