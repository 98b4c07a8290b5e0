"""Likelihoods: modules that return p(x | z).  One file a kind."""

from pyro_vae.likelihoods.bernoulli import Bernoulli
from pyro_vae.likelihoods.gaussian import Gaussian

__all__ = ["Bernoulli", "Gaussian"]
