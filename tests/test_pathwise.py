"""Sticking the landing and DReG: the path through the draws by hand, by quadrature, and in law."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import softmax
from torch import nn

from pyro_vae import engine
from pyro_vae.densities import particles
from pyro_vae.densities.particles import densities
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.noise import NoiseMode, keyed
from pyro_vae.objectives import AEVB, IWAE, DReG, Objective, StickingTheLanding
from pyro_vae.objectives.base import EMPTY, Pair
from pyro_vae.objectives.pathwise import surrogate
from pyro_vae.objectives.weighting import normalized
from pyro_vae.program.base import Program

from .oracles import (
    CORNERS,
    LogisticRows,
    SubsampledRows,
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


# --- a latent that depends on another -------------------------------------------------------------


class Chain(Program):
    """z1 -> z2 in the guide and z2 -> z1 in the model; ``tie`` is a parameter of both."""

    def __init__(self):
        super().__init__()
        start = {"up": 0.7, "tie": 0.4, "log_scale": -0.3, "slope": 1.2, "down": 0.6}
        for name, value in start.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(x), 1.0))
            z1 = pyro.sample("z1", dist.Normal(self.tie * z2.sin(), 0.8))
            pyro.sample("x", dist.Normal(self.slope * z1 + self.down * z2.tanh(), 0.9), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(self.up * x, self.log_scale.exp()))
            pyro.sample("z2", dist.Normal(self.tie * z1.cos(), self.log_scale.exp() + 0.2))


def normal(value, mean, scale):
    scale = torch.as_tensor(scale, dtype=torch.float64)
    return -0.5 * ((value - mean) / scale) ** 2 - scale.log() - 0.9189385332046727


def chain_tables(p, x, e1, e2, held):
    """log p of parameters ``p`` at held draws, and log w with all densities at ``held`` ones.

    So the second depends on ``p`` along the draws alone.
    """

    def log_p(p, z1, z2):
        prior = normal(z2, 0.0, 1.0) + normal(z1, p["tie"] * z2.sin(), 0.8)
        return prior + normal(x, p["slope"] * z1 + p["down"] * z2.tanh(), 0.9)

    z1 = p["up"] * x + p["log_scale"].exp() * e1
    z2 = p["tie"] * z1.cos() + (p["log_scale"].exp() + 0.2) * e2
    log_q = normal(z1, held["up"] * x, held["log_scale"].exp())
    log_q = log_q + normal(z2, held["tie"] * z1.cos(), held["log_scale"].exp() + 0.2)
    return log_p(p, z1.detach(), z2.detach()), log_p(held, z1, z2) - log_q


def chain_shares(kind, log_w):
    even, w = torch.full_like(log_w, 1 / len(log_w)), log_w.detach().softmax(0)
    return (even, even) if kind == "STL" else (w, w.square())


CHAINED = [(StickingTheLanding(3), "STL"), (DReG(3), "DReG")]


def chain_noise():
    x, eps = torch.randn(6, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64)
    return x, eps


@pytest.mark.parametrize(("objective", "kind"), CHAINED)
def test_gradient_through_a_chain_of_latents_is_that_of_code_by_hand(objective, kind):
    """The path of z1 goes through z2's guide as well; a tied parameter gets both parts."""
    program, (x, (e1, e2)) = Chain(), chain_noise()
    held = {name: p.detach() for name, p in program.named_parameters()}
    log_p, log_w = chain_tables(dict(program.named_parameters()), x, e1, e2, held)
    model, path = chain_shares(kind, log_w)

    expected = parameter_gradients(-(model * log_p + path * log_w).sum(), program)

    assert_equal(gradients(program, objective, x, e1, e2), expected)


@pytest.mark.parametrize(("objective", "kind"), CHAINED)
def test_gradient_through_a_chain_of_latents_is_that_of_finite_differences(objective, kind):
    program, (x, (e1, e2)) = Chain(), chain_noise()
    held = {name: p.detach() for name, p in program.named_parameters()}
    _, log_w = chain_tables(held, x, e1, e2, held)
    model, path = chain_shares(kind, log_w)
    z1 = held["up"] * x + held["log_scale"].exp() * e1
    z2 = held["tie"] * z1.cos() + (held["log_scale"].exp() + 0.2) * e2

    def moved_log_p(p):  # at the draws as they are
        prior = normal(z1, p["tie"] * z2.sin(), 0.8)
        return prior + normal(x, p["slope"] * z1 + p["down"] * z2.tanh(), 0.9)

    def value(name, step):
        p = held | {name: held[name] + step}
        return -(model * moved_log_p(p) + path * chain_tables(p, x, e1, e2, held)[1]).sum()

    got = gradients(program, objective, x, e1, e2)
    for name in held:
        slope = (value(name, 1e-5) - value(name, -1e-5)) / 2e-5
        torch.testing.assert_close(got[name], slope, rtol=1e-7, atol=1e-7)


# --- three ways to have several particles ---------------------------------------------------------

WAYS = [
    dict(pathwise=True),
    dict(detach_guide=True),
    dict(reparameterize=True),
    dict(reparameterize=False),
]


def at(program, x, particles, way, key=(4, 2)):
    """Tables, and gradients of a fixed combination of them and the path, for keyed noise."""
    with NoiseMode(keyed(*key)):
        d = densities(program, x, particles, **way)
    found = {"log_p": d.log_p, "log_q": d.log_q, **d.latents}
    if d.path is not None:
        found["path"] = d.path
    shares = torch.linspace(0.5, 1.5, d.log_q.numel(), dtype=torch.float64).view_as(d.log_q)
    total = (shares * (d.log_p - 0.7 * d.log_q)).sum()
    if d.path is not None:
        total = total + (shares.flip(0, 1) * d.path).sum()
    return {n: v.detach() for n, v in found.items()} | parameter_gradients(total, program)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("program", [Chain(), SubsampledRows(4), SubsampledRows(10)])
def test_looped_runs_and_repeated_rows_are_the_same(program, way, monkeypatch):
    """All tables, and the gradients of both parts."""
    x = torch.randn(6, dtype=torch.float64) if isinstance(program, Chain) else CORNERS
    repeated = at(program, x, 3, way)
    monkeypatch.setattr(particles, "_repeated", lambda *_: None)
    looped = at(program, x, 3, way)
    assert_equal(looped, repeated, tolerance=1e-10)


def test_path_has_the_value_zero_and_tables_hang_on_no_draws(oracle, x):
    """Log p reaches the model alone, log q nothing, and the path the guide alone."""
    eps = torch.randn(2, 9, 2, dtype=torch.float64)
    with fed(eps):
        d = densities(oracle, x, 2, pathwise=True)
    assert not d.path.any()
    assert not any(value.any() for value in parameter_gradients(d.log_q.sum(), oracle).values())
    for table, guides in ((d.log_p, False), (d.path, True)):
        for name, value in parameter_gradients(table.sum(), oracle).items():
            assert bool(value.any()) == (name.startswith("guide") == guides), name
    with pytest.raises(ValueError, match=r"without a path: ask for densities\(..., pathwise=True"):
        surrogate(d._replace(path=None), 1.0, 1.0)


def test_one_particle_of_the_path_is_the_gradient_along_the_draws(oracle, x):
    """K = 1 by its own branch: total derivative of log w less the score."""
    eps = torch.randn(1, 9, 2, dtype=torch.float64)
    with fed(eps):
        d = densities(oracle, x, pathwise=True)
    with fed(eps):
        stl = densities(oracle, x, detach_guide=True)
    expected = parameter_gradients(stl.log_w.sum(), oracle)
    for name, value in parameter_gradients(d.path.sum(), oracle).items():
        if name.startswith("guide"):
            torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("objective", [StickingTheLanding(2), DReG(3)])
def test_captured_particles_are_those_of_the_handlers(objective, x):
    """A ``vmap`` over noise in a graph, repeated rows outside; gradients and columns."""
    program, rows, key = Chain(), x[:, 0].contiguous(), (7, 1)
    graph = engine.capture(program, objective, rows)
    assert isinstance(graph, engine.Graph), graph
    parameters = {name: p.detach() for name, p in program.named_parameters()}
    weight = torch.ones(9, dtype=torch.float64)
    found, sums = graph.grads(parameters, rows, weight, {}, {}, noise=graph.grads.draw(key))
    with NoiseMode(keyed(*key)):
        loss, stats = objective.terms(program, rows, EMPTY)
    assert_equal(found, parameter_gradients(loss.sum(), program), tolerance=1e-10)
    expected = {name: value.sum() for name, value in {"loss": loss.detach(), **stats}.items()}
    assert_equal({name: sums[name] for name in expected}, expected, tolerance=1e-10)


# --- plates, global latents, refusals -------------------------------------------------------------


@pytest.mark.parametrize("objective", [StickingTheLanding(2), DReG(2)])
def test_scale_of_a_subsampled_plate_is_applied_once(objective):
    t = torch.randn(2, 4, 1, dtype=torch.float64)
    found = []
    for size in (4, 10):
        program = SubsampledRows(size)
        with fed(t):
            loss = objective.differentiable_loss(program.model, program.guide, CORNERS)
        found.append({"loss": loss.detach(), **parameter_gradients(loss, program)})
    once, scaled = found
    assert_equal(scaled, {name: 2.5 * value for name, value in once.items()}, tolerance=1e-10)


class Shared(Program):
    """A global latent: m ~ N(0, 1), x_b ~ N(z_b + m, 1), z_b ~ N(0, 1)."""

    def __init__(self):
        super().__init__()
        for name, value in {"mean": 0.2, "log_scale": -0.5, "gain": 0.4}.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))

    def model(self, x):
        m = pyro.sample("common", dist.Normal(torch.zeros_like(self.mean), 1.0))
        with pyro.plate("data", 10, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z + m, 1.0), obs=x)

    def guide(self, x):
        pyro.sample("common", dist.Normal(self.mean, self.log_scale.exp()))
        with pyro.plate("data", 10, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(self.gain * x, 0.7))


def test_stl_takes_global_latents():
    """One draw, N = 10 of which B = 4: equation (21) with all densities of q held."""
    program, x = Shared(), torch.randn(4, dtype=torch.float64)
    e, eps = torch.randn((), dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    held = {name: p.detach() for name, p in program.named_parameters()}
    m, z = program.mean + program.log_scale.exp() * e, program.gain * x + 0.7 * eps
    local = normal(z, 0.0, 1.0) + normal(x, z + m, 1.0) - normal(z, held["gain"] * x, 0.7)
    common = normal(m, 0.0, 1.0) - normal(m, held["mean"], held["log_scale"].exp())
    expected = -(2.5 * local.sum() + common)

    with fed(e, eps):
        loss = StickingTheLanding().differentiable_loss(program.model, program.guide, x)

    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    assert_equal(parameter_gradients(loss, program), parameter_gradients(expected, program))


def test_dreg_refuses_global_latents_by_name():
    with pytest.raises(ValueError, match=r"DReG judges .*'common' is outside.*StickingTheLanding"):
        DReG(2).terms(Shared(), torch.zeros(4, dtype=torch.float64), EMPTY)


@pytest.mark.parametrize("objective", [StickingTheLanding(), DReG(2)])
def test_guide_whose_parameters_are_in_no_module_is_told_what_to_do(objective):
    pair = Pair(*(getattr(LogisticRows(), name) for name in ("model", "guide")))
    with pytest.raises(TypeError, match=r"wrap the two functions, pv\.Program\(model, guide\)"):
        objective.terms(pair, CORNERS, EMPTY)


@pytest.mark.parametrize("make", [StickingTheLanding, DReG])
def test_wrong_options_name_what_is_expected(make):
    for wrong in (0, 1.5, -2):
        with pytest.raises(ValueError, match="whole number from 1 on"):
            make(wrong)


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


class Dropping(Program):
    """A guide with noise of its own, outside of any site."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(3, 1)).double()

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(-1, 3), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.1).to_event(1))


@pytest.mark.parametrize("objective", [StickingTheLanding(), DReG(3)])
def test_a_guide_with_dropout_is_refused(objective):
    """Its second run would have another mask, and log q would be that of another guide."""
    x = torch.ones(4, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"noise outside pyro\.sample, such as dropout.*AEVB"):
        objective.terms(Dropping(), x, EMPTY)
    assert objective.terms(Dropping().eval(), x, EMPTY)[0].isfinite().all()


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
