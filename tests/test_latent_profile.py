"""What latents carry, which are active, and how their aggregate differs from the prior."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.calibration import simulate, simulated_ranks
from pyro_vae.diagnostics.calibrated import Calibration
from pyro_vae.diagnostics.latents import profile
from pyro_vae.models import linear_gaussian

from .quickly import slowly

WEIGHT = torch.tensor([[1.0, 0.3, 0.0], [-0.5, 0.8, 0.0], [0.2, 0.1, 0.0], [0.6, -0.9, 0.0]])


def oracle(change=None):
    """Its third latent says nothing about x."""
    program = linear_gaussian.build(4, latent_dim=3, posterior="full", weight=WEIGHT)
    program.guide_is_exact_posterior()
    if change is not None:
        with torch.no_grad():
            change(program)
    return program


@pytest.fixture(scope="module")
def pairs():
    return simulate(oracle(), 3000, like=torch.zeros(2, 4))


@pytest.fixture(scope="module")
def found(pairs):
    return profile(oracle(), pairs.x[:1200], pairs.latents)


def verdicts(findings):
    return {finding.question: finding.verdict for finding in findings}


def test_moments_are_the_posteriors(found, pairs):
    law = oracle().posterior(pairs.x[:1200])
    sd = law.variance.sqrt()[0].detach()
    error = (found.mean - law.mean.detach()) / sd * 10  # 100 draws
    assert torch.allclose(error.std(0), torch.ones(3).double(), atol=0.1)
    assert torch.allclose(found.sd.mean(0), sd.double(), rtol=0.01)


def test_the_information_of_an_exact_guide_is_known(found):
    exact = float(torch.logdet(torch.eye(4) + WEIGHT @ WEIGHT.T)) / 2
    low, error = found.information
    assert abs(low - exact) < 3 * error
    assert abs(float(found.rate.mean()) - exact) < 3 * float(found.rate.std()) / math.sqrt(1200)


def test_what_the_data_do_not_move_is_not_active(found):
    assert found.active.tolist() == [True, True, False]
    assert abs(float(found.contraction[2])) < 0.1
    assert verdicts(found.findings())["active latents"] == "note"
    assert "z[2]" in found.findings()[0].text


def test_the_aggregate_of_an_exact_guide_is_the_prior(found):
    assert verdicts(found.findings())["aggregate posterior"] == "good"


def wide(program):
    program.guide_noise.set(program.posterior_precision().inverse() * 4)


def test_one_that_is_too_wide_is_named(pairs):
    found = profile(oracle(wide), pairs.x[:1200], pairs.latents)
    finding = found.findings()[2]
    assert finding.verdict == "bad" and "too wide for it: z[2]" in finding.text
    assert finding.level == 0.01


def still(program):
    program.guide_weight.zero_()
    program.guide_bias.zero_()


def test_a_guide_that_ignores_the_data_has_collapsed(pairs):
    finding = profile(oracle(still), pairs.x[:300], pairs.latents).findings()[0]
    assert finding.verdict == "bad" and "collapsed" in finding.text


def test_information_beyond_what_so_many_data_show_is_a_bracket():
    weight = torch.eye(6) * 50
    program = linear_gaussian.build(6, latent_dim=6, weight=weight)
    program.guide_is_exact_posterior()
    made = simulate(program, 300, like=torch.zeros(2, 6))
    found = profile(program, made.x, made.latents)
    low, _ = found.information
    exact = 3 * math.log(1 + 50**2)
    assert low < math.log(300) + 1e-6 < exact
    assert "as much as 300 data can show" in found.findings()[1].text
    assert abs(float(found.rate.mean()) - exact) < 1


class TwoSites(pv.Program):
    def model(self, x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))
            mean = k[..., None] * w.sum(-1)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(0.5 * torch.ones(len(x))))
            pyro.sample("w", dist.Normal(torch.zeros(len(x), 2, 2), 1.0).to_event(2))


def test_every_number_of_every_latent_has_a_name():
    made = simulate(TwoSites(), 60, like=torch.zeros(2, 2))
    found = profile(TwoSites(), made.x, made.latents)
    assert found.names == ["k", "w[0,0]", "w[0,1]", "w[1,0]", "w[1,1]"]
    ranks = simulated_ranks(TwoSites(), simulated=made, num_draws=9)
    assert [name for name in ranks.ranks if ranks.is_latent[name]] == found.names


# --- calibration in words -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "shift", "said"),
    [
        (0.8, 0.0, "too narrow, overconfident"),
        slowly((1.2, 0.0, "too wide, underconfident")),
        (1.0, 0.3, "draws too high"),
        slowly((1.0, -0.3, "draws too low")),
    ],
)
def test_the_way_in_which_a_guide_is_wrong_is_said(pairs, scale, shift, said):
    def change(program):
        covariance = program.posterior_precision().inverse()
        program.guide_noise.set(covariance * scale**2)
        program.guide_bias += shift * covariance.diagonal().sqrt()

    part = Calibration(simulated_ranks(oracle(change), simulated=pairs), 0.01)
    (finding,) = part.findings()
    assert finding.verdict == "bad" and said in finding.text
    name = next(name for name in part.failed if part.ranks.is_latent[name])
    if scale != 1.0:
        assert abs(part.scatter(name) - 1 / scale) < 0.05
    else:
        assert f"off by {abs(shift):.1f}"[:8] in finding.text


def test_an_exact_guide_is_told_clean(pairs):
    part = Calibration(simulated_ranks(oracle(), simulated=pairs), 0.01)
    assert part.failed == [] and part.findings()[0].verdict == "good"
    assert abs(part.contraction["z[2]"]) < 0.1 and part.contraction["z[0]"] > 0.4
    u, lower, upper, curves = part.ranks.curves(0.99)
    for curve in curves.values():
        assert ((curve >= lower) & (curve <= upper)).all()
    assert (lower < 0).all() and (upper > 0).all() and len(u) == 99
