"""Mistakes of value that `check` knows: supports, parameters, densities, missing data."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.checking.report import check
from pyro_vae.models import bernoulli_vae

from .checks import Linear, mistake, mistakes


@pytest.mark.parametrize(
    ("x", "found", "advice"),
    [
        (torch.rand(8, 6), "values from 0", "soft_targets=True"),
        (torch.randint(2, (8, 6)) * 255.0, "values from 0 to 255", 'scale=255, binarize="thresh'),
        (torch.randn(8, 6) - 9, "values from -", "choose a likelihood for such values"),
    ],
)
def test_values_outside_the_support_are_refused_with_the_way_in(x, found, advice):
    """With validation off 255 "improves" a Bernoulli's loss (T15)."""
    line = mistake(bernoulli_vae.build(6, latent_dim=2, hidden_dim=4), x)

    assert line.startswith('site "x" of the model: ' + found)
    assert "expected 0 or 1" in line
    assert advice in line


def test_grey_values_pass_where_the_likelihood_takes_them_and_255_does_not():
    """The paper's soft targets live in [0, 1]."""
    vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=4, soft_targets=True)

    assert check(vae, torch.rand(8, 6)).num_rows == 8
    assert "from_array(x, scale=255)" in mistake(vae, torch.rand(8, 6).round() * 255)


def test_a_guide_that_leaves_the_support_of_the_prior_is_named(real):
    """A Gaussian guide for a positive latent draws what the prior calls impossible."""

    class Negative(Linear):
        def prior(self):
            return dist.Exponential(torch.ones(2)).to_event(1)

    line = mistake(Negative(), real)

    assert line.startswith('site "z" of the model: values from -')
    assert "choose a guide with the support of the prior" in line


def test_impossible_parameters_of_a_distribution_are_named(real):
    """A probability of 1.5 is clamped in silence where validation is off."""

    class Improbable(Linear):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", dist.Bernoulli(self.decoder(z).exp() + 1).to_event(1), obs=x)

    line = mistake(Improbable(), (real > 0).float())

    assert line.startswith('site "x" of the model: probs of Bernoulli from')
    assert "sigmoid" in line


@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_a_density_that_is_not_finite_is_named_with_its_first_row(real, value):
    """Row 3 alone has a scale at which the float overflows."""

    class Broken(Linear):
        def guide(self, x):
            bad = torch.arange(len(x)).eq(3).unsqueeze(-1) * (x[:, :1] != 0)
            scale = torch.where(bad, float("nan"), 1.0) if value == "nan" else 1.0
            loc = torch.where(bad & (value != "nan"), 1e30, self.encoder(x))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    lines = mistakes(Broken(), real)

    role = "guide" if value == "nan" else "model"
    assert any(
        line.startswith(f'site "z" of the {role}: log density {value} at row 3') for line in lines
    )


def test_missing_values_in_x_are_named_with_their_row(real):
    """The cure is another than for a scale that underflows."""
    real[2, 1] = torch.nan

    lines = mistakes(Linear(), real)

    assert any("in row 2" in line and "remove or impute it" in line for line in lines)
    assert not any("gradient" in line for line in lines)  # those are consequences
