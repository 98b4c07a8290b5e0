"""Distributions that torch and Pyro lack, by kind.

Together with theirs they are the families of section 2.4 of the paper: tractable inverse CDFs
(Exponential, Cauchy, Logistic, Rayleigh, Pareto, Weibull, Reciprocal, Gompertz, Gumbel, Erlang),
location and scale (Laplace, elliptical, Student's t, Logistic, Uniform, Triangular, Gaussian), and
compositions (Log-Normal, Gamma, Dirichlet, Beta, Chi-Squared, F).  Beside these stand laws of data:
pixels in levels, counts, the words of documents, and columns of categories.
"""

import pyro_vae.distributions.divergences  # noqa: F401  (registers closed forms with torch)
from pyro_vae.distributions.categories import CategoricalColumns, OneHotColumns, ordinal_logits
from pyro_vae.distributions.counts import NegativeBinomial2, WordCounts, ZeroInflated, perplexity
from pyro_vae.distributions.flows import NormalizingFlow
from pyro_vae.distributions.inverse_cdf import InverseCDF
from pyro_vae.distributions.lifetimes import Erlang, Gompertz, Rayleigh, Reciprocal
from pyro_vae.distributions.location_scale import Logistic, Triangular
from pyro_vae.distributions.mixtures import Mixture, MixtureOfNormals
from pyro_vae.distributions.normal import FullNormal
from pyro_vae.distributions.pixels import DiscretizedLogistic, bits_per_dimension
from pyro_vae.distributions.simplex import LogisticNormal
from pyro_vae.distributions.soft_bernoulli import SoftBernoulli
from pyro_vae.distributions.unit_interval import ContinuousBernoulli, OpenBeta

__all__ = [
    "CategoricalColumns",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Erlang",
    "FullNormal",
    "Gompertz",
    "InverseCDF",
    "Logistic",
    "LogisticNormal",
    "Mixture",
    "MixtureOfNormals",
    "NegativeBinomial2",
    "NormalizingFlow",
    "OneHotColumns",
    "OpenBeta",
    "Rayleigh",
    "Reciprocal",
    "SoftBernoulli",
    "Triangular",
    "WordCounts",
    "ZeroInflated",
    "bits_per_dimension",
    "ordinal_logits",
    "perplexity",
]
