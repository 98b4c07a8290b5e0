"""Posteriors: modules that return q(z | x).  One file a kind."""

from pyro_vae.posteriors.gaussian import Gaussian

__all__ = ["Gaussian"]
