"""Priors: modules that return p(z)."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.program.parts import Prior
from pyro_vae.recording.recipes import LATER


class StandardNormal(Prior):
    r"""z ~ N(0, I / alpha), without parameters.

    Args:
        latent_dim: J.
        precision: alpha; 1 is the paper's.
    """

    zero: Tensor

    def __init__(self, latent_dim: int = LATER, precision: float = 1.0) -> None:
        super().__init__()
        latent_dim = errors.whole("latent_dim", latent_dim)
        self.precision = errors.positive("precision", precision)
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(self.zero, self.precision**-0.5).to_event(1)
