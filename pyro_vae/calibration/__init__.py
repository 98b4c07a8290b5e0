"""Whether a guide's draws are calibrated: ranks of simulated latents, and what they say."""

from pyro_vae.calibration.ranks import Ranks, simulated_ranks
from pyro_vae.calibration.uniformity import Uniformity, ecdf_band, uniformity
from pyro_vae.predictive.simulating import Simulated, simulate

__all__ = [
    "Ranks",
    "Simulated",
    "Uniformity",
    "ecdf_band",
    "simulate",
    "simulated_ranks",
    "uniformity",
]
