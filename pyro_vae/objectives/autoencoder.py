r"""The standard auto-encoder: a code for each datum, and nothing probabilistic about the code.

.. math:: \max_{\theta, \phi} \; \log p_\theta(x \mid z), \qquad z = E_{q_\phi}[z \mid x]
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.densities.rules import require_rows
from pyro_vae.densities.sites import data_frame, is_deterministic, log_density, per_datum
from pyro_vae.densities.traces import AtTheMean, sites_of, trace_of
from pyro_vae.noise import LOOK, NoiseMode, keyed, seeded
from pyro_vae.objectives.base import EMPTY, Objective, State, Stats
from pyro_vae.program.rows import Rows, observed_rows


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

    def init(self, program: Any, x: Rows) -> State:
        # A graph cannot look whether a mean is nan.  Dropout draws here none of the step's noise.
        noise = NoiseMode(keyed(*LOOK))
        with torch.no_grad(), noise, seeded(*LOOK), pyro.validation_enabled(False):
            trace_of(program.guide, x, AtTheMean())
        return EMPTY

    def terms(self, program: Any, x: Rows, state: State) -> tuple[Tensor, Stats]:
        guide_trace = trace_of(program.guide, x, AtTheMean(look=False))
        model_trace = trace_of(poutine.replay(program.model, trace=guide_trace), x)
        guide, model = sites_of(guide_trace), sites_of(model_trace)
        require_rows(guide, model)
        total = torch.zeros((), device=observed_rows(x).device)
        for name, site in model.items():
            if data_frame(site) is None and not is_deterministic(site):
                raise ValueError(
                    f'site "{name}" is outside pyro.plate("data", ...), shared by all data: an '
                    "auto-encoder has a code and a loss for each datum; use AEVB()"
                )
            if site["is_observed"]:
                value = per_datum(site, log_density(site))
                total = total + value
        return -total, {"reconstruction": total.detach()}
