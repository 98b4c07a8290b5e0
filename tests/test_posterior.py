"""Drawing from a program, encoding and reconstructing."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae, linear_gaussian


def oracle():
    torch.manual_seed(0)
    program = linear_gaussian.build(5, latent_dim=2, posterior="full").double()
    program.guide_is_exact_posterior()
    return program


def test_samples_have_the_marginal_moments_of_the_model():
    """x ~ N(b, W W' / alpha + Sigma): 20,000 draws, each moment within 4.5 standard errors."""
    program = oracle()
    x = pv.sample(program, 20_000, like=torch.zeros(1, 5))
    w, noise = program.weight.detach(), program.noise.factor().detach()
    covariance = w @ w.T / program.alpha + noise @ noise.T
    mean = program.bias.detach()
    z = (x.mean(0) - mean) / (covariance.diag() / 20_000).sqrt()
    assert float(z.abs().max()) < 4.5
    variance = covariance.diag()
    z = (x.var(0) - variance) / (variance * (2 / 20_000) ** 0.5)
    assert float(z.abs().max()) < 4.5


def test_encode_gives_posterior_means_and_draws_of_the_posterior():
    program = oracle()
    x = pv.sample(program, 7, like=torch.zeros(1, 5))
    exact = program.posterior(x)
    torch.testing.assert_close(pv.encode(program, x), exact.mean.detach())
    draws = pv.encode(program, x.repeat(50, 1), num_draws=40)  # equal rows have draws of their own
    assert draws.shape == (40, 350, 2)
    draws = draws.reshape(2000, 7, 2)
    z = (draws.mean(0) - exact.mean) / (exact.variance / 2000).sqrt()
    assert float(z.detach().abs().max()) < 4.5


def test_reconstruct_is_the_likelihoods_mean_at_the_posterior_mean():
    program = oracle()
    x = pv.sample(program, 4, like=torch.zeros(1, 5))
    z = program.posterior(x).mean
    torch.testing.assert_close(
        pv.reconstruct(program, x), (z @ program.weight.T + program.bias).detach()
    )


def test_reconstructions_of_draws_average_to_the_predictive_mean_and_spread_as_it_does():
    """E[x' | x] = W m + b, and W z + b has the covariance W V W'; z-scores of 4,000 draws.

    Equal rows have draws of their own, and cost less than as many draws.
    """
    program = oracle()
    x = pv.sample(program, 3, like=torch.zeros(1, 5))
    draws = pv.reconstruct(program, x.repeat(100, 1), num_draws=40)
    assert draws.shape == (40, 300, 5)
    draws = draws.reshape(4000, 3, 5)
    posterior, w = program.posterior(x), program.weight.detach()
    mean = pv.reconstruct(program, x)
    variance = (w @ posterior.covariance_matrix.detach() @ w.T).diagonal(dim1=-2, dim2=-1)
    z = (draws.mean(0) - mean) / (variance / 4000).sqrt()
    assert float(z.abs().max()) < 4.5
    z = (draws.var(0) - variance) / (variance * (2 / 4000) ** 0.5)
    assert float(z.abs().max()) < 4.5


def test_reconstructions_are_the_likelihoods_means_at_the_draws_of_encode():
    """The same seed gives the same latents, so this holds without noise."""
    program = oracle()
    x = pv.sample(program, 3, like=torch.zeros(1, 5))
    z = pv.encode(program, x, num_draws=6, seed=2)
    expected = (z @ program.weight.T + program.bias).detach()
    got = pv.reconstruct(program, x, num_draws=6, seed=2)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert not torch.equal(got, pv.reconstruct(program, x, num_draws=6, seed=3))


def test_a_likelihood_without_a_mean_is_refused():
    """A Categorical's mean is nan, which would come out without a word."""

    class Letters(pv.Program):
        def __init__(self):
            super().__init__()
            self.scores = nn.Linear(1, 4)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Categorical(logits=self.scores(z)), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))

    x = torch.tensor([0, 3, 1])
    program = Letters()
    expected = program.scores(torch.zeros(3, 1)).softmax(-1).detach()
    torch.testing.assert_close(pv.reconstruct(program, x), expected)
    means = pv.sample(program, 3, like=x, mean=True)
    assert means.shape == (3, 4)
    torch.testing.assert_close(means.sum(-1), torch.ones(3))


def test_a_vae_needs_no_template_and_its_means_are_probabilities():
    torch.manual_seed(0)
    vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=4)
    assert set(pv.sample(vae, 50).unique().tolist()) == {0.0, 1.0}
    means = pv.sample(vae, 50, mean=True)
    assert means.shape == (50, 6) and 0.4 < float(means.mean()) < 0.6
    assert torch.equal(pv.sample(vae, 5, seed=1), pv.sample(vae, 5, seed=1))


def test_several_latents_come_by_name_and_hierarchies_use_the_means_above():
    class Two(pv.Program):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(1.0))

        def model(self, x):
            with pyro.plate("data", len(x)):
                a = pyro.sample("a", dist.Normal(0.0, 1.0))
                b = pyro.sample("b", dist.Normal(a, 1.0))
                pyro.sample("x", dist.Normal(b.unsqueeze(-1) + self.shift, 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                a = pyro.sample("a", dist.Normal(x[:, 0], 0.1))
                pyro.sample("b", dist.Normal(2 * a, 0.1))

    x = torch.tensor([[1.0], [2.0]])
    means = pv.encode(Two(), x)
    torch.testing.assert_close(means["b"], torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(pv.reconstruct(Two(), x), torch.tensor([[3.0], [5.0]]))


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="like=x"):
        pv.sample(oracle(), 3)
    with pytest.raises(ValueError, match="num_samples is 0"):
        pv.sample(oracle(), 0)
    with pytest.raises(ValueError, match="num_draws is -1"):
        pv.encode(oracle(), torch.zeros(2, 5), num_draws=-1)
    with pytest.raises(ValueError, match=r"num_draws is 1\.5"):
        pv.reconstruct(oracle(), torch.zeros(2, 5), num_draws=1.5)


def test_synthetic_data_are_reproducible():
    program = oracle()
    one, two = (pv.datasets.synthetic(program, 9, like=torch.zeros(1, 5), seed=4) for _ in range(2))
    assert one.digest == two.digest and one.x.shape == (9, 5)
