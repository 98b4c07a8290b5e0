r"""Rows that stay where they are stored, and are read by number: data larger than memory.

=====================================================  =============================================
passed                                                 how its rows are read
=====================================================  =============================================
``numpy.load(path, mmap_mode="r")``, a ``memmap``      from the file's pages, which the system keeps
an array of zarr, h5py or dask                         in order, each once a minibatch
a map-style ``Dataset`` of more than 256 MiB           item by item, or by its ``__getitems__``
whatever else has ``__getitem__`` and ``__len__``      item by item
a dict or a tuple of these, beside arrays and tensors  together
=====================================================  =============================================

A minibatch reads its rows and no others.  Before training each row is read once, in the order in
which it is stored, to see whether the program takes it and to know the data again (sha256).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from pyro_vae.program.frames import free_memory, is_frame

Read = Callable[[np.ndarray], Any]  # positions, ascending and each once -> what stands there

BYTES_AT_ONCE = 32 << 20  # that a pass over all rows holds
IN_MEMORY = 256 << 20  # what a data set of items may take to be read once and kept


class Stored:
    """N rows that are read when they are asked for.

    Args:
        read: what stands at positions of the store (B,), which ascend and come once each.
        num_data: how many there are in the store.
        index: those that are meant, in this order; None for all.
        then: what is done to rows that were read, ``then(rows, index, epoch)``, with their
            positions in the store.
    """

    def __init__(
        self,
        read: Read,
        num_data: int,
        *,
        index: np.ndarray | None = None,
        then: tuple[Callable[[Any, Tensor, int], Any], ...] = (),
    ) -> None:
        self._read, self._whole, self._index, self._then = read, num_data, index, then
        self._digest: str | None = None

    def __len__(self) -> int:
        return self._whole if self._index is None else len(self._index)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self):,} rows, read when they are asked for)"

    def batch(self, index: Tensor, epoch: int) -> Any:
        """The rows at ``index`` (B,), as seen in an epoch."""
        places = index.numpy(force=True)
        if self._index is not None:
            places = self._index[places]
        unique, inverse = np.unique(places, return_inverse=True)
        rows = self._read(unique)
        if len(unique) < len(places) or not np.array_equal(inverse, np.arange(len(places))):
            order = torch.from_numpy(inverse.reshape(-1))
            rows = _mapped(lambda t: t.index_select(0, order), rows)
        for step in self._then:
            rows = step(rows, torch.from_numpy(places.astype(np.int64)), epoch)
        return rows

    def followed_by(self, step: Callable[[Any, Tensor, int], Any]) -> Stored:
        """The same rows, and this done to what is read of them."""
        return Stored(self._read, self._whole, index=self._index, then=(*self._then, step))

    def at(self, key: Any) -> np.ndarray:
        """Positions in the store, of a slice, of numbers (B,), or of a mask (N,)."""
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            places: Any = np.arange(start, stop, step, dtype=_integers(self._whole))
        else:
            places = np.asarray(key)
            if places.ndim != 1 or places.dtype.kind not in "biu":
                raise TypeError(
                    f"got an index {places.shape} of {places.dtype}, expected a slice, integers "
                    "(B,) or a boolean mask (N,)"
                )
            if places.dtype == bool:
                if len(places) != len(self):
                    raise ValueError(f"got a mask of {len(places)} for {len(self)} rows")
                places = places.nonzero()[0]
            low, high = (int(places.min()), int(places.max())) if len(places) else (0, -1)
            if not -len(self) <= low <= high + 1 <= len(self):
                raise IndexError(f"got rows {low} to {high}, expected them below {len(self)}")
            places = np.where(places < 0, places + len(self), places)
        return places if self._index is None else self._index[places]

    def __getitem__(self, key: Any) -> Stored:
        return Stored(self._read, self._whole, index=self.at(key), then=self._then)

    def first(self, number: int) -> Any:
        """The first rows, as seen in evaluation."""
        return self.batch(torch.arange(min(number, len(self))), 0)

    def some(self, number: int) -> Any:
        """As many rows at even distances, or all."""
        number = min(number, len(self))
        return self.batch(torch.linspace(0, len(self) - 1, number, dtype=torch.float64).long(), 0)

    def chunks(self) -> Iterator[tuple[int, Any]]:
        """All rows in order, ``(number of the first, rows)``, as seen in evaluation."""
        one = sum(t[:1].nbytes for t in _tensors(self.first(1)))
        size = max(1, BYTES_AT_ONCE // max(1, one))
        for start in range(0, len(self), size):
            yield start, self.batch(torch.arange(start, min(start + size, len(self))), 0)

    def rows(self) -> Any:
        """All rows at once.

        Raises:
            ValueError: they do not fit into memory.
        """
        needed = len(self) * sum(2 * t[:1].nbytes for t in _tensors(self.first(1)))
        free = free_memory()
        if free is not None and needed > free:
            raise ValueError(
                f"data of {len(self):,} rows takes {needed / 2**30:.3g} GiB to be looked at as a "
                f"whole, and {free / 2**30:.3g} GiB are free: take some rows, x[:10_000]; pv.fit "
                "and pv.elbo read them as they need them"
            )
        return self.batch(torch.arange(len(self)), 0)

    @property
    def digest(self) -> str:
        """sha256 of names, dtypes, shapes and bytes: that of the same rows in memory."""
        if self._digest is None:
            hashes: dict[str, Any] = {}
            for _, rows in self.chunks():
                entries = rows if isinstance(rows, dict) else {"x": rows}
                for name, t in entries.items():
                    if name not in hashes:
                        hashes[name] = begun_digest(name, t.dtype, (len(self), *t.shape[1:]))
                    hashes[name].update(t.cpu().contiguous().numpy().reshape(-1).data)
            combined = hashlib.sha256()
            for _, hashed in sorted(hashes.items()):
                combined.update(hashed.hexdigest().encode())
            self._digest = combined.hexdigest()
        return self._digest


def begun_digest(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Any:
    """sha256 of a tensor's name, dtype and shape, to which its bytes are still to be added."""
    return hashlib.sha256(f"{name} {dtype} {tuple(shape)}\0".encode())


def _mapped(function: Callable[[Tensor], Tensor], rows: Any) -> Any:
    if isinstance(rows, dict):
        return {name: function(t) for name, t in rows.items()}
    if isinstance(rows, tuple | list):
        return type(rows)(function(t) for t in rows)
    return function(rows)


def _tensors(rows: Any) -> list[Tensor]:
    return list(rows.values()) if isinstance(rows, dict) else [rows]


def _integers(size: int) -> type:
    """The smaller type that holds positions: of 10^8 rows they take memory themselves."""
    return np.int32 if size < 2**31 else np.int64


# --- what can be read so ------------------------------------------------------------------------


def is_stored(value: Any) -> bool:
    """Whether it is an array that lies elsewhere: its rows are there, and can be read by number."""
    if isinstance(value, np.memmap):
        return value.ndim > 0
    known = isinstance(value, Tensor | np.ndarray | Stored | Dataset) or is_frame(value)
    array = all(hasattr(value, name) for name in ("__getitem__", "shape", "dtype"))
    return not known and array and isinstance(value.shape, tuple) and len(value.shape) > 0


def is_items(value: Any) -> bool:
    """Whether it is a numbered sequence of rows which torch would call a map-style data set."""
    if isinstance(value, Dataset) or hasattr(value, "__getitems__"):
        return True
    plain = isinstance(value, str | bytes | list | tuple | dict | set | Tensor | np.ndarray)
    other = hasattr(value, "keys") or hasattr(value, "batch") or hasattr(value, "shape")
    numbered = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    return numbered and not plain and not other and not is_frame(value)


def array_reader(value: Any, convert: Callable[[Any], Tensor]) -> tuple[Read, int]:
    """How to read an array's rows, and how many there are."""
    if isinstance(value, Tensor):
        return (lambda places: value[torch.from_numpy(places)]), len(value)
    if isinstance(value, np.ndarray):
        plain = value.view(np.ndarray)

        def taken(places: np.ndarray) -> Tensor:
            _require_file(value)
            return convert(plain.take(places, axis=0))

        return taken, len(value)
    by_rows = getattr(value, "oindex", value)  # of zarr; h5py has it as its own

    def read(places: np.ndarray) -> Tensor:
        with _asking(value, places):
            if len(places) and places[-1] - places[0] + 1 == len(places):  # as fast as it can be
                rows = np.asarray(value[int(places[0]) : int(places[-1]) + 1])
            else:
                rows = np.asarray(by_rows[places])
        _require_all(value, rows.shape[:1], places)
        if rows.shape[1:] != tuple(value.shape[1:]):
            raise ValueError(
                f"rows of the {type(value).__name__} have shape {rows.shape[1:]}, expected "
                f"{tuple(value.shape[1:])}, as its own shape says"
            )
        return convert(rows)

    return read, int(value.shape[0])


def _require_file(value: np.ndarray) -> None:
    """Refuse a file that has been cut since it was opened: reading on would end the process."""
    whole = value
    while isinstance(whole, np.memmap) and isinstance(whole.base, np.memmap):
        whole = whole.base
    path = getattr(whole, "filename", None)
    if path is None:
        return
    needed = whole.offset + whole.nbytes  # type: ignore[attr-defined]
    if (found := os.stat(path).st_size) < needed:
        raise ValueError(
            f"{path} has {found:,} bytes, expected {needed:,}, as when it was opened: it has been "
            "cut or written anew; open it again"
        )


@contextlib.contextmanager
def _asking(value: Any, places: Sequence[int] | np.ndarray) -> Iterator[None]:
    try:
        yield
    except LookupError as error:
        raise ValueError(
            f"the {type(value).__name__} has no rows {_told(places)} "
            f"({type(error).__name__}: {error}), of the {len(value):,} that its len() says"
        ) from error


def _require_all(value: Any, found: tuple[int, ...], places: Sequence[int] | np.ndarray) -> None:
    if found != (len(places),):
        raise ValueError(
            f"the {type(value).__name__} was asked for {len(places)} rows, {_told(places)}, and "
            f"gave {found[0] if found else 'none'}: rows would be taken for others"
        )


def _told(places: Sequence[int] | np.ndarray) -> str:
    return f"{places[0]} to {places[-1]}" if len(places) > 1 else str(list(places))[1:-1]


def together(read: dict[Any, Read]) -> Read:
    """Several stores of the same rows as one."""
    return lambda places: {name: each(places) for name, each in read.items()}


def item_reader(data: Any) -> Read:
    """How to read the items of a map-style data set, stacked as torch's loader does."""
    return lambda places: stacked(data, items_at(data, places.tolist()))


def items_at(data: Any, numbers: list[int]) -> list[Any]:
    several = getattr(data, "__getitems__", None)
    with _asking(data, numbers):
        items = list(several(numbers)) if several is not None else [data[i] for i in numbers]
    _require_all(data, (len(items),), numbers)
    return items


def stacked(data: Any, items: list[Any]) -> Any:
    try:
        return default_collate(list(map(_with_arrays, items)))
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"the items of the {type(data).__name__} cannot be stacked ({error}), expected "
            "tensors or numbers of one shape, or tuples or dicts of them: convert them where "
            "the data set is made, transform=ToTensor(), or pass a dict of tensors"
        ) from error


def _with_arrays(item: Any) -> Any:
    """An item whose entries that are lists of numbers are arrays, which stack as what they are.

    (Of lists torch's loader would make a column each.)
    """
    if not isinstance(item, Mapping):
        return item
    return {
        name: np.asarray(value) if isinstance(value, list) and value else value
        for name, value in item.items()
    }


def large(shape: tuple[int, ...]) -> bool:
    """Whether an array takes so much memory, as float32, that it is better read by rows."""
    return 4 * math.prod(map(int, shape)) > IN_MEMORY


def fits(data: Any, example: Any) -> bool:
    """Whether all items take so little that reading them once is better than reading them often."""
    sizes = [t.nbytes for t in torch.utils._pytree.tree_leaves(example) if isinstance(t, Tensor)]
    return math.prod((len(data), sum(sizes))) <= IN_MEMORY
