"""Data with missing values: who takes them, and which row does not go through."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.densities.look import FEW, looking
from pyro_vae.densities.sites import Sites
from pyro_vae.densities.traces import sites_of_both
from pyro_vae.program.calling import evaluating, materialize
from pyro_vae.program.inputs import as_rows, stored_rows
from pyro_vae.program.rows import Rows, device_of, map_rows, num_rows
from pyro_vae.program.stored import Stored

ADVICE = (
    'remove or impute it, or have a model leave it out: pass {"x": x.nan_to_num(), "seen": '
    'x.isfinite()}, and observe the likelihood under .mask(x["seen"])'
)
OF_PARTS = (  # of a program that can be told to leave it out
    "remove or impute it, or say that NaN means missing, pv.VAE.build(..., missing=True)"
)


def usable_rows(x: Any, program: Any, *, learning: bool = False, whole: bool = True) -> Rows:
    """Data on the program's terms; values that are not finite only where the program takes them.

    A program takes them where every log density of such rows is finite all the same, as under a
    ``NanMaskedNormal`` or a mask; for ``learning`` the gradients of the parameters must be, too.

    Args:
        x: data as users pass them.
        program: the program.
        learning: gradients count.
        whole: False for covariates alone, with which the program cannot be scored.

    Raises:
        ValueError: the entry and its first row that the program does not take.
    """
    rows = as_rows(x, program, finite=False, whole=whole)
    said = not_taken(program, rows, learning=learning)
    if said is not None:
        raise ValueError(said)
    return rows


def readable_rows(x: Any, program: Any, *, learning: bool = False) -> Rows | Stored:
    """As :func:`usable_rows`, but stored rows stay where they are, and are looked at by and by."""
    stored = stored_rows(x, program)
    if stored is None:
        return usable_rows(x, program, learning=learning)
    for start, rows in stored.chunks():
        said = not_taken(program, rows, learning=learning, first_row=start)
        if said is not None:
            raise ValueError(said)
    return stored


def not_taken(program: Any, x: Rows, *, learning: bool, first_row: int = 0) -> str | None:
    """What is wrong with missing values in these rows; None where nothing is.

    Their numbers count from ``first_row``.
    """
    entries = x if isinstance(x, dict) else {"x": x}
    holes = {name: _rows_with_holes(t) for name, t in entries.items() if t.is_floating_point()}
    index = torch.cat([rows for rows in holes.values() if len(rows)] or [torch.tensor([])])
    index = index.unique().long().to(device_of(x))
    if not len(index):
        return None
    for some in (index[:FEW], index):
        selected = map_rows(partial(torch.index_select, dim=0, index=some), x)
        bad = _first_bad(program, selected, learning)
        if bad is not None:
            row = int(some[bad[0]]) if bad[0] is not None else int(some[0])
            name = next(n for n, rows in holes.items() if len(rows))
            for n, rows in holes.items():
                name = n if bool((rows == row).any()) else name
            advice = OF_PARTS if getattr(program, "missing", None) is False else ADVICE
            return (
                f'data "{name}" has a value that is not finite in row {first_row + row}, '
                f"{bad[1]}: {advice}"
            )
    return None


def _rows_with_holes(t: Tensor) -> Tensor:
    return (~t.reshape(len(t), -1).isfinite()).any(1).nonzero().flatten().cpu()


def _first_bad(program: Any, x: Rows, learning: bool) -> tuple[int | None, str] | None:
    """The first row whose densities, or whose gradients, are not finite, and what shows it."""
    try:
        with pyro.validation_enabled(False):
            materialize(program, x)
        with torch.set_grad_enabled(learning), evaluating(program), looking(program):
            guide, model = sites_of_both(program, x)
            for sites in (guide, model):
                if (found := _first_infinite(sites)) is not None:
                    return found
            if learning and not _has_finite_gradients(program, [guide, model]):
                row = _first_wild(program, x)
                return row, "where the gradient is none, though a mask hides the density"
    except ValueError as error:  # a distribution refused such parameters
        return None, (str(error).splitlines() or ["the program refuses it"])[0]
    return None


def _first_infinite(sites: Sites) -> tuple[int | None, str] | None:
    for name, site in sites.items():
        if site.is_deterministic:
            continue
        values = site.per_datum()
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            row = int(bad[0, 0]) if values.dim() else None
            at = values if row is None else values[row]
            return row, f'where site "{name}" has log density {at.item():g}'
    return None


def _has_finite_gradients(program: Any, both: list[Sites]) -> bool:
    terms = [s.density().sum() for sites in both for s in sites.values() if not s.is_deterministic]
    terms = [term for term in terms if term.requires_grad]
    params = [p for p in program.parameters() if p.requires_grad]
    if not terms or not params:
        return True
    grads = torch.autograd.grad(torch.stack(terms).sum(), params, allow_unused=True)
    return all(g is None or bool(g.isfinite().all()) for g in grads)


def _row(t: Tensor, row: int) -> Tensor:
    return t[row : row + 1]


def _first_wild(program: Any, x: Rows) -> int | None:
    """The first row whose gradient is not finite by itself."""
    for row in range(num_rows(x)):
        one = map_rows(partial(_row, row=row), x)
        guide, model = sites_of_both(program, one)
        if not _has_finite_gradients(program, [guide, model]):
            return row
    return None
