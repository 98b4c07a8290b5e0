"""Many rows in chunks of one size, without gradients: what every evaluation runs through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import torch
from torch import nn
from torch.utils import _pytree as pytree

from pyro_vae.graphs.compiling import repaid
from pyro_vae.graphs.lifted import Lifted
from pyro_vae.graphs.lifting import lift
from pyro_vae.graphs.probing import nudged, others
from pyro_vae.noise import NoiseMode, keyed, seeded
from pyro_vae.program.calling import Parameters, call_with
from pyro_vae.program.rows import Rows, device_of, map_rows, num_rows
from pyro_vae.program.stored import Stored

# --- rows in chunks -----------------------------------------------------------------------------


MANY = 30  # calls


class RowFunction:
    """``function(program, rows)`` for many batches, without gradients.

    The first two calls of a form (shapes and dtypes) run the program's handlers; one that comes
    oftener, as all do of which many ``calls`` are expected, is captured and runs as a graph where
    it can, and compiled where so many repay that.  Its noise always depends on the key alone.
    """

    def __init__(
        self, program: nn.Module, function: Callable[[nn.Module, Any], Any], calls: int = 0
    ) -> None:
        # As they are, and no detached copies: pyro.module warns of parameters without gradient.
        self._parameters: Parameters = dict(program.named_parameters())
        self._expected = calls
        self._calls: dict[tuple, int] = {}
        self._graphs: dict[tuple, Lifted] = {}

        def run(parameters: Parameters, rows: Any) -> Any:
            with torch.no_grad():
                return call_with(program, parameters, function, rows)

        self._run = run

    def __call__(self, rows: Any, *key: int) -> Any:
        form = tuple((t.shape, t.dtype) for t in pytree.tree_leaves(rows))
        self._calls[form] = self._calls.get(form, 0) + 1
        # A capture costs some tenths of a second.
        if self._calls[form] == (1 if self._expected >= MANY else 3):
            moved = nudged(self._parameters)
            probes = [(moved, other) for other in others(rows)]
            lifted = lift(self._run, self._parameters, rows, probes=probes)
            if isinstance(lifted, Lifted) and not lifted.kept:
                example = pytree.tree_leaves((self._parameters, rows))
                lifted.run = repaid(lifted.graph, self._expected, *example, *lifted.draw(key))
                self._graphs[form] = lifted
        if form in self._graphs:
            graph = self._graphs[form]
            with torch.no_grad():
                return graph(self._parameters, rows, noise=graph.draw(key))
        with NoiseMode(keyed(*key)), seeded(*key), pyro.validation_enabled(False):
            return self._run(self._parameters, rows)


def row_chunks(x: Rows | Stored, size: int, *, fill: bool = False) -> Iterator[tuple[int, Rows]]:
    """Cut ``x`` into pieces of exactly ``size`` rows: ``(rows that count, rows)``.

    The last piece repeats the last row, so that one captured graph serves all.  Fewer rows than
    ``size`` are one piece as they are, unless it is to be filled, too.
    """
    total = num_rows(x)
    size = size if fill else min(size, total)
    for start in range(0, total, size):
        if isinstance(x, Stored):
            index = torch.arange(start, start + size).clamp_max(total - 1)
            yield min(size, total - start), x.batch(index, 0)
            continue
        index = torch.arange(start, start + size, device=device_of(x)).clamp_max(total - 1)
        rows = map_rows(partial(torch.index_select, dim=0, index=index), x)
        yield min(size, total - start), rows


def event_size(x: Rows) -> int:
    """Numbers that a datum consists of, covariates among them."""
    return max(1, sum(t[0].numel() for t in (x.values() if isinstance(x, dict) else [x])))
