"""What one does with a trained program: draw from it, encode data, reconstruct them."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.densities.dreams import draws_of
from pyro_vae.densities.enumeration import marked_draws
from pyro_vae.densities.missing import usable_rows
from pyro_vae.densities.observations import entries_of, entries_of_rows, observations_of
from pyro_vae.densities.sites import Sites, latents_of
from pyro_vae.densities.traces import At, AtTheMean, dreamt_sites, sites_of
from pyro_vae.noise import Stream, seeded
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import Rows, observed_rows
from pyro_vae.program.vae import VAE


def sample(
    program: Any, num_samples: int, *, like: Any = None, mean: bool = False, seed: int = 0
) -> Tensor | dict[str, Tensor]:
    """Draw data from the generative model: z ~ p(z), then x ~ p(x | z).

    Latents that all data share, such as uncertain weights, are what training was about: one draw
    of them, from the guide, serves all n.

    Args:
        program: the program.
        num_samples: n.
        like: rows of data that say what x looks like, for programs that are no ``VAE``.
        mean: return the likelihood's mean in place of a draw, as pictures of images do.
        seed: of the draws.

    Returns:
        (n, ...) in the form of x; a dict by site where the model observes in several.
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
            x = usable_rows(like, program)
        index = torch.arange(num_samples) % len(observed_rows(x))
        x = {k: v[index] for k, v in x.items()} if isinstance(x, dict) else x[index]
        with seeded(*Stream.SHARED.key(seed)):
            learnt = _latents(program, x, shared=True)
        if not mean:
            return _alone(draws_of(program, x, learnt)[0])
        return _alone(_means_of_x(program, dreamt_sites(program, x, learnt), x))


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
    rows = usable_rows(x, program)
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
    return _alone(latents)


def reconstruct(
    program: Any, x: Any, *, num_draws: int | None = None, seed: int = 0
) -> Tensor | dict[str, Tensor]:
    r"""What the program makes of data: the mean of p(x | z) at the latents that the guide gives.

    Args:
        program: the program.
        x: data (N, ...).
        num_draws: None takes z at the posterior mean; a number S takes S draws of z.  The average
            over them, ``.mean(0)``, estimates the predictive mean
            :math:`E_{q(z|x)} E[x' \mid z]`; their spread is what the uncertainty of z leaves open.
        seed: of the draws.

    Returns:
        (N, ...) or (S, N, ...), in the form of x; a dict by site where the model observes in
        several.

    Raises:
        ValueError: where the guide, without ``num_draws``, or the likelihood has no mean.
    """
    num_draws, seed = _whole(num_draws), errors.seed_number(seed)
    rows = usable_rows(x, program)

    def at(latents: dict[str, Tensor]) -> dict[str, Tensor]:
        given = {**latents, **marked_draws(program, rows, latents)}
        model = sites_of(program, "model", rows, At(given))
        summed = [name for name, site in latents_of(model).items() if name not in latents]
        if summed and num_draws is None:
            raise ValueError(
                f'the mean of x at given latents is an average over latent site "{summed[0]}" of '
                "the model alone: ask for draws, num_draws=100, and average them"
            )
        return _means_of_x(program, model, rows)

    with torch.no_grad(), seeded(*Stream.LATENTS.key(seed)), evaluating(program):
        if num_draws is None:
            return _alone(at(_means(program, rows)))
        runs = [at(_latents(program, rows)) for _ in range(num_draws)]
        return _alone({name: torch.stack([run[name] for run in runs]) for name in runs[0]})


def _whole(num_draws: int | None) -> int | None:
    return None if num_draws is None else errors.whole("num_draws", num_draws)


def _latents(
    program: Any, x: Rows, *handlers: Any, shared: bool | None = None
) -> dict[str, Tensor]:
    """Latents by site: those that all data share, those of each datum, or, by None, all."""
    return {
        name: site.value.clone()  # a guide may hand out a parameter itself
        for name, site in latents_of(sites_of(program, "guide", x, *handlers)).items()
        if shared in (None, site.is_global)
    }


def _means_of_x(program: Any, model: Sites, x: Rows) -> dict[str, Tensor]:
    """The means of what a model observes, by site, in the form of the entries of x."""
    found = observations_of(model)
    forms, entries = entries_of_rows(x), entries_of(program, found, x)
    means = {}
    for name, site in found.items():
        mean = site.mean()
        if mean is None:
            raise ValueError(
                f'the likelihood of "{site.name}", {site.family}, has no mean: ask for '
                "draws of x, pv.sample(program, n, like=x)"
            )
        entry = entries[name]
        shape = mean.shape if entry is None else forms[entry].shape
        means[name] = mean.reshape(shape).clone()  # it may be a parameter itself
    return means


def _alone(by_site: dict[str, Tensor]) -> Any:
    """The one value that there is, else all by site."""
    return next(iter(by_site.values())) if len(by_site) == 1 else by_site


def _means(program: Any, x: Rows, *, shared: bool | None = None) -> dict[str, Tensor]:
    with pyro.validation_enabled(False):
        return _latents(program, x, AtTheMean(), shared=shared)
