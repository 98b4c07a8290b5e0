"""Draws, weights, predictions and data as one object that ArviZ reads."""

from pyro_vae.inference_data.from_guide import to_inference_data
from pyro_vae.inference_data.summarizing import summarize

__all__ = ["summarize", "to_inference_data"]
