"""Posteriors on the real line beside the Gaussian, by location and scale."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import distributions, errors
from pyro_vae.networks.mlp import positive
from pyro_vae.program.families import NetworkPosterior


class _Scaled(NetworkPosterior):
    """Location, and logarithm of the squared scale.

    Args:
        floor: the least scale.
    """

    heads = 2

    def __init__(self, *sizes: Any, floor: float = 1e-4, **networks: Any) -> None:
        super().__init__(*sizes, **networks)
        self.floor = errors.positive("floor", floor)


class Laplace(_Scaled):
    r"""q(z | x) = prod_j exp(-|z_j - m_j(x)| / b_j(x)) / (2 b_j(x)).

    Args:
        floor: the least b.

    Source: Kingma & Welling (2014), section 2.4, case 2.
    """

    def law(self, location: Tensor, log_square: Tensor) -> dist.TorchDistribution:
        return dist.Laplace(location, positive(log_square, self.floor))


class Logistic(_Scaled):
    r"""q(z | x) = prod_j Logistic(z_j; m_j(x), s_j(x)).

    Args:
        floor: the least s.

    Source: Kingma & Welling (2014), section 2.4, cases 1 and 2.
    """

    def law(self, location: Tensor, log_square: Tensor) -> dist.TorchDistribution:
        return distributions.Logistic(location, positive(log_square, self.floor))


class StudentT(_Scaled):
    r"""q(z | x) = prod_j Student_nu((z_j - m_j(x)) / s_j(x)) / s_j(x).

    Its tails are heavier than a normal's, so that importance weights stay bounded where those of
    a Gaussian posterior do not.

    Args:
        df: nu, above 1, or there is no mean to stand for x.
        floor: the least s.

    Source: Kingma & Welling (2014), section 2.4, case 2.
    """

    def __init__(self, *sizes: Any, df: float = 5.0, floor: float = 1e-4, **networks: Any) -> None:
        super().__init__(*sizes, floor=floor, **networks)
        self.df = errors.within("df", df, "(1, inf)", "Student's t has a mean above 1")

    def law(self, location: Tensor, log_square: Tensor) -> dist.TorchDistribution:
        return dist.StudentT(self.df, location, positive(log_square, self.floor))
