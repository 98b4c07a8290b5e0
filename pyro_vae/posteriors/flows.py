"""Posteriors that bend a Gaussian, each row in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import errors
from pyro_vae.distributions.flows import NormalizingFlow, masked_flow
from pyro_vae.networks.mlp import positive
from pyro_vae.program.families import NetworkPosterior


class _Flow(NetworkPosterior):
    """z = g(u; h(x)), u ~ N(mu(x), diag sigma(x)^2).

    Args:
        transforms: how many, each in the other order of latents.
        hidden: sizes of the hidden layers of each transform's masked network.
        context_dim: length of h(x), what the transforms see of x.
        floor: the least sigma.
    """

    joint = True
    options: dict[str, Any] = {}  # noqa: RUF012  (of the transforms)

    def __init__(
        self,
        *sizes: Any,
        transforms: int = 2,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 16,
        floor: float = 1e-4,
        **networks: Any,
    ) -> None:
        self.context_dim = errors.whole("context_dim", context_dim)
        super().__init__(*sizes, **networks)
        self.floor = errors.positive("floor", floor)
        self.transform = masked_flow(
            self.latent_dim,
            self.context_dim,
            transforms=transforms,
            hidden=hidden,
            **self.options,
        )

    @property
    def outputs(self) -> int:
        return 2 * self.latent_dim + self.context_dim

    def law(self, output: Tensor) -> dist.TorchDistribution:
        size = self.latent_dim
        mean, log_variance = output[..., :size], output[..., size : 2 * size]
        base = dist.Normal(mean, positive(log_variance, self.floor)).to_event(1)
        return NormalizingFlow(self.transform(output[..., 2 * size :]), base)

    @classmethod
    def example(cls, **sizes: Any) -> Any:
        return cls(**sizes, transforms=2, hidden=(8,), context_dim=3)


class AutoregressiveFlow(_Flow):
    r"""q(z | x) by an inverse autoregressive flow, z = g(u; h(x)) with affine steps.

    .. math:: z_j = \sigma_j(u_{<j}, h) u_j + \mu_j(u_{<j}, h), \qquad u \sim N(\mu(x), \sigma(x)^2)

    A draw and its own density take one pass through the networks; the density of another z, as
    a dream asks for, takes J.  There is no mean: codes are draws.

    Args:
        transforms: how many, each in the other order of latents.
        hidden: sizes of the hidden layers of each transform's masked network.
        context_dim: length of h(x), what the transforms see of x.
        floor: the least sigma(x).

    Source: Kingma et al. (2016), arXiv:1606.04934, section 3.
    """


class SplineFlow(_Flow):
    r"""q(z | x) by a coupling flow of monotonic rational-quadratic splines.

    Half of the latents bend the other half, between -5 and 5; outside they stay what they are.
    Draws and densities both take two passes through the networks at most.  There is no mean:
    codes are draws.

    Args:
        transforms: how many, each in the other order of latents.
        hidden: sizes of the hidden layers of each transform's network.
        context_dim: length of h(x), what the transforms see of x.
        bins: of a spline.
        floor: the least sigma(x).

    Source: Durkan et al. (2019), arXiv:1906.04032.
    """

    def __init__(self, *sizes: Any, bins: int = 8, **options: Any) -> None:
        self.options = {"bins": errors.whole("bins", bins, 2), "passes": 2}
        super().__init__(*sizes, **options)
