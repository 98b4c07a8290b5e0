"""Posteriors with several modes."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import distributions, errors
from pyro_vae.networks.mlp import positive
from pyro_vae.program.families import NetworkPosterior


class MixtureOfNormals(NetworkPosterior):
    r"""q(z | x) = sum_k w_k(x) N(z; m_k(x), diag s_k(x)^2).

    Draws carry the gradient of weights, means and scales.

    Args:
        num_components: K; the network returns K (2 J + 1) numbers.
        floor: the least scale.

    Source: Graves (2016), arXiv:1607.05690.
    """

    joint = True

    def __init__(
        self, *sizes: Any, num_components: int = 3, floor: float = 1e-3, **networks: Any
    ) -> None:
        self.num_components = errors.whole("num_components", num_components)
        super().__init__(*sizes, **networks)
        self.floor = errors.positive("floor", floor)
        # Of equal means none would ever leave the others.
        self.apart = nn.Parameter(0.5 * torch.randn(self.num_components, self.latent_dim))

    @property
    def outputs(self) -> int:
        return self.num_components * (2 * self.latent_dim + 1)

    def law(self, output: Tensor) -> dist.TorchDistribution:
        table = output.unflatten(-1, (self.num_components, 2 * self.latent_dim + 1))
        logits, (means, log_variances) = table[..., 0], table[..., 1:].chunk(2, dim=-1)
        scales = positive(log_variances, self.floor)
        return distributions.MixtureOfNormals(logits, means + self.apart, scales)
