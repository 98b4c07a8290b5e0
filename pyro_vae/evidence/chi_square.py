r"""The chi-square upper bound of log p(x), from the importance weights that give the lower one.

.. math:: \log p(x) \le \tfrac12 \log E_q w^2, \qquad w = p(x, z) / q(z \mid x),

by Jensen's inequality, with equality where the weights are constant.  A mean of squares needs
lighter tails than a mean: of weights whose Pareto shape is k it exists for k < 1/2, and its
estimate has a variance for k < 1/4.  The logarithm of an *estimated* mean lies below that of the
mean, so a bound asks for a margin of its error.

Source: Dieng et al. (2017), arXiv:1611.00328.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MOST_KHAT = 0.5  # above which weights have no second moment
MARGIN = 2.0  # standard errors above the estimate at which it is taken for a bound


class ChiSquareBound(NamedTuple):
    """An estimate of the bound, (B,) nats, and its standard error."""

    value: Tensor
    standard_error: Tensor

    def above(self, khat: Tensor) -> Tensor:
        """What to take for an upper bound: inf where weights have no second moment."""
        bound = self.value + MARGIN * self.standard_error.nan_to_num(math.inf)
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
    squares = 2 * log_w.double()
    total, num = squares.logsumexp(0), len(squares)
    ess = (2 * total - (2 * squares).logsumexp(0)).exp()
    variance = (num / ess - 1).clamp_min(0) / max(num - 1, 1)  # of the mean over its square
    error = variance.sqrt() / 2 if num > 1 else torch.full_like(total, math.nan)
    return ChiSquareBound((total - math.log(num)) / 2, error)
