"""Distributions that torch and Pyro lack, by kind.

Together with theirs they are the families of section 2.4 of the paper: tractable inverse CDFs
(Exponential, Cauchy, Logistic, Rayleigh, Pareto, Weibull, Reciprocal, Gompertz, Gumbel, Erlang),
location and scale (Laplace, elliptical, Student's t, Logistic, Uniform, Triangular, Gaussian), and
compositions (Log-Normal, Gamma, Dirichlet, Beta, Chi-Squared, F).
"""

import pyro_vae.distributions.divergences  # noqa: F401  (registers closed forms with torch)
from pyro_vae.distributions.inverse_cdf import InverseCDF
from pyro_vae.distributions.lifetimes import Erlang, Gompertz, Rayleigh, Reciprocal
from pyro_vae.distributions.location_scale import Logistic, Triangular
from pyro_vae.distributions.soft_bernoulli import SoftBernoulli

__all__ = [
    "Erlang",
    "Gompertz",
    "InverseCDF",
    "Logistic",
    "Rayleigh",
    "Reciprocal",
    "SoftBernoulli",
    "Triangular",
]
