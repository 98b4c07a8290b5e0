r"""The score-function gradient, for guides that cannot be reparameterized.

.. math:: \nabla_\phi E_q f(z) = E_q \big[(f(z) - b) \, \nabla_\phi \log q_\phi(z \mid x)\big],
    \qquad f = \log p(x, z) - \log q(z \mid x)

for any baseline b that does not depend on z.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.densities.particles import densities
from pyro_vae.objectives.base import Objective, State, Stats, bound_stats
from pyro_vae.objectives.weighting import require_local
from pyro_vae.program.rows import Rows, observed_rows


class ScoreFunction(Objective):
    """The ELBO with the score-function gradient, for latents of any kind, discrete ones too.

    Args:
        num_particles: K draws per datum.  With two or more, the baseline of each is the mean of
            the others of its datum; with one, it is a running mean of the bound over all data.
        baseline_decay: of the running mean.

    Unbiased, and noisy: the variance grows with the spread of the log weights and with the number
    of latents, so prefer :class:`AEVB` wherever the guide is reparameterized, and K of ten or
    more where it is not.

    Raises:
        ValueError: global latents; a guide that is a point (Delta) or Uniform, whose score does not
            say where its support should move.

    Sources: Paisley, Blei & Jordan (2012), arXiv:1206.6430; Kingma & Welling (2014), section 2.2,
    which calls it impractical; leave-one-out baseline: Mnih & Rezende (2016), arXiv:1602.06725.
    """

    estimates = "elbo"
    takes_global = False
    needs_rsample = False

    def __init__(self, num_particles: int = 1, baseline_decay: float = 0.99) -> None:
        super().__init__(num_particles=errors.whole("num_particles", num_particles))
        self.baseline_decay = errors.within("baseline_decay", baseline_decay, "[0, 1)")

    def init(self, program: Any, x: Rows) -> State:
        if self.num_particles > 1:
            return State({}, {})
        like = next(program.parameters(), None) if hasattr(program, "parameters") else None
        like = observed_rows(x) if like is None else like
        zero = torch.zeros((), dtype=like.dtype, device=like.device)
        return State({}, {"baseline": zero, "baseline_weight": zero.clone()})

    def terms(self, program: Any, x: Rows, state: State) -> tuple[Tensor, Stats]:
        d = densities(program, x, self.num_particles, reparameterize=False)
        require_local(d, "ScoreFunction")
        f = d.log_w.detach()
        if self.num_particles > 1:
            baseline = (f.sum(0) - f) / (self.num_particles - 1)
        else:
            # The mean of what came so far: a sum and a weight, so that it starts without a bias.
            baseline = state.shared["baseline"] / state.shared["baseline_weight"].clamp_min(1e-12)
        gradient_of = (d.log_p + (f - baseline) * d.log_q).mean(0)
        bound = f.mean(0)
        return -(bound + gradient_of - gradient_of.detach()), bound_stats(d)

    def advance(self, shared: dict[str, Tensor], means: dict[str, Tensor]) -> dict[str, Tensor]:
        if not shared:
            return shared
        keep = self.baseline_decay
        return {
            "baseline": keep * shared["baseline"] + (1 - keep) * means["bound"].detach(),
            "baseline_weight": keep * shared["baseline_weight"] + (1 - keep),
        }
