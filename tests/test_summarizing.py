"""``pv.summarize``: the numbers of ArviZ and of closed forms, for every kind of guide."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import nn

import pyro_vae as pv
from pyro_vae.models import bayesian_vae, bernoulli_vae, hierarchical_vae, linear_gaussian


def test_numbers_are_those_of_the_exact_posterior():
    """Within 4.5 Monte Carlo standard errors, of quantiles by their asymptotic variance."""
    oracle = linear_gaussian.build(3, latent_dim=2, posterior="full")
    with torch.no_grad():
        oracle.guide_is_exact_posterior()
    x, draws = torch.randn(7, 3), 4000
    table = pv.summarize(oracle, x, num_draws=draws, batch_size=3, progress=False)["z"]
    assert table.dims == ("data", "z_dim", "metric") and table.dtype == np.float64
    exact = oracle.posterior(x)
    mean = exact.mean.detach().numpy()
    sd = exact.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt().detach().numpy()
    z = (table.sel(metric="mean").values - mean) / (sd / draws**0.5)
    assert np.abs(z).max() < 4.5
    z = (table.sel(metric="sd").values / sd - 1) * (2 * draws) ** 0.5
    assert np.abs(z).max() < 4.5
    for name, level in (("q5", 0.05), ("q50", 0.5), ("q95", 0.95)):
        place = dist.Normal(0.0, 1.0).icdf(torch.tensor(level))
        density = float(dist.Normal(0.0, 1.0).log_prob(place).exp())
        z = (table.sel(metric=name).values - mean) / sd - float(place)
        assert np.abs(z).max() < 4.5 * (level * (1 - level) / draws) ** 0.5 / density
    width = (table.sel(metric="hdi_95%") - table.sel(metric="hdi_5%")).values / sd
    assert np.abs(width / 3.29 - 1).max() < 0.08


def test_numbers_are_those_that_arviz_computes_from_the_same_draws():
    vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=4)
    x = (torch.rand(5, 6) < 0.5).float()
    result = pv.to_inference_data(vae, x, num_draws=200, num_prior=0, predictive=False)
    found = pv.summarize(result, hdi_prob=0.8, quantiles=(0.1, 0.25))["z"]
    assert found.dims == ("data", "z_dim", "metric")
    assert list(found["metric"].values) == ["mean", "sd", "hdi_10%", "hdi_90%", "q10", "q25"]
    z = result["posterior"]["z"]
    flat = z.values.reshape(-1, 5, 2).astype(np.float64)
    np.testing.assert_allclose(found.sel(metric="mean"), flat.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.sel(metric="sd"), flat.std(0, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(found.sel(metric="q25"), np.quantile(flat, 0.25, 0), rtol=1e-5)
    for row in range(5):
        for j in range(2):
            each = flat[:, row, j]
            given = az.hdi(each, **({"prob": 0.8} if hasattr(az, "eti") else {"hdi_prob": 0.8}))
            mine = found[row, j].sel(metric=["hdi_10%", "hdi_90%"])
            np.testing.assert_allclose(mine, np.asarray(given), rtol=1e-5)


def test_a_table_has_a_row_for_each_scalar():
    data = pv.datasets.load("digits").test[[4, 1, 3]]
    vae = bernoulli_vae.build(64, latent_dim=2, hidden_dim=4)
    found = pv.summarize(vae, data, num_draws=50, dims={"z": ["k"]}, coords={"k": ["a", "b"]})
    table = found["z"].to_dataset("metric").to_dataframe()
    assert table.shape[0] == 6 and {"mean", "sd", "q50", "hdi_95%"} <= {*table.columns}
    assert set(table.index.get_level_values("data")) == {*data.index.tolist()}
    assert found["label"].values.tolist() == data.labels.tolist()


class Mixed(pv.Program):
    """A code, a place that depends on it, and a bit, under discrete guides."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.0))

    def sites(self, x):
        code = pyro.sample("code", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        pyro.sample("place", dist.Normal(code.float() + self.shift, 0.1))
        return pyro.sample("bits", dist.Bernoulli(torch.tensor([0.0, 1.0])).to_event(1))

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.sites(x), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            self.sites(x)


def test_discrete_latents_and_those_that_hang_together_are_summarized_too():
    found = pv.summarize(Mixed(), torch.zeros(9, 2), num_draws=2000, batch_size=2)
    code, place, bits = found["code"], found["place"], found["bits"]
    assert code.dims == ("data", "metric") and bits.dims == ("data", "bits_dim", "metric")
    assert np.abs(code.sel(metric="mean") - 1.3).max() < 0.1
    assert (code.sel(metric="q95") == 2).all() and (code.sel(metric="hdi_5%") >= 0).all()
    assert np.abs(place.sel(metric="mean") - 1.3).max() < 0.1  # of the code's own draw
    assert np.abs(place.sel(metric="sd") - (0.61 + 0.01) ** 0.5).max() < 0.06
    assert bits.sel(metric="mean").values.tolist() == [[0.0, 1.0]] * 9


@pytest.mark.filterwarnings("ignore:khat exceeds:pyro_vae.PyroVaeWarning")
@pytest.mark.parametrize("build", [hierarchical_vae, bayesian_vae])
def test_several_layers_and_shared_latents(build):
    if build is bayesian_vae:
        program = bayesian_vae.build(4, num_data=9, latent_dim=2, hidden_dim=3)
    else:
        program = hierarchical_vae.build(4, latent_dim=2, hidden_dim=3)
    x = (torch.rand(9, 4) < 0.5).float()
    found = pv.summarize(program, x, num_draws=20, batch_size=4)
    draws = pv.to_inference_data(
        program, x, num_draws=30, num_prior=0, predictive=False, chains=1, batch_size=9
    )
    assert set(found.data_vars) == set(draws["posterior"].data_vars)
    for name, value in found.items():
        assert value.dims[:-1] == draws["posterior"][name].dims[2:]
        assert np.isfinite(value.values).all()


def test_a_program_is_left_as_it_was_and_the_seed_decides():
    vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=4)
    x, before = torch.zeros(5, 6), torch.get_rng_state()
    one, same = (pv.summarize(vae, x, num_draws=20, seed=3) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state()) and vae.training
    xr.testing.assert_identical(one, same)
    assert not np.isclose(one["z"], pv.summarize(vae, x, num_draws=20, seed=4)["z"]).any()


def test_mistakes_are_named():
    oracle, x = linear_gaussian.build(3, latent_dim=2), torch.zeros(2, 3)
    for given, options, error, message in (
        ((oracle, x), {"hdi_prob": 90}, ValueError, "hdi_prob is 90"),
        ((oracle, x), {"quantiles": [5]}, ValueError, "a quantile is 5"),
        ((oracle, x), {"num_draws": 1}, ValueError, "num_draws is 1"),
        ((oracle,), {}, ValueError, "x is None"),
        (("oracle",), {}, TypeError, "program is str"),
        ((oracle, x), {"dims": {"y": ["a"]}}, ValueError, 'dims has "y"'),
    ):
        with pytest.raises(error, match=message):
            pv.summarize(*given, **options)
