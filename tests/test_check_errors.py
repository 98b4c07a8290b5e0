"""How `check` says what is wrong, and that it leaves everything as it was."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import likelihoods, posteriors, priors
from pyro_vae.checking.report import check
from pyro_vae.objectives import AEVB, WakeSleep
from pyro_vae.program.base import Program
from pyro_vae.program.vae import VAE

from .checks import Linear, Plated, mistake, mistakes


def test_an_exception_of_the_program_is_chained_to_one_line(real):
    """The line says which function on which shape, and the traceback stays."""
    with pytest.raises(
        ValueError, match=r"guide\(x\) fails on a batch of shape \(8, 3\)"
    ) as caught:
        check(Linear(encoder=nn.Linear(4, 2)), real)

    assert isinstance(caught.value.__cause__, RuntimeError)
    assert len(str(caught.value).splitlines()) == 2


def test_two_sites_or_plates_of_one_name_are_refused(real):
    """Pyro notices; the message says what to do."""

    class TwoSites(Linear):
        def more_in_model(self, x):
            pyro.sample("z", self.prior())

    class TwoPlates(Linear):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior())
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    assert "Multiple sample sites named 'z'" in mistake(TwoSites(), real)
    assert 'rows = pyro.plate("data", len(x))' in mistake(TwoPlates(), real)


def test_a_likelihood_that_validates_itself_gives_no_second_line(real):
    """Its log_prob raises for a value that was already named, and its decoder is not unused."""

    class Strict(Linear):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior())
                pixels = dist.Bernoulli(logits=self.decoder(z), validate_args=True)
                pyro.sample("x", pixels.to_event(1), obs=x)

    assert "expected 0 or 1" in mistake(Strict(), real)


def test_all_mistakes_are_listed_at_once(real):
    """One run, one list, one line a cause."""
    program = Plated(model_size=100, scale=0.5)
    program.spare = nn.Parameter(torch.zeros(()))
    real[1, 1] = torch.inf

    lines = mistakes(program, real)

    for part in ("has size 8", "scaled by", "in row 1", 'parameter "spare"'):
        assert any(part in line for line in lines), part


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[0.0]], TypeError, "expected a Data, a tensor"),
        ({"y": torch.zeros(3, 3)}, TypeError, 'entry "x"'),
        ({"x": torch.zeros(3, 3), "c": torch.zeros(2)}, ValueError, "common first dimension"),
        (torch.zeros(1, 3), ValueError, "x has 1 row, expected at least 2"),
        (torch.zeros(0, 3), ValueError, "no rows"),
        (torch.zeros(()), ValueError, "single number"),
    ],
)
def test_what_is_no_data_is_refused(x, error, message):
    """Before the program is run at all."""
    with pytest.raises(error, match=message):
        check(Linear(), x)


def test_what_is_no_program_is_refused(real):
    """A function, or a network alone."""
    for program in (lambda x: x, nn.Linear(3, 3)):
        with pytest.raises(TypeError, match="expected a module with model"):
            check(program, real)


@pytest.mark.parametrize("broken", [False, True])
def test_the_program_and_the_world_are_left_as_they_were(real, broken):
    """Gradients, parameters, buffers, modes, the generator and the store: all of them."""
    norm = nn.BatchNorm1d(2).train(broken)
    program = Linear(nn.Sequential(nn.Linear(3, 2), norm))
    program.decoder.eval()
    pyro.get_param_store()["mine"] = torch.ones(2)
    state = {name: value.clone() for name, value in program.state_dict().items()}
    generator, kept = torch.get_rng_state(), real.clone()

    try:
        check(program, real)
    except ValueError:
        assert broken

    for name, value in program.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(p.grad is None and p.requires_grad for p in program.parameters())
    assert (program.training, norm.training, program.decoder.training) == (True, broken, False)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(real, kept)
    assert list(pyro.get_param_store()) == ["mine"]
    pyro.clear_param_store()


def test_parameters_that_pyro_param_makes_are_dropped_again(real):
    """They start where the first real run starts them, not where a check did."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            weight = pyro.param("weight", lambda: torch.randn(2, 3))
            pyro.sample("x", dist.Normal(z @ weight, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1))

    program = Program(model, guide)

    assert check(program, real).num_parameters == 8
    assert not list(program.parameters())


def test_a_checked_program_trains_as_an_unchecked_one(real):
    """The check leaves no mark on the numbers that follow."""
    losses = []
    for checked in (False, True):
        pyro.set_rng_seed(1)
        vae = VAE(
            prior=priors.StandardNormal(2),
            likelihood=likelihoods.Gaussian(2, 3, 4),
            posterior=posteriors.Gaussian(3, 2, 4),
        )
        if checked:
            check(vae, real)
        losses += [
            objective.differentiable_loss(vae.model, vae.guide, real)
            for objective in (AEVB("A"), WakeSleep())
        ]

    assert losses[:2] == losses[2:]
