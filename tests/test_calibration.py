"""Ranks of simulated latents among a guide's draws, and what their uniformity says."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.calibration import ecdf_band, simulate, simulated_ranks, uniformity
from pyro_vae.calibration.uniformity import ecdf_difference, holm
from pyro_vae.models import linear_gaussian

from .quickly import some_quickly

N, L = 4000, 99


def exact(latent_dim=2, *, scale=1.0, shift=0.0, prior=False):
    """A linear-Gaussian program whose guide is the posterior but for what is asked."""
    torch.manual_seed(3)
    weight = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, 0.1]])[:, :latent_dim]
    program = linear_gaussian.build(3, latent_dim=latent_dim, posterior="full", weight=weight)
    program.guide_is_exact_posterior()
    with torch.no_grad():
        covariance = program.posterior_precision().inverse()
        program.guide_noise.set(covariance * scale**2)
        program.guide_bias += shift * covariance.diagonal().sqrt()
        if prior:
            program.guide_weight.zero_()
            program.guide_bias.zero_()
            program.guide_noise.set(torch.eye(latent_dim))
    return program


def worst(ranks, *names):
    """The smallest adjusted p-value of the quantities."""
    tests = [uniformity(ranks.ranks[name], ranks.num_draws) for name in names or ranks.ranks]
    return min(holm(np.array([p for t in tests for p in t[2:]])))


@pytest.fixture(scope="module")
def clean():
    return simulated_ranks(exact(), torch.zeros(2, 3), num_simulations=N, num_draws=L)


def test_an_exact_guide_passes(clean):
    assert list(clean.ranks) == ["z[0]", "z[1]", "log_likelihood", "log_joint"]
    assert worst(clean) > 0.01
    for share in clean.coverage(0.9).values():
        assert abs(share - 0.9) < 3 * math.sqrt(0.09 / N)


@pytest.mark.parametrize(
    "wrong",
    some_quickly(
        [{"scale": 0.9}, {"scale": 1.1}, {"shift": 0.1}, {"prior": True}],
        {"scale": 0.9},
        {"scale": 1.1},
        {"shift": 0.1},
    ),
    ids=str,
)
def test_wrong_guides_are_rejected(wrong):
    ranks = simulated_ranks(exact(**wrong), torch.zeros(2, 3), num_simulations=N, num_draws=L)
    assert worst(ranks) < 1e-4
    if "scale" in wrong:
        assert (uniformity(ranks.ranks["z[0]"], L).spread > 0) == (wrong["scale"] < 1)
    if "shift" in wrong:  # the draws are too high, so truths have low ranks
        assert uniformity(ranks.ranks["z[0]"], L).location < -3


def test_only_densities_see_that_the_guide_is_the_prior():
    ranks = simulated_ranks(exact(prior=True), torch.zeros(2, 3), num_simulations=N, num_draws=L)
    assert worst(ranks, "z[0]", "z[1]") > 0.01
    assert worst(ranks, "log_likelihood") < 1e-12


def test_moments_of_the_draws_are_those_of_the_guide(clean):
    program = exact()
    x, latents = simulate(program, N, like=torch.zeros(2, 3))
    law = program.posterior(x)
    np.testing.assert_allclose(clean.truth["z[0]"], latents["z"][:, 0], rtol=1e-6)
    error = (clean.mean["z[1]"] - law.mean[:, 1].detach().numpy()) * math.sqrt(L)
    sd = float(law.variance[0, 1].detach().sqrt())
    assert abs(error.std() / sd - 1) < 0.05
    assert abs(np.square(clean.sd["z[1]"]).mean() / sd**2 - 1) < 0.02


class Coupled(pv.Program):
    """The prior ties k and z together; the guide draws them as if it did not."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            z = pyro.sample("z", dist.Normal(4 * k, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], 100.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(0.5 * torch.ones(len(x))))
            other = torch.where(torch.rand(len(x)) < 0.5, 0.0, 4.0)
            pyro.sample("z", dist.Normal(other, 1.0))


def test_the_joint_density_sees_what_hangs_together():
    ranks = simulated_ranks(Coupled(), torch.zeros(2, 1), num_simulations=1000, num_draws=L)
    assert worst(ranks, "k", "z", "log_likelihood") > 0.01
    assert worst(ranks, "log_joint") < 1e-6


def test_own_quantities_are_ranked():
    difference = {"difference": lambda x, z: z["z"][:, 0] - x[:, 0]}
    options = {"num_simulations": 400, "num_draws": 19, "quantities": difference}
    ranks = simulated_ranks(exact(), torch.zeros(2, 3), **options)
    assert worst(ranks, "difference") > 0.01
    assert not ranks.is_latent["difference"] and ranks.is_latent["z[0]"]
    with pytest.raises(ValueError, match=r'"difference" is \(100, 2\) .* expected \(100,\)'):
        options |= {"quantities": {"difference": lambda x, z: z["z"]}, "batch_size": 100}
        simulated_ranks(exact(), torch.zeros(2, 3), **options)


def test_shared_latents_are_refused():
    class Shared(pv.Program):
        def model(self, x):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(w, 1.0).expand([len(x), 1]).to_event(1), obs=x)

        def guide(self, x):
            pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r'"w" is outside .* fix it with'):
        simulate(Shared(), 4, like=torch.zeros(2, 1))


def test_gaps_of_the_data_are_those_of_simulated_ones():
    x = torch.randn(6, 4)
    x[::2, 0] = math.nan
    likelihood = pv.likelihoods.Gaussian()
    program = pv.VAE.build(x, latent_dim=1, hidden_dim=4, likelihood=likelihood, missing=True)
    made = simulate(program, 12, like=x).x
    assert torch.equal(made.isnan(), torch.cat([x, x]).isnan())


def test_nothing_moves_and_chunks_do_not_matter_to_the_law():
    program = exact()
    before = {n: t.clone() for n, t in program.state_dict().items()}
    state = torch.get_rng_state()
    simulated_ranks(program, torch.zeros(2, 3), num_simulations=40, num_draws=9, batch_size=7)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(t, before[n]) for n, t in program.state_dict().items())


def test_the_tests_of_uniformity_hold_their_levels():
    rng = np.random.default_rng(0)
    tests = [uniformity(rng.integers(0, L + 1, 300), L) for _ in range(1000)]
    for name in ("p_location", "p_spread", "p_shape"):
        below = np.mean([getattr(t, name) < 0.05 for t in tests])
        assert abs(below - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 1000), name


def test_a_band_holds_the_share_that_it_says():
    u, lower, upper = ecdf_band(500, L, 0.9)
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(1000):
        off = ecdf_difference(rng.integers(0, L + 1, 500), L, u)
        inside.append(bool(((off + u >= lower) & (off + u <= upper)).all()))
    assert abs(np.mean(inside) - 0.9) < 3 * math.sqrt(0.09 / 1000) + 0.015  # counts are whole


@pytest.mark.parametrize("num_draws", [1, 7, 99])
def test_coverage_interpolates_between_order_statistics(num_draws):
    from pyro_vae.calibration import Ranks

    rank = np.repeat(np.arange(num_draws + 1), 50)
    ranks = Ranks({"z": rank}, num_draws, {}, {}, {}, {"z": True})
    for prob in (0.5, 0.9, 0.95):
        assert abs(ranks.coverage(prob)["z"] - prob) < 1e-12


@pytest.mark.parametrize(
    ("ranks", "message"),
    [(np.zeros(5, int), "5 ranks, expected at least 20"), (np.full(30, 12), "12, expected 0 to")],
)
def test_ranks_that_say_nothing_are_refused(ranks, message):
    with pytest.raises(ValueError, match=message):
        uniformity(ranks, 10)
