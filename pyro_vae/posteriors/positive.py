"""Posteriors of positive latents."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from pyro_vae import distributions, errors
from pyro_vae.networks.mlp import positive
from pyro_vae.program.families import NetworkPosterior


class Exponential(NetworkPosterior):
    r"""q(z | x) = prod_j lambda_j(x) exp(-lambda_j(x) z_j); the network gives log lambda^-2.

    Args:
        floor: the least mean 1 / lambda.

    Source: Kingma & Welling (2014), section 2.4, case 1.
    """

    support = constraints.positive

    def __init__(self, *sizes: Any, floor: float = 1e-4, **networks: Any) -> None:
        super().__init__(*sizes, **networks)
        self.floor = errors.positive("floor", floor)

    def law(self, log_square: Tensor) -> dist.TorchDistribution:
        return dist.Exponential(1 / positive(log_square, self.floor))


class Erlang(Exponential):
    r"""q(z | x) = prod_j Gamma(z_j; k, lambda_j(x)) with a whole k, the same for all.

    A draw is a sum of k exponential ones, so that its noise does not depend on parameters.

    Args:
        shape: k.
        floor: the least 1 / lambda.

    Source: Kingma & Welling (2014), section 2.4, case 1.
    """

    def __init__(self, *sizes: Any, shape: int = 2, floor: float = 1e-4, **networks: Any) -> None:
        super().__init__(*sizes, floor=floor, **networks)
        self.shape = errors.whole("shape", shape)

    def law(self, log_square: Tensor) -> dist.TorchDistribution:
        return distributions.Erlang(self.shape, 1 / positive(log_square, self.floor))


class Gamma(NetworkPosterior):
    r"""q(z | x) = prod_j Gamma(z_j; a_j(x), a_j(x) / m_j(x)), by shape and mean.

    Its draws depend on their parameters in ways that no fixed noise can serve, and carry their
    gradients (implicit reparameterization).

    Args:
        least: of the shape a; small ones draw numbers that are zero to all digits.
        floor: the least mean.

    Sources: Kingma & Welling (2014), section 2.4, case 3; Figurnov et al. (2018),
    arXiv:1805.08498.
    """

    heads = 2
    support = constraints.positive

    def __init__(
        self, *sizes: Any, least: float = 0.1, floor: float = 1e-4, **networks: Any
    ) -> None:
        super().__init__(*sizes, **networks)
        self.least = errors.positive("least", least)
        self.floor = errors.positive("floor", floor)

    def law(self, log_shape: Tensor, log_mean: Tensor) -> dist.TorchDistribution:
        shape = positive(2 * log_shape, self.least)
        return dist.Gamma(shape, shape / positive(2 * log_mean, self.floor))


class LogNormal(NetworkPosterior):
    r"""log z_j ~ N(mu_j(x), sigma_j(x)^2).

    Args:
        floor: the least sigma.

    Source: Kingma & Welling (2014), section 2.4, case 3.
    """

    heads = 2
    support = constraints.positive

    def __init__(self, *sizes: Any, floor: float = 1e-4, **networks: Any) -> None:
        super().__init__(*sizes, **networks)
        self.floor = errors.positive("floor", floor)

    def law(self, mean: Tensor, log_variance: Tensor) -> dist.TorchDistribution:
        return dist.LogNormal(mean, positive(log_variance, self.floor))
