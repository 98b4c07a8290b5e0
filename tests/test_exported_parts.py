"""Parts under torch.export, with the validation of distributions on, as it is by default."""

import pyro
import pytest
import torch
from torch import nn

from pyro_vae import likelihoods, posteriors, priors
from pyro_vae.models import bernoulli_vae, gaussian_vae


class Mean(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, *x):
        return self.part(*x).mean


class LogProb(Mean):
    def forward(self, z, x):
        return self.part(z).log_prob(x)


@pytest.mark.parametrize(
    "part",
    [
        bernoulli_vae.build(6, latent_dim=2, hidden_dim=4).posterior,
        posteriors.Gaussian(6, 2, 4, precision=3.0),
        likelihoods.Bernoulli(6, 3, 4),
        likelihoods.Gaussian(6, 3, 4),
        gaussian_vae.build(6, latent_dim=2, hidden_dim=4).posterior,
    ],
    ids=lambda part: type(part).__name__,
)
def test_the_mean_of_a_part_can_be_exported_and_says_the_same(part):
    assert torch.distributions.Distribution._validate_args
    x = torch.randn(3, 6)
    made = torch.export.export(Mean(part).eval(), (x,)).module()
    other = torch.randn(3, 6)
    torch.testing.assert_close(made(other), part(other).mean)
    assert torch.distributions.Distribution._validate_args  # put back
    with pytest.raises(ValueError, match="constraint"):
        part(torch.full((3, 6), torch.nan))


def test_a_prior_and_a_log_density_can_be_exported_too():
    made = torch.export.export(Mean(priors.StandardNormal(2)), ()).module()
    assert made().tolist() == [0.0, 0.0]
    likelihood, z, x = likelihoods.Bernoulli(2, 3, 4), torch.randn(5, 2), torch.zeros(5, 3)
    made = torch.export.export(LogProb(likelihood), (z, x)).module()
    torch.testing.assert_close(made(2 * z, 1 - x), likelihood(2 * z).log_prob(1 - x))
    assert not pyro.get_param_store()
