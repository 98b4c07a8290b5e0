"""Where each objective's guide ends, on the model whose posterior is known."""

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

import pyro_vae as pv
from pyro_vae.models import linear_gaussian
from pyro_vae.objectives import Autoencoder, ReweightedWakeSleep, ScoreFunction

from .programs import EVERY

STEPS = 3000


def trained(objective, posterior="full"):
    """A guide after 3000 decaying steps, and the data; the model, of correlated W, is fixed."""
    torch.manual_seed(1)
    columns = 2 * torch.randn(5, 1).expand(5, 2) + 0.4 * torch.randn(5, 2)  # far from orthogonal
    program = linear_gaussian.build(5, latent_dim=2, posterior=posterior, weight=columns).double()
    x = pv.datasets.synthetic(program, 500, like=torch.zeros(1, 5)).x.double()
    for name, parameter in program.named_parameters():
        parameter.requires_grad_(name.startswith("guide"))
    pv.fit(
        program, x, objective, steps=STEPS, batch_size=100, lr=0.03, engine="eager",
        optimizer=torch.optim.Adam, dtype=torch.float64, progress=False,
        schedule=lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, STEPS),
    )  # fmt: skip
    return program, x


def away(program, x):
    """KL(q || posterior), averaged over the data, in nats."""
    q = MultivariateNormal(program.guide_mean(x), scale_tril=program.guide_noise.factor())
    return kl_divergence(q, program.posterior(x)).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        *(cls(num_particles=10) for cls in EVERY if cls.has_bound),
        ReweightedWakeSleep(5, insomnia=0.5),
        ReweightedWakeSleep(1, insomnia=0.0),
    ],
    ids=repr,
)
def test_a_guide_that_can_hold_the_posterior_ends_there(objective):
    """Full covariance: every objective has this one optimum, up to the noise of its steps."""
    program, x = trained(objective)
    assert away(program, x) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "which"),
    [
        (ReweightedWakeSleep(1, insomnia=0.0), "marginal"),
        (ScoreFunction(10), "conditional"),
    ],
    ids=repr,
)
def test_fact_36_a_diagonal_guide_ends_at_the_variances_of_its_own_divergence(objective, which):
    """KL(p || q) keeps (Lambda^-1)_jj, KL(q || p) keeps 1 / Lambda_jj; the two are far apart."""
    program, x = trained(objective, posterior="diagonal")
    precision = program.posterior_precision().detach()
    marginal, conditional = precision.inverse().diagonal(), 1 / precision.diagonal()
    got = program.guide_noise.factor().detach().diagonal() ** 2
    assert (marginal > 2 * conditional).all()
    expected = marginal if which == "marginal" else conditional
    torch.testing.assert_close(got, expected, rtol=0.1, atol=0)
    missed = program.guide_mean(x) - program.posterior(x).mean
    assert missed.square().mean() < 0.02


@pytest.mark.slow
def test_an_autoencoder_ends_at_least_squares_and_leaves_the_spread_alone():
    """Its codes are the pseudo-inverse's, not the posterior's, which the prior shrinks."""
    program, x = trained(Autoencoder())
    inverse = torch.linalg.pinv(program.weight.detach())
    torch.testing.assert_close(program.guide_weight.detach(), inverse, rtol=0, atol=0.02)
    covariance = program.guide_noise.factor().detach()
    torch.testing.assert_close(covariance, torch.eye(2).double(), rtol=1e-6, atol=1e-6)
    assert away(program, x) > 0.03
