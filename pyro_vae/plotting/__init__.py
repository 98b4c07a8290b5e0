"""Pictures: arrays or our objects in, matplotlib Axes out.

Each function draws into the Axes that are passed as ``ax``, or into those of a new figure, and
returns them: ``ax.figure.savefig("picture.png")`` saves it.  In a notebook the last line of a cell
shows it.  Functions of several panels make a figure of their own and return an array of Axes.

======================= ============================================================================
training                :func:`learning_curves`, :func:`training_curve`
data and draws          :func:`reconstructions`, :func:`samples`
latents                 :func:`latent_manifold`, :func:`traversals`, :func:`latent_scatter`,
                        :func:`kl_per_latent`
trust                   :func:`khat_map`, :func:`calibration_ranks`, :func:`coverage`
comparisons             :func:`comparison_table`, :func:`curves_and_evidence`,
                        :func:`evidence_differences`, :func:`gradient_dots`, :func:`autoencoders`
======================= ============================================================================

Colours are told apart by readers of every colour vision, and nothing hangs on colour alone: lines
differ in their dashes and have their names at their ends, dots differ in their marks.
docs/plots.md shows each of them.
"""

from pyro_vae.plotting.autoencoders import autoencoders
from pyro_vae.plotting.comparison import (
    bound_axis,
    comparison_table,
    curves_and_evidence,
    evidence_axis,
)
from pyro_vae.plotting.figures import COLOURS, new_figure, saved
from pyro_vae.plotting.gradients import gradient_dots
from pyro_vae.plotting.latents import kl_per_latent, latent_scatter
from pyro_vae.plotting.reconstruction import reconstructions, samples
from pyro_vae.plotting.training import learning_curves, training_curve
from pyro_vae.plotting.trust import calibration_ranks, coverage, evidence_differences, khat_map
from pyro_vae.plotting.walks import latent_manifold, traversals

__all__ = [
    "COLOURS",
    "autoencoders",
    "bound_axis",
    "calibration_ranks",
    "comparison_table",
    "coverage",
    "curves_and_evidence",
    "evidence_axis",
    "evidence_differences",
    "gradient_dots",
    "khat_map",
    "kl_per_latent",
    "latent_manifold",
    "latent_scatter",
    "learning_curves",
    "new_figure",
    "reconstructions",
    "samples",
    "saved",
    "training_curve",
    "traversals",
]
