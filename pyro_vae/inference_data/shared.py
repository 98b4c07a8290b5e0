"""Draws of a program whose data share latents, such as weights: one draw of these serves all rows.

A draw is one of everything, the shared latents first and the rows' at them, however the rows are
cut into chunks.  There is no log p(x) per datum then, and no weight of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from pyro_vae.densities.dreams import draws_of
from pyro_vae.densities.look import Look
from pyro_vae.densities.sites import latents_of, values_of
from pyro_vae.densities.tables import tabulated
from pyro_vae.densities.traces import At, sites_of
from pyro_vae.evaluation import RowFunction, row_chunks
from pyro_vae.inference_data.draws import Cast, Groups, as_array, by_particle, by_site, numbered
from pyro_vae.program.rows import Rows, num_rows

Shared = dict[str, Tensor]  # site -> value, one for all rows
JOINT = "joint"  # a group of ours: what is of all rows together, and no variable of any


def shared_latents(look: Look) -> list[str]:
    """The latents outside the data's plate that have a prior there."""
    return [n for n, site in latents_of(look.model).items() if site.is_global and n in look.latents]


def from_guide(observed: Sequence[str], predictive: bool, cast: Cast) -> tuple[Callable, Callable]:
    """A draw from the guide: of the shared latents, and of the rows at these."""

    def shared(program: Any, rows: Rows) -> Shared:
        guide = latents_of(sites_of(program, "guide", rows))
        return {name: site.value.clone() for name, site in guide.items() if site.is_global}

    def of_rows(program: Any, both: tuple[Rows, Shared]) -> Groups:
        rows, given = both
        guide = sites_of(program, "guide", rows, At(given))
        latents = values_of(guide)
        d = tabulated(rows, guide, sites_of(program, "model", rows, At(latents)))
        groups: Groups = {
            "posterior": {n: value for n, value in latents.items() if n not in given},
            "sample_stats": {"lp": d.log_p, "log_q": d.log_q},
            "log_likelihood": by_site(d, observed),
        }
        if predictive:
            replicated, _ = draws_of(program, rows, latents)
            groups["posterior_predictive"] = cast(replicated)
        groups = by_particle(groups, 1, num_rows(rows))
        return {**groups, JOINT: {"lp": d.global_log_p, "log_q": d.global_log_q}}

    return shared, of_rows


def latents_at(program: Any, both: tuple[Rows, Shared]) -> Groups:
    """The guide's latents of the rows at a draw of the shared ones, without running the model."""
    rows, given = both
    latents = values_of(sites_of(program, "guide", rows, At(given)))
    own = {name: value for name, value in latents.items() if name not in given}
    return by_particle({"posterior": own}, 1, num_rows(rows))


def predictions_at(cast: Cast) -> Callable[[Any, tuple[Rows, Shared]], Groups]:
    """The same, and x drawn at them."""

    def of_rows(program: Any, both: tuple[Rows, Shared]) -> Groups:
        rows, given = both
        latents = values_of(sites_of(program, "guide", rows, At(given)))
        replicated, _ = draws_of(program, rows, latents)
        own = {name: value for name, value in latents.items() if name not in given}
        return by_particle({"predictions": {**own, **cast(replicated)}}, 1, num_rows(rows))

    return of_rows


def from_prior(predictive: bool, cast: Cast) -> tuple[Callable, Callable]:
    """A draw from the prior: of the shared latents, and of the rows at these."""

    def shared(program: Any, rows: Rows) -> Shared:
        model = latents_of(sites_of(program, "model", rows))
        return {name: site.value.clone() for name, site in model.items() if site.is_global}

    def of_rows(program: Any, both: tuple[Rows, Shared]) -> Groups:
        rows, given = both
        groups: Groups = {}
        if predictive:
            replicated, latents = draws_of(program, rows, given)
            groups["prior_predictive"] = cast(replicated)
        else:
            latents = values_of(sites_of(program, "model", rows, At(given)))
        groups["prior"] = {n: value for n, value in latents.items() if n not in given}
        return by_particle(groups, 1, num_rows(rows))

    return shared, of_rows


def shared_draws(
    program: nn.Module,
    x: Rows,
    function: Callable,
    draws: int,
    key: tuple[int, ...],
    batch_size: int,
) -> list[Shared]:
    """Draws of the latents that all data share."""
    draw = RowFunction(program, function)
    _, rows = next(row_chunks(x, batch_size))
    return [draw(rows, *key, number, 0) for number in range(draws)]


def drawn_together(
    program: nn.Module,
    x: Rows,
    function: Callable,
    given: list[Shared],
    key: tuple[int, ...],
    batch_size: int,
    first: int = 0,
) -> Iterator[Groups]:
    """What a batch of rows has at each of these draws after the other, (S, B, ...).

    The group ``JOINT`` has log densities that belong to no row, (S,).  ``first`` is the number of
    the first batch.
    """
    draw_rows = RowFunction(program, function)
    for number, count, rows in numbered(x, batch_size, first):
        result: Groups = {}
        for draw, shared in enumerate(given):
            found = draw_rows((rows, shared), *key, draw, number + 1)
            joint = {name: value[None] for name, value in found.pop(JOINT, {}).items()}
            for group, values in {**found, **({JOINT: joint} if joint else {})}.items():
                whole = result.setdefault(group, {})
                for name, value in values.items():
                    array = as_array(value)[0]
                    array = array if group == JOINT else array[:count]
                    if name not in whole:
                        whole[name] = np.empty((len(given), *array.shape), array.dtype)
                    whole[name][draw] = array
        yield result


def as_draws(given: list[Shared], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The shared latents of these names, (S, ...)."""
    return {name: np.stack([as_array(each[name]) for each in given]) for name in names}
