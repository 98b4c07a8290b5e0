"""What ArviZ is given: the guide's draws, and everything that judges them at the same draws."""

import copy

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import nn

import pyro_vae as pv
from pyro_vae.evidence.weights import pareto_khat
from pyro_vae.inference_data import chains, datasets
from pyro_vae.inference_data.draws import drawn, posterior_groups
from pyro_vae.inference_data.from_guide import to_inference_data
from pyro_vae.models import bernoulli_vae

# Most guides here are drawn at random, and their khat says so.
pytestmark = pytest.mark.filterwarnings("ignore:khat exceeds:pyro_vae.PyroVaeWarning")

GROUPS = {
    "posterior", "sample_stats", "posterior_predictive", "log_likelihood", "prior",
    "prior_predictive", "observed_data",
}  # fmt: skip


def values(result, group, name):
    return torch.from_numpy(result[group][name].values)


class Two(pv.Program):
    """A scalar latent and a (3, 2) one, and a covariate that shifts the first and x."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.5))

    def model(self, x):
        with pyro.plate("data", len(x["x"])):
            a = pyro.sample("a", dist.Normal(x["c"][:, 0], 1.0))
            b = pyro.sample("b", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
            mean = a[:, None] + b.sum(-1) + self.shift + x["c"]
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x["x"])

    def guide(self, x):
        with pyro.plate("data", len(x["x"])):
            pyro.sample("a", dist.Normal(x["x"][:, 0], 0.7))
            pyro.sample("b", dist.Normal(x["x"][:, :, None].expand(-1, 3, 2), 0.8).to_event(2))


def two():
    x = {"x": torch.randn(5, 3), "c": torch.randn(5, 1)}
    return Two(), x


@pytest.fixture
def digits():
    torch.manual_seed(0)
    data = pv.datasets.load("digits").test[:6]
    return bernoulli_vae.build(data.dim, latent_dim=2, hidden_dim=8), data


# --- form -----------------------------------------------------------------------------------------


def test_groups_dimensions_and_coordinates_are_those_of_the_table(oracle, x):
    result = to_inference_data(oracle, x, num_draws=20, chains=3, num_prior=7)

    assert set(result.children if isinstance(result, xr.DataTree) else result.groups()) == GROUPS
    sizes = {"chain": 3, "draw": 20, "data": 9}
    assert dict(result["posterior"]["z"].sizes) == {**sizes, "z_dim": 2}
    assert dict(result["posterior_predictive"]["x"].sizes) == {**sizes, "x_dim": 5}
    assert dict(result["prior"]["z"].sizes) == {"chain": 1, "draw": 7, "data": 9, "z_dim": 2}
    assert result["prior_predictive"]["x"].shape == (1, 7, 9, 5)
    for group, name in (("sample_stats", "lp"), ("sample_stats", "log_q"), ("log_likelihood", "x")):
        assert dict(result[group][name].sizes) == sizes
    for name in ("khat", "log_evidence", "log_evidence_standard_error", "ess"):
        assert dict(result["sample_stats"][name].sizes) == {"data": 9}
    for name, size in {**sizes, "z_dim": 2}.items():
        assert result["posterior"][name].values.tolist() == list(range(size))
    assert np.array_equal(result["observed_data"]["x"].values, x.numpy())
    assert result["posterior"]["z"].dtype == np.float64


def test_two_latents_of_different_shapes_and_a_dict_with_a_covariate():
    program, x = two()
    result = to_inference_data(program, x, num_draws=30, chains=2, num_prior=4)

    posterior = result["posterior"]
    assert posterior["a"].dims == ("chain", "draw", "data")
    assert posterior["b"].dims == ("chain", "draw", "data", "b_dim_0", "b_dim_1")
    assert posterior["b"].shape == (2, 30, 5, 3, 2)
    assert result["constant_data"]["c"].dims == ("data", "c_dim")
    assert np.array_equal(result["constant_data"]["c"].values, x["c"].numpy())
    assert list(result["observed_data"].data_vars) == ["x"]
    a, b = values(result, "posterior", "a"), values(result, "posterior", "b")
    mean = a[..., None] + b.sum(-1) + program.shift.detach() + x["c"]
    by_hand = dist.Normal(mean, 1.0).log_prob(x["x"]).sum(-1)
    torch.testing.assert_close(values(result, "log_likelihood", "x"), by_hand)


def test_labels_and_row_numbers_of_a_data_come_along(digits):
    vae, data = digits
    result = to_inference_data(vae, data[[4, 1]], num_draws=10)

    assert result["constant_data"]["labels"].values.tolist() == data.labels[[4, 1]].tolist()
    for group in ("posterior", "sample_stats", "observed_data", "constant_data"):
        assert result[group]["data"].values.tolist() == data.index[[4, 1]].tolist()
    attributes = result["posterior"].attrs
    assert attributes["binarize"] == "threshold"
    assert attributes["data_digest"] == data[[4, 1]].digest
    assert (attributes["seed"], attributes["num_draws"], attributes["chains"]) == (0, 10, 4)
    assert "guide" in attributes["draws"]
    assert "harmonic mean" in result["log_likelihood"].attrs["note"]


def test_true_latents_stand_beside_the_draws_on_the_same_dimensions(oracle, x):
    truth = torch.randn(9, 2)
    result = to_inference_data(oracle, x, num_draws=10, true_latents=truth)

    kept = result["constant_data"]["true_z"]
    assert kept.dims == ("data", "z_dim")
    assert np.array_equal(kept.values, truth.numpy())
    assert (result["posterior"]["z"] - kept).sizes["z_dim"] == 2


def test_groups_can_be_left_out(oracle, x):
    result = to_inference_data(oracle, x, num_draws=10, num_prior=0, predictive=False)
    groups = set(result.children if isinstance(result, xr.DataTree) else result.groups())
    assert groups == {"posterior", "sample_stats", "log_likelihood", "observed_data"}
    only_latents = to_inference_data(oracle, x, num_draws=10, predictive=False)
    assert only_latents["prior"]["z"].shape == (1, 100, 9, 2)


def test_a_masked_model_draws_what_it_leaves_out():
    """Predictions of what is missing are what one imputes by."""

    class Masked(Two):
        def model(self, x):
            with pyro.plate("data", len(x["x"])):
                a = pyro.sample("a", dist.Normal(0.0, 1.0))
                pyro.sample("b", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
                law = dist.Normal(a[:, None] + self.shift, torch.ones(3)).mask(x["c"] > 0)
                pyro.sample("x", law.to_event(1), obs=x["x"])

    x = {"x": torch.randn(5, 3), "c": torch.randn(5, 3)}
    program = Masked()
    result = to_inference_data(program, x, num_draws=200)
    assert result["prior"]["a"].shape == (1, 100, 5)
    replicated = result["posterior_predictive"]["x"] - result["posterior"]["a"]
    assert replicated.shape[:3] == (4, 200, 5)
    assert abs(replicated.values - program.shift.detach().numpy()).mean(axis=(0, 1)).max() < 1.0
    assert 0.9 < float(replicated.std()) < 1.1


# --- values ---------------------------------------------------------------------------------------


def test_lp_and_log_q_are_those_of_the_very_draws(oracle, x):
    """Recomputed by hand from the latents that are stored: no noise, so 1e-10."""
    result = to_inference_data(oracle, x, num_draws=25, chains=2, batch_size=4)

    z = values(result, "posterior", "z")
    with torch.no_grad():
        guide = dist.MultivariateNormal(
            x @ oracle.guide_weight.T + oracle.guide_bias, scale_tril=oracle.guide_noise.factor()
        )
        likelihood = dist.MultivariateNormal(
            z @ oracle.weight.T + oracle.bias, scale_tril=oracle.noise.factor()
        )
        log_likelihood = likelihood.log_prob(x)
        log_prior = dist.Normal(torch.zeros_like(z), 1.5**-0.5).log_prob(z).sum(-1)
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(values(result, "log_likelihood", "x"), log_likelihood, **close)
    torch.testing.assert_close(
        values(result, "sample_stats", "lp"), log_likelihood + log_prior, **close
    )
    torch.testing.assert_close(values(result, "sample_stats", "log_q"), guide.log_prob(z), **close)


def test_the_exact_posterior_has_constant_weights_and_khat_zero(oracle, x):
    """log p(x, z) - log p(z | x) is log p(x) at every draw."""
    oracle.guide_is_exact_posterior()
    result = to_inference_data(oracle, x, num_draws=50)

    stats = result["sample_stats"]
    truth = oracle.log_evidence(x).detach()
    log_w = torch.from_numpy((stats["lp"] - stats["log_q"]).values)
    torch.testing.assert_close(log_w, truth.expand_as(log_w))
    torch.testing.assert_close(values(result, "sample_stats", "log_evidence"), truth)
    assert float(abs(stats["khat"]).max()) == 0.0
    assert float(stats["log_evidence_standard_error"].max()) < 1e-5
    torch.testing.assert_close(
        values(result, "sample_stats", "ess"), torch.full((9,), 200.0).double()
    )


def test_khat_and_evidence_are_computed_from_the_stored_weights(oracle, x):
    result = to_inference_data(oracle, x, num_draws=100)
    stats = result["sample_stats"]
    log_w = torch.from_numpy((stats["lp"] - stats["log_q"]).values).flatten(0, 1)
    by_hand = log_w.logsumexp(0) - np.log(400)
    torch.testing.assert_close(values(result, "sample_stats", "log_evidence"), by_hand)
    torch.testing.assert_close(values(result, "sample_stats", "khat"), pareto_khat(log_w))


def test_numbers_are_those_of_evaluation_mode(digits):
    """log p(x) as ``log_evidence`` has it: no dropout, and the mode is put back."""
    vae, data = digits
    vae.likelihood.network.append(nn.Dropout(0.9))
    training, evaluated = (
        values(to_inference_data(each, data, num_draws=20), "sample_stats", "log_evidence")
        for each in (vae, copy.deepcopy(vae).eval())
    )
    assert vae.training and torch.equal(training, evaluated)


def test_so_few_draws_that_there_is_no_khat_are_warned_about(digits):
    vae, data = digits
    with pytest.warns(pv.PyroVaeWarning, match="with so few draws there is no khat"):
        result = to_inference_data(vae, data, num_draws=5)
    assert np.isnan(result["sample_stats"]["khat"].values).all()


def test_posterior_and_predictive_moments_are_the_exact_ones(oracle, x):
    """Within 4.5 Monte Carlo standard errors; moments of the neighbouring row are rejected."""
    oracle.guide_is_exact_posterior()
    count = 4 * 2500
    result = to_inference_data(oracle, x, num_draws=2500, num_prior=0)
    with torch.no_grad():
        exact = oracle.posterior(x)
        noise = oracle.noise.factor() @ oracle.noise.factor().T
        weight, bias, mean = oracle.weight.data, oracle.bias.data, exact.mean
        covariance = exact.covariance_matrix
        predictive = mean @ weight.T + bias, weight @ covariance @ weight.T + noise

    def scores(group, name, mean, covariance):
        draws = values(result, group, name).flatten(0, 1)
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        of_mean = (draws.mean(0) - mean) / (variance / count).sqrt()
        of_variance = (draws.var(0) - variance) / (variance * (2 / count) ** 0.5)
        return torch.cat([of_mean, of_variance]).abs().max()

    assert scores("posterior", "z", mean, covariance) < 4.5
    assert scores("posterior_predictive", "x", *predictive) < 4.5
    assert scores("posterior", "z", mean.roll(1, 0), covariance) > 4.5
    assert scores("posterior_predictive", "x", predictive[0], noise) > 4.5  # z's part left out


def test_prior_draws_follow_the_covariates():
    program, x = two()
    result = to_inference_data(program, x, num_draws=1, chains=30, num_prior=5000)
    a = values(result, "prior", "a")[0]  # (5000, 5), from N(c, 1)
    assert float(((a.mean(0) - x["c"][:, 0]) * 5000**0.5).abs().max()) < 4.5
    replicated = values(result, "prior_predictive", "x")[0]
    b = values(result, "prior", "b")[0]
    residual = replicated - a[..., None] - b.sum(-1) - program.shift.detach() - x["c"]
    assert float((residual.mean(0) * 5000**0.5).abs().max()) < 4.5
    assert float(((residual.var(0) - 1) / (2 / 5000) ** 0.5).abs().max()) < 4.5


def test_the_seed_decides_and_the_global_generator_is_left_alone(oracle, x):
    before = torch.get_rng_state()
    one = to_inference_data(oracle, x, num_draws=10, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    again = to_inference_data(oracle, x, num_draws=10, seed=3)
    other = to_inference_data(oracle, x, num_draws=10, seed=4)
    for group, name in (("posterior", "z"), ("posterior_predictive", "x"), ("prior", "z")):
        assert one[group][name].identical(again[group][name])
        assert not np.isclose(one[group][name].values, other[group][name].values).any()


def test_chunks_of_rows_and_particles_are_put_where_they_belong(oracle, x):
    """Whatever the chunks, lp is that of the draws beside it, and no two draws are equal."""
    plain = posterior_groups(["x"], True, lambda draws: draws)
    with torch.no_grad():
        batches = list(drawn(oracle, x, plain, 23, (0,), 4, max_elements=5 * 4 * 3))
    assert [len(batch["posterior"]["z"][0]) for batch in batches] == [4, 4, 1]
    z = torch.from_numpy(np.concatenate([batch["posterior"]["z"] for batch in batches], 1))
    assert z.shape == (23, 9, 2) and len(z.flatten().unique()) == z.numel()
    with torch.no_grad():
        mean = z @ oracle.weight.T + oracle.bias
        by_hand = dist.MultivariateNormal(mean, scale_tril=oracle.noise.factor()).log_prob(x)
    found = np.concatenate([batch["log_likelihood"]["x"] for batch in batches], 1)
    torch.testing.assert_close(torch.from_numpy(found), by_hand)


# --- ArviZ and files ------------------------------------------------------------------------------


def test_arviz_summarizes_and_plots_it(oracle, x):
    import matplotlib.pyplot as plt

    oracle.guide_is_exact_posterior()
    result = to_inference_data(oracle, x, num_draws=500)
    some = result.isel(data=slice(2))
    table = az.summary(some, var_names=["z"], round_to="none")
    assert len(table) == 4
    exact = oracle.posterior(x[:2]).mean.detach().flatten().numpy()
    assert (
        abs((table["mean"].to_numpy(float) - exact) / table["mcse_mean"].to_numpy(float)).max()
        < 4.5
    )
    az.plot_forest(some, var_names=["z"], combined=True)
    plt.close("all")


def test_it_survives_netcdf(digits, tmp_path):
    vae, data = digits
    result = to_inference_data(vae, data, num_draws=10, true_latents=torch.zeros(6, 2))
    result.to_netcdf(tmp_path / "posterior.nc", engine="h5netcdf")
    for group in (*GROUPS, "constant_data"):
        with xr.open_dataset(tmp_path / "posterior.nc", group=group, engine="h5netcdf") as read:
            kept = result[group]
            kept = kept.to_dataset() if isinstance(kept, xr.DataTree) else kept
            xr.testing.assert_equal(read, kept)
            assert read.attrs["binarize"] == "threshold"


def test_from_arviz_1_on_it_is_a_data_tree(oracle, x, monkeypatch, tmp_path):
    """Of xarray alone, as ArviZ 1 returns, with the same values as below 1."""
    old = to_inference_data(oracle, x, num_draws=10)
    monkeypatch.setattr(datasets, "version", lambda name: "1.3.0")
    tree = to_inference_data(oracle, x, num_draws=10)

    assert isinstance(tree, xr.DataTree) and set(tree.children) == GROUPS
    assert np.array_equal(tree["posterior/z"].values, old["posterior"]["z"].values)
    assert tree.isel(data=slice(2))["sample_stats/lp"].shape == (4, 10, 2)
    tree.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "tree.nc", engine="h5netcdf") as read:
        xr.testing.assert_equal(read, tree)


# --- errors and warnings --------------------------------------------------------------------------


def test_too_large_a_result_is_refused_before_anything_is_drawn(oracle, x, monkeypatch):
    def never(*args):
        pytest.fail("drew")

    monkeypatch.setattr(chains, "drawn", never)
    with pytest.raises(
        ValueError, match=r"lower num_draws .* raise max_bytes, or write it to a file"
    ):
        to_inference_data(oracle, x, num_draws=500, max_bytes=2**20)


def test_the_estimate_is_the_size(oracle, x):
    result = to_inference_data(oracle, x, num_draws=100, num_prior=20)
    drawn = GROUPS - {"observed_data"}
    size = sum(v.nbytes for g in drawn for v in result[g].data_vars.values() if "draw" in v.dims)
    to_inference_data(oracle, x, num_draws=100, num_prior=20, max_bytes=size)
    with pytest.raises(ValueError, match="max_bytes"):
        to_inference_data(oracle, x, num_draws=100, num_prior=20, max_bytes=size - 1)


def test_a_guide_that_misses_the_posterior_is_said_to(oracle, x):
    with torch.no_grad():
        oracle.guide_is_exact_posterior()
        narrow = 0.01 * oracle.posterior_precision().inverse()
        oracle.guide_noise.set(narrow)
    with pytest.warns(pv.PyroVaeWarning, match=r"khat exceeds 0.7 for [89] of 9"):
        to_inference_data(oracle, x, num_draws=500)


def test_mistakes_are_named(oracle, x):
    for options, message in (
        ({"num_draws": 0}, "num_draws is 0"),
        ({"chains": 1.5}, "chains is 1.5"),
        ({"num_prior": -1}, "num_prior is -1"),
        ({"true_latents": torch.zeros(9, 3)}, r"\(9, 3\), expected \(9, 2\)"),
        ({"true_latents": {"y": torch.zeros(9, 2)}}, 'has "y"'),
    ):
        with pytest.raises(ValueError, match=message):
            to_inference_data(oracle, x, **options)
    program, rows = two()
    with pytest.raises(ValueError, match="dict by site"):
        to_inference_data(program, rows, true_latents=torch.zeros(5))
    with pytest.raises(ValueError, match='"draw" is the name'):
        to_inference_data(program, {**rows, "draw": torch.zeros(5)}, num_draws=10)
    with pytest.raises(ValueError, match='entry "true_a"'):
        given = {**rows, "true_a": torch.zeros(5)}
        to_inference_data(program, given, true_latents={"a": torch.zeros(5)})
