r"""What is wrong where a sampler and a density disagree: dimensions, normalization or widths.

A few chains of random-walk Metropolis begin at draws of the sampler and go where the density says.
Where they end is how wide the density is; and a reference fitted to that tells by bridge sampling
what the density integrates to, at the root C = log Z of

.. math:: E_p\Big[\frac{r}{r + p e^{-C}}\Big] = E_r\Big[\frac{p e^{-C}}{r + p e^{-C}}\Big]

Source: Bennett (1976), J. Comput. Phys. 22, 245; Meng & Wong (1996), Statistica Sinica 6, 831.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.checking.agreement import Examined
from pyro_vae.checking.references import fitted

CHAINS, LEAST_MOVES, MOST_MOVES = 256, 80, 250
WORK = 3e8  # numbers that the densities of all chains may compute
PAIRS = 32  # of draws of each kind whose coordinates are exchanged
PIECES = 4  # of the last half of the chains, of which one state each is kept
DEPENDENT = 8.0  # errors of the sum of squared correlations, which has a tail of its own
FACTOR = 1.1  # of widths, above which they are named
WRONG_BY = 0.02  # of log Z, above which it is named


# --- dimensions -----------------------------------------------------------------------------------


def adds_up(seen: Examined, cell: int, u: Tensor, generator: torch.Generator) -> bool:
    """Whether log p is a sum of one function of each coordinate, to rounding.

    Then log p(a, d) + log p(c, b) = log p(a, b) + log p(c, d) for any two events and any split.
    Within one of several modes far apart this holds for the law of them all, so that draws at
    opposite ends are among those that are tried.

    Args:
        u: draws (n, J).
    """
    n, dim = u.shape
    if dim < 2:
        return False
    pairs = torch.randint(n, (2, PAIRS), generator=generator, device=u.device)
    ways = torch.randn(dim, PAIRS, dtype=u.dtype, device=u.device, generator=generator)
    along = (u / _width(u[:1024]).clamp_min(1e-300)) @ ways
    ends = torch.stack([along.argmax(0), along.argmin(0)])
    first, second = (
        u[torch.cat([pairs[0], ends[0], ends[0]])],
        u[torch.cat([pairs[1], ends[1], pairs[1]])],
    )
    mine = torch.rand(first.shape, generator=generator, device=u.device) < 0.5
    mine[:, 0], mine[:, 1] = True, False
    crossed = (torch.where(mine, first, second), torch.where(mine, second, first))
    logs = [seen.log_prob_at(each, cell)[0] for each in (first, second, *crossed)]
    gap = (logs[0] + logs[1] - logs[2] - logs[3]).abs()
    size = sum(log.abs() for log in logs) + dim
    eps = torch.finfo(seen.filling.dtype).eps
    return bool((gap <= 100 * eps * size).all())


def dependence(u: Tensor) -> float:
    """By how many errors the coordinates of draws (n, J) depend on one another.

    Legendre polynomials of their ranks have correlations r with n r² of mean 1 where they do not.
    """
    n, dim = u.shape
    ranks = (u.argsort(0).argsort(0) + 0.5) * (2 / n) - 1
    powers = [ranks, ranks**2, ranks**3]
    looks = torch.stack([powers[0], 1.5 * powers[1], 2.5 * powers[2] - 1.5 * ranks], 1)
    looks = (looks - looks.mean(0)) / looks.std(0)
    flat = looks.reshape(n, 3 * dim)
    squares = (flat.mT @ flat / n).square().reshape(3, dim, 3, dim) * n
    between = ~torch.eye(dim, dtype=torch.bool, device=u.device)
    excess = squares[:, between.nonzero()[:, 0], :, between.nonzero()[:, 1]] - 1
    # Each of the pairs is there twice, and chi-squared with one degree has the variance 2.
    return (excess.sum() / math.sqrt(4 * excess.numel())).item()


# --- widths and normalization ---------------------------------------------------------------------


class Blame(NamedTuple):
    """What draws and density say of a law.

    Attributes:
        log_z: what the density integrates to, and the error of that; None where no reference comes
            near.
        widths: half the distance between the quantiles that hold 68 %, of draws and of the density,
            in the coordinate in which they differ most.
        where: that coordinate.
        dim: how many coordinates there are.
        fit: the mean log density of draws of the sampler, and of the chains.
    """

    log_z: tuple[float, float] | None
    widths: tuple[float, float]
    where: int
    dim: int
    fit: tuple[float, float]


def blame(seen: Examined, cell: int, generator: torch.Generator) -> Blame:
    """Look for what is wrong with a law that is known to be wrong."""
    drawn = seen.free(seen.draws(seen.size), cell)[0]
    ends = _chains(seen, cell, drawn[:CHAINS], generator)
    order = torch.randperm(CHAINS, generator=generator, device=ends.device)
    to_fit, to_ask = (ends[:, part].flatten(0, 1) for part in order.chunk(2))
    r = fitted(to_fit[torch.randperm(len(to_fit), generator=generator)], generator)
    log_py, y = seen.log_prob_at(r.draw(len(to_ask), generator), cell)
    log_p = seen.log_prob_at(to_ask, cell)[0]
    log_z = _log_z(log_p - r.log_prob(to_ask), log_py - r.log_prob(y))
    ends = ends.flatten(0, 1)
    wide, said = _width(drawn), _width(ends)
    ratio = (wide / said.clamp_min(1e-300)).log().abs()
    where = int(ratio.argmax())
    begin = seen.log_prob_at(drawn[:CHAINS], cell)[0]
    return Blame(
        log_z,
        (wide[where].item(), said[where].item()),
        where,
        drawn.shape[1],
        (begin.mean().item(), log_p.mean().item()),
    )


def _width(u: Tensor) -> Tensor:
    levels = torch.tensor([0.16, 0.84], dtype=u.dtype, device=u.device)
    low, high = u.quantile(levels, dim=0)
    return (high - low) / 2


def _chains(seen: Examined, cell: int, u: Tensor, generator: torch.Generator) -> Tensor:
    """States (PIECES, chains, J) of the last half of chains that go where the density says."""
    n, dim = u.shape
    affordable = max(LEAST_MOVES, int(WORK / (n * seen.work)))
    moves = min(100 + 15 * dim, MOST_MOVES, affordable)
    scale, factor = _width(u).clamp_min(1e-12), 2.4 / math.sqrt(dim)
    here, kept = seen.log_prob_at(u, cell)[0], []
    for move in range(moves):
        noise = torch.randn(u.shape, dtype=u.dtype, device=u.device, generator=generator)
        there = u + factor * scale * noise
        log_there, there = seen.log_prob_at(there, cell)
        chance = torch.rand(n, dtype=u.dtype, device=u.device, generator=generator)
        goes = chance.log() < log_there - here
        u, here = torch.where(goes[:, None], there, u), torch.where(goes, log_there, here)
        if move < moves // 2:
            factor *= math.exp(0.3 * (goes.double().mean().item() - 0.3))
        elif (moves - 1 - move) % (moves // 2 // PIECES) == 0:
            kept.append(u)
    return torch.stack(kept[-PIECES:])


def _log_z(at_p: Tensor, at_r: Tensor) -> tuple[float, float] | None:
    """The root and its error, from log p - log r at states of p and at draws of r."""
    low, high = -1e4, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        if torch.sigmoid(middle - at_p).mean() < torch.sigmoid(at_r - middle).mean():
            low = middle
        else:
            high = middle
    a, b = torch.sigmoid(middle - at_p), torch.sigmoid(at_r - middle)
    slope = (a * (1 - a)).mean() + (b * (1 - b)).mean()
    # (States of one chain depend on one another, so chains are counted and not states.)
    error = (a.var() / (len(a) / PIECES) + b.var() / len(b)).sqrt() / slope.clamp_min(1e-300)
    if a.sum() < 20 or b.sum() < 20:
        return None
    return middle, error.item()
