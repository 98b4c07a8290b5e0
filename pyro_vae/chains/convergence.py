"""Whether chains have met, and how many independent draws theirs are worth."""

from __future__ import annotations

import math

import torch
from pyro.ops.stats import split_gelman_rubin
from torch import Tensor


def split_rhat(draws: Tensor) -> Tensor:
    r"""How far the chains of a datum are from telling the same: 1 where they do.

    .. math:: \hat R = \sqrt{\frac{n - 1}{n} + \frac BW}

    with every chain cut into halves of n draws, B the variance of their means and W the mean of
    their variances.  Well above 1 the chains have not met, each in a mode of its own say, or are
    too short to show that they have.

    Args:
        draws: S draws of C chains of B data in J coordinates, (S, C, B, J).

    Returns:
        (B,), of the worst coordinate; nan where a half has no two draws.

    Source: Gelman & Rubin (1992); Gelman et al. (2013), section 11.4.
    """
    n = len(draws) // 2
    if n < 2:
        return draws.new_full(draws.shape[2:3], math.nan)
    return split_gelman_rubin(draws, chain_dim=1, sample_dim=0).amax(-1)


def integrated_time(values: Tensor) -> Tensor:
    r"""How many draws of a chain say as much as one independent draw, at least 1.

    .. math:: \tau = 1 + 2 \sum_{k \ge 1} \rho_k,

    summed up to the first negative :math:`\rho_{2m} + \rho_{2m+1}`.  Chains have one mean in
    common, so that those which have not met count as correlated.

    Args:
        values: S values along C chains of B data, (S, C, B).

    Returns:
        (B,).

    Source: Geyer (1992), section 3.3.
    """
    n = len(values)
    centred = values - values.mean((0, 1))
    spectrum = torch.fft.rfft(centred, n=2 * n, dim=0)  # padded by zeros, so that no lag wraps
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * n, dim=0)[:n].sum(1)  # (S, B)
    pairs = covariance[: n // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    whole = pairs * (pairs > 0).cummin(0).values
    # Constant values have no correlation to speak of.
    return (2 * whole.sum(0) / covariance[0] - 1).nan_to_num(1.0).clamp_min(1.0)
