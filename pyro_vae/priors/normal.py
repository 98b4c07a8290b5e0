"""Priors: modules that return p(z)."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.program.parts import Prior


class StandardNormal(Prior):
    r"""z ~ N(0, I / alpha), without parameters.

    Args:
        latent_dim: J.
        precision: alpha; 1 is the paper's.
    """

    zero: Tensor

    def __init__(self, latent_dim: int, precision: float = 1.0) -> None:
        super().__init__()
        if int(latent_dim) != latent_dim or latent_dim < 1:
            raise ValueError(f"latent_dim is {latent_dim}, expected a whole number from 1 on")
        if not 0 < precision < float("inf"):
            raise ValueError(f"precision is {precision}, expected a positive number")
        self.precision = float(precision)
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(self.zero, self.precision**-0.5).to_event(1)
