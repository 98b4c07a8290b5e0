"""IWAE and reweighted wake-sleep against gradients by hand, quadrature and enumeration."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax

from pyro_vae.densities.particles import densities
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.objectives import (
    AEVB,
    IWAE,
    DReG,
    Objective,
    ReweightedWakeSleep,
    StickingTheLanding,
)
from pyro_vae.objectives.base import EMPTY
from pyro_vae.objectives.weighting import normalized, weighted_bound

from .oracles import (
    CORNERS,
    Flips,
    LogisticRows,
    all_flips,
    assert_equal,
    fed,
    flips_tables,
    gradients,
    log_weights_by_hand,
    logistic_bound,
    logistic_evidence,
    logistic_k_bound,
    logistic_posterior,
    logistic_reweighted,
    logistic_sleep,
    nodes_of,
    parameter_gradients,
    sleep_by_hand,
    weighted_by_hand,
    z_scores,
)
from .test_linear_gaussian import FORMS, program_of

ROW = CORNERS[2]


def iwae(particles=5):
    """IWAE, of one particle without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyroVaeWarning)
        return IWAE(particles)


# --- mutants --------------------------------------------------------------------------------------


def pooled(log_w):
    """Weights normalized over particles *and* data, B times as large."""
    return log_w.detach().flatten().softmax(0).reshape(log_w.shape) * log_w.shape[1]


class PooledIWAE(Objective):
    """A mutant: one logarithm of the mean weight over draws and data."""

    def loss_per_datum(self, program, x):
        log_w = densities(program, x, 2).log_w
        return -log_w.logsumexp((0, 1)) * torch.ones(len(x), dtype=log_w.dtype)


class KLTooLarge(Objective):
    """A mutant: 1.05 times log q - log p(z) in the weights."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2)
        return -weighted_bound(d.log_likelihood + 1.05 * (d.log_prior - d.log_q))


class MeanOfLogs(Objective):
    """A mutant: the logarithm inside the mean, which is the ELBO."""

    def loss_per_datum(self, program, x):
        return -densities(program, x, 2).log_w.mean(0)


IWAE_MUTANTS = [PooledIWAE(), KLTooLarge(), MeanOfLogs()]


class PooledRWS(Objective):
    """A mutant: T1, weights over the whole batch."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2, reparameterize=False)
        return -(pooled(d.log_w) * (d.log_p + d.log_q)).sum(0)


class WeightsNotDetached(Objective):
    """A mutant: the weights carry gradient."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2, reparameterize=False)
        return -(d.log_w.softmax(0) * (d.log_p + d.log_q)).sum(0)


class DrawsNotDetached(Objective):
    """A mutant: the draws carry gradient, so log p reaches the guide."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2)
        return -(normalized(d.log_w) * (d.log_p + d.log_q)).sum(0)


class EvenWeights(Objective):
    """A mutant: no weights, so the guide learns from its own draws."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2, reparameterize=False)
        return -(d.log_p + d.log_q).mean(0)


RWS_MUTANTS = [PooledRWS(), WeightsNotDetached(), DrawsNotDetached(), EvenWeights()]


# --- given draws ----------------------------------------------------------------------------------


def weights_by_hand(program, x, eps):
    return softmax(log_weights_by_hand(program, x, eps), axis=0)


def check_iwae(objective, particles=2, noise="full", posterior="full"):
    """The total derivative of log w_k, path minus score, under softmax weights."""
    program = program_of(noise, posterior)
    x = torch.randn(9, 5, dtype=torch.float64)
    eps = torch.randn(particles, 9, 2, dtype=torch.float64)
    w = weights_by_hand(program, x, eps)

    expected = weighted_by_hand(program, x, eps, model=w, path=w, score=-w)

    assert_equal(gradients(program, objective, x, eps), expected)


@pytest.mark.parametrize("particles", [1, 2, 3, 4])
@pytest.mark.parametrize(("noise", "posterior"), FORMS)
def test_iwae_gradient_at_fixed_noise_is_the_one_by_hand(particles, noise, posterior):
    """Burda et al. (2016), equation (8), the score included."""
    check_iwae(iwae(particles), particles, noise, posterior)


@pytest.mark.parametrize("mutant", IWAE_MUTANTS)
def test_iwae_mutants_fail_at_fixed_noise(mutant):
    with pytest.raises(AssertionError, match="not close"):
        check_iwae(mutant)


def check_rws(objective, particles=2, insomnia=1.0, noise="full", posterior="full"):
    program = program_of(noise, posterior)
    x = torch.randn(9, 5, dtype=torch.float64)
    eps = torch.randn(particles, 9, 2, dtype=torch.float64)
    sleep = torch.randn(9, 2, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)
    w = weights_by_hand(program, x, eps)

    expected = weighted_by_hand(program, x, eps, model=w, path=0 * w, score=insomnia * w)
    asleep = sleep_by_hand(program, *sleep)
    for name, value in asleep.items():
        expected[name] = expected[name] + (1 - insomnia) * value

    draws = (eps, *sleep) if insomnia < 1 else (eps,)
    assert_equal(gradients(program, objective, x, *draws), expected)


@pytest.mark.parametrize(
    ("particles", "insomnia"), [(2, 1.0), (3, 1.0), (4, 0.4), (2, 0.0), (1, 0.0)]
)
@pytest.mark.parametrize(("noise", "posterior"), FORMS)
def test_rws_gradient_at_fixed_noise_is_the_one_by_hand(particles, insomnia, noise, posterior):
    """Wake for the model; for the guide wake, sleep, and the mixture of both."""
    objective = ReweightedWakeSleep(particles, insomnia)
    check_rws(objective, particles, insomnia, noise, posterior)


@pytest.mark.parametrize("mutant", RWS_MUTANTS)
def test_rws_mutants_fail_at_fixed_noise(mutant):
    with pytest.raises(AssertionError, match="not close"):
        check_rws(mutant)


@pytest.mark.parametrize("objective", [IWAE(3), ReweightedWakeSleep(3), DReG(3)])
def test_statistics_hold_the_k_sample_bound_and_the_effective_number_of_draws(objective, oracle, x):
    """By numpy; ``bound`` stays the ELBO's estimator A."""
    eps = torch.randn(3, 9, 2, dtype=torch.float64)
    log_w = log_weights_by_hand(oracle, x, eps)

    with fed(eps):
        _, stats = objective.terms(oracle, x, EMPTY)

    np.testing.assert_allclose(stats["bound_3"], logsumexp(log_w, axis=0) - math.log(3), rtol=1e-8)
    np.testing.assert_allclose(stats["ess"], 1 / (softmax(log_w, 0) ** 2).sum(0), rtol=1e-8)
    np.testing.assert_allclose(stats["bound"], log_w.mean(0), rtol=1e-8)
    assert not any(value.requires_grad for value in stats.values())


def test_iwae_gradient_of_the_model_is_that_of_the_wake_update(oracle, x):
    """Weights times grad log p: RWS ascends the K-sample bound in the model's parameters."""
    eps = torch.randn(4, 9, 2, dtype=torch.float64)
    bound = gradients(oracle, IWAE(4), x, eps)
    wake = gradients(oracle, ReweightedWakeSleep(4), x, eps)
    for name, value in bound.items():
        same = torch.allclose(value, wake[name], rtol=1e-8, atol=1e-8)
        assert same == (not name.startswith("guide")), name


# --- in expectation over the noise ----------------------------------------------------------------


def expected_gradient(objective, particles, nodes=60):
    """One row for each node of the product rule over K draws: a whole integral in one run."""
    program = LogisticRows()
    t, v = nodes_of(particles, nodes)
    return gradients(program, objective, ROW.expand(len(v), -1), t, weight=v)


def check_iwae_in_expectation(objective, particles=2):
    program = LogisticRows()
    value = -logistic_k_bound(program, ROW, particles)
    got = expected_gradient(objective, particles)
    assert_equal(got, parameter_gradients(value, program))


@pytest.mark.parametrize("particles", [1, 2])
def test_iwae_expected_gradient_is_that_of_the_k_sample_bound(particles):
    check_iwae_in_expectation(iwae(particles), particles)


@pytest.mark.parametrize("mutant", [KLTooLarge(), MeanOfLogs()])
def test_iwae_mutants_fail_in_expectation(mutant):
    with pytest.raises(AssertionError, match="not close"):
        check_iwae_in_expectation(mutant)


def wake_gradient(program, particles):
    return parameter_gradients(-sum(logistic_reweighted(program, ROW, particles)), program)


def test_rws_expected_gradient_is_its_own_of_k_draws_and_not_the_posteriors():
    """Self-normalized weights are biased for the posterior, less so with more draws."""
    program = LogisticRows()
    exact = parameter_gradients(-sum(logistic_posterior(program, ROW)), program)
    got = expected_gradient(ReweightedWakeSleep(2), 2)

    assert_equal(got, wake_gradient(program, 2))
    away = {k: max(float((wake_gradient(program, k)[n] - exact[n]).abs().max()) for n in exact)
            for k in (2, 3)}  # fmt: skip
    assert 0.1 < away[3] < 0.95 * away[2]


@pytest.mark.parametrize("mutant", [WeightsNotDetached(), DrawsNotDetached(), EvenWeights()])
def test_rws_mutants_fail_in_expectation(mutant):
    with pytest.raises(AssertionError, match="not close"):
        assert_equal(expected_gradient(mutant, 2), wake_gradient(LogisticRows(), 2))


def test_fact_34_iwae_is_monotone_in_k_and_of_one_particle_the_elbo():
    """L_1 = ELBO < L_2 < L_3 < L_4 < log p(x), each an integral over all K draws."""
    program = LogisticRows()
    found = []
    for particles, nodes in ((1, 60), (2, 60), (3, 30), (4, 16)):
        t, v = nodes_of(particles, nodes)
        with fed(t), torch.no_grad():
            loss, _ = iwae(particles).terms(program, ROW.expand(len(v), -1), EMPTY)
        found.append(float(-(v @ loss)))
    limit = logistic_evidence(program, ROW).item()
    assert found[0] == pytest.approx(logistic_bound(program, ROW).item(), abs=1e-9)
    gains = np.diff([*found, limit])
    assert (gains > 1e-3).all(), (found, limit)


def test_iwae_bound_tends_to_the_evidence(oracle, x):
    """From below on average, and closer for each hundredfold K; log p(x) in closed form."""
    with torch.no_grad():
        oracle.guide_is_best()
        oracle.guide_noise.log_variance.add_(0.5)  # wider than the posterior: bounded weights
        exact = oracle.log_evidence(x)
        misses = [
            float((exact + iwae(k).terms(oracle, x, EMPTY)[0]).mean()) for k in (1, 100, 10_000)
        ]
    assert misses[0] > 0.02
    assert abs(misses[1]) < 0.3 * misses[0]
    assert abs(misses[2]) < 0.005


def test_fact_34_iwae_with_one_particle_is_estimator_a(oracle, x):
    """Value and gradients at the same noise; and it says what it is."""
    eps = torch.randn(1, 9, 2, dtype=torch.float64)
    with pytest.warns(PyroVaeWarning, match=r'IWAE with one particle is AEVB\("A"\)'):
        one = IWAE(1)
    assert_equal(gradients(oracle, one, x, eps), gradients(oracle, AEVB("A"), x, eps), 1e-10)


def test_fact_36_exact_posterior_is_a_fixed_point_of_rws_and_its_sleep(oracle, x):
    """Wake: even weights, so a score whose mean is 0; sleep: the joint, by products of nodes."""
    oracle.guide_is_exact_posterior()
    grid = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 7)
    zeros = torch.zeros(len(grid), 5, dtype=torch.float64)
    unused = torch.zeros(1, len(grid), 2, dtype=torch.float64)
    sleep = ReweightedWakeSleep(1, insomnia=0.0)
    found = gradients(oracle, sleep, zeros, unused, grid[:, :2], grid[:, 2:])
    pairs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4)  # K = J = 2
    rows = x[:1].expand(len(pairs), -1)
    draws = pairs.reshape(-1, 2, 2).transpose(0, 1)
    awake = gradients(oracle, ReweightedWakeSleep(2), rows, draws)
    moved = gradients(oracle, ReweightedWakeSleep(2), rows[:1], draws[:, :1])
    for name in (name for name in found if name.startswith("guide")):
        assert found[name].abs().max() / len(grid) < 1e-9, name
        assert awake[name].abs().max() / len(pairs) < 1e-9, name
    assert moved["guide_bias"].abs().max() > 0.1


# --- discrete latents -----------------------------------------------------------------------------

SEEN = torch.tensor([0.7, -0.4], dtype=torch.float64)


def enumerated(program, particles):
    """E sum_k w_k (log p + log q) over all K-tuples of states, weights held."""
    log_p, log_q = flips_tables(program, SEEN)
    which, _, probability = all_flips(program, SEEN, particles)
    weights = (log_p - log_q).detach()[which].softmax(0)
    return probability @ (weights * (log_p + log_q)[which]).sum(0)


@pytest.mark.parametrize("particles", [2, 3])
def test_rws_gradient_with_discrete_latents_is_the_enumerated_one(particles):
    program = Flips()
    _, uniform, probability = all_flips(program, SEEN, particles)
    rows = SEEN.expand(len(probability), -1)
    got = gradients(program, ReweightedWakeSleep(particles), rows, uniform, weight=probability)
    assert_equal(got, parameter_gradients(-enumerated(program, particles), program))


def test_rws_bias_with_discrete_latents_falls_as_one_over_k():
    """Against the posterior over the four states."""
    program = Flips()
    log_p, log_q = flips_tables(program, SEEN)
    exact = parameter_gradients(-(log_p.detach().softmax(0) @ (log_p + log_q)), program)

    def bias(particles):
        got = parameter_gradients(-enumerated(program, particles), program)
        return torch.cat([(got[n] - exact[n]).flatten() for n in exact]).norm()

    assert bias(3) > 0.01
    for few, many in ((2, 4), (3, 6)):
        assert 1.5 < bias(few) / bias(many) < 3.0


@pytest.mark.parametrize(
    "objective", [AEVB("A"), AEVB("B"), IWAE(2), StickingTheLanding(), DReG(2)]
)
def test_guide_without_rsample_is_refused_with_an_objective_that_takes_it(objective):
    """T3: elsewhere its gradient is zero without a word."""
    x = SEEN.expand(3, -1)
    with pytest.raises(ValueError, match=r'site "z" has the guide .*ScoreFunction\(\)'):
        objective.terms(Flips(), x, EMPTY)


# --- statistics -----------------------------------------------------------------------------------


def worst_score(objective, expected, rows=20_000):
    return z_scores(LogisticRows(rows), objective, ROW, expected).max()


@pytest.mark.parametrize("particles", [1, 2])
def test_iwae_gradient_is_unbiased_for_the_k_sample_bound(particles):
    one = LogisticRows()
    expected = parameter_gradients(-logistic_k_bound(one, ROW, particles), one)
    assert worst_score(iwae(particles), expected) < 4.5


@pytest.mark.parametrize("mutant", IWAE_MUTANTS)
def test_iwae_mutants_are_biased(mutant):
    one = LogisticRows()
    assert worst_score(mutant, parameter_gradients(-logistic_k_bound(one, ROW, 2), one)) > 4.5


@pytest.mark.parametrize("insomnia", [1.0, 0.4, 0.0])
def test_rws_gradient_is_unbiased_for_its_own_expectation(insomnia):
    """E of the weighted terms at K = 2, and the sleep phase over all dreams."""
    one = LogisticRows()
    wake, guide = logistic_reweighted(one, ROW, 2)
    total = -wake - insomnia * guide - (1 - insomnia) * logistic_sleep(one)
    expected = parameter_gradients(total, one)
    assert worst_score(ReweightedWakeSleep(2, insomnia), expected) < 4.5


def test_rws_gradient_at_two_draws_is_biased_for_the_posterior():
    one = LogisticRows()
    exact = parameter_gradients(-sum(logistic_posterior(one, ROW)), one)
    assert worst_score(ReweightedWakeSleep(2), exact) > 4.5


@pytest.mark.parametrize("mutant", RWS_MUTANTS)
def test_rws_mutants_are_biased(mutant):
    assert worst_score(mutant, wake_gradient(LogisticRows(), 2)) > 4.5


def test_rws_with_discrete_latents_is_unbiased_for_its_own_expectation():
    program = Flips()
    expected = parameter_gradients(-enumerated(program, 2), program)
    assert z_scores(Flips(20_000), ReweightedWakeSleep(2), SEEN, expected).max() < 4.5
