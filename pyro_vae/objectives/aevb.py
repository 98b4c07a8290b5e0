r"""Auto-encoding variational Bayes: ascend a reparameterized estimate of the bound.

.. math::
    \text{A:}\; \frac1K \sum_k \log p(x, z_k) - \log q(z_k \mid x) \qquad
    \text{B:}\; -KL(q(z \mid x) \,\|\, p(z)) + \frac1K \sum_k \log p(x \mid z_k)

with z = g(eps, x) and eps free of the parameters.  Source: Kingma & Welling (2014), equations (6)
and (7).  Both are unbiased for the ELBO and for its gradient.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

from torch import Tensor

from pyro_vae.densities import Densities, densities
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.objectives.base import EMPTY, Objective, State, Stats, bound_stats
from pyro_vae.program import Rows


class AEVB(Objective):
    """The paper's own algorithm: the negative ELBO by estimator A or B.

    Args:
        estimator: "B" takes the KL term in closed form and samples the reconstruction; "A"
            samples both, as Pyro's ``Trace_ELBO`` does.  B "typically has less variance"; that
            is no law: at the exact posterior the value of A has none, and B's has.
        num_particles: K draws per datum (the paper's L; 1 is enough at minibatches of 100).

    Where no closed KL is registered for a site, B samples that site's term, which is A for it,
    and warns once a fit.

    Source: Kingma & Welling (2014), arXiv:1312.6114, equations (6), (7) and (10).
    """

    def __init__(self, estimator: Literal["A", "B"] = "B", num_particles: int = 1) -> None:
        if estimator not in ("A", "B"):
            raise ValueError(f'estimator is {estimator!r}, expected "A" or "B"')
        if int(num_particles) != num_particles or num_particles < 1:
            raise ValueError(f"num_particles is {num_particles}, expected a whole number from 1 on")
        super().__init__(num_particles=int(num_particles))
        self.estimator = estimator

    _told = False  # of sampled KL terms, since the first step; no number depends on it

    def init(self, program: Any, x: Rows) -> State:
        self._told = False
        return EMPTY

    def terms(self, program: Any, x: Rows, state: State) -> tuple[Tensor, Stats]:
        d = densities(program, x, self.num_particles)
        stats = bound_stats(d)
        if self.estimator == "A":
            bound = d.log_w.mean(0) + d.global_share
        else:
            bound = self._with_closed_kl(d)
        stats["bound"] = bound.detach()
        return -bound, stats

    def _with_closed_kl(self, d: Densities) -> Tensor:  # (B,)
        sampled = [name for name, kl in d.kl.items() if kl is None]
        if sampled and not self._told:
            warnings.warn(
                f"no closed KL is known for site {', '.join(map(repr, sampled))}: its term is "
                'sampled there (estimator A); AEVB("A") samples all of them and says nothing',
                PyroVaeWarning,
                stacklevel=2,
            )
            self._told = True
        return d.log_likelihood.mean(0) - sum(d.kl_terms.values()) - d.global_kl_share
