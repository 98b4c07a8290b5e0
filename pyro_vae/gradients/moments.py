r"""Lengths, spreads and distances of mean gradients, from the products of blocks of draws.

An averaged vector is too long by the noise left in it.  So draws are averaged in equal blocks, and
products of *different* blocks estimate squared lengths without that excess:
:math:`\|E g\|^2 = E\, \bar g_b^\top \bar g_c`, b ≠ c.  All that is needed of the blocks is the
matrix of these products, one a group; leaving out a block at a time gives the standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from pyro_vae.gradients.lab import BLOCKS, Draws


def products_of(blocks: Tensor) -> np.ndarray:
    return (blocks @ blocks.T).cpu().numpy()


def squared_length(products: np.ndarray) -> float:
    """Of the mean vector: products of different blocks, so without what noise adds."""
    b = len(products)
    return float((products.sum() - products.trace()) / (b * (b - 1)))


def moments(draws: Draws, reference: Draws, group: str) -> dict[str, float]:
    blocks, size = draws.blocks[group], draws.size
    of_means, of_deviations = products_of(blocks), products_of(blocks - draws.first[group])
    squares = draws.squares[group].cpu().numpy()

    def variance(keep: np.ndarray) -> float:
        n = len(keep) * size
        mean = of_deviations[np.ix_(keep, keep)].mean()  # the squared length of its average
        return float(max(squares[keep].sum() - n * mean, 0.0) / (n - 1))

    def snr(keep: np.ndarray) -> float:
        signal = max(squared_length(of_means[np.ix_(keep, keep)]), 0.0)
        noise = variance(keep)
        return math.sqrt(signal / noise) if noise else math.inf if signal else math.nan

    everything = np.arange(BLOCKS)
    norm = math.sqrt(max(squared_length(of_means), 0.0))
    bias, p = distance(products_of(blocks - reference.blocks[group]), blocks.shape[1])
    return {
        "norm": norm,
        "variance": variance(everything),
        "variance_standard_error": jackknife(variance),
        "snr": snr(everything),
        "snr_standard_error": jackknife(snr),
        "bias": bias if bias > draws.precision * norm else 0.0,  # sums in another order
        "bias_p": math.nan if draws is reference else p,
    }


def jackknife(statistic: Callable[[np.ndarray], float]) -> float:
    """Standard error, by leaving out a block at a time."""
    values = np.array([statistic(np.delete(np.arange(BLOCKS), b)) for b in range(BLOCKS)])
    if not np.isfinite(values).all():
        return math.nan
    return math.sqrt((BLOCKS - 1) / BLOCKS * float(((values - values.mean()) ** 2).sum()))


def distance(products: np.ndarray, num_parameters: int) -> tuple[float, float]:
    r"""Length of the mean difference, and how probable one as long is where there is none.

    With S the covariance of a block's difference, the squared length of the average over B blocks
    has the mean tr S / B without bias, and about the law of tr(S) / B times F(f, f (B - 1)) with
    f = (tr S)^2 / tr S^2, because products of different blocks have the variance tr S^2.
    """
    from scipy.stats import f as F

    b = len(products)
    squared = products.mean()
    trace = (products.trace() - b * squared) / (b - 1)  # of S
    length = math.sqrt(max(squared_length(products), 0.0))
    if trace <= 0.0:
        return length, 1.0 if squared == 0.0 else 0.0
    pairs = products[np.triu_indices(b, 1)]
    freedom = min(max(trace**2 / float(pairs.var(ddof=1)), 1.0), float(num_parameters))
    return length, float(F.sf(squared / (trace / b), freedom, freedom * (b - 1)))
