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

import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.densities.particles import densities
from pyro_vae.densities.tables import Densities
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.objectives.base import EMPTY, Objective, State, Stats, bound_stats
from pyro_vae.program.rows import Rows, observed_rows


class AEVB(Objective):
    """The paper's own algorithm: the negative ELBO by estimator A or B.

    Args:
        estimator: "B" takes the KL term in closed form and samples the reconstruction; "A"
            samples both, as Pyro's ``Trace_ELBO`` does.  B "typically has less variance"; that
            is no law: at the exact posterior the value of A has none, and B's has.
        num_particles: K draws per datum (the paper's L; 1 is enough at minibatches of 100).
        kl_warmup: the KL term counts step / kl_warmup in the first so many updates, 1 afterwards
            (0: at once), so that latents are found useful before they are charged for.
        free_bits: nats of each latent's KL term per datum that are free: max(free_bits, KL) is
            charged.  The paper that names it takes the mean over a minibatch there; here no number
            mixes rows.  Where the KL is sampled the larger of the two is too large on average:
            more particles mend it.

    With ``kl_warmup`` or ``free_bits`` what is trained is *not the ELBO*, and no bound; columns
    and scores (``bound``, held-out bounds, log p(x)) always are the ELBO, its KL term at full
    weight.  The column ``loss`` is what is trained, ``kl_weight`` how far a warm-up is.

    Where no closed KL is registered for a site, B samples that site's term, which is A for it,
    and warns once a fit.

    Sources: Kingma & Welling (2014), arXiv:1312.6114, equations (6), (7) and (10); warm-up:
    Bowman et al. (2016), arXiv:1511.06349; free bits: Kingma et al. (2016), arXiv:1606.04934.
    """

    estimates = "elbo"  # with kl_warmup or free_bits something else

    def __init__(
        self,
        estimator: Literal["A", "B"] = "B",
        num_particles: int = 1,
        *,
        kl_warmup: int = 0,
        free_bits: float = 0.0,
    ) -> None:
        if estimator not in ("A", "B"):
            raise ValueError(f'estimator is {estimator!r}, expected "A" or "B"')
        super().__init__(num_particles=errors.whole("num_particles", num_particles))
        self.estimator = estimator
        self.kl_warmup = errors.whole("kl_warmup", kl_warmup, 0, why="updates, 0 for none")
        self.free_bits = errors.within("free_bits", free_bits, "[0, inf)", "nats, 0 for none")

    _told = False  # of sampled KL terms, since the first step; no number depends on it

    def init(self, program: Any, x: Rows) -> State:
        self._told = False
        if not self.kl_warmup:
            return EMPTY
        return State({}, {"step": torch.zeros((), device=observed_rows(x).device)})

    def advance(self, shared: dict[str, Tensor], means: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"step": shared["step"] + 1} if shared else shared

    def terms(self, program: Any, x: Rows, state: State) -> tuple[Tensor, Stats]:
        d = densities(program, x, self.num_particles)
        stats = bound_stats(d)
        if self.estimator == "A":
            bound = d.log_w.mean(0) + d.global_share
        else:
            bound = self._with_closed_kl(d)
        stats["bound"] = bound.detach()
        if self.kl_warmup:
            stats["kl_weight"] = self._kl_weight(state).expand_as(bound)
        if self.kl_warmup or self.free_bits:
            return -(bound + self._forgiven(d, state)), stats
        return -bound, stats

    def _forgiven(self, d: Densities, state: State) -> Tensor:
        """What is charged of the KL terms less than the bound has, (B,)."""
        shared = [name for name in d.latents if name not in d.log_ratio]
        halves = sorted(d.log_ratio.keys() - d.kl.keys())  # sites of the guide alone
        if shared or halves:
            raise ValueError(
                f"kl_warmup and free_bits weigh the KL term of each latent of a datum, and "
                f"{(shared or halves)[0]!r} is {'shared by all data' if shared else 'auxiliary'}: "
                "leave both options out for this program"
            )
        terms = d.kl_terms if self.estimator == "B" else d.sampled_kl_terms
        full = torch.stack(list(terms.values()))  # (sites, B)
        charged = full.clamp_min(self.free_bits) if self.free_bits else full
        if self.kl_warmup:
            charged = charged * self._kl_weight(state)
        return (full - charged).sum(0)

    def _kl_weight(self, state: State) -> Tensor:
        return ((state.shared["step"] + 1) / self.kl_warmup).clamp_max(1.0)

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
