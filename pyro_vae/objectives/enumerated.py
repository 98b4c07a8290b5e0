r"""The ELBO for guides of every kind: sums, paths and scores, each where it can be had.

.. math:: \nabla E_q f = \underbrace{\textstyle\sum_y \nabla \, q(y) f}_{\text{marked}}
    + \underbrace{E_\epsilon \nabla f(z(\epsilon))}_{\text{reparameterized}}
    + \underbrace{E_q \, f \, \nabla \log q}_{\text{others}}, \qquad
    f = \log p(x, y, z) - \log q(y, z \mid x)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.densities.expectations import expected_bound
from pyro_vae.objectives.base import Objective, State, Stats
from pyro_vae.program.rows import Rows


class MixedELBO(Objective):
    """The ELBO, reparameterized where it can be, with the score function for all other latents.

    Args:
        num_particles: K draws per datum, averaged.

    What Pyro's ``Trace_ELBO`` does, and the same numbers where all latents are in one plate: a
    discrete latent beside continuous ones is weighed by its score, without a baseline.  (Of a
    latent in a plate inside, Pyro's score is also weighed by terms outside of that plate, which
    adds variance and nothing else.)  Where all latents are discrete, :class:`ScoreFunction` has
    baselines, and less variance; where the guide's discrete latents have few values,
    :class:`EnumeratedELBO` has none of theirs.

    Raises:
        ValueError: a guide that is a point (Delta) or Uniform without a reparameterized draw.

    Sources: Schulman et al. (2015), arXiv:1506.05254; DiCE: Foerster et al. (2018),
    arXiv:1802.05098.
    """

    estimates = "elbo"
    needs_rsample = False
    _summing = False

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles=errors.whole("num_particles", num_particles))

    def terms(self, program: Any, x: Rows, state: State) -> tuple[Tensor, Stats]:
        runs = [
            expected_bound(program, x, summing=self._summing) for _ in range(self.num_particles)
        ]
        first = runs[0]
        stats = {
            "bound": _mean([run.bound for run in runs]),
            "reconstruction": _mean([run.reconstruction for run in runs]),
            **{f"kl.{name}": _mean([run.kl[name] for run in runs]) for name in first.kl},
        }
        loss = -stats["bound"]
        return loss, {name: value.detach() for name, value in stats.items()}


class EnumeratedELBO(MixedELBO):
    """The ELBO, summed over those of the guide's latents that are marked for it.

    Args:
        num_particles: K draws per datum of what is drawn, averaged.

    A latent with ``infer={"enumerate": "parallel"}`` in the guide, or all finite ones under
    ``pyro.infer.config_enumerate``, takes all its values, so that its part of bound and gradient is
    exact; others are drawn, for each of these values if they depend on them.  As in Pyro's
    ``TraceEnum_ELBO``, "sequential" sums to the same numbers, and what is neither marked nor
    reparameterized is weighed by its score.  Several marked latents cost the product of their
    numbers of values.  Latents of the model alone that are marked are summed out here as under
    every objective.

    Raises:
        ValueError: marked latents that are not finite, or that all data share.

    Source: Kingma, Rezende, Mohamed & Welling (2014), arXiv:1406.5298, equation (7), for one
    unseen label.
    """

    _summing = True


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean(0)
