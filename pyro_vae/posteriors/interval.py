"""Posteriors of latents between two bounds."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform, SigmoidTransform

from pyro_vae import errors
from pyro_vae.networks.mlp import positive
from pyro_vae.program.families import NetworkPosterior


class Beta(NetworkPosterior):
    r"""q(z | x) = prod_j Beta(z_j; a_j(x), b_j(x)).

    Args:
        least: of a and b; small ones draw numbers that are 0 or 1 to all digits.

    Sources: Kingma & Welling (2014), section 2.4, case 3; Jankowiak & Obermeyer (2018),
    arXiv:1806.01851, for the gradient of its draws.
    """

    heads = 2
    support = constraints.unit_interval

    def __init__(self, *sizes: Any, least: float = 0.1, **networks: Any) -> None:
        super().__init__(*sizes, **networks)
        self.least = errors.positive("least", least)

    def law(self, log_a: Tensor, log_b: Tensor) -> dist.TorchDistribution:
        a, b = (positive(2 * each, self.least) for each in (log_a, log_b))
        return dist.Beta(a, b)


class LogitNormal(NetworkPosterior):
    r"""z_j = low + (high - low) sigmoid(y_j), y ~ N(mu(x), diag sigma(x)^2).

    There is no mean in closed form, and none is made up: codes are draws.

    Args:
        low, high: the bounds, those of the prior.
        floor: the least sigma.

    Source: Johnson (1949), Biometrika 36, system S_B.
    """

    heads = 2
    support: Any = constraints.unit_interval

    def __init__(
        self,
        *sizes: Any,
        low: float = 0.0,
        high: float = 1.0,
        floor: float = 1e-3,
        **networks: Any,
    ) -> None:
        super().__init__(*sizes, **networks)
        self.low = errors.within("low", low, "(-inf, inf)")
        self.high = errors.within("high", high, f"({self.low}, inf)", "the upper bound")
        self.floor = errors.positive("floor", floor)
        self.support = constraints.interval(self.low, self.high)

    def law(self, mean: Tensor, log_variance: Tensor) -> dist.TorchDistribution:
        # They know their last draw again: back from near a bound digits would be lost.
        onto: list[Any] = [SigmoidTransform(cache_size=1)]
        if (self.low, self.high) != (0.0, 1.0):
            onto.append(AffineTransform(self.low, self.high - self.low, cache_size=1))
        normal = dist.Normal(mean, positive(log_variance, self.floor))
        return dist.TransformedDistribution(normal, onto)
