"""log p(x): estimates that say how far to trust them."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from pyro.distributions import Delta
from torch import nn

from pyro_vae.errors import PyroVaeWarning
from pyro_vae.evidence.bound import elbo
from pyro_vae.evidence.importance import Evidence, from_log_weights, importance
from pyro_vae.evidence.markov import fitted_proposal, from_reciprocal_weights, reciprocal
from pyro_vae.inputs import as_rows
from pyro_vae.latents import Latents
from pyro_vae.noise import seeded
from pyro_vae.numerics import require_possible_data
from pyro_vae.program import Rows, evaluating, map_rows
from pyro_vae.traces import base_law, sites_of, trace_program

__all__ = ["Evidence", "elbo", "from_log_weights", "from_reciprocal_weights", "log_evidence"]


def log_evidence(
    program: nn.Module,
    x: Any,
    *,
    method: Literal["importance", "reciprocal"] = "importance",
    proposal: Literal["guide", "hmc"] = "guide",
    num_particles: int = 1000,
    num_draws: int = 200,
    warmup: int = 200,
    leapfrog_steps: int = 10,
    seed: int = 0,
    batch_size: int | None = None,
    max_elements: int = 2**23,
) -> Evidence:
    r"""Estimate log p(x) of each datum.

    ============ ========== ========================================== ===================
    method       proposal   what is averaged                           as an estimate
    ============ ========== ========================================== ===================
    importance   guide      p(x, z) / q(z given x) at guide draws      biased downward
    importance   hmc        p(x, z) / t(z), a Student-t per datum       biased downward
                            fitted to HMC draws
    reciprocal   (hmc)      q(z) / p(x, z) at HMC draws, a kernel       biased *upward*
                            density q fitted to other HMC draws
    ============ ========== ========================================== ===================

    The last is the paper's appendix D.  Where two of opposite bias agree, both are right.

    Args:
        program: the program.
        x: data (N, ...): a tensor, an array, a dict or a ``Data`` (whose binarization is that of
            its evaluation rows).
        method: see the table.
        proposal: see the table.  A model trained without a guide needs "hmc"; in a comparison of
            algorithms it puts all of them on equal terms.
        num_particles: K draws per datum of the proposal.
        num_draws: HMC draws per datum that the proposal is fitted to; for "reciprocal" half of
            them fit and half are averaged, and 1000 or more are advisable.
        warmup, leapfrog_steps: of the chains; see ``pyro_vae.chains.sample_posterior``.
        seed: of the noise.
        batch_size: rows at a time (default: 100 for the guide, 500 for HMC).
        max_elements: the largest number of elements (particles x rows x pixels) held at a time;
            memory stays bounded whatever K is.

    The program is put into evaluation mode (no dropout) for as long as this takes.

    Returns:
        :class:`Evidence`, each field (N,), in nats.

    Raises:
        ValueError: data outside the likelihood's support; global latents, which have no share in a
            datum's evidence; a guide that is a point.

    Warns:
        PyroVaeWarning: where there is no khat; where it exceeds 0.7, so that the average hangs on
            a few draws; and for "reciprocal" above five latent dimensions, where appendix D is
            not to be used.

    Sources: Rezende, Mohamed & Wierstra (2014), appendix E; Kingma & Welling (2014), appendix D;
    khat: Vehtari et al. (2024).
    """
    if method not in ("importance", "reciprocal"):
        raise ValueError(f'method is {method!r}, expected "importance" or "reciprocal"')
    if proposal not in ("guide", "hmc"):
        raise ValueError(f'proposal is {proposal!r}, expected "guide" or "hmc"')
    from_guide = method == "importance" and proposal == "guide"
    batch_size = (100 if from_guide else 500) if batch_size is None else batch_size
    for name, value in (
        ("num_particles", num_particles),
        ("num_draws", num_draws),
        ("batch_size", batch_size),
        ("max_elements", max_elements),
    ):
        if int(value) != value or value < 1:
            raise ValueError(f"{name} is {value}, expected a whole number from 1 on")
    if not from_guide and num_draws < 20:
        raise ValueError(f"num_draws is {num_draws}, expected at least 20 to fit a density to")
    rows = as_rows(x, program)
    pieces = {"seed": seed, "batch_size": int(batch_size), "max_elements": int(max_elements)}
    chains = {"num_draws": num_draws, "warmup": warmup, "leapfrog_steps": leapfrog_steps}
    with torch.no_grad(), evaluating(program):
        require_possible_data(program, rows)
        if from_guide:
            _refuse_point_guides(program, rows)
            evidence = importance(program, rows, num_particles=int(num_particles), **pieces)
        elif method == "importance":
            evidence = fitted_proposal(
                program, rows, num_particles=int(num_particles), **pieces, **chains
            )
        else:
            _warn_about_dimensions(Latents.of(program, map_rows(lambda t: t[:2], rows)).dim)
            evidence = reciprocal(program, rows, **pieces, **chains)
    _warn_about_tails(evidence, method, proposal)
    return evidence


def _refuse_point_guides(program: nn.Module, rows: Rows) -> None:
    """Weights under a guide that is a point are all equal, and say nothing."""
    with seeded(0):
        guide, _ = trace_program(program, map_rows(lambda t: t[:2], rows), reparameterize=False)
    sites = sites_of(guide)
    if any(site["infer"].get("is_auxiliary") for site in sites.values()):
        return  # the points are functions of draws that have a density of their own
    for name, site in sites.items():
        if isinstance(base_law(site["fn"]), Delta) and not site["is_observed"]:
            raise ValueError(
                f'the guide of "{name}" is a point (Delta), from which log p(x) cannot be '
                'estimated: use proposal="hmc"'
            )


def _warn_about_dimensions(dim: int) -> None:
    if dim > 5:
        warnings.warn(
            f"the reciprocal estimate is not to be trusted with {dim} latent dimensions: a kernel "
            'density misses the posterior above five; use method="importance"',
            PyroVaeWarning,
            stacklevel=3,
        )


def _warn_about_tails(evidence: Evidence, method: str, proposal: str) -> None:
    bad = int((evidence.khat > 0.7).sum())
    if evidence.khat.isnan().any():
        warnings.warn(
            f"with {method} and so few draws there is no khat, so nothing says how far to trust "
            "log p(x); use 25 particles or more",
            PyroVaeWarning,
            stacklevel=3,
        )
    if not bad:
        return
    count = f"khat exceeds 0.7 for {bad} of {len(evidence.khat)} data: "
    if method == "reciprocal":
        text = "the fitted density has heavier tails than their posterior; raise num_draws"
    elif proposal == "hmc":
        text = "the density fitted to HMC draws misses a part of their posterior; raise num_draws"
    else:
        text = (
            "the guide misses a part of their posterior, so their log p(x) is too low by more "
            "than its standard error says; raise num_particles or improve the guide"
        )
    warnings.warn(count + text, PyroVaeWarning, stacklevel=3)
