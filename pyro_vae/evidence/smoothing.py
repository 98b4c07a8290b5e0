r"""Pareto-smoothed weights: the largest, which are mostly noise, at their expected sizes.

.. math:: w_{(K - M + j)} \leftarrow u + F^{-1}\Big(\frac{j - 1/2}{M}\Big), \quad j = 1 \ldots M,

with F the generalized Pareto law fitted to what exceeds the threshold u.  A single huge weight then
counts as what the tail says of the largest of M, and no smoothed weight exceeds the largest raw
one: less variance, for a bias that is small where khat is below 0.7.

Source: Vehtari, Simpson, Gelman, Yao & Gabry (2024), arXiv:1507.02646, section 2 and appendix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.evidence.weights import fitted_tail, pareto_khat


def pareto_smoothed(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Smoothed log weights, normalized, and khat of the raw ones.

    Args:
        log_w: log importance weights, (K, B).

    Returns:
        (K, B), float64, whose exponentials sum to one for each datum; and khat, (B,).  Weights
        that have no tail to fit, constant or tied ones, are left as they are.
    """
    khat = pareto_khat(log_w)
    log_w = log_w.double()
    smoothed = log_w - log_w.amax(0)
    fits = khat.isfinite() & (khat != 0)
    if bool(fits.any()):
        smoothed[:, fits] = _smoothed(smoothed[:, fits])
    return smoothed - smoothed.logsumexp(0), khat


def _smoothed(log_w: Tensor) -> Tensor:
    """Of log weights whose largest is zero."""
    order, threshold, shape, scale = fitted_tail(log_w)
    size = len(order)
    share = (torch.arange(size, dtype=log_w.dtype, device=log_w.device) + 0.5) / size
    excess = scale * torch.expm1(-shape * torch.log1p(-share).unsqueeze(-1)) / shape  # (M, B)
    tail = (excess + threshold.exp()).log().clamp_max(0.0)
    tied = ~tail.isfinite().all(0)
    return torch.where(tied, log_w, log_w.scatter(0, order, tail.nan_to_num()))
