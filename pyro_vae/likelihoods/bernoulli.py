"""Likelihoods of zeros and ones, or of grey values in their place."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.distributions.soft_bernoulli import SoftBernoulli
from pyro_vae.program.families import NetworkLikelihood


class Bernoulli(NetworkLikelihood):
    r"""p(x | z) = prod_d Bernoulli(y_d), y = sigmoid(W2 tanh(W1 z + b1) + b2).

    Args:
        soft_targets: accept grey values in [0, 1] as targets, as the paper did.  That is a
            cross-entropy and no density of x; the default takes 0 and 1 alone.

    Source: Kingma & Welling (2014), appendix C.1, equation (11).
    """

    heads = 1

    def __init__(self, *sizes: Any, soft_targets: bool = False, **networks: Any) -> None:
        super().__init__(*sizes, **networks)
        self.soft_targets = soft_targets
        self.normalized = not soft_targets

    def law(self, logits: Tensor) -> dist.TorchDistribution:
        family = SoftBernoulli if self.soft_targets else dist.Bernoulli
        return family(logits=logits)
