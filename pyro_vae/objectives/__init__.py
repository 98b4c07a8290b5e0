"""Ways to learn a program: one file an algorithm, all behind :class:`Objective`."""

from pyro_vae.objectives.aevb import AEVB
from pyro_vae.objectives.autoencoder import Autoencoder
from pyro_vae.objectives.base import Objective, State
from pyro_vae.objectives.iwae import IWAE
from pyro_vae.objectives.mcem import MonteCarloEM
from pyro_vae.objectives.pathwise import DReG, StickingTheLanding
from pyro_vae.objectives.rws import ReweightedWakeSleep
from pyro_vae.objectives.score import ScoreFunction
from pyro_vae.objectives.wake_sleep import WakeSleep

__all__ = [
    "AEVB",
    "IWAE",
    "Autoencoder",
    "DReG",
    "MonteCarloEM",
    "Objective",
    "ReweightedWakeSleep",
    "ScoreFunction",
    "State",
    "StickingTheLanding",
    "WakeSleep",
]
