"""Draws, weights, predictions and data as one object that ArviZ reads."""

from pyro_vae.inference_data.from_guide import to_inference_data

__all__ = ["to_inference_data"]
