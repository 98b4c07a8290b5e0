"""Mixtures of multivariate Student-t, one a datum: what log p(x) is importance-sampled from."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

DEGREES = 5.0  # of freedom: tails heavier than a posterior's under a Gaussian prior


class Students(NamedTuple):
    """M components for each of B data.

    Attributes:
        mean: (M, B, J).
        factor: lower triangular, scale matrix = factor factor^T, (M, B, J, J).
        log_weight: (M, B); -inf where a datum lacks the component.
    """

    mean: Tensor
    factor: Tensor
    log_weight: Tensor

    @classmethod
    def fitted(cls, u: Tensor) -> Students:
        """One component with mean and covariance of draws (S, B, J)."""
        mean, factor = moments(u)
        factor = factor * math.sqrt((DEGREES - 2) / DEGREES)  # scale^2 = covariance (nu - 2) / nu
        return cls(mean[None], factor[None], mean.new_zeros(1, len(mean)))

    def log_density(self, u: Tensor) -> Tensor:
        """At points (n, B, J): (n, B)."""
        total = u.new_full(u.shape[:2], -math.inf)
        for mean, factor, log_weight in zip(*self, strict=True):
            have = (log_weight > -math.inf).nonzero().flatten()
            if len(have) == len(mean):
                part = log_weight + _log_density(u, mean, factor)
                total = torch.logaddexp(total, part)
            elif len(have):  # few data have several modes
                part = log_weight[have] + _log_density(u[:, have], mean[have], factor[have])
                total[:, have] = torch.logaddexp(total[:, have], part)
        return total

    def draw(self, num_draws: int) -> tuple[Tensor, Tensor, Students]:
        """Draws with as many of each component as its weight asks for.

        Returns:
            The draws (K, B, J); which component each is of (K, B); and the mixture whose weights
            are these numbers over K.
        """
        shape = (num_draws, *self.mean.shape[1:])
        normal = torch.randn(shape, dtype=self.mean.dtype, device=self.mean.device)
        gamma = torch.distributions.Chi2(torch.tensor(DEGREES, dtype=self.mean.dtype))
        mix = gamma.sample((num_draws, self.mean.shape[1])).to(self.mean.device)  # (K, B)
        standard = normal * (DEGREES / mix).sqrt().unsqueeze(-1)
        places = (torch.arange(num_draws).to(self.mean) + 0.5) / num_draws
        # Of the cumulative weights, how many are below: the last is 1 but for rounding.
        below = self.log_weight.exp().cumsum(0)[:-1, None] <= places[:, None]  # (M - 1, K, B)
        component = below.sum(0)
        u = torch.empty_like(standard)
        counts = []
        for number, (mean, factor) in enumerate(zip(self.mean, self.factor, strict=True)):
            mine = component == number
            counts.append(mine.sum(0))
            moved = mean + torch.einsum("bij,kbj->kbi", factor, standard)
            u = torch.where(mine.unsqueeze(-1), moved, u) if number else moved
        shares = torch.stack(counts).to(self.mean) / num_draws
        return u, component, self._replace(log_weight=shares.log())


def _log_density(u: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    # By the inverse: a product for each of n x B points is several times as quick as a solution.
    eye = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device).expand_as(factor)
    inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
    return student_log_density(torch.einsum("bij,nbj->nbi", inverse, u - mean), factor)


def moments(u: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, J) and a factor of the covariance (B, J, J) of draws (S, B, J)."""
    mean = u.mean(0)
    centred = u - mean
    covariance = torch.einsum("sbi,sbj->bij", centred, centred) / (len(u) - 1)
    # A chain that hardly moved has a covariance near zero; a floor keeps its Student-t proper.
    ridge = 1e-6 * covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)
    eye = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    return mean, torch.linalg.cholesky(covariance + ridge[:, None, None] * eye)


def student_log_density(standard: Tensor, factor: Tensor) -> Tensor:
    """log t at mean + factor standard, (K, B).

    Pyro's ``MultivariateStudentT`` says the same, and takes two to ten times as long: from u it
    solves for ``standard``, which is often known, K x B triangular systems for B factors.
    """
    dim = standard.shape[-1]
    half = (DEGREES + dim) / 2
    constant = math.lgamma(half) - math.lgamma(DEGREES / 2) - dim / 2 * math.log(DEGREES * math.pi)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (B,)
    return constant - log_det - half * torch.log1p(standard.square().sum(-1) / DEGREES)
