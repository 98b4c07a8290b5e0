"""Batched HMC: the integrator's identities, exact posteriors, and mutants that must not pass."""

import math
import pkgutil

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

import pyro_vae as pv
from pyro_vae import hmc, models
from pyro_vae.hmc import Phase, adapt, leapfrog, move, sample_posterior, value_and_gradient
from pyro_vae.latents import Latents
from pyro_vae.lifting import Lifted, Refusal, lift
from pyro_vae.models import linear_gaussian, logistic_lvm
from pyro_vae.noise import NoiseMode, keyed
from pyro_vae.program import call_with

# --- targets --------------------------------------------------------------------------------------


def bent(u):
    """Not Gaussian, curved, with tails: a target on which nothing holds by accident."""
    return -0.5 * (u[:, 1] - u[:, 0] ** 2) ** 2 - 0.25 * u[:, 0] ** 4 - u[:, 0].cos()


def normal(u):
    """N(0, I), up to its constant."""
    return -0.5 * u.square().sum(-1)


class Counts(pv.Program):
    """rate ~ Gamma(a, b), share ~ Dirichlet(c), x_d ~ Poisson(rate share_d): two supports, exact.

    The likelihood is rate^n e^-rate prod share_d^x_d / x_d! with n = sum x, so rate | x is
    Gamma(a + n, b + 1) and share | x is Dirichlet(c + x), independent.
    """

    shape, rate = 2.0, 0.7

    def __init__(self, data_dim=3):
        super().__init__()
        self.weight = nn.Parameter(torch.full((data_dim,), 1.5, dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            a, b = torch.tensor([self.shape, self.rate], dtype=torch.float64)
            rate = pyro.sample("rate", dist.Gamma(a, b))
            share = pyro.sample("share", dist.Dirichlet(self.weight))
            pyro.sample("x", dist.Poisson(rate.unsqueeze(-1) * share).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(x.sum(-1) + self.shape, self.rate + 1))
            pyro.sample("share", dist.Dirichlet(self.weight + x))

    def exact(self, x):
        """The laws of rate (scipy) and of each share (a Dirichlet's margins are Beta)."""
        x, c = x.numpy(), self.weight.detach().numpy() + x.numpy()
        total = c.sum(-1, keepdims=True)
        return (
            stats.gamma(x.sum(-1) + self.shape, scale=1 / (self.rate + 1)),
            stats.beta(c, total - c),
        )


COUNTS = torch.tensor([[0, 0, 1], [3, 1, 0], [12, 2, 30], [1, 1, 1]], dtype=torch.float64)


def latents_and_target(program, x):
    """The latents, and log p as a function of u alone."""
    latents = Latents.of(program, x)
    return latents, lambda u: latents.log_joint(program, x, u).double()


def start_at(target, u, momentum):
    return Phase(u, momentum, *value_and_gradient(target)(u))


@pytest.fixture(scope="module")
def gaussian():
    """A linear-Gaussian program, 20 rows, and 800 draws of each posterior with tuned steps."""
    torch.manual_seed(3)
    program = linear_gaussian.build(5, noise="full", posterior="full", noise_scale=0.7).double()
    with torch.no_grad():
        program.noise.lower.normal_(0.0, 0.3)
        program.bias.normal_()
    x = pv.datasets.synthetic(program, 20, like=torch.zeros(1, 5), seed=1).x.double()
    options = {"num_draws": 600, "warmup": 300, "leapfrog_steps": 5}
    return program, x, sample_posterior(program, x, seed=4, **options)


@pytest.fixture(scope="module")
def counts():
    program = Counts()
    options = {"num_draws": 900, "warmup": 250, "leapfrog_steps": 4}
    return program, COUNTS, sample_posterior(program, COUNTS, seed=5, **options)


# --- the integrator -------------------------------------------------------------------------------


def test_leapfrog_comes_back_when_the_momentum_is_negated():
    """Reversibility, without which Metropolis' ratio would be another one."""
    u, momentum = torch.randn(2, 7, 2, dtype=torch.float64)
    evaluate = value_and_gradient(bent)
    options = {"step_size": 0.15, "leapfrog_steps": 12}

    end = leapfrog(evaluate, start_at(bent, u, momentum), **options)
    back = leapfrog(evaluate, end._replace(momentum=-end.momentum), **options)

    assert (end.u - u).abs().max() > 0.5
    torch.testing.assert_close(back.u, u, rtol=0, atol=1e-10)
    torch.testing.assert_close(-back.momentum, momentum, rtol=0, atol=1e-10)


def jacobian_determinants(flow):
    def evaluate(u):  # as value_and_gradient, and differentiable once more
        value = bent(u)
        return value, torch.autograd.grad(value.sum(), u, create_graph=True)[0]

    def flat(phase):
        u, momentum = phase[None, :2], phase[None, 2:]
        end = flow(evaluate, Phase(u, momentum, *evaluate(u)), step_size=0.3, leapfrog_steps=5)
        return torch.cat([end.u, end.momentum], -1)[0]

    points = torch.randn(5, 4, dtype=torch.float64)
    jacobians = [torch.autograd.functional.jacobian(flat, p) for p in points]
    return torch.linalg.det(torch.stack(jacobians))


def test_leapfrog_preserves_volume_and_eulers_method_does_not():
    """det d(u', r') / d(u, r) = 1, so that the ratio needs no Jacobian."""

    def euler(evaluate, start, *, step_size, leapfrog_steps):
        u, momentum, value, gradient = start
        for _ in range(leapfrog_steps):
            u, momentum = u + step_size * momentum, momentum + step_size * gradient
            value, gradient = evaluate(u)
        return Phase(u, momentum, value, gradient)

    torch.testing.assert_close(
        jacobian_determinants(leapfrog), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-10
    )
    assert (jacobian_determinants(euler) - 1).abs().min() > 0.01


@pytest.mark.parametrize("target", ["bent", "counts", "logistic"])
def test_halving_the_step_quarters_the_energy_error(target):
    """The error of a trajectory of fixed length is O(s^2): in mean and in maximum."""
    if target == "bent":
        log_density, u = bent, torch.randn(40, 2, dtype=torch.float64)
    else:
        program = Counts() if target == "counts" else logistic_lvm.build(6, latent_dim=2).double()
        x = COUNTS if target == "counts" else torch.bernoulli(torch.full((40, 6), 0.5)).double()
        x = x.repeat(10, 1) if target == "counts" else x
        latents, log_density = latents_and_target(program, x)
        u = latents.from_prior(program, x).double().clamp(-2, 2)
    start = start_at(log_density, u, torch.randn(u.shape, dtype=torch.float64))

    errors = []
    for steps in (16, 32):
        options = {"step_size": 0.64 / steps, "leapfrog_steps": steps}
        end = leapfrog(value_and_gradient(log_density), start, **options)
        errors.append((end.energy - start.energy).abs().detach())

    assert 3.5 < errors[0].mean() / errors[1].mean() < 4.5
    assert 3.5 < errors[0].max() / errors[1].max() < 4.5


def test_a_step_that_gets_short_is_always_accepted():
    """Acceptance rises to 1: exact dynamics keep the energy."""
    u = torch.randn(200, 2, dtype=torch.float64)
    rejected = [
        1 - float(move(bent, u, step_size=s, leapfrog_steps=5, noise=keyed(1)).accept.mean())
        for s in (0.3, 0.1, 0.01, 0.001)
    ]
    assert rejected == sorted(rejected, reverse=True)
    assert rejected[0] > 0.01 and 0 <= rejected[-1] < 1e-6


# --- a move leaves the posterior as it is ---------------------------------------------------------


def assert_keeps_the_normal_law():
    """Rows that start in N(0, I) are independent, so one move leaves 40,000 exact draws."""
    u = torch.randn(20_000, 2, dtype=torch.float64)
    after = move(normal, u, step_size=1.0, leapfrog_steps=2, noise=keyed(2))
    assert stats.kstest(after.u.flatten().numpy(), stats.norm.cdf).pvalue > 1e-5
    z = (after.u.square().mean(0) - 1) / math.sqrt(2 / len(u))
    assert z.abs().max() < 4.5


def assert_keeps_the_posterior_of_counts():
    """The same for a Gamma and a Dirichlet, each row started in its exact posterior."""
    program, x = Counts(), COUNTS[1:2].expand(4000, -1)
    torch.manual_seed(1)
    latents, target = latents_and_target(program, x)
    u = latents.from_guide(program, x)  # it is the posterior
    values = latents.constrain(move(target, u, step_size=0.35, leapfrog_steps=3, noise=keyed(3)).u)
    rate, share = program.exact(x[:1])
    assert stats.kstest(values["rate"].numpy(), rate.cdf).pvalue > 1e-5
    for d in range(3):
        margin = stats.beta(share.args[0][0, d], share.args[1][0, d])
        assert stats.kstest(values["share"][:, d].numpy(), margin.cdf).pvalue > 1e-5


def test_a_large_step_keeps_the_normal_law():
    assert_keeps_the_normal_law()


def test_without_the_metropolis_decision_the_law_is_lost(monkeypatch):
    """The leapfrog's own law at step s has the variance 1 / (1 - s^2 / 4)."""
    monkeypatch.setattr(
        hmc, "_metropolis", lambda e, uniform: (torch.ones_like(e), torch.ones_like(e).bool())
    )
    with pytest.raises(AssertionError):
        assert_keeps_the_normal_law()


def test_a_move_keeps_a_posterior_on_the_half_line_and_on_the_simplex():
    assert_keeps_the_posterior_of_counts()


@pytest.mark.parametrize("site", ["rate", "share"])
def test_without_the_log_determinant_of_a_site_the_posterior_is_lost(monkeypatch, site):
    """log p(x, T(u)) alone is the density of another law of u."""
    with_log_det = Latents._forward

    def without(self, u):
        return {
            name: (value, torch.zeros_like(log_det) if name == site else log_det)
            for name, (value, log_det) in with_log_det(self, u).items()
        }

    monkeypatch.setattr(Latents, "_forward", without)
    with pytest.raises(AssertionError):
        assert_keeps_the_posterior_of_counts()


# --- chains find the posterior --------------------------------------------------------------------


def assert_moments(draws, mean, variance):
    """Mean and variance of each coordinate within 4.5 of the chain's own standard errors."""
    draws, mean, variance = (np.asarray(t) for t in (draws, mean, variance))
    for found, expected in ((draws, mean), ((draws - mean) ** 2, variance)):
        ess = az.ess(az.convert_to_dataset({"f": found[None]}), method="mean")["f"].values
        z = (found.mean(0) - expected) / (found.std(0) / np.sqrt(ess))
        assert np.abs(z).max() < 4.5, f"z-scores up to {np.abs(z).max():.1f}"


def test_gaussian_posteriors_have_their_exact_mean_and_variance(gaussian):
    program, x, draws = gaussian
    posterior = program.posterior(x)
    mean, variance = posterior.mean.detach(), posterior.variance.detach()
    assert_moments(draws.values["z"], mean, variance)
    for wrong in ((mean, 1.3 * variance), (mean + 0.1 * variance.sqrt(), variance)):
        with pytest.raises(AssertionError):
            assert_moments(draws.values["z"], *wrong)


def test_gaussian_draws_are_distributed_as_the_exact_posterior(gaussian):
    """Kolmogorov-Smirnov on every eighth move, each mapped to (0, 1) by its own exact law."""
    program, x, draws = gaussian
    posterior = program.posterior(x)
    scaled = (draws.u[::8] - posterior.mean) / posterior.stddev
    for j in range(2):
        assert stats.kstest(scaled[..., j].detach().flatten().numpy(), stats.norm.cdf).pvalue > 1e-4


def test_constrained_posteriors_have_their_exact_mean_and_variance(counts):
    program, x, draws = counts
    rate, share = program.exact(x)
    assert draws.values["rate"].shape == (900, 4) and draws.values["share"].shape == (900, 4, 3)
    assert draws.u.shape == (900, 4, 3)  # a simplex of three has two coordinates
    assert_moments(draws.values["rate"], rate.mean(), rate.var())
    assert_moments(draws.values["share"], share.mean(), share.var())


def test_constrained_draws_are_distributed_as_the_exact_posterior(counts):
    program, x, draws = counts
    rate, share = program.exact(x)
    assert stats.kstest(rate.cdf(draws.values["rate"][::10]).flatten(), "uniform").pvalue > 1e-4
    assert (
        stats.kstest(share.cdf(draws.values["share"][::10])[..., 0].flatten(), "uniform").pvalue
        > 1e-4
    )


def test_the_logistic_posterior_has_the_moments_of_quadrature():
    """Not conjugate, and curved: its oracle is Gauss-Hermite quadrature."""
    torch.manual_seed(0)
    program = logistic_lvm.build(4, latent_dim=1, weight=2 * torch.ones(4, 1)).double()
    x = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1.0]], dtype=torch.float64)
    mean, covariance = program.posterior_moments(x)
    draws = sample_posterior(program, x, num_draws=500, warmup=200, leapfrog_steps=4, seed=1)
    assert_moments(draws.values["z"], mean.detach(), covariance.detach()[:, :, 0])


# --- one accept per datum -------------------------------------------------------------------------


def assert_rows_are_alone():
    """Row 0 gets a posterior 10^4 times narrower; the others do not feel it, bit by bit."""
    program = linear_gaussian.build(5, weight=torch.ones(5, 2)).double()
    target = latents_and_target(program, torch.zeros(6, 5, dtype=torch.float64))[1]
    runs = []
    for factor in (1.0, 1e8):
        factors = torch.ones(6, dtype=torch.float64)
        factors[0] = factor
        u = torch.ones(6, 2, dtype=torch.float64)
        moves = []
        for number in range(4):
            options = {"step_size": 0.4, "leapfrog_steps": 4, "noise": keyed(number)}
            moves.append(move(lambda u, f=factors: f * target(u), u, **options))
            u = moves[-1].u
        runs.append(moves)
    for easy, awful in zip(*runs, strict=True):
        assert bool(awful.diverging[0]) and not bool(awful.accepted[0])
        for one, two in zip(easy, awful, strict=True):
            assert torch.equal(one[1:], two[1:])
    assert bool(torch.stack([awful.accepted[1:] for awful in runs[1]]).any())


def test_one_bad_datum_leaves_the_others_draws_bit_identical():
    """Pyro's HMC decides on the sum over the batch: one bad datum would stop all."""
    assert_rows_are_alone()


def test_a_joint_decision_for_the_batch_is_rejected(monkeypatch):
    """T7: right in law, and useless for a batch."""

    def jointly(error, uniform):
        accept = (-error.sum().clamp_min(0)).exp().nan_to_num(0.0).expand_as(error)
        return accept, uniform[:1].expand_as(error) < accept

    monkeypatch.setattr(hmc, "_metropolis", jointly)
    with pytest.raises(AssertionError):
        assert_rows_are_alone()


def test_permuted_rows_with_permuted_noise_give_permuted_moves(gaussian):
    program, x, draws = gaussian
    u, order = draws.u[-1], torch.randperm(len(x))
    step = torch.linspace(0.2, 1.0, len(x), dtype=torch.float64)
    options = {"leapfrog_steps": 3, "jitter": 0.3}
    one = move(latents_and_target(program, x)[1], u, step_size=step, noise=keyed(1), **options)
    two = move(
        latents_and_target(program, x[order])[1],
        u[order],
        step_size=step[order],
        noise=lambda index, noise: keyed(1)(index, noise)[order],
        **options,
    )
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a[order], b, rtol=1e-10, atol=1e-10)


def test_each_datum_keeps_its_own_chain_while_its_step_is_tuned(gaussian):
    """A step tuned per datum sees one datum, so a change of row 0 leaves the other draws alone."""
    program, x, _ = gaussian
    changed = x.clone()
    changed[0] += 3.0
    options = {"num_draws": 20, "warmup": 40, "leapfrog_steps": 3}
    one, two = (sample_posterior(program, rows, **options) for rows in (x, changed))
    assert torch.equal(one.u[:, 1:], two.u[:, 1:]) and not torch.equal(one.u[:, 0], two.u[:, 0])
    assert torch.equal(one.step_size[1:], two.step_size[1:])


# --- trajectories that fail -----------------------------------------------------------------------


def test_what_is_not_finite_is_rejected_and_counted():
    """Overflow, nan and -inf at the end of a trajectory: u stays where it was, finite."""

    def broken(u):
        return torch.stack(
            [
                normal(u)[0],  # works
                -1e200 * u[1].square().sum() ** 2,  # overflows
                u[2].log().sum(),  # nan left of 0
                torch.where(u[3].sum() < 1.5, u[3].sum() * 0, -math.inf),  # a wall
            ]
        )

    u = torch.full((4, 2), 0.5, dtype=torch.float64)
    noise = {0: torch.full((4, 2), -3.0), 1: torch.zeros(4), 2: torch.zeros(4)}
    noise[0][3] = 3.0
    m = move(broken, u, step_size=0.5, leapfrog_steps=2, noise=lambda i, n: noise[i].to(n.dtype))

    assert m.accepted.tolist() == [True, False, False, False]
    assert m.diverging.tolist() == [False, True, True, True]
    assert m.accept[1:].tolist() == [0, 0, 0]
    for field in (m.u, m.accept, m.log_density, m.gradient):
        assert field.isfinite().all()
    assert torch.equal(m.u[1:], u[1:]) and not torch.equal(m.u[0], u[0])


def test_a_large_finite_energy_error_counts_as_diverging():
    m = move(
        lambda u: -1e6 * u.square().sum(-1),
        torch.full((1, 1), 0.1, dtype=torch.float64),
        step_size=1.0,
        leapfrog_steps=1,
        noise=keyed(0),
    )
    assert m.energy_error.isfinite().all() and bool(m.diverging) and not bool(m.accepted)


def test_divergences_and_stuck_chains_are_counted_and_said(gaussian):
    program, x, _ = gaussian
    with pytest.warns(pv.PyroVaeWarning, match="smaller step_size") as said:
        draws = sample_posterior(program, x, num_draws=7, warmup=0, step_size=1e6)
    assert len(said) == 2 and "20 of 20 data" in str(said[0].message)
    assert draws.divergences.tolist() == [7] * 20 and draws.accept.tolist() == [0] * 20
    assert draws.u.isfinite().all() and bool((draws.u == draws.u[0]).all())


def test_one_step_for_data_of_different_width_is_said_to_be_too_long():
    """The mean acceptance is 0.9, of which the narrow posteriors have nothing."""

    def model(x):
        with pyro.plate("data", len(x["x"])):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x["x"]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, x["noise"]).to_event(1), obs=x["x"])

    program = pv.Program(model, lambda x: None)
    noise = torch.ones(30, 1).double()
    noise[7] = 1e-3
    x = {"x": torch.zeros(30, 1).double(), "noise": noise}
    options = {"num_draws": 100, "warmup": 100, "leapfrog_steps": 4}
    with (
        pytest.warns(pv.PyroVaeWarning, match=r'for 1 of 30 data \(row 7.*adapt="per_datum"'),
        pytest.warns(pv.PyroVaeWarning, match=r"diverged for 1 of 30 data \(row 7"),
    ):
        shared = sample_posterior(program, x, adapt="shared", **options)
    assert shared.step_size.shape == () and shared.accept.mean() > 0.8
    own = sample_posterior(program, x, **options)
    assert own.step_size.shape == (30,) and own.step_size[7] < 1e-2 < 0.1 < own.step_size[0]
    assert own.accept[7] > 0.7


# --- step sizes -----------------------------------------------------------------------------------


def test_adaptation_moves_the_log_step_by_rate_times_the_miss():
    accept = torch.tensor([1.0, 0.5, 0.0])
    shared = adapt(torch.tensor(0.3), accept, rate=0.2)
    torch.testing.assert_close(shared, torch.tensor(0.3 + 0.2 * (0.5 - 0.9)))
    own = adapt(torch.zeros(3), accept, target=0.5, rate=2.0)
    torch.testing.assert_close(own, torch.tensor([1.0, 0.0, -1.0]))


def test_the_step_of_each_datum_is_tuned_to_ninety_percent(gaussian):
    draws = gaussian[2]
    assert draws.step_size.shape == (20,)
    assert abs(float(draws.accept.mean()) - 0.9) < 0.015
    assert float((draws.accept - 0.9).abs().max()) < 0.05
    assert draws.divergences.sum() == 0


@pytest.mark.parametrize("target", [0.9, 0.7])
def test_a_shared_step_is_tuned_to_its_target(gaussian, target):
    program, x, _ = gaussian
    options = {"num_draws": 200, "warmup": 200, "leapfrog_steps": 5, "jitter": 0.0}
    draws = sample_posterior(program, x, adapt="shared", target_accept=target, seed=2, **options)
    assert draws.step_size.shape == ()
    assert abs(float(draws.accept.mean()) - target) < 0.03


@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_steps_are_found_for_latents_of_any_width(scale):
    """From the same start: three orders of magnitude down, and two up."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), scale).to_event(1))
            pyro.sample("x", dist.Normal(0 * z[..., :1], 1.0).to_event(1), obs=x)

    program = pv.Program(model, lambda x: None)
    draws = sample_posterior(
        program, torch.zeros(30, 1).double(), num_draws=150, warmup=250, leapfrog_steps=5
    )
    assert abs(float(draws.accept.mean()) - 0.9) < 0.03
    assert 0.3 * scale < float(draws.step_size.mean()) < 2 * scale


def test_jitter_breaks_the_resonance_of_a_trajectory_of_two_pi():
    """N(0, 1) is back where it started after s L = 2 pi, whatever the momentum."""
    u = torch.randn(500, 1, dtype=torch.float64)
    options = {"step_size": 2 * math.pi / 40, "leapfrog_steps": 40, "noise": keyed(1)}
    same = move(normal, u, **options).u
    assert np.corrcoef(u[:, 0], same[:, 0])[0, 1] > 0.99
    jittered = move(normal, u, jitter=0.5, **options).u
    assert abs(np.corrcoef(u[:, 0], jittered[:, 0])[0, 1]) < 0.3


# --- captured -------------------------------------------------------------------------------------


def test_a_captured_move_equals_the_move_at_the_same_key(gaussian):
    program, x, draws = gaussian
    latents = Latents.of(program, x)
    parameters = {name: p.detach() for name, p in program.named_parameters()}

    def one(parameters, x, u, step):
        def run(program):
            target = lambda u: latents.log_joint(program, x, u)  # noqa: E731
            return move(target, u, step_size=step, leapfrog_steps=4, jitter=0.2)

        return call_with(program, parameters, run)

    args = (parameters, x, draws.u[0], draws.step_size)
    graph = lift(one, *args)
    assert isinstance(graph, Lifted) and not graph.kept
    with NoiseMode(keyed(8, 3)):
        expected = one(*args)
    for want, have in zip(expected, graph(*args, noise=graph.draw((8, 3))), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-10, atol=1e-10)
    direct = move(
        lambda u: latents.log_joint(program, x, u),
        draws.u[0],
        step_size=draws.step_size,
        leapfrog_steps=4,
        jitter=0.2,
        noise=keyed(8, 3),
    )
    torch.testing.assert_close(direct.u, expected.u, rtol=0, atol=0)


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(models.__path__)])
def test_every_models_move_is_captured(name):
    """Monte Carlo EM keeps its moves inside a graph, and so must every file in models/."""
    module = __import__(f"pyro_vae.models.{name}", fromlist=["build"])
    program = module.build(6).double()
    x = torch.bernoulli(torch.full((5, 6), 0.5)).double()
    latents = Latents.of(program, x)
    parameters = {n: p.detach() for n, p in program.named_parameters()}

    def one(parameters, x, u, step):
        def run(program):
            inside = Latents.of(program, x)  # as an objective may, that keeps no state
            target = lambda u: inside.log_joint(program, x, u)  # noqa: E731
            return move(target, u, step_size=step, leapfrog_steps=2)

        return call_with(program, parameters, run)

    u = latents.from_prior(program, x)
    graph = lift(one, parameters, x, u, torch.tensor(0.3).double())
    assert not isinstance(graph, Refusal), str(graph)
    assert [noise.kind for noise in graph.noise] == ["normal", "uniform"]


def test_graph_and_handlers_give_the_same_draws(gaussian, monkeypatch):
    program, x, _ = gaussian
    options = {"num_draws": 30, "warmup": 20, "leapfrog_steps": 3, "seed": 6}
    graph = sample_posterior(program, x, **options)
    monkeypatch.setattr(hmc, "lift", lambda *args, **kwargs: Refusal("on purpose"))
    handlers = sample_posterior(program, x, **options)
    assert (graph.engine, handlers.engine) == ("graph", "handlers")
    torch.testing.assert_close(graph.u, handlers.u, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(graph.step_size, handlers.step_size, rtol=1e-8, atol=1e-8)


def test_the_sampler_is_its_moves_in_order(gaussian):
    """Move i has the noise of (seed, i) and starts where the last one ended."""
    program, x, before = gaussian
    target = latents_and_target(program, x)[1]
    u = before.u[-1]
    draws = sample_posterior(
        program, x, num_draws=3, warmup=2, step_size=0.5, leapfrog_steps=4, start=u, seed=9
    )
    for number in range(5):
        options = {"step_size": 0.5, "leapfrog_steps": 4, "jitter": 0.5}
        u = move(target, u, noise=keyed(9, number), **options).u
        if number >= 2:
            torch.testing.assert_close(draws.u[number - 2], u, rtol=1e-10, atol=1e-10)


def test_gradients_are_counted(gaussian, monkeypatch):
    """L + 1 for a move by itself; chains know the first from the move before."""
    program, x, before = gaussian
    calls = []
    joint = Latents.log_joint
    monkeypatch.setattr(Latents, "log_joint", lambda *a: calls.append(1) or joint(*a))
    move(latents_and_target(program, x)[1], before.u[0], step_size=0.1, leapfrog_steps=4)
    assert len(calls) == 5
    monkeypatch.setattr(hmc, "lift", lambda *args, **kwargs: Refusal("on purpose"))
    calls.clear()
    draws = sample_posterior(
        program, x, num_draws=2, thin=3, warmup=1, step_size=0.1, leapfrog_steps=4
    )
    assert len(calls) == draws.evaluations == 29


def test_draws_depend_on_the_seed_alone(gaussian):
    """torch's generator neither enters nor moves, and thinning keeps what it would have been."""
    program, x, _ = gaussian
    options = {"warmup": 0, "step_size": 0.4, "leapfrog_steps": 2}
    state = torch.get_rng_state()
    one = sample_posterior(program, x, num_draws=6, **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    thinned = sample_posterior(program, x, num_draws=2, thin=3, **options)
    assert torch.equal(thinned.u, one.u[2::3])
    other = sample_posterior(program, x, num_draws=6, seed=1, **options)
    assert not torch.equal(other.u, one.u)


def test_chains_start_where_they_are_told():
    """A tiny step keeps them there: the guide here is the posterior, the prior is far from it."""
    program, x = Counts(), COUNTS[2:3].expand(200, -1)  # n = 44
    options = {"num_draws": 1, "warmup": 0, "step_size": 1e-9}
    means = {
        start: float(sample_posterior(program, x, start=start, **options).values["rate"].mean())
        for start in ("prior", "guide")
    }
    assert abs(means["prior"] - 2 / 0.7) < 0.6 and abs(means["guide"] - 46 / 1.7) < 1.5


# --- the latents of a datum -----------------------------------------------------------------------


def test_log_joint_is_the_density_of_u():
    """Gamma, Dirichlet and Poisson by scipy, and |det dz/du| from the Jacobian of `constrain`."""
    program, x = Counts(), COUNTS
    latents = Latents.of(program, x)
    assert latents.names == ("rate", "share") and latents.dim == 3
    u = torch.randn(4, 3, dtype=torch.float64)
    values = latents.constrain(u)
    rate, share = values["rate"].numpy(), values["share"].numpy()
    log_p = stats.gamma.logpdf(rate, program.shape, scale=1 / program.rate)
    log_p += np.array([stats.dirichlet.logpdf(s, [1.5, 1.5, 1.5]) for s in share])
    log_p += stats.poisson.logpmf(x.numpy(), rate[:, None] * share).sum(-1)

    def free(row):  # u of one datum to (rate, the first two shares)
        z = latents.constrain(row[None])
        return torch.cat([z["rate"], z["share"][0, :2]])

    jacobian = torch.stack([torch.autograd.functional.jacobian(free, row) for row in u])
    expected = torch.tensor(log_p) + torch.linalg.slogdet(jacobian).logabsdet

    torch.testing.assert_close(
        latents.log_joint(program, x, u).detach(), expected, rtol=1e-10, atol=1e-10
    )


def test_constrain_and_unconstrain_undo_each_other_under_leading_dimensions():
    latents = Latents.of(Counts(), COUNTS)
    u = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    values = latents.constrain(u)
    assert values["rate"].shape == (2, 5, 4) and values["share"].shape == (2, 5, 4, 3)
    torch.testing.assert_close(latents.unconstrain(values), u)
    torch.testing.assert_close(latents.constrain(u[1, 2])["share"], values["share"][1, 2])


def program_of(model):
    return pv.Program(model, lambda x: None)


def in_plate(draw):
    """A program whose latents come from ``draw()`` inside the data plate."""

    def model(x):
        with pyro.plate("data", len(x)):
            mean = draw()
            pyro.sample("x", dist.Normal(mean.reshape(len(x), -1)[:, :1], 1.0).to_event(1), obs=x)

    return program_of(model)


def nested(x):
    """Rows along the second batch dimension in "a", along the first of two in "b"."""
    data = pyro.plate("data", len(x), dim=-2)
    with data, pyro.plate("inner", 3, dim=-1):
        b = pyro.sample("b", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    with data:
        a = pyro.sample("a", dist.Beta(2.0, 3.0))
        mean = b.sum((-1, -2)).unsqueeze(-1) + a
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def outer(x):
    """Another plate to the left of the data's."""
    with pyro.plate("data", len(x), dim=-1):
        with pyro.plate("factors", 4, dim=-2):
            a = pyro.sample("a", dist.Gamma(torch.tensor(2.0), 1.0))  # (4, B)
        pyro.sample("x", dist.Normal(a.sum(0), 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "x", "shapes"),
    [
        (nested, torch.zeros(5, 1), {"b": (5, 3, 2), "a": (5, 1)}),
        (outer, torch.zeros(5), {"a": (4, 5)}),
    ],
)
def test_rows_are_found_in_any_nest_of_plates(model, x, shapes):
    """Values have the site's own shape, and log p of a row depends on that row of u alone."""
    program = program_of(model)
    latents = Latents.of(program, x[:2])  # and holds for another number of rows
    u = latents.from_prior(program, x)
    assert u.shape == (5, latents.dim)
    values = latents.constrain(u)
    assert {name: tuple(v.shape) for name, v in values.items()} == shapes
    torch.testing.assert_close(latents.unconstrain(values), u)
    jacobian = torch.autograd.functional.jacobian(lambda u: latents.log_joint(program, x, u), u)
    assert jacobian.shape == (5, 5, latents.dim)
    seen = jacobian.abs().sum(-1) > 0
    assert torch.equal(seen, torch.eye(5).bool())
    batched = latents.log_joint(program, x, u)
    for row in range(5):
        alone = latents.log_joint(program, x[row : row + 1], u[row : row + 1])
        torch.testing.assert_close(alone, batched[row : row + 1])


def test_fixed_bounds_and_mixture_priors_have_a_transform():
    """Bounds are constants of the latents, so they serve any number of rows."""

    def bounded():
        low = torch.tensor([-1.0, 2.0])
        return pyro.sample("z", dist.Uniform(low, low + 1).to_event(1))

    program = in_plate(bounded)
    latents = Latents.of(program, torch.zeros(2, 1))
    values = latents.constrain(torch.linspace(-9, 9, 14).reshape(7, 2))["z"]
    assert (values[:, 0] > -1).all() and (values[:, 0] < 0).all()
    assert (values[:, 1] > 2).all() and (values[:, 1] < 3).all()
    assert latents.log_joint(program, torch.zeros(7, 1), torch.randn(7, 2)).isfinite().all()

    def mixture():
        parts = dist.Normal(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 1.0).to_event(1)
        return pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts))

    latents = Latents.of(in_plate(mixture), torch.zeros(2, 1))
    u = torch.randn(3, 2)
    assert torch.equal(latents.constrain(u)["z"], u)


def test_subsampled_plates_and_covariates_are_scored_unscaled():
    """log p of a row is the same inside pyro.plate("data", N, subsample_size=B)."""

    def model(size):
        def run(x):
            with pyro.plate("data", size or len(x["x"]), subsample_size=len(x["x"])):
                z = pyro.sample("z", dist.Normal(x["c"], 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x["x"])

        return program_of(run)

    x = {"x": torch.randn(3, 2), "c": torch.randn(3, 2)}
    u = torch.randn(3, 2)
    whole, sub = model(None), model(500)
    latents = Latents.of(sub, x)
    torch.testing.assert_close(latents.log_joint(sub, x, u), latents.log_joint(whole, x, u))
    drawn = latents.from_prior(sub, {k: v.repeat(100, 1) for k, v in x.items()})
    z = (drawn.reshape(100, 3, 2).mean(0) - x["c"]) * 10
    assert z.abs().max() < 4.5


def test_a_factor_outside_the_plate_counts_only_if_it_is_constant():
    """A weight prior belongs to no datum; a factor on latents would be missed, so it is refused."""

    def model(on_latents):
        def run(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
            pyro.factor("f", -z.sum() if on_latents else torch.tensor(-3.0))

        return program_of(run)

    x, u = torch.zeros(2, 1), torch.zeros(2, 1)
    program = model(on_latents=False)
    log_joint = Latents.of(program, x).log_joint(program, x, u)
    torch.testing.assert_close(log_joint, torch.full((2,), -math.log(2 * math.pi)))
    with pytest.raises(ValueError, match=r'"f" depends on the latents and is outside'):
        Latents.of(model(on_latents=True), x)


# --- what HMC cannot do is said -------------------------------------------------------------------


def global_latent(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0).expand([1]).to_event(1), obs=x)


def dependent():
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    return pyro.sample("b", dist.Uniform(torch.zeros_like(a), a))


def dropped():
    z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    return nn.functional.dropout(z, training=True)


def learned(x):
    high = pyro.param("high", torch.tensor(2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Uniform(0.0, high))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)


def nothing(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (program_of(global_latent), r'"w" is not in a vectorized pyro.plate\("data"'),
        (
            in_plate(lambda: pyro.sample("k", dist.Bernoulli(0.5))),
            r'"k" is discrete \(Bernoulli\).*sum it out',
        ),
        (in_plate(dependent), r'"b" has a support with bounds.*on other latents.*scale it'),
        (program_of(learned), r'"z" has a support with bounds.*on parameters'),
        (in_plate(dropped), r"draws random numbers besides its latent sites.*program.eval\(\)"),
        (
            in_plate(lambda: pyro.sample("d", dist.ProjectedNormal(torch.ones(3)))),
            r'"d" has the support .* another distribution',
        ),
        (program_of(nothing), "no latent site"),
    ],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_latents_that_hmc_cannot_move_are_refused(program, message, rows):
    with pytest.raises(ValueError, match=message):
        Latents.of(program, torch.zeros(rows, 1))


def test_wrong_shapes_and_names_are_refused():
    program, x = Counts(), COUNTS
    latents = Latents.of(program, x)
    with pytest.raises(ValueError, match=r"u has shape \(3, 3\), expected \(B, J\) = \(4, 3\)"):
        latents.log_joint(program, x, torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"u has shape \(4, 2\), expected \(..., B, 3\)"):
        latents.constrain(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"given for \['rate'\], expected \['rate', 'share'\]"):
        latents.unconstrain({"rate": torch.ones(4)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leapfrog_steps": 0}, "leapfrog_steps is 0, expected a whole number from 1 on"),
        ({"leapfrog_steps": 1.5}, "leapfrog_steps is 1.5"),
        ({"jitter": 1.0}, "jitter is 1.0, expected at least 0 and less than 1"),
        ({"step_size": 0.0}, "step_size is 0.0, expected a positive number"),
        ({"step_size": torch.ones(2)}, r"step_size has shape \(2,\), expected \(\) or \(3,\)"),
        ({"u": torch.zeros(3)}, r"u is torch.float32 of shape \(3,\), expected real numbers"),
        ({"u": torch.zeros(3, 1).long()}, "u is torch.int64"),
        ({"log_density": lambda u: normal(u).sum()}, r"returned shape \(\).*expected \(3,\)"),
        ({"log_density": lambda u: normal(u.detach())}, "no gradient to follow"),
        ({"log_density": lambda u: torch.ones(3).requires_grad_() * 2}, "no gradient to follow"),
    ],
)
def test_a_moves_options_are_checked(options, message):
    given = {"log_density": normal, "u": torch.zeros(3, 1), "step_size": 0.1, "leapfrog_steps": 2}
    given |= options
    with pytest.raises(ValueError, match=message):
        move(given.pop("log_density"), given.pop("u"), **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 0}, "num_draws is 0, expected a whole number from 1 on"),
        ({"warmup": -1}, "warmup is -1, expected a whole number from 0 on"),
        ({"warmup": 3}, "warmup is 3, expected at least 20 moves.*pass step_size"),
        ({"thin": 1.5}, "thin is 1.5"),
        ({"leapfrog_steps": 0}, "leapfrog_steps is 0"),
        ({"target_accept": 1.0}, "target acceptance is 1.0, expected a number between 0 and 1"),
        ({"adapt": "all"}, 'adapt is \'all\', expected "per_datum" or "shared"'),
        ({"start": "mode"}, 'start is \'mode\', expected "prior", "guide" or a tensor'),
        ({"start": torch.zeros(4, 2)}, r"start has shape \(4, 2\), expected \(B, J\) = \(4, 3\)"),
        ({"step_size": torch.tensor(-1.0)}, "step_size is -1.0 in one row, expected positive"),
        ({"start": torch.full((4, 3), 1e4).double()}, "where the chain of row 0 starts"),
    ],
)
def test_the_samplers_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        sample_posterior(Counts(), COUNTS, **options)
    with pytest.raises(ValueError, match="target acceptance is 0"):
        adapt(torch.zeros(()), torch.ones(2), target=0, rate=0.1)
