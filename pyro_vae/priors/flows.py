"""Priors whose density follows from a learnt bijection to normal noise, or from a learnt chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch

from pyro_vae import errors
from pyro_vae.distributions.flows import NormalizingFlow, masked_flow
from pyro_vae.priors.base import Factorized
from pyro_vae.recording.recipes import LATER


class Flow(Factorized):
    r"""z = g(u), u ~ N(0, I), with a learnt bijection g.

    .. math:: \log p(z) = \log N(g^{-1}(z); 0, I) + \log |\det \partial g^{-1} / \partial z|

    Args:
        latent_dim: J.
        kind: what each latent goes through, given those before it: "spline", a monotonic
            rational-quadratic one (a neural spline flow), or "affine" (a masked autoregressive
            flow).
        transforms: how many, each in the other order of latents.
        hidden: sizes of the hidden layers of each transform's network.
        bins: of a spline, which bends between -5 and 5 and is the identity outside.

    The density takes one pass through the networks, a draw J of them.

    Sources: Papamakarios et al. (2017), arXiv:1705.07057; Durkan et al. (2019), arXiv:1906.04032.
    """

    def __init__(
        self,
        latent_dim: int = LATER,
        *,
        kind: Literal["spline", "affine"] = "spline",
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
        bins: int = 8,
    ) -> None:
        super().__init__(latent_dim)
        if kind not in ("spline", "affine"):
            raise ValueError(f'kind is {kind!r}, expected "spline" or "affine"')
        bins = errors.whole("bins", bins, 2)
        self.transform = masked_flow(
            len(self.zero),
            transforms=transforms,
            hidden=hidden,
            bins=bins if kind == "spline" else None,
        )

    def forward(self) -> dist.TorchDistribution:
        noise = dist.Normal(self.zero, 1.0).to_event(1)
        return NormalizingFlow(self.transform(None).inv, noise)

    @classmethod
    def example(cls, **sizes: Any) -> Flow:
        return cls(**sizes, transforms=2, hidden=(8,))


class Autoregressive(Factorized):
    r"""A chain z_1 -> z_2 -> ... of normals whose mean and scale networks make of those before.

    .. math:: p(z) = \prod_j N(z_j; \mu_j(z_{<j}), \sigma_j(z_{<j})^2)

    Args:
        latent_dim: J.
        lag: how many latents before z_j it hangs on; None for all, 1 for a Markov chain.
        hidden: sizes of the hidden layers of the masked network.

    The density takes one pass through the network, a draw J of them.  With a normal posterior
    it is as rich as an inverse autoregressive posterior beside a normal prior, and deeper.

    Sources: Germain et al. (2015), arXiv:1502.03509; Chen et al. (2017), arXiv:1611.02731.
    """

    def __init__(
        self, latent_dim: int = LATER, *, lag: int | None = None, hidden: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__(latent_dim)
        if lag is not None:
            lag = errors.whole("lag", lag, why="or None for all latents before")
        place = torch.arange(len(self.zero))
        behind = place.unsqueeze(-1) - place  # (J, J), row j: how far z_i is behind z_j
        seen = (behind >= 0) & (behind <= (len(place) if lag is None else lag))
        self.transform = masked_flow(len(place), transforms=1, hidden=hidden, adjacency=seen)

    def forward(self) -> dist.TorchDistribution:
        noise = dist.Normal(self.zero, 1.0).to_event(1)
        return NormalizingFlow(self.transform(None).inv, noise)
