"""Gaussian likelihoods of real vectors."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import errors
from pyro_vae.networks.mlp import MLP, positive
from pyro_vae.program.parts import Likelihood, MeanRange


class Gaussian(Likelihood):
    r"""p(x | z) = N(mu(z), diag s(z)^2), both from one hidden layer, s learnt per pixel.

    Args:
        latent_dim, data_dim, hidden_dim: J, D and H.
        sigmoid_mean: keep the mean in (0, 1), as the paper did for Frey Face; False for data that
            are not scaled to there, such as standardised columns.
        floor: the least standard deviation.  Without one the density of a constant pixel grows
            without bound.

    Source: Kingma & Welling (2014), appendix C.2, equation (12).
    """

    def __init__(
        self,
        latent_dim: int,
        data_dim: int,
        hidden_dim: int = 200,
        *,
        sigmoid_mean: bool = True,
        floor: float = 1e-3,
        init_std: float | None = 0.01,
    ) -> None:
        super().__init__()
        latent_dim = errors.whole("latent_dim", latent_dim)
        data_dim = errors.whole("data_dim", data_dim)
        hidden_dim = errors.whole("hidden_dim", hidden_dim)
        self.sigmoid_mean, self.floor = sigmoid_mean, errors.positive("floor", floor)
        if sigmoid_mean:
            self.mean_range = MeanRange(0.0, 1.0, "build it with sigmoid_mean=False")
        self.network = MLP(latent_dim, hidden_dim, 2 * data_dim, init_std=init_std)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        mean, log_variance = self.network(z).chunk(2, dim=-1)
        if self.sigmoid_mean:
            mean = mean.sigmoid()
        return dist.Normal(mean, positive(log_variance, self.floor)).to_event(1)
