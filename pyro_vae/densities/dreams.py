"""Ancestral draws: data that a program makes up, and how its guide scores what lies behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.densities.rules import require_latents_alone
from pyro_vae.densities.traces import At, dreamt_sites, observed_site, sites_of
from pyro_vae.program.rows import Rows, main_entry, observed_rows


def dream(
    program: Any, x: Rows, at: Mapping[str, Tensor] | None = None
) -> tuple[Rows, dict[str, Tensor]]:
    """Draw latents and data from the model: (x', z) in the form of ``x``, without gradients.

    Args:
        program: the program.
        x: says what x looks like, and holds the covariates.
        at: latents that are given, in place of draws from the prior.

    Raises:
        ValueError: where the model scores something else than x itself (a function of it, a
            masked part, a second observation), because then its draws are no draws of x.
    """
    name = observed_site(program)
    with torch.no_grad():
        sites = dreamt_sites(program, x, at or {})
    site, rows = sites.get(name), observed_rows(x)
    if site is None or not site.was_observed:
        raise ValueError(
            f'the model has no observed site "{name}" (sites: {", ".join(sites) or "none"}): name '
            "it so, or say which it is with pv.Program(..., observed=...)"
        )
    if not is_x_itself(site.given, rows):
        raise ValueError(
            f'the observed site "{name}" takes a function of x, so a dream of it is no dream of x: '
            "observe x itself and put the function into the likelihood"
        )
    if site.is_masked:
        raise ValueError(
            f'the observed site "{name}" is masked, so a dream of it says nothing about the '
            "missing values: use AEVB for masked data"
        )
    others = [n for n, s in sites.items() if s.was_observed and n != name]
    others = [n for n in others if not sites[n].is_deterministic]
    if others:
        raise ValueError(
            f'the model observes "{others[0]}" beside "{name}", so a dream of "{name}" alone is no '
            "draw from it: pass what is given as a covariate that no site observes, or use AEVB"
        )
    value = site.value.reshape(rows.shape)
    latents = {n: s.value for n, s in sites.items() if not s.was_observed}
    return ({**x, main_entry(x): value} if isinstance(x, dict) else value), latents


def is_x_itself(value: Any, x: Tensor) -> bool:
    """Whether an observed value is ``x``, or a view of it with the same elements in order."""
    if value is x:
        return True
    return (
        isinstance(value, Tensor)
        and value.dtype == x.dtype
        and value.numel() == x.numel()
        and value.is_contiguous() == x.is_contiguous()
        and getattr(value, "_base", None) is not None
        and (value._base is x or value._base is x._base)
        and value.storage_offset() == x.storage_offset()
    )


def guide_log_density(program: Any, x: Rows, latents: dict[str, Tensor]) -> Tensor:
    """log q(z | x) of given latents, (B,).

    Raises:
        ValueError: where guide and latents name different sites.
    """
    sites = sites_of(program.guide, x, At(latents))
    sites = {n: s for n, s in sites.items() if not s.is_deterministic}
    require_latents_alone(sites)
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
