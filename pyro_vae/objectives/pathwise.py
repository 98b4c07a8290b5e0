r"""Sticking the landing, and doubly reparameterized gradients: the path through the draws alone.

The total derivative of log w in the guide's parameters has two parts: along the draws, and the
score of q at given draws, which is zero on average and is left out.  With
g = d (log p - log q) / dz at a detached z, both objectives ascend

.. math:: \sum_k v_k \, g_k \cdot z_k(\phi), \qquad
    v_k = \tfrac1K \text{ (STL)} \quad\text{or}\quad \bar w_k^2 \text{ (DReG)}

for the guide, and 1/K or w_k times the gradient of log p(x, z_k) for the model.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_vae import errors
from pyro_vae.densities.particles import densities
from pyro_vae.densities.tables import Densities
from pyro_vae.objectives.base import Objective, State, Stats, bound_stats
from pyro_vae.objectives.weighting import (
    normalized,
    require_local,
    warn_about_one_particle,
    weighted_bound,
    weighted_stats,
)
from pyro_vae.program.rows import Rows


def surrogate(d: Densities, for_model: Tensor | float, for_guide: Tensor | float) -> Tensor:
    """(B,) whose gradient is the weighted one above; of no meaning as a value."""
    if d.path is None:
        raise ValueError("densities without a path: ask for densities(..., pathwise=True)")
    return (for_model * d.log_p + for_guide * d.path).sum(0)


def _valued(value: Tensor, gradient_of: Tensor) -> Tensor:
    """One tensor's value with another's gradient."""
    return value.detach() + gradient_of - gradient_of.detach()


class StickingTheLanding(Objective):
    """The ELBO by estimator A, without the score of q in its gradient.

    Args:
        num_particles: K draws per datum, averaged.

    The gradient is unbiased; the guide's part is exactly zero at the exact posterior, draw by draw:
    it sticks the landing.  Away from it the variance may be larger or smaller than estimator A's.

    Raises:
        ValueError: a guide that is not reparameterized, or whose support moves (Uniform, Pareto).

    Source: Roeder, Wu & Duvenaud (2017), arXiv:1703.09194.
    """

    estimates = "elbo"
    scores_twice = True

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles=errors.whole("num_particles", num_particles))

    def terms(self, program: Any, x: Rows, state: State) -> tuple[Tensor, Stats]:
        # With one weight for all draws both sides share the graph: q is held, the draws are not.
        d = densities(program, x, self.num_particles, detach_guide=True)
        return -(d.log_w.mean(0) + d.global_share), bound_stats(d)


class DReG(Objective):
    """The K-sample bound of :class:`IWAE` with doubly reparameterized gradients for the guide.

    Args:
        num_particles: K.

    Unbiased for the same gradient as IWAE's, by a second use of reparameterization that turns the
    score into a path: squared weights on the path alone.  The signal-to-noise ratio of the guide's
    part rises with K where the guide is wider than the posterior; for a narrower one, whose weights
    have heavy tails, it falls, but stays above IWAE's.  The gradient is zero at the exact posterior
    for every K.

    Raises:
        ValueError: a guide that is not reparameterized, or whose support moves (Uniform, Pareto);
            global latents.

    Source: Tucker, Lawson, Gu & Maddison (2019), arXiv:1810.04152, equation (8).
    """

    estimates = "K-sample bound"
    takes_global = False
    scores_twice = True

    def __init__(self, num_particles: int = 5) -> None:
        super().__init__(num_particles=errors.whole("num_particles", num_particles))
        if self.num_particles == 1:
            warn_about_one_particle("DReG", "StickingTheLanding()")

    def terms(self, program: Any, x: Rows, state: State) -> tuple[Tensor, Stats]:
        d = densities(program, x, self.num_particles, pathwise=True)
        require_local(d, "DReG")
        weights = normalized(d.log_w)
        gradient_of = surrogate(d, weights, weights.square())
        return -_valued(weighted_bound(d.log_w), gradient_of), weighted_stats(d)
