"""The evidence lower bound per datum, by one routine for all methods."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.checking.guards import require_numbers, require_possible_data
from pyro_vae.densities.look import FEW, Look
from pyro_vae.densities.missing import readable_rows
from pyro_vae.densities.particles import densities
from pyro_vae.evaluation import RowFunction, row_chunks
from pyro_vae.noise import Stream, seed_of
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import Rows, first_rows, num_rows
from pyro_vae.turns import taking_turns


@taking_turns
def elbo(
    program: nn.Module, x: Any, *, num_particles: int = 1, seed: int = 0, batch_size: int = 1000
) -> Tensor:
    r"""An unbiased estimate of the ELBO of each datum, in nats.

    .. math:: E_{q(z|x)} \log p(x \mid z) - KL(q(z \mid x) \,\|\, p(z))

    The KL of a latent is taken in closed form where torch knows it (estimator B), else sampled
    (A).  Global latents count 1 / N of their terms in each datum.

    Args:
        program: the program.
        x: data (N, ...): a tensor, an array, a dict or a ``Data``.
        num_particles: K draws per datum.
        seed: of the noise; the same seed gives the same noise for two programs.
        batch_size: rows at a time.

    The program is put into evaluation mode (no dropout) for as long as this takes.

    Rows of a batch share each draw of the global latents, so their bounds are not independent, and
    ``std / sqrt(N)`` is too small an error of the mean: :func:`elbo_and_error` has the right one.

    Returns:
        (N,) nats per datum, without gradient.

    Raises:
        ValueError: data outside the likelihood's support; a bound that is not a number; or global
            latents without a plate that says N.
    """

    num_particles = errors.whole("num_particles", num_particles)
    batch_size, seed = errors.whole("batch_size", batch_size), errors.seed_number(seed)

    def bound(program: nn.Module, rows: Rows) -> tuple[Tensor, bool]:
        d = densities(program, rows, num_particles, reparameterize=False)
        local = d.log_likelihood.mean(0) - sum(d.kl_terms.values()) - d.global_kl_share
        return local, bool(d.global_ratio) and d.scale == 1.0

    x = readable_rows(x, program)
    function = RowFunction(program, bound, calls=-(-num_rows(x) // batch_size))
    parts = []
    with evaluating(program):
        require_possible_data(Look.at(program, first_rows(x, FEW)), x)
        for number, (count, rows) in enumerate(row_chunks(x, batch_size)):
            values, share_unknown = function(rows, *Stream.BOUND.key(seed, number))
            if share_unknown and num_rows(x) > batch_size:
                raise ValueError(
                    "the program has global latents and its plate does not say how many data share "
                    'them: write pyro.plate("data", N, subsample_size=len(x)), or pass a '
                    f"batch_size of at least {num_rows(x)}"
                )
            parts.append(values[:count])
    bounds = torch.cat(parts)
    require_numbers(bounds, "the ELBO")
    return bounds


SHARED_DRAWS = 8  # of global latents, to see what the mean bound owes to one of them


@taking_turns
def elbo_and_error(program: nn.Module, x: Any, *, seed: int = 0) -> tuple[Tensor, float]:
    r"""The ELBO of each datum, and the standard error of its mean, nats.

    .. math:: \mathrm{SE}^2 = \frac{s^2}{N} + \frac{s_{draws}^2}{K}

    with s the standard deviation over data.  The second term is there where all data share latents:
    s_draws is that of the mean bound over K = 8 draws of them, which the bound is averaged over.

    Args:
        program, x, seed: as of :func:`elbo`.

    Returns:
        (N,) nats per datum, and the error; nan for a single datum.
    """
    x = readable_rows(x, program)
    look = Look.at(program, first_rows(x, FEW))
    several = any(site.is_global for site in look.latents.values())
    more = range(1, SHARED_DRAWS if several else 1)
    seeds = [seed, *(seed_of(*Stream.BOUND_AGAIN.key(seed, k)) >> 1 for k in more)]
    draws = torch.stack([elbo(program, x, seed=each) for each in seeds])  # (K, N)
    values = draws.mean(0)
    variance = float(values.var()) / len(values) if len(values) > 1 else math.nan
    if several:
        variance += float(draws.mean(1).var()) / len(draws)
    return values, math.sqrt(variance)
