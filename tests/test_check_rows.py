"""Rows that are not independent are found by `check`, whatever ties them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae.checking.report import check
from pyro_vae.models import bernoulli_vae, gaussian_vae

from .checks import Linear, mistake, mistakes


def test_batch_normalization_shows_in_the_subset_and_nowhere_else(real):
    """It passes permutation and duplication (T32), so those two alone would let it through."""
    norm = nn.BatchNorm1d(4, track_running_stats=False)  # which has no evaluation mode
    encoder = nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 2))

    line = mistake(Linear(encoder), real)

    assert line.startswith('site "z" of the guide: log density changes by')
    assert "in a subset of the rows" in line
    assert "permuted" not in line
    assert "duplicated" not in line
    assert "replace encoder.1 (BatchNorm1d) by nn.LayerNorm" in line


def test_batch_normalization_with_running_statistics_is_noted(real):
    """It trains as in torch, and everything else takes the running statistics."""
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    (note,) = check(Linear(encoder), real).notes

    assert note.startswith("encoder.1 (BatchNorm1d) ties the rows of a batch while it trains")
    assert not check(Linear(encoder).eval(), real).notes


def test_the_subset_finds_batch_normalization_in_a_decoder_at_its_first_weights():
    """With weights of 0.01 the effect is a 1e-4 of log p(x | z), far above rounding."""
    vae = bernoulli_vae.build(784, latent_dim=2, hidden_dim=20)
    vae.likelihood.network.insert(1, nn.BatchNorm1d(20, track_running_stats=False))

    line = mistake(vae, torch.randint(2, (64, 784)).float())

    assert line.startswith('site "x" of the model')
    assert "permuted" not in line


class RollsRows(nn.Module):
    def forward(self, x):
        return x + x.roll(1, 0)


class SoftmaxOverRows(nn.Module):
    def forward(self, x):
        return x.softmax(0)


class CentresOnGlobalMean(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("layer", "shows"),
    [
        (RollsRows, ["permuted", "subset"]),
        (SoftmaxOverRows, ["duplicated", "subset"]),
        (CentresOnGlobalMean, ["subset"]),
    ],
)
def test_each_way_to_tie_rows_shows_in_its_own_selections(real, layer, shows):
    """The three selections are not copies of one another."""
    line = mistake(Linear(nn.Sequential(layer(), nn.Linear(3, 2))), real)

    assert [word for word in ("permuted", "duplicated", "subset") if word in line] == shows
    assert "dimension 0" in line


def test_a_global_guide_that_reads_the_batch_is_named(real):
    """q(w) must be one distribution, whatever rows are in the batch."""

    class Amortized(Linear):
        def model(self, x):
            pyro.sample("w", dist.Normal(0.0, 1.0))
            super().model(x)

        def guide(self, x):
            pyro.sample("w", dist.Normal(x.mean(), 1.0))
            super().guide(x)

    assert mistake(Amortized(), real).startswith('site "w" of the guide: log density changes')


def test_rounding_in_a_large_network_is_no_dependence():
    """Batches of another size are multiplied in another order, even where a density is steep."""
    vae = gaussian_vae.build(560, latent_dim=10, hidden_dim=200, init_std=None)

    assert check(vae, torch.rand(64, 560)).num_rows == 64
    with torch.no_grad():  # every standard deviation at its floor of 1e-3
        vae.likelihood.network[2].bias[560:] = -40.0
    assert check(vae, torch.rand(64, 560)).num_rows == 64


def test_a_program_for_one_batch_size_alone_is_refused(real):
    """The last batch of an epoch is smaller, and evaluation uses chunks."""

    class Rigid(Linear):
        def model(self, x):
            with pyro.plate("data", 8):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    lines = mistakes(Rigid(), real)

    assert "fails on a batch of shape (4, 3)" in lines[-1] + lines[-2]
    assert "it runs on 8 rows" in lines[-1]
