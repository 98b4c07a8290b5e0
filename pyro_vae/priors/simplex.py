"""Priors of latents that are shares of a whole: z_j > 0 and sum_j z_j = 1."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae import distributions, errors
from pyro_vae.program.parts import Prior
from pyro_vae.recording.recipes import LATER


class Dirichlet(Prior):
    r"""p(z) is proportional to prod_j z_j^(a - 1).

    Args:
        latent_dim: J, at least 2.
        concentration: a, the same for all; below 1 few shares have most of the whole.

    Source: Kotz, Balakrishnan & Johnson (2000), Continuous Multivariate Distributions, (49.1).
    """

    support = constraints.simplex
    zero: Tensor

    def __init__(self, latent_dim: int = LATER, *, concentration: float = 1.0) -> None:
        super().__init__()
        latent_dim = errors.whole("latent_dim", latent_dim, 2, why="one share is the whole")
        self.concentration = errors.positive("concentration", concentration)
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        return dist.Dirichlet(self.zero + self.concentration)


class LogisticNormal(Prior):
    r"""The stick-breaking image of y ~ N(mu, s^2 I) in J - 1 dimensions.

    Shares are broken off one after the other, and mu is such that equal shares are its centre.

    Args:
        latent_dim: J, at least 2.
        scale: s; small ones stay near equal shares, large ones near the corners.

    Source: Atchison & Shen (1980), Biometrika 67(2), with the stick-breaking map in place of the
    additive one, as torch has it.
    """

    support = constraints.simplex
    zero: Tensor

    def __init__(self, latent_dim: int = LATER, *, scale: float = 1.0) -> None:
        super().__init__()
        latent_dim = errors.whole("latent_dim", latent_dim, 2, why="one share is the whole")
        self.scale = errors.positive("scale", scale)
        self.register_buffer("zero", torch.zeros(latent_dim - 1), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        return distributions.LogisticNormal(self.zero, self.zero + self.scale)
