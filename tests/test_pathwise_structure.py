"""Gradients along the draws in chains of latents, several particles, plates; and refusals."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import engine
from pyro_vae.densities import particles
from pyro_vae.densities.particles import densities
from pyro_vae.noise import NoiseMode, keyed
from pyro_vae.objectives import DReG, StickingTheLanding
from pyro_vae.objectives.base import EMPTY, Pair
from pyro_vae.objectives.pathwise import surrogate
from pyro_vae.program.base import Program

from .oracles import (
    CORNERS,
    LogisticRows,
    SubsampledRows,
    assert_equal,
    fed,
    gradients,
    parameter_gradients,
)

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
