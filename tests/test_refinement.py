"""pv.refine: draws that are better than the guide's, against posteriors that are known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.models import linear_gaussian
from pyro_vae.program.calling import evaluating
from pyro_vae.refinement import laws
from pyro_vae.refinement.refitting import refit

from .quickly import some_quickly

QUIET = {"progress": False}


def linear(posterior="diagonal", latent_dim=2):
    torch.manual_seed(3)
    return linear_gaussian.build(5, latent_dim=latent_dim, posterior=posterior).double()


@torch.no_grad()
def guide_is_the_prior(program):
    program.guide_weight.zero_()
    program.guide_bias.zero_()
    program.guide_noise.set(torch.eye(len(program.guide_bias)).double())


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(4)
    return 1.5 * torch.randn(6, 5, dtype=torch.float64)


# --- the guide's family refitted ------------------------------------------------------------------


def test_a_refitted_family_is_as_good_as_its_best_member(data):
    """log p(x) - (sum_j log Lambda_jj - log det Lambda) / 2, from a guide that knows no x."""
    program = linear()
    guide_is_the_prior(program)

    with evaluating(program):
        found = refit(program, data, num_scored=4000)

    best = (program.log_evidence(data) - program.diagonal_gap()).detach()
    assert (best - found.elbo).abs().mean() < 0.01
    assert (found.elbo - found.elbo_before).min() > 0.1
    assert not found.taken_back.any()
    assert found.rising.max() < 0.05


def test_a_refit_that_leaves_the_scales_alone_misses_the_best(data, monkeypatch):
    """The mutant: offsets of locations alone."""
    program, real = linear(), laws._moved
    guide_is_the_prior(program)
    monkeypatch.setattr(laws, "_moved", lambda law, name, value, offsets: (
        value if name == "scale" else real(law, name, value, offsets)
    ))  # fmt: skip

    with evaluating(program):
        found = refit(program, data, num_scored=4000)

    best = (program.log_evidence(data) - program.diagonal_gap()).detach()
    assert (best - found.elbo).mean() > 0.05


def test_a_full_guide_is_refitted_to_the_posterior(data):
    program = linear("full", latent_dim=3)
    guide_is_the_prior(program)

    found = pv.refine(program, data, method="guide", num_draws=4000, seed=1, **QUIET)

    exact = program.posterior(data)
    torch.testing.assert_close(found.elbo, program.log_evidence(data), atol=1e-3, rtol=0)
    z = found.values["z"]
    error = exact.variance.sqrt() / math.sqrt(len(z))
    assert ((z.mean(0) - exact.mean).abs() < 5 * error).all()
    spread = torch.stack([torch.cov(z[:, n].T) for n in range(len(data))])
    torch.testing.assert_close(spread, exact.covariance_matrix.detach(), atol=0.05, rtol=0.1)


def test_the_exact_posterior_is_left_as_it_is(data):
    program = linear("full")
    program.guide_is_exact_posterior()

    found = pv.refine(program, data, method="guide", num_draws=5, steps=30, **QUIET)
    again = pv.refine(program, data, method="psis", num_draws=5, **QUIET)

    torch.testing.assert_close(found.elbo, found.elbo_before, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.elbo, program.log_evidence(data), atol=1e-6, rtol=0)
    assert (found.khat == 0).all()
    assert (again.khat == 0).all()
    torch.testing.assert_close(again.ess, torch.full_like(again.ess, 1000.0))


class Chain(pv.Program):
    """z1 ~ N(0, 1), z2 ~ N(z1, 1), x ~ N(z2, 1); q(z2 | x) q(z1 | z2), right but for its places."""

    def __init__(self, by_scale=dist.Normal):
        super().__init__()
        self.wrong = nn.Parameter(torch.tensor([2.0, -1.0, 0.3, 0.3], dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(x.new_zeros(()), 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0))
            pyro.sample("x", dist.Normal(z2, 1.0), obs=x)

    def guide(self, x):
        a, b, c, d = self.wrong
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(2 * x / 3 + a, c.exp()))
            pyro.sample("z1", dist.Normal(z2 / 2 + b, d.exp()))


def test_a_refit_keeps_what_one_site_owes_to_another():
    """Only a q(z1 | z2) that depends on z2 reaches log p(x): constants a site would not."""
    program, x = Chain(), torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)

    found = pv.refine(program, x, method="guide", num_draws=2000, **QUIET)

    exact = dist.Normal(0.0, 3.0**0.5).log_prob(x)
    torch.testing.assert_close(found.elbo, exact, atol=2e-3, rtol=0)
    joint = torch.stack([found.values["z1"], found.values["z2"]])[..., 1]
    assert abs(torch.corrcoef(joint)[0, 1] - 0.5) < 0.1
    assert "z2, z1" in repr(found)
    assert "before" in repr(found)


class Transformed(pv.Program):
    """T^-1(z) ~ N(0, 1), x ~ N(T^-1(z), 1); the guide's law is the same function of a normal."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.place = kind, nn.Parameter(torch.tensor([1.0, 0.5], dtype=torch.float64))

    def law(self, mean, scale):
        if self.kind == "LogNormal":
            return dist.LogNormal(mean, scale)
        onto = {
            "logit": [torch.distributions.SigmoidTransform()],
            "learnt": [torch.distributions.AffineTransform(self.place[0], self.place[1].exp())],
            "plain": [],
        }[self.kind]
        normal = dist.Normal(mean, scale)
        return dist.TransformedDistribution(normal, onto) if onto else normal

    def model(self, x):
        one = torch.ones_like(x[:, 0])
        with pyro.plate("data", len(x)):
            law = dist.Normal(0 * one, one) if self.kind == "learnt" else self.law(0 * one, one)
            z = pyro.sample("z", law)
            back = {"LogNormal": torch.log, "logit": torch.logit}.get(self.kind, lambda v: v)
            pyro.sample("x", dist.Normal(back(z).unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(self, x):
        one = torch.ones_like(x[:, 0])
        with pyro.plate("data", len(x)):
            fixed = self.kind == "learnt"
            mean, scale = (0 * one, one) if fixed else (self.place[0] * one, self.place[1] * one)
            pyro.sample("z", self.law(mean, scale))


@pytest.mark.parametrize(
    "kind", ["LogNormal", pytest.param("logit", marks=pytest.mark.slow), "learnt"]
)
def test_transformed_laws_are_refitted_below_their_transforms(kind):
    program, x = Transformed(kind), torch.tensor([[-1.0], [2.0]], dtype=torch.float64)

    found = pv.refine(program, x, method="guide", num_draws=4, **QUIET)

    exact = dist.Normal(0.0, 2.0**0.5).log_prob(x[:, 0])
    torch.testing.assert_close(found.elbo, exact, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    "name", ["LogNormal", "Gamma", "Erlang", "Beta", "Dirichlet", "MixtureOfNormals", "StudentT"]
)
def test_every_family_of_parameters_can_be_moved_and_starts_where_it_is(name):
    law = {
        "LogNormal": dist.LogNormal(torch.ones(3, 2), 0.5).to_event(1),
        "Gamma": dist.Gamma(torch.ones(3, 2), 2.0).to_event(1),
        "Erlang": pv.distributions.Erlang(2, torch.ones(3, 2)).to_event(1),
        "Beta": dist.Beta(torch.ones(3, 2), 2.0).to_event(1),
        "Dirichlet": dist.Dirichlet(torch.ones(3, 4)),
        "MixtureOfNormals": pv.distributions.MixtureOfNormals(
            torch.zeros(3, 2), torch.randn(3, 2, 5), torch.ones(3, 2, 5)
        ),
        "StudentT": dist.StudentT(4.0, torch.zeros(3, 2), 1.0).to_event(1),
    }[name]
    value = law.sample()

    def change(by):
        def moved(law, name, given):
            offset = torch.full(laws._offset_shape(law, name, given), by)
            kept = type(law) is pv.distributions.Erlang and name == "concentration"
            return given if kept else laws._moved(law, name, given, {name: offset})

        return moved

    same, moved = laws.rebuilt(law, change(0.0), "z"), laws.rebuilt(law, change(0.1), "z")

    assert type(same) is type(law)
    assert same.batch_shape == law.batch_shape
    assert same.event_shape == law.event_shape
    torch.testing.assert_close(same.log_prob(value), law.log_prob(value))
    assert (moved.log_prob(value) != law.log_prob(value)).all()


def real_vae(data_dim, posterior):
    reals = pv.likelihoods.Gaussian(sigmoid_mean=False)
    return pv.VAE.build(data_dim, latent_dim=2, hidden_dim=4, posterior=posterior, likelihood=reals)


def test_what_is_an_option_of_the_family_stays():
    """Degrees of freedom that nothing learns are no part of what a network could have said."""
    vae = real_vae(3, pv.posteriors.StudentT)
    found = laws.coordinates_of(vae, torch.rand(4, 3))
    assert [each.name for each in found] == ["loc", "scale"]
    for parameter in vae.parameters():
        parameter.requires_grad_(False)
    assert laws.coordinates_of(vae, torch.rand(4, 3)) == found


def refuses(program, x, method, match, **options):
    with pytest.raises(ValueError, match=match):
        pv.refine(program, x, method=method, **{"num_draws": 40, **QUIET, **options})


def test_what_cannot_be_refined_is_told_what_can(data):
    flow = real_vae(5, pv.posteriors.SplineFlow)
    refuses(flow, data.float(), "guide", 'NormalizingFlow.*use method="psis" or "hmc"')
    refuses(linear(), data, "gibbs", "method is 'gibbs'")
    refuses(linear(), data, "hmc", "at least 32", num_draws=8)
    refuses(linear(), data, "psis", "num_particles", num_draws=8, num_particles=4)
    refuses(linear(), data * math.nan, "psis", "not finite")


class Discrete(pv.Program):
    def __init__(self, law):
        super().__init__()
        self.law, self.logit = law, nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.3 * torch.ones(len(x))))
            pyro.sample("x", dist.Normal(2 * c, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", self.law(self.logit.expand(len(x))))


def test_discrete_latents_are_resampled_and_refused_elsewhere():
    x = torch.tensor([-1.0, 1.0, 2.0])
    program = Discrete(lambda logit: dist.Bernoulli(logits=logit))

    refuses(program, x, "hmc", "discrete")
    refuses(program, x, "guide", 'not reparameterized.*use method="psis"')
    found = pv.refine(program, x, method="psis", num_draws=2000, **QUIET)

    odds = 0.3 / 0.7 * (dist.Normal(2, 1).log_prob(x) - dist.Normal(0, 1).log_prob(x)).exp()
    torch.testing.assert_close(found.values["c"].mean(0), odds / (1 + odds), atol=0.05, rtol=0)


def test_points_are_refined_by_chains_alone():
    x = torch.tensor([-1.0, 1.0])

    class Point(Transformed):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Delta(self.place[0].expand(len(x))))

    program, x = Point("plain"), torch.tensor([[-1.0], [2.0]], dtype=torch.float64)
    refuses(program, x, "psis", 'proposal="hmc"')
    refuses(program, x, "guide", "Delta")
    found = pv.refine(program, x, num_draws=800, warmup=50, **QUIET)
    torch.testing.assert_close(found.values["z"].mean(0), x[:, 0] / 2, atol=0.12, rtol=0)


# --- chains and resampling ------------------------------------------------------------------------


class TwoModes(pv.Program):
    """x ~ N(z^2, 0.5): two modes of equal weight, of which the guide has one."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z.square(), 0.5), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sqrt(), self.scale))


def test_chains_find_the_mode_that_the_guide_misses_as_often_as_it_weighs():
    x = torch.full((40,), 3.0)

    found = pv.refine(TwoModes(), x, num_draws=800, **QUIET)
    resampled = pv.refine(TwoModes(), x, method="psis", num_draws=160, **QUIET)

    share = (found.values["z"] < 0).double().mean(0)  # of 8 chains: its error is 0.18 for a datum
    assert abs(share.mean() - 0.5) < 4 * 0.18 / 40**0.5
    assert (found.rhat > 1.1).double().mean() > 0.9
    assert (resampled.values["z"] > 0).all()


@pytest.mark.slow
def test_chains_draw_the_posterior_whatever_the_guide(data):
    program = linear("full")
    guide_is_the_prior(program)

    found = pv.refine(program, data, num_draws=1600, warmup=100, **QUIET)

    exact, z = program.posterior(data), found.values["z"]
    error = exact.variance.sqrt() / found.ess.sqrt().unsqueeze(-1)
    assert ((z.mean(0) - exact.mean).abs() < 4.5 * error).all()
    torch.testing.assert_close(z.var(0), exact.variance.detach(), atol=0, rtol=0.35)
    assert (found.rhat < 1.1).all()
    assert (found.accept > 0.6).all()
    assert z.shape == (1600, 6, 2)
    assert "8 HMC chains" in repr(found)


@pytest.mark.slow
def test_resampled_draws_are_the_posteriors_and_the_guides_are_not(data):
    program = linear("full")
    program.guide_is_exact_posterior()
    with torch.no_grad():
        program.guide_noise.set(4 * program.posterior_precision().inverse())
    exact = program.posterior(data)

    found = pv.refine(program, data, method="psis", num_draws=4000, num_particles=20_000, **QUIET)
    guides = pv.encode(program, data, num_draws=1000)

    torch.testing.assert_close(found.values["z"].var(0), exact.variance.detach(), atol=0, rtol=0.15)
    assert (guides.var(0) / exact.variance > 3).all()
    assert (found.khat < 0.5).all()


def test_a_narrow_guide_is_warned_about(data):
    program = linear("full")
    program.guide_is_exact_posterior()
    with torch.no_grad():
        program.guide_noise.set(program.posterior_precision().inverse() / 16)

    with pytest.warns(PyroVaeWarning, match='khat exceeds 0.7.*use method="hmc"'):
        pv.refine(program, data, method="psis", **QUIET)


@pytest.mark.parametrize("method", some_quickly(["guide", "psis", "hmc"], "guide", "psis"))
def test_refining_moves_nothing_and_repeats_itself(data, method):
    program = linear().train()
    before = {name: p.clone() for name, p in program.named_parameters()}
    options = {"num_draws": 320, "steps": 5, "warmup": 150, "seed": 2, **QUIET}
    told = []
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    one = pv.refine(program, data, method=method, **{**options, "progress": told.append})
    other = pv.refine(program, data, method=method, batch_size=6, **options)

    torch.testing.assert_close(torch.rand(3), expected)
    for name, parameter in program.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad
    assert program.training
    torch.testing.assert_close(one.values["z"], other.values["z"])
    assert told[-1].samples == len(data)
    assert one.num_draws == 320
    assert one.num_data == len(data)


@pytest.mark.slow
def test_rows_in_pieces_are_the_same_data():
    """A last piece that is filled up with repetitions leaves none of them in the result."""
    program, x = Chain(), torch.linspace(-2.0, 2.0, 5, dtype=torch.float64)
    for method in ("guide", "psis", "hmc"):
        found = pv.refine(
            program, x, method=method, num_draws=320, warmup=60, batch_size=2, **QUIET
        )
        assert found.values["z2"].shape == (320, 5)
        assert bool((found.values["z2"].mean(0).diff() > -0.5).all())
