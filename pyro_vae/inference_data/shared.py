"""Draws of a program whose data share latents, such as weights: one draw of these serves all rows.

A draw is one of everything, the shared latents first and the rows' at them, however the rows are
cut into chunks.  There is no log p(x) per datum then, and no weight of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from pyro_vae.densities.dreams import draws_of
from pyro_vae.densities.look import Look
from pyro_vae.densities.sites import latents_of, values_of
from pyro_vae.densities.tables import tabulated
from pyro_vae.densities.traces import At, sites_of
from pyro_vae.evaluation import RowFunction, row_chunks
from pyro_vae.inference_data.draws import Cast, Groups, as_array, by_particle, by_site
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


def drawn_together(
    program: nn.Module,
    x: Rows,
    functions: tuple[Callable, Callable],
    names: list[str],
    draws: int,
    key: tuple[int, ...],
    batch_size: int,
) -> tuple[Groups, dict[str, np.ndarray]]:
    """All draws: what rows have, (S, N, ...), and the shared latents of these names, (S, ...).

    Log densities are of all rows together, (S,): they stand in the group ``JOINT``.
    """
    draw_shared, draw_rows = (RowFunction(program, function) for function in functions)
    chunks = list(row_chunks(x, batch_size))
    groups: Groups = {}
    shared: dict[str, list[np.ndarray]] = {name: [] for name in names}
    joint: dict[str, np.ndarray] = {}
    for draw in range(draws):
        given = draw_shared(chunks[0][1], *key, draw, 0)
        for name in names:
            shared[name].append(as_array(given[name]))
        start = 0
        for number, (count, rows) in enumerate(chunks):
            found = draw_rows((rows, given), *key, draw, number + 1)
            for name, value in found.pop(JOINT, {}).items():
                joint.setdefault(name, np.zeros(draws))
                if number == 0:
                    joint[name][draw] += float(value)
            for group, values in found.items():
                whole = groups.setdefault(group, {})
                for name, value in values.items():
                    array = as_array(value)[0]
                    if name not in whole:
                        shape = (draws, num_rows(x), *array.shape[1:])
                        whole[name] = np.empty(shape, array.dtype)
                    whole[name][draw, start : start + count] = array[:count]
            start += count
    for name, value in groups.pop("sample_stats", {}).items():
        joint[name] += value.sum(1, dtype=np.float64)
    if joint:
        groups[JOINT] = joint
    return groups, {name: np.stack(values) for name, values in shared.items()}
