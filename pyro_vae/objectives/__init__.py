"""Ways to learn a program: one file an algorithm, all behind :class:`Objective`."""

from pyro_vae.objectives.aevb import AEVB
from pyro_vae.objectives.base import Objective, State
from pyro_vae.objectives.mcem import MonteCarloEM
from pyro_vae.objectives.wake_sleep import WakeSleep

__all__ = ["AEVB", "MonteCarloEM", "Objective", "State", "WakeSleep"]
