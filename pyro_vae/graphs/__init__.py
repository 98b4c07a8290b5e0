"""Functions as pure graphs of tensors: captured, compared, compiled."""

from pyro_vae.graphs.lifted import Lifted, Refusal
from pyro_vae.graphs.lifting import lift

__all__ = ["Lifted", "Refusal", "lift"]
