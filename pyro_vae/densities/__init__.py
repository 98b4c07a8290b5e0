"""Log densities per particle and datum, and the only readers of Pyro's traces."""

from pyro_vae.densities.particles import densities
from pyro_vae.densities.tables import Densities

__all__ = ["Densities", "densities"]
