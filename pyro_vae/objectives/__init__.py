"""Ways to learn a program: one file an algorithm, all behind :class:`Objective`.

Classes are found by listing the folder: see :mod:`pyro_vae.recording.listing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_vae.objectives.base import Objective as Objective
from pyro_vae.objectives.base import State as State
from pyro_vae.recording.listing import exported, names_in

if TYPE_CHECKING:  # a class in a new file needs no entry: it is found, and is Any to type checkers
    from pyro_vae.objectives.aevb import AEVB as AEVB
    from pyro_vae.objectives.autoencoder import Autoencoder as Autoencoder
    from pyro_vae.objectives.enumerated import EnumeratedELBO as EnumeratedELBO
    from pyro_vae.objectives.enumerated import MixedELBO as MixedELBO
    from pyro_vae.objectives.iwae import IWAE as IWAE
    from pyro_vae.objectives.mcem import MonteCarloEM as MonteCarloEM
    from pyro_vae.objectives.pathwise import DReG as DReG
    from pyro_vae.objectives.pathwise import StickingTheLanding as StickingTheLanding
    from pyro_vae.objectives.rws import ReweightedWakeSleep as ReweightedWakeSleep
    from pyro_vae.objectives.score import ScoreFunction as ScoreFunction
    from pyro_vae.objectives.wake_sleep import WakeSleep as WakeSleep

ALSO = ("Objective", "State")


def __getattr__(name: str) -> Any:
    return exported(__name__, name, ALSO)


def __dir__() -> list[str]:
    return names_in(__name__, ALSO)
