"""Networks of the parts."""

from pyro_vae.networks.mlp import MLP, positive

__all__ = ["MLP", "positive"]
