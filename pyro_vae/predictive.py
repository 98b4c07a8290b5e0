"""What one does with a trained program: draw from it, encode data, reconstruct them."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.densities.dreams import dream
from pyro_vae.densities.sites import Site, Sites, latents_of
from pyro_vae.densities.traces import At, AtTheMean, dreamt_sites, observed_site, sites_of
from pyro_vae.noise import Stream, seeded
from pyro_vae.program.arguments import arguments_of
from pyro_vae.program.calling import evaluating
from pyro_vae.program.inputs import as_rows
from pyro_vae.program.rows import Rows, observed_rows
from pyro_vae.program.vae import VAE


def sample(
    program: Any, num_samples: int, *, like: Any = None, mean: bool = False, seed: int = 0
) -> Tensor:
    """Draw data from the generative model: z ~ p(z), then x ~ p(x | z).

    Latents that all data share, such as uncertain weights, are what training was about: one draw
    of them, from the guide, serves all n.

    Args:
        program: the program.
        num_samples: n.
        like: rows of data that say what x looks like, for programs that are no ``VAE``; or, as a
            dict, covariates alone, where the model draws x if it is not given one: draws of
            p(x | covariates).
        mean: return the likelihood's mean in place of a draw, as pictures of images do.
        seed: of the draws.

    Returns:
        (n, ...) in the form of x.
    """
    num_samples, seed = errors.whole("num_samples", num_samples), errors.seed_number(seed)
    with torch.no_grad(), seeded(*Stream.PREDICTIVE.key(seed)), evaluating(program):
        if like is None and isinstance(program, VAE):
            x: Rows = program.likelihood(program.prior().sample((1,))).sample()
        elif like is None:
            raise ValueError(
                f"{type(program).__name__} does not say what x looks like: pass rows of data, "
                "pv.sample(program, n, like=x)"
            )
        else:
            x = as_rows(like, program, whole=False)
        index = torch.arange(num_samples) % len(observed_rows(x))
        x = {k: v[index] for k, v in x.items()} if isinstance(x, dict) else x[index]
        if isinstance(x, dict) and (missing := _not_given(program, x)):
            drawn = _given_covariates(program, x, missing, seed)
            if drawn is not None:
                return _mean(drawn).clone() if mean else drawn.value.clone()
        with seeded(*Stream.SHARED.key(seed)):
            learnt = _latents(program, x, shared=True)
        if not mean:
            return observed_rows(dream(program, x, learnt)[0])
        return _mean_of_x(program, dreamt_sites(program, x, learnt), x)


def _not_given(program: Any, x: dict[str, Tensor]) -> list[str]:
    """What the model may take beside the entries of x, of which one may be what it observes."""
    takes = arguments_of(program)
    usual = observed_site(program)
    names = takes.model.names if takes.by_name(x) else (usual,)
    return [name for name in names if name not in x]


def _given_covariates(
    program: Any, x: dict[str, Tensor], missing: list[str], seed: int
) -> Site | None:
    """The site that would observe x, drawn given the covariates; None where x is given."""

    def drawn(at: dict[str, Tensor]) -> Sites:
        with seeded(*Stream.PREDICTIVE.key(seed)):
            return dreamt_sites(program, x, at)

    try:
        sites = drawn({})
        if any(site.was_observed for site in sites.values()):
            return None
        if any(site.is_global and not site.is_deterministic for site in sites.values()):
            with seeded(*Stream.SHARED.key(seed)):
                sites = drawn(_latents(program, x, shared=True))
        if observed_site(program) in sites:
            return sites[observed_site(program)]
        latents = sites_of(program.guide, x)
    except Exception as error:  # whatever the functions of a user make of what they are not given
        have = ", ".join(f'"{name}"' for name in x)
        raise ValueError(
            f"{type(program).__name__} draws nothing from the entries {have} alone "
            f"({type(error).__name__}: {error}), expected that it does without "
            f'"{missing[0]}": pass rows that have it, or let the model observe nothing where there '
            f'is none, {missing[0]}=None or x.get("{missing[0]}")'
        ) from error
    left = [site for name, site in sites.items() if name not in latents]
    left = [site for site in left if not site.is_deterministic]
    if len(left) != 1:
        raise ValueError(
            f"the model has the sites {', '.join(sites)}, of which {len(left)} have no place in "
            "the guide, expected the one that observes x: say which it is, "
            "pv.Program(..., observed=...)"
        )
    return left[0]


def encode(
    program: Any,
    x: Any,
    *,
    num_draws: int | None = None,
    shared: bool = False,
    seed: int = 0,
) -> Tensor | dict[str, Tensor]:
    """The latents that the guide gives to data.

    Args:
        program: the program.
        x: data (N, ...).
        num_draws: None returns posterior means (the guide's ``mean`` where it has one, else a draw
            is not a mean and an error says so); a number S returns draws (S, N, ...).
        shared: the latents that all data share, such as uncertain weights, in place of those of
            each datum.
        seed: of the draws.

    Returns:
        (N, ...) or (S, N, ...), without N where shared; a dict by site where there is more than
        one latent.
    """
    num_draws, seed = _whole(num_draws), errors.seed_number(seed)
    rows = as_rows(x, program)
    with torch.no_grad(), seeded(*Stream.LATENTS.key(seed)), evaluating(program):
        if num_draws is None:
            latents = _means(program, rows, shared=shared)
        else:
            runs = [_latents(program, rows, shared=shared) for _ in range(num_draws)]
            latents = {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
    if not latents:
        raise ValueError(
            f'the guide has no latent {"outside" if shared else "inside"} pyro.plate("data", ...)'
            f": pass shared={not shared} for the others"
        )
    return next(iter(latents.values())) if len(latents) == 1 else latents


def reconstruct(program: Any, x: Any, *, num_draws: int | None = None, seed: int = 0) -> Tensor:
    r"""What the program makes of data: the mean of p(x | z) at the latents that the guide gives.

    Args:
        program: the program.
        x: data (N, ...).
        num_draws: None takes z at the posterior mean; a number S takes S draws of z.  The average
            over them, ``.mean(0)``, estimates the predictive mean
            :math:`E_{q(z|x)} E[x' \mid z]`; their spread is what the uncertainty of z leaves open.
        seed: of the draws.

    Returns:
        (N, ...) or (S, N, ...), in the form of x.

    Raises:
        ValueError: where the guide, without ``num_draws``, or the likelihood has no mean.
    """
    num_draws, seed = _whole(num_draws), errors.seed_number(seed)
    rows = as_rows(x, program)

    def at(latents: dict[str, Tensor]) -> Tensor:
        return _mean_of_x(program, sites_of(program.model, rows, At(latents)), rows)

    with torch.no_grad(), seeded(*Stream.LATENTS.key(seed)), evaluating(program):
        if num_draws is None:
            return at(_means(program, rows))
        return torch.stack([at(_latents(program, rows)) for _ in range(num_draws)])


def _whole(num_draws: int | None) -> int | None:
    return None if num_draws is None else errors.whole("num_draws", num_draws)


def _latents(
    program: Any, x: Rows, *handlers: Any, shared: bool | None = None
) -> dict[str, Tensor]:
    """Latents by site: those that all data share, those of each datum, or, by None, all."""
    return {
        name: site.value.clone()  # a guide may hand out a parameter itself
        for name, site in latents_of(sites_of(program.guide, x, *handlers)).items()
        if shared in (None, site.is_global)
    }


def _mean_of_x(program: Any, model: Sites, x: Rows) -> Tensor:
    """The mean of the likelihood among the sites of a model, in the form of x."""
    mean = _mean(model[observed_site(program)])
    return mean.reshape(observed_rows(x).shape).clone()  # it may be a parameter itself


def _mean(site: Site) -> Tensor:
    mean = site.mean()
    if mean is None:
        raise ValueError(
            f'the likelihood of "{site.name}", {site.family}, has no mean: ask for '
            "draws of x, pv.sample(program, n, like=x)"
        )
    return mean


def _means(program: Any, x: Rows, *, shared: bool | None = None) -> dict[str, Tensor]:
    with pyro.validation_enabled(False):
        return _latents(program, x, AtTheMean(), shared=shared)
