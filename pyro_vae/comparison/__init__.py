"""Objectives side by side, with the same nets, data order and budget."""

from pyro_vae.comparison.autoencoders import AutoencoderComparison, compare_autoencoder
from pyro_vae.comparison.comparing import compare
from pyro_vae.comparison.table import Comparison

__all__ = ["AutoencoderComparison", "Comparison", "compare", "compare_autoencoder"]
