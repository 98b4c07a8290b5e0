r"""The importance-weighted auto-encoder: ascend the K-sample bound.

.. math:: L_K = E_{z_1, \dots, z_K \sim q} \log \frac1K \sum_k \frac{p(x, z_k)}{q(z_k \mid x)}

L_1 is the ELBO, L_K never falls with K and tends to log p(x).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_vae import errors
from pyro_vae.densities.particles import densities
from pyro_vae.objectives.base import Objective, State, Stats
from pyro_vae.objectives.weighting import (
    require_local,
    warn_about_one_particle,
    weighted_bound,
    weighted_stats,
)
from pyro_vae.program.rows import Rows


class IWAE(Objective):
    """The K-sample bound, its gradient by reparameterization, weights per datum.

    Args:
        num_particles: K.

    The gradient is unbiased for that of L_K.  The guide's part of it grows noisier with K: its
    signal-to-noise ratio falls like 1 / sqrt(K) (:class:`DReG` mends that).  The guide ends at
    what makes the weights even, which is not the closest posterior: score it by its own ELBO
    (the column ``bound``) only with that in mind.

    The plate's scale stands outside the logarithm.  (Inside, as in Pyro's ``RenyiELBO``, the
    "bound" can exceed log p(x).)

    Raises:
        ValueError: a guide that is not reparameterized; global latents.

    Sources: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519, equation (8); on its signal:
    Rainforth et al. (2018), arXiv:1802.04537.
    """

    estimates = "K-sample bound"
    takes_global = False

    def __init__(self, num_particles: int = 5) -> None:
        super().__init__(num_particles=errors.whole("num_particles", num_particles))
        if self.num_particles == 1:
            warn_about_one_particle("IWAE", 'AEVB("A")')

    def terms(self, program: Any, x: Rows, state: State) -> tuple[Tensor, Stats]:
        d = densities(program, x, self.num_particles)
        require_local(d, "IWAE")
        return -weighted_bound(d.log_w), weighted_stats(d)
