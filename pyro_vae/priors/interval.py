"""Priors of latents between two bounds."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from pyro_vae import errors
from pyro_vae.priors.base import Factorized
from pyro_vae.recording.recipes import LATER


class Beta(Factorized):
    r"""p(z_j) is proportional to z_j^(a - 1) (1 - z_j)^(b - 1), 0 < z_j < 1.

    Args:
        latent_dim: J.
        concentration1, concentration0: a and b; the mean is a / (a + b).

    Source: Johnson, Kotz & Balakrishnan (1995), Continuous Univariate Distributions 2, (25.2).
    """

    support = constraints.unit_interval

    def __init__(
        self, latent_dim: int = LATER, *, concentration1: float = 2.0, concentration0: float = 2.0
    ) -> None:
        super().__init__(latent_dim)
        self.concentration1 = errors.positive("concentration1", concentration1)
        self.concentration0 = errors.positive("concentration0", concentration0)

    def law(self, zero: Tensor) -> dist.TorchDistribution:
        return dist.Beta(zero + self.concentration1, zero + self.concentration0)


class Uniform(Factorized):
    r"""p(z) = (high - low)^(-J) on the box low < z_j < high.

    Args:
        latent_dim: J.
        low, high: the bounds of each latent; those of the posterior must be the same.

    Source: Johnson, Kotz & Balakrishnan (1995), Continuous Univariate Distributions 2, (26.1).
    """

    def __init__(self, latent_dim: int = LATER, *, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__(latent_dim)
        self.low = errors.within("low", low, "(-inf, inf)")
        self.high = errors.within("high", high, f"({self.low}, inf)", "the upper bound")

    @property
    def support(self) -> Any:
        known = {"low": 0.0, "high": 1.0, **(self._recipe or vars(self))}  # also without its sizes
        return constraints.interval(known["low"], known["high"])

    def law(self, zero: Tensor) -> dist.TorchDistribution:
        return dist.Uniform(zero + self.low, zero + self.high)
