"""``check`` tests priors and posteriors of the user's own as samplers and as densities."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import nn
from torch.distributions import constraints

import pyro_vae as pv
from pyro_vae.checking import laws
from pyro_vae.densities.sites import Site
from tests.quickly import some_quickly
from tests.strangers import (
    VAE,
    FlowPosterior,
    FlowPrior,
    MixturePosterior,
    MixturePrior,
    NormalPosterior,
)

DIMENSIONS = some_quickly((2, 8, 40), 8)  # of the same laws
SAID = {
    "dimensions": "logsumexp runs over one dimension at a time",
    "variance": "exp(log variance) for the standard deviation",
    "determinant": "a log-determinant counted once for each dimension",
}


def data(rows=20):
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))


def mistakes(program):
    """What ``check`` says; "" where it finds nothing."""
    try:
        return "\n".join(pv.check(program, data()).notes)
    except ValueError as error:
        return str(error)


def examined(law):
    """What is wrong with a law by itself."""
    return laws._examined(Site("z", law, torch.zeros(()), False), "model", None, {})


PRIORS = {
    "dimensions": lambda dim, wrong: MixturePrior(dim, wrong="dimensions" if wrong else ""),
    "variance": lambda dim, wrong: MixturePrior(dim, wrong="variance" if wrong else ""),
    "determinant": lambda dim, wrong: FlowPrior(dim, counted=dim if wrong else 1),
}
AT_THE_START = {  # where the mistake does not show yet
    "variance": lambda dim, wrong: MixturePrior(
        dim, wrong="variance" if wrong else "", log_var=0.0
    ),
    "determinant": lambda dim, wrong: FlowPrior(dim, counted=dim if wrong else 1, identity=True),
}
POSTERIORS = {
    "dimensions": lambda dim, wrong: MixturePosterior(6, dim, wrong="dimensions" if wrong else ""),
    "variance": lambda dim, wrong: NormalPosterior(6, dim, wrong),
    "determinant": lambda dim, wrong: FlowPosterior(6, dim, counted=dim if wrong else 1),
}


@pytest.mark.parametrize("dim", DIMENSIONS)
@pytest.mark.parametrize("kind", PRIORS)
def test_mistakes_of_a_prior_are_named_and_the_same_without_them_passes(kind, dim):
    torch.manual_seed(dim)

    said = mistakes(VAE(dim, PRIORS[kind](dim, True)))

    assert 'site "z" of the model' in said and SAID[kind] in said, said
    assert mistakes(VAE(dim, PRIORS[kind](dim, False))) == ""


@pytest.mark.parametrize("dim", DIMENSIONS)
@pytest.mark.parametrize("kind", AT_THE_START)
def test_mistakes_that_show_after_training_alone_are_found_before(kind, dim):
    torch.manual_seed(dim)

    said = mistakes(VAE(dim, AT_THE_START[kind](dim, True)))

    assert SAID[kind] in said and "once its parameters are moved" in said, said
    assert mistakes(VAE(dim, AT_THE_START[kind](dim, False))) == ""


@pytest.mark.parametrize("dim", DIMENSIONS)
@pytest.mark.parametrize("kind", POSTERIORS)
def test_mistakes_of_a_posterior_are_named_and_the_same_without_them_passes(kind, dim):
    torch.manual_seed(dim)

    said = mistakes(VAE(dim, posterior=POSTERIORS[kind](dim, True)))

    assert 'site "z" of the guide' in said and SAID[kind] in said, said
    assert mistakes(VAE(dim, posterior=POSTERIORS[kind](dim, False))) == ""


@pytest.mark.parametrize("log_var", [0.3, -0.3, -5.0])
@pytest.mark.parametrize("dim", DIMENSIONS)
def test_other_sizes_of_the_error_are_found(dim, log_var):
    torch.manual_seed(dim)
    prior = MixturePrior(dim, components=1, wrong="variance", log_var=log_var)

    how = "wider" if log_var > 0 else "narrower"

    assert f"draws of ByHand are {how} than its log_prob says" in mistakes(VAE(dim, prior))


class Laplace(TorchDistribution):
    """The law of Laplace by hand, with what is wrong with it."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, wrong=""):
        self.wrong = wrong
        super().__init__(torch.Size(), torch.Size([3]), validate_args=False)

    def sample(self, sample_shape=()):
        return dist.Laplace(torch.zeros(3), 1.0).sample(sample_shape)

    def log_prob(self, z):
        if self.wrong == "detached":
            z = z.detach()
        log_p = -(z.abs() + torch.tensor(2.0).log()).sum(-1)
        if self.wrong == "constant":
            log_p = log_p + 3 * torch.tensor(2.0).log()
        if self.wrong == "infinite":
            log_p = torch.where(z[..., 0] > 0, -torch.inf, log_p)
        if self.wrong == "cached":
            log_p = log_p + torch.rand(log_p.shape)
        return log_p


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("detached", "has no gradient with respect to z"),
        ("constant", "integrates to 7."),  # of 8
        ("infinite", "is not finite at"),
    ],
)
def test_what_else_is_wrong_with_a_density_is_said_in_numbers(wrong, said):
    assert said in examined(Laplace(wrong)).got
    assert examined(Laplace()) is None


def test_a_density_that_changes_between_calls_is_a_note():
    assert "changes after another draw" in examined(Laplace("cached"))


class Coin(TorchDistribution):
    """Independent coins whose sampler has other weights."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, drawn):
        self.drawn = drawn
        super().__init__(torch.Size(), torch.Size([3]), validate_args=False)

    def sample(self, sample_shape=()):
        return torch.bernoulli(torch.full((*sample_shape, 3), self.drawn))

    def log_prob(self, value):
        return dist.Bernoulli(torch.full((3,), 0.3)).log_prob(value).sum(-1)


def test_discrete_laws_are_compared_by_the_values_that_they_draw():
    assert "of the draws of Coin" in examined(Coin(0.5)).got
    assert examined(Coin(0.3)) is None


def _laws(dim):
    one, zero = torch.ones(dim), torch.zeros(dim)
    far = dist.Normal(torch.stack([zero - 50, zero + 50]), 0.1).to_event(1)
    yield dist.Normal(zero, 1e-3).to_event(1)
    yield dist.Cauchy(zero, one).to_event(1)
    yield dist.StudentT(0.5 * one, zero, one).to_event(1)
    yield dist.Gamma(0.5 * one, one).to_event(1)
    yield dist.LogNormal(zero, 2 * one).to_event(1)
    yield dist.Uniform(zero, one).to_event(1)
    yield dist.Dirichlet(0.3 * torch.ones(dim + 1))
    yield dist.RelaxedOneHotCategorical(torch.tensor(0.7), logits=torch.zeros(dim + 1))
    yield dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.999, 0.001])), far)
    yield dist.Poisson(3 * one).to_event(1)


@pytest.mark.parametrize("dim", some_quickly([1, 2, 8, 40], 8))
def test_right_laws_of_all_kinds_pass_where_they_are_not_taken_on_trust(dim, monkeypatch):
    monkeypatch.setattr(laws, "PROVEN", ())

    assert [law for law in _laws(dim) if examined(law) is not None] == []


def test_laws_of_libraries_are_taken_on_trust_but_not_what_users_put_into_them():
    class Mine(dist.Normal):
        pass

    class Shift(torch.distributions.AffineTransform):
        pass

    normal = dist.Normal(torch.zeros(2), 1.0)

    assert laws.is_proven(normal.to_event(1).expand([3]).mask(True))
    assert not laws.is_proven(Mine(torch.zeros(2), 1.0).to_event(1))
    assert not laws.is_proven(dist.TransformedDistribution(normal, [Shift(0.0, 2.0)]))
    normal.log_prob = lambda value: value
    assert not laws.is_proven(normal)


def test_what_a_mask_leaves_out_is_no_mistake(monkeypatch):
    monkeypatch.setattr(laws, "PROVEN", ())
    law = dist.Normal(torch.zeros(3), 1.0).mask(torch.tensor([True, False, True])).to_event(1)

    assert examined(law) is None


def test_nothing_moves():
    program = VAE(2, MixturePrior(2, wrong="variance", log_var=0.0))
    before = [p.detach().clone() for p in program.parameters()]
    places = [p.data_ptr() for p in program.parameters()]
    state = torch.get_rng_state()

    mistakes(program)

    assert torch.equal(state, torch.get_rng_state())
    assert places == [p.data_ptr() for p in program.parameters()]
    for old, new in zip(before, program.parameters(), strict=True):
        assert torch.equal(old, new)


# --- supports -------------------------------------------------------------------------------------


class Pair(pv.Program):
    """Any prior with any posterior."""

    def __init__(self, prior, posterior):
        super().__init__()
        self.prior, self.posterior = prior, posterior
        self.encoder, self.decoder = nn.Linear(6, 2), nn.Linear(2, 6)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encoder(x)))


ONE, ZERO = torch.ones(2), torch.zeros(2)
LAWS = {
    "Normal": (dist.Normal(ZERO, ONE).to_event(1), lambda h: dist.Normal(h, 1.0).to_event(1)),
    "Exponential": (
        dist.Exponential(ONE).to_event(1),
        lambda h: dist.LogNormal(h, 1.0).to_event(1),
    ),
    "Uniform": (
        dist.Uniform(-30 * ONE, 30 * ONE).to_event(1),
        lambda h: dist.Uniform(h - 1, h + 1).to_event(1),
    ),
    "Beta": (dist.Beta(ONE, ONE).to_event(1), lambda h: dist.Beta(h.exp(), h.exp()).to_event(1)),
    "Dirichlet": (dist.Dirichlet(ONE), lambda h: dist.Dirichlet(h.exp())),
    "Bernoulli": (
        dist.Bernoulli(0.5 * ONE).to_event(1),
        lambda h: dist.Bernoulli(logits=h).to_event(1),
    ),
}


@pytest.mark.parametrize(
    ("prior", "posterior", "said"),
    [
        ("Exponential", "Normal", "LogNormal"),
        ("Beta", "Normal", "LogitNormal"),
        ("Beta", "Exponential", "LogitNormal"),
        ("Uniform", "Normal", "LogitNormal(low=-30, high=30)"),
        ("Dirichlet", "Normal", "LogisticNormal"),
        ("Dirichlet", "Beta", "LogisticNormal"),
        ("Normal", "Dirichlet", "FullNormal"),
        ("Beta", "Dirichlet", "LogitNormal"),
        ("Normal", "Bernoulli", "FullNormal"),
        ("Bernoulli", "Normal", "support of the prior"),
    ],
)
def test_a_posterior_outside_of_the_priors_support_is_refused_with_those_that_fit(
    prior, posterior, said
):
    found = mistakes(Pair(LAWS[prior][0], LAWS[posterior][1]))

    assert "with the support of the prior" in found and said in found, found
    assert found.startswith("Pair has 1 mistake:")


@pytest.mark.parametrize(
    ("prior", "posterior"), [("Normal", "Exponential"), ("Normal", "Beta"), ("Exponential", "Beta")]
)
def test_a_posterior_that_reaches_less_than_the_prior_is_a_note(prior, posterior):
    assert "it cannot draw the rest" in mistakes(Pair(LAWS[prior][0], LAWS[posterior][1]))


@pytest.mark.parametrize("name", LAWS)
def test_a_posterior_of_the_priors_own_support_is_nothing_to_speak_of(name):
    if name == "Uniform":
        pytest.skip("its bounds move")

    assert mistakes(Pair(LAWS[name][0], LAWS[name][1])) == ""
