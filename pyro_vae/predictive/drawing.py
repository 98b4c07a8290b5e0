"""Draws of data from the generative model, given covariates or not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.densities.dreams import draws_of
from pyro_vae.densities.missing import usable_rows
from pyro_vae.densities.observations import observations_of
from pyro_vae.densities.sites import Sites, latents_of
from pyro_vae.densities.traces import dreamt_sites, sites_of
from pyro_vae.noise import Stream, seeded
from pyro_vae.predictive.latents import drawn_latents
from pyro_vae.predictive.means import DRAWS, alone, mean_of, means_of_x
from pyro_vae.program.arguments import arguments_of
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import Rows, observed_rows
from pyro_vae.program.vae import VAE
from pyro_vae.turns import taking_turns


@taking_turns
def sample(
    program: Any, num_samples: int, *, like: Any = None, mean: bool = False, seed: int = 0
) -> Tensor | dict[str, Tensor]:
    """Draw data from the generative model: z ~ p(z), then x ~ p(x | z).

    Latents that all data share, such as uncertain weights, are what training was about: one draw
    of them, from the guide, serves all n.

    Args:
        program: the program.
        num_samples: n.
        like: rows of data that say what x looks like, for programs that are no ``VAE``; or
            covariates alone, as a dict or the first argument of a ``model(xs, ys=None)``, where the
            model draws x if it is not given one: draws of p(x | covariates).
        mean: return the likelihood's mean in place of a draw, as pictures of images do.
        seed: of the draws.

    Returns:
        (n, ...) in the form of x; a dict by site where the model observes in several.
    """
    num_samples, seed = errors.whole("num_samples", num_samples), errors.seed_number(seed)
    with torch.no_grad(), seeded(*Stream.PREDICTIVE.key(seed)), evaluating(program):
        x = form_of_x(program, like, "pv.sample(program, n, like=x)", whole=False)
        index = torch.arange(num_samples) % len(observed_rows(x))
        x = {k: v[index] for k, v in x.items()} if isinstance(x, dict) else x[index]
        if missing := not_given(program, x):
            drawn = _given_covariates(program, x, missing, seed)
            if drawn is not None:
                made = {
                    name: mean_of(site, None, DRAWS) if mean else site.value.clone()
                    for name, site in drawn.items()
                }
                return alone(made)
        with seeded(*Stream.SHARED.key(seed)):
            learnt = drawn_latents(program, x, shared=True)
        if not mean:
            return alone(draws_of(program, x, learnt)[0])
        return alone(means_of_x(program, dreamt_sites(program, x, learnt), x, DRAWS))


def form_of_x(program: Any, like: Any, call: str, *, whole: bool = True) -> Rows:
    """Rows that say what x looks like: those that are given, or of a VAE one that it makes up."""
    if like is not None:
        return usable_rows(like, program, whole=whole)
    row = program.made_up_row() if isinstance(program, VAE) else None
    if row is not None:
        return row
    raise ValueError(
        f"{type(program).__name__} does not say what x looks like: pass rows of data, {call}"
    )


def not_given(program: Any, x: Rows) -> list[str]:
    """What the model may take beside the entries of x, of which one may be what it observes."""
    takes = arguments_of(program)
    if not isinstance(x, dict):
        return list(takes.model.names[1:])
    usual = program.observed if isinstance(getattr(program, "observed", None), str) else "x"
    names = takes.model.names if takes.by_name(x) else (usual,)
    return [name for name in names if name not in x]


def _given_covariates(program: Any, x: Rows, missing: list[str], seed: int) -> Sites | None:
    """The sites that would observe, drawn given the covariates; None where one observes."""

    def drawn(at: dict[str, Tensor]) -> Sites:
        with seeded(*Stream.PREDICTIVE.key(seed)):
            return dreamt_sites(program, x, at)

    with saying_what_is_missing(program, x, missing):
        sites = drawn({})
        if observations_of(sites):
            return None
        if any(site.is_global for site in latents_of(sites).values()):
            with seeded(*Stream.SHARED.key(seed)):
                sites = drawn(drawn_latents(program, x, shared=True))
        return would_observe(program, x, sites)


@contextlib.contextmanager
def saying_what_is_missing(program: Any, x: Rows, missing: list[str]) -> Iterator[None]:
    """Says of whatever fails within that ``x`` holds covariates alone, if it does."""
    try:
        yield
    except Exception as error:  # whatever the functions of a user make of what they are not given
        if not (isinstance(x, dict) and missing):
            raise
        have = ", ".join(f'"{name}"' for name in x)
        raise ValueError(
            f"{type(program).__name__} draws nothing from the entries {have} alone "
            f"({type(error).__name__}: {error}), expected that it does without "
            f'"{missing[0]}": pass rows that have it, or let the model observe nothing where there '
            f'is none, {missing[0]}=None or x.get("{missing[0]}")'
        ) from error


def would_observe(program: Any, x: Rows, sites: Sites) -> Sites:
    """The sites of a model, none of which observes, that would if x were given.

    Raises:
        ValueError: the guide has all of them.
    """
    if (name := getattr(program, "observed", None) or "x") in sites:
        return {name: sites[name]}
    latents = sites_of(program, "guide", x)
    left = {name: site for name, site in latents_of(sites).items() if name not in latents}
    if not left:
        raise ValueError(
            f"the model has the sites {', '.join(sites)}, which the guide has too, expected one "
            "that observes x where x is given: say which it is, pv.Program(..., observed=...)"
        )
    return left
