"""Pyro's automatic guides, for latents that all data share."""

import copy
import pickle
import signal

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, autoguide
from torch import nn

import pyro_vae as pv
from pyro_vae.objectives import AEVB

from .quickly import some_quickly
from .saved_runs import assert_same

N = 40
Y = 1 + torch.randn(N, 1, generator=torch.Generator().manual_seed(3))
KINDS = ("AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal",
         "AutoLowRankMultivariateNormal", "AutoDelta")  # fmt: skip


def model(x):
    """b ~ N(0, 9), x_n ~ N(b, 1): b | x is normal, with precision N + 1 / 9."""
    b = pyro.sample("b", dist.Normal(torch.zeros(1), 3.0).to_event(1))
    with pyro.plate("data", N, subsample=x):
        pyro.sample("x", dist.Normal(b.expand(len(x), 1), 1.0).to_event(1), obs=x)


def positive(x):
    """A scale beside the mean: its support is not the real line."""
    b = pyro.sample("b", dist.Normal(torch.zeros(1), 3.0).to_event(1))
    s = pyro.sample("s", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", N, subsample=x):
        pyro.sample("x", dist.Normal(b.expand(len(x), 1), s).to_event(1), obs=x)


def program(kind="AutoNormal", model=model):
    return pv.Program(model, getattr(autoguide, kind)(model))


def fit(given=None, **options):
    return pv.fit(given or program(), Y, AEVB("A"), **{
        "steps": 9, "optimizer": torch.optim.Adam, "lr": 0.05, "engine": "pyro",
        "batch_size": 20, "progress": False, **options,
    })  # fmt: skip


@pytest.mark.parametrize("kind", some_quickly(KINDS, "AutoDelta", "AutoMultivariateNormal"))
def test_an_automatic_guide_finds_the_exact_posterior_or_its_mode(kind):
    run = fit(program(kind), steps=600, batch_size=N, lr=0.03, engine="eager")
    mean = float(Y.sum() / (N + 1 / 9))
    assert float(pv.encode(run.program, Y, shared=True)) == pytest.approx(mean, abs=0.06)
    if kind != "AutoDelta":
        draws = pv.encode(run.program, Y, shared=True, num_draws=400)
        assert float(draws.std()) == pytest.approx((N + 1 / 9) ** -0.5, rel=0.5)
    assert all(name.startswith("autoguide.") for name, _ in run.program.named_parameters())
    assert pv.check(run.program, Y)


@pytest.mark.parametrize("kind", KINDS)
def test_its_step_is_that_of_pyros_own_svi(kind):
    """One step on the whole data at a point where no noise enters the loss's expectation."""
    pyro.set_rng_seed(0)
    ours = program(kind, positive)
    pv.elbo(ours, Y)  # makes the parameters
    theirs = copy.deepcopy(ours)
    svi = SVI(theirs.model, theirs.guide, pyro.optim.SGD({"lr": 1e-3}), Trace_ELBO())
    before = [p.detach().clone() for p in ours.parameters()]
    pyro.set_rng_seed(5)
    svi.step(Y)
    moved = [p.detach() - b for p, b in zip(theirs.parameters(), before, strict=True)]
    pyro.set_rng_seed(5)
    SVI(ours.model, ours.guide, pyro.optim.SGD({"lr": 1e-3}), AEVB("A")).step(Y)
    for p, b, step in zip(ours.parameters(), before, moved, strict=True):
        torch.testing.assert_close(p.detach() - b, step, rtol=1e-3, atol=1e-6)
        assert bool((step != 0).any())


@pytest.mark.parametrize("kind", some_quickly(KINDS, "AutoDelta", "AutoMultivariateNormal"))
def test_what_it_learnt_is_saved_loaded_copied_and_pickled(kind, tmp_path):
    run = fit(program(kind, positive))
    run.save(tmp_path)
    loaded = pv.load(tmp_path, program(kind, positive)).program
    for twin in (loaded, copy.deepcopy(run.program), pickle.loads(pickle.dumps(run.program))):
        assert_same(dict(twin.named_parameters()), dict(run.program.named_parameters()))
        assert torch.equal(pv.elbo(twin, Y), pv.elbo(run.program, Y))
    moved = copy.deepcopy(run.program)
    fit(moved)
    assert torch.equal(pv.elbo(loaded, Y), pv.elbo(run.program, Y))
    assert not torch.equal(pv.elbo(moved, Y), pv.elbo(run.program, Y))


@pytest.mark.parametrize("kind", ["AutoNormal", "AutoMultivariateNormal"])
def test_a_run_of_it_goes_on_to_the_same_bits(kind, tmp_path, stop):
    whole = fit(program(kind), out=tmp_path / "whole")
    stop[4] = signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        fit(program(kind), out=tmp_path / "parts", resume=True)
    parts = fit(program(kind), out=tmp_path / "parts", resume=True)
    assert_same(dict(whole.program.named_parameters()), dict(parts.program.named_parameters()))


def test_its_draws_come_to_arviz_without_the_auxiliary_ones():
    run = fit(program("AutoDiagonalNormal", positive), steps=300, engine="eager", lr=0.03)
    result = pv.to_inference_data(run.program, Y, num_draws=100, chains=2, num_prior=20)
    assert set(result["posterior"].data_vars) == {"b", "s"}
    assert result["posterior"]["s"].dims == ("chain", "draw")
    assert float(result["posterior"]["s"].min()) > 0
    assert result["sample_stats"]["log_evidence"].dims == ()


def test_modules_that_the_model_calls_are_learnt_beside_it():
    net = nn.Linear(1, 1)

    def with_net(x):
        b = pyro.sample("b", dist.Normal(torch.zeros(1), 3.0).to_event(1))
        with pyro.plate("data", N, subsample=x):
            pyro.sample("x", dist.Normal(net(b).expand(len(x), 1), 1.0).to_event(1), obs=x)

    both = pv.Program(with_net, autoguide.AutoNormal(with_net), net=net)
    before = net.weight.detach().clone()
    fit(both)
    assert not torch.equal(net.weight, before)
    assert {name.split(".")[0] for name, _ in both.named_parameters()} == {"net", "autoguide"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_latent_of_each_datum_is_refused_with_its_name(kind):
    def local(x):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(b, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).to_event(1), obs=x)

    with pytest.raises(TypeError, match=r'every row of the latent "z".*write a guide'):
        fit(program(kind, local))


def test_a_vector_as_long_as_a_batch_is_no_latent_of_the_rows():
    def grouped(x):
        m = pyro.sample("m", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", N, subsample=x):
            pyro.sample("x", dist.Normal(m.sum(), 1.0).expand([len(x), 1]).to_event(1), obs=x)

    run = fit(program("AutoNormal", grouped), steps=300, lr=0.05, engine="eager", batch_size=3)
    total = pv.encode(run.program, Y, shared=True).sum()
    assert float(total) == pytest.approx(float(Y.mean()), abs=0.4)
