"""Distributions that torch and Pyro lack."""

from pyro_vae.distributions.soft_bernoulli import SoftBernoulli

__all__ = ["SoftBernoulli"]
