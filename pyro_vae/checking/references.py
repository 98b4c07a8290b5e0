r"""Laws with a known density, fitted to draws of another one to be compared with it.

A reference is a mixture of normals behind a map of each coordinate by itself,

.. math:: r(u) = \sum_k \pi_k N(t(u); m_k, S_k) \prod_i t_i'(u_i)

where t_i takes quantiles of the draws to those of N(0, 1), in straight pieces, so that long tails
and skew are followed with one component, or standardizes.  How many components, and which map, is
chosen by the density of draws that were held out.  Nothing rests on the fit being good but the
power of what is tested with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

COMPONENTS = (4, 16)  # tried one after the other, while it helps
MOST_FULL = 32  # coordinates up to which several components have whole covariances
KNOTS = torch.linspace(-2.5, 2.5, 21, dtype=torch.float64)  # of the maps, in quantiles of N(0, 1)
ROUNDS = 8  # of k-means
PRIOR_DRAWS = 4  # how many draws the common spread counts for in that of one component


@dataclass(frozen=True, eq=False)
class Marginals:
    """Maps of single coordinates in straight pieces: ``places`` (J, knots) go to ``levels``."""

    places: Tensor
    levels: Tensor

    @classmethod
    def quantiles(cls, u: Tensor) -> Marginals:
        places = u.quantile(torch.special.ndtr(KNOTS).to(u.device), dim=0).mT.contiguous()
        least = (places[:, -1:] - places[:, :1]).clamp_min(1e-12) * 1e-4
        steps = places.diff(dim=1).clamp_min(least)
        places = torch.cat([places[:, :1], places[:, :1] + steps.cumsum(1)], 1)
        return cls(places, KNOTS.to(u.device).expand_as(places).contiguous())

    @classmethod
    def standardizing(cls, u: Tensor) -> Marginals:
        center, scale = u.mean(0), u.std(0).clamp_min(1e-12)
        places = torch.stack([center - scale, center + scale], 1)
        levels = torch.tensor([-1.0, 1.0], dtype=u.dtype, device=u.device)
        return cls(places, levels.expand_as(places).contiguous())

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """t(u) and the log of its derivative, (n,)."""
        v, log_slope = _pieces(u, self.places, self.levels)
        return v, log_slope.sum(-1)

    def inverse(self, v: Tensor) -> Tensor:
        return _pieces(v, self.levels, self.places)[0]


def _pieces(values: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Interpolation of columns, and the logs of the slopes; the ends go on as they are."""
    columns = values.mT.contiguous()
    index = torch.searchsorted(before, columns).clamp(1, before.shape[1] - 1)
    low, high = before.gather(1, index - 1), before.gather(1, index)
    start, end = after.gather(1, index - 1), after.gather(1, index)
    slope = (end - start) / (high - low)
    return (start + slope * (columns - low)).mT, slope.log().mT


@dataclass(frozen=True, eq=False)
class Reference:
    """A density that can be drawn from: see above.

    Attributes:
        marginals: the maps of single coordinates.
        log_weights: (K,).
        means: (K, J).
        factors: lower triangular (K, J, J), or standard deviations (K, J).
    """

    marginals: Marginals
    log_weights: Tensor
    means: Tensor
    factors: Tensor

    def log_prob(self, u: Tensor) -> Tensor:
        v, log_slope = self.marginals.forward(u)
        logs = [
            log_weight + _log_normal(v - mean, factor)
            for log_weight, mean, factor in zip(
                self.log_weights, self.means, self.factors, strict=True
            )
        ]
        return torch.stack(logs).logsumexp(0) + log_slope

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        which = torch.multinomial(self.log_weights.exp(), count, True, generator=generator)
        noise = torch.randn(
            count,
            self.means.shape[1],
            dtype=self.means.dtype,
            device=self.means.device,
            generator=generator,
        )
        v = torch.empty_like(noise)
        for k, (mean, factor) in enumerate(zip(self.means, self.factors, strict=True)):
            mine = which == k
            eps = noise[mine]
            v[mine] = mean + (eps @ factor.mT if factor.dim() == 2 else eps * factor)
        return self.marginals.inverse(v)


def _log_normal(v: Tensor, factor: Tensor) -> Tensor:
    if factor.dim() == 2:
        eps = torch.linalg.solve_triangular(factor, v.mT, upper=False).mT
        log_det = factor.diagonal().log().sum()
    else:
        eps, log_det = v / factor, factor.log().sum()
    return -0.5 * eps.square().sum(-1) - log_det - 0.5 * v.shape[1] * math.log(2 * math.pi)


def fitted(u: Tensor, generator: torch.Generator) -> Reference:
    """The reference that gives draws which were held out the highest density.

    Args:
        u: draws (n, J) in double precision.
        generator: of the random numbers of the fit.
    """
    size = len(u) * 3 // 4
    seen, held_out = u[:size], u[size:]

    def candidate(marginals: Marginals, count: int) -> tuple[float, Reference]:
        v = marginals.forward(seen)[0]
        reference = Reference(marginals, *_mixture(v, count, generator))
        # (The median: one draw far out must not decide, as under a law of Cauchy.)
        return reference.log_prob(held_out).median().item(), reference

    maps = (Marginals.standardizing(seen), Marginals.quantiles(seen))
    best = max((candidate(each, 1) for each in maps), key=lambda pair: pair[0])
    for count in COMPONENTS:
        if size >= 24 * count:
            another = candidate(best[1].marginals, count)
            if another[0] <= best[0]:
                break
            best = another
    return best[1]


def _mixture(v: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and factors of a mixture by k-means."""
    means = v[torch.randperm(len(v), generator=generator, device=v.device)[:1]]
    for _ in range(count - 1):  # the farthest of some random draws
        some = v[torch.randint(len(v), (64,), generator=generator, device=v.device)]
        means = torch.cat([means, some[torch.cdist(some, means).amin(1).argmax()][None]])
    for _ in range(ROUNDS if count > 1 else 1):
        which = torch.cdist(v, means).argmin(1)
        sizes = which.bincount(minlength=count).to(v.dtype)
        sums = torch.zeros_like(means).index_add_(0, which, v)
        means = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], means)
    rest = v - means[which]
    common = rest.square().mean(0).clamp_min(1e-12)
    log_weights = ((sizes + 1) / (sizes + 1).sum()).log()
    if count > 1 and v.shape[1] > MOST_FULL:
        squares = torch.zeros_like(means).index_add_(0, which, rest.square())
        spread = (squares + PRIOR_DRAWS * common) / (sizes[:, None] + PRIOR_DRAWS)
        return log_weights, means, spread.sqrt()
    factors = []
    for k in range(count):
        mine = rest[which == k]
        weight = PRIOR_DRAWS + (v.shape[1] if count > 1 else 0)
        spread = (mine.mT @ mine + weight * common.diag()) / (len(mine) + weight)
        factors.append(torch.linalg.cholesky(spread))
    return log_weights, means, torch.stack(factors)
