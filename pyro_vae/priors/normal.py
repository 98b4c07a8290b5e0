"""The paper's prior."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import errors
from pyro_vae.priors.base import Factorized
from pyro_vae.recording.recipes import LATER


class Normal(Factorized):
    r"""z ~ N(0, I / alpha), without parameters.

    Args:
        latent_dim: J.
        precision: alpha; 1 is the paper's.

    Source: Kingma & Welling (2014), section 3.
    """

    def __init__(self, latent_dim: int = LATER, precision: float = 1.0) -> None:
        super().__init__(latent_dim)
        self.precision = errors.positive("precision", precision)

    def law(self, zero: Tensor) -> dist.TorchDistribution:
        return dist.Normal(zero, self.precision**-0.5)


StandardNormal = Normal  # its name before there were others
