r"""The chi-square upper bound of log p(x), from the importance weights that give the lower one.

.. math:: \log p(x) \le \tfrac12 \log E_q w^2, \qquad w = p(x, z) / q(z \mid x),

by Jensen's inequality, with equality where the weights are constant.  A mean of squares needs
lighter tails than a mean: of weights whose Pareto shape is k it exists for k < 1/2, and the mean of
a sample has a variance for k < 1/4 alone.  Between these it hangs on squares that were not drawn:
the largest squares count as what the generalized Pareto law fitted to them has for its mean,
u + sigma / (1 - k'), and its error by how well k' is known.  The logarithm of an *estimated* mean
lies below that of the mean, so a bound asks for a margin of its error.

Source: Dieng et al. (2017), arXiv:1611.00328; of tails, Vehtari et al. (2024), arXiv:1507.02646.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.evidence.weights import fitted_tail, pareto_khat

MOST_KHAT = 0.5  # above which weights have no second moment
MARGIN = 2.0  # standard errors above the estimate at which it is taken for a bound


class ChiSquareBound(NamedTuple):
    """An estimate of the bound, (B,) nats, and its standard error."""

    value: Tensor
    standard_error: Tensor

    def above(self, khat: Tensor) -> Tensor:
        """What to take for an upper bound: inf where weights have no second moment."""
        bound = self.value + MARGIN * self.standard_error.nan_to_num(math.inf, math.inf)
        return torch.where(khat < MOST_KHAT, bound, math.inf)


def chi_square_bound(log_w: Tensor) -> ChiSquareBound:
    r"""CUBO with exponent 2: (1/2) log of the mean of squared weights.

    Args:
        log_w: log importance weights of a normalized proposal, (K, B).

    Returns:
        :class:`ChiSquareBound`.  Whether there is such a mean at all its error does not say:
        look at the khat of the weights, which must be below 1/2.

    Example:
        >>> chi_square_bound(torch.full((10, 2), -3.0)).value
        tensor([-3., -3.], dtype=torch.float64)
    """
    khat = pareto_khat(log_w)
    top = log_w.double().amax(0)
    squares = (2 * (log_w.double() - top)).exp()
    num = len(squares)
    if num == 1:
        return ChiSquareBound(top, torch.full_like(top, math.nan))
    mean, variance = squares.mean(0), squares.var(0) / num
    tailed = khat.isfinite() & (khat != 0)
    if bool(tailed.any()):
        mean[tailed], variance[tailed] = _with_tail(squares[:, tailed])
    error = torch.where(mean.isinf(), math.inf, variance.sqrt() / mean / 2)
    return ChiSquareBound(top + mean.log() / 2, error)


def _with_tail(squares: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of squares (K, B), and the variance of that, by the law of the largest."""
    num, (order, threshold, shape, scale) = len(squares), fitted_tail(squares.log())
    tail = len(order)
    body = squares.scatter(0, order, 0.0)
    left = (1 - shape).clamp_min(0.0)
    excess = scale / left  # infinite where there is no mean
    share = tail / num
    large = share * (threshold.exp() + excess)
    # Var(k') = (1 + k')^2 / M of a generalized Pareto law; that of the share is binomial.
    error = share * excess * (1 + shape) / left / math.sqrt(tail)
    spread = (large / math.sqrt(tail)).square() + error.square()
    return body.mean(0) + large, body.var(0) / num + spread
