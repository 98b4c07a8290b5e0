"""Objectives side by side, with the same nets, data order and budget."""

from pyro_vae.comparison.comparing import compare
from pyro_vae.comparison.table import Comparison

__all__ = ["Comparison", "compare"]
