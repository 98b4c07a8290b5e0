"""Pictures.  Each function returns a matplotlib figure, and saves it where a path is given."""

from pyro_vae.plotting.autoencoders import autoencoders
from pyro_vae.plotting.comparison import bound_axis, evidence_axis, learning_curves
from pyro_vae.plotting.figures import COLOURS, new_figure, saved
from pyro_vae.plotting.gradients import gradient_dots
from pyro_vae.plotting.training import training_curve

__all__ = [
    "COLOURS",
    "autoencoders",
    "bound_axis",
    "evidence_axis",
    "gradient_dots",
    "learning_curves",
    "new_figure",
    "saved",
    "training_curve",
]
