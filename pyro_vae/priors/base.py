"""What priors share: one law for each latent, all alike."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.program.parts import Prior
from pyro_vae.recording.recipes import LATER


class Factorized(Prior):
    """p(z) = prod_j p(z_j), without parameters; a subclass writes ``law``.

    Args:
        latent_dim: J.
    """

    zero: Tensor

    def __init__(self, latent_dim: int = LATER) -> None:
        super().__init__()
        latent_dim = errors.whole("latent_dim", latent_dim)
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def law(self, zero: Tensor) -> Any:
        """The law of z_j; ``zero`` (J,) gives shape, dtype and device to its parameters."""
        raise TypeError(f"{type(self).__name__} defines no law(self, zero): write it")

    def forward(self) -> dist.TorchDistribution:
        return self.law(self.zero).to_event(1)
