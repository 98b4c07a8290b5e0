"""Gaussian likelihoods of real vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import errors
from pyro_vae.networks.mlp import positive
from pyro_vae.program.families import NetworkLikelihood
from pyro_vae.program.parts import MeanRange
from pyro_vae.recording.recipes import LATER


class Gaussian(NetworkLikelihood):
    r"""p(x | z) = N(mu(z), diag s(z)^2), both from one hidden layer, s learnt per pixel.

    Args:
        sigmoid_mean: keep the mean in (0, 1), as the paper did for Frey Face; False for data that
            are not scaled to there, such as standardised columns.
        floor: the least standard deviation.  Without one the density of a constant pixel grows
            without bound.

    Source: Kingma & Welling (2014), appendix C.2, equation (12).
    """

    heads = 2

    def __init__(
        self,
        latent_dim: int = LATER,
        data_dim: int | Sequence[int] = LATER,
        hidden_dim: int = 200,
        *,
        sigmoid_mean: bool = True,
        floor: float = 1e-3,
        **networks: Any,
    ) -> None:
        super().__init__(latent_dim, data_dim, hidden_dim, **networks)
        self.sigmoid_mean, self.floor = sigmoid_mean, errors.positive("floor", floor)
        if sigmoid_mean:
            self.mean_range = MeanRange(0.0, 1.0, "build it with sigmoid_mean=False")

    def law(self, mean: Tensor, log_variance: Tensor) -> dist.TorchDistribution:
        if self.sigmoid_mean:
            mean = mean.sigmoid()
        return dist.Normal(mean, positive(log_variance, self.floor))
