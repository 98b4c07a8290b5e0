"""Posteriors of shares of a whole."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from pyro_vae import distributions, errors
from pyro_vae.networks.mlp import positive
from pyro_vae.program.families import NetworkPosterior


class Dirichlet(NetworkPosterior):
    r"""q(z | x) = Dirichlet(z; a(x)).

    Args:
        least: of the concentrations a; small ones draw shares that are zero to all digits.

    Sources: Kingma & Welling (2014), section 2.4, case 3; Jankowiak & Obermeyer (2018),
    arXiv:1806.01851, for the gradient of its draws.
    """

    joint = True
    support = constraints.simplex

    def __init__(self, *sizes: Any, least: float = 0.1, **networks: Any) -> None:
        super().__init__(*sizes, **networks)
        errors.whole("latent_dim", self.latent_dim, 2, why="one share is the whole")
        self.least = errors.positive("least", least)

    def law(self, log_concentration: Tensor) -> dist.TorchDistribution:
        return dist.Dirichlet(positive(2 * log_concentration, self.least))


class LogisticNormal(NetworkPosterior):
    r"""The stick-breaking image of N(mu(x), diag sigma(x)^2) in J - 1 dimensions.

    There is no mean in closed form, and none is made up: codes are draws.

    Args:
        floor: the least sigma.

    Source: Atchison & Shen (1980), Biometrika 67(2); Srivastava & Sutton (2017), arXiv:1703.01488.
    """

    joint = True
    support = constraints.simplex

    def __init__(self, *sizes: Any, floor: float = 1e-3, **networks: Any) -> None:
        super().__init__(*sizes, **networks)
        self.floor = errors.positive("floor", floor)

    @property
    def outputs(self) -> int:
        shares = errors.whole("latent_dim", self.latent_dim, 2, why="one share is the whole")
        return 2 * (shares - 1)

    def law(self, output: Tensor) -> dist.TorchDistribution:
        mean, log_variance = output.chunk(2, dim=-1)
        return distributions.LogisticNormal(mean, positive(log_variance, self.floor))
