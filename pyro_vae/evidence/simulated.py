"""Data from the model with the latents that they were made from: of each a draw of its posterior."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.chains.latents import Latents
from pyro_vae.densities.dreams import dream
from pyro_vae.noise import Stream, seeded
from pyro_vae.predictive.drawing import form_of_x
from pyro_vae.program.rows import Rows, device_of, map_rows, num_rows


def simulated(
    program: nn.Module, num_data: int, *, like: Any, seed: int, call: str
) -> tuple[Rows, dict[str, Tensor]]:
    """Draw z ~ p(z), x ~ p(x | z): rows, and the latents in each site's own shape.

    Args:
        program: the program.
        num_data: N.
        like: rows that say what x looks like and hold the covariates, which are taken in order and
            again from the first where they are too few; not needed for a ``VAE``.
        seed: of the draws.
        call: what the user wrote, for the message where ``like`` is missing.

    Raises:
        ValueError: where draws of the model's observations are none of x.
    """
    form = form_of_x(program, like, call)
    index = torch.arange(num_data, device=device_of(form)) % num_rows(form)
    rows = map_rows(partial(torch.index_select, dim=0, index=index), form)
    with torch.no_grad(), seeded(*Stream.SIMULATED.key(seed)):
        return dream(program, rows)


def unconstrained(latents: Latents, values: Mapping[str, Tensor], rows: Rows) -> Tensor:
    """Given latents as u, (N, J), without what the model sums out.

    Args:
        latents: of the program.
        values: by site, each with its rows in front.
        rows: the data that belong to them.

    Raises:
        ValueError: for other sites, another number of rows, or values that no latent takes.
    """
    named = {n: v for n, v in values.items() if n in latents.names}
    placed = {}
    for part in latents.parts:
        value = torch.as_tensor(named[part.name]) if part.name in named else None
        if value is None or value.dim() == 0 or len(value) != num_rows(rows):
            got = "nothing" if value is None else f"shape {tuple(value.shape)}"
            raise ValueError(
                f'true_latents has {got} for "{part.name}", expected {num_rows(rows)} rows, one for '
                "each datum: pass the latents that x was simulated from, by site"
            )
        placed[part.name] = value.detach().movedim(0, part.value_axis)
    u = latents.unconstrain(placed)
    if not bool(u.isfinite().all()):
        row = int((~u.isfinite().all(-1)).nonzero()[0])
        raise ValueError(
            f"true_latents of row {row} is at or beyond the edge of its support, expected values "
            "that the model draws: pass the latents that x was simulated from"
        )
    return u
