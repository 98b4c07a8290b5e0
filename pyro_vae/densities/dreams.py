"""Ancestral draws: data that a program makes up, and how its guide scores what lies behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.densities.enumeration import marked_draws
from pyro_vae.densities.observations import (
    USUAL,
    entries_of,
    entries_of_rows,
    observations_of,
)
from pyro_vae.densities.rules import require_latents_alone
from pyro_vae.densities.sites import Sites, values_of
from pyro_vae.densities.traces import At, dreamt_sites, sites_of
from pyro_vae.program.rows import Rows, observed_rows


def draws_of(
    program: Any, x: Rows, at: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draw latents and what the model observes: two dicts by site, without gradients.

    A site that takes an entry of ``x`` as it is has its draw in the form of that entry.  Where
    several sites observe, each is drawn given the draws of those before it, also where the model
    reads them from ``x``.  What a mask leaves out is drawn like the rest.

    Args:
        program: the program.
        x: says what x looks like, and holds the covariates.
        at: latents that are given, in place of draws from the prior.

    Raises:
        ValueError: where the model observes nothing.
    """
    found, entries, drawn = _ancestral(program, x, at or {})
    forms = entries_of_rows(x)
    observed = {
        name: found[name].rows_first(drawn[name])
        if entry is None
        else drawn[name].reshape(forms[entry].shape)
        for name, entry in entries.items()
    }
    return observed, {name: value for name, value in drawn.items() if name not in found}


def _ancestral(
    program: Any, x: Rows, at: Mapping[str, Tensor]
) -> tuple[Sites, dict[str, str | None], dict[str, Tensor]]:
    """The observed sites, the entry that each takes, and all draws by site."""
    with torch.no_grad():
        at = {**at, **marked_draws(program, x, at)} if at else at
        sites = dreamt_sites(program, x, at)
        found = observations_of(sites)
        if not found:
            raise ValueError(
                f"the model has no observed site (sites: {', '.join(sites) or 'none'}): pass obs=x "
                "to the pyro.sample statement of the likelihood"
            )
        if factor := next((name for name, site in sites.items() if site.is_factor), None):
            raise ValueError(
                f'site "{factor}" of the model is a pyro.factor, which weighs latents and data, so '
                "ancestral draws are none from the model: write it as an observation, or do "
                "without draws of x (AEVB in place of WakeSleep, predictive=False)"
            )
        entries = entries_of(program, found, x)
        drawn = values_of(sites)
        for number in range(1, len(found)):
            before = list(found)[:number]
            given = {n: value for n, value in drawn.items() if n in before or n not in found}
            seen = {entries[n]: drawn[n] for n in before if entries[n] is not None}
            drawn = values_of(dreamt_sites(program, _with_entries(x, seen), given))
    return found, entries, drawn


def _with_entries(x: Rows, values: Mapping[Any, Tensor]) -> Rows:
    """``x`` with draws in place of the entries that they are draws of."""
    forms = entries_of_rows(x)
    new = {name: v.reshape(forms[name].shape).to(forms[name].dtype) for name, v in values.items()}
    return {**x, **new} if isinstance(x, dict) else new.get(USUAL, x)


def dream(
    program: Any, x: Rows, at: Mapping[str, Tensor] | None = None
) -> tuple[Rows, dict[str, Tensor]]:
    """Draw latents and data from the model: (x', z) in the form of ``x``, without gradients.

    Args:
        program, x, at: as of :func:`draws_of`.

    Raises:
        ValueError: where the model scores something else than entries of x themselves (a function
            of x, a masked part), because then its draws are no draws of x.
    """
    found, entries, drawn = _ancestral(program, x, at or {})
    for name, site in found.items():
        if entries[name] is None:
            raise ValueError(
                f'the observed site "{name}" takes a function of x, so a dream of it is no dream '
                "of x: observe entries of x themselves and put the function into the likelihood, "
                "or use AEVB"
            )
        if site.is_masked:
            raise ValueError(
                f'the observed site "{name}" is masked, so a dream of it says nothing about the '
                "missing values: use AEVB for masked data"
            )
    latents = {name: value for name, value in drawn.items() if name not in found}
    return _with_entries(x, {entries[name]: drawn[name] for name in found}), latents


def guide_log_density(program: Any, x: Rows, latents: dict[str, Tensor]) -> Tensor:
    """log q(z | x) of given latents, (B,).

    Raises:
        ValueError: where guide and latents name different sites.
    """
    sites = sites_of(program, "guide", x, At(latents))
    sites = {n: s for n, s in sites.items() if not s.is_deterministic}
    require_latents_alone(sites)
    if set(latents) - set(sites):  # those that the model alone has may be summed out
        model = sites_of(program, "model", x, At(latents))
        latents = {n: v for n, v in latents.items() if n in sites or not model[n].is_marked}
    if set(sites) != set(latents):
        raise ValueError(
            f"the guide has the sites {sorted(sites)} and the model draws {sorted(latents)}: "
            "a sleep phase needs the same latents in both"
        )
    total = torch.zeros((), device=observed_rows(x).device)
    for name, site in sites.items():
        if site.is_global:
            raise ValueError(
                f'latent site "{name}" is outside pyro.plate("data", ...): a sleep phase has no '
                "row of its own for a global latent; use AEVB"
            )
        total = total + site.per_datum()
    return total
