"""Evidence that knows what it was measured on, compared by hand and by ArviZ."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae import likelihoods
from pyro_vae.evidence import from_log_weights
from pyro_vae.models import linear_gaussian

N = 120


@pytest.fixture(scope="module")
def found():
    """Evidence of three models of one x, by name."""
    torch.manual_seed(0)
    x = 1.3 * torch.randn(N, 3)
    models = {f"J{J}": linear_gaussian.build(3, latent_dim=J, posterior="full") for J in (1, 2, 3)}
    for model in models.values():
        model.guide_is_exact_posterior()
    return {n: pv.log_evidence(m, x, num_particles=200) for n, m in models.items()}


def test_differences_are_paired_and_never_positive(found):
    table = pv.compare_evidence(found)
    values = {name: each.value.numpy() for name, each in found.items()}
    best = table.index[0]
    assert list(table["rank"]) == [0, 1, 2]
    assert table["elpd"].is_monotonic_decreasing and (table["elpd_diff"] <= 0).all()
    for name, row in table.iterrows():
        d = values[name] - values[best]
        assert row["elpd"] == pytest.approx(values[name].sum())
        assert row["elpd_diff"] == pytest.approx(d.sum())
        assert row["dse"] == pytest.approx(np.sqrt(N * d.var(ddof=1)), abs=1e-9)
        assert row["mean_dse"] == pytest.approx(row["dse"] / N)
    assert table["dse"]["J1"] < 0.5 * table["se"]["J1"]  # they err together


@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")  # of ArviZ 0.23
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame")
def test_arviz_compares_and_draws_what_evidence_hands_it(found):
    """Of either line: names are those that both have; the sign of the difference is not."""
    import arviz as az

    elpds = {name: each.to_arviz() for name, each in found.items()}
    theirs, ours = az.compare(elpds, method="BB-pseudo-BMA"), pv.compare_evidence(found)
    assert list(theirs.index) == list(ours.index)
    differences = theirs["elpd_diff"].astype(float).abs()
    np.testing.assert_allclose(differences, ours["elpd_diff"].abs(), rtol=0.25)  # 1.x rounds
    one = elpds["J2"]
    np.testing.assert_allclose(one.elpd_i if hasattr(one, "elpd_i") else one["loo_i"],
                               found["J2"].value)  # fmt: skip
    np.testing.assert_allclose(one["pareto_k"], found["J2"].khat)
    assert one["n_data_points"] == N and one["n_samples"] == 200
    assert str(N) in str(one)
    az.plot_compare(theirs)
    az.plot_khat(one)
    plt.close("all")


@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
def test_annealed_evidence_without_khat_goes_to_arviz_too():
    import arviz as az

    torch.manual_seed(0)
    model = linear_gaussian.build(3, latent_dim=2, posterior="full")
    model.guide_is_exact_posterior()
    x = torch.randn(10, 3)
    elpd = pv.log_evidence(
        model, x, method="annealed", num_temperatures=3, chains=2, leapfrog_steps=1
    ).to_arviz()
    assert np.isnan(elpd["pareto_k"]).all()
    az.plot_khat(elpd)
    plt.close("all")


# --- what is refused ------------------------------------------------------------------------------


def vae(likelihood, x):
    torch.manual_seed(0)
    return pv.VAE.build(x, latent_dim=2, hidden_dim=4, likelihood=likelihood)


def score(program, x, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pv.PyroVaeWarning)
        return pv.log_evidence(program, x, num_particles=20, **options)


def refused(match, **evidence):
    with pytest.raises(ValueError, match=match):
        pv.compare_evidence(evidence)


def test_other_rows_are_refused(found):
    model = linear_gaussian.build(3, latent_dim=1)
    x = torch.randn(N, 3)
    refused("are of different data", a=found["J1"], b=score(model, x))
    refused("are of 120 and 7 data", a=found["J1"], b=score(model, x[:7]))
    same = score(model, x)
    refused("are of different data", a=same, b=score(model, x.flip(0)))
    refused("are of different data", a=same, b=score(model, x / 2))


def test_a_density_beside_a_mass_is_refused():
    x = torch.randint(0, 4, (30, 5)).float()
    normal, poisson = vae(likelihoods.Gaussian(), x), vae(likelihoods.Poisson(), x)
    a, b = score(normal, x), score(poisson, x)
    assert a.measured.unit.kind == "a density" and b.measured.unit.kind == "a mass"
    refused(r"likelihoods of different kinds \(a density; a mass\)", a=a, b=b)
    nb = score(vae(likelihoods.NegativeBinomial(), x), x)
    assert len(pv.compare_evidence({"Poisson": b, "NB": nb})) == 2


def test_counts_given_their_total_are_another_event():
    x = torch.randint(0, 4, (30, 5)).float()
    a = score(vae(likelihoods.Poisson(), x), x)
    b = score(vae(likelihoods.Multinomial(), x), x)
    c = score(vae(likelihoods.Multinomial(ordered=False), x), x)
    refused("likelihoods of different events", a=a, b=b)
    refused("likelihoods of different events", a=a, b=c)
    refused(r"events \(totals, words in order; totals\)", a=b, b=c)


def test_another_binarization_is_refused():
    grey = torch.rand(30, 5)
    static = pv.datasets.from_array(grey, binarize="static")
    threshold = pv.datasets.from_array(grey, binarize="threshold")
    program = vae(likelihoods.Bernoulli(), static.x)
    a, b = score(program, static), score(program, threshold)
    assert a.measured.binarize == "static" and "binarized: static" in repr(a)
    refused("binarized static and threshold", a=a, b=b)


def test_a_cross_entropy_of_grey_pixels_is_no_mass():
    grey = torch.rand(30, 5)
    a = score(vae(likelihoods.Bernoulli(soft_targets=True), grey), grey)
    assert "cross-entropy" in a.measured.unit.kind
    bits = (grey > 0.5).float()
    b = score(vae(likelihoods.Bernoulli(soft_targets=True), bits), bits)
    assert b.measured.unit.kind == "a mass"


def test_covariates_are_no_part_of_the_data():
    """p(x | c) beside p(x): the same rows are scored."""
    x, c = torch.randn(20, 3), torch.randn(20, 1)
    plain = linear_gaussian.build(3, latent_dim=1)

    class Given(pv.Program):
        def __init__(self):
            super().__init__()
            self.inner = plain

        def model(self, rows):
            self.inner.model(rows["x"])

        def guide(self, rows):
            self.inner.guide(rows["x"])

    a, b = score(plain, x), score(Given(), {"x": x, "c": c})
    assert a.measured.digest == b.measured.digest
    pv.compare_evidence({"a": a, "b": b})


def test_what_is_no_evidence_or_does_not_say_of_what_is_refused(found):
    made = from_log_weights(torch.zeros(10, N))
    refused("does not say what it was measured on", a=found["J1"], b=made)
    refused("expected a dict of two or more", a=found["J1"])
    with pytest.raises(TypeError, match='evidence of "b" is Tensor, expected Evidence'):
        pv.compare_evidence({"a": found["J1"], "b": found["J1"].value})


def test_biases_that_do_not_cancel_are_told(found):
    torch.manual_seed(0)
    x = 1.3 * torch.randn(N, 3)
    model = linear_gaussian.build(3, latent_dim=1)
    exact = pv.log_evidence(model, x, method="exact")
    with pytest.warns(pv.PyroVaeWarning, match="estimated by different methods"):
        pv.compare_evidence({"a": found["J1"], "b": exact})
    wild = found["J1"]._replace(khat=torch.ones(N))
    with pytest.warns(pv.PyroVaeWarning, match=r"khat exceeds 0.7 .*a 100%"):
        pv.compare_evidence({"a": wild, "b": found["J2"]})


def test_a_law_in_words(found):
    assert "; importance, guide; a density of 3 numbers (Normal); data " in repr(found["J1"])
