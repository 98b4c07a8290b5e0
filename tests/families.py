"""The families of section 2.4 of the paper, each beside SciPy's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
import scipy.stats as ss
import torch

from pyro_vae import distributions as ours


class Family(NamedTuple):
    """A law as a function of its parameters, and SciPy's of the same."""

    law: Callable[..., Any]
    scipy: Callable[..., Any]
    at: dict[str, float]
    inverse: bool = False  # is it drawn, or can it be, by its inverse CDF?
    moments: bool = True  # are E z and E z^2 finite, with finite variances of their gradients?
    fixed: tuple[tuple[str, float], ...] = ()  # parameters without a gradient

    def __call__(self, **parameters):
        return self.law(**{**self.at, **dict(self.fixed), **parameters})

    def beside(self, **parameters):
        return self.scipy(**{**self.at, **dict(self.fixed), **parameters})


INVERSE = {
    "Exponential": Family(dist.Exponential, lambda rate: ss.expon(scale=1 / rate), {"rate": 1.7}),
    "Cauchy": Family(dist.Cauchy, ss.cauchy, {"loc": 0.4, "scale": 0.7}, moments=False),
    "Logistic": Family(ours.Logistic, ss.logistic, {"loc": 0.4, "scale": 0.7}),
    "Rayleigh": Family(ours.Rayleigh, lambda scale: ss.rayleigh(scale=scale), {"scale": 1.3}),
    "Pareto": Family(
        dist.Pareto,
        lambda scale, alpha: ss.pareto(alpha, scale=scale),
        {"scale": 1.3, "alpha": 9.0},
    ),
    "Weibull": Family(
        dist.Weibull,
        lambda scale, concentration: ss.weibull_min(concentration, scale=scale),
        {"scale": 1.3, "concentration": 2.2},
    ),
    "Reciprocal": Family(
        ours.Reciprocal, lambda low, high: ss.reciprocal(low, high), {"low": 0.3, "high": 4.0}
    ),
    "Gompertz": Family(
        ours.Gompertz,
        lambda concentration, rate: ss.gompertz(concentration, scale=1 / rate),
        {"concentration": 0.6, "rate": 1.7},
    ),
    "Gumbel": Family(dist.Gumbel, ss.gumbel_r, {"loc": 0.4, "scale": 0.7}),
    "Laplace": Family(dist.Laplace, ss.laplace, {"loc": 0.4, "scale": 0.7}),
    "Uniform": Family(
        dist.Uniform, lambda low, high: ss.uniform(low, high - low), {"low": -0.3, "high": 1.5}
    ),
    "Triangular": Family(
        ours.Triangular,
        lambda low, peak, high: ss.triang((peak - low) / (high - low), low, high - low),
        {"low": -0.3, "peak": 0.4, "high": 1.5},
    ),
    "Normal": Family(dist.Normal, ss.norm, {"loc": 0.4, "scale": 1.3}),
    "LogNormal": Family(
        dist.LogNormal,
        lambda loc, scale: ss.lognorm(scale, scale=torch.tensor(loc).exp().item()),
        {"loc": 0.4, "scale": 0.3},
    ),
}
OTHERS = {
    "Erlang": Family(
        ours.Erlang,
        lambda concentration, rate: ss.gamma(concentration, scale=1 / rate),
        {"rate": 1.7},
        fixed=(("concentration", 3),),
    ),
    "StudentT": Family(dist.StudentT, ss.t, {"df": 12.0, "loc": 0.4, "scale": 0.7}),
    "Gamma": Family(
        dist.Gamma,
        lambda concentration, rate: ss.gamma(concentration, scale=1 / rate),
        {"concentration": 2.3, "rate": 1.7},
    ),
    "Beta": Family(
        dist.Beta,
        lambda concentration1, concentration0: ss.beta(concentration1, concentration0),
        {"concentration1": 2.3, "concentration0": 1.7},
    ),
    "Chi2": Family(dist.Chi2, ss.chi2, {"df": 3.4}),
    "FisherSnedecor": Family(
        dist.FisherSnedecor, lambda df1, df2: ss.f(df1, df2), {"df1": 5.0, "df2": 24.0}
    ),
}
FAMILIES = {name: family._replace(inverse=True) for name, family in INVERSE.items()} | OTHERS
OURS = ("Erlang", "Gompertz", "Logistic", "Rayleigh", "Reciprocal", "Triangular")
