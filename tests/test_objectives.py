"""Every objective of the folder is what its class attributes say; a new file enters by itself."""

import inspect

import pytest
import torch

from pyro_vae.densities.particles import densities
from pyro_vae.models import linear_gaussian
from pyro_vae.noise import NoiseMode, keyed
from pyro_vae.objectives import Objective
from pyro_vae.objectives.base import EMPTY

from .oracles import Flips
from .programs import EVERY

OF_PARTICLES = [cls for cls in EVERY if cls.least_particles is not None]
BOUNDS = [cls for cls in EVERY if cls.estimates is not None]


def named(cls):
    return cls.__name__


def several(cls):
    """The objective with four particles, where it takes them: few enough for the two bounds to
    differ."""
    return cls(num_particles=4) if cls.least_particles is not None else cls()


def test_what_is_said_of_a_class_has_a_meaning():
    assert {cls.estimates for cls in EVERY} <= {None, "elbo", "K-sample bound"}
    for cls in EVERY:
        takes = "num_particles" in inspect.signature(cls).parameters
        assert takes == (cls.least_particles is not None), cls


@pytest.mark.parametrize("cls", OF_PARTICLES, ids=named)
def test_the_least_number_of_particles_is_the_least(cls):
    cls(num_particles=max(cls.least_particles, 2))
    for wrong in (cls.least_particles - 1, 2.5, -3, float("nan")):
        with pytest.raises(ValueError, match="num_particles"):
            cls(num_particles=wrong)


def value_and_error(objective, program, x, draws=2000):
    """The mean of -loss over draws for each row of x, with its standard error."""
    many = x.repeat_interleave(draws, 0)
    with NoiseMode(keyed(3)):
        state = objective.init(program, many)
        loss, _ = objective.terms(program, many, state)
    values = -loss.detach().view(len(x), draws)
    return values.mean(1), values.std(1) / draws**0.5


def k_sample_bound(program, x, particles, draws=20_000):
    """E log mean w, with its standard error, from draws of its own."""
    many = x.repeat_interleave(draws, 0)
    with torch.no_grad(), NoiseMode(keyed(4)):
        log_w = densities(program, many, particles).log_w
    values = (log_w.logsumexp(0) - torch.tensor(particles).double().log()).view(len(x), draws)
    return values.mean(1), values.std(1) / draws**0.5


def assert_estimates(objective, program, x):
    """Whether the value is that of the bound which the class names."""
    value, error = value_and_error(objective, program, x)
    expected, slack = program.elbo(x).detach(), torch.zeros(())
    if objective.estimates == "K-sample bound":
        expected, slack = k_sample_bound(program, x, objective.num_particles)
    z = (value - expected) / (error.square() + slack.square()).sqrt()
    assert z.abs().max() < 4.5, z


@pytest.mark.parametrize("cls", BOUNDS, ids=named)
def test_the_value_is_that_of_the_bound_that_is_named(cls, oracle, x):
    assert_estimates(several(cls), oracle, x[:3])


@pytest.mark.parametrize("cls", BOUNDS, ids=named)
def test_the_value_at_the_exact_posterior_is_the_evidence(cls, oracle, x):
    oracle.guide_is_exact_posterior()
    value, error = value_and_error(several(cls), oracle, x[:3])
    gap = (value - oracle.log_evidence(x[:3])).abs()
    assert (gap < 4.5 * error + 1e-8).all(), gap


class SaysElbo(Objective):
    """A K-sample bound by the name of the other."""

    estimates = "elbo"

    def loss_per_datum(self, program, x):
        return -densities(program, x, self.num_particles).log_w.logsumexp(0)


class SaysBound(Objective):
    """An ELBO by the name of the other."""

    estimates = "K-sample bound"

    def loss_per_datum(self, program, x):
        return -densities(program, x, self.num_particles).log_w.mean(0)


@pytest.mark.parametrize("mutant", [SaysElbo(num_particles=4), SaysBound(num_particles=4)])
def test_a_bound_by_the_wrong_name_is_found(mutant, oracle, x):
    with pytest.raises(AssertionError):
        assert_estimates(mutant, oracle, x[:3])


@pytest.mark.parametrize("cls", EVERY, ids=named)
def test_discrete_latents_are_taken_or_refused_by_name(cls):
    """Chains and means have reasons of their own to refuse them; nobody is silent about a draw."""
    program, objective = Flips(4), several(cls)
    x = torch.randn(4, 2, dtype=torch.float64)
    try:
        with NoiseMode(keyed(0)):
            state = objective.init(program, x)
            loss, _ = objective.terms(program, x, state if state.shared else EMPTY)
    except ValueError as error:
        assert '"z"' in str(error) or "discrete" in str(error)
        assert cls.needs_rsample or cls.refresh_every or not cls.estimates
        return
    assert not cls.needs_rsample and loss.isfinite().all()


def test_the_oracle_has_a_gap_between_its_bounds(oracle, x):
    """Else the tests above could not tell them apart."""
    assert (oracle.log_evidence(x[:3]) - oracle.elbo(x[:3])).min() > 0.5
    assert isinstance(oracle, linear_gaussian.LinearGaussian)
