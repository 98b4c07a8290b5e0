"""Priors of positive latents, such as intensities."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from pyro_vae import errors
from pyro_vae.priors.base import Factorized
from pyro_vae.recording.recipes import LATER


class Exponential(Factorized):
    r"""p(z_j) = lambda exp(-lambda z_j), z_j > 0.

    Args:
        latent_dim: J.
        rate: lambda; the mean is 1 / lambda.

    Source: Johnson, Kotz & Balakrishnan (1994), Continuous Univariate Distributions 1, (19.1).
    """

    support = constraints.positive

    def __init__(self, latent_dim: int = LATER, *, rate: float = 1.0) -> None:
        super().__init__(latent_dim)
        self.rate = errors.positive("rate", rate)

    def law(self, zero: Tensor) -> dist.TorchDistribution:
        return dist.Exponential(zero + self.rate)


class Gamma(Factorized):
    r"""p(z_j) = lambda^a z_j^(a - 1) exp(-lambda z_j) / Gamma(a), z_j > 0.

    Args:
        latent_dim: J.
        concentration: a; below 1 most latents are nearly zero.
        rate: lambda; the mean is a / lambda.

    Source: Johnson, Kotz & Balakrishnan (1994), Continuous Univariate Distributions 1, (17.23).
    """

    support = constraints.positive

    def __init__(
        self, latent_dim: int = LATER, *, concentration: float = 2.0, rate: float = 1.0
    ) -> None:
        super().__init__(latent_dim)
        self.concentration = errors.positive("concentration", concentration)
        self.rate = errors.positive("rate", rate)

    def law(self, zero: Tensor) -> dist.TorchDistribution:
        return dist.Gamma(zero + self.concentration, zero + self.rate)


class LogNormal(Factorized):
    r"""log z_j ~ N(mu, sigma^2).

    Args:
        latent_dim: J.
        loc: mu; the median is exp(mu).
        scale: sigma.

    Source: Johnson, Kotz & Balakrishnan (1994), Continuous Univariate Distributions 1, (14.2).
    """

    support = constraints.positive

    def __init__(self, latent_dim: int = LATER, *, loc: float = 0.0, scale: float = 1.0) -> None:
        super().__init__(latent_dim)
        self.loc = errors.within("loc", loc, "(-inf, inf)")
        self.scale = errors.positive("scale", scale)

    def law(self, zero: Tensor) -> dist.TorchDistribution:
        return dist.LogNormal(zero + self.loc, zero + self.scale)
