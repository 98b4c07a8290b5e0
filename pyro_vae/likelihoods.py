"""Likelihoods: modules that return p(x | z)."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae.distributions import SoftBernoulli
from pyro_vae.networks import MLP, positive


class Bernoulli(nn.Module):
    r"""p(x | z) = prod_d Bernoulli(y_d), y = sigmoid(W2 tanh(W1 z + b1) + b2).

    Args:
        latent_dim, data_dim, hidden_dim: J, D and H.
        soft_targets: accept grey values in [0, 1] as targets, as the paper did.  That is a
            cross-entropy and no density of x; the default takes 0 and 1 alone.

    Source: Kingma & Welling (2014), appendix C.1, equation (11).
    """

    def __init__(
        self,
        latent_dim: int,
        data_dim: int,
        hidden_dim: int = 500,
        *,
        soft_targets: bool = False,
        init_std: float | None = 0.01,
    ) -> None:
        super().__init__()
        self.soft_targets = soft_targets
        self.network = MLP(latent_dim, hidden_dim, data_dim, init_std=init_std)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        family = SoftBernoulli if self.soft_targets else dist.Bernoulli
        return family(logits=self.network(z)).to_event(1)


class Gaussian(nn.Module):
    r"""p(x | z) = N(mu(z), diag s(z)^2), both from one hidden layer, s learnt per pixel.

    Args:
        latent_dim, data_dim, hidden_dim: J, D and H.
        sigmoid_mean: keep the mean in (0, 1), as the paper did for Frey Face.
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
        if not 0 < floor < float("inf"):
            raise ValueError(f"floor is {floor}, expected a positive number")
        self.sigmoid_mean, self.floor = sigmoid_mean, floor
        self.network = MLP(latent_dim, hidden_dim, 2 * data_dim, init_std=init_std)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        mean, log_variance = self.network(z).chunk(2, dim=-1)
        if self.sigmoid_mean:
            mean = mean.sigmoid()
        return dist.Normal(mean, positive(log_variance, self.floor)).to_event(1)
