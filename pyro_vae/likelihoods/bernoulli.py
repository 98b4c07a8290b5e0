"""Likelihoods of zeros and ones, or of grey values in their place."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import errors
from pyro_vae.distributions.soft_bernoulli import SoftBernoulli
from pyro_vae.networks.mlp import MLP
from pyro_vae.program.parts import Likelihood


class Bernoulli(Likelihood):
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
        self.normalized = not soft_targets
        latent_dim = errors.whole("latent_dim", latent_dim)
        data_dim = errors.whole("data_dim", data_dim)
        hidden_dim = errors.whole("hidden_dim", hidden_dim)
        self.network = MLP(latent_dim, hidden_dim, data_dim, init_std=init_std)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        family = SoftBernoulli if self.soft_targets else dist.Bernoulli
        return family(logits=self.network(z)).to_event(1)
