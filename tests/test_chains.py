"""Chains find exact posteriors, with steps of their own, and say where they did not."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

import pyro_vae as pv
from pyro_vae.chains import target
from pyro_vae.chains.hmc import move
from pyro_vae.chains.latents import Latents
from pyro_vae.chains.sampling import sample_posterior
from pyro_vae.graphs.lifted import Refusal
from pyro_vae.models import logistic_lvm
from pyro_vae.noise import Stream, keyed

from .quickly import some_quickly
from .test_hmc import gaussian_program
from .test_latents import COUNTS, Counts, latents_and_target


@pytest.fixture(scope="module")
def gaussian():
    """The program, its rows, and 400 draws of each posterior with tuned steps."""
    program, x = gaussian_program()
    options = {"num_draws": 400, "warmup": 300, "leapfrog_steps": 5}
    return program, x, sample_posterior(program, x, seed=4, **options)


@pytest.fixture(scope="module")
def counts():
    program = Counts()
    options = {"num_draws": 500, "warmup": 250, "leapfrog_steps": 4}
    return program, COUNTS, sample_posterior(program, COUNTS, seed=5, **options)


# --- the law of the draws -------------------------------------------------------------------------


def assert_moments(draws, mean, variance):
    """Mean and variance of each coordinate within 4.5 of the chain's own standard errors."""
    draws, mean, variance = (np.asarray(t) for t in (draws, mean, variance))
    for found, expected in ((draws, mean), ((draws - mean) ** 2, variance)):
        ess = az.ess(az.convert_to_dataset({"f": found[None]}), method="mean")["f"].values
        z = (found.mean(0) - expected) / (found.std(0) / np.sqrt(ess))
        assert np.abs(z).max() < 4.5, f"z-scores up to {np.abs(z).max():.1f}"


def test_gaussian_posteriors_have_their_exact_mean_and_variance(gaussian):
    program, x, draws = gaussian
    posterior = program.posterior(x)
    mean, variance = posterior.mean.detach(), posterior.variance.detach()
    assert_moments(draws.values["z"], mean, variance)
    for wrong in ((mean, 1.3 * variance), (mean + 0.1 * variance.sqrt(), variance)):
        with pytest.raises(AssertionError):
            assert_moments(draws.values["z"], *wrong)


def test_gaussian_draws_are_distributed_as_the_exact_posterior(gaussian):
    """Kolmogorov-Smirnov on every eighth move, each mapped to (0, 1) by its own exact law."""
    program, x, draws = gaussian
    posterior = program.posterior(x)
    scaled = (draws.u[::8] - posterior.mean) / posterior.stddev
    for j in range(2):
        assert stats.kstest(scaled[..., j].detach().flatten().numpy(), stats.norm.cdf).pvalue > 1e-4


def test_constrained_posteriors_have_their_exact_mean_and_variance(counts):
    program, x, draws = counts
    rate, share = program.exact(x)
    assert draws.values["rate"].shape == (500, 4) and draws.values["share"].shape == (500, 4, 3)
    assert draws.u.shape == (500, 4, 3)  # a simplex of three has two coordinates
    assert_moments(draws.values["rate"], rate.mean(), rate.var())
    assert_moments(draws.values["share"], share.mean(), share.var())


def test_constrained_draws_are_distributed_as_the_exact_posterior(counts):
    program, x, draws = counts
    rate, share = program.exact(x)
    assert stats.kstest(rate.cdf(draws.values["rate"][::10]).flatten(), "uniform").pvalue > 1e-4
    assert (
        stats.kstest(share.cdf(draws.values["share"][::10])[..., 0].flatten(), "uniform").pvalue
        > 1e-4
    )


def test_the_logistic_posterior_has_the_moments_of_quadrature():
    """Not conjugate, and curved: its oracle is Gauss-Hermite quadrature."""
    torch.manual_seed(0)
    program = logistic_lvm.build(4, latent_dim=1, weight=2 * torch.ones(4, 1)).double()
    x = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1.0]], dtype=torch.float64)
    mean, covariance = program.posterior_moments(x)
    draws = sample_posterior(program, x, num_draws=500, warmup=200, leapfrog_steps=4, seed=1)
    assert_moments(draws.values["z"], mean.detach(), covariance.detach()[:, :, 0])


# --- each datum by itself -------------------------------------------------------------------------


def test_each_datum_keeps_its_own_chain_while_its_step_is_tuned(gaussian):
    """A step tuned per datum sees one datum, so a change of row 0 leaves the other draws alone."""
    program, x, _ = gaussian
    changed = x.clone()
    changed[0] += 3.0
    options = {"num_draws": 20, "warmup": 40, "leapfrog_steps": 3}
    one, two = (sample_posterior(program, rows, **options) for rows in (x, changed))
    assert torch.equal(one.u[:, 1:], two.u[:, 1:]) and not torch.equal(one.u[:, 0], two.u[:, 0])
    assert torch.equal(one.step_size[1:], two.step_size[1:])


def test_batch_statistics_and_dropout_do_not_tie_the_chains_of_a_program_in_training():
    """In training mode row 0 would move the mean that all rows are normalized by."""

    class Normalized(pv.Program):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)
            )

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1).double(), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.net(z), 0.5).to_event(1), obs=x)

        def guide(self, x):
            pass

    program, x = Normalized().double(), torch.randn(6, 2).double()
    before = program.net[1].running_mean.clone()
    changed = x.clone()
    changed[0] += 3.0
    options = {"num_draws": 10, "warmup": 20, "leapfrog_steps": 3}
    one, two = (sample_posterior(program, rows, **options) for rows in (x, changed))
    assert torch.equal(one.u[:, 1:], two.u[:, 1:]) and not torch.equal(one.u[:, 0], two.u[:, 0])
    assert program.training and program.net[2].training
    assert torch.equal(program.net[1].running_mean, before)


def test_divergences_and_stuck_chains_are_counted_and_said(gaussian):
    program, x, _ = gaussian
    with pytest.warns(pv.PyroVaeWarning, match="smaller step_size") as said:
        draws = sample_posterior(program, x, num_draws=7, warmup=0, step_size=1e6)
    assert len(said) == 2 and "20 of 20 chains" in str(said[0].message)
    assert draws.divergences.tolist() == [7] * 20 and draws.accept.tolist() == [0] * 20
    assert draws.u.isfinite().all() and bool((draws.u == draws.u[0]).all())


def test_one_step_for_data_of_different_width_is_said_to_be_too_long():
    """The mean acceptance is 0.9, of which the narrow posteriors have nothing."""

    def model(x):
        with pyro.plate("data", len(x["x"])):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x["x"]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, x["noise"]).to_event(1), obs=x["x"])

    program = pv.Program(model, lambda x: None)
    noise = torch.ones(30, 1).double()
    noise[7] = 1e-3
    x = {"x": torch.zeros(30, 1).double(), "noise": noise}
    options = {"num_draws": 100, "warmup": 100, "leapfrog_steps": 4}
    with (
        pytest.warns(pv.PyroVaeWarning, match=r'for 1 of 30 chains \(chain 7.*adapt="per_datum"'),
        pytest.warns(pv.PyroVaeWarning, match=r"diverged for 1 of 30 chains \(chain 7"),
    ):
        shared = sample_posterior(program, x, adapt="shared", **options)
    assert shared.step_size.shape == () and shared.accept.mean() > 0.8
    own = sample_posterior(program, x, **options)
    assert own.step_size.shape == (30,) and own.step_size[7] < 1e-2 < 0.1 < own.step_size[0]
    assert own.accept[7] > 0.7


# --- step sizes -----------------------------------------------------------------------------------


def test_the_step_of_each_datum_is_tuned_to_ninety_percent(gaussian):
    draws = gaussian[2]
    assert draws.step_size.shape == (20,)
    assert abs(float(draws.accept.mean()) - 0.9) < 0.015
    assert float((draws.accept - 0.9).abs().max()) < 0.05
    assert draws.divergences.sum() == 0


@pytest.mark.parametrize("target", some_quickly([0.9, 0.7], 0.7))
def test_a_shared_step_is_tuned_to_its_target(gaussian, target):
    program, x, _ = gaussian
    options = {"num_draws": 200, "warmup": 200, "leapfrog_steps": 5, "jitter": 0.0}
    draws = sample_posterior(program, x, adapt="shared", target_accept=target, seed=2, **options)
    assert draws.step_size.shape == ()
    assert abs(float(draws.accept.mean()) - target) < 0.03


@pytest.mark.parametrize("scale", some_quickly([1e-3, 50.0], 1e-3))
def test_steps_are_found_for_latents_of_any_width(scale):
    """From the same start: three orders of magnitude down, and two up."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), scale).to_event(1))
            pyro.sample("x", dist.Normal(0 * z[..., :1], 1.0).to_event(1), obs=x)

    program = pv.Program(model, lambda x: None)
    draws = sample_posterior(
        program, torch.zeros(30, 1).double(), num_draws=150, warmup=250, leapfrog_steps=5
    )
    assert abs(float(draws.accept.mean()) - 0.9) < 0.03
    assert 0.3 * scale < float(draws.step_size.mean()) < 2 * scale


# --- what the sampler does ------------------------------------------------------------------------


def test_graph_and_handlers_give_the_same_draws(gaussian, monkeypatch):
    program, x, _ = gaussian
    options = {"num_draws": 30, "warmup": 20, "leapfrog_steps": 3, "seed": 6}
    graph = sample_posterior(program, x, **options)
    monkeypatch.setattr(target, "lift", lambda *args, **kwargs: Refusal("on purpose"))
    handlers = sample_posterior(program, x, **options)
    assert (graph.engine, handlers.engine) == ("graph", "handlers")
    torch.testing.assert_close(graph.u, handlers.u, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(graph.step_size, handlers.step_size, rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:HMC accepts less than half")  # of three moves
def test_the_sampler_is_its_moves_in_order(gaussian):
    """Move i has the noise of its own key and starts where the last one ended."""
    program, x, before = gaussian
    target = latents_and_target(program, x)[1]
    u = before.u[-1]
    draws = sample_posterior(
        program, x, num_draws=3, warmup=2, step_size=0.5, leapfrog_steps=4, start=u, seed=9
    )
    for number in range(5):
        options = {"step_size": 0.5, "leapfrog_steps": 4, "jitter": 0.5}
        u = move(target, u, noise=keyed(*Stream.CHAINS.key(9, number)), **options).u
        if number >= 2:
            torch.testing.assert_close(draws.u[number - 2], u, rtol=1e-10, atol=1e-10)


def test_gradients_are_counted(gaussian, monkeypatch):
    """L a move, because each knows its first from the move before, and one for the start."""
    program, x, _ = gaussian
    calls = []
    joint = Latents.log_joint
    monkeypatch.setattr(Latents, "log_joint", lambda *a: calls.append(1) or joint(*a))
    monkeypatch.setattr(target, "lift", lambda *args, **kwargs: Refusal("on purpose"))
    draws = sample_posterior(
        program, x, num_draws=2, thin=3, warmup=1, step_size=0.1, leapfrog_steps=4
    )
    assert len(calls) == draws.evaluations == 29


def test_draws_depend_on_the_seed_alone(gaussian):
    """torch's generator neither enters nor moves, and thinning keeps what it would have been."""
    program, x, _ = gaussian
    options = {"warmup": 0, "step_size": 0.4, "leapfrog_steps": 2}
    state = torch.get_rng_state()
    one = sample_posterior(program, x, num_draws=6, **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    thinned = sample_posterior(program, x, num_draws=2, thin=3, **options)
    assert torch.equal(thinned.u, one.u[2::3])
    other = sample_posterior(program, x, num_draws=6, seed=1, **options)
    assert not torch.equal(other.u, one.u)


def test_chains_start_where_they_are_told():
    """A tiny step keeps them there: the guide here is the posterior, the prior is far from it."""
    program, x = Counts(), COUNTS[2:3].expand(200, -1)  # n = 44
    options = {"num_draws": 1, "warmup": 0, "step_size": 1e-9}
    means = {
        start: float(sample_posterior(program, x, start=start, **options).values["rate"].mean())
        for start in ("prior", "guide")
    }
    assert abs(means["prior"] - 2 / 0.7) < 0.6 and abs(means["guide"] - 46 / 1.7) < 1.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 0}, "num_draws is 0, expected a whole number from 1 on"),
        ({"warmup": -1}, "warmup is -1, expected a whole number from 0 on"),
        ({"warmup": 3}, "warmup is 3, expected at least 20 moves.*pass step_size"),
        ({"thin": 1.5}, "thin is 1.5"),
        ({"leapfrog_steps": 0}, "leapfrog_steps is 0"),
        (
            {"target_accept": 1.0},
            r"target_accept is 1.0, expected a number in \(0, 1\): .* paper's",
        ),
        ({"adapt": "all"}, 'adapt is \'all\', expected "per_datum" or "shared"'),
        (
            {"start": "mode"},
            'start is \'mode\', expected "prior", "resampled", "guide" or a tensor',
        ),
        ({"start": torch.zeros(4, 2)}, r"start has shape \(4, 2\), expected \(B, J\) = \(4, 3\)"),
        ({"step_size": torch.tensor(-1.0)}, "step_size is -1.0 in one row, expected positive"),
        ({"start": torch.full((4, 3), 1e4).double()}, "where the chain of row 0 starts"),
    ],
)
def test_the_samplers_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        sample_posterior(Counts(), COUNTS, **options)
