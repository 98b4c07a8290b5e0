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
        kl_weight: beta, what the KL term of every latent of a datum is multiplied by.

    ``pyro.poutine.scale`` in the program weighs single terms likewise: the KL of a latent, around
    it in model and guide, or an observation.

    With ``kl_weight``, ``kl_warmup``, ``free_bits`` or a scaled term what is trained is *not the
    ELBO*, and at a weight below 1 no bound; columns and scores (``bound``, held-out bounds, log
    p(x)) always are the ELBO, every term at full weight.  The column ``loss`` is what is trained,
    ``kl_weight`` the weight at that step.

    Where no closed KL is registered for a site, B samples that site's term, which is A for it,
    and warns once a fit.

    Sources: Kingma & Welling (2014), arXiv:1312.6114, equations (6), (7) and (10); warm-up:
    Bowman et al. (2016), arXiv:1511.06349; free bits: Kingma et al. (2016), arXiv:1606.04934;
    beta: Higgins et al. (2017), ICLR.
    """

    estimates = "elbo"  # with kl_weight, kl_warmup or free_bits something else
    takes_weights = True

    def __init__(
        self,
        estimator: Literal["A", "B"] = "B",
        num_particles: int = 1,
        *,
        kl_warmup: int = 0,
        free_bits: float = 0.0,
        kl_weight: float = 1.0,
    ) -> None:
        if estimator not in ("A", "B"):
            raise ValueError(f'estimator is {estimator!r}, expected "A" or "B"')
        super().__init__(num_particles=errors.whole("num_particles", num_particles))
        self.estimator = estimator
        self.kl_warmup = errors.whole("kl_warmup", kl_warmup, 0, why="updates, 0 for none")
        self.free_bits = errors.within("free_bits", free_bits, "[0, inf)", "nats, 0 for none")
        self.kl_weight = errors.within("kl_weight", kl_weight, "[0, inf)", "1 for the ELBO")

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
        if self.kl_warmup or self.kl_weight != 1.0:
            stats["kl_weight"] = torch.as_tensor(self._kl_weight(state)).to(bound).expand_as(bound)
        if lost := d.weights.keys() - d.observations.keys() - d.log_ratio.keys():
            raise ValueError(
                f'site "{min(lost)}" is shared by all data and weighed by poutine.scale, expected '
                "a factor of 1 there: leave it out"
            )
        for name, log_p in d.observations.items():
            if name in d.weights:
                bound = bound + (d.weights[name] - 1.0) * log_p.mean(0)
        if (
            self.kl_warmup
            or self.free_bits
            or self.kl_weight != 1.0
            or d.weights.keys() & d.latents
        ):
            return -(bound + self._forgiven(d, state)), stats
        return -bound, stats

    def _forgiven(self, d: Densities, state: State) -> Tensor:
        """What is charged of the KL terms less than the bound has, (B,)."""
        shared = [name for name in d.latents if name not in d.log_ratio]
        halves = sorted(d.log_ratio.keys() - d.kl.keys())  # sites of the guide alone
        if shared or halves:
            raise ValueError(
                "kl_weight, kl_warmup, free_bits and poutine.scale weigh the KL term of each "
                f"latent of a datum, and {(shared or halves)[0]!r} is "
                f"{'shared by all data' if shared else 'auxiliary'}: leave them out"
            )
        terms = d.kl_terms if self.estimator == "B" else d.sampled_kl_terms
        full = torch.stack(list(terms.values()))  # (sites, B)
        charged = full.clamp_min(self.free_bits) if self.free_bits else full
        weights = full.new_tensor([d.weights.get(name, 1.0) for name in terms]).unsqueeze(-1)
        return (full - self._kl_weight(state) * weights * charged).sum(0)

    def _kl_weight(self, state: State) -> Tensor | float:
        if not self.kl_warmup:
            return self.kl_weight
        return self.kl_weight * ((state.shared["step"] + 1) / self.kl_warmup).clamp_max(1.0)

    def _with_closed_kl(self, d: Densities) -> Tensor:  # (B,)
        sampled = [name for name, kl in d.kl.items() if kl is None]
        if sampled and not self._told:
            warnings.warn(
                f"no closed KL is known for site {', '.join(map(repr, sampled))}: its term is "
                'sampled there (estimator A); AEVB("A") samples all of them and says nothing',
                PyroVaeWarning,
                stacklevel=errors.users_line(),
            )
            self._told = True
        return d.log_likelihood.mean(0) - sum(d.kl_terms.values()) - d.global_kl_share
