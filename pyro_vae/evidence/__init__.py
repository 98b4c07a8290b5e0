"""log p(x): estimates that say how far to trust them."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import nn

from pyro_vae.errors import PyroVaeWarning
from pyro_vae.evidence.bound import elbo
from pyro_vae.evidence.importance import Evidence, from_log_weights, importance
from pyro_vae.inputs import as_rows

__all__ = ["Evidence", "elbo", "from_log_weights", "log_evidence"]


def log_evidence(
    program: nn.Module,
    x: Any,
    *,
    method: Literal["importance"] = "importance",
    proposal: Literal["guide"] = "guide",
    num_particles: int = 1000,
    seed: int = 0,
    batch_size: int = 100,
    max_elements: int = 2**23,
) -> Evidence:
    r"""Estimate log p(x) of each datum.

    Args:
        program: the program.
        x: data (N, ...): a tensor, an array, a dict or a ``Data`` (whose binarization is that of
            its evaluation rows).
        method: "importance": the log of the mean importance weight, a stochastic lower bound.
        proposal: "guide" draws latents from the guide.
        num_particles: K draws per datum.
        seed: of the noise.
        batch_size: rows at a time.
        max_elements: the largest number of elements (particles x rows x pixels) held at a time;
            memory stays bounded whatever K is.

    Returns:
        :class:`Evidence`, each field (N,), in nats.

    Warns:
        PyroVaeWarning: where khat exceeds 0.7, so that the guide misses a part of the posterior.

    Source: Rezende, Mohamed & Wierstra (2014), appendix E; khat: Vehtari et al. (2024).
    """
    if method != "importance":
        raise ValueError(f'method is {method!r}, expected "importance"')
    if proposal != "guide":
        raise ValueError(f'proposal is {proposal!r}, expected "guide"')
    for name, value in (
        ("num_particles", num_particles),
        ("batch_size", batch_size),
        ("max_elements", max_elements),
    ):
        if int(value) != value or value < 1:
            raise ValueError(f"{name} is {value}, expected a whole number from 1 on")
    with torch.no_grad():
        evidence = importance(
            program,
            as_rows(x, program),
            num_particles=int(num_particles),
            seed=seed,
            batch_size=int(batch_size),
            max_elements=int(max_elements),
        )
    bad = int((evidence.khat > 0.7).sum())
    if bad:
        warnings.warn(
            f"khat exceeds 0.7 for {bad} of {len(evidence.khat)} data: the guide misses a part of "
            "their posterior, so their log p(x) is too low by more than its standard error says; "
            "raise num_particles or improve the guide",
            PyroVaeWarning,
            stacklevel=2,
        )
    return evidence
