r"""What the objectives that weight K draws of the guide have in common.

.. math::
    \log w_k = \log p(x, z_k) - \log q(z_k \mid x), \qquad
    \bar w_k = \frac{w_k}{\sum_j w_j}, \qquad
    \hat L_K = \log \frac1K \sum_k w_k \le \log p(x) \text{ on average}.

Weights are normalized over the K draws of one datum, never over data.
"""

from __future__ import annotations

import math
import warnings

from torch import Tensor

from pyro_vae.densities.tables import Densities
from pyro_vae.errors import PyroVaeWarning, users_line
from pyro_vae.objectives.base import Stats, bound_stats


def warn_about_one_particle(name: str, same_as: str) -> None:
    """One draw has the weight 1, so the objective is a simpler one by another name."""
    warnings.warn(
        f"{name} with one particle is {same_as}: pass num_particles=5 or more to weight draws",
        PyroVaeWarning,
        stacklevel=users_line(),
    )


def require_local(d: Densities, name: str) -> None:
    """Raises ValueError for what all data share: the weights of a datum cannot hold it."""
    shared = list(d.global_ratio)  # latents, and factors outside the plate
    if shared:
        others = f" and {len(shared) - 1} more are " if len(shared) > 1 else " is "
        raise ValueError(
            f"{name} judges each draw by its own datum, and {shared[0]!r}{others}"
            'outside pyro.plate("data", ...), shared by all of them: use AEVB() or '
            "StickingTheLanding()"
        )


def normalized(log_w: Tensor) -> Tensor:
    """The weights of each datum (K, B), their sum over K one; without gradient."""
    return log_w.detach().softmax(0)


def weighted_bound(log_w: Tensor) -> Tensor:
    """log of the mean weight (B,): the K-sample bound."""
    return log_w.logsumexp(0) - math.log(len(log_w))


def weighted_stats(d: Densities) -> Stats:
    """Those of every objective, and the K-sample bound and effective number of draws, (B,)."""
    log_w = d.log_w.detach()
    squares = normalized(log_w).square().sum(0)
    return {
        **bound_stats(d),
        f"bound_{len(log_w)}": weighted_bound(log_w),
        "ess": 1 / squares,
    }
