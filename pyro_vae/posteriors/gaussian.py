"""Posteriors: modules that return q(z | x)."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import errors
from pyro_vae.networks.mlp import positive
from pyro_vae.program.families import NetworkPosterior


class Gaussian(NetworkPosterior):
    r"""q(z | x) = N(mu(x), diag sigma(x)^2), mean and log variance from one hidden layer.

    Args:
        precision: None learns sigma(x); a number beta fixes the variance at 1 / beta, so that only
            the mean is learnt.
        floor: the least standard deviation.

    Source: Kingma & Welling (2014), equation (9) and appendix C.2.
    """

    def __init__(
        self, *sizes: Any, precision: float | None = None, floor: float = 1e-4, **networks: Any
    ) -> None:
        if precision is not None:
            precision = errors.positive("precision", precision, "or None to learn it")
        self.heads = 2 if precision is None else 1
        super().__init__(*sizes, **networks)
        self.precision, self.floor = precision, errors.positive("floor", floor)

    def law(self, mean: Tensor, log_variance: Tensor | None = None) -> dist.TorchDistribution:
        if self.precision is not None or log_variance is None:
            return dist.Normal(mean, (self.precision or 1.0) ** -0.5)
        return dist.Normal(mean, positive(log_variance, self.floor))


Normal = Gaussian  # as the prior is called
