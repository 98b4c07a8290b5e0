"""log p(x) between a lower and an upper bound, each the tightest that can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.evidence.annealed import Annealing, annealed
from pyro_vae.evidence.chi_square import MOST_KHAT
from pyro_vae.evidence.importance import importance
from pyro_vae.evidence.weights import Evidence
from pyro_vae.program.rows import Rows

IMPORTANCE_BATCH = 100  # rows at a time


def sandwich(
    program: nn.Module,
    x: Rows,
    how: Annealing,
    advance: Callable[..., None],
    *,
    moves: int,
    truth: Tensor | None,
    num_particles: int,
    from_guide: bool,
) -> Evidence:
    r"""Annealing up and down, and importance sampling beside it where its khat lets it speak.

    Where the guide's weights have a khat below 1/2, their mean is a lower bound with an honest
    error, and their squares an upper bound (:mod:`~pyro_vae.evidence.chi_square`): the first is
    taken where its error is the smaller, the second where it is the lower.

    The value is half way between the bounds: errors of annealing forward and backward are alike,
    downward and upward by Var(log w) / 2 at first order, and cancel there.

    Args:
        program, x, how, advance, moves, truth: as of :func:`~pyro_vae.evidence.annealed.annealed`.
        num_particles: K draws of the guide.
        from_guide: whether to look at the guide's weights at all.
    """
    both = annealed(program, x, how, advance, back=True, moves=moves, truth=truth)
    below, above = both.below, both.above
    if above is None:
        raise RuntimeError("annealing backward was asked for")
    lower, lower_error = below.value, below.standard_error
    upper, upper_error = above.value, above.standard_error
    if from_guide:
        options: dict[str, Any] = {"seed": how.seed, "max_elements": how.max_elements}
        batch = min(how.batch_size, IMPORTANCE_BATCH)
        guide, chi = importance(
            program, x, lambda n: None, num_particles=num_particles, batch_size=batch, **options
        )
        better = (guide.khat < MOST_KHAT) & (guide.standard_error < lower_error)
        lower = torch.where(better, guide.value, lower)
        lower_error = torch.where(better, guide.standard_error, lower_error)
        tighter = chi < upper
        upper = torch.where(tighter, chi, upper)
        upper_error = torch.where(tighter, 0.0, upper_error)  # a margin is in it
    noise = torch.hypot(lower_error, upper_error) / 2
    return below._replace(
        value=(lower + upper) / 2,
        standard_error=torch.hypot((upper - lower) / 2, noise),
        lower=lower,
        upper=upper,
        rhat=above.rhat,
    )
