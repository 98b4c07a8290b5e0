"""The engine: an objective's step on a program as a pure function, and the ways to run it."""

from pyro_vae.engine.capture import Graph, capture
from pyro_vae.engine.choosing import ENGINES, make_step, translate
from pyro_vae.engine.functions import WeightPrior

__all__ = ["ENGINES", "Graph", "WeightPrior", "capture", "make_step", "translate"]
