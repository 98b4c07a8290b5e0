r"""Wake-sleep, as the paper's baseline: two objectives, one for the model and one for the guide.

.. math::
    \text{wake: } &\max_\theta\; E_{q(z|x)} \log p_\theta(x, z) &&(x \text{ from the data}) \\
    \text{sleep: } &\max_\phi\; E_{p(z, x)} \log q_\phi(z \mid x) &&(x \text{ dreamt})

The sleep phase minimizes E_p(x) KL(p(z|x) || q(z|x)): it covers the posterior where AEVB's guide
seeks its modes, and together the two phases optimize no bound.  Draws carry no gradient, so
latents may be discrete.  Sources: Hinton, Dayan, Frey & Neal (1995); Kingma & Welling (2014),
sections 4 and 5.  (Not to be confused with reweighted wake-sleep, which weights its particles.)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_vae import errors
from pyro_vae.densities.dreams import dream, guide_log_density
from pyro_vae.densities.particles import densities
from pyro_vae.objectives.base import Objective, State, Stats, bound_stats
from pyro_vae.program.rows import Rows


class WakeSleep(Objective):
    """One wake and one sleep update together, on as many dreams as there are data.

    Args:
        num_particles: K draws per datum in the wake phase.

    Its history scores the guide by the same ELBO as AEVB's (estimator A).  The dream has the form
    of x and is drawn from the likelihood: binary images from a Bernoulli model, even where the
    data are grey, as in the paper.

    Raises:
        ValueError: where a dream of the observed site is no dream of x (the model scores a
            function of x, or a masked part), or where a latent is global.
    """

    takes_global = False
    needs_rsample = False

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles=errors.whole("num_particles", num_particles))

    def terms(self, program: Any, x: Rows, state: State) -> tuple[Tensor, Stats]:
        awake = densities(program, x, self.num_particles, reparameterize=False)
        dreamt, latents = dream(program, x)
        log_q = guide_log_density(program, dreamt, latents)  # (B,)
        # One loss serves both: z is detached, so log p reaches only the model; x' and z' are
        # dreamt without gradient, so log q reaches only the guide.
        loss = -awake.log_p.mean(0) - log_q
        return loss, {**bound_stats(awake), "sleep": log_q.detach()}
