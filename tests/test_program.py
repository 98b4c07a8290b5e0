"""Programs of every kind train under Pyro's own SVI, and its global store stays empty."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae
from pyro_vae.program.calling import materialize


def prior():
    return dist.Normal(torch.zeros(2), 1.0).to_event(1)


def subclass():
    class Mine(pv.Program):
        def __init__(self):
            super().__init__()
            self.decoder, self.encoder = nn.Linear(2, 5), nn.Linear(5, 2)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", prior())
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))

    return Mine()


def plain_functions():
    decoder = nn.Linear(2, 5)

    def model(x):
        pyro.module("decoder", decoder)
        scale = pyro.param("noise.scale", torch.tensor(0.7), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x)

    def guide(x):
        weight = pyro.param("weight", lambda: 0.1 * torch.ones(5, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, 1.0).to_event(1))

    return pv.Program(model, guide, decoder=decoder)


def strangers_module():
    class Tutorial(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.encoder = nn.Linear(2, 5), nn.Linear(5, 2)

        def model(self, x):
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("latent", prior())
                pyro.sample("obs", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("encoder", self.encoder)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("latent", dist.Normal(self.encoder(x), 1.0).to_event(1))

    return pv.Program(Tutorial(), observed="obs")


def pyro_module():
    class Decoder(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = PyroModule[nn.Linear](2, 5)
            self.scale = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

        def forward(self, z):
            return dist.Normal(self.linear(z), self.scale).to_event(1)

    class Whole(PyroModule):
        def __init__(self):
            super().__init__()
            self.decoder, self.encoder = Decoder(), PyroModule[nn.Linear](5, 2)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", prior())
                pyro.sample("x", self.decoder(z), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))

    return pv.Program(Whole())


KINDS = [subclass, plain_functions, strangers_module, pyro_module]
ELBOS = [
    Trace_ELBO(),
    Trace_ELBO(num_particles=3, vectorize_particles=True),
    TraceMeanField_ELBO(),
    TraceGraph_ELBO(),
    pv.objectives.AEVB(),
    pv.objectives.WakeSleep(),
]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("elbo", ELBOS, ids=lambda e: type(e).__name__)
def test_every_parameter_moves_under_pyros_svi_and_the_store_stays_empty(make, elbo):
    """T28 and T10: a plain module under SVI trains nothing, and the store mixes models up."""
    program, x = make(), torch.randn(20, 5)
    materialize(program, x)
    before = {name: p.detach().clone() for name, p in program.named_parameters()}
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), loss=elbo)
    svi.step(x)
    for name, parameter in program.named_parameters():
        assert not torch.equal(parameter, before[name]), f"{name} did not move"
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("engine", ["pyro", "eager"])
def test_every_kind_trains_and_is_captured(make, engine):
    program = make()
    run = pv.fit(program, torch.randn(40, 5), steps=5, engine=engine)
    assert run.manifest["engine"] == engine and run.manifest["engine_reason"] == ""


@pytest.mark.parametrize("make", KINDS)
def test_two_programs_of_one_kind_share_nothing(make):
    """T10: a second model with the same names does not train at all in Pyro's store."""
    x = torch.randn(20, 5)
    first, second = make(), make()
    pv.fit(first, x, steps=3)
    kept = {name: p.detach().clone() for name, p in first.named_parameters()}
    pv.fit(second, x, steps=3)
    assert all(torch.equal(p, kept[name]) for name, p in first.named_parameters())


def test_a_users_own_store_is_left_alone():
    with pyro.get_param_store().scope():
        pyro.param("theirs", torch.ones(2))
        pv.fit(pyro_module(), torch.randn(20, 5), steps=2, engine="pyro")
        assert list(pyro.get_param_store().keys()) == ["theirs"]


def test_a_deep_copy_trains_on_its_own():
    program, x = subclass(), torch.randn(20, 5)
    pv.fit(program, x, steps=1)
    twin = copy.deepcopy(program)
    pv.fit(twin, x, steps=1)
    assert not torch.equal(twin.decoder.weight, program.decoder.weight)


def test_constraints_of_plain_params_hold():
    """The positive scale is learnt through its logarithm, under a name without dots."""
    program = plain_functions()
    pv.fit(program, 0.01 * torch.randn(50, 5), steps=50, lr=0.5)
    assert set(program.created._parameters) == {"noise/scale", "weight"}
    assert float(program.created.get_parameter("noise/scale").detach().exp()) < 0.7


def test_a_param_declared_twice_in_different_ways_is_refused():
    """T11: Pyro's store ignores the second shape and the second constraint, without a word."""

    def program(*second, **options):
        def model(x):
            pyro.param("a", torch.ones(2))
            pyro.param("a", *second, **options)

        return pv.Program(model, lambda x: None)

    with pytest.raises(ValueError, match="first declared with shape"):
        program(torch.ones(3)).model(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="use one constraint"):
        program(torch.ones(2), constraint=constraints.positive).model(torch.zeros(1, 1))


def test_a_module_that_was_not_passed_is_named():
    other = nn.Linear(1, 1)
    program = pv.Program(lambda x: pyro.module("other", other), lambda x: None)
    with pytest.raises(ValueError, match=r"pv.Program\(model, guide, other=other\)"):
        program.model(torch.zeros(1, 1))


def test_wrong_objects_are_refused_with_the_next_step():
    with pytest.raises(TypeError, match="pass modules by name"):
        pv.Program(lambda x: None, lambda x: None, decoder=3)
    with pytest.raises(TypeError, match=r"no methods model\(x\) and guide\(x\)"):
        pv.Program(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="has no model: define model"):
        pv.Program().model(torch.zeros(1, 1))


def test_parts_of_a_vae_are_swapped_as_objects():
    """Another prior, another posterior: the model file's own functions run them."""

    class HeavyTails(nn.Module):
        def forward(self):
            return dist.StudentT(4.0, torch.zeros(2), 1.0).to_event(1)

    vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=4, prior=HeavyTails())
    assert pv.check(vae, (torch.rand(10, 6) < 0.5).float()).sampled_kl == ("z",)


@pytest.mark.parametrize("option", [{"prior_precision": 4.0}, {"posterior_precision": 25.0}])
def test_alpha_and_beta_are_precisions(option):
    """N(0, I / alpha) and a posterior of fixed variance 1 / beta."""
    vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=4, **option)
    fixed = vae.prior() if "prior_precision" in option else vae.posterior(torch.zeros(3, 6))
    precision = 1 / fixed.variance
    torch.testing.assert_close(precision, torch.full_like(precision, next(iter(option.values()))))
    assert float(vae.prior().variance[0]) == pytest.approx(1 / option.get("prior_precision", 1.0))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (dist.Normal(0.0, 1.0), r"a Normal, .* let forward\(\) of a torch.nn.Module return it"),
        (3.0, "a float, expected a module that returns a distribution"),
    ],
)
def test_what_is_no_part_is_refused_where_it_is_passed(part, said):
    with pytest.raises(TypeError, match=f"prior is {said}"):
        bernoulli_vae.build(6, latent_dim=2, hidden_dim=4, prior=part)


def test_a_class_is_no_part_of_a_finished_vae_and_build_gives_it_its_sizes():
    vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=4, prior=pv.priors.Laplace)
    assert vae.prior().event_shape == (2,)
    with pytest.raises(TypeError, match=r"prior is the class Laplace, .* Laplace\(\.\.\.\)"):
        pv.VAE(prior=pv.priors.Laplace, likelihood=vae.likelihood, posterior=vae.posterior)
