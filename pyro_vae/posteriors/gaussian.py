"""Posteriors: modules that return q(z | x)."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import errors
from pyro_vae.networks.mlp import MLP, positive
from pyro_vae.program.parts import Posterior


class Gaussian(Posterior):
    r"""q(z | x) = N(mu(x), diag sigma(x)^2), mean and log variance from one hidden layer.

    Args:
        data_dim, latent_dim, hidden_dim: D, J and H.
        precision: None learns sigma(x); a number beta fixes the variance at 1 / beta, so that only
            the mean is learnt.
        floor: the least standard deviation.

    Source: Kingma & Welling (2014), equation (9) and appendix C.2.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        hidden_dim: int = 500,
        *,
        precision: float | None = None,
        floor: float = 1e-4,
        init_std: float | None = 0.01,
    ) -> None:
        super().__init__()
        data_dim = errors.whole("data_dim", data_dim)
        latent_dim = errors.whole("latent_dim", latent_dim)
        hidden_dim = errors.whole("hidden_dim", hidden_dim)
        if precision is not None:
            precision = errors.positive("precision", precision, "or None to learn it")
        self.precision, self.floor = precision, errors.positive("floor", floor)
        outputs = latent_dim if precision is not None else 2 * latent_dim
        self.network = MLP(data_dim, hidden_dim, outputs, init_std=init_std)

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        if self.precision is not None:
            return dist.Normal(self.network(x), self.precision**-0.5).to_event(1)
        mean, log_variance = self.network(x).chunk(2, dim=-1)
        return dist.Normal(mean, positive(log_variance, self.floor)).to_event(1)
