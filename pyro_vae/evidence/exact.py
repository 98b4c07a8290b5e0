r"""log p(x) without an estimate: a program's own formula, or a sum over few values.

.. math:: \log p(x) = \log \sum_z p(z) \, p(x \mid z)

over all joint values z that a datum's discrete latents can take.  The model runs at each of them,
as it would at draws, so that it need not be written for enumeration; latents of the model alone
that are marked for it are summed out within each run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.densities.enumeration import model_sites
from pyro_vae.densities.look import Look
from pyro_vae.densities.sites import Site, Sites, base_law, has_finite_support, latents_of, unmarked
from pyro_vae.evaluation import RowFunction, event_size, row_chunks
from pyro_vae.evidence.weights import Evidence
from pyro_vae.noise import LOOK
from pyro_vae.program.rows import Rows, num_rows, repeated

MOST_VALUES = 4096  # joint values of a datum that are summed over


def has_formula(program: nn.Module) -> bool:
    """Whether a program has a ``log_evidence(x)`` of its own."""
    return callable(getattr(program, "log_evidence", None))


def discrete_latents(look: Look) -> Sites:
    """The latents that take separate values and are not summed out by the model."""
    latents = latents_of(unmarked(look.model))
    return {n: site for n, site in latents.items() if site.law.support.is_discrete}


def number_of_values(look: Look) -> int | None:
    """How many joint values the latents of a datum have; None where they cannot be listed."""
    latents = latents_of(unmarked(look.model))
    if any(s.is_global or s.is_masked or _support(s) is None for s in latents.values()):
        return None
    return math.prod(len(_support(s)) ** _copies(s) for s in latents.values())  # type: ignore[arg-type]


def advice(look: Look) -> str:
    """What to use where a method needs latents that move along gradients."""
    number = number_of_values(look)
    if number is not None and number <= MOST_VALUES:
        return f'use method="exact", which sums over their {number:,} values'
    return (
        'use method="importance", which takes draws of the guide; or sum it out: leave it to the '
        'model alone and mark it infer={"enumerate": "parallel"}'
    )


def exact(
    program: nn.Module,
    x: Rows,
    look: Look,
    advance: Callable[..., None],
    *,
    batch_size: int,
    max_elements: int,
) -> Evidence:
    """By the program's formula, or by a sum over its latents' values.

    Raises:
        ValueError: where there is neither, with what to use.
    """
    if has_formula(program):
        return _known(_by_formula(program, x, batch_size, advance))
    number = number_of_values(look)
    if number is None or number > MOST_VALUES:
        many = "of which there is no list" if number is None else f"which has {number:,} values"
        raise ValueError(
            f"{type(program).__name__} has no log_evidence(x) of its own and latents "
            f"({', '.join(latents_of(unmarked(look.model)))}) {many}, expected a formula or at "
            f'most {MOST_VALUES:,} joint values to sum over: use method="quadrature" up to two '
            'dimensions, else method="sandwich", or "importance" where latents are discrete'
        )
    return _known(_by_sum(program, x, look, batch_size, max_elements, advance))


def _known(value: Tensor) -> Evidence:
    value = value.double()
    nothing, none = torch.zeros_like(value), torch.full_like(value, math.nan)
    return Evidence(value, nothing, none, nothing, value, value, none)


def _by_formula(program: Any, x: Rows, size: int, advance: Callable[..., None]) -> Tensor:
    parts = []
    for count, rows in row_chunks(x, size):
        value = program.log_evidence(rows)
        shape = tuple(value.shape) if isinstance(value, Tensor) else None
        if shape != (num_rows(rows),):
            raise ValueError(
                f"{type(program).__name__}.log_evidence(x) returned "
                f"{type(value).__name__ if shape is None else shape} for {num_rows(rows)} rows, "
                f"expected ({num_rows(rows)},) nats, one a row"
            )
        parts.append(value[:count].detach())
        advance(count)
    return torch.cat(parts)


def _by_sum(
    program: nn.Module,
    x: Rows,
    look: Look,
    batch_size: int,
    max_elements: int,
    advance: Callable[..., None],
) -> Tensor:
    values, axes = _joint_values(latents_of(unmarked(look.model)))
    number = len(next(iter(values.values()))) if values else 1
    size = max(event_size(x), 1)
    batch = max(1, min(batch_size, num_rows(x), max_elements // size))
    at_once = max(1, min(number, max_elements // (size * batch)))

    def log_p(program: nn.Module, pair: Any) -> Tensor:
        rows, given = pair
        placed = {name: value.movedim(0, axes[name]) for name, value in given.items()}
        sites = model_sites(program, rows, placed)
        terms = [site.per_datum() for site in sites.values() if not site.is_global]
        return sum(terms[1:], terms[0])

    function = RowFunction(program, log_p)
    parts = []
    for count, rows in row_chunks(x, batch):
        found = []
        for start in range(0, number, at_once):
            # The last piece repeats its last value, so that one graph serves all.
            index = torch.arange(start, start + at_once)
            given = {
                name: value[index.clamp_max(number - 1)].repeat_interleave(batch, 0)
                for name, value in values.items()
            }
            each = function((repeated(rows, at_once), given), *LOOK).unflatten(0, (at_once, batch))
            found.append(each[: min(at_once, number - start), :count].double())
        parts.append(torch.cat(found).logsumexp(0))
        advance(count)
    return torch.cat(parts)


def _joint_values(latents: Sites) -> tuple[dict[str, Tensor], dict[str, int]]:
    """All joint values of a datum by site, (M, ...), and where rows stand in a site's value."""
    tables = {}
    for name, site in latents.items():
        support, copies = _support(site), _copies(site)
        if support is None:
            raise RuntimeError(f"{name} has no list of values")
        index = torch.tensor(list(itertools.product(range(len(support)), repeat=copies)))
        event = site.rows_first(site.value)[0].shape
        tables[name] = support[index.to(support.device)].reshape(len(index), *event)
    numbers = [range(len(table)) for table in tables.values()]
    joint = torch.tensor(list(itertools.product(*numbers)))
    values = {n: t[joint[:, k].to(t.device)] for k, (n, t) in enumerate(tables.items())}
    axes = {n: s.axis - len(s.event_shape) for n, s in latents.items()}  # type: ignore[operator]
    return values, axes


def _support(site: Site) -> Tensor | None:
    """The values of one draw, (S, ...), where they can be listed and no row has others."""
    law = base_law(site.law)
    if not (site.law.support.is_discrete and has_finite_support(law)):
        return None
    try:
        support = law.enumerate_support(expand=False)
    except (NotImplementedError, ValueError):  # of numbers of trials that differ
        return None
    if math.prod(support.shape[1 : support.dim() - len(law.event_shape)]) != 1:
        return None
    return support.reshape(len(support), *law.event_shape)


def _copies(site: Site) -> int:
    """How many draws a datum has of a site."""
    law = base_law(site.law)
    return site.rows_first(site.value)[0].numel() // max(1, math.prod(law.event_shape))
