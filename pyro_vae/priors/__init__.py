"""Priors: modules that return p(z).  One file a kind."""

from pyro_vae.priors.normal import StandardNormal

__all__ = ["StandardNormal"]
