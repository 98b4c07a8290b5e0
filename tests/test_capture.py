"""What cannot be captured, and says why; and what a capture leaves alone."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import engine
from pyro_vae.densities.dreams import dream
from pyro_vae.densities.particles import densities
from pyro_vae.engine.functions import gradient_function
from pyro_vae.evaluation import RowFunction, row_chunks
from pyro_vae.graphs import lifting
from pyro_vae.graphs.lifted import Refusal
from pyro_vae.models import bernoulli_vae
from pyro_vae.noise import NoiseMode, keyed
from pyro_vae.objectives import (
    AEVB,
    ReweightedWakeSleep,
    ScoreFunction,
    WakeSleep,
)
from pyro_vae.program import trainable
from pyro_vae.program.base import Program

from .oracles import assert_equal
from .programs import COLUMNS, KEY, OBJECTIVES, REFUSED, ROWS, Parts, normal, program_and_rows
from .quickly import some_quickly


@pytest.mark.parametrize(("name", "objective"), REFUSED)
def test_refusal_of_an_objective_is_the_reason(name, objective):
    program, x = program_and_rows(name)

    refusal = engine.capture(program, OBJECTIVES[objective], x)

    assert isinstance(refusal, Refusal)
    assert REFUSED[name, objective] in str(refusal)


class Fickle(Parts):
    """A program whose decoder is scaled by ``factor(x)``."""

    def __init__(self, factor):
        super().__init__(decoder=(2, COLUMNS), encoder=(COLUMNS, 2))
        self.factor, self.calls = factor, 0

    def model(self, x):
        self.calls += 1
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(self.zeros(2)))
            pyro.sample("x", normal(self.decoder(z) * self.factor(self, x)), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.encoder(x), 0.5))


def more_draws_each_time(program, x):
    return sum(torch.rand((), dtype=torch.float64) for _ in range(program.calls))


DEPENDS, FROZEN = "depends on the values of tensors", "was frozen into it"
RERUN = "other values from run to run"
FICKLE = {
    "a branch on data": (lambda program, x: 2.0 if x.sum() > 0 else 1.0, DEPENDS),
    "a number read from data": (lambda program, x: x.mean().item(), DEPENDS),
    "an attribute that changes": (lambda program, x: 1.0 + 0.1 * program.calls, RERUN),
    "a slow drift, in float32": (lambda program, x: (1 - 1e-4) ** program.calls, RERUN),
    "a Python random number": (lambda program, x: random.random(), RERUN),
    "numpy of the data": (lambda program, x: torch.from_numpy(np.tanh(x.numpy())), FROZEN),
    "a list of the data": (lambda program, x: 1 + max(x[:, 0].tolist()), FROZEN),
    "a rare branch on a length": (lambda p, x: 2.0 if len((x > 9).nonzero()) else 1.0, DEPENDS),
    "the largest value, by numpy": (lambda p, x: float(1 + x.numpy().max()), FROZEN),
    "a changing number of draws": (more_draws_each_time, "the draws change from run to run"),
}


@pytest.mark.parametrize("particles", some_quickly([1, 3], 3))
@pytest.mark.parametrize("what", FICKLE)
def test_program_that_is_no_fixed_function_is_refused_with_a_reason(what, particles):
    """A frozen value would train on with the wrong numbers, and nobody would see it."""
    factor, reason = FICKLE[what]
    x = torch.randn(ROWS, COLUMNS, dtype=torch.float64)

    refusal = engine.capture(Fickle(factor), AEVB("A", particles), x)

    assert isinstance(refusal, Refusal)
    assert reason in str(refusal)
    assert "\n" not in str(refusal)


@pytest.mark.parametrize("what", ["numpy of the data", "a list of the data"])
def test_evaluation_in_chunks_freezes_nothing_either(what):
    """The first two chunks run the program; a graph of a later one must not differ from it."""
    factor, _ = FICKLE[what]
    program, x = Fickle(factor), torch.randn(60, COLUMNS)
    program.double()

    found = RowFunction(program, lambda p, rows: densities(p, rows, 2).log_w)
    for number, (_, rows) in enumerate(row_chunks(x.double(), 10)):
        with NoiseMode(keyed(0, number)), torch.no_grad():
            expected = densities(program, rows, 2).log_w
        torch.testing.assert_close(found(rows, 0, number), expected)


def test_a_graph_with_draws_of_its_own_is_compared_as_well():
    """Gamma draws cannot be lifted; that is no reason to trust what stands beside them."""

    class Counting(Fickle):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                rate = self.encoder(x).exp()
                pyro.sample("z", dist.Gamma(2.0 + 0 * rate, rate).to_event(1))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Gamma(self.zeros(2) + 2.0, 1.0).to_event(1))
                pyro.sample("x", normal(self.decoder(z) * self.factor(self, x)), obs=x)

    x = torch.randn(ROWS, COLUMNS, dtype=torch.float64)
    steady = engine.capture(Counting(lambda p, x: 1.0), AEVB("A"), x)
    assert steady.grads.kept

    def later(program, x):
        program.calls += 1
        return 1.0 + 0.1 * program.calls

    refusal = engine.capture(Counting(later), AEVB("A"), x)
    assert isinstance(refusal, Refusal) and RERUN in str(refusal)


def test_draws_that_no_noise_can_serve_stay_in_the_graph_and_are_named():
    """A gamma draw depends on its parameters; from one seed, graph and program still agree."""

    class Positive(Parts):
        def __init__(self):
            super().__init__(encoder=(COLUMNS, 2))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Gamma(self.zeros(2) + 2.0, 1.0).to_event(1))
                pyro.sample("x", normal(z.sum(-1, keepdim=True).expand(-1, COLUMNS)), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                rate = self.encoder(x).exp()
                pyro.sample("z", dist.Gamma(rate + 1.0, rate).to_event(1))

    program, x = Positive(), torch.rand(ROWS, COLUMNS, dtype=torch.float64)
    graph = engine.capture(program, AEVB("A"), x)
    params = {name: p.detach() for name, p in program.named_parameters()}
    args = params, x, torch.ones(ROWS, dtype=torch.float64), {}, {}

    torch.manual_seed(1)
    got, _ = graph.grads(*args, noise=graph.grads.draw(KEY))
    torch.manual_seed(1)
    expected, _ = gradient_function(program, AEVB("A"))(*args)

    assert graph.grads.kept == ("aten._standard_gamma.default",)
    assert_equal(got, expected)


@pytest.mark.parametrize("objective", [WakeSleep(2), ReweightedWakeSleep(2), ScoreFunction(2)])
@pytest.mark.parametrize("width", some_quickly([5, 100], 100))
def test_detached_draws_of_several_particles_stay_detached(objective, width, monkeypatch):
    """Nothing carries a gradient while a particle is captured, and the detachment counts later."""
    found = []

    def lift(*args, made=lifting.lift, **options):
        found.append(made(*args, **options))
        return found[-1]

    monkeypatch.setattr("pyro_vae.densities.particles.lift", lift)
    program = bernoulli_vae.build(COLUMNS, latent_dim=2, hidden_dim=width, init_std=None).double()
    x = dream(program, torch.zeros(ROWS, COLUMNS, dtype=torch.float64))[0]
    graph = engine.capture(program, objective, x)
    assert isinstance(graph, engine.Graph), str(graph)
    assert [type(f).__name__ for f in found] == ["Lifted"]  # side by side, not row after row


def test_capture_and_its_graph_leave_the_global_generator_alone():
    """Noise comes from the key, so a fit cannot change what the user draws next."""
    program, x = program_and_rows("linear_gaussian")
    before = torch.get_rng_state()

    graph = engine.capture(program, WakeSleep(), x)
    params = {name: p.detach() for name, p in program.named_parameters()}
    args = params, x, torch.ones(ROWS, dtype=torch.float64), {}, {}
    graph.grads(*args, noise=graph.grads.draw(KEY))

    assert torch.equal(torch.get_rng_state(), before)


def test_program_without_parameters_is_told_where_they_belong():
    program = Program(lambda x: None, lambda x: None)

    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        engine.capture(program, AEVB(), torch.zeros(2, 3))


def test_frozen_parameters_get_no_gradient():
    program, x = program_and_rows("linear_gaussian")
    program.weight.requires_grad_(False)

    graph = engine.capture(program, AEVB(), x)

    params = {name: p.detach() for name, p in trainable(program).items()}
    args = params, x, torch.ones(ROWS, dtype=torch.float64), {}, {}
    found, _ = graph.grads(*args, noise=graph.grads.draw(KEY))
    assert found.keys() == {n for n, _ in program.named_parameters()} - {"weight"}
