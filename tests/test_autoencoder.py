"""The standard auto-encoder: its code and its loss, without a prior or noise."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.densities.particles import densities
from pyro_vae.objectives import Autoencoder, Objective
from pyro_vae.objectives.base import EMPTY
from pyro_vae.training.fitting import fit

from .oracles import (
    CORNERS,
    LogisticRows,
    SubsampledRows,
    assert_equal,
    gradients,
    wake_by_hand,
)
from .test_linear_gaussian import FORMS, program_of


def autoencoder_by_hand(program, x):
    """-log N(x; W z + b, Sigma) at z = A x + c: wake at no noise, and W' Sigma^-1 r for the guide.

    The spread of the guide is in no term.
    """
    total = wake_by_hand(program, x, torch.zeros(1, 9, 2, dtype=torch.float64))
    W = program.weight.detach().numpy()
    C = program.noise.factor().detach().numpy()
    z = program.guide_mean(x).detach().numpy()
    r = x.numpy() - z @ W.T - program.bias.detach().numpy()
    pull = np.linalg.solve(C @ C.T, r.T).T @ W
    total |= {"guide_weight": -pull.T @ x.numpy(), "guide_bias": -pull.sum(0)}
    return total | {
        name: np.zeros(p.shape)
        for name, p in program.named_parameters()
        if name.startswith("guide_noise")
    }


class AtADraw(Objective):
    """A mutant: z drawn, not its mean."""

    def loss_per_datum(self, program, x):
        return -densities(program, x).log_likelihood.mean(0)


class WithPrior(Autoencoder):
    """A mutant: the prior at the code."""

    def terms(self, program, x, state):
        loss, stats = super().terms(program, x, state)
        z = program.guide_mean(x)
        return loss + 0.5 * program.alpha * z.square().sum(-1), stats


class HalfTheCode(Autoencoder):
    """A mutant: the code carries no gradient, so the guide is not trained."""

    def terms(self, program, x, state):
        guide_mean = type(program).guide_mean
        program.guide_mean = lambda x: guide_mean(program, x).detach()
        return super().terms(program, x, state)


def check_autoencoder(objective, *noise, form=("full", "full")):
    program = program_of(*form)
    x = torch.randn(9, 5, dtype=torch.float64)
    expected = autoencoder_by_hand(program, x)
    assert_equal(gradients(program, objective, x, *noise), expected)


@pytest.mark.parametrize("form", FORMS)
def test_autoencoder_gradient_is_the_one_by_hand_and_asks_for_no_noise(form):
    check_autoencoder(Autoencoder(), form=form)


@pytest.mark.parametrize("mutant", [AtADraw(), WithPrior(), HalfTheCode()])
def test_autoencoder_mutants_fail(mutant):
    noise = [torch.randn(9, 2, dtype=torch.float64)] if isinstance(mutant, AtADraw) else []
    with pytest.raises(AssertionError, match="not close"):
        check_autoencoder(mutant, *noise)


def test_autoencoder_reports_what_it_trains_and_no_bound(oracle, x):
    loss, stats = Autoencoder().terms(oracle, x, EMPTY)
    assert set(stats) == {"reconstruction"}
    torch.testing.assert_close(stats["reconstruction"], -loss.detach())
    assert not Autoencoder().has_bound


def test_autoencoder_applies_the_scale_of_a_subsampled_plate_once():
    losses = []
    for size in (4, 10):
        program = SubsampledRows(size)
        losses.append(Autoencoder().differentiable_loss(program.model, program.guide, CORNERS))
    torch.testing.assert_close(losses[1], 2.5 * losses[0])


class MeanLess(LogisticRows):
    """A guide of the family without a mean."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Cauchy((self.gain * x).sum(-1, keepdim=True), 1.0).to_event(1))


def test_autoencoder_refuses_a_guide_without_a_mean():
    """By name, before the first step."""
    with pytest.raises(ValueError, match=r'the guide of "z", Cauchy, has no mean'):
        Autoencoder().init(MeanLess(), CORNERS)
    with pytest.raises(ValueError, match=r'the guide of "z", Cauchy, has no mean'):
        fit(MeanLess(), CORNERS, Autoencoder(), steps=1, batch_size=2)
