"""log p(x) from posterior draws: a proposal fitted to HMC, and the paper's appendix D."""

import math

import pytest
import torch

import pyro_vae as pv
from pyro_vae.evidence import from_reciprocal_weights
from pyro_vae.evidence.markov import _kernel_log_density, _moments, _student_log_density
from pyro_vae.models import bernoulli_vae, linear_gaussian, logistic_lvm


def oracle(latent_dim=2, n=60):
    torch.manual_seed(0)
    program = linear_gaussian.build(6, latent_dim=latent_dim, weight=torch.randn(6, latent_dim))
    program = program.double()
    x = pv.datasets.synthetic(program, n, like=torch.zeros(1, 6), seed=2).x.double()
    return program, x, program.log_evidence(x).detach()


def test_the_fitted_proposal_agrees_with_the_truth_within_its_standard_error():
    program, x, exact = oracle()
    evidence = pv.log_evidence(program, x, proposal="hmc", num_particles=400)
    z = (evidence.value - exact) / evidence.standard_error
    assert abs(float(z.mean())) < 4.5 / math.sqrt(len(x))
    assert 0.7 < float(z.std()) < 1.35
    assert float(evidence.ess.median()) > 0.6 * 400
    assert float(evidence.khat.max()) < 0.7


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_appendix_d_with_exact_draws_is_biased_by_less_than_a_hundredth_of_a_nat(latent_dim):
    """Independent draws of the exact posterior of one datum, 400 repetitions side by side."""
    program, x, exact = oracle(latent_dim, n=1)
    posterior = program.posterior(x)
    draws = posterior.sample((1000, 400)).squeeze(2).detach()  # (S, repetitions, J)
    fit, new = draws[:500], draws[500:]
    with torch.no_grad():
        z = new.reshape(-1, latent_dim)
        log_p = torch.distributions.Normal(0.0, program.alpha**-0.5).log_prob(z).sum(-1)
        mean = z @ program.weight.T + program.bias
        log_p = (log_p + program.noise.around(mean).log_prob(x)).view(500, 400)
    evidence = from_reciprocal_weights(_kernel_log_density(fit, new) - log_p)
    bias = float((evidence.value - exact).mean())
    error = float(evidence.value.std()) / 20
    assert abs(bias) < 0.01 + 4.5 * error and error < 0.002
    assert bias > -4.5 * error  # upward, if anywhere


def test_one_over_p_is_unbiased_and_its_logarithm_is_biased_upward():
    """Fact 32, on 20 draws a time, where the bias can be seen; importance sampling errs down."""
    program, x, exact = oracle(2, n=1)
    torch.manual_seed(1)
    posterior = program.posterior(x)
    wide = torch.distributions.MultivariateNormal(  # q narrower than the posterior: finite variance
        posterior.mean, covariance_matrix=0.5 * posterior.covariance_matrix
    )
    z = posterior.sample((20, 4000)).detach()  # (20, 4000, 1, J)
    # At the posterior log p(x, z) = log p(z | x) + log p(x).
    log_r = (wide.log_prob(z) - posterior.log_prob(z) - exact).squeeze(-1).detach()
    evidence = from_reciprocal_weights(log_r)
    inverse = (exact - evidence.value).exp()  # p(x) / p^(x), mean one
    assert abs(float(inverse.mean()) - 1) < 4.5 * float(inverse.std()) / math.sqrt(4000)
    bias = float((evidence.value - exact).mean())  # about half the variance of the mean weight
    assert bias > 3 * float(evidence.value.std()) / math.sqrt(4000)
    assert (evidence.upper == evidence.value).all() and evidence.lower.isneginf().all()


def test_if_q_is_the_posterior_every_draw_gives_the_evidence():
    """Fact 32: constant weights, no error, khat 0."""
    evidence = from_reciprocal_weights(torch.full((100, 3), 2.5))
    torch.testing.assert_close(evidence.value, torch.full((3,), -2.5, dtype=torch.float64))
    assert evidence.standard_error.max() < 1e-12 and (evidence.khat == 0).all()


@pytest.mark.filterwarnings("ignore:khat exceeds 0.7")  # a few of 20 data, by chance
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_three_ways_agree_with_quadrature(latent_dim):
    """Fact 33, on the logistic model: importance below, appendix D above, both within errors."""
    torch.manual_seed(0)
    program = logistic_lvm.build(6, latent_dim=latent_dim).double()
    x = (torch.rand(20, 6) < 0.5).double()
    exact = program.log_evidence(x).detach()
    low = pv.log_evidence(program, x, proposal="hmc", num_particles=400)
    high = pv.log_evidence(program, x, method="reciprocal", num_draws=1000)
    for evidence in (low, high):
        z = (evidence.value - exact) / evidence.standard_error
        assert float(z.abs().max()) < 4.5
    spread = (low.standard_error**2 + high.standard_error**2).sqrt()
    assert float(((low.value - high.value) / spread).max()) < 4.5


def test_the_fitted_densities_are_normalized():
    """Both integrate to one on a fine grid; a mutant without its log-determinant does not."""
    torch.manual_seed(0)
    draws = 0.3 + torch.randn(60, 1, 1, dtype=torch.float64) * 0.5
    grid = torch.linspace(-30, 30, 60_001, dtype=torch.float64).view(-1, 1, 1)
    step = 60 / 60_000
    assert float(_kernel_log_density(draws, grid).exp().sum() * step) == pytest.approx(1, abs=1e-6)
    mean, factor = _moments(draws)
    standard = (grid - mean) / factor
    density = _student_log_density(standard, factor).exp()
    assert float(density.sum() * step) == pytest.approx(1, abs=1e-4)
    mutant = _student_log_density(standard, torch.ones_like(factor)).exp()
    assert abs(float(mutant.sum() * step) - 1) > 0.1


@pytest.mark.filterwarnings("ignore:khat exceeds 0.7")
def test_appendix_d_warns_above_five_latents():
    torch.manual_seed(0)
    vae = bernoulli_vae.build(6, latent_dim=6, hidden_dim=4)
    x = (torch.rand(4, 6) < 0.5).float()
    with pytest.warns(pv.PyroVaeWarning, match="not to be trusted with 6 latent dimensions"):
        pv.log_evidence(vae, x, method="reciprocal", num_draws=60, warmup=40)


@pytest.mark.filterwarnings("ignore:khat exceeds 0.7")
def test_chunks_of_rows_and_particles_change_nothing_but_the_noise():
    program, x, exact = oracle(2, n=23)
    small = pv.log_evidence(
        program, x, proposal="hmc", num_particles=100, batch_size=10, max_elements=10 * 6 * 30
    )
    assert small.value.shape == (23,)
    z = (small.value - exact) / small.standard_error
    assert float(z.abs().max()) < 4.5
    again = pv.log_evidence(
        program, x, proposal="hmc", num_particles=100, batch_size=10, max_elements=10 * 6 * 30
    )
    assert torch.equal(small.value, again.value)
