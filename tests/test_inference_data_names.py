"""ArviZ: names of dimensions, several programs, runs, held-out data, KL terms, calibration."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import nn

import pyro_vae as pv
from pyro_vae.evidence.weights import pareto_khat
from pyro_vae.models import bayesian_vae, bernoulli_vae, linear_gaussian

pytestmark = pytest.mark.filterwarnings("ignore:khat exceeds:pyro_vae.PyroVaeWarning")


class Named(pv.Program):
    """Two latents, one of named topics, the other on a further plate, and named words."""

    def __init__(self, events=("topic",)):
        super().__init__()
        self.shift, self.events = nn.Parameter(torch.tensor(0.5)), list(events)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("place", 4, dim=-1):
                a = pyro.sample("a", dist.Normal(0.0, 1.0))
            law = dist.Normal(torch.zeros(2), 2.0).to_event(1)
            b = pyro.sample("b", law.expand([1]), infer={"event_dims": self.events})
            mean = (a + b.sum(-1))[..., None].sum(1, keepdim=True) + self.shift
            law = dist.Normal(mean.expand(-1, 1, 3), 1.0).to_event(1)
            pyro.sample("x", law, obs=x[:, None], infer={"event_dims": ["word"]})

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("place", 4, dim=-1):
                pyro.sample("a", dist.Normal(x.mean(-1)[:, None], 0.7).expand([len(x), 4]))
            pyro.sample("b", dist.Normal(x[:, None, :2], 0.5).to_event(1))


def converted(program, x, **options):
    options = {"num_draws": 30, "chains": 2, "num_prior": 5, "predictive": False, **options}
    return pv.to_inference_data(program, x, **options)


def test_events_and_plates_give_dimensions_their_names():
    x = torch.randn(5, 3)
    result = converted(Named(), x, predictive=True)
    for group in ("posterior", "prior"):
        assert result[group]["a"].dims == ("chain", "draw", "data", "place")
        assert result[group]["b"].dims[:3] == ("chain", "draw", "data")
        assert result[group]["b"].dims[-1] == "topic" and result[group].sizes["topic"] == 2
    assert result["observed_data"]["x"].sizes["data"] == 5
    assert result["sample_stats"]["kl_a"].dims == ("data", "place")


def test_a_user_names_dimensions_and_what_stands_along_them():
    x = torch.randn(5, 3)
    oracle = linear_gaussian.build(3, latent_dim=2)
    for dims in ({"z": ["factor"]}, {"z": ["data", "factor"], "x": ["column"]}):
        result = converted(
            oracle, x, dims=dims, coords={"factor": ["age", "size"], "data": list("abcde")},
            true_latents=torch.zeros(5, 2),
        )  # fmt: skip
        z = result["posterior"]["z"]
        assert z.dims == ("chain", "draw", "data", "factor")
        assert z["factor"].values.tolist() == ["age", "size"]
        assert z["data"].values.tolist() == list("abcde")
        assert result["constant_data"]["true_z"].dims == ("data", "factor")
        assert result["sample_stats"]["kl"].dims == ("data", "factor")
    assert result["observed_data"]["x"].dims == ("data", "column")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dims": {"y": ["a"]}}, 'dims has "y", expected some of x, z'),
        ({"dims": {"z": ["a", "b"]}}, r'dims of "z" are a, b, expected at most 1'),
        ({"dims": {"z": ["draw"]}}, 'dimension called "draw"'),
        ({"dims": {"z": ["x"]}}, '"x" is the name of a variable and of a dimension'),
        ({"dims": {"z": ["k"], "x": ["k"]}}, 'dimension "k" has size 2 in "z" and 3 in "x"'),
        ({"coords": {"factor": [1, 2]}}, 'coords has "factor", expected some of'),
        ({"coords": {"z_dim": [1, 2, 3]}}, r'coords of "z_dim" have shape \(3,\), expected \(2,\)'),
        ({"refined": "best"}, "refined is \"?'best'\"?, expected None"),
    ],
)
def test_names_that_do_not_fit_are_refused(options, message):
    oracle = linear_gaussian.build(3, latent_dim=2)
    with pytest.raises(ValueError, match=message):
        converted(oracle, torch.zeros(4, 3), **options)


def test_too_many_event_dims_and_a_text_for_a_list_are_refused():
    with pytest.raises(ValueError, match='event_dims of site "b" are topic, more, expected at'):
        converted(Named(("topic", "more")), torch.zeros(4, 3))
    with pytest.raises(TypeError, match="expected a list of names"):
        converted(linear_gaussian.build(3, latent_dim=2), torch.zeros(4, 3), dims={"z": "ab"})


def test_row_numbers_and_labels_stand_along_the_data():
    test = pv.datasets.load("digits").test[[5, 2, 9]]
    result = converted(bernoulli_vae.build(64, latent_dim=2, hidden_dim=4), test)
    for group in ("posterior", "sample_stats", "observed_data"):
        assert result[group]["data"].values.tolist() == test.index.tolist()
        assert result[group]["label"].dims == ("data",)
        assert result[group]["label"].values.tolist() == test.labels.tolist()


# --- judging --------------------------------------------------------------------------------------


def test_weights_and_what_is_computed_from_them_belong_to_the_draws():
    oracle = linear_gaussian.build(3, latent_dim=2).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    stats = converted(oracle, x, num_draws=200)["sample_stats"]
    log_w = (stats["lp"] - stats["log_q"]).values
    np.testing.assert_array_equal(stats["log_weight"].values, log_w)
    flat = torch.from_numpy(log_w).flatten(0, 1)
    np.testing.assert_allclose(stats["elbo"].values, flat.mean(0).numpy(), rtol=1e-12)
    np.testing.assert_allclose(stats["khat"].values, pareto_khat(flat).numpy(), rtol=1e-12)


def test_kl_of_each_coordinate_is_the_closed_form_and_their_sum_the_whole():
    vae = bernoulli_vae.build(6, latent_dim=3, hidden_dim=4)
    x = (torch.rand(7, 6) < 0.5).float()
    found = converted(vae, x, batch_size=4)["sample_stats"]["kl"]
    with torch.no_grad():
        trace = pyro.poutine.trace(vae.guide).get_trace(x)
        law = trace.nodes["z"]["fn"].base_dist
        mean, sd = law.mean, law.stddev
        exact = (mean**2 + sd**2 - 1) / 2 - sd.log()
    assert found.dims == ("data", "z_dim") and found.attrs["estimate"] == "closed form"
    np.testing.assert_allclose(found.values, exact.numpy(), rtol=1e-4, atol=1e-6)


class Correlated(pv.Program):
    """Prior or guide with dependent coordinates; and no closed form under a Laplace prior."""

    def __init__(self, prior, guide):
        super().__init__()
        self.laws, self.shift = (prior, guide), nn.Parameter(torch.tensor(0.0))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.laws[0])
            pyro.sample("x", dist.Normal(z + self.shift, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.laws[1])


def test_kl_of_dependent_coordinates_is_one_number_and_sampled_where_no_form_is_known():
    x = torch.zeros(4, 2)
    full = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    kl = converted(Correlated(full, normal), x)["sample_stats"]["kl"]
    exact = float(torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)), full))  # fmt: skip
    assert kl.dims == ("data",)
    np.testing.assert_allclose(kl.values, exact, rtol=1e-5)
    student = dist.StudentT(5.0, torch.zeros(2), 1.0).to_event(1)
    result = converted(Correlated(student, normal), x, num_draws=200)["sample_stats"]["kl"]
    assert result.dims == ("data", "z_dim") and "Monte Carlo over 100" in result.attrs["estimate"]
    z = torch.randn(200_000)
    exact = float((dist.Normal(0.0, 1.0).log_prob(z) - dist.StudentT(5.0).log_prob(z)).mean())
    assert abs(float(result.mean()) - exact) < 0.05


# --- several programs, runs -----------------------------------------------------------------------


def trained(seed, data):
    vae = bernoulli_vae.build(64, latent_dim=2, hidden_dim=4)
    return pv.fit(vae, data.train[:200], steps=5, seed=seed, progress=False)


def test_runs_are_chains_called_by_their_seeds_and_bring_their_curves():
    data = pv.datasets.load("digits")
    runs = [trained(seed, data) for seed in (3, 8)]
    x = data.test[:4]
    result = converted(runs, x, chains=None, num_draws=40)
    assert result["posterior"]["chain"].values.tolist() == [3, 8]
    assert result["sample_stats"]["khat"].dims == ("chain", "data")
    assert result["sample_stats"]["kl"].dims == ("chain", "data", "z_dim")
    curve = result["training"]
    assert curve["bound"].dims == ("chain", "step")
    np.testing.assert_array_equal(curve["bound"][1].values, runs[1].history["bound"].to_numpy())
    assert "independent trainings" in result["posterior"].attrs["note"]
    # Each chain is what its program says by itself; the first with the very same noise.
    alone = converted(runs[0], x, chains=1, num_draws=40)
    np.testing.assert_array_equal(alone["posterior"]["z"][0].values, result["posterior"]["z"][0])
    assert alone["training"]["bound"].dims == ("step",)
    other = converted(runs[1].program, x, chains=1, num_draws=40)
    one, two = other["posterior"]["z"][0].values, result["posterior"]["z"][1].values
    assert not np.isclose(one, two).any()
    assert np.abs(one.mean(0) - two.mean(0)).max() < 1.5  # of sd 1 / sqrt(40)


def test_a_run_without_a_guide_is_refused_and_not_shown_as_a_posterior():
    vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=4)
    x = (torch.rand(8, 6) < 0.5).float()
    run = pv.fit(vae, x, pv.objectives.MonteCarloEM(), steps=1, progress=False)
    for function in (converted, pv.summarize):
        with pytest.raises(ValueError, match=r"MonteCarloEM.* trains no guide"):
            function(run, x)


def test_lists_that_are_no_chains_are_refused():
    x = torch.zeros(4, 3)
    one = linear_gaussian.build(3, latent_dim=2)
    for programs, message in (
        ([], "list of programs is empty"),
        ([one, one], "one program stands in the list twice"),
        ([one, linear_gaussian.build(3, latent_dim=1)], "expected trainings of one model"),
    ):
        with pytest.raises(ValueError, match=message):
            converted(programs, x, chains=None)
    with pytest.raises(ValueError, match="chains is 3 for 2 programs"):
        converted([one, linear_gaussian.build(3, latent_dim=2)], x, chains=3)
    with pytest.raises(TypeError, match="program is str"):
        converted(["one"], x)


# --- held-out data, calibration -------------------------------------------------------------------


def test_predictions_are_of_the_held_out_data():
    oracle = linear_gaussian.build(3, latent_dim=2, posterior="full")
    x, new = torch.randn(4, 3), torch.randn(3, 3) + 5
    with torch.no_grad():
        oracle.guide_is_exact_posterior()
    result = converted(oracle, x, num_draws=400, predictions=new)
    group = result["predictions"]
    assert group["x"].dims == ("chain", "draw", "data", "x_dim") and group.sizes["data"] == 3
    np.testing.assert_array_equal(result["predictions_constant_data"]["x"].values, new.numpy())
    mean = oracle.posterior(new).mean.detach().numpy()
    assert np.abs(group["z"].mean(("chain", "draw")).values - mean).max() < 0.3


@pytest.mark.parametrize("method", ["psis", pytest.param("hmc", marks=pytest.mark.slow)])
def test_refined_draws_of_a_narrow_guide_are_of_the_posterior(method):
    oracle = linear_gaussian.build(3, latent_dim=2, posterior="full")
    x = torch.randn(4, 3)
    with torch.no_grad():
        oracle.guide_is_exact_posterior()
        oracle.guide_noise.set(0.5 * oracle.posterior_precision().inverse())
    size = 3 if method == "psis" else 4  # rows; chains take seconds
    result = converted(oracle, x, num_draws=250, refined=method, batch_size=size)
    refined = result["posterior_refined"]["z"]
    assert refined.dims == ("chain", "draw", "data", "z_dim") and refined.shape == (2, 250, 4, 2)
    exact = oracle.posterior(x)
    sd = exact.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt().detach().numpy()
    mean = refined.mean(("chain", "draw")).values - exact.mean.detach().numpy()
    assert np.abs(mean / sd).max() < 0.35
    assert np.abs(refined.std(("chain", "draw")).values / sd - 1).max() < 0.3
    narrow = result["posterior"]["z"].std(("chain", "draw")).values / sd
    assert np.abs(narrow - 0.5**0.5).max() < 0.1
    said = "refined_khat" if method == "psis" else "refined_rhat"
    assert result["sample_stats"][said].dims == ("data",)


def test_what_is_done_for_each_datum_is_refused_where_data_share_latents():
    program = bayesian_vae.build(4, num_data=9, latent_dim=2, hidden_dim=3)
    for options in ({"num_simulations": 20}, {"refined": "hmc"}):
        with pytest.raises(ValueError, match="is done for each datum: leave it out"):
            converted(program, torch.zeros(9, 4), **options)


def test_places_of_an_exact_guide_are_uniform_and_those_of_a_narrow_one_are_not():
    oracle = linear_gaussian.build(3, latent_dim=2, posterior="full")
    x = torch.zeros(2, 3)
    with torch.no_grad():
        oracle.guide_is_exact_posterior()

    def places():
        group = converted(oracle, x, num_simulations=300)["prior_sbc"]
        assert group["z"].dims == ("chain", "draw", "z_dim") and group.sizes["draw"] == 300
        assert group["log_likelihood"].dims == ("chain", "draw")
        return group["z"].values

    z = places()
    assert z.min() > 0 and z.max() < 1 and abs(z.std() - 12**-0.5) < 0.03
    with torch.no_grad():
        oracle.guide_noise.set(0.2 * oracle.posterior_precision().inverse())
    assert places().std() > 0.36


def test_what_is_shared_by_all_data_is_legal_for_loo_and_the_rest_says_that_it_is_not():
    local = converted(linear_gaussian.build(3, latent_dim=2), torch.zeros(4, 3))
    assert local["log_likelihood"].attrs["loo_is_valid"] == 0
    assert isinstance(local["posterior"], (xr.Dataset, xr.DataTree))
