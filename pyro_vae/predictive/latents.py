"""The latents that the guide gives to data."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.densities.missing import usable_rows
from pyro_vae.densities.plates import name_of_rows_plate
from pyro_vae.densities.sites import latents_of
from pyro_vae.densities.traces import AtTheMean, sites_of
from pyro_vae.noise import Stream, seeded
from pyro_vae.predictive.means import alone
from pyro_vae.program.calling import evaluating, failing_in_words
from pyro_vae.program.rows import Rows
from pyro_vae.turns import taking_turns


@taking_turns
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
            is not a mean and an error says so; where a latent is a function of an auxiliary draw,
            as in Pyro's automatic guides, the function of its mean); a number S
            returns draws (S, N, ...).
        shared: the latents that all data share, such as uncertain weights, in place of those of
            each datum.
        seed: of the draws.

    Returns:
        (N, ...) or (S, N, ...), without N where shared; a dict by site where there is more than
        one latent.
    """
    num_draws, seed = whole_or_none(num_draws), errors.seed_number(seed)
    rows = usable_rows(x, program)
    with (
        torch.no_grad(),
        seeded(*Stream.LATENTS.key(seed)),
        evaluating(program),
        failing_in_words(program, rows),
    ):
        if num_draws is None:
            latents = mean_latents(program, rows, shared=shared)
        else:
            runs = [drawn_latents(program, rows, shared=shared) for _ in range(num_draws)]
            latents = {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
        others = {} if latents else drawn_latents(program, rows, shared=not shared)
    if not latents:
        side, plate = "outside" if shared else "inside", name_of_rows_plate(program, rows)
        advice = ", nor elsewhere: the model's are summed out, so there is nothing to encode"
        if others:
            advice = f": pass shared={not shared} for the others"
        raise ValueError(f'the guide has no latent {side} pyro.plate("{plate}", ...){advice}')
    return alone(latents)


def whole_or_none(num_draws: int | None) -> int | None:
    return None if num_draws is None else errors.whole("num_draws", num_draws)


def drawn_latents(
    program: Any, x: Rows, *handlers: Any, shared: bool | None = None
) -> dict[str, Tensor]:
    """Latents by site: those that all data share, those of each datum, or, by None, all."""
    return {
        name: site.value.clone()  # a guide may hand out a parameter itself
        for name, site in latents_of(sites_of(program, "guide", x, *handlers)).items()
        if shared in (None, site.is_global) and not site.is_auxiliary
    }


def mean_latents(program: Any, x: Rows, *, shared: bool | None = None) -> dict[str, Tensor]:
    with pyro.validation_enabled(False):
        return drawn_latents(program, x, AtTheMean(), shared=shared)
