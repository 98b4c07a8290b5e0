"""ArviZ: latents that all data share, whole numbers, and names with a slash."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import nn

import pyro_vae as pv
from pyro_vae.models import bayesian_vae, bernoulli_vae

F64 = torch.float64
N = 23


class Regression(pv.Program):
    """y ~ N(X beta, 1/2), beta ~ N(0, 4 I); the guide is the exact posterior."""

    def __init__(self, x):
        super().__init__()
        precision = torch.eye(2, dtype=F64) / 4 + 4 * x["w"].T @ x["w"]
        self.mean = nn.Parameter(torch.linalg.solve(precision, 4 * x["w"].T @ x["x"][:, 0]))
        self.precision = precision

    def model(self, x):
        zero = torch.zeros(2, dtype=F64)
        beta = pyro.sample("beta", dist.Normal(zero, 2.0).to_event(1))
        with pyro.plate("data", N, subsample_size=len(x["x"])):
            pyro.sample("x", dist.Normal((x["w"] @ beta)[:, None], 0.5).to_event(1), obs=x["x"])

    def guide(self, x):
        law = dist.MultivariateNormal(self.mean, precision_matrix=self.precision)
        pyro.sample("beta", law)


def data():
    w = torch.randn(N, 2, dtype=F64)
    return {"x": w @ torch.tensor([[1.0], [-2.0]], dtype=F64) + 0.5 * torch.randn(N, 1, dtype=F64),
            "w": w}  # fmt: skip


def test_the_posterior_of_a_regression_has_no_dimension_of_data_and_its_evidence_is_exact():
    """At the exact posterior all weights are log p(y), the density of N(0, X X' 4 + I / 4)."""
    x = data()
    program = Regression(x)
    result = pv.to_inference_data(program, x, num_draws=60, chains=2, num_prior=50, batch_size=7)
    assert dict(result["posterior"].sizes) == {"chain": 2, "draw": 60, "beta_dim": 2}
    assert dict(result["prior"].sizes) == {"chain": 1, "draw": 50, "beta_dim": 2}
    stats = result["sample_stats"]
    covariance = 4 * x["w"] @ x["w"].T + torch.eye(N, dtype=F64) / 4
    law = torch.distributions.MultivariateNormal(torch.zeros(N, dtype=F64), covariance)
    exact = float(law.log_prob(x["x"][:, 0]))
    np.testing.assert_allclose((stats["lp"] - stats["log_q"]).values, exact, rtol=1e-9)
    assert float(stats["log_evidence"]) == pytest.approx(exact)
    assert stats["khat"].dims == stats["ess"].dims == ()
    # log p(y_n | beta) at the very draws that are shown, whichever chunk a row was in.
    beta = torch.from_numpy(result["posterior"]["beta"].values)
    expected = dist.Normal(beta @ x["w"].T, 0.5).log_prob(x["x"][:, 0])
    np.testing.assert_allclose(result["log_likelihood"]["x"].values, expected.numpy())
    assert result["log_likelihood"]["x"].dims == ("chain", "draw", "data")
    assert "az.loo takes them" in result["log_likelihood"].attrs["note"]
    predicted = result["posterior_predictive"]["x"].values[..., 0]
    z = (predicted - (beta @ x["w"].T).numpy()) / 0.5
    assert abs(z.mean()) < 4.5 / math.sqrt(z.size) and abs(z.std() - 1) < 0.1
    assert dict(result["constant_data"].sizes) == {"data": N, "w_dim": 2}


def test_draws_are_of_the_posterior_and_the_prior():
    x = data()
    program = Regression(x)
    result = pv.to_inference_data(program, x, num_draws=500, chains=2, num_prior=1000,
                                  predictive=False)  # fmt: skip
    draws = result["posterior"]["beta"].values.reshape(-1, 2)
    sd = program.precision.inverse().diag().sqrt().numpy()
    z = (draws.mean(0) - program.mean.detach().numpy()) / (sd / math.sqrt(1000))
    assert np.abs(z).max() < 4.5
    prior = result["prior"]["beta"].values.reshape(-1, 2)
    assert np.abs(prior.mean(0)).max() < 4.5 * 2 / math.sqrt(1000)
    assert np.abs(prior.std(0) - 2).max() < 4.5 * 2 / math.sqrt(2000)


def test_true_values_of_shared_latents_stand_beside_their_draws():
    x = data()
    result = pv.to_inference_data(
        Regression(x), x, num_draws=20, num_prior=0, true_latents=torch.tensor([1.0, -2.0])
    )
    truth = result["constant_data"]["true_beta"]
    assert truth.dims == ("beta_dim",) and truth.values.tolist() == [1.0, -2.0]
    with pytest.raises(ValueError, match=r"expected \(2,\): one value for all rows together"):
        pv.to_inference_data(Regression(x), x, num_draws=20, true_latents=torch.zeros(N, 2))


def test_weights_and_codes_of_a_bayesian_vae_stand_side_by_side():
    """One draw of the weights serves all rows, also of another chunk: x at z is their mean."""
    torch.manual_seed(0)
    program = bayesian_vae.build(4, num_data=9, latent_dim=2, hidden_dim=3, init_std=0.5)
    x = (torch.rand(9, 4) < 0.5).float()
    result = pv.to_inference_data(program, x, num_draws=10, chains=2, num_prior=5, batch_size=4)
    posterior = result["posterior"]
    assert posterior["z"].dims == ("chain", "draw", "data", "z_dim")
    weight = posterior["likelihood.network.0.weight"]
    assert weight.dims[:2] == ("chain", "draw") and weight.shape == (2, 10, 3, 2)
    theta = {
        name.removeprefix("likelihood."): torch.from_numpy(value.values)
        for name, value in posterior.data_vars.items()
        if name != "z"
    }
    expected = np.empty((2, 10, 9))
    for c in range(2):
        for d in range(10):
            at = {name: value[c, d] for name, value in theta.items()}
            z = torch.from_numpy(posterior["z"].values[c, d])
            law = torch.func.functional_call(program.likelihood, at, (z,))
            expected[c, d] = law.log_prob(x).detach().numpy()
    np.testing.assert_allclose(result["log_likelihood"]["x"].values, expected, rtol=1e-4)
    stats = result["sample_stats"]
    terms = {f"kl_{name}" for name in posterior.data_vars}
    assert set(stats.data_vars) == {"lp", "log_q", *terms}
    assert stats["lp"].dims == ("chain", "draw") and stats["kl_z"].dims == ("data", "z_dim")
    assert stats["kl_likelihood.network.0.weight"].dims == weight.dims[2:]
    assert "khat and log_evidence are left out" in stats.attrs["note"]
    prior = sum(dist.Normal(0.0, 1.0).log_prob(v).flatten(2).sum(-1) for v in theta.values())
    prior = prior + dist.Normal(0.0, 1.0).log_prob(torch.from_numpy(posterior["z"].values)).sum(
        (-1, -2)
    )
    np.testing.assert_allclose(stats["lp"].values, expected.sum(-1) + prior.numpy(), rtol=1e-5)
    with pytest.raises(ValueError, match="which all rows share, are most"):
        pv.to_inference_data(program, x[:1], num_draws=100, predictive=False, max_bytes=20_000)


# --- whole numbers --------------------------------------------------------------------------------


def law_of(family):
    class Law(pv.Program):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", family(z), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    return Law()


def bits(z):
    return dist.Bernoulli(logits=z).to_event(1)


def counts(z):
    return dist.Poisson(z.exp()).to_event(1)


def codes(z):
    return dist.Categorical(logits=z.unsqueeze(-2).expand(*z.shape[:-1], 3, 2)).to_event(1)


def real(z):
    return dist.Normal(z, 1.0).to_event(1)


PAIRS = torch.tensor([[0, 1], [1, 1], [0, 0]])


@pytest.mark.parametrize(
    "family, x, dtype",
    [
        (bits, PAIRS.bool(), "int8"),
        (bits, PAIRS.float().numpy(), "int8"),
        (bits, PAIRS.to(torch.uint8), "int16"),
        (counts, PAIRS * 3, "int64"),
        (counts, (PAIRS * 3).to(torch.int32).numpy(), "int32"),
        (counts, PAIRS.double(), "int64"),
        (codes, torch.tensor([[0, 1, 1], [1, 0, 0]]), "int64"),
        (real, PAIRS.float(), "float32"),
    ],
)
def test_data_and_their_predictions_are_of_one_whole_type_where_their_law_is_discrete(
    family, x, dtype
):
    result = pv.to_inference_data(law_of(family), x, num_draws=30, num_prior=20)
    for group in ("observed_data", "posterior_predictive", "prior_predictive"):
        assert result[group]["x"].dtype == dtype, group
    np.testing.assert_array_equal(result["observed_data"]["x"].values, np.asarray(x).astype(dtype))
    predicted = result["posterior_predictive"]["x"].values
    if family is counts:
        assert predicted.max() > 1 and predicted.min() == 0
    if family in (bits, codes):
        assert set(np.unique(predicted)) == {0, 1} and 0.3 < predicted.mean() < 0.7


def test_grey_values_in_place_of_bits_stay_real_and_bits_do_not():
    vae = bernoulli_vae.build(3, latent_dim=2, hidden_dim=4, soft_targets=True)
    grey = torch.rand(5, 3)
    for x, kind in ((grey, "f"), (grey.round(), "i")):
        result = pv.to_inference_data(vae, x, num_draws=20, num_prior=5)
        assert result["observed_data"]["x"].dtype.kind == kind
        assert result["posterior_predictive"]["x"].dtype.kind == kind


def test_a_data_set_of_bits_is_drawn_as_bars():
    part = pv.datasets.load("digits").test[:6]
    vae = bernoulli_vae.build(64, latent_dim=2, hidden_dim=4)
    result = pv.to_inference_data(vae, part, num_draws=20, num_prior=0)
    assert result["observed_data"]["x"].dtype == "int8"
    assert result["constant_data"]["labels"].dtype.kind == "i"


# --- names ----------------------------------------------------------------------------------------


class Scoped(pv.Program):
    def __init__(self, latent="vae/z", observed="vae/x"):
        super().__init__(observed=observed)
        self.latent, self.enc, self.dec = latent, nn.Linear(6, 2), nn.Linear(2, 6)

    def model(self, x):
        with pyro.plate("data", len(x["x"])):
            z = pyro.sample(self.latent, dist.Normal(torch.zeros(2), 1.0).to_event(1))
            law = dist.Bernoulli(logits=self.dec(z)).to_event(1)
            pyro.sample(self.observed, law, obs=x["x"])

    def guide(self, x):
        with pyro.plate("data", len(x["x"])):
            pyro.sample(self.latent, dist.Normal(0.1 * self.enc(x["x"]), 1.2).to_event(1))


def test_a_slash_in_a_name_is_a_dot_in_memory_and_on_the_disk(tmp_path):
    x = {"x": (torch.rand(5, 6) < 0.4).float(), "cell/size": torch.arange(5.0)}
    program = Scoped()
    result = pv.to_inference_data(
        program, x, num_draws=30, num_prior=5, true_latents={"vae/z": torch.zeros(5, 2)}
    )
    assert result["posterior"]["vae.z"].dims == ("chain", "draw", "data", "vae.z_dim")
    assert set(result["constant_data"].data_vars) == {"cell.size", "true_vae.z"}
    assert result["constant_data"]["true_vae.z"].dims == ("data", "vae.z_dim")
    assert result["posterior"].attrs["site_vae.z"] == "vae/z"
    path = tmp_path / "scoped.nc"
    result.to_netcdf(str(path), engine="h5netcdf")
    for group in ("posterior", "prior", "observed_data", "posterior_predictive", "log_likelihood"):
        with xr.open_dataset(path, group=group, engine="h5netcdf") as there:
            mine = result[group]
            mine = mine.to_dataset() if hasattr(mine, "to_dataset") else mine
            xr.testing.assert_equal(there.load(), mine)
    run = pv.fit(program, x, steps=3, engine="pyro", progress=False)
    run.save(tmp_path / "run")
    assert "kl.vae/z" in pv.load(tmp_path / "run", Scoped()).history
    assert pv.encode(program, x).shape == (5, 2)
    assert pv.decode(program, {"vae/z": torch.zeros(5, 2)}, like=x).shape == (5, 6)


def test_two_names_that_would_be_written_alike_are_refused():
    x = {"x": torch.zeros(3, 6), "vae.z": torch.zeros(3)}
    with pytest.raises(ValueError, match=r'written as "vae\.z", because a slash becomes a dot'):
        pv.to_inference_data(Scoped(), x, num_draws=20)
