"""Training: any program under any objective with any engine, by one loop."""

from pyro_vae.training.fitting import fit
from pyro_vae.training.interrupts import Terminated
from pyro_vae.training.settings import Settings
from pyro_vae.training.tracking import CSVTracker, Tracker

__all__ = ["CSVTracker", "Settings", "Terminated", "Tracker", "fit"]
