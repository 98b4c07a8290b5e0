"""What users pass as data, on the program's terms.

=============================================  =====================================================
passed                                         what the program is called with
=============================================  =====================================================
a ``Data``                                     its rows
a tensor, an array, a frame of numbers         a tensor (N, ...); a series is (N,)
a sparse matrix or array of SciPy              a dense tensor (see :mod:`.frames`)
a dict of them                                 a dict of tensors
a tuple or list of them                        a dict, named by the parameters of ``model`` in order
a ``TensorDataset``, a map-style ``Dataset``   what its items, stacked, are
an array in a file, whatever has rows          what is read by rows (see :mod:`.stored`)
=============================================  =====================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pyro_vae.program.arguments import Arguments, arguments_of
from pyro_vae.program.calling import require_program
from pyro_vae.program.frames import dense, how_to_read, is_frame, is_sparse
from pyro_vae.program.rows import Rows, num_rows
from pyro_vae.program.stored import (
    Stored,
    array_reader,
    fits,
    is_items,
    is_stored,
    item_reader,
    items_at,
    stacked,
    together,
)


def as_tensor(value: Any, name: str = "data") -> Tensor:
    """A tensor as it is, an array or a frame as a tensor: each array of a user comes by here.

    Args:
        value: real numbers, none of them masked.  A read-only array is copied.  Of a frame the
            values (N, D), of a series (N,); of a sparse matrix of SciPy all values.
        name: what the caller knows it by, for the message.

    Raises:
        TypeError: anything else.
    """
    if is_frame(value):
        value = dense(value, name)
    require_unmasked(value, name)
    if isinstance(value, Tensor):
        if value.is_complex() or value.layout != torch.strided or value.is_nested:
            kind = f"{value.dtype}, {value.layout}" + (", nested" if value.is_nested else "")
            raise TypeError(
                f"{name} is a tensor of {kind}, expected dense real numbers: .to_dense() makes "
                "them of sparse ones, .to_padded_tensor(0.0) of nested ones"
            )
        return value
    if isinstance(value, np.ndarray) and value.ndim:
        if value.dtype.kind not in "fiub":
            raise TypeError(
                f"{name} is an array of dtype {value.dtype}, expected real numbers: convert with "
                ".astype(float)"
            )
        # torch knows no foreign byte order, no long double, no negative strides.
        dtype = np.dtype(np.float64) if value.dtype.itemsize > 8 else value.dtype
        native = np.ascontiguousarray(value.astype(dtype.newbyteorder("="), copy=False))
        return torch.from_numpy(native if native.flags.writeable else native.copy())
    raise TypeError(
        f"{name} is {type(value).__name__}, expected a Data, a tensor, an array or a frame of "
        f"numbers (N, ...), or a dict of them: {how_to_read(value)}"
    )


def require_unmasked(value: Any, name: str) -> None:
    """Refuse what masks values, which a plain tensor would show as if they had been measured.

    Raises:
        TypeError: how many are masked, and the ways out.
    """
    if isinstance(value, Tensor):
        if not torch.masked.is_masked_tensor(value):
            return
        mask = ~value.get_mask().numpy(force=True)
    elif np.ma.is_masked(value):
        mask = np.ma.getmaskarray(value)
    else:
        return
    row = f", the first in row {int(np.argwhere(mask)[0][0])}" if mask.any() and mask.ndim else ""
    raise TypeError(
        f"{name} is a masked array, {int(mask.sum())} of its {mask.size} values masked{row}, "
        "expected plain values: fill them, x.filled(0), or drop their rows; to have a model leave "
        'them out, pass {"x": x.filled(0), "seen": ~x.mask}, and observe the likelihood under '
        '.mask(x["seen"])'
    )


def any_parameter(program: nn.Module) -> Tensor:
    """Any parameter, for its device and precision (a program may create its first one later)."""
    return next(program.parameters(), torch.zeros(()))


def like_parameters(rows: Rows, program: nn.Module) -> Rows:
    """On the program's device; real numbers in its precision, whole numbers as they are.

    Pixels (bytes and booleans) of the observed x are real numbers; of covariates they are labels.
    The main entry of a dict comes first.
    """
    parameter = any_parameter(program)

    def place(t: Tensor, observed: bool) -> Tensor:
        pixels = observed and t.dtype in (torch.uint8, torch.bool)
        real = t.is_floating_point() or pixels
        return t.to(parameter.device, parameter.dtype if real else t.dtype)

    if not isinstance(rows, dict):
        return place(rows, True)
    observed = _observed_entry(rows, program)
    names = list(rows) if observed is None else [observed, *(n for n in rows if n != observed)]
    return {name: place(rows[name], name == observed) for name in names}


def _observed_entry(rows: dict[str, Tensor], program: nn.Module) -> str | None:
    """``"x"``, or what is named as the observed site is, or the model's first parameter."""
    takes = arguments_of(program)
    first = takes.names[:1] if takes.by_name(rows) else ()
    candidates = ("x", getattr(program, "observed", "x"), *first)
    return next((name for name in candidates if name in rows), None)


def gathered(x: Any, program: nn.Module) -> Any:
    """What a user passed, as a ``Data``, a tensor, a dict of tensors, or ``Stored``; not yet cast.

    Items that fit into memory are read here, so that a caller who needs them more than once asks
    once.

    Raises:
        TypeError: what is none of the things above, and what to pass instead.
    """
    require_program(program)
    return gathered_by(x, lambda values: _named(values, arguments_of(program)))


def gathered_by(x: Any, named: Callable[[Any], Rows]) -> Any:
    """:func:`gathered` without a program: ``named`` makes a dict of a tuple of entries."""
    if isinstance(x, Stored):
        return x
    if hasattr(x, "to_numpy") or is_sparse(x):  # a frame has columns as attributes of any name
        return as_tensor(x)
    if isinstance(x, IterableDataset | DataLoader):
        advice = "its .dataset" if isinstance(x, DataLoader) else "torch.stack(list(x))"
        raise TypeError(
            f"data is a {type(x).__name__}, whose rows have no numbers, expected all rows at once "
            f"(minibatches are pv.fit's own, batch_size=...): pass {advice}"
        )
    if isinstance(x, TensorDataset):
        x = x.tensors
    elif is_stored(x):
        return Stored(*array_reader(x, as_tensor))
    elif is_items(x):
        x = _items(x, named)
        if isinstance(x, Stored):
            return x
    elif hasattr(x, "train") and hasattr(x, "test"):
        raise TypeError(
            f"data is a whole {type(x).__name__}, expected one part of it: pass data.train or "
            "data.test"
        )
    elif hasattr(x, "rows") and hasattr(x, "batch"):
        return x
    if isinstance(x, Mapping):
        return _together({name: _entry(name, value) for name, value in x.items()})
    if isinstance(x, tuple | list) and any(map(_is_array, x)):
        return _together(named(x))
    return as_tensor(x)


def _together(entries: Any) -> Rows | Stored:
    """Tensors as they are; beside an array that lies elsewhere they are read with its rows."""
    if not isinstance(entries, dict):
        return Stored(*array_reader(entries, as_tensor)) if is_stored(entries) else entries
    if not any(map(is_stored, entries.values())):
        return entries
    readers, lengths = {}, {}
    for name, value in entries.items():
        readers[name], lengths[name] = array_reader(
            value, partial(as_tensor, name=f'data "{name}"')
        )
    if len({*lengths.values()}) > 1:
        raise ValueError(
            f"the entries of the data have {lengths} rows: they need a common first dimension"
        )
    return Stored(together(readers), next(iter(lengths.values())))


def _items(data: Any, named: Callable[[Any], Rows]) -> Any:
    """The items of a map-style data set: all of them, stacked, or to be read as they are needed."""
    if len(data) == 0:
        raise ValueError("data has no rows, expected at least one")
    first = items_at(data, [0])  # each once: reading may be slow, or draw at random
    if fits(data, stacked(data, first)):
        return stacked(data, [*first, *items_at(data, list(range(1, len(data))))])

    def entries(rows: Any, *_: Any) -> Any:
        return named(rows) if isinstance(rows, tuple | list) else rows

    return Stored(item_reader(data), len(data), then=(entries,))


def _entry(name: Any, value: Any) -> Tensor:
    if not isinstance(name, str):
        raise TypeError(f"an entry of the data is called {name!r}, expected a text: rename it")
    plain = value is None or isinstance(value, str | int | float | complex)
    if plain or getattr(value, "shape", (0,)) == ():
        got = "None" if value is None else f"{value!r}, one {type(value).__name__}"
        raise TypeError(
            f'data "{name}" is {got}, expected a tensor with a row for each datum: leave it out '
            f"where {name} has a default; give what is the same for all data to the program, "
            f"functools.partial(model, {name}=...)"
        )
    return value if is_stored(value) else as_tensor(value, f'data "{name}"')


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) or is_frame(value) or is_stored(value)


def _named(values: Any, takes: Arguments) -> Rows:
    """The entries of a tuple, named by the parameters of the model in order."""
    if len(values) == 1:
        return values[0] if is_stored(values[0]) else as_tensor(values[0])
    names = takes.names
    fields = getattr(values, "_fields", ())  # of a namedtuple
    if fields and {*fields} <= {*names}:
        names = fields
    if len(values) > len(names):
        shown = f"model{takes.model} and guide{takes.guide}"
        raise TypeError(
            f"data is a {type(values).__name__} of {len(values)}, and {shown} have "
            f"{len(names)} {'parameter' if len(names) == 1 else 'parameters'}: pass what they "
            'take alone, the first of them, say; or a dict, {"x": x, "label": label}, which '
            "functions of one parameter are given whole; or torch.stack(rows), if they are rows"
        )
    return {name: _entry(name, value) for name, value in zip(names, values, strict=False)}


def as_rows(x: Any, program: nn.Module, *, finite: bool = True, whole: bool = True) -> Rows:
    """All rows as they are evaluated: of a ``Data`` with dynamic binarization those of epoch 0.

    Values that are not finite are refused, unless ``finite`` is False; entries that model or guide
    need and that are missing are refused, unless ``whole`` is False.  What is stored elsewhere is
    read, if it fits into memory.
    """
    rows = like_parameters(_all(gathered(x, program)), program)
    if whole:
        _require_entries(rows, program)
    if num_rows(rows) == 0:
        raise ValueError("data has no rows, expected at least one")
    for name, value in (rows if isinstance(rows, dict) else {"x": rows}).items():
        if finite and value.is_floating_point() and not value.isfinite().all():
            row = int((~value.reshape(num_rows(rows), -1).isfinite()).any(1).nonzero()[0])
            raise ValueError(
                f'data "{name}" has a value that is not finite in row {row}: remove or impute it, '
                'or have a model leave it out: pass {"x": x.nan_to_num(), "seen": x.isfinite()}, '
                'and observe the likelihood under .mask(x["seen"])'
            )
    return rows


def _all(x: Any) -> Rows:
    return x.rows() if hasattr(x, "rows") else x


def stored_rows(x: Any, program: nn.Module) -> Stored | None:
    """Rows that stay where they are, as the program takes them when they are read; or None.

    Raises:
        ValueError, TypeError: as of :func:`as_rows`, but for values that are not finite.
    """
    x = gathered(x, program)
    if not isinstance(x, Stored):
        return None
    if len(x) == 0:
        raise ValueError("data has no rows, expected at least one")
    as_rows(x.first(1), program, finite=False)
    return x.followed_by(lambda rows, *_: like_parameters(rows, program))


def _require_entries(rows: Rows, program: nn.Module) -> None:
    takes = arguments_of(program)
    takes.require(rows)
    if isinstance(rows, dict) and takes.by_name(rows) and not hasattr(program, "_takes"):
        raise TypeError(
            f"{type(program).__name__} takes the entries {takes.model} by name, expected a "
            "pv.Program, which passes them so: wrap it, pv.Program(module)"
        )
    if not isinstance(rows, dict) or _observed_entry(rows, program):
        return
    if not rows or takes.model.names[:1] == ("x",) or not takes.model.known:
        raise TypeError(
            f"data has the entries {', '.join(map(repr, rows)) or 'of an empty dict'}, expected an "
            'entry "x", which is what model(x) observes: call it so, or name the observed site as '
            "the entry, pv.Program(..., observed=...)"
        )
