"""AEVB against gradients written by hand, quadrature, closed forms, and Pyro's own ELBOs."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vae.densities import densities
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.lifting import NoiseMode, keyed
from pyro_vae.models import linear_gaussian, logistic_lvm
from pyro_vae.objectives import AEVB, Objective
from pyro_vae.objectives.base import EMPTY
from pyro_vae.program import Program

from .oracles import (
    LogisticRows,
    assert_equal,
    bound_by_hand,
    fed,
    gradients,
    hermite,
    logistic_bound,
    numbers,
    parameter_gradients,
    z_scores,
)
from .test_linear_gaussian import FORMS, program_of

PYRO = {"A": Trace_ELBO, "B": TraceMeanField_ELBO}


class KLTooLarge(AEVB):
    """A mutant: estimator B with 1.05 times the KL term."""

    def terms(self, program, x, state):
        loss, stats = super().terms(program, x, state)
        return loss + 0.05 * densities_kl(program, x), stats


class EntropyHeld(Objective):
    """A mutant: estimator A with log q detached, so that nothing keeps q from shrinking."""

    def loss_per_datum(self, program, x):
        d = densities(program, x)
        return -(d.log_p - d.log_q.detach()).mean(0)


class PooledWeights(Objective):
    """A mutant: the bound's terms weighted by importance weights normalized over the batch."""

    def loss_per_datum(self, program, x):
        d = densities(program, x)
        weights = d.log_w.detach().flatten().softmax(0).reshape(d.log_w.shape) * d.log_w.numel()
        return -(weights * d.log_w).mean(0)


def densities_kl(program, x):
    with fed(*[torch.zeros(len(x), 9, dtype=torch.float64)[:, :2]] * 2):
        return densities(program, x).kl["z"]


# --- no noise in it -------------------------------------------------------------------------------


def check_at_fixed_noise(objective, estimator, particles=1, noise="full", posterior="full"):
    program = program_of(noise, posterior)
    x = torch.randn(9, 5, dtype=torch.float64)
    eps = torch.randn(particles, 9, 2, dtype=torch.float64)

    expected = bound_by_hand(program, x, eps, estimator)

    assert_equal(gradients(program, objective, x, eps), expected)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("estimator", ["A", "B"])
@pytest.mark.parametrize(("noise", "posterior"), FORMS)
def test_gradient_at_fixed_noise_is_the_one_by_hand(estimator, particles, noise, posterior):
    """Every parameter of model and guide, for all forms of covariance."""
    objective = AEVB(estimator, particles)

    check_at_fixed_noise(objective, estimator, particles, noise, posterior)
