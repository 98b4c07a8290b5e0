"""The score-function gradient, the standard auto-encoder, and AEVB's warm-up and free bits."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

from pyro_vae import engine
from pyro_vae.densities.particles import densities
from pyro_vae.models import linear_gaussian
from pyro_vae.noise import NoiseMode, keyed
from pyro_vae.objectives import AEVB, Autoencoder, Objective, ReweightedWakeSleep, ScoreFunction
from pyro_vae.objectives.base import EMPTY, State
from pyro_vae.program.base import Program
from pyro_vae.training.fitting import fit

from .oracles import (
    CORNERS,
    Flips,
    LogisticRows,
    SubsampledRows,
    all_flips,
    assert_equal,
    bound_by_hand,
    fed,
    flips_tables,
    gradients,
    kl_by_hand,
    log_weights_by_hand,
    logistic_bound,
    nodes_of,
    parameter_gradients,
    wake_by_hand,
    weighted_by_hand,
    z_scores,
)
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


# --- the auto-encoder -----------------------------------------------------------------------------


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


# --- warm-up and free bits ------------------------------------------------------------------------


def at_step(step):
    return State({}, {"step": torch.tensor(float(step))})


def check_charge(objective, step, share, estimator="B"):
    """The bound by hand, plus (1 - share) of each datum's KL term given back."""
    program = program_of("full", "full")
    x = torch.randn(9, 5, dtype=torch.float64)
    eps = torch.randn(2, 9, 2, dtype=torch.float64)
    expected = bound_by_hand(program, x, eps, estimator)
    if estimator == "B":
        kl, _ = kl_by_hand(program, x, np.ones(9))
        _, forgiven = kl_by_hand(program, x, 1 - share(kl))
    else:  # log q - log p(z), averaged over the draws, by automatic differentiation
        with fed(eps):
            kl = densities(program, x, 2).sampled_kl_terms["z"]
        total = (torch.tensor(1 - share(kl.detach().numpy())) * kl).sum()
        forgiven = parameter_gradients(total, program)
    for name, value in forgiven.items():
        expected[name] = torch.as_tensor(expected[name] - np.asarray(value))
    assert_equal(gradients(program, objective, x, eps, state=at_step(step)), expected)
    return kl


@pytest.mark.parametrize("estimator", ["A", "B"])
@pytest.mark.parametrize(
    ("step", "beta"), [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (4, 1.0), (900, 1.0)]
)
def test_warm_up_charges_the_kl_term_by_the_share_of_updates_done(step, beta, estimator):
    objective = AEVB(estimator, 2, kl_warmup=4)
    check_charge(objective, step, lambda kl: beta + 0 * kl, estimator)


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_free_bits_charge_a_kl_term_where_it_is_above_them_datum_by_datum(estimator):
    """max(free, KL) has the gradient of KL above and none below; no mean over rows is taken."""
    free = 4.0
    objective = AEVB(estimator, 2, free_bits=free)
    kl = torch.as_tensor(check_charge(objective, 0, lambda kl: 1.0 * (kl > free), estimator))
    assert 0 < int((kl > free).sum()) < 9  # both kinds of rows


def test_free_bits_under_a_warm_up_are_warmed_up_as_well():
    objective = AEVB("B", 2, kl_warmup=4, free_bits=4.0)
    check_charge(objective, 1, lambda kl: 0.5 * (kl > 4.0))


@pytest.mark.parametrize(
    ("objective", "step"),
    [(AEVB("B", 2, kl_warmup=4), 0), (AEVB("B", 2), 0), (AEVB("B", 2, kl_warmup=4), 2)],
)
def test_wrong_warm_up_fails(objective, step):
    """Off by one, none at all, and five per cent."""
    share = 0.75 * 1.05 if step else 0.5
    with pytest.raises(AssertionError, match="not close"):
        check_charge(objective, step, lambda kl: share + 0 * kl)


class FreeOnAverage(Objective):
    """A mutant: free bits of the mean over the minibatch, which mixes rows."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, 2)
        kl = d.kl["z"].mean().clamp_min(4.0)
        return kl - d.log_likelihood.mean(0)


def test_free_bits_of_a_mean_over_the_batch_fail():
    with pytest.raises(AssertionError, match="not close"):
        check_charge(FreeOnAverage(), 0, lambda kl: 1.0 * (kl > 4.0))


class TwoSites(Program):
    """Two latents, whose KL terms for a unit Gaussian are mean^2 / 2 each."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([1.0, 3.0], dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros_like(x), 1.0))
            b = pyro.sample("b", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(self.gain[0] * x, 1.0))
            pyro.sample("b", dist.Normal(self.gain[1] * x, 1.0))


def test_free_bits_are_free_for_each_latent_and_the_columns_keep_the_full_elbo():
    """A rich latent pays though a poor one does not; ``bound`` and ``kl`` are uncharged numbers."""
    program, x = TwoSites(), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    eps = torch.randn(2, 3, dtype=torch.float64)
    kl = 0.5 * (x * torch.tensor([[1.0], [3.0]])) ** 2  # (sites, B)
    found = {}
    for name, objective, state in (
        ("plain", AEVB("B"), EMPTY),
        ("free", AEVB("B", free_bits=1.5), EMPTY),
        ("warm", AEVB("B", kl_warmup=10), at_step(2)),
    ):
        with fed(*eps):
            found[name] = objective.terms(program, x, state)
    loss, stats = found["plain"]
    torch.testing.assert_close(found["free"][0] - loss, (kl.clamp_min(1.5) - kl).sum(0))
    torch.testing.assert_close(found["warm"][0] - loss, -0.7 * kl.sum(0))
    assert found["warm"][1].pop("kl_weight").tolist() == pytest.approx([0.3] * 3)
    for name in ("free", "warm"):
        assert_equal(found[name][1], stats, tolerance=1e-12)
    torch.testing.assert_close(stats["bound"], -loss.detach())


def test_trap_31_warm_up_moves_in_a_captured_graph():
    """Beta is state, so that no capture freezes it."""
    program, x, objective, key = LogisticRows(), CORNERS, AEVB("B", kl_warmup=8), (3,)
    graph = engine.capture(program, objective, x)
    assert isinstance(graph, engine.Graph), graph
    parameters = {name: p.detach() for name, p in program.named_parameters()}
    weight = torch.ones(4, dtype=torch.float64)
    for step in (0, 3, 20):
        noise = graph.grads.draw(key)
        found, _ = graph.grads(parameters, x, weight, {}, at_step(step).shared, noise=noise)
        assert_equal(found, gradients(program, objective, x, *noise, state=at_step(step)))


@pytest.mark.parametrize("name", ["eager", "pyro"])
def test_warm_up_counts_updates_in_every_engine_and_reports_the_full_bound(name, oracle, x):
    """From the first step: the difference of loss and bound is what is not charged."""
    run = fit(
        oracle, x, AEVB("B", kl_warmup=4), steps=6, batch_size=9, lr=1e-9, engine=name,
        optimizer=torch.optim.SGD, dtype=torch.float64, progress=False,
    )  # fmt: skip
    forgiven = run.history.loss + run.history.bound
    charged = 1 + forgiven / run.history["kl.z"]
    np.testing.assert_allclose(charged.to_numpy(), [0.25, 0.5, 0.75, 1, 1, 1], atol=1e-6)


def test_svi_counts_the_updates_of_a_warm_up(oracle, x):
    objective = AEVB("B", kl_warmup=3)
    svi = SVI(oracle.model, oracle.guide, pyro.optim.SGD({"lr": 0.0}), loss=objective)
    found = []
    for _ in range(4):
        with NoiseMode(keyed(1)):
            found.append(svi.step(x))
    with NoiseMode(keyed(1)):
        loss, stats = AEVB("B").terms(oracle, x, EMPTY)
    full, kl = float(loss.sum().detach()), float(stats["kl.z"].sum())
    np.testing.assert_allclose(found, [full - s * kl for s in (2 / 3, 1 / 3, 0, 0)], rtol=1e-6)


def test_wrong_options_name_what_is_expected():
    for wrong in (0, 1.5, -2):
        with pytest.raises(ValueError, match="whole number from 1 on"):
            ScoreFunction(wrong)
    for wrong in (-0.1, 1.0, math.nan):
        with pytest.raises(
            ValueError, match=r"baseline_decay is .*, expected a number in \[0, 1\)"
        ):
            ScoreFunction(baseline_decay=wrong)
    for wrong in (-1, 2.5):
        with pytest.raises(ValueError, match="expected a number of updates, 0 for none"):
            AEVB(kl_warmup=wrong)
    for wrong in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="expected a number of nats from 0 on"):
            AEVB(free_bits=wrong)


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


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_warm_up_and_free_bits_are_unbiased_for_the_charged_bound(estimator):
    """At beta = 1 / 2: the reconstruction less half the KL term, by quadrature and formula."""
    one = LogisticRows()
    mean = (one.gain[0] * ROW).sum() + one.offset[0, 0]
    log_scale = one.log_scale[0, 0]
    kl = -0.5 * (1 + 2 * log_scale - mean**2 - (2 * log_scale).exp())
    expected = parameter_gradients(-(logistic_bound(one, ROW) + 0.5 * kl), one)
    assert z_scores(LogisticRows(20_000), AEVB(estimator, kl_warmup=2), ROW, expected).max() < 4.5


class Placed(Program):
    """A latent whose guide is given, at a learnt place."""

    def __init__(self, law):
        super().__init__()
        self.law, self.place = law, torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.law(self.place.expand(len(x), 1)).to_event(1))


@pytest.mark.parametrize("objective", [ScoreFunction(), ScoreFunction(3), ReweightedWakeSleep(3)])
@pytest.mark.parametrize("law", [dist.Delta, lambda place: dist.Uniform(place - 1, place + 1)])
def test_a_guide_whose_score_says_nothing_is_refused(objective, law):
    """Its gradient would be zero without a word."""
    program, x = Placed(law), torch.ones(4, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="would silently be zero: use AEVB"):
        objective.terms(program, x, objective.init(program, x))


def test_evaluating_the_loss_in_svi_leaves_the_memory_alone():
    program, x = Placed(lambda p: dist.Normal(p, 1.0)), torch.ones(4, 1, dtype=torch.float64)
    objective = AEVB(kl_warmup=10)
    svi = SVI(program.model, program.guide, pyro.optim.SGD({"lr": 0.1}), loss=objective)
    svi.step(x)
    for _ in range(3):
        svi.evaluate_loss(x)
    assert objective._memory.shared["step"] == 1


def test_warm_up_and_free_bits_refuse_latents_that_all_data_share():
    class Shared(Placed):
        def model(self, x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(z.expand(len(x), 1), 1.0).to_event(1), obs=x)

        def guide(self, x):
            pyro.sample("z", dist.Normal(self.place, 1.0).to_event(1))

    program, x = Shared(None), torch.ones(4, 1, dtype=torch.float64)
    for objective in (AEVB(kl_warmup=10), AEVB("A", free_bits=0.5)):
        with pytest.raises(ValueError, match="'z' is shared by all data"):
            objective.terms(program, x, objective.init(program, x))
