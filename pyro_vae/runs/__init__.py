"""What a training leaves in memory and on disk."""

from pyro_vae.runs.run import Run, load

__all__ = ["Run", "load"]
