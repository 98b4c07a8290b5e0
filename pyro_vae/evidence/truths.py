"""Latents that data were simulated from: of each posterior one exact draw."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_vae.chains.latents import Latents
from pyro_vae.program.rows import Rows, num_rows


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
                f'true_latents has {got} for "{part.name}", expected {num_rows(rows)} rows, one '
                "for each datum: pass the latents that x was simulated from, by site"
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
