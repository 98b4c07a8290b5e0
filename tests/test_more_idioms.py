"""More idioms of Pyro's users: plates made once, parameters for each row, laws on torch's, masks.

Where a closed form exists, the numbers are compared with it, else with Pyro's own.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_vae as pv
from pyro_vae.densities.traces import pyro_traces

from .foreign_data import real
from .quickly import some_quickly

N = 20
QUIET = pytest.mark.filterwarnings("ignore::pyro_vae.errors.PyroVaeWarning")


class Plain(nn.Module):
    """A linear Gaussian model, whose encoder is no better than it has to be."""

    def __init__(self):
        super().__init__()
        self.enc, self.dec = nn.Linear(5, 4), nn.Linear(2, 5)

    def rows(self, x):
        return pyro.plate("data", len(x))

    def model(self, x):
        with self.rows(x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            self.likelihood(z, x)

    def likelihood(self, z, x):
        pyro.sample("x", dist.Normal(self.dec(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        with self.rows(x):
            loc, scale = self.enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class PlateMadeOnce(Plain):
    def __init__(self):
        super().__init__()
        self.plate = pyro.plate("data", N)

    def rows(self, x):
        return self.plate


def made(kind):
    pyro.set_rng_seed(0)
    return pv.Program(kind())


# --- one number of rows ---------------------------------------------------------------------------


@QUIET
def test_a_plate_made_once_is_scored_by_many_draws_as_one_that_counts_rows():
    x, once, counting = real(N, 5), made(PlateMadeOnce), made(Plain)
    for score in (
        lambda p: pv.elbo(p, x, num_particles=7),
        lambda p: pv.log_evidence(p, x, num_particles=50).value,
    ):
        torch.testing.assert_close(score(once), score(counting), rtol=1e-5, atol=1e-5)
    result = pv.to_inference_data(once, x, num_draws=3, chains=2, num_prior=2)
    assert result["posterior_predictive"]["x"].shape == (2, 3, N, 5)
    assert result["prior"]["z"].shape == (1, 2, N, 2)


def test_a_wider_run_is_tried_for_each_guide_of_one_model():
    plain, once = Plain(), PlateMadeOnce()
    x, model = real(N, 5), plain.model
    for guide in (plain.guide, once.guide):
        program = pv.Program(model, guide, plain=plain, once=once)
        assert pv.elbo(program, x, num_particles=3).isfinite().all()


@config_enumerate
def mixture(data):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(data)):
        which = pyro.sample("which", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[which], scale), obs=data)


def guide_with_a_parameter_for_each_row(data):
    weights = pyro.param("w", torch.ones(2), constraint=constraints.positive)
    pyro.sample("weights", dist.Dirichlet(weights))
    pyro.sample("scale", dist.LogNormal(pyro.param("s", torch.tensor(0.0)), 0.1))
    with pyro.plate("components", 2):
        pyro.sample("locs", dist.Normal(pyro.param("l", torch.tensor([-1.0, 1.0])), 0.1))
    with pyro.plate("data", len(data)):
        each = pyro.param("each", torch.ones(len(data), 2) / 2, constraint=constraints.simplex)
        pyro.sample("which", dist.Categorical(each), infer={"enumerate": "parallel"})


OPTIONS = {"steps": 3, "batch_size": N, "progress": False, "optimizer": torch.optim.Adam}


def test_parameters_for_each_row_are_read_back(tmp_path):
    x = real(N, 1).squeeze(-1)
    program = pv.Program(mixture, guide_with_a_parameter_for_each_row)
    run = pv.fit(program, x, TraceEnum_ELBO(max_plate_nesting=1), out=tmp_path, **OPTIONS)
    loaded = pv.load(tmp_path, pv.Program(mixture, guide_with_a_parameter_for_each_row)).program
    assert dict(loaded.named_parameters())["created.each"].shape == (N, 2)
    for name, value in loaded.named_parameters():
        assert torch.equal(value, dict(run.program.named_parameters())[name])
    assert torch.equal(pv.elbo(loaded, x), pv.elbo(run.program, x))


@QUIET
def test_an_automatic_guide_of_a_scalar_latent_is_converted():
    guide = AutoNormal(poutine.block(mixture, expose=["weights", "scale", "locs"]))
    program, x = pv.Program(mixture, guide), real(N, 1).squeeze(-1)
    pv.elbo(program, x)
    result = pv.to_inference_data(program, x, num_draws=4, chains=1, num_prior=2)
    assert {*result["posterior"]} == {"weights", "scale", "locs"}
    assert result["posterior"]["scale"].shape == (1, 4)


# --- laws whose base is one of torch --------------------------------------------------------------

HALF = torch.tensor(0.5)
LATENTS = {
    "half-normal": (
        lambda one: dist.HalfNormal(one).to_event(1),
        lambda a, b: dist.LogNormal(a, b).to_event(1),
    ),
    "Kumaraswamy": (
        lambda one: dist.Beta(one, one).to_event(1),
        lambda a, b: dist.Kumaraswamy(a.exp(), b + 0.2).to_event(1),
    ),
    "relaxed bits": (
        lambda one: dist.RelaxedBernoulli(HALF, probs=one / 2).to_event(1),
        lambda a, b: dist.RelaxedBernoulli(HALF, logits=a).to_event(1),
    ),
    "relaxed categories": (
        lambda one: dist.RelaxedOneHotCategorical(HALF, logits=one),
        lambda a, b: dist.RelaxedOneHotCategorical(HALF, logits=a),
    ),
}


@QUIET
@pytest.mark.parametrize("name", LATENTS)
@pytest.mark.parametrize("masked", some_quickly([False, True], True))
def test_latents_of_transformed_laws(name, masked):
    prior, posterior = LATENTS[name]
    x, keep = real(N, 5), torch.arange(N) % 4 > 0

    class Transformed(Plain):
        def model(self, x):
            with self.rows(x), poutine.mask(mask=keep if masked else True):
                z = pyro.sample("z", prior(x.new_ones(2)))
                self.likelihood(z, x)

        def guide(self, x):
            with self.rows(x), poutine.mask(mask=keep if masked else True):
                loc, scale = self.enc(x).chunk(2, -1)
                pyro.sample("z", posterior(loc, scale.exp()))

    program = made(Transformed)
    if not masked:  # a mask of N rows is for N rows
        pv.check(program, x)
    pv.fit(program, x, pv.objectives.AEVB("A"), **OPTIONS)
    ours = torch.stack([pv.elbo(program, x, seed=seed).sum() for seed in range(60)])
    theirs = []
    with torch.no_grad():
        for _ in range(60):
            guide, model = pyro_traces(program, x)
            theirs.append(model.log_prob_sum() - guide.log_prob_sum())
    pyros = torch.stack(theirs)
    error = (ours.var() / 60 + pyros.var() / 60).sqrt()
    assert abs(ours.mean() - pyros.mean()) < 4 * error


def test_a_law_without_gradient_is_named():
    class OfAngles(Plain):
        def guide(self, x):
            with self.rows(x):
                loc, scale = self.enc(x).chunk(2, -1)
                pyro.sample("z", dist.VonMises(loc, scale.exp()).to_event(1))

    with pytest.raises(ValueError, match="has the guide VonMises, which is not reparameterized"):
        pv.fit(made(OfAngles), real(N, 5), pv.objectives.AEVB(), **OPTIONS)


# --- observations that are missing ----------------------------------------------------------------


class HalfSeen(Plain):
    """A second observation under ``obs_mask``, whose missing values no guide draws."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 1)

    def model(self, x, y, seen):
        with self.rows(x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            self.likelihood(z, x)
            pyro.sample("y", dist.Normal(self.head(z).squeeze(-1), 0.3), obs=y, obs_mask=seen)

    def guide(self, x, y, seen):
        super().guide(x)


class Imputing(HalfSeen):
    def guide(self, x, y, seen):
        with self.rows(x):
            loc, scale = self.enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))
            with poutine.mask(mask=~seen):
                pyro.sample("y_unobserved", dist.Normal(loc[:, 0], 0.5))


class ImputingAll(HalfSeen):
    def guide(self, x, y, seen):
        with self.rows(x):
            loc, scale = self.enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))
            pyro.sample("y_unobserved", dist.Normal(loc[:, 0], 0.5))


def half_seen():
    return {"x": real(N, 5), "y": real(N, 1, 7).squeeze(-1), "seen": torch.arange(N) % 3 > 0}


@QUIET
@pytest.mark.parametrize("kind", [HalfSeen, Imputing])
def test_obs_mask_leaves_no_term_where_nothing_is_seen(kind):
    data, program = half_seen(), made(kind)
    pv.check(program, data)
    module = program.wrapped
    with torch.no_grad():  # q is the prior, and not far from the posterior
        for parameter in module.enc.parameters():
            parameter.zero_()
        module.dec.weight.mul_(0.3)
        module.head.weight.mul_(0.3)
    w = torch.cat([module.dec.weight, module.head.weight]).detach().double()
    mean = torch.cat([module.dec.bias, module.head.bias]).detach().double()
    noise = torch.tensor([0.25] * 5 + [0.09]).diag().double()
    both = torch.cat([data["x"], data["y"].unsqueeze(-1)], -1).double()
    expected = torch.empty(N, dtype=torch.float64)
    for row, seen in enumerate(data["seen"]):
        k = 6 if seen else 5
        law = dist.MultivariateNormal(mean[:k], (w @ w.T + noise)[:k, :k])
        expected[row] = law.log_prob(both[row, :k])
    found = pv.log_evidence(program, data, num_particles=5_000)
    assert ((found.value - expected).abs() < 0.01 + 5 * found.standard_error).all()
    assert found.standard_error.median() < 0.2


def test_what_a_guide_imputes_has_the_mask_of_the_model():
    with pytest.raises(ValueError, match='"y_unobserved" of the guide: masked otherwise'):
        pv.check(made(ImputingAll), half_seen())


# --- what is said ---------------------------------------------------------------------------------


class Factor(Plain):
    def likelihood(self, z, x):
        pyro.factor("likelihood", -(x - self.dec(z)).square().sum(-1))


def test_a_factor_in_place_of_a_likelihood_is_noted_and_has_nothing_to_draw():
    program, x = made(Factor), real(N, 5)
    assert any('pyro.factor "likelihood" stands' in note for note in pv.check(program, x).notes)
    assert pv.elbo(program, x).isfinite().all()
    with pytest.raises(ValueError, match="the model observes nothing"):
        pv.reconstruct(program, x)
    with pytest.raises(ValueError, match="has no observed site"):
        pv.sample(program, 3, like=x)


def test_a_model_that_observes_nothing_is_a_mistake():
    class Nothing(Plain):
        def likelihood(self, z, x):
            pass

    with pytest.raises(ValueError, match="expected an observed site"):
        pv.check(made(Nothing), real(N, 5))


class Chain(nn.Module):
    """A chain of states that are all summed out, in a plate of sequences."""

    def __init__(self):
        super().__init__()
        self.moves, self.logits = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.randn(2, 4))

    @config_enumerate
    def model(self, x):
        with pyro.plate("sequences", len(x)):
            state = 0
            for t in pyro.markov(range(x.shape[1])):
                state = pyro.sample(f"s_{t}", dist.Categorical(logits=self.moves[state]))
                law = dist.Bernoulli(logits=self.logits[state]).to_event(1)
                pyro.sample(f"x_{t}", law, obs=x[:, t])

    def guide(self, x):
        pass


def test_what_is_said_of_latents_names_the_plate_and_whether_there_are_any():
    x = (real(24, 4) > 0).float().view(8, 3, 4)
    with pytest.raises(ValueError, match=r'plate\("sequences", ...\), nor elsewhere'):
        pv.encode(made(Chain), x)
    program = pv.Program(mixture, AutoNormal(poutine.block(mixture, hide=["which"])))
    with pytest.raises(ValueError, match=r'inside pyro.plate\("data", ...\): pass shared=True'):
        pv.encode(program, real(N, 1).squeeze(-1))
