"""Distributions that torch and Pyro lack."""

from pyro_vae.distributions.flows import NormalizingFlow
from pyro_vae.distributions.mixtures import Mixture
from pyro_vae.distributions.simplex import LogisticNormal
from pyro_vae.distributions.soft_bernoulli import SoftBernoulli

__all__ = ["LogisticNormal", "Mixture", "NormalizingFlow", "SoftBernoulli"]
