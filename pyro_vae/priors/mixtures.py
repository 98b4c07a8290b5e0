"""Learnt mixtures: of normals, and of what the posterior makes of learnt data."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae import errors
from pyro_vae.distributions import Mixture
from pyro_vae.networks.mlp import positive
from pyro_vae.program.parts import Prior
from pyro_vae.recording import record_of
from pyro_vae.recording.recipes import LATER


class MixtureOfNormals(Prior):
    r"""p(z) = sum_k w_k N(z; m_k, diag s_k^2), with learnt weights, means and scales.

    The sum over k is one of joint densities, of all J latents at once; a sum for each latent would
    be the density of another law, with K^J modes.

    Args:
        num_components: K.
        latent_dim: J.
        spread: the standard deviation of the means where training starts; the scales start so that
            the whole has about unit variance.
        floor: the least scale.

    Source: Tomczak & Welling (2018), arXiv:1705.07120, section 3, "mixture of Gaussians".
    """

    def __init__(
        self,
        num_components: int = 10,
        *,
        latent_dim: int = LATER,
        spread: float = 0.8,
        floor: float = 1e-3,
    ) -> None:
        super().__init__()
        latent_dim = errors.whole("latent_dim", latent_dim)
        num_components = errors.whole("num_components", num_components)
        spread = errors.within("spread", spread, "(0, 1)", "the means' share of unit variance")
        self.floor = errors.positive("floor", floor)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.means = nn.Parameter(spread * torch.randn(num_components, latent_dim))
        start = math.log(1.0 - spread**2)
        self.log_variances = nn.Parameter(torch.full((num_components, latent_dim), start))

    def component(self, index: Any) -> dist.TorchDistribution:
        """The normals of an index of K."""
        scale = positive(self.log_variances[index], self.floor)
        return dist.Normal(self.means[index], scale).to_event(1)

    def forward(self) -> dist.TorchDistribution:
        return Mixture(self.logits, self.component)


class VampPrior(Prior):
    r"""p(z) = sum_k q(z | u_k) / K: a mixture of the posteriors of learnt pseudo-inputs u_k.

    .. math:: p(z) = \frac{1}{K} \sum_{k=1}^{K} q_\phi(z \mid u_k)

    Args:
        num_components: K.
        latent_dim: J.
        data_dim: D, or the shape of one x.
        posterior: q, whose network the pseudo-inputs go through.  It stays the program's: it is no
            submodule of the prior, has its parameters once, and is copied with the program.
        bounds: keep the pseudo-inputs between these two, as sigmoid(v) does; None leaves them
            free.

    Gradients of log p(z) reach q's network too.  ``start`` puts rows of data into the u_k.

    Source: Tomczak & Welling (2018), arXiv:1705.07120, equation (9).  Theirs are bounded by a
    clamp, behind which there is no gradient; a sigmoid always has one.
    """

    MARGIN = 0.02  # of the range, which rows of data start away from the bounds

    def __init__(
        self,
        num_components: int = 500,
        *,
        latent_dim: int = LATER,
        data_dim: int | tuple[int, ...] = LATER,
        posterior: nn.Module = LATER,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        num_components = errors.whole("num_components", num_components)
        errors.whole("latent_dim", latent_dim)
        sizes = data_dim if isinstance(data_dim, (tuple, list)) else (data_dim,)
        shape = [errors.whole("data_dim", size) for size in sizes]
        self.bounds = None if bounds is None else _bounds(bounds)
        if getattr(posterior, "given_dim", 0):
            raise ValueError(
                f"posterior is {type(posterior).__name__} with given_dim={posterior.given_dim}, "
                "expected one that takes x alone: a pseudo-input has no covariates, and no gaps"
            )
        # In a tuple, which registers nothing: q's parameters keep their one name, and a copy of
        # the program, whose prior and posterior are copied together, holds the copy's posterior.
        self._posterior = (posterior,)
        # Made again from its record, the prior is given the posterior of the new program.
        record_of(self)["arguments"].pop("posterior", None)
        self.free = nn.Parameter(0.1 * torch.randn(num_components, *shape))  # unbounded
        self.register_buffer("equal", torch.zeros(num_components), persistent=False)

    equal: Tensor

    @property
    def posterior(self) -> nn.Module:
        """The module that is q(z | x)."""
        return self._posterior[0]

    @property
    def support(self) -> Any:
        posterior = None if self.unsized else self.posterior
        return getattr(posterior, "support", constraints.real_vector)

    @property
    def pseudo_inputs(self) -> Tensor:
        """u, (K, D)."""
        return self._bounded(self.free)

    def _bounded(self, free: Tensor) -> Tensor:
        if self.bounds is None:
            return free
        low, high = self.bounds
        return low + (high - low) * free.sigmoid()

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Put random rows of data into the pseudo-inputs; with replacement where K is more.

        Raises:
            ValueError: rows of another shape, or outside of the bounds.
        """
        if x.shape[1:] != self.free.shape[1:]:
            raise ValueError(
                f"x has rows of shape {tuple(x.shape[1:])}, expected the pseudo-inputs' "
                f"{tuple(self.free.shape[1:])}: build the prior with that data_dim"
            )
        count = len(self.free)
        index = torch.cat([torch.randperm(len(x)) for _ in range(-(-count // len(x)))])[:count]
        rows = x[index.to(x.device)].to(self.free)
        if self.bounds is not None:
            low, high = self.bounds
            if rows.min() < low or rows.max() > high:
                raise ValueError(
                    f"x is from {rows.min().item():g} to {rows.max().item():g}, expected within "
                    f"the bounds of the pseudo-inputs, {low:g} to {high:g}: pass bounds=None"
                )
            share = ((rows - low) / (high - low)).clamp(self.MARGIN, 1 - self.MARGIN)
            rows = share.logit()
        self.free.copy_(rows)

    def component(self, index: Any) -> dist.TorchDistribution:
        """q(z | u) of an index of K."""
        return self.posterior(self._bounded(self.free[index]))

    def forward(self) -> dist.TorchDistribution:
        return Mixture(self.equal, self.component)

    @classmethod
    def example(cls, **sizes: Any) -> VampPrior:
        """A small one; its sizes are completed by those of the program that it is to stand in."""
        return cls(3, **sizes)


def _bounds(bounds: Any) -> tuple[float, float]:
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise ValueError(f"bounds is {bounds!r}, expected two numbers, (0.0, 1.0), or None")
    low = errors.within("bounds[0]", bounds[0], "(-inf, inf)")
    return low, errors.within("bounds[1]", bounds[1], f"({low}, inf)", "the upper bound")
