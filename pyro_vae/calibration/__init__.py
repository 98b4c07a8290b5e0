"""Whether a guide's draws are calibrated: ranks of simulated latents, and what they say."""

from pyro_vae.calibration.ranks import Ranks, simulated_ranks
from pyro_vae.calibration.simulation import Simulated, simulate
from pyro_vae.calibration.uniformity import Uniformity, ecdf_band, uniformity

__all__ = [
    "Ranks",
    "Simulated",
    "Uniformity",
    "ecdf_band",
    "simulate",
    "simulated_ranks",
    "uniformity",
]
