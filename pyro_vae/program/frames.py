"""Frames and sparse matrices as dense arrays, and what a frame calls its rows and columns.

=====================================================  =============================================
passed                                                 how it is read
=====================================================  =============================================
a frame or series of pandas, polars, narwhals, modin   a column at a time; null is NaN
what converts to pandas, such as a table of Arrow      ``to_pandas()``
what has ``__dataframe__`` or ``__arrow_c_stream__``   by pandas, through that protocol
a matrix or array of SciPy, sparse                     dense, all at once, where it fits into memory
=====================================================  =============================================

None of these libraries is imported unless it is there already.
"""

from __future__ import annotations

import numbers
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

NUMBERS = "biuf"  # kinds of dtype
ADVICE = {
    "M": "a date is a number of its time since the first: (t - t.min()).dt.total_seconds()",
    "m": "a time is a number of its seconds: t.dt.total_seconds()",
    "category": "codes, column.cat.codes, are observed by pv.likelihoods.Columns with a group of "
    "pv.likelihoods.Categorical(), indicators, pandas.get_dummies(frame), by Bernoulli()",
    "text": "pandas.factorize(column)[0] makes codes, which pv.likelihoods.Columns with a group of "
    "pv.likelihoods.Categorical() observes",
}


def is_sparse(value: Any) -> bool:
    """Whether it is a sparse matrix or array of SciPy."""
    return hasattr(value, "tocsr") and hasattr(value, "nnz") and hasattr(value, "toarray")


def is_frame(value: Any) -> bool:
    """Whether it is a frame, a series, or a sparse matrix of any library."""
    return is_sparse(value) or any(
        hasattr(value, name) for name in ("to_numpy", "__dataframe__", "__arrow_c_stream__")
    )


def how_to_read(value: Any) -> str:
    """What to do with what is no array, no frame and no tensor."""
    if hasattr(value, "collect"):
        return ".collect() reads a lazy frame"
    return "np.asarray(...) makes one of nested lists"


def dense(value: Any, name: str) -> Any:
    """The array of what :func:`is_frame`.

    Raises:
        TypeError: a column of text, categories or dates, with its name and what to do.
        ValueError: a sparse matrix that would not fit into memory.
    """
    if is_sparse(value):
        return _dense(value, name)
    if not hasattr(value, "to_numpy"):
        value = _to_pandas(value, name)
    if not hasattr(value, "columns"):
        dtype = getattr(value, "dtype", None)
        if dtype is None or (_kind(dtype) == "f" and isinstance(dtype, np.dtype)):
            return value.to_numpy()
        return _numbers(value, name, "values")
    columns = list(_columns(value))
    if all(isinstance(getattr(each, "dtype", None), np.dtype) for _, each in columns):
        for column, series in columns:
            if _kind(series.dtype) not in NUMBERS:
                _refuse(series, name, f"column {column!r}")
        array = value.to_numpy()  # at once, and without a copy where columns are of one type
        return array if array.dtype != object else value.to_numpy(dtype=np.float64)
    arrays = [_numbers(each, name, f"column {column!r}") for column, each in columns]
    for (column, _), array in zip(columns, arrays, strict=True):
        if array.ndim > 1:
            raise TypeError(
                f"{name}: got column {column!r} with an array of shape {array.shape[1:]} in each "
                "row, expected one number: pass that column alone, frame[column].to_numpy()"
            )
    return np.stack(arrays, 1) if arrays else value.to_numpy()


def row_names(value: Any) -> np.ndarray | None:
    """What a frame of pandas calls its rows; None where it only counts them, or has no names."""
    index: Any = getattr(value, "index", None)
    if not (hasattr(value, "to_numpy") and hasattr(index, "nlevels")):
        return None
    if index.nlevels > 1:  # neither netCDF nor a coordinate has several values at one place
        return np.array([", ".join(map(str, each)) for each in index])
    names = index.to_numpy()
    if names.dtype.kind in "iu" and np.array_equal(names, np.arange(len(names))):
        return None
    return names if names.dtype.kind in "iufMm" else np.array(list(map(str, index)))


def column_names(value: Any) -> tuple[str, ...] | None:
    """What a frame calls its columns; None where it only counts them, or has no names."""
    names = getattr(value, "column_names", None) or getattr(value, "columns", None)
    # (Columns of an Arrow table are its arrays, and names of a numpy array are not names of ours.)
    if names is None or callable(names) or not (is_frame(value) and len(names)):
        return None
    if all(isinstance(n, int | np.integer) for n in names):
        return None if list(names) == list(range(len(names))) else tuple(map(str, names))
    return tuple(", ".join(map(str, n)) if isinstance(n, tuple) else str(n) for n in names)


def names_of_rows(x: Any) -> np.ndarray | None:
    """The same of all that users pass: a frame, a dict or tuple of them, a ``Data``."""
    if isinstance(x, Mapping):
        x = x["x"] if "x" in x else next(iter(x.values()), None)
    elif isinstance(x, tuple | list):
        x = x[0] if x else None
    is_data = hasattr(x, "batch") and hasattr(x, "digest")
    return x.row_names if is_data else row_names(x)


def names_of_columns(x: Any) -> dict[str, tuple[str, ...]]:
    """The names of columns, by entry; a frame alone is the entry "x"."""
    if hasattr(x, "batch") and hasattr(x, "digest"):
        return {} if x.columns is None else {x.name: x.columns}
    entries = x if isinstance(x, Mapping) else {"x": x}
    found = {str(name): column_names(value) for name, value in entries.items()}
    return {name: names for name, names in found.items() if names is not None}


# --- parts --------------------------------------------------------------------------------------


def _columns(frame: Any) -> Iterator[tuple[Any, Any]]:
    if hasattr(frame, "items"):  # pandas, which may have one name twice
        yield from frame.items()
    else:
        for column in frame.columns:
            yield column, frame[column]


def _kind(dtype: Any) -> str:
    """The letter of numpy for a dtype of any library, "?" where it has none."""
    return str(getattr(dtype, "kind", "?"))


def _numbers(column: Any, name: str, where: str) -> Any:
    """A column as an array of numbers, in which NaN stands for null.

    Raises:
        TypeError: naming it, and its first value that is no number.
    """
    kind = _kind(column.dtype)
    if kind in NUMBERS:  # of pandas: nullable, or Arrow's
        array = column.to_numpy()
        if array.dtype == object:
            return column.to_numpy(dtype=np.float64, na_value=np.nan)
        return array
    if kind != "?":
        _refuse(column, name, where)
    array = column.to_numpy()
    if array.dtype == object and all(v is None or isinstance(v, bool) for v in array):
        array = np.array([np.nan if v is None else float(v) for v in array])  # truth values
    if array.dtype.kind not in NUMBERS:
        _refuse(column, name, where)
    return array


def _refuse(column: Any, name: str, where: str) -> None:
    said = str(column.dtype)
    others = (each for each in enumerate(column) if not _is_number(each[1]))
    row, value = next(others, (None, None))
    if row is None:
        gaps = (each for each in enumerate(column) if not isinstance(each[1], numbers.Number))
        gap = next((f" ({value!r} in row {at})" for at, value in gaps), "")
        raise TypeError(
            f"{name}: got {where} of dtype {said}, expected numbers{gap}: convert with "
            + ".astype(float)"
            + (", or pandas.to_numeric(column) where pandas.NA is in it" * (said == "object"))
        )
    if _kind(column.dtype) == "c":
        raise TypeError(
            f"{name}: got {where} of dtype {said}, expected real numbers: pass real and imaginary "
            "parts as two columns"
        )
    starts = (("M", ("date", "time", "period")), ("m", ("timedelta", "duration")))
    kinds = [k for k, words in (*starts[::-1], ("category", ("categor", "enum")))
             if said.lower().startswith(words)]  # fmt: skip
    shown = " ".join(repr(value).split())
    raise TypeError(
        f"{name}: got {where} of dtype {said} ({shown} in row {row}), expected "
        f"numbers; drop the column or encode it: {ADVICE[kinds[0] if kinds else 'text']}"
    )


def _is_number(value: Any) -> bool:
    """Whether it is a number, or says that there is none."""
    if value is None or type(value).__name__ == "NAType":
        return True
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _to_pandas(value: Any, name: str) -> Any:
    if hasattr(value, "to_pandas"):
        return value.to_pandas()
    import pandas as pd

    try:
        if hasattr(value, "__dataframe__"):
            with warnings.catch_warnings():  # that pandas will drop the protocol
                warnings.simplefilter("ignore")
                return pd.api.interchange.from_dataframe(value)
        return pd.DataFrame.from_arrow(value)
    except (ImportError, AttributeError) as error:
        raise TypeError(
            f"{name} is {type(value).__name__}, which only Arrow's protocol reads ({error}): "
            "install pyarrow, or pass its frame of pandas or polars"
        ) from error


def _dense(value: Any, name: str) -> np.ndarray:
    """All of a sparse matrix: an update sees some rows, and an evaluation all of them."""
    shape, itemsize = tuple(value.shape), np.dtype(value.dtype).itemsize
    needed = float(np.prod(shape, dtype=np.float64)) * (
        itemsize + 4
    )  # and once in single precision
    free = free_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"{name} is a sparse {type(value).__name__} of shape {shape}, which takes "
            f"{needed / 2**30:.3g} GiB dense, and {free / 2**30:.3g} GiB are free: take fewer "
            "columns, such as those with the largest variance, or fewer rows at a time, "
            "x[:10_000]; values of one byte, x.astype(numpy.uint8), take less than half where "
            "they hold them"
        )
    return value.toarray()


def free_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None
