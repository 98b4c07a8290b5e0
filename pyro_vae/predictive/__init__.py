"""What one does with a trained program: draw from it, encode data, decode latents, reconstruct."""

from pyro_vae.predictive.decoding import decode, reconstruct
from pyro_vae.predictive.drawing import sample
from pyro_vae.predictive.exporting import Exported, export
from pyro_vae.predictive.latents import encode

__all__ = ["Exported", "decode", "encode", "export", "reconstruct", "sample"]
