"""The other figures and the verb: small, and each statement of a figure checked on its numbers."""

import numpy as np
import pytest
import torch

from pyro_vae.cli import main
from pyro_vae.models import bayesian_vae, bernoulli_vae, linear_gaussian
from pyro_vae.paper import (
    appendix_d,
    appendix_e,
    appendix_f,
    figure_2,
    figure_3,
    figure_4,
    figure_5,
    read,
    slides,
)
from pyro_vae.paper.images import packed, unpacked, wall
from pyro_vae.paper.shelf import Shelf

from .test_paper import small

QUIET = {"progress": False}


@pytest.fixture
def small_data(monkeypatch):
    from pyro_vae.paper import images

    for module in (figure_2, figure_3, images, appendix_f):
        monkeypatch.setattr(module, "load_grey", small)
    monkeypatch.setattr(figure_2, "HIDDEN", {"mnist": 6, "frey_face": 6})
    monkeypatch.setattr(figure_2, "ACCUMULATE", 2)


# --- figures 3 to 5 -----------------------------------------------------------------------------


def test_figure_3_counts_em_as_the_paper_does_and_goes_on(small_data, monkeypatch, tmp_path):
    asked = []

    def estimates(program, x, seed):
        asked.append(len(x))
        names = ("appendix_d", "appendix_d_error", "importance", "importance_error", "agree")
        return dict(zip(names, (-150.0, 0.1, -150.1, 0.1, 0.95), strict=True))

    monkeypatch.setattr(figure_3, "estimates", estimates)
    monkeypatch.setattr(figure_3, "HIDDEN_DIM", 5)
    monkeypatch.setattr(figure_3, "MARKS", (1500,))
    monkeypatch.setattr(figure_3, "ACCUMULATE", 2)
    only = "monte-carlo-em-1000"
    options = {"out": tmp_path, "only": only, "points": 10, **QUIET}
    figure_3.reproduce(budget=1500, **options)
    result = figure_3.reproduce(budget=2000, **options)
    assert asked == [10] * 2  # of both splits, once
    (curve,) = result.numbers["curves"]
    assert curve["samples"] == [1500]
    # 10 leapfrog steps and 5 updates a datum: three for each of fit's samples.
    assert Shelf(tmp_path).samples_of(f"{only}-seed0") == pytest.approx(500, abs=200)
    assert "95% of data agree within twice their stated errors" in result.words()
    assert len(read(tmp_path).plot().axes) == 2


@pytest.mark.slow
def test_both_estimates_of_figure_3_agree(small_data):
    program = bernoulli_vae.build(12, latent_dim=3, hidden_dim=5, soft_targets=True, init_std=None)
    found = figure_3.estimates(program, small("mnist").test[:10])
    gap = found["appendix_d"] - found["importance"]
    assert abs(gap) < 4 * np.hypot(found["appendix_d_error"], found["importance_error"])
    assert found["agree"] > 0.7


def test_figure_4_runs_over_the_unit_square_upwards_and_to_the_right():
    z = figure_4.grid(4).reshape(4, 4, 2)
    u = torch.special.ndtr(z)
    assert torch.allclose(u[0, :, 0], torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=u.dtype))
    assert torch.allclose(u[:, 0, 1], torch.tensor([0.875, 0.625, 0.375, 0.125], dtype=u.dtype))


def test_images_are_kept_in_text_and_laid_out_row_by_row():
    images = torch.rand(6, 4)
    again = unpacked(packed(images)) / 255
    assert np.abs(again - images.numpy()).max() <= 0.5 / 255 + 1e-6
    picture = wall(np.arange(24).reshape(6, 4), 3, (2, 2))
    assert picture.shape == (4, 6)
    assert picture[:2, :2].tolist() == [[0, 1], [2, 3]]
    assert picture[:2, 2:4].tolist() == [[4, 5], [6, 7]]
    assert picture[2:, :2].tolist() == [[12, 13], [14, 15]]


def test_figures_4_and_5_share_a_training(small_data, monkeypatch, tmp_path):
    data = small("mnist")
    shaped = type(data)(data.name, data.train, data.validation, data.test, image_shape=(3, 4))
    from pyro_vae.paper import images

    monkeypatch.setattr(images, "load_grey", lambda name, data_dir: shaped)
    options = {"budget": 1000, "runs": tmp_path / "runs", **QUIET}
    four = figure_4.reproduce(out=tmp_path / "4", only="mnist", **options)
    monkeypatch.setattr("pyro_vae.paper.shelf.fit", None)  # whoever trains again fails
    five = figure_5.reproduce(out=tmp_path / "5", only="mnist-aevb-2", **options)
    assert unpacked(four.numbers["walls"][0]["images"]).shape == (400, 12)
    assert unpacked(five.numbers["walls"][0]["images"]).shape == (100, 12)
    assert four.table().test.tolist() == five.table().test.tolist()
    assert read(tmp_path / "4").plot() is not None and five.plot() is not None


# --- appendices ---------------------------------------------------------------------------------


def test_the_bias_of_appendix_d_is_upward_and_falls():
    torch.manual_seed(0)
    model = linear_gaussian.build(8, latent_dim=3, noise_scale=0.5).requires_grad_(False)
    x = torch.randn(1000, 3) @ model.weight.T + 0.5 * torch.randn(1000, 8)
    exact = model.log_evidence(x).double()
    few, more = (appendix_d._independent(model, x, draws, 0).value - exact for draws in (24, 100))
    assert few.mean() > 3 * few.std() / 1000**0.5
    assert more.mean() < 0.3 * few.mean()
    below = appendix_d._from_prior(model, x, 24, 0).value - exact
    assert below.mean() < -3 * below.std() / 1000**0.5


@pytest.mark.slow
def test_appendix_d_errs_upward_and_importance_sampling_downward(monkeypatch, tmp_path):
    monkeypatch.setattr(appendix_d, "MORE", 80)
    result = appendix_d.reproduce(out=tmp_path, dims=(3,), draws=(24,), num_data=20, **QUIET)
    table = result.table()
    above = table.xs("appendix D, independent draws", level="estimate")
    below = table.xs("importance sampling, prior", level="estimate")
    assert (above.bias > 2 * above["±"]).iloc[0]
    assert (below.bias < -2 * below["±"]).all()
    of_chains = table.xs("importance sampling, HMC", level="estimate")
    assert (of_chains.bias.abs() < 4 * of_chains["±"]).all()
    assert result.plot() is not None


@pytest.mark.slow
def test_appendix_e_climbs_to_the_highest_likelihood(monkeypatch, tmp_path):
    monkeypatch.setattr(appendix_e, "MARKS", (1000, 20_000))
    result = appendix_e.reproduce(budget=20_000, out=tmp_path, **QUIET)
    table = result.table()
    assert (table.below > 0).all()
    assert table.below.iloc[-1] < 0.5 * table.below.iloc[0]
    assert table.accept.iloc[-1] == pytest.approx(0.9, abs=0.07)
    assert result.plot() is not None


def test_the_highest_likelihood_is_that_of_the_closed_form():
    """At W of Tipping & Bishop's equation 7 the model itself gives this log p(x)."""
    x = appendix_e.data(400)
    values, vectors = torch.linalg.eigh(torch.cov(x.double().T, correction=0))
    noise = values[:-2].mean()
    weight = vectors[:, -2:] * (values[-2:] - noise).sqrt()
    model = linear_gaussian.build(
        8, latent_dim=2, weight=weight, noise_scale=float(noise.sqrt())
    ).double()
    with torch.no_grad():
        model.bias.copy_(x.double().mean(0))
    assert float(model.log_evidence(x.double()).detach().mean()) == pytest.approx(
        appendix_e.highest(x), abs=1e-6
    )


def test_appendix_f_reaches_the_evidence_of_the_conjugate_model(monkeypatch, tmp_path):
    monkeypatch.setattr(appendix_f, "MARKS", {"conjugate": (1000, 60_000), "mnist": (1000,)})
    result = appendix_f.reproduce(budget=60_000, out=tmp_path, only="conjugate", **QUIET)
    row = result.table().iloc[0]
    assert row["log p(X) / N"] - 0.01 < row["bound"] < row["log p(X) / N"] + 0.003
    assert result.plot() is not None


def test_the_evidence_of_the_conjugate_model_is_that_of_scipy():
    from scipy.stats import multivariate_normal

    x = appendix_f.conjugate_data(7)
    model = appendix_f.ConjugateMean(7)
    covariance = (model.spread**2 + model.noise**2) * np.eye(7) + 1.0
    exact = multivariate_normal(np.zeros(7), covariance).logpdf(x.numpy())
    assert model.log_evidence_of_all(x) == pytest.approx(exact, abs=1e-5)


def test_appendix_f_sets_map_beside_full_vb(small_data, monkeypatch, tmp_path):
    monkeypatch.setattr(appendix_f, "MARKS", {"conjugate": (), "mnist": (1000,)})
    monkeypatch.setattr(appendix_f, "ACCUMULATE", 2)
    monkeypatch.setattr(appendix_f, "HIDDEN_DIM", 4)
    result = appendix_f.reproduce(budget=1000, out=tmp_path, only="mnist-1000", **QUIET)
    rows = result.table().loc["mnist-1000"]
    assert rows.loc["MAP"]["KL(theta)"].item() == 0.0
    assert rows.loc["full VB"]["KL(theta)"].item() > 0
    assert "under full VB" in result.words() and result.plot() is not None


def test_the_divergence_of_the_weights_is_torchs():
    program = bayesian_vae.build(5, num_data=10, latent_dim=2, hidden_dim=3)
    normal = torch.distributions.Normal
    exact = sum(
        torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).sum().detach()
        for mean, std in program._moments().values()
    )
    assert appendix_f.kl_of_weights(program) == pytest.approx(float(exact), rel=1e-5)


# --- the slides ---------------------------------------------------------------------------------


def test_reparameterized_draws_have_the_law_of_scipy():
    from scipy import stats

    laws = {
        "normal": stats.norm(1.0, 0.5),
        "exponential": stats.expon(scale=1 / 1.5),
        "gamma": stats.gamma(3, scale=0.5),
    }
    for name, law in laws.items():
        shape = (4000, 3) if name == "gamma" else (4000,)
        eps = torch.randn(shape) if name == "normal" else torch.rand(shape)
        z = slides.reparameterized(name, eps.double()).numpy()
        assert stats.kstest(z, law.cdf).pvalue > 1e-3
        assert slides.MOMENTS[name] == pytest.approx((law.mean(), law.var()))


def test_the_slides_are_drawn_from_their_numbers(tmp_path):
    result = slides.reproduce(budget=2000, out=tmp_path, **QUIET)
    trace = result.numbers["linear"]["trace"]
    for point in trace:
        assert point["bound"] + point["kl"] == pytest.approx(point["log_p"], abs=1e-4)
    table = result.table()
    assert table.loc["LVM 2: p(x) of one observation"].measured == pytest.approx(0.5)
    assert table.loc["gamma: variance"].measured == pytest.approx(0.75, rel=0.05)
    assert sorted(read(tmp_path).plot()) == [
        "slides-autoencoder", "slides-bound", "slides-posteriors", "slides-reparameterizations"
    ]  # fmt: skip


# --- the verb -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "which figure? pyro-vae reproduce NAME, one of figure2"),
        (["figure7"], 'figure: unknown "figure7", did you mean'),
        (["figure2", "--full", "--budget", "1e6"], "--full and --budget both say"),
        (["all", "--only", "mnist-aevb-3"], "--only is for one figure"),
        (["appendix-d", "--budget", "1e6"], "--budget is no option of appendix-d"),
        (["appendix-d", "--device", "gpu9"], "--device gpu9"),
        (["figure2", "--only", "mnist-aevb-4"], "--only is 'mnist-aevb-4', expected some of"),
        (["figure2", "--budget", "10"], "--budget is 10"),
        (["figure2", "--seeds", "0"], "--seeds is 0"),
    ],
)
def test_mistakes_are_one_line(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("pyro-vae reproduce: ") and said in error
    assert list(tmp_path.rglob("*")) == []


def test_missing_files_are_one_line_that_says_how_to_get_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "figure2", "--data-dir", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "pyro-vae data get mnist" in error or "pyro-vae data get frey_face" in error
    assert list(tmp_path.rglob("*")) == []


def test_the_verb_prints_the_table_and_writes_where_it_is_told(small_data, tmp_path, capsys):
    words = ["reproduce", "figure2", "--only", "mnist-aevb-3", "--budget", "1e3"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "--budget 1e6 goes on from here" in printed and str(tmp_path / "out") in printed
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {"numbers.json", "table.csv", "figure2.png", "runs"}
