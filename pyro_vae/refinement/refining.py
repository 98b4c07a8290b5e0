"""Draws of the posterior of each datum that are better than the guide's: ``pv.refine``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import nn

from pyro_vae import errors
from pyro_vae.chains.sampling import LEAST_WARMUP
from pyro_vae.checking.guards import require_possible_data
from pyro_vae.densities.look import Look
from pyro_vae.densities.missing import usable_rows
from pyro_vae.evidence.importance import require_weights
from pyro_vae.evidence.weights import warn_about_tails
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import num_rows
from pyro_vae.progress import Record, counting
from pyro_vae.refinement.drawing import all_draws, model_latents
from pyro_vae.refinement.markov import chained
from pyro_vae.refinement.refitting import PARTICLES, RATE, SCORED, STEPS, refit
from pyro_vae.refinement.resampling import resampled
from pyro_vae.refinement.result import Method, Refinement
from pyro_vae.turns import taking_turns


@taking_turns
def refine(
    program: nn.Module,
    x: Any,
    *,
    method: Method = "hmc",
    num_draws: int = 1000,
    num_particles: int | None = None,
    chains: int = 8,
    warmup: int = 200,
    leapfrog_steps: int = 10,
    steps: int = STEPS,
    rate: float = RATE,
    seed: int = 0,
    batch_size: int | None = None,
    max_elements: int = 2**21,
    progress: bool | Callable[[Record], Any] | None = None,
) -> Refinement:
    r"""Draws of each datum's posterior to lay over the guide's.

    ======= ========================================================= =============================
    method  what is drawn                                             what it cannot mend
    ======= ========================================================= =============================
    hmc     p(z given x), by chains that start from draws of the      a mode that neither guide nor
            guide and of the prior, picked by their weights           prior comes near
    psis    the guide's draws, picked by Pareto-smoothed weights      what the guide never draws:
                                                                      khat says for which data
    guide   the guide's own family, refitted to the datum without     what the family cannot say
            the network                                               (its approximation gap)
    ======= ========================================================= =============================

    Args:
        program: the program, put into evaluation mode for as long as this takes.
        x: data (N, ...), as of ``pv.log_evidence``.
        method: see the table.
        num_draws: S per datum; of "hmc" from all its chains.
        num_particles: "psis": draws of the guide that are picked from, by default 2 S and at least
            1000; "guide": draws per datum and step of the ascent, by default 8.
        chains, warmup, leapfrog_steps: "hmc": see ``pyro_vae.chains.sample_posterior``.
        steps, rate: "guide": of Adam; the rate is in units of each law's own scale, and falls to a
            hundredth.
        seed: of the noise; torch's generators stay untouched.
        batch_size: rows at a time; by default as many as fit.
        max_elements: the largest number of elements (draws x rows x numbers of a datum) held at a
            time, besides the draws that are returned.
        progress: as of ``pv.fit``.

    Returns:
        :class:`~pyro_vae.refinement.result.Refinement`.

    Raises:
        ValueError: options out of range; latents that all data share; for "hmc" discrete ones and
            others that it cannot move, for "psis" a guide that is a point, for "guide" families
            that cannot be refitted: flows, discrete laws, points.

    Warns:
        PyroVaeWarning: "psis": where khat exceeds 0.7; "hmc": where chains accept too little.

    Example:
        >>> from pyro_vae.models import linear_gaussian
        >>> program = linear_gaussian.build(3, latent_dim=2)
        >>> refine(program, torch.zeros(4, 3), method="guide", num_draws=20).values["z"].shape
        torch.Size([20, 4, 2])
    """
    if method not in get_args(Method):
        raise ValueError(f'method is {method!r}, expected "hmc", "psis" or "guide"')
    num_draws, seed = errors.whole("num_draws", num_draws), errors.seed_number(seed)
    max_elements = errors.whole("max_elements", max_elements)
    batch_size = None if batch_size is None else errors.whole("batch_size", batch_size)
    chains = errors.whole("chains", chains)
    warmup = errors.whole("warmup", warmup, LEAST_WARMUP, why="they tune the step")
    leapfrog_steps = errors.whole("leapfrog_steps", leapfrog_steps)
    steps, rate = errors.whole("steps", steps), errors.positive("rate", rate)
    if num_particles is not None:
        least = num_draws if method == "psis" else 1
        num_particles = errors.whole("num_particles", num_particles, least)
    if method == "hmc" and num_draws < 4 * chains:
        raise ValueError(
            f"num_draws is {num_draws} for {chains} chains, expected at least {4 * chains}: "
            "R-hat compares the halves of chains: raise num_draws or lower chains"
        )
    rows = usable_rows(x, program)
    pieces: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "max_elements": max_elements}
    with torch.no_grad(), evaluating(program):
        look = Look.at(program, rows)
        require_possible_data(look, rows)
        sites = model_latents(look.guide, look.model)
        with counting(progress, num_rows(rows), label=f"refine ({method})") as advance:
            if method == "hmc":
                del pieces["max_elements"]
                return chained(
                    program, rows, look.model, num_draws=-(-num_draws // chains) * chains,
                    chains=chains, warmup=warmup, leapfrog_steps=leapfrog_steps, advance=advance,
                    **pieces,
                )  # fmt: skip
            require_weights(look)
            if method == "psis":
                particles = num_particles or max(2 * num_draws, 1000)
                result = resampled(
                    program, rows, sites, num_draws=num_draws, num_particles=particles,
                    advance=advance, **pieces,
                )  # fmt: skip
                _warn(result, particles)
                return result
            found = refit(
                program, rows, steps=steps, rate=rate, num_particles=num_particles or PARTICLES,
                num_scored=SCORED, advance=advance, **pieces,
            )  # fmt: skip
            values = all_draws(found.program, found.rows, sites, num_draws=num_draws, **pieces)
    return Refinement(
        "guide",
        values,
        khat=found.evidence.khat,
        elbo_before=found.elbo_before,
        elbo=found.elbo,
        elbo_error=found.gain_error,
        rising=found.rising,
    )


def _warn(result: Refinement, particles: int) -> None:
    if result.khat is not None:
        warn_about_tails(
            result.khat,
            "the guide misses a part of their posterior, so draws that are picked from its own do "
            'too; use method="hmc"',
            particles,
        )
