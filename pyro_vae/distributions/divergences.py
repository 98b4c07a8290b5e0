r"""KL(q || p) in closed form, for pairs of families that torch and Pyro leave out.

Registered in torch's own table when ``pyro_vae.distributions`` is imported, so that
``torch.distributions.kl_divergence``, the objectives and ``pv.check`` all find them.  Nearly all
are one formula, KL = -H(q) - E_q log p, with the moments of q that log p asks for:

* a Normal p asks for E z and Var z;
* a Gamma (Exponential, Chi-squared, Erlang) for E z and E log z;
* a Log-Normal for E log z and Var log z;
* a Laplace for E |z - m|;
* a Uniform for nothing, where the support of q lies inside of its own;
* of a vector, independent numbers ask for the laws of its entries alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import MultivariateStudentT as _Elliptical
from torch import Tensor
from torch import distributions as td
from torch.distributions import register_kl
from torch.nn.functional import softplus

from pyro_vae.distributions.lifetimes import EULER, Gompertz, Rayleigh, Reciprocal
from pyro_vae.distributions.location_scale import Logistic, Triangular


def log_moments(q: Any) -> tuple[Tensor, Tensor]:
    """E log z and Var log z."""
    if isinstance(q, td.LogNormal):
        return q.loc, q.scale.square()
    if isinstance(q, td.Gamma):
        return q.concentration.digamma() - q.rate.log(), torch.polygamma(1, q.concentration)
    if isinstance(q, td.Exponential):
        return -EULER - q.rate.log(), torch.full_like(q.rate, math.pi**2 / 6)
    if isinstance(q, td.Weibull):  # log z is log scale + a Gumbel variate / concentration
        return (
            q.scale.log() - EULER / q.concentration,
            math.pi**2 / 6 / q.concentration.square(),
        )
    if isinstance(q, Rayleigh):
        spread = torch.full_like(q.scale, math.pi**2 / 24)
        return q.scale.log() + (math.log(2) - EULER) / 2, spread
    low, high = q.low.log(), q.high.log()  # of a Reciprocal, whose logarithm is uniform
    return (low + high) / 2, (high - low).square() / 12


def of_normal(q: Any, p: Any) -> Tensor:
    deviation = (q.variance + (q.mean - p.loc).square()) / p.scale.square()
    return -q.entropy() + p.scale.log() + (math.log(2 * math.pi) + deviation) / 2


def of_gamma(q: Any, p: Any) -> Tensor:
    shape = p.concentration if isinstance(p, td.Gamma) else torch.ones_like(p.rate)
    expected = (shape - 1) * log_moments(q)[0] - p.rate * q.mean
    return -q.entropy() - (shape * p.rate.log() - shape.lgamma() + expected)


def of_log_normal(q: Any, p: Any) -> Tensor:
    mean, variance = log_moments(q)
    deviation = (variance + (mean - p.loc).square()) / p.scale.square()
    return -q.entropy() + mean + p.scale.log() + (math.log(2 * math.pi) + deviation) / 2


def of_laplace(q: Any, p: Any) -> Tensor:
    offset = (q.loc - p.loc) / q.scale
    distance = q.scale * (softplus(offset) + softplus(-offset))
    return -q.entropy() + (2 * p.scale).log() + distance / p.scale


def of_uniform(q: Any, p: Any) -> Tensor:
    """Infinite where q can leave the support of p."""
    inside = (q.support.lower_bound >= p.low) & (q.support.upper_bound <= p.high)
    return torch.where(inside, (p.high - p.low).log() - q.entropy(), math.inf)


def of_weibull(q: Any, p: Any) -> Tensor:
    """Of two Weibulls, or Rayleighs, which are Weibulls of concentration 2."""
    (a, k), (b, m) = (
        (law.scale * math.sqrt(2), torch.full_like(law.scale, 2.0))
        if isinstance(law, Rayleigh)
        else (law.scale, law.concentration)
        for law in (q, p)
    )
    ratio = m / k
    power = (m * (a.log() - b.log()) + (1 + ratio).lgamma()).exp()  # E (z / b)^m
    return -ratio.log() + m * (b.log() - a.log()) + EULER * (ratio - 1) + power - 1


def of_product(q: Any, p: Any) -> Tensor:
    """The law of a vector, whose entries may depend on each other, from independent numbers.

    E_q log p is a sum over the entries, so that of q only their own laws count in it:
    KL(q || p) = sum_j (KL(q_j || p_j) + H(q_j)) - H(q).
    """
    if p.reinterpreted_batch_ndims != 1 or p.base_dist.event_shape:
        raise NotImplementedError
    entry: Any
    if isinstance(q, _Elliptical):
        entry = td.StudentT(q.df.unsqueeze(-1), q.loc, q.scale_tril.square().sum(-1).sqrt())
        entropy = _elliptical_entropy(q)
    else:
        entry, entropy = td.Normal(q.mean, q.variance.sqrt()), q.entropy()
    return (td.kl_divergence(entry, p.base_dist) + entry.entropy()).sum(-1) - entropy


def _elliptical_entropy(q: _Elliptical) -> Tensor:
    size, half, halves = q.event_shape[0], q.df / 2, (q.df + q.event_shape[0]) / 2
    volume = q.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    normalizer = half.lgamma() - halves.lgamma() + size / 2 * (q.df * math.pi).log()
    return volume + normalizer + halves * (halves.digamma() - half.digamma())


REAL = (Logistic, td.StudentT, Triangular)
POSITIVE = (td.LogNormal, td.Weibull, Rayleigh, Reciprocal)
VECTORS = (td.MultivariateNormal, td.LowRankMultivariateNormal, _Elliptical)

RULES: tuple[tuple[Callable[..., Tensor], tuple[type, ...], tuple[type, ...]], ...] = (
    (of_normal, (*REAL, *POSITIVE, Gompertz), (td.Normal,)),
    (of_gamma, POSITIVE, (td.Gamma, td.Exponential)),
    (of_log_normal, (td.Gamma, td.Exponential, *POSITIVE[1:]), (td.LogNormal,)),
    (of_uniform, (Triangular, Reciprocal), (td.Uniform,)),
    (of_weibull, (td.Weibull, Rayleigh), (td.Weibull, Rayleigh)),
    (of_laplace, (Logistic,), (td.Laplace,)),
    (of_product, VECTORS, (td.Independent,)),
)
for _rule, _qs, _ps in RULES:
    for _q, _p in itertools.product(_qs, _ps):
        register_kl(_q, _p)(_rule)
