"""Normal posteriors whose latents depend on each other, given x."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_vae import distributions, errors
from pyro_vae.networks.mlp import positive
from pyro_vae.program.families import NetworkPosterior


class FullNormal(NetworkPosterior):
    r"""q(z | x) = N(mu(x), L(x) L(x)^T) with a lower triangular L whose diagonal is positive.

    The network returns J (J + 3) / 2 numbers: the mean, the logarithms of the diagonal's
    squares, and the entries below the diagonal.

    Args:
        floor: the least entry of the diagonal.

    Source: Kingma & Welling (2019), arXiv:1906.02691, section 2.5.1.
    """

    joint = True
    place: Tensor

    def __init__(self, *sizes: Any, floor: float = 1e-4, **networks: Any) -> None:
        super().__init__(*sizes, **networks)
        self.floor = errors.positive("floor", floor)
        size = self.latent_dim
        # Where each entry of L is among those below its diagonal; the last is a zero.
        place = torch.full((size, size), size * (size - 1) // 2)
        row, column = torch.tril_indices(size, size, -1)
        place[row, column] = torch.arange(len(row))
        self.register_buffer("place", place, persistent=False)

    @property
    def outputs(self) -> int:
        return self.latent_dim * (self.latent_dim + 3) // 2

    def law(self, output: Tensor) -> dist.TorchDistribution:
        size = self.latent_dim
        mean, log_square = output[..., :size], output[..., size : 2 * size]
        below = pad(output[..., 2 * size :], (0, 1))[..., self.place]
        factor = below + positive(log_square, self.floor).diag_embed()
        return distributions.FullNormal(mean, scale_tril=factor)


class LowRankNormal(NetworkPosterior):
    r"""q(z | x) = N(mu(x), W(x) W(x)^T + diag s(x)^2) with W of few columns.

    Args:
        rank: columns of W; the network returns (2 + rank) J numbers.
        floor: the least entry of s.

    Source: Ong, Nott & Smith (2018), arXiv:1701.03208, equation (5).
    """

    joint = True

    def __init__(self, *sizes: Any, rank: int = 2, floor: float = 1e-3, **networks: Any) -> None:
        self.rank, self.floor = errors.whole("rank", rank), errors.positive("floor", floor)
        self.heads = 2 + self.rank
        super().__init__(*sizes, **networks)

    def law(self, mean: Tensor, log_variance: Tensor, *columns: Tensor) -> dist.TorchDistribution:
        variance = positive(log_variance, self.floor).square()
        return dist.LowRankMultivariateNormal(mean, torch.stack(columns, -1), variance)
