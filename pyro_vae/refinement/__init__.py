"""Draws of the posterior that are better than the guide's."""

from pyro_vae.refinement.refining import refine
from pyro_vae.refinement.result import Refinement

__all__ = ["Refinement", "refine"]
