"""Likelihoods of real numbers and of grey values, beside the Gaussian."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import distributions, errors
from pyro_vae.networks.mlp import positive
from pyro_vae.program.families import NetworkLikelihood


class Laplace(NetworkLikelihood):
    r"""p(x | z) = prod_d Laplace(m_d(z), s_d(z)): real numbers, of which some are far off.

    Args:
        floor: the least scale; without one the density of a constant column grows without bound.
    """

    heads = 2

    def __init__(self, *sizes: Any, floor: float = 1e-3, **networks: Any) -> None:
        super().__init__(*sizes, **networks)
        self.floor = errors.positive("floor", floor)

    def law(self, location: Tensor, log_square: Tensor) -> dist.TorchDistribution:
        return dist.Laplace(location, positive(log_square, self.floor))


class StudentT(NetworkLikelihood):
    r"""p(x | z) = prod_d StudentT_nu(m_d(z), s_d(z)): real numbers with outliers.

    Args:
        df: nu, the degrees of freedom; the smaller, the heavier the tails.  There is a mean above
            1, and a variance above 2.
        floor: the least scale.
    """

    heads = 2

    def __init__(self, *sizes: Any, df: float = 5.0, floor: float = 1e-3, **networks: Any) -> None:
        super().__init__(*sizes, **networks)
        self.df, self.floor = errors.positive("df", df), errors.positive("floor", floor)

    def law(self, location: Tensor, log_square: Tensor) -> dist.TorchDistribution:
        return dist.StudentT(self.df, location, positive(log_square, self.floor))


class ContinuousBernoulli(NetworkLikelihood):
    r"""p(x | z) of grey values in [0, 1]: e^{l x} l / (e^l - 1), l from the network.

    What ``Bernoulli(soft_targets=True)`` is not: a density of grey values.

    Source: Loaiza-Ganem & Cunningham (2019), arXiv:1907.06845.
    """

    heads = 1

    def law(self, logits: Tensor) -> dist.TorchDistribution:
        return distributions.ContinuousBernoulli(logits)


class Beta(NetworkLikelihood):
    r"""p(x | z) = prod_d Beta(c m_d, c (1 - m_d)), mean m(z) and concentration c(z): shares.

    For numbers between 0 and 1, neither of them included: there its density is zero or infinite,
    and data that have them are refused.

    Args:
        floor: the least of either shape, c m and c (1 - m).
        most: the largest concentration; without one the density of a constant column grows
            without bound.
    """

    heads = 2

    def __init__(
        self, *sizes: Any, floor: float = 1e-3, most: float = 1e6, **networks: Any
    ) -> None:
        super().__init__(*sizes, **networks)
        self.floor, self.most = errors.positive("floor", floor), errors.positive("most", most)

    def law(self, logit: Tensor, log_concentration: Tensor) -> dist.TorchDistribution:
        inverse = (-log_concentration).exp() + 1 / self.most
        one, zero = (side.sigmoid() / inverse + self.floor for side in (logit, -logit))
        return distributions.OpenBeta(one, zero)
