"""The linear-Gaussian oracle against facts that do not use it: scipy, torch's KL, identities."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from pyro_vae.models import linear_gaussian

from .oracles import numbers

FORMS = [
    (noise, posterior)
    for noise in ("isotropic", "diagonal", "full")
    for posterior in ("diagonal", "full")
]


def program_of(noise="full", posterior="full", spread=0.5):
    program = linear_gaussian.build(5, prior_precision=1.5, noise=noise, posterior=posterior)
    with torch.no_grad():
        for parameter in program.double().parameters():
            parameter.normal_(0.0, spread)
    return program


def guide_of(program, x):
    return MultivariateNormal(program.guide_mean(x), scale_tril=program.guide_noise.factor())


@pytest.mark.parametrize("noise", ["isotropic", "diagonal", "full"])
def test_evidence_is_the_density_of_the_marginal_gaussian(noise, x):
    """x = W z + b + noise has mean b and covariance W W' / alpha + Sigma: scipy scores it."""
    program = program_of(noise)
    m = numbers(program)

    expected = multivariate_normal(m.b, m.W @ m.W.T / m.alpha + m.C @ m.C.T).logpdf(x.numpy())

    np.testing.assert_allclose(program.log_evidence(x).detach(), expected, rtol=1e-10)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal", "full"])
def test_posterior_is_what_conditioning_the_joint_gaussian_gives(noise, x):
    """By blocks of the covariance of (z, x), where the model's own formula inverts precisions."""
    program = program_of(noise)
    m = numbers(program)
    gain = m.W.T / m.alpha @ np.linalg.inv(m.W @ m.W.T / m.alpha + m.C @ m.C.T)

    posterior = program.posterior(x)

    np.testing.assert_allclose(posterior.mean.detach(), (x.numpy() - m.b) @ gain.T, rtol=1e-9)
    expected = np.eye(2) / m.alpha - gain @ m.W / m.alpha
    for covariance in posterior.covariance_matrix.detach():
        np.testing.assert_allclose(covariance, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("noise", "posterior"), FORMS)
def test_evidence_is_the_bound_plus_the_divergence_from_the_posterior(noise, posterior, x):
    """Equation (1) of the paper, for guides drawn at random."""
    program = program_of(noise, posterior)

    divergence = kl_divergence(guide_of(program, x), program.posterior(x))

    assert divergence.min() > 0.01
    torch.testing.assert_close(
        program.elbo(x) + divergence, program.log_evidence(x), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("noise", ["isotropic", "diagonal", "full"])
def test_bound_is_the_evidence_at_the_exact_posterior(noise, x):
    program = program_of(noise)

    program.guide_is_exact_posterior()

    torch.testing.assert_close(program.elbo(x), program.log_evidence(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(program.guide_mean(x), program.posterior(x).mean)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal", "full"])
def test_best_diagonal_guide_misses_the_evidence_by_the_known_gap(noise, x):
    """Variances 1 / Lambda_jj, the exact mean, and nothing nearby that is better."""
    program = program_of(noise, "diagonal", spread=1.0)

    program.guide_is_best()

    precision = program.posterior_precision()
    variances = program.guide_noise.factor().diagonal() ** 2
    torch.testing.assert_close(variances, 1 / precision.diagonal())
    gap = (program.log_evidence(x) - program.elbo(x)).detach()
    torch.testing.assert_close(gap, program.diagonal_gap().detach().expand(9), rtol=1e-9, atol=1e-9)
    assert gap.min() > 1e-3
    at_best = program.elbo(x).sum()
    guide = [p for name, p in program.named_parameters() if name.startswith("guide")]
    for slope in torch.autograd.grad(at_best, guide):
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-9)
    with torch.no_grad():
        for parameter in guide:
            parameter.add_(0.01 * torch.randn_like(parameter))
    assert program.elbo(x).sum() < at_best


def test_gap_is_zero_exactly_when_the_precision_is_diagonal(x):
    """Orthogonal columns of W under isotropic noise; tilt one column, and it opens."""
    columns = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64)).Q * torch.tensor([2.0, 0.7])
    straight = linear_gaussian.build(5, weight=columns).double()
    tilted = linear_gaussian.build(5, weight=columns + 0.3 * columns.flip(1)).double()

    straight.guide_is_exact_posterior()

    assert straight.diagonal_gap().abs() < 1e-12
    torch.testing.assert_close(straight.elbo(x), straight.log_evidence(x))
    assert tilted.diagonal_gap() > 0.01
    with pytest.raises(ValueError, match=r"not diagonal.*guide_is_best"):
        tilted.guide_is_exact_posterior()


def test_divergence_is_no_symmetric_measure(x):
    """Conditional variances minimize KL(q || p), marginal ones KL(p || q), each alone."""
    posterior = program_of(spread=1.0).posterior(x[:1])
    precision = posterior.precision_matrix[0].detach()
    exact = MultivariateNormal(posterior.mean.detach(), precision_matrix=precision)

    def slopes(variances):
        variances = variances.clone().requires_grad_()
        q = MultivariateNormal(exact.mean, variances.diag())
        divergences = kl_divergence(q, exact).sum(), kl_divergence(exact, q).sum()
        return [torch.autograd.grad(d, variances, retain_graph=True)[0].abs() for d in divergences]

    exclusive, inclusive = slopes(1 / precision.diagonal())
    assert exclusive.max() < 1e-9 and inclusive.min() > 1e-2
    exclusive, inclusive = slopes(precision.inverse().diagonal())
    assert inclusive.max() < 1e-9 and exclusive.min() > 1e-2


def test_refused_covariance_leaves_the_guide_as_it_was(x):
    program = program_of(posterior="diagonal")
    before = {name: p.clone() for name, p in program.named_parameters()}

    with pytest.raises(ValueError, match="not diagonal"):
        program.guide_is_exact_posterior()

    for name, parameter in program.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_bound_stays_below_the_evidence_for_any_guide(x):
    for _ in range(50):
        program = program_of(spread=1.0)

        assert (program.elbo(x) < program.log_evidence(x)).all()


def test_guide_starts_at_the_prior(x):
    for posterior in ("diagonal", "full"):
        program = linear_gaussian.build(5, prior_precision=4.0, posterior=posterior).double()

        variances = program.guide_noise.factor().diagonal() ** 2

        torch.testing.assert_close(variances, torch.full((2,), 0.25, dtype=torch.float64))
        assert torch.equal(program.guide_mean(x), torch.zeros(9, 2, dtype=torch.float64))


def test_kl_to_the_standard_normal_is_the_papers_formula():
    """Appendix B: 1/2 sum (1 + log s^2 - m^2 - s^2) is -KL; zero at the prior, else positive."""
    mean, scale = torch.randn(9, 2).double(), torch.rand(9, 2).double() + 0.1
    prior = Independent(Normal(torch.zeros_like(mean), 1.0), 1)

    kl = kl_divergence(Independent(Normal(mean, scale), 1), prior)

    by_formula = -0.5 * (1 + (scale**2).log() - mean**2 - scale**2).sum(-1)
    torch.testing.assert_close(kl, by_formula, rtol=1e-12, atol=1e-12)
    assert kl.min() > 0
    assert kl_divergence(prior, prior).abs().max() == 0


def test_kl_between_full_gaussians_is_the_textbook_formula(oracle, x):
    """1/2 [tr(P^-1 Q) + d' P^-1 d - J + log |P| / |Q|], what the oracle's divergences rest on."""
    q, p = guide_of(oracle, x), oracle.posterior(x)
    inverse = p.covariance_matrix.inverse()
    d = p.mean - q.mean

    by_formula = 0.5 * (
        torch.einsum("bij,bji->b", inverse, q.covariance_matrix)
        + torch.einsum("bi,bij,bj->b", d, inverse, d)
        - 2
        + p.covariance_matrix.logdet()
        - q.covariance_matrix.logdet()
    )

    torch.testing.assert_close(kl_divergence(q, p), by_formula, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["isotropic", "diagonal", "full"])
def test_spread_holds_the_covariance_that_it_is_given(form):
    spread = linear_gaussian.Spread(3, form, scale=1.0).double()
    factor = torch.randn(3, 3, dtype=torch.float64).tril(-1) + torch.diag(torch.rand(3) + 0.5)
    covariance = {
        "isotropic": 0.3 * torch.eye(3, dtype=torch.float64),
        "diagonal": (factor.diagonal() ** 2).diag(),
        "full": factor @ factor.T,
    }[form]

    spread.set(covariance)

    torch.testing.assert_close(spread.factor() @ spread.factor().T, covariance)
    mean = torch.randn(4, 3, dtype=torch.float64)
    law = MultivariateNormal(mean, covariance)
    torch.testing.assert_close(spread.around(mean).log_prob(0.5 * mean), law.log_prob(0.5 * mean))


def test_wrong_options_name_what_is_expected():
    with pytest.raises(ValueError, match=r"weight has shape \(5, 3\), .* \(5, 2\)"):
        linear_gaussian.build(5, weight=torch.zeros(5, 3))
    with pytest.raises(ValueError, match='"diagonal" or "full"'):
        linear_gaussian.build(5, posterior="isotropic")
    with pytest.raises(ValueError, match='"isotropic", "diagonal" or "full"'):
        linear_gaussian.build(5, noise="low-rank")
    with pytest.raises(ValueError, match="expected a positive number"):
        linear_gaussian.build(5, prior_precision=0.0)
    with pytest.raises(ValueError, match="expected a whole number"):
        linear_gaussian.build(5, latent_dim=0)
    with pytest.raises(ValueError, match=r"noise_scale is 0\.0"):
        linear_gaussian.build(5, noise_scale=0.0)
    with pytest.raises(ValueError, match="above its floor"):
        linear_gaussian.build(5, noise_scale=1e-5)
