"""Gaussian likelihoods of real vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.networks.mlp import positive
from pyro_vae.program.families import NetworkLikelihood
from pyro_vae.program.parts import MeanRange
from pyro_vae.recording.recipes import LATER


class Gaussian(NetworkLikelihood):
    r"""p(x | z) = N(mu(z), diag s(z)^2), both from one hidden layer, s learnt per pixel.

    Args:
        sigma: where s comes from: "network", as said; "pixel", one number a pixel, or "shared", one
            of all, learnt, and the same at every z; or a number, which is not learnt.
        sigmoid_mean: keep the mean in (0, 1), as the paper did for Frey Face; False for data that
            are not scaled to there, such as standardised columns.
        floor: the least standard deviation that is learnt.  Without one the density of a constant
            pixel grows without bound.

    Source: Kingma & Welling (2014), appendix C.2, equation (12).
    """

    def __init__(
        self,
        latent_dim: int = LATER,
        data_dim: int | Sequence[int] = LATER,
        hidden_dim: int = 200,
        *,
        sigma: float | Literal["network", "pixel", "shared"] = "network",
        sigmoid_mean: bool = True,
        floor: float = 1e-3,
        **networks: Any,
    ) -> None:
        if isinstance(sigma, str) and sigma not in ("network", "pixel", "shared"):
            raise ValueError(
                f'sigma is {sigma!r}, expected "network", "pixel" or "shared", or a positive number'
            )
        self.sigma = sigma if isinstance(sigma, str) else errors.positive("sigma", sigma)
        self.heads = 2 if sigma == "network" else 1
        super().__init__(latent_dim, data_dim, hidden_dim, **networks)
        if self.sigma in ("pixel", "shared"):
            shape = self.event if sigma == "pixel" else ()
            self.log_variance = nn.Parameter(torch.zeros(shape))
        self.sigmoid_mean, self.floor = sigmoid_mean, errors.positive("floor", floor)
        if sigmoid_mean:
            self.mean_range = MeanRange(0.0, 1.0, "build it with sigmoid_mean=False")

    def law(self, mean: Tensor, log_variance: Tensor | None = None) -> dist.TorchDistribution:
        if self.sigmoid_mean:
            mean = mean.sigmoid()
        if not isinstance(self.sigma, str):
            return dist.Normal(mean, self.sigma)
        log_variance = self.log_variance if log_variance is None else log_variance
        return dist.Normal(mean, positive(log_variance, self.floor))
