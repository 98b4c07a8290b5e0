"""What a training loop asks of a step, and what it is answered."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_vae.densities.look import Look
from pyro_vae.engine.gradients import Sums
from pyro_vae.objectives.base import State
from pyro_vae.program.calling import Parameters
from pyro_vae.program.rows import Rows


class Ask(NamedTuple):
    """What a training loop asks of a step: an update, or a refresh of these rows' state."""

    refresh: bool
    x: Rows
    weight: Tensor
    state: State
    key: tuple


# The new rows of a refresh (None after an update), and the sums: their names, and one tensor.
Answer = tuple[dict[str, Tensor] | None, tuple[str, ...], Tensor]


def stack(sums: Sums) -> tuple[tuple[str, ...], Tensor]:
    """Names and one tensor, so that a device is waited for once."""
    like = sums["weight"].dtype
    return tuple(sums), torch.stack([value.to(like) for value in sums.values()])


def blame(program: nn.Module, x: Rows, grads: Parameters, key: tuple) -> str:
    """What is not finite at this step: a site and its first row, or else parameters."""
    try:
        for role, name, site in Look.at(program, x, rows=None, key=key):
            with torch.no_grad():
                value = site.density()
            if not value.isfinite().all():
                rows = (~value.isfinite()).nonzero()
                row = int(rows[0, -1]) if rows.numel() else 0
                return (
                    f'the {role}\'s site "{name}" has log density '
                    f"{float(value.flatten()[(~value.isfinite()).flatten()][0])} "
                    f"at row {row} of the batch"
                )
    except ValueError as error:  # a distribution refused its parameters
        return str(error).splitlines()[0]
    bad = [name for name, g in grads.items() if not g.isfinite().all()]
    return f"the gradient of {', '.join(bad) or 'the loss'} is not finite"
