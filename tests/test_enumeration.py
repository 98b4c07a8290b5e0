"""Latents of the model alone that are summed out, against sums over all configurations."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.densities import densities
from pyro_vae.densities.enumeration import marked_draws
from pyro_vae.engine.capture import Graph, capture
from pyro_vae.engine.functions import gradient_function
from pyro_vae.noise import NoiseMode, keyed, seeded
from pyro_vae.objectives import (
    AEVB,
    IWAE,
    Autoencoder,
    DReG,
    MonteCarloEM,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    WakeSleep,
)

from .mixtures import PARALLEL, PROGRAMS, Mixture, by_brute_force, data_for, program_for
from .quickly import some_quickly

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("kind", PROGRAMS)
def test_densities_are_the_sum_over_all_configurations(kind):
    module, program = program_for(kind)
    for rows in (5, 1):
        x = data_for(kind, rows)
        for particles in (1, 3):
            d = densities(program, x, particles)
            for k in range(particles):
                z = d.latents["z"][k].detach()
                whole = by_brute_force(kind, module, x, z)
                prior = by_brute_force(kind, module, x, z, observed=False)
                torch.testing.assert_close(d.log_p[k], whole, rtol=1e-10, atol=1e-10)
                torch.testing.assert_close(d.log_prior[k], prior, rtol=1e-10, atol=1e-10)
        names = {"x"} if kind != "chain" else {f"x_{t}" for t in range(4)}
        assert set(d.observations) == names and set(d.log_ratio) == {"z"}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_gradients_are_those_of_the_sum(kind):
    module, program = program_for(kind)
    x = data_for(kind)
    d = densities(program, x, reparameterize=False)
    mine = dict(module.named_parameters())
    got = torch.autograd.grad(d.log_p.sum(), list(mine.values()), allow_unused=True)
    whole = by_brute_force(kind, module, x, d.latents["z"][0])
    expected = torch.autograd.grad(whole.sum(), list(mine.values()), allow_unused=True)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", some_quickly(PROGRAMS, "both", "chain"))
def test_the_graph_equals_the_handlers(kind):
    objective = IWAE(3) if kind in ("mixture", "chain") else AEVB("A")
    _, program = program_for(kind)
    x = data_for(kind)
    graph = capture(program, objective, x)
    assert isinstance(graph, Graph), graph
    params = {name: p.detach() for name, p in program.named_parameters()}
    args = (params, x, torch.ones(len(x)), *objective.init(program, x))
    with NoiseMode(keyed(7)), seeded(7):
        grads, sums = gradient_function(program, objective)(*args)
    with seeded(7):
        got, got_sums = graph.grads(*args, noise=graph.grads.draw((7,)))
    torch.testing.assert_close(got, grads, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got_sums["loss"], sums["loss"], rtol=1e-11, atol=0)


OBJECTIVES = [
    AEVB("A", 2),
    IWAE(3),
    DReG(3),
    StickingTheLanding(),
    ReweightedWakeSleep(3),
    ReweightedWakeSleep(3, insomnia=0.5),
    WakeSleep(),
    ScoreFunction(2),
    MonteCarloEM(),
    Autoencoder(),
]


@pytest.mark.parametrize(
    "objective",
    some_quickly(OBJECTIVES, OBJECTIVES[0], "WakeSleep()"),
    ids=repr,
)
def test_every_objective_trains_a_mixture(objective):
    _, program = program_for("mixture")
    pv.check(program, data_for("mixture", 20))
    run = pv.fit(program, data_for("mixture", 20), objective, steps=3, progress=False)
    assert not run.manifest["engine_reason"]
    assert torch.isfinite(torch.tensor(run.history["loss"])).all()


def test_evidence_of_a_mixture_is_exact_by_guide_and_by_chains():
    module, program = program_for("mixture")
    x = data_for("mixture", 6)
    with torch.no_grad():
        weights, w = module.logits.log_softmax(0), module.decoder.weight
        means = module.decoder(module.means)  # x | c ~ N(W m_c + b, W W' + 1)
        law = dist.MultivariateNormal(means, w @ w.T + torch.eye(4))
        exact = (weights + law.log_prob(x.unsqueeze(1))).logsumexp(-1)
    with torch.no_grad():  # a guide that covers: mean 0, scale 2
        module.encoder.weight.zero_()
        module.encoder.bias.copy_(torch.tensor([0.0, 0.0, 2.0, 2.0]).log().nan_to_num(neginf=0.0))
    for proposal, draws in (("guide", 20000), ("hmc", 2000)):
        found = pv.log_evidence(program, x, num_particles=draws, proposal=proposal)
        assert ((found.value - exact).abs() < 5 * found.standard_error + 0.02).all()


def test_a_mixture_without_other_latents_has_its_evidence_for_a_bound():
    class Clusters(nn.Module):
        def __init__(self):
            super().__init__()
            self.means = nn.Parameter(torch.randn(3, 4))

        def model(self, x):
            with pyro.plate("data", len(x)):
                c = pyro.sample("c", dist.Categorical(torch.ones(3)), infer=PARALLEL)
                pyro.sample("x", dist.Normal(self.means[c], 1.0).to_event(1), obs=x)

        def guide(self, x):
            pass

    x, module = data_for("mixture", 12), Clusters()
    program = pv.Program(module)
    parts = dist.Normal(module.means, 1.0).to_event(1).log_prob(x.unsqueeze(1))
    exact = (parts.logsumexp(-1) - torch.tensor(3.0).log()).detach()
    torch.testing.assert_close(densities(program, x).log_p[0].detach(), exact)
    assert pv.elbo(program, x).mean() == pytest.approx(float(exact.mean()))
    run = pv.fit(program, x, AEVB("A"), steps=30, lr=0.1, progress=False)
    losses = list(run.history["loss"])
    assert losses[-1] < losses[0] - 0.5


def test_marks_by_config_enumerate_are_taken_and_what_the_guide_draws_is_left_to_it():
    module = Mixture()
    model = pyro.infer.config_enumerate(module.model, default="parallel")
    program = pv.Program(model, module.guide, module=module)
    x = data_for("mixture")
    d = densities(program, x)
    torch.testing.assert_close(d.log_p[0], by_brute_force("mixture", module, x, d.latents["z"][0]))


def changed(law=None, **infer):
    class Changed(Mixture):
        def model(self, x):
            with pyro.plate("data", len(x)):
                c = pyro.sample("c", law or dist.Categorical(logits=self.logits), infer=infer)
                mean = self.means[c.long() % 3]
                z = pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    return pv.Program(Changed())


REFUSED = {
    "unmarked": (lambda: changed(), "or mark it, infer=.*to have it summed out"),
    "sequential": (lambda: changed(enumerate="sequential"), "or mark it"),
    "infinite": (
        lambda: changed(enumerate="parallel", law=dist.Poisson(torch.tensor(2.0))),
        "Poisson, expected one of finitely many values",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_summed_out_is_refused_by_all_alike(kind):
    make, message = REFUSED[kind]
    x = data_for("mixture")
    for verb in (
        pv.check,
        pv.elbo,
        lambda p, x: pv.fit(p, x, steps=1, progress=False),
        lambda p, x: pv.log_evidence(p, x, num_particles=10),
    ):
        with pytest.raises(ValueError, match=message):
            verb(make(), x)


def test_a_global_one_is_refused():
    class Global(Mixture):
        def model(self, x):
            c = pyro.sample("c", dist.Categorical(logits=self.logits), infer=PARALLEL)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.means[c], 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    for verb in (pv.check, pv.elbo, lambda p, x: pv.fit(p, x, steps=1, progress=False)):
        with pytest.raises(ValueError, match="outside the rows' plate"):
            verb(pv.Program(Global()), data_for("mixture"))


def test_predictive_draws_take_the_marked_latent_given_the_others():
    module, program = program_for("mixture")
    x = torch.zeros(20000, 4)
    z = torch.tensor([0.7, -0.4])
    with torch.no_grad():
        found = marked_draws(program, x, {"z": z.expand(len(x), 2)})["c"]
        law = dist.Normal(module.means, 1.0).to_event(1)
        exact = (module.logits + law.log_prob(z)).softmax(0)
    assert found.shape == (len(x),)
    share = torch.bincount(found, minlength=3) / len(x)
    error = (exact * (1 - exact) / len(x)).sqrt()
    assert ((share - exact).abs() < 4 * error).all()
    assert ((share - module.logits.detach().softmax(0)).abs() > 4 * error).any()  # the prior


def test_a_mixture_goes_to_arviz_and_its_reconstruction_is_by_draws():
    _, program = program_for("both")
    x = data_for("both", 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pv.errors.PyroVaeWarning)  # k-hat, of an untrained guide
        data = pv.to_inference_data(program, x, num_draws=8, predictive=True)
    assert "c" not in data["posterior"] and data["posterior_predictive"]["x"].shape[-2:] == (6, 4)
    with pytest.warns(pv.PyroVaeWarning, match='without the model\'s "c".*average over draws'):
        assert pv.reconstruct(program, x).shape == (6, 4)
    assert pv.reconstruct(program, x, num_draws=3).shape == (3, 6, 4)
    assert pv.sample(program, 5, like=x).shape == (5, 4)


def test_check_says_what_is_summed_out():
    _, program = program_for("both")
    report = pv.check(program, data_for("both", 6))
    assert {site.name: (site.kind, site.kl) for site in report.sites}["c"] == ("summed out", None)
