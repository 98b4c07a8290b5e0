"""Parameters that cannot learn are found by `check`."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae.checking.report import check
from pyro_vae.program.base import Program

from .checks import Linear, mistake, mistakes


def test_a_parameter_that_nothing_uses_is_named(real):
    """It would sit in every checkpoint and never move (T10)."""
    program = Linear()
    program.spare = nn.Linear(1, 1, bias=False)

    line = mistake(program, real)

    assert line.startswith('parameter "spare.weight": no gradient from AEVB("A")')
    assert "freeze it with requires_grad_(False) or use it" in line
    program.spare.requires_grad_(False)
    assert check(program, real).num_parameters == 17


def test_a_cut_in_the_graph_is_found_at_the_parameters_behind_it(real):
    """A forgotten detach leaves the encoder as it was, without a word."""

    class Cut(Linear):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.encoder(x).detach(), 1.0).to_event(1))

    line = mistake(Cut(), real)

    assert line.startswith('parameter "encoder.weight": no gradient')
    assert line.endswith('(likewise parameter "encoder.bias")')


def test_of_many_unused_parameters_ten_are_named():
    """An unused network is one mistake, not a screen of them."""
    program = Linear()
    program.spare = nn.ModuleList(nn.Linear(1, 1) for _ in range(8))

    line = mistake(program, torch.randn(8, 3))

    assert line.startswith('parameter "spare.0.weight": no gradient')
    assert '"spare.4.bias" and 6 more)' in line and '"spare.5.weight"' not in line


def test_discrete_latents_count_on_wake_sleep_for_their_gradients():
    """The guide's parameters are reached by log q alone."""

    class Discrete(Linear):
        def prior(self):
            return dist.Bernoulli(torch.full((2,), 0.5)).to_event(1)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1))

    program = Discrete()
    program.spare = nn.Parameter(torch.zeros(()))

    line = mistake(program, torch.randn(8, 3))

    assert line.startswith('parameter "spare": no gradient from WakeSleep()')


def test_a_gradient_that_is_not_finite_is_named(real):
    """The value of a norm at zero is fine, its gradient is 0 / 0."""

    class Kink(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return x[:, :2] + self.weight.square().sum().sqrt()

    line = mistake(Linear(Kink()), real)

    assert line.startswith('parameter "encoder.weight": gradient from AEVB("A") is not finite')


def test_a_program_without_parameters_is_refused(real):
    """There is nothing to fit."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), torch.ones(3)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert "no parameter that requires a gradient" in mistake(Program(model, guide), real)


def test_a_network_that_the_program_does_not_own_is_found(real):
    """Its parameters would be in no optimizer (T28): 50 steps, moved 0.0."""
    decoder = nn.Linear(2, 3)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1))

    lines = mistakes(Program(model, guide), real)

    assert len(lines) == 2  # weight and bias
    assert lines[0].startswith('site "x" of the model: depends on a tensor (3, 2)')
    assert "pv.Program(model, guide, net=net)" in lines[0]
    assert check(Program(model, guide, decoder=decoder), real).num_parameters == 11


def test_a_module_that_keeps_parameters_in_pyros_store_must_be_wrapped(real):
    """The store mixes models up (T10); a Program answers from its own."""

    class Stored(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = nn.Linear(2, 3)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1))

    line = mistake(Stored(), real)

    assert line.startswith('site "z" of the guide: depends on pyro.param("loc")')
    assert "pv.Program(module)" in line
    assert check(Program(Stored()), real).num_parameters == 11
