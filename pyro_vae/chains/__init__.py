"""Markov chains on the latents of each datum: draws from the exact posterior."""

from pyro_vae.chains.hmc import move
from pyro_vae.chains.latents import Latents
from pyro_vae.chains.sampling import Draws, sample_posterior

__all__ = ["Draws", "Latents", "move", "sample_posterior"]
