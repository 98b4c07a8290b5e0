r"""Whether ranks are uniform, and if not, in what way.

Three tests of ranks on 0..L, each for one way in which a guide goes wrong:

* *location*, the mean rank: its draws lie to one side;
* *spread*, the mean squared distance from the middle: they scatter too little (truths pile up at
  both ends) or too much;
* *shape*, Pearson's chi-square over cells: anything else, such as a skew or a second mode.

The first two have the power, because they look in one direction.  Means over N data are normal by
the central limit theorem, with moments that are known exactly; p-values are for one quantity, and
:func:`holm` adjusts them for many.

The picture is the difference of two distribution functions, that of the ranks and the uniform one,
with a band that it leaves anywhere with a stated probability.

Source: Säilynoja, Bürkner & Vehtari (2022), arXiv:2103.10522, for the band; Holm (1979).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from pyro_vae import errors
from pyro_vae.noise import Stream, seed_of

CELLS = 20  # of the chi-square, at most
LEAST = 5.0  # ranks that each is to expect
SIMULATIONS = 2000  # of uniform ranks, for a band


class Uniformity(NamedTuple):
    """How far N ranks on 0..L are from uniform.

    Attributes:
        location: mean rank above what is expected, in standard errors.
        spread: mean squared distance from the middle above what is expected, in standard errors:
            positive where truths pile up at the ends, so that the guide is too narrow.
        p_location, p_spread, p_shape: two-sided p-values of the three tests.
    """

    location: float
    spread: float
    p_location: float
    p_spread: float
    p_shape: float


def uniformity(ranks: np.ndarray, num_draws: int) -> Uniformity:
    """Test ranks (N,) on 0..L for uniformity.

    Raises:
        ValueError: fewer than 20 ranks, or ranks out of range.
    """
    from scipy.stats import chi2, norm

    ranks = np.asarray(ranks)
    num_draws = errors.whole("num_draws", num_draws)
    if len(ranks) < 20:
        raise ValueError(f"there are {len(ranks)} ranks, expected at least 20: simulate more data")
    if ranks.min() < 0 or ranks.max() > num_draws:
        raise ValueError(
            f"ranks go from {ranks.min()} to {ranks.max()}, expected 0 to num_draws = {num_draws}"
        )
    cells = np.arange(num_draws + 1) - num_draws / 2
    away = ranks - num_draws / 2
    location = _standardized(away, cells)
    spread = _standardized(away**2, cells**2)
    number = int(min(CELLS, num_draws + 1, len(ranks) / LEAST))
    edges = np.array_split(np.arange(num_draws + 1), number)
    expected = np.array([len(edge) for edge in edges]) * len(ranks) / (num_draws + 1)
    counts = np.bincount(ranks, minlength=num_draws + 1)
    observed = np.add.reduceat(counts, [edge[0] for edge in edges])
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return Uniformity(
        location,
        spread,
        float(2 * norm.sf(abs(location))),
        float(2 * norm.sf(abs(spread))),
        float(chi2.sf(statistic, number - 1)),
    )


def _standardized(values: np.ndarray, support: np.ndarray) -> float:
    """Their mean above that of a uniform draw from ``support``, in standard errors."""
    sd = support.std()
    return float((values.mean() - support.mean()) / (sd / math.sqrt(len(values)))) if sd else 0.0


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values adjusted for their number: below a level, any of them, with that probability."""
    p = np.asarray(p_values, dtype=np.float64)
    order = p.argsort()
    steps = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


@functools.lru_cache(maxsize=16)
def ecdf_band(number: int, num_draws: int, prob: float = 0.95) -> tuple[np.ndarray, ...]:
    """Where the distribution function of N uniform ranks stays, everywhere, with a probability.

    Args:
        number: N.
        num_draws: L.
        prob: of staying within at all places together.

    Returns:
        Places u in (0, 1), at most 100, and there the lower and the upper bound of the share of
        ranks below (L + 1) u.

    The band is that of binomial counts, at a pointwise level which simulations of uniform ranks
    keep at this probability (Säilynoja et al., algorithm 2).
    """
    from scipy.stats import binom

    number, num_draws = errors.whole("number", number), errors.whole("num_draws", num_draws)
    prob = errors.within("prob", prob, "(0, 1)", "0.95 is usual")
    cuts = np.unique(np.linspace(1, num_draws, min(num_draws, 99)).round().astype(int))
    u = cuts / (num_draws + 1)
    rng = np.random.default_rng(seed_of(*Stream.BANDS.key(0, number, num_draws)))
    cells = np.diff(np.concatenate([[0.0], u, [1.0]]))
    counts = rng.multinomial(number, cells, size=SIMULATIONS).cumsum(1)[:, :-1]
    tails = np.minimum(binom.cdf(counts, number, u), binom.sf(counts - 1, number, u))
    level = float(np.quantile(2 * tails.min(1), 1 - prob))
    lower = binom.ppf(level / 2, number, u) / number
    upper = binom.ppf(1 - level / 2, number, u) / number
    return u, lower, upper


def ecdf_difference(ranks: np.ndarray, num_draws: int, u: np.ndarray) -> np.ndarray:
    """The share of ranks below (L + 1) u, less u, at places u."""
    cuts = np.rint(np.asarray(u) * (num_draws + 1)).astype(int)
    below = np.concatenate([[0], np.bincount(ranks, minlength=num_draws + 1).cumsum()])
    return below[cuts] / len(ranks) - np.asarray(u)
