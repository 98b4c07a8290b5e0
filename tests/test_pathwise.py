"""Sticking the landing and DReG: the path through the draws by hand, by quadrature, and in law."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import softmax
from torch import nn

from pyro_vae.densities.particles import densities
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.objectives import AEVB, IWAE, DReG, Objective, StickingTheLanding
from pyro_vae.objectives.base import EMPTY
from pyro_vae.objectives.pathwise import surrogate
from pyro_vae.objectives.weighting import normalized
from pyro_vae.program.base import Program

from .oracles import (
    CORNERS,
    LogisticRows,
    assert_equal,
    fed,
    gradients,
    log_weights_by_hand,
    logistic_bound,
    logistic_k_bound,
    nodes_of,
    parameter_gradients,
    weighted_by_hand,
    z_scores,
)
from .test_linear_gaussian import FORMS, program_of

ROW = CORNERS[2]


def dreg(particles=5):
    """DReG, of one particle without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyroVaeWarning)
        return DReG(particles)


# --- mutants --------------------------------------------------------------------------------------


class ScoreLeftIn(Objective):
    """A mutant of STL: estimator A.  Its mean is right, and given draws betray it."""

    def loss_per_datum(self, program, x):
        return -densities(program, x, 2).log_w.mean(0)


class PathOfLogP(Objective):
    """A mutant of STL: log q is held altogether, so nothing keeps the guide from shrinking."""

    def loss_per_datum(self, program, x):
        return -densities(program, x, 2).log_p.mean(0)


class KLTooLarge(Objective):
    """A mutant of STL: 1.05 times log q - log p(z)."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2, detach_guide=True)
        return -(d.log_likelihood + 1.05 * (d.log_prior - d.log_q)).mean(0)


class PooledSTL(Objective):
    """A mutant of STL: weights over draws and data."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2, detach_guide=True)
        weights = d.log_w.detach().flatten().softmax(0).reshape(d.log_w.shape) * d.log_w.shape[1]
        return -(weights * d.log_w).sum(0)


class FirstPowers(Objective):
    """A mutant of DReG: the weights, not their squares, on the path."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2, pathwise=True)
        return -surrogate(d, normalized(d.log_w), normalized(d.log_w))


class SquaresWithScore(Objective):
    """A mutant of DReG: squared weights on the total derivative, the score left in."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2)
        w = normalized(d.log_w)
        return -(w * d.log_p + w.square() * d.log_w - w.square() * d.log_p.detach()).sum(0)


class SquaresNotDetached(Objective):
    """A mutant of DReG: the weights carry gradient."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2, pathwise=True)
        w = d.log_w.softmax(0)
        return -surrogate(d, w, w.square())


class SquaresPooled(Objective):
    """A mutant of DReG: weights over draws and data."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2, pathwise=True)
        w = d.log_w.detach().flatten().softmax(0).reshape(d.log_w.shape) * d.log_w.shape[1]
        return -surrogate(d, w, w.square())


STL_MUTANTS = [PathOfLogP(), KLTooLarge(), PooledSTL()]
DREG_MUTANTS = [FirstPowers(), SquaresWithScore(), SquaresNotDetached(), SquaresPooled()]


# --- given draws ----------------------------------------------------------------------------------


def check_at_fixed_noise(objective, kind, particles=2, noise="full", posterior="full"):
    program = program_of(noise, posterior)
    x = torch.randn(9, 5, dtype=torch.float64)
    eps = torch.randn(particles, 9, 2, dtype=torch.float64)
    w = softmax(log_weights_by_hand(program, x, eps), axis=0)
    even = 0 * w + 1 / particles
    model, path = (even, even) if kind == "STL" else (w, w**2)

    expected = weighted_by_hand(program, x, eps, model=model, path=path, score=0 * w)

    assert_equal(gradients(program, objective, x, eps), expected)


@pytest.mark.parametrize("particles", [1, 2, 3, 4])
@pytest.mark.parametrize(("noise", "posterior"), FORMS)
def test_stl_gradient_at_fixed_noise_is_the_one_by_hand(particles, noise, posterior):
    check_at_fixed_noise(StickingTheLanding(particles), "STL", particles, noise, posterior)


@pytest.mark.parametrize("particles", [1, 2, 3, 4])
@pytest.mark.parametrize(("noise", "posterior"), FORMS)
def test_dreg_gradient_at_fixed_noise_is_the_one_by_hand(particles, noise, posterior):
    """Tucker et al. (2019), equation (8): squared weights on the path, weights on log p."""
    check_at_fixed_noise(dreg(particles), "DReG", particles, noise, posterior)


@pytest.mark.parametrize("mutant", [ScoreLeftIn(), *STL_MUTANTS])
def test_stl_mutants_fail_at_fixed_noise(mutant):
    with pytest.raises(AssertionError, match="not close"):
        check_at_fixed_noise(mutant, "STL")


@pytest.mark.parametrize("mutant", DREG_MUTANTS)
def test_dreg_mutants_fail_at_fixed_noise(mutant):
    with pytest.raises(AssertionError, match="not close"):
        check_at_fixed_noise(mutant, "DReG")


@pytest.mark.parametrize("particles", [1, 3])
def test_stl_is_estimator_a_less_the_score_of_the_guide(particles, oracle, x):
    """And equal to it in value and columns."""
    eps = torch.randn(particles, 9, 2, dtype=torch.float64)
    a = gradients(oracle, AEVB("A", particles), x, eps)
    with fed(eps):
        d = densities(oracle, x, particles, reparameterize=False)
    score = parameter_gradients(d.log_q.mean(0).sum(), oracle)

    stl = gradients(oracle, StickingTheLanding(particles), x, eps)

    assert score["guide_bias"].abs().max() > 0.1
    assert_equal(stl, {name: a[name] - score[name] for name in a}, tolerance=1e-10)
    found = []
    for objective in (AEVB("A", particles), StickingTheLanding(particles)):
        with fed(eps):
            loss, stats = objective.terms(oracle, x, EMPTY)
        found.append({"loss": loss.detach(), **stats})
    assert_equal(*found, tolerance=1e-10)


def test_value_and_columns_of_dreg_are_those_of_iwae(oracle, x):
    eps = torch.randn(3, 9, 2, dtype=torch.float64)
    found = []
    for objective in (IWAE(3), DReG(3)):
        with fed(eps):
            loss, stats = objective.terms(oracle, x, EMPTY)
        found.append({"loss": loss.detach(), **{n: v.detach() for n, v in stats.items()}})
    assert_equal(*found, tolerance=1e-10)


def test_dreg_with_one_particle_is_sticking_the_landing(oracle, x):
    """Gradients at the same noise; and it says so."""
    eps = torch.randn(1, 9, 2, dtype=torch.float64)
    with pytest.warns(PyroVaeWarning, match=r"DReG with one particle is StickingTheLanding\(\)"):
        one = DReG(1)
    assert_equal(gradients(oracle, one, x, eps), gradients(oracle, StickingTheLanding(), x, eps))


@pytest.mark.parametrize("objective", [StickingTheLanding(), StickingTheLanding(3), DReG(3)])
def test_fact_15_gradient_of_the_guide_is_zero_at_the_exact_posterior(objective, oracle, x):
    """Draw by draw, for any noise; estimator A's and IWAE's are not."""
    oracle.guide_is_exact_posterior()
    eps = 3 * torch.randn(objective.num_particles, 9, 2, dtype=torch.float64)
    plain = gradients(oracle, AEVB("A", objective.num_particles), x, eps)
    for name, value in gradients(oracle, objective, x, eps).items():
        if name.startswith("guide"):
            assert value.abs().max() < 1e-9, name
            assert plain[name].abs().max() > 0.01, name
        else:
            assert value.abs().max() > 0.01, name


# --- in expectation over the noise ----------------------------------------------------------------


def check_in_expectation(objective, value, particles=2, nodes=60):
    """One row for each node of the product rule over K draws: a whole integral in one run."""
    program = LogisticRows()
    t, v = nodes_of(particles, nodes)
    got = gradients(program, objective, ROW.expand(len(v), -1), t, weight=v)
    assert_equal(got, parameter_gradients(-value(program), program))


def elbo(program):
    return logistic_bound(program, ROW)


def two_sample_bound(program):
    return logistic_k_bound(program, ROW, 2)


@pytest.mark.parametrize("particles", [1, 2])
def test_fact_15_stl_expected_gradient_is_that_of_the_elbo(particles):
    check_in_expectation(StickingTheLanding(particles), elbo, particles)


def test_dreg_expected_gradient_is_that_of_the_k_sample_bound():
    """The identity of the paper's appendix: a score under weights is a path under their squares."""
    check_in_expectation(DReG(2), two_sample_bound)


@pytest.mark.parametrize("mutant", [PathOfLogP(), KLTooLarge()])
def test_stl_mutants_fail_in_expectation(mutant):
    with pytest.raises(AssertionError, match="not close"):
        check_in_expectation(mutant, elbo)


@pytest.mark.parametrize("mutant", [FirstPowers(), SquaresWithScore(), SquaresNotDetached()])
def test_dreg_mutants_fail_in_expectation(mutant):
    with pytest.raises(AssertionError, match="not close"):
        check_in_expectation(mutant, two_sample_bound)


def signal_to_noise(objective, rows=4000):
    """|mean| / sd of the gradient in the guide's own offset."""
    program = LogisticRows(rows)
    with torch.no_grad():
        program.log_scale.zero_()  # wider than the posterior, so that the weights are bounded
    loss, _ = objective.terms(program, ROW.expand(rows, -1), EMPTY)
    (draws,) = torch.autograd.grad(loss.sum(), [program.offset])
    return float(draws.mean().abs() / draws.std())


def test_signal_of_dreg_rises_with_k_where_that_of_iwae_falls():
    """Rainforth et al. (2018) and Tucker et al. (2019): like 1 / sqrt(K), and like sqrt(K).

    With a guide narrower than the posterior, whose weights have heavy tails, both fall.
    """
    few, many = signal_to_noise(IWAE(4)), signal_to_noise(IWAE(64))
    assert many < 0.6 * few
    few, many = signal_to_noise(DReG(4)), signal_to_noise(DReG(64))
    assert many > 1.5 * few


# --- statistics -----------------------------------------------------------------------------------


def worst_score(objective, value, rows=20_000):
    one = LogisticRows()
    expected = parameter_gradients(-value(one), one)
    return z_scores(LogisticRows(rows), objective, ROW, expected).max()


@pytest.mark.parametrize("particles", [1, 2])
def test_fact_15_stl_gradient_is_unbiased_for_the_elbo(particles):
    assert worst_score(StickingTheLanding(particles), elbo) < 4.5


def test_dreg_gradient_is_unbiased_for_the_k_sample_bound():
    assert worst_score(DReG(2), two_sample_bound) < 4.5


@pytest.mark.parametrize("mutant", STL_MUTANTS)
def test_stl_mutants_are_biased(mutant):
    assert worst_score(mutant, elbo) > 4.5


@pytest.mark.parametrize("mutant", DREG_MUTANTS)
def test_dreg_mutants_are_biased(mutant):
    assert worst_score(mutant, two_sample_bound) > 4.5


class MovingEdges(Program):
    """A guide whose support moves: its score has the mean 1 / width at the edges, not zero."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.tensor(0.2))
        self.width = nn.Parameter(torch.tensor(1.0))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(self.place * x - self.width, self.place * x + self.width))


@pytest.mark.parametrize("objective", [StickingTheLanding(), StickingTheLanding(3), dreg(3)])
def test_a_guide_whose_support_moves_is_refused(objective):
    x = torch.randn(4)
    with pytest.raises(ValueError, match=r'"z" has the guide Uniform, whose support moves'):
        objective.terms(MovingEdges(), x, EMPTY)
    AEVB("A").terms(MovingEdges(), x, EMPTY)
