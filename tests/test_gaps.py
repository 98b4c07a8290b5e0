"""Approximation and amortization gap, and the rate-distortion curve, against closed forms."""

import math

import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.diagnostics.gaps import Gaps, gaps
from pyro_vae.diagnostics.rate_distortion import rate_distortion
from pyro_vae.models import linear_gaussian

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(6)
    program = linear_gaussian.build(6, latent_dim=3).double()
    program.guide_is_best()
    return program


@pytest.fixture(scope="module")
def x():
    return torch.randn(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def found(program, x):
    return gaps(program, x, num_scored=4000, seed=1, **QUIET)


def test_the_approximation_gap_is_that_of_the_correlations(program, found):
    """(sum_j log Lambda_jj - log det Lambda) / 2, the same for every x."""
    exact = float(program.diagonal_gap().detach())

    assert exact > 0.05
    assert abs(float(found.approximation.mean()) - exact) < 0.01
    error = found.approximation - exact
    assert (error.abs() < 5 * found.approximation_error + 0.01).all()
    assert abs(float(error.mean())) < 4 * float(found.approximation_error.mean()) / 12**0.5 + 0.005


def test_a_linear_guide_has_no_amortization_gap(found):
    assert abs(float(found.amortization.mean())) < 0.005
    assert [each.verdict for each in found.findings()][1] == "good"
    assert (found.rising.abs() < 0.05).all()


def test_the_gaps_add_up_to_what_the_guide_misses(program, x, found):
    total = found.approximation + found.amortization
    torch.testing.assert_close(total, found.log_evidence - found.elbo)
    missing = (program.log_evidence(x) - program.elbo(x)).detach()
    torch.testing.assert_close(total, missing, atol=0.06, rtol=0)


def test_a_network_that_misses_some_data_is_named_with_them(program, x):
    """The mutant: the same family, whose network answers two data wrongly."""

    class Wrong(linear_gaussian.LinearGaussian):
        def guide_mean(self, x):
            return super().guide_mean(x) + 3.0 * (x[:, :1] > 2.0)

    wrong = Wrong(
        program.weight.detach().clone(), prior_precision=1.0, noise=program.noise,
        guide=program.guide_noise,
    ).double()  # fmt: skip
    wrong.load_state_dict(program.state_dict())
    x = x.clamp(-1, 1)
    x[[4, 7], 0] = 2.5

    found = gaps(wrong, x, **QUIET)

    exact = (program.elbo(x) - wrong.elbo(x)).detach()
    torch.testing.assert_close(found.amortization, exact, atol=0.4, rtol=0.05)
    finding = found.findings()[1]
    assert finding.verdict == "bad"
    assert "2 of 12 data" in finding.text
    assert "4" in finding.text
    assert "7" in finding.text
    assert abs(float(found.approximation.mean()) - float(program.diagonal_gap().detach())) < 0.05


def test_the_exact_posterior_has_neither_gap(x):
    program = linear_gaussian.build(6, latent_dim=3, posterior="full").double()
    program.guide_is_exact_posterior()

    found = gaps(program, x, steps=20, num_scored=50, **QUIET)

    zero = torch.zeros(12, dtype=torch.float64)
    torch.testing.assert_close(found.approximation, zero, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.amortization, zero, atol=1e-9, rtol=0)
    assert [each.verdict for each in found.findings()] == ["good", "good"]
    assert [each.level for each in found.findings()] == [0.0, 0.0]


def test_a_known_log_evidence_stands_in_for_the_estimate(program, x):
    exact = program.log_evidence(x).detach()
    found = gaps(program, x, log_evidence=exact, steps=100, **QUIET)
    torch.testing.assert_close(found.log_evidence, exact)
    assert abs(float(found.approximation.mean() - program.diagonal_gap().detach())) < 0.05

    with pytest.raises(ValueError, match=r"expected \(12,\)"):
        gaps(program, x, log_evidence=exact[:3], **QUIET)


def test_findings_say_where_they_are_bounds_alone():
    n = torch.zeros(3, dtype=torch.float64)
    khat = torch.tensor([0.1, 0.9, 0.2], dtype=torch.float64)
    found = Gaps(n + 0.5, n + 2.0, n, n, n, n, n, khat, n + 0.2)
    family, network = found.findings()
    assert family.verdict == "note"
    assert "at least that: khat of log p(x) is not below 0.7 for 1 data (1)" in family.text
    assert network.verdict == "bad"
    assert "still rising for 3 data (0, 1, 2)" in network.text
    assert "approximation 0.500, amortization 2.000" in repr(found)


def test_guides_that_cannot_be_refitted_are_refused():
    flow = pv.VAE.build(4, latent_dim=2, hidden_dim=4, posterior=pv.posteriors.SplineFlow,
                        likelihood=pv.likelihoods.Bernoulli())  # fmt: skip
    with pytest.raises(ValueError, match="cannot be refitted"):
        gaps(flow, torch.ones(3, 4), **QUIET)


# --- rate and distortion --------------------------------------------------------------------------


def exact_point(program, x, beta):
    """KL and -E log p(x | z) of the best q at a weight b of the likelihood, of a full guide.

    Its precision is I + b W^T W / s^2.
    """
    weight, noise = program.weight.detach(), program.noise.factor()[0, 0].detach()
    precision = torch.eye(len(weight.T)) + beta * weight.T @ weight / noise**2
    covariance = precision.inverse()
    mean = beta * (x - program.bias) @ weight @ covariance / noise**2
    kl = covariance.trace() + mean.square().sum(1) - len(covariance) + precision.logdet()
    squares = (x - program.bias - mean @ weight.T).square().sum(1)
    squares = squares + (weight @ covariance @ weight.T).trace()
    constant = x.shape[1] * math.log(2 * math.pi * float(noise) ** 2)
    return kl.detach() / 2, (squares / noise**2 + constant).detach() / 2


def test_the_curve_is_that_of_tempered_posteriors(double, x):
    program = linear_gaussian.build(6, latent_dim=2, posterior="full", noise_scale=0.7)
    program.guide_is_exact_posterior()

    found = rate_distortion(program, x, betas=(4.0, 0.25, 1.0), num_scored=2000, **QUIET)

    assert found.betas.tolist() == [0.25, 1.0, 4.0]
    for beta, rate, distortion in zip(found.betas, found.rate, found.distortion, strict=True):
        exact_rate, exact_distortion = exact_point(program, x, beta)
        torch.testing.assert_close(rate, exact_rate, atol=0.01, rtol=0.01)
        torch.testing.assert_close(distortion, exact_distortion, atol=0.25, rtol=0.05)
    at_one = found.rate[1] + found.distortion[1]
    torch.testing.assert_close(at_one, -program.log_evidence(x).detach(), atol=0.25, rtol=0)
    assert (found.rate.mean(1).diff() > 0).all()
    assert (found.distortion.mean(1).diff() < 0).all()
    assert found.findings()[0].verdict == "note"
    assert "0.25: " in repr(found)


def test_betas_are_positive_numbers(program, x):
    for betas in ((), "1", (0.0, 1.0)):
        with pytest.raises(ValueError, match="betas"):
            rate_distortion(program, x, betas=betas, **QUIET)


def test_a_decoder_that_ignores_its_latents_has_a_flat_curve():
    """The mutant: no rate buys anything."""
    program = linear_gaussian.build(3, latent_dim=2)
    nn.init.zeros_(program.weight)

    found = rate_distortion(program, torch.randn(4, 3), betas=(0.5, 5.0), steps=40, **QUIET)

    assert (found.rate.abs() < 1e-3).all()
    torch.testing.assert_close(found.distortion[0], found.distortion[1], atol=1e-3, rtol=0)
