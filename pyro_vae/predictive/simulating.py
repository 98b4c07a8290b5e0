"""Pairs (z, x) of the model: latents of the prior, and data drawn at them.

Given such an x, its z is one exact draw of the posterior p(z | x).  That is all that calibration
needs, and nothing has to be fitted again, because the guide is a function of x.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.densities.dreams import dream
from pyro_vae.densities.look import Look
from pyro_vae.densities.sites import latents_of
from pyro_vae.evaluation import RowFunction, row_chunks
from pyro_vae.noise import Stream
from pyro_vae.predictive.drawing import form_of_x
from pyro_vae.program.calling import evaluating, require_program
from pyro_vae.program.rows import Rows, as_many_rows, device_of, map_rows, num_rows
from pyro_vae.turns import taking_turns


class Simulated(NamedTuple):
    """N pairs of the model.

    Attributes:
        x: data in the form that the program takes, (N, ...).
        latents: what they were drawn at, by site, rows in front.
    """

    x: Rows
    latents: dict[str, Tensor]


@taking_turns
def simulate(
    program: Any, number: int, *, like: Any = None, seed: int = 0, batch_size: int = 500
) -> Simulated:
    """Draw z from p(z) and x from p(x | z).

    Args:
        program: the program.
        number: N.
        like: rows that say what x looks like; covariates are taken from them, in their order and
            over again; the rest of a number that is no multiple of theirs are any of them.  A
            ``VAE`` without covariates needs none.
        seed: of the noise.
        batch_size: rows at a time.

    Numbers that are missing in ``like`` (NaN) are missing in x: which are does not depend on z.

    Raises:
        ValueError: where draws of the model are no draws of its data: it observes a function of x,
            or under a mask; or where latents are shared by all data.
    """
    number, seed = errors.whole("number", number), errors.seed_number(seed)
    require_program(program)
    form = form_of_x(program, like, f"{number} data with like=x")
    index = as_many_rows(num_rows(form), number, seed).to(device_of(form))
    form = map_rows(partial(torch.Tensor.index_select, dim=0, index=index), form)
    found: list[Simulated] = []
    with torch.no_grad(), evaluating(program):
        require_own_latents(Look.at(program, form))
        draw = RowFunction(program, dream)
        for chunk, (count, rows) in enumerate(row_chunks(form, batch_size)):
            x, latents = draw(rows, *Stream.SIMULATED.key(seed, chunk))
            x = map_rows(partial(_first, count=count), _with_gaps_of(rows, x))
            found.append(Simulated(x, {n: _first(v, count) for n, v in latents.items()}))
    return concatenated(found)


def concatenated(parts: list[Simulated]) -> Simulated:
    """All pairs from those of their chunks."""
    xs = [part.x for part in parts]
    if isinstance(xs[0], dict):
        x: Rows = {name: torch.cat([rows[name] for rows in xs]) for name in xs[0]}  # type: ignore[index]
    else:
        x = torch.cat(xs)  # type: ignore[arg-type]
    names = parts[0].latents
    return Simulated(x, {name: torch.cat([part.latents[name] for part in parts]) for name in names})


def require_own_latents(look: Look) -> None:
    """Refuse latents that all data share: a new datum says next to nothing about them.

    Raises:
        ValueError: naming the site.
    """
    prior = latents_of(look.model)
    shared = [name for name, site in look.latents.items() if site.is_global and name in prior]
    shared = [name for name in shared if prior[name].is_global]
    if shared:
        raise ValueError(
            f'latent site "{shared[0]}" is outside pyro.plate("{look.rows_plate}", ...), so all '
            "data share it, and calibration across data says nothing about it: fix it with "
            "pyro.poutine.condition, or judge it by pv.to_inference_data, whose khat is of all "
            "rows together"
        )


def _with_gaps_of(rows: Rows, x: Rows) -> Rows:
    """Draws with the gaps that the data have: z is a draw of the posterior given the rest, too."""
    if isinstance(x, dict):
        return {name: _with_gaps_of(rows[name], value) for name, value in x.items()}  # type: ignore[index, misc]
    if not rows.is_floating_point():  # type: ignore[union-attr]
        return x
    return torch.where(rows.isnan(), rows, x)  # type: ignore[union-attr, arg-type]


def _first(t: Tensor, count: int) -> Tensor:
    return t[:count].clone()
