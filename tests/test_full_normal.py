"""The full-covariance posterior: its own draws are scored by their noise, others by a solve."""

import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae import distributions
from pyro_vae.densities.particles import densities


def law_of(size, spread, dtype=torch.float64):
    torch.manual_seed(0)
    factor = spread * torch.randn(3, size, size, dtype=dtype).tril(-1)
    factor = factor + torch.eye(size, dtype=dtype)
    return distributions.FullNormal(torch.randn(3, size, dtype=dtype), scale_tril=factor)


@pytest.mark.parametrize("copied", [False, True], ids=["own draw", "another"])
def test_its_density_and_gradient_are_the_multivariate_normals(copied):
    made = law_of(4, 0.5)
    factor = made.scale_tril.requires_grad_()
    law = distributions.FullNormal(made.loc, scale_tril=factor)
    z = law.rsample()
    value = z.clone() if copied else z
    reference = dist.MultivariateNormal(law.loc, scale_tril=factor)
    got, expected = law.log_prob(value), reference.log_prob(value)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    gradients = [
        torch.autograd.grad(p.sum(), factor, retain_graph=True)[0].tril() for p in (got, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)


def test_a_badly_conditioned_factor_keeps_its_digits_in_single_precision():
    law = law_of(40, 3.0, torch.float32)
    wide = distributions.FullNormal(law.loc.double(), scale_tril=law.scale_tril.double())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        noise = torch.randn(3, 40).double()
        torch.manual_seed(1)
        z = law.rsample()
    exact = dist.Normal(torch.zeros(3, 40).double(), 1.0).to_event(1).log_prob(noise)
    torch.testing.assert_close(law.log_prob(z).double(), exact, rtol=1e-5, atol=1e-4)
    solved = dist.MultivariateNormal(law.loc, scale_tril=law.scale_tril).log_prob(z)
    assert (solved.double() - exact).abs().max() > 100  # what is avoided
    assert wide.log_prob(z.double()).isfinite().all()


def test_a_bound_of_binary_data_stays_one():
    """Of a deep net's first steps the bound came out above 0, which no probability is."""
    digits = pv.datasets.load("digits")
    torch.manual_seed(0)
    vae = pv.VAE.build(
        digits, latent_dim=20, posterior=pv.posteriors.FullNormal(),
        network=pv.networks.MLP(hidden=(300, 300), gated=True),
    )  # fmt: skip
    pv.fit(vae, digits.train, steps=3, engine="eager", progress=False)
    rows = digits.test.rows()[:100]
    d = densities(vae, rows, 5, reparameterize=False)
    assert d.log_w.max() < 0
    assert abs(pv.elbo(vae, rows).mean() - pv.elbo(vae.double(), rows.double()).mean()) < 5
