r"""The standard auto-encoder: a code for each datum, and nothing probabilistic about the code.

.. math:: \max_{\theta, \phi} \; \log p_\theta(x \mid z), \qquad z = E_{q_\phi}[z \mid x]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae.densities.enumeration import model_sites
from pyro_vae.densities.look import looking
from pyro_vae.densities.rules import require_rows
from pyro_vae.densities.sites import values_of
from pyro_vae.densities.traces import AtTheMean, sites_of
from pyro_vae.objectives.base import EMPTY, Objective, State, Stats
from pyro_vae.program.rows import Rows, num_rows, observed_rows


class Autoencoder(Objective):
    """Reconstruction alone: z at the guide's mean, no draws, no prior, no KL term.

    What the slides set against the VAE.  It is no bound on log p(x): nothing keeps the codes where
    the prior draws, so ``pv.sample`` of such a model decodes places it has never seen, and the
    guide's spread is not trained at all.  Its model can still be scored by
    ``pv.log_evidence(proposal="hmc")``.

    Raises:
        ValueError: a guide without a mean; global latents.
    """

    has_bound = False
    takes_global = False
    needs_rsample = False  # z is the mean
    least_particles = None

    def __init__(self) -> None:  # without the options of Pyro's ELBO, none of which would count
        super().__init__()

    def init(self, program: Any, x: Rows) -> State:
        # A graph cannot look whether a mean is nan.  Dropout draws here none of the step's noise.
        with torch.no_grad(), looking(program):
            sites_of(program, "guide", x, AtTheMean())
        return EMPTY

    def terms(self, program: Any, x: Rows, state: State) -> tuple[Tensor, Stats]:
        guide = sites_of(program, "guide", x, AtTheMean(look=False))
        model = model_sites(program, x, values_of(guide))
        require_rows(guide, model, num_rows(x))
        total = torch.zeros((), device=observed_rows(x).device)
        for name, site in model.items():
            if site.is_global and not site.is_deterministic:
                raise ValueError(
                    f'site "{name}" is outside pyro.plate("data", ...), shared by all data: an '
                    "auto-encoder has a code and a loss for each datum; use AEVB()"
                )
            if site.observed:
                total = total + site.per_datum()
        return -total, {"reconstruction": total.detach()}
