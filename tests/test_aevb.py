"""AEVB against gradients written by hand, quadrature and closed forms."""

import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import softplus

from pyro_vae.densities.particles import densities
from pyro_vae.models import linear_gaussian, logistic_lvm
from pyro_vae.objectives import AEVB, Objective
from pyro_vae.objectives.base import EMPTY

from .oracles import (
    CORNERS,
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


class KLTooLarge(Objective):
    """A mutant of B: 1.05 times the KL term."""

    def loss_per_datum(self, program, x):
        d = densities(program, x)
        return 1.05 * d.kl["z"] - d.log_likelihood.mean(0)


class EntropyHeld(Objective):
    """A mutant of A: log q is detached, so nothing keeps the guide from shrinking."""

    def loss_per_datum(self, program, x):
        d = densities(program, x)
        return d.log_q.detach().mean(0) - d.log_p.mean(0)


class NotReparameterized(Objective):
    """A mutant of B: the draws carry no gradient, so the likelihood never reaches the guide."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, reparameterize=False)
        return d.kl["z"] - d.log_likelihood.mean(0)


class PooledWeights(Objective):
    """A mutant of A: its terms weighted by importance weights normalized over the batch."""

    def loss_per_datum(self, program, x):
        d = densities(program, x)
        weights = d.log_w.detach().flatten().softmax(0).reshape(d.log_w.shape) * d.log_w.numel()
        return -(weights * d.log_w).mean(0)


MUTANTS = [
    (KLTooLarge(), "B"),
    (EntropyHeld(), "A"),
    (NotReparameterized(), "B"),
    (PooledWeights(), "A"),
]


# --- no noise in it: given draws, and integrals over them -----------------------------------------


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
    check_at_fixed_noise(AEVB(estimator, particles), estimator, particles, noise, posterior)


@pytest.mark.parametrize(("mutant", "estimator"), MUTANTS)
def test_mutants_fail_at_fixed_noise(mutant, estimator):
    with pytest.raises(AssertionError, match="not close"):
        check_at_fixed_noise(mutant, estimator)


def bound_by_quadrature(program, x, nodes=160):
    """The ELBO of a logistic program with one latent, (B,), in plain algebra."""
    t, v = hermite(nodes)
    first, _, second = program.encoder.network
    hidden = (x @ first.weight.T + first.bias).tanh()
    mean, log_variance = (hidden @ second.weight.T + second.bias).T
    variance = log_variance.exp() + program.encoder.floor**2
    z = mean + variance.sqrt() * t[:, None]  # (M, B)
    logits = z[..., None] * program.weight[:, 0] + program.bias
    fit = v @ (x * logits - softplus(logits)).sum(-1)
    alpha = program.prior.precision
    return fit + 0.5 * (1 + (alpha * variance).log() - alpha * (mean**2 + variance))


def check_in_expectation(objective):
    """Rows of x repeat for each node of the quadrature, so that one run is a whole integral."""
    program = logistic_lvm.build(2, hidden_dim=3, prior_precision=1.5).double()
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.normal_(0.0, 0.7)
    t, v = hermite(80)
    x = CORNERS.repeat(len(t), 1)

    got = gradients(program, objective, x, t.repeat_interleave(4), weight=v.repeat_interleave(4))

    expected = parameter_gradients(-bound_by_quadrature(program, CORNERS).sum(), program)
    assert_equal(got, expected)


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_expected_gradient_is_that_of_the_bound(estimator):
    """A likelihood that is not conjugate, and a guide with a hidden layer."""
    check_in_expectation(AEVB(estimator))


@pytest.mark.parametrize("mutant", [mutant for mutant, _ in MUTANTS])
def test_mutants_fail_in_expectation(mutant):
    with pytest.raises(AssertionError, match="not close"):
        check_in_expectation(mutant)


def test_value_of_estimator_a_has_no_variance_at_the_exact_posterior(oracle, x):
    """log p(x, z) - log p(z | x) is log p(x) for every z; estimator B keeps its noise."""
    oracle.guide_is_exact_posterior()
    evidence = oracle.log_evidence(x)

    for _ in range(5):
        loss, stats = AEVB("A").terms(oracle, x, EMPTY)
        torch.testing.assert_close(-loss, evidence, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(stats["bound"], evidence.detach(), rtol=1e-10, atol=1e-10)
    loss, _ = AEVB("B").terms(oracle, x, EMPTY)
    assert (loss + evidence).abs().min() > 1e-3


@pytest.mark.parametrize(
    ("estimator", "of_value", "of_gradient"), [("A", 0.0, 2.0), ("B", 0.25, 0.5)]
)
def test_neither_estimator_has_less_variance_as_a_law(estimator, of_value, of_gradient):
    """x = 1, prior and noise N(0, 1), guide at the posterior N(1/2, 1/2), all by quadrature.

    B = const - (1 - z)^2 / 2 with 1 - z ~ N(1/2, 1/2) has variance 1/4; its slope along the mean
    is (1 - z) - 1/2, that of A is 1 - 2 z.
    """
    program = linear_gaussian.build(1, latent_dim=1, weight=torch.ones(1, 1)).double()
    program.guide_is_exact_posterior()
    t, v = hermite(20)
    x = torch.ones(20, 1, dtype=torch.float64)

    slopes = [gradients(program, AEVB(estimator), x[:1], node)["guide_bias"] for node in t]
    with fed(t):
        values = -AEVB(estimator).terms(program, x, EMPTY)[0].detach()

    for draws, expected in ((values, of_value), (torch.cat(slopes), of_gradient)):
        assert abs(v @ draws**2 - (v @ draws) ** 2 - expected) < 1e-7


def test_estimators_agree_draw_by_draw_where_the_guide_is_the_prior(x):
    """There log q and log p(z) cancel in A, and the KL of B is zero."""
    torch.set_default_dtype(torch.float64)
    for posterior in ("diagonal", "full"):
        program = linear_gaussian.build(5, posterior=posterior)
        eps = torch.randn(9, 2, dtype=torch.float64)

        with fed(eps):
            a, _ = AEVB("A").terms(program, x, EMPTY)
        with fed(eps):
            b, _ = AEVB("B").terms(program, x, EMPTY)

        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_expected_value_is_the_bound_in_closed_form(estimator, oracle, x):
    """A product rule over both latents: every term is quadratic in the noise."""
    t, v = hermite(4)
    eps, weight = torch.cartesian_prod(t, t), torch.cartesian_prod(v, v).prod(-1)
    rows = x.repeat_interleave(16, 0)

    with fed(eps.repeat(9, 1)):
        loss, _ = AEVB(estimator).terms(oracle, rows, EMPTY)

    torch.testing.assert_close(-loss.reshape(9, 16) @ weight, oracle.elbo(x), rtol=1e-9, atol=1e-9)


def test_several_particles_are_the_mean_of_single_ones(oracle, x):
    """Loss, gradients and statistics at the same noise."""
    eps = torch.randn(3, 9, 2, dtype=torch.float64)
    for estimator in ("A", "B"):
        single = [gradients(oracle, AEVB(estimator), x, e) for e in eps]

        together = gradients(oracle, AEVB(estimator, 3), x, eps)

        mean = {name: sum(g[name] for g in single) / 3 for name in together}
        assert_equal(together, mean, tolerance=1e-10)
        with fed(eps):
            _, stats = AEVB(estimator, 3).terms(oracle, x, EMPTY)
        singles = []
        for e in eps:
            with fed(e):
                singles.append(AEVB(estimator).terms(oracle, x, EMPTY)[1])
        assert_equal(stats, {name: sum(s[name] for s in singles) / 3 for name in stats}, 1e-10)


def test_statistics_are_nats_per_datum_of_known_sign(oracle, x):
    """The bound is minus the loss, the KL the textbook's, the reconstruction log p(x | z)."""
    eps = torch.randn(9, 2, dtype=torch.float64)
    m = numbers(oracle)
    mean, covariance = x.numpy() @ m.A.T + m.c, torch.tensor(m.L @ m.L.T)

    with fed(eps):
        loss, stats = AEVB("B").terms(oracle, x, EMPTY)

    assert set(stats) == {"bound", "reconstruction", "kl.z"}
    assert not any(value.requires_grad for value in stats.values())
    torch.testing.assert_close(stats["bound"], -loss.detach())
    torch.testing.assert_close(stats["bound"], stats["reconstruction"] - stats["kl.z"])
    squares = covariance.trace() + torch.tensor(mean**2).sum(-1)
    kl = 0.5 * (m.alpha * squares - 2 - 2 * torch.tensor(m.alpha).log() - covariance.logdet())
    torch.testing.assert_close(stats["kl.z"], kl, rtol=1e-8, atol=1e-8)
    z = torch.tensor(mean) + eps @ torch.tensor(m.L.T)
    fit = z.numpy() @ m.W.T + m.b
    law = dist.MultivariateNormal(torch.tensor(fit), torch.tensor(m.C @ m.C.T))
    torch.testing.assert_close(stats["reconstruction"], law.log_prob(x), rtol=1e-8, atol=1e-8)


# --- statistics -----------------------------------------------------------------------------------

ROW = torch.tensor([1.0, 0.0], dtype=torch.float64)


def worst_score(objective, rows=20_000):
    one = LogisticRows()
    expected = parameter_gradients(-logistic_bound(one, ROW), one)
    return z_scores(LogisticRows(rows), objective, ROW, expected).max()


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_gradient_is_unbiased(estimator):
    """20,000 independent draws of it, one per row, against quadrature."""
    assert worst_score(AEVB(estimator)) < 4.5


@pytest.mark.parametrize("mutant", [mutant for mutant, _ in MUTANTS])
def test_mutants_are_biased(mutant):
    assert worst_score(mutant) > 4.5
