"""log p(x): estimates that say how far to trust them."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyro_vae import defaults, errors
from pyro_vae.chains.latents import Latents
from pyro_vae.chains.sampling import LEAST_WARMUP
from pyro_vae.checking.guards import require_numbers, require_possible_data
from pyro_vae.densities.look import Look
from pyro_vae.densities.missing import usable_rows
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.evidence.importance import importance, require_weights
from pyro_vae.evidence.markov import CHAINS, fitted_proposal, reciprocal, require_enough_draws
from pyro_vae.evidence.weights import MOST_RHAT, Evidence, warn_about_tails
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import map_rows


def log_evidence(
    program: nn.Module,
    x: Any,
    *,
    method: Literal["importance", "reciprocal"] = defaults.METHOD,
    proposal: Literal["guide", "hmc"] = "guide",
    num_particles: int = defaults.NUM_PARTICLES,
    num_draws: int = defaults.NUM_DRAWS,
    chains: int = CHAINS,
    warmup: int = 100,
    leapfrog_steps: int = 10,
    seed: int = defaults.SEED,
    batch_size: int | None = None,
    max_elements: int = 2**21,
) -> Evidence:
    r"""Estimate log p(x) of each datum.

    ============ ========== ========================================== ===================
    method       proposal   what is averaged                           as an estimate
    ============ ========== ========================================== ===================
    importance   guide      p(x, z) / q(z given x) at guide draws      biased downward
    importance   hmc        p(x, z) / t(z), Student-t's per datum       biased downward
                            fitted to HMC draws, and the prior
    reciprocal   (hmc)      q(z) / p(x, z) at HMC draws, a kernel       biased *upward*
                            density q fitted to other HMC draws
    ============ ========== ========================================== ===================

    The last is the paper's appendix D; the second comes along as its ``lower``, and where it lies
    above, the difference is counted as error: chains that are all stuck in one of two modes make
    appendix D too low by log 2.  The second does not need chains that have met.  It looks for modes
    from 500 draws of the prior for each chain and from all draws of the chains, gives each mode
    that it finds a component, and draws from the prior too (K / 2 times, 500 at most), so that a
    mode which the components miss shows in the standard error and khat.  A mode that no draw came
    near, such as one of a thousandth of the prior's width in many dimensions, stays unseen,
    whatever is printed.

    Of a discrete latent, khat sees the values that the guide drew.  One that it almost never draws
    and that holds most of the posterior leaves no trace: weights are even, and log p(x) may be too
    low by any amount.

    Args:
        program: the program.
        x: data (N, ...): a tensor, an array, a dict or a ``Data`` (whose binarization is that of
            its evaluation rows).
        method: see the table.
        proposal: see the table.  A model trained without a guide needs "hmc"; in a comparison of
            algorithms it puts all of them on equal terms.
        num_particles: K draws per datum of the proposal; khat needs about 1000 to see tails.
        num_draws: HMC draws per datum, of all its chains, that the proposal is fitted to, at
            least 5 for each unconstrained latent dimension; for "reciprocal" half of them fit and
            half are averaged, and 1000 or more are advisable.
        chains: of each datum; the draws are dealt evenly to them.
        warmup, leapfrog_steps: of each chain; see ``pyro_vae.chains.sample_posterior``.
        seed: of the noise.
        batch_size: rows at a time (default: 100 for the guide, 500 for HMC).
        max_elements: the largest number of elements (particles x rows x pixels) held at a time;
            memory stays bounded whatever K is.

    The program is put into evaluation mode (no dropout) for as long as this takes.

    Returns:
        :class:`Evidence`, each field (N,), in nats.

    Raises:
        ValueError: data outside the likelihood's support; global latents, which have no share in a
            datum's evidence; a guide that is a point; too few draws for the latent dimensions;
            latents that HMC cannot move (see :class:`~pyro_vae.chains.Latents`).

    Warns:
        PyroVaeWarning: where there is no khat, or it is that of fewer than 100 draws; where it
            exceeds 0.7, so that the average hangs on a few draws; where R-hat exceeds 1.1, for
            "importance" only if the proposal leaves out a part of what the chains found; and for
            "reciprocal" above five latent dimensions, where appendix D is not to be used.

    Sources: Rezende, Mohamed & Wierstra (2014), appendix E; Kingma & Welling (2014), appendix D;
    khat: Vehtari et al. (2024); R-hat: Gelman & Rubin (1992).
    """
    if method not in ("importance", "reciprocal"):
        raise ValueError(f'method is {method!r}, expected "importance" or "reciprocal"')
    if proposal not in ("guide", "hmc"):
        raise ValueError(f'proposal is {proposal!r}, expected "guide" or "hmc"')
    from_guide = method == "importance" and proposal == "guide"
    batch_size = (100 if from_guide else 500) if batch_size is None else batch_size
    num_particles = errors.whole("num_particles", num_particles)
    pieces = {
        "seed": errors.seed_number(seed),
        "batch_size": errors.whole("batch_size", batch_size),
        "max_elements": errors.whole("max_elements", max_elements),
    }
    options = {
        "num_draws": errors.whole("num_draws", num_draws),
        "chains": errors.whole("chains", chains),
        "warmup": errors.whole("warmup", warmup, LEAST_WARMUP, why="they tune the step"),
        "leapfrog_steps": errors.whole("leapfrog_steps", leapfrog_steps),
    }
    rows = usable_rows(x, program)
    with torch.no_grad(), evaluating(program):
        look = Look.at(program, rows)
        require_possible_data(look, rows)
        if from_guide:
            require_weights(look)
            evidence = importance(program, rows, num_particles=num_particles, **pieces)
        else:
            dim = Latents.of(program, map_rows(lambda t: t[:2], rows)).dim
            require_enough_draws(options["num_draws"], options["chains"], dim)
            options |= {"num_particles": num_particles, **pieces}
            if method == "importance":
                evidence = fitted_proposal(program, rows, **options)
            else:
                _warn_about_dimensions(dim)
                evidence = reciprocal(program, rows, **options)
    require_numbers(evidence.value, "log p(x)")
    particles = num_particles if method == "importance" else options["num_draws"] // 2
    warn_about_tails(evidence.khat, _consequence(method, proposal), particles)
    if not from_guide:
        _warn_about_chains(evidence.rhat, method)
    return evidence


def _warn_about_dimensions(dim: int) -> None:
    if dim > 5:
        warnings.warn(
            f"the reciprocal estimate is not to be trusted with {dim} latent dimensions: a kernel "
            'density misses the posterior above five; use method="importance"',
            PyroVaeWarning,
            stacklevel=3,
        )


def _warn_about_chains(rhat: Tensor, method: str) -> None:
    apart = int((~(rhat <= MOST_RHAT)).sum())  # nan is no good sign
    if apart:
        why = {
            "importance": "the proposal leaves out a part of what their chains found, or (where it "
            "is inf) there are more modes than could be looked for",
            "reciprocal": "their chains have not met, as in a posterior with several modes, or are "
            "too short to tell",
        }[method]
        warnings.warn(
            f"R-hat exceeds {MOST_RHAT} for {apart} of {len(rhat)} data: {why}, so log p(x) may be "
            "wrong by more than its standard error and khat say; raise warmup, num_draws or "
            "leapfrog_steps",
            PyroVaeWarning,
            stacklevel=3,
        )


def _consequence(method: str, proposal: str) -> str:
    """What a large khat means there, and the next step."""
    if method == "reciprocal":
        return "the fitted density has heavier tails than their posterior; raise num_draws"
    if proposal == "hmc":
        return (
            "the density fitted to HMC draws misses a part of their posterior, so their log p(x) "
            "hangs on a few draws; raise num_draws or num_particles"
        )
    return (
        "the guide misses a part of their posterior, so their log p(x) is too low by more than its "
        "standard error says; raise num_particles or improve the guide"
    )
