r"""Reweighted wake-sleep: K weighted draws in place of wake-sleep's single one.

.. math::
    \text{wake, model: } &\textstyle\sum_k \bar w_k \nabla_\theta \log p_\theta(x, z_k) \\
    \text{wake, guide: } &\textstyle\sum_k \bar w_k \nabla_\phi \log q_\phi(z_k \mid x) \\
    \text{sleep, guide: } &E_{p_\theta(z, x')} \nabla_\phi \log q_\phi(z \mid x')

Draws are detached, so latents may be discrete.  The model's update is the gradient of the K-sample
bound; the guide's wake update descends KL(p(z|x) || q(z|x)) at the data, its sleep update at
dreams.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_vae import errors
from pyro_vae.densities.dreams import dream, guide_log_density
from pyro_vae.densities.particles import densities
from pyro_vae.objectives.base import Objective, State, Stats
from pyro_vae.objectives.weighting import normalized, require_local, weighted_stats
from pyro_vae.program.rows import Rows


class ReweightedWakeSleep(Objective):
    """Wake for the model; for the guide wake, sleep, or a mixture.

    Args:
        num_particles: K, at least 2: a single draw has the weight 1 whatever it is, and the wake
            update of the guide is then noise around zero.
        insomnia: the share of the wake update in the guide's, Pyro's name for it: 1 is wake alone,
            0 sleep alone (any K then), between them both.

    The wake updates are biased for finite K, by O(1/K): self-normalized weights estimate the
    posterior's expectation, and are exact for the K-sample bound's.  Weights are per datum.
    (Pyro's ``ReweightedWakeSleep`` normalizes them over the whole batch.)

    Raises:
        ValueError: K = 1 with a wake update of the guide; global latents; with a sleep update,
            what :class:`WakeSleep` refuses.

    Sources: Bornschein & Bengio (2015), arXiv:1406.2751; Le et al. (2019), arXiv:1805.10469.
    """

    takes_global = False
    needs_rsample = False
    least_particles = 2  # 1 where insomnia is 0

    def __init__(self, num_particles: int = 5, insomnia: float = 1.0) -> None:
        insomnia = errors.within("insomnia", insomnia, "[0, 1]", "a share")
        least = 2 if insomnia > 0 else 1
        why = "the weight of a single draw is 1, so the guide's wake update would be noise"
        why = why if least > 1 else ""
        super().__init__(num_particles=errors.whole("num_particles", num_particles, least, why=why))
        self.insomnia = insomnia

    def terms(self, program: Any, x: Rows, state: State) -> tuple[Tensor, Stats]:
        d = densities(program, x, self.num_particles, reparameterize=False)
        require_local(d, "ReweightedWakeSleep")
        weights, stats = normalized(d.log_w), weighted_stats(d)
        # Each term reaches one side alone: the draws are detached.
        loss = -(weights * d.log_p).sum(0)
        if self.insomnia > 0:
            loss = loss - self.insomnia * (weights * d.log_q).sum(0)
        if self.insomnia < 1:
            dreamt, latents = dream(program, x)
            asleep = guide_log_density(program, dreamt, latents)  # (B,)
            loss = loss - (1 - self.insomnia) * asleep
            stats["sleep"] = asleep.detach()
        return loss, stats
