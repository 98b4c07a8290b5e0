"""Priors on the real line beside the normal: heavier tails, or a skewed shape."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import distributions, errors
from pyro_vae.priors.base import Factorized
from pyro_vae.recording.recipes import LATER


class Laplace(Factorized):
    r"""p(z_j) = exp(-|z_j| / b) / (2 b).

    Args:
        latent_dim: J.
        scale: b; the variance is 2 b^2.

    Source: Kotz, Kozubowski & Podgórski (2001), The Laplace Distribution, equation (2.1.1).
    """

    def __init__(self, latent_dim: int = LATER, *, scale: float = 1.0) -> None:
        super().__init__(latent_dim)
        self.scale = errors.positive("scale", scale)

    def law(self, zero: Tensor) -> dist.TorchDistribution:
        return dist.Laplace(zero, self.scale)


class StudentT(Factorized):
    r"""p(z_j) is proportional to (1 + z_j^2 / (nu s^2))^(-(nu + 1) / 2).

    Args:
        latent_dim: J.
        df: nu, the degrees of freedom; at most 2 have no variance, at most 1 no mean.
        scale: s.

    Source: Johnson, Kotz & Balakrishnan (1995), Continuous Univariate Distributions 2, (28.2).
    """

    def __init__(self, latent_dim: int = LATER, *, df: float = 5.0, scale: float = 1.0) -> None:
        super().__init__(latent_dim)
        self.df, self.scale = errors.positive("df", df), errors.positive("scale", scale)

    def law(self, zero: Tensor) -> dist.TorchDistribution:
        return dist.StudentT(zero + self.df, zero, self.scale)


class Logistic(Factorized):
    r"""p(z_j) = exp(-z_j / s) / (s (1 + exp(-z_j / s))^2).

    Args:
        latent_dim: J.
        scale: s; the variance is (pi s)^2 / 3.

    Source: Johnson, Kotz & Balakrishnan (1995), Continuous Univariate Distributions 2, (23.7).
    """

    def __init__(self, latent_dim: int = LATER, *, scale: float = 1.0) -> None:
        super().__init__(latent_dim)
        self.scale = errors.positive("scale", scale)

    def law(self, zero: Tensor) -> dist.TorchDistribution:
        return distributions.Logistic(zero, self.scale)


class Gumbel(Factorized):
    r"""p(z_j) = exp(-y - exp(-y)) / b with y = (z_j - m) / b.

    Args:
        latent_dim: J.
        loc: m, the mode; the mean is m + 0.577 b.
        scale: b; the variance is (pi b)^2 / 6.

    Source: Johnson, Kotz & Balakrishnan (1995), Continuous Univariate Distributions 2, (22.1).
    """

    def __init__(self, latent_dim: int = LATER, *, loc: float = 0.0, scale: float = 1.0) -> None:
        super().__init__(latent_dim)
        self.loc = errors.within("loc", loc, "(-inf, inf)")
        self.scale = errors.positive("scale", scale)

    def law(self, zero: Tensor) -> dist.TorchDistribution:
        return dist.Gumbel(zero + self.loc, zero + self.scale)
