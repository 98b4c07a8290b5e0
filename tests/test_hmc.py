"""One HMC move: the integrator's identities, laws that it keeps, and mutants that must not pass."""

import math
import pkgutil

import numpy as np
import pytest
import torch
from scipy import stats

import pyro_vae as pv
from pyro_vae import models
from pyro_vae.chains import hmc
from pyro_vae.chains.hmc import Phase, adapt, leapfrog, move, value_and_gradient
from pyro_vae.chains.latents import Latents
from pyro_vae.graphs.lifted import Lifted, Refusal
from pyro_vae.graphs.lifting import lift
from pyro_vae.models import linear_gaussian, logistic_lvm
from pyro_vae.noise import NoiseMode, keyed
from pyro_vae.program.calling import call_with

from .test_latents import COUNTS, Counts, latents_and_target

# --- targets --------------------------------------------------------------------------------------


def bent(u):
    """Not Gaussian, curved, with tails: a target on which nothing holds by accident."""
    return -0.5 * (u[:, 1] - u[:, 0] ** 2) ** 2 - 0.25 * u[:, 0] ** 4 - u[:, 0].cos()


def normal(u):
    """N(0, I), up to its constant."""
    return -0.5 * u.square().sum(-1)


def start_at(target, u, momentum):
    return Phase(u, momentum, *value_and_gradient(target)(u))


def gaussian_program():
    """A linear-Gaussian program and 20 rows of its own."""
    torch.manual_seed(3)
    program = linear_gaussian.build(5, noise="full", posterior="full", noise_scale=0.7).double()
    with torch.no_grad():
        program.noise.lower.normal_(0.0, 0.3)
        program.bias.normal_()
    return program, pv.datasets.synthetic(program, 20, like=torch.zeros(1, 5), seed=1).x.double()


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


def test_permuted_rows_with_permuted_noise_give_permuted_moves():
    program, x = gaussian_program()
    u, order = torch.randn(20, 2, dtype=torch.float64), torch.randperm(20)
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


# --- step sizes -----------------------------------------------------------------------------------


def test_adaptation_moves_the_log_step_by_rate_times_the_miss():
    accept = torch.tensor([1.0, 0.5, 0.0])
    shared = adapt(torch.tensor(0.3), accept, rate=0.2)
    torch.testing.assert_close(shared, torch.tensor(0.3 + 0.2 * (0.5 - 0.9)))
    own = adapt(torch.zeros(3), accept, target=0.5, rate=2.0)
    torch.testing.assert_close(own, torch.tensor([1.0, 0.0, -1.0]))
    with pytest.raises(ValueError, match="target is 0, expected"):
        adapt(torch.zeros(()), torch.ones(2), target=0, rate=0.1)


def test_jitter_breaks_the_resonance_of_a_trajectory_of_two_pi():
    """N(0, 1) is back where it started after s L = 2 pi, whatever the momentum."""
    u = torch.randn(500, 1, dtype=torch.float64)
    options = {"step_size": 2 * math.pi / 40, "leapfrog_steps": 40, "noise": keyed(1)}
    same = move(normal, u, **options).u
    assert np.corrcoef(u[:, 0], same[:, 0])[0, 1] > 0.99
    jittered = move(normal, u, jitter=0.5, **options).u
    assert abs(np.corrcoef(u[:, 0], jittered[:, 0])[0, 1]) < 0.3


# --- captured -------------------------------------------------------------------------------------


def test_a_captured_move_equals_the_move_at_the_same_key():
    program, x = gaussian_program()
    u = torch.randn(20, 2, dtype=torch.float64)
    steps = torch.linspace(0.2, 1.0, 20, dtype=torch.float64)
    latents = Latents.of(program, x)
    parameters = {name: p.detach() for name, p in program.named_parameters()}

    def one(parameters, x, u, step):
        def run(program):
            target = lambda u: latents.log_joint(program, x, u)  # noqa: E731
            return move(target, u, step_size=step, leapfrog_steps=4, jitter=0.2)

        return call_with(program, parameters, run)

    args = (parameters, x, u, steps)
    graph = lift(one, *args)
    assert isinstance(graph, Lifted) and not graph.kept
    with NoiseMode(keyed(8, 3)):
        expected = one(*args)
    for want, have in zip(expected, graph(*args, noise=graph.draw((8, 3))), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-10, atol=1e-10)
    direct = move(
        lambda u: latents.log_joint(program, x, u),
        u,
        step_size=steps,
        leapfrog_steps=4,
        jitter=0.2,
        noise=keyed(8, 3),
    )
    torch.testing.assert_close(direct.u, expected.u, rtol=0, atol=0)


# bayesian_vae's weights are shared by all data, so they have no chain of a datum.
LOCAL = [m.name for m in pkgutil.iter_modules(models.__path__) if m.name != "bayesian_vae"]


@pytest.mark.parametrize("name", LOCAL)
def test_every_models_move_is_captured(name):
    """Monte Carlo EM keeps its moves inside a graph, and so must every file in models/."""
    module = __import__(f"pyro_vae.models.{name}", fromlist=["build"])
    needed = {"likelihood": pv.likelihoods.Bernoulli()} if name == "vae" else {}
    program = module.build(6, **needed).double()
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


def test_a_move_costs_one_gradient_more_than_leapfrog_steps():
    calls = []
    move(
        lambda u: calls.append(1) or normal(u),
        torch.randn(3, 2, dtype=torch.float64),
        step_size=0.1,
        leapfrog_steps=4,
    )
    assert len(calls) == 5


# --- what is no move ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leapfrog_steps": 0}, "leapfrog_steps is 0, expected a whole number from 1 on"),
        ({"leapfrog_steps": 1.5}, "leapfrog_steps is 1.5"),
        ({"jitter": 1.0}, r"jitter is 1.0, expected a number in \[0, 1\)"),
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
