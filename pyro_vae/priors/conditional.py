"""The prior of a conditional VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.networks.base import network_of
from pyro_vae.networks.mlp import MLP, positive
from pyro_vae.program.families import joined
from pyro_vae.program.parts import Prior
from pyro_vae.recording.recipes import LATER


class Conditional(Prior):
    r"""p(z | c) = N(mu(c), diag sigma(c)^2) of the covariates c of a row, by a network.

    It is called as ``prior(given)``, with the dict of the entries of x but "x".

    Args:
        latent_dim, hidden_dim: J and H of the network where none is given.
        given_dim: how many numbers the covariates of a row are.
        network: of c; by default the paper's, one hidden layer with tanh.
        init_std: of the default network's first weights, which start near N(0, I).
        floor: the least standard deviation.

    Source: Sohn, Lee & Yan (2015), Learning structured output representation using deep conditional
    generative models, section 4.1.
    """

    def __init__(
        self,
        latent_dim: int = LATER,
        hidden_dim: int = 500,
        *,
        given_dim: int = LATER,
        network: nn.Module | None = None,
        init_std: float | None = 0.01,
        floor: float = 1e-4,
    ) -> None:
        super().__init__()
        latent_dim = errors.whole("latent_dim", latent_dim)
        hidden_dim = errors.whole("hidden_dim", hidden_dim)
        self.given_dim = errors.whole(
            "given_dim", given_dim, why="give x as a dict with covariates beside its entry x"
        )
        self.floor = errors.positive("floor", floor)
        self.network = network_of(
            network,
            self.given_dim,
            2 * latent_dim,
            lambda i, o: MLP(i, hidden_dim, o, init_std=init_std),
        )

    def forward(  # type: ignore[override]
        self, given: Mapping[str, Tensor]
    ) -> dist.TorchDistribution:
        beside = joined(given)
        if beside.shape[-1] != self.given_dim:
            raise ValueError(
                f"the covariates {', '.join(sorted(given)) or '(none)'} are {beside.shape[-1]} "
                f"numbers a row, expected given_dim = {self.given_dim}"
            )
        dtype = next((p.dtype for p in self.parameters()), beside.dtype)
        mean, log_variance = self.network(beside.to(dtype)).chunk(2, dim=-1)
        return dist.Normal(mean, positive(log_variance, self.floor)).to_event(1)

    @classmethod
    def example(cls, **sizes: Any) -> Conditional:
        return cls(**sizes, hidden_dim=4, given_dim=3)
