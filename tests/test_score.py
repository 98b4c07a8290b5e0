"""The score-function gradient: by hand, by quadrature and enumeration, and in law."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.densities.particles import densities
from pyro_vae.models import linear_gaussian
from pyro_vae.objectives import AEVB, Autoencoder, Objective, ReweightedWakeSleep, ScoreFunction
from pyro_vae.objectives.base import EMPTY, State
from pyro_vae.program.base import Program

from .oracles import (
    CORNERS,
    Flips,
    LogisticRows,
    SubsampledRows,
    all_flips,
    assert_equal,
    fed,
    flips_tables,
    gradients,
    log_weights_by_hand,
    logistic_bound,
    nodes_of,
    parameter_gradients,
    weighted_by_hand,
    z_scores,
)
from .programs import Placed
from .test_linear_gaussian import FORMS, program_of

ROW = CORNERS[2]
SEEN = torch.tensor([0.7, -0.4], dtype=torch.float64)


def running(value, weight):
    """A state of ScoreFunction whose baseline is value / weight."""
    numbers = {"baseline": value, "baseline_weight": weight}
    return State({}, {n: torch.tensor(v, dtype=torch.float64) for n, v in numbers.items()})


# --- the score function ---------------------------------------------------------------------------


class FNotDetached(Objective):
    """A mutant: f carries gradient, so log q enters twice."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2, reparameterize=False)
        f = d.log_w
        return -(d.log_p + (f - f.flip(0)) * d.log_q).mean(0)


class BaselineWithItself(Objective):
    """A mutant: the baseline is the mean of all draws, the one that it is for among them."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2, reparameterize=False)
        f = d.log_w.detach()
        return -(d.log_p + (f - f.mean(0)) * d.log_q).mean(0)


class KLTooLarge(Objective):
    """A mutant: 1.05 times log q - log p(z) in f."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2, reparameterize=False)
        f = (d.log_likelihood + 1.05 * (d.log_prior - d.log_q)).detach()
        return -(d.log_p + (f - f.flip(0)) * d.log_q).mean(0)


class NoScore(Objective):
    """A mutant: detached draws and no score, so the guide learns nothing (T3)."""

    def loss_per_datum(self, program, x):
        return -densities(program, x, 2, reparameterize=False).log_p.mean(0)


class PooledScore(Objective):
    """A mutant: weights over draws and data."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2, reparameterize=False)
        f = d.log_w.detach()
        weights = f.flatten().softmax(0).reshape(f.shape) * f.shape[1]
        return -(weights * (d.log_p + (f - f.flip(0)) * d.log_q)).sum(0)


SCORE_MUTANTS = [FNotDetached(), BaselineWithItself(), KLTooLarge(), NoScore(), PooledScore()]


def check_score(objective, particles=2, state=None, baseline=0.0, noise="full", posterior="full"):
    """f - b times the score, b the mean of the other draws, or the given running mean."""
    program = program_of(noise, posterior)
    x = torch.randn(9, 5, dtype=torch.float64)
    eps = torch.randn(particles, 9, 2, dtype=torch.float64)
    f = log_weights_by_hand(program, x, eps)
    if particles > 1:
        baseline = np.stack([np.delete(f, k, 0).mean(0) for k in range(particles)])
    even = 0 * f + 1 / particles

    expected = weighted_by_hand(
        program, x, eps, model=even, path=0 * f, score=even * (f - baseline)
    )

    assert_equal(gradients(program, objective, x, eps, state=state), expected)


@pytest.mark.parametrize("particles", [2, 3, 4])
@pytest.mark.parametrize(("noise", "posterior"), FORMS)
def test_score_gradient_at_fixed_noise_has_the_leave_one_out_baseline(particles, noise, posterior):
    check_score(ScoreFunction(particles), particles, noise=noise, posterior=posterior)


@pytest.mark.parametrize(
    ("state", "baseline"), [(None, 0.0), (running(-3.0, 0.5), -6.0), (running(0.0, 0.0), 0.0)]
)
def test_score_gradient_of_one_draw_at_fixed_noise_has_the_running_baseline(state, baseline):
    """Before the first step it is zero, without a division by zero."""
    check_score(ScoreFunction(), 1, state, baseline)


@pytest.mark.parametrize("mutant", SCORE_MUTANTS)
def test_score_mutants_fail_at_fixed_noise(mutant):
    with pytest.raises(AssertionError, match="not close"):
        check_score(mutant)


def test_value_and_columns_of_the_score_function_are_estimator_a(oracle, x):
    eps = torch.randn(3, 9, 2, dtype=torch.float64)
    found = []
    for objective in (AEVB("A", 3), ScoreFunction(3)):
        with fed(eps):
            loss, stats = objective.terms(oracle, x, EMPTY)
        found.append({"loss": loss.detach(), **stats})
    assert_equal(*found, tolerance=1e-10)


def test_running_baseline_is_the_mean_of_the_bounds_so_far_with_decaying_weights():
    """Weights 1, d, d^2, ... from the last one back, normalized: no pull towards the start."""
    objective = ScoreFunction(baseline_decay=0.8)
    shared = objective.init(LogisticRows(), CORNERS).shared
    assert all(value.dtype == torch.float64 for value in shared.values())
    bounds = [-4.0, -2.0, -7.0, 1.0]
    for count in range(1, 5):
        mean = {"bound": torch.tensor(bounds[count - 1], dtype=torch.float64)}
        shared = objective.advance(shared, mean)
        expected = np.average(bounds[:count], weights=0.8 ** np.arange(count)[::-1])
        assert float(shared["baseline"] / shared["baseline_weight"]) == pytest.approx(expected)
    assert ScoreFunction(2).init(LogisticRows(), CORNERS) == EMPTY
    assert ScoreFunction(2).advance({}, {}) == {}


def test_svi_moves_the_running_baseline(oracle, x):
    """The second step's gradient has the first step's bound in it."""
    objective = ScoreFunction()
    e1, e2 = torch.randn(2, 9, 2, dtype=torch.float64)
    with fed(e1):
        _, stats = objective.terms(oracle, x, objective.init(oracle, x))
    first = float(stats["bound"].mean())
    with fed(e1, e2):
        objective.loss_and_grads(oracle.model, oracle.guide, x)
        oracle.zero_grad()
        objective.loss_and_grads(oracle.model, oracle.guide, x)
    got = {name: p.grad for name, p in oracle.named_parameters()}
    assert_equal(got, gradients(oracle, ScoreFunction(), x, e2, state=running(first, 1.0)))


def elbo_gradient(program):
    return parameter_gradients(-logistic_bound(program, ROW), program)


def expected_score(objective, particles, state=None, nodes=60):
    """One row for each node of the product rule over K draws: a whole integral in one run."""
    program = LogisticRows()
    t, v = nodes_of(particles, nodes)
    return gradients(program, objective, ROW.expand(len(v), -1), t, weight=v, state=state)


@pytest.mark.parametrize(
    ("particles", "state"), [(1, None), (1, running(-5.0, 1.0)), (2, None), (3, None)]
)
def test_fact_14_score_function_has_the_gradient_of_the_elbo_in_expectation(particles, state):
    """By quadrature, whatever the baseline."""
    got = expected_score(ScoreFunction(particles), particles, state, 40 if particles > 2 else 60)
    assert_equal(got, elbo_gradient(LogisticRows()))


@pytest.mark.parametrize("mutant", [m for m in SCORE_MUTANTS if not isinstance(m, PooledScore)])
def test_score_mutants_fail_in_expectation(mutant):
    with pytest.raises(AssertionError, match="not close"):
        assert_equal(expected_score(mutant, 2), elbo_gradient(LogisticRows()))


@pytest.mark.parametrize("particles", [1, 2, 3])
def test_score_gradient_with_discrete_latents_is_the_exact_one(particles):
    """All K-tuples of the four states, against the ELBO as a sum over the states."""
    program = Flips()
    _, uniform, probability = all_flips(program, SEEN, particles)
    rows = SEEN.expand(len(probability), -1)
    got = gradients(program, ScoreFunction(particles), rows, uniform, weight=probability)
    log_p, log_q = flips_tables(program, SEEN)
    assert_equal(got, parameter_gradients(-(log_q.exp() @ (log_p - log_q)), program))


def by_shift(objective, rows=20_000, latents=6):
    """Gradients in the guide's mean, one for each of many equal rows, and what they estimate.

    Linear-Gaussian with six latents; ``shift`` is a part of the mean that each row has to itself.
    """
    torch.manual_seed(3)
    program = linear_gaussian.build(8, latent_dim=latents, posterior="full").double()
    x = torch.randn(1, 8, dtype=torch.float64)
    one = parameter_gradients(-program.elbo(x).sum(), program)["guide_bias"]
    shift = torch.zeros(rows, latents, dtype=torch.float64, requires_grad=True)
    program.guide_mean = lambda x: shift.repeat(len(x) // rows, 1)  # the guide starts at zero
    many = x.expand(rows, -1)
    loss, _ = objective.terms(program, many, objective.init(program, many))
    (draws,) = torch.autograd.grad(loss.sum(), [shift])
    return draws, one


@pytest.mark.parametrize("particles", [1, 2])
def test_fact_14_score_function_has_the_same_mean_and_a_larger_variance(particles):
    """In each of six latents, against estimator A with as many draws."""
    scored, expected = by_shift(ScoreFunction(particles))
    plain, _ = by_shift(AEVB("A", particles))
    for draws in (scored, plain):
        z = (draws.mean(0) - expected) / (draws.std(0) / len(draws) ** 0.5)
        assert z.abs().max() < 4.5
    assert (scored.var(0) > 2 * plain.var(0)).all()


def test_leave_one_out_baseline_lowers_the_variance():
    """Against the same draws without any: two runs of one draw each."""
    alone, _ = by_shift(ScoreFunction(1))
    pair, _ = by_shift(ScoreFunction(2))
    assert (pair.var(0) < 0.5 * alone.var(0) / 2).all()


@pytest.mark.parametrize("particles", [1, 2])
def test_scale_of_a_subsampled_plate_is_applied_once(particles):
    t = torch.randn(particles, 4, 1, dtype=torch.float64)
    found = []
    for size in (4, 10):
        program, objective = SubsampledRows(size), ScoreFunction(particles)
        with fed(t):
            loss = objective.differentiable_loss(program.model, program.guide, CORNERS)
        found.append({"loss": loss.detach(), **parameter_gradients(loss, program)})
    once, scaled = found
    assert_equal(scaled, {name: 2.5 * value for name, value in once.items()}, tolerance=1e-10)


class Shared(Program):
    """A global latent."""

    def model(self, x):
        common = pyro.sample("common", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + common, 1.0), obs=x)

    def guide(self, x):
        pyro.sample("common", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.1 * x, 1.0))


@pytest.mark.parametrize(
    ("objective", "reason"),
    [(ScoreFunction(2), r"'common' is outside"), (Autoencoder(), r'"common" is outside')],
)
def test_global_latents_are_refused_by_name(objective, reason):
    with pytest.raises(ValueError, match=reason + r".*use AEVB\(\)"):
        objective.terms(Shared(), torch.zeros(3), EMPTY)


# --- statistics -----------------------------------------------------------------------------------


def worst_score(objective, rows=20_000):
    return z_scores(LogisticRows(rows), objective, ROW, elbo_gradient(LogisticRows())).max()


@pytest.mark.parametrize("particles", [1, 2, 4])
def test_fact_14_score_gradient_is_unbiased(particles):
    """20,000 independent draws of it, one per row, against quadrature."""
    assert worst_score(ScoreFunction(particles)) < 4.5


@pytest.mark.parametrize("mutant", SCORE_MUTANTS)
def test_score_mutants_are_biased(mutant):
    assert worst_score(mutant) > 4.5


def test_score_gradient_with_discrete_latents_is_unbiased():
    program = Flips()
    log_p, log_q = flips_tables(program, SEEN)
    expected = parameter_gradients(-(log_q.exp() @ (log_p - log_q)), program)
    assert z_scores(Flips(20_000), ScoreFunction(2), SEEN, expected).max() < 4.5


@pytest.mark.parametrize("objective", [ScoreFunction(), ScoreFunction(3), ReweightedWakeSleep(3)])
@pytest.mark.parametrize("law", [dist.Delta, lambda place: dist.Uniform(place - 1, place + 1)])
def test_a_guide_whose_score_says_nothing_is_refused(objective, law):
    """Its gradient would be zero without a word."""
    program, x = Placed(law), torch.ones(4, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="would silently be zero: use AEVB"):
        objective.terms(program, x, objective.init(program, x))
