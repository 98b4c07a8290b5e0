"""Rows: what a program is called with, and how one looks at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_vae.noise import Stream, seed_of
from pyro_vae.program.stored import Stored

Rows = Tensor | dict[str, Tensor]  # what a program is called with: (B, ...) in each entry


def main_entry(x: dict[str, Tensor]) -> str:
    """The entry of a dict that tells its device and form: ``"x"``, or else the first one.

    (:func:`~pyro_vae.program.inputs.as_rows` puts the first parameter of ``model`` in front.)
    """
    return "x" if "x" in x else next(iter(x), "x")


def observed_rows(x: Rows) -> Tensor:
    """The observed tensor of ``x``: itself, or the main entry of a dict."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, dict) and isinstance(main := x.get(main_entry(x)), Tensor):
        return main
    raise TypeError(
        f"x is {type(x).__name__}, expected a tensor (B, ...) or a dict of tensors with an "
        'entry "x": wrap arrays with torch.as_tensor or pv.datasets.from_array'
    )


def map_rows(function: Callable[[Tensor], Tensor], x: Rows) -> Rows:
    """Apply ``function`` to the tensor, or to each entry of the dict."""
    if isinstance(x, dict):
        return {name: function(value) for name, value in x.items()}
    return function(x)


def first_rows(x: Rows | Stored, number: int) -> Rows:
    return x.first(number) if isinstance(x, Stored) else map_rows(lambda t: t[:number], x)


def rows_from(x: Rows, start: int, number: int) -> Rows:
    """So many rows from ``start`` on."""
    return map_rows(lambda t: t[start : start + number], x)


def parts(x: Rows | Stored) -> Iterator[tuple[int, Rows]]:
    """All rows, ``(number of the first, rows)``: at once, or as they are read."""
    if isinstance(x, Stored):
        yield from x.chunks()
    else:
        yield 0, x


def repeated(x: Rows, times: int) -> Rows:
    """(B, ...) to (K B, ...): rows are independent, so K particles are K times the rows."""
    return map_rows(lambda t: t.repeat(times, *[1] * (t.dim() - 1)), x)


def num_rows(x: Rows | Stored) -> int:
    """The number of data in ``x``; entries of a dict must agree on it."""
    if isinstance(x, Stored):
        return len(x)
    rows = len(observed_rows(x))
    if isinstance(x, dict):
        main = main_entry(x)
        for name, value in x.items():
            if len(value) != rows:
                raise ValueError(
                    f'entry "{name}" of x has {len(value)} rows and entry "{main}" has {rows}: '
                    "the entries need a common first dimension"
                )
    return rows


def device_of(x: Rows) -> torch.device:
    return pytree.tree_leaves(x)[0].device


def some_rows(number: int, most: int, seed: int) -> Tensor:
    """At most so many of N rows, any with the same probability, in order."""
    generator = torch.Generator().manual_seed(seed_of(*Stream.SUBSET.key(seed)))
    return torch.randperm(number, generator=generator)[:most].sort().values


def as_many_rows(number: int, count: int, seed: int) -> Tensor:
    """``count`` of N rows, all equally often: in order and over again, the rest any.

    A rest in order would be the first rows, which are not like the others where rows are sorted.
    """
    whole = torch.arange(number).repeat(count // number)
    return torch.cat([whole, some_rows(number, count % number, seed)])
