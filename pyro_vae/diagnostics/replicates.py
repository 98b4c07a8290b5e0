"""Data in place of those that were observed: drawn from the model, the same numbers missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.densities.dreams import draws_of
from pyro_vae.densities.look import Look
from pyro_vae.densities.sites import Site
from pyro_vae.distributions import CategoricalColumns
from pyro_vae.distributions.gaps import without_gaps
from pyro_vae.evaluation import RowFunction, row_chunks
from pyro_vae.noise import Stream
from pyro_vae.predictive.latents import drawn_latents
from pyro_vae.program.rows import Rows

Source = Literal["posterior", "prior"]
Kind = Literal["reals", "zeros and ones", "counts", "categories"]
ROWS = 1000  # at a time


class Observed(NamedTuple):
    """What one site observes, all data together.

    Attributes:
        entry: which entry of the data it is, None where it is a function of some.
        values: (N, ...).
        seen: which of the numbers count, (N, ...) bool.
        kind: of numbers.
    """

    entry: str | None
    values: Tensor
    seen: Tensor
    kind: Kind


def observed_of(program: nn.Module, x: Rows) -> dict[str, Observed]:
    """What the model observes, by site."""
    parts: dict[str, list[Observed]] = {}
    for count, rows in row_chunks(x, ROWS):
        look = Look.at(program, rows, rows=None)
        entries = look.entries
        for name, site in look.observations.items():
            parts.setdefault(name, []).append(_observed(site, entries[name], rows, count))
    return {
        name: Observed(
            each[0].entry,
            torch.cat([part.values for part in each]),
            torch.cat([part.seen for part in each]),
            each[0].kind,
        )
        for name, each in parts.items()
    }


def _observed(site: Site, entry: str | None, rows: Rows, count: int) -> Observed:
    value = site.value
    seen = site.whole_mask().to(value.device).expand(value.shape) & ~value.isnan()
    if entry is None:
        value, seen = site.rows_first(value), site.rows_first(seen)
    else:
        form = (rows[entry] if isinstance(rows, dict) else rows).shape
        value, seen = value.reshape(form), seen.reshape(form)
    return Observed(entry, value[:count].detach(), seen[:count], _kind(site))


def _kind(site: Site) -> Kind:
    law = without_gaps(site.base)
    if isinstance(law, dist.Categorical | CategoricalColumns):
        return "categories"
    support: Any = law.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    discrete = getattr(support, "is_discrete", False)
    value = site.value[~site.value.isnan()]
    if bool(((value == 0) | (value == 1)).all()) and (discrete or isinstance(law, dist.Bernoulli)):
        return "zeros and ones"
    return "counts" if discrete else "reals"


def replicates(
    program: nn.Module, x: Rows, source: Source, count: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """``count`` times what the model observes, drawn anew: (N, ...) by site.

    Args:
        program: in evaluation mode.
        x: the data, whose covariates are kept.
        source: latents from the guide at x ("posterior"), or from the prior.  What all data share
            comes from the guide in both.
        count: how many.
        seed: of the noise.
    """
    function = RowFunction(program, _replicate(source), calls=count)
    for number in range(count):
        parts = [
            {name: value[:kept] for name, value in drawn.items()}
            for piece, (kept, rows) in enumerate(row_chunks(x, ROWS))
            for drawn in [function(rows, *Stream.REPLICATED.key(seed, number, piece))]
        ]
        yield {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _replicate(source: Source) -> Callable[[Any, Rows], dict[str, Tensor]]:
    def replicate(program: nn.Module, rows: Rows) -> dict[str, Tensor]:
        shared = True if source == "prior" else None
        return draws_of(program, rows, drawn_latents(program, rows, shared=shared))[0]

    return replicate


def simulated(program: nn.Module, x: Rows, observed: dict[str, Observed], seed: int) -> Rows:
    """Data of the model's own in the form of ``x``: the same covariates, the same numbers missing.

    Raises:
        ValueError: where the model observes a function of x, a draw of which is no draw of x.
    """
    drawn = next(replicates(program, x, "prior", 1, seed))
    entries = dict(x) if isinstance(x, dict) else {"x": x}
    for name, each in observed.items():
        if each.entry is None:
            raise ValueError(
                f'the observed site "{name}" takes a function of x, so no data can be simulated: '
                "observe entries of x themselves and put the function into the likelihood"
            )
        old = entries[each.entry]
        entries[each.entry] = torch.where(each.seen, drawn[name].to(old.dtype), old)
    return entries if isinstance(x, dict) else entries["x"]
