"""The scikit-learn estimator: its conventions, its units, and the parts it is made of."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import check_estimator

import pyro_vae as pv
from pyro_vae.sklearn import VAE

RANDOM = np.random.default_rng(0)
FACTORS = RANDOM.normal(size=(300, 1))
X = FACTORS @ RANDOM.normal(size=(1, 4)) + 0.3 * RANDOM.normal(size=(300, 4))
QUICK = {"samples": 400, "engine": "pyro", "num_particles": 100, "random_state": 0}

pytestmark = pytest.mark.filterwarnings("ignore::pyro_vae.errors.PyroVaeWarning")

MONTE_CARLO = (
    "score_samples averages draws, whose noise goes by the place of a row among the rows: another "
    "order or subset gives another estimate of the same number"
)
EXPECTED = {
    "check_methods_sample_order_invariance": MONTE_CARLO,
    "check_methods_subset_invariance": MONTE_CARLO,
}


@pytest.fixture(scope="module")
def fitted():
    return VAE(1, samples=40_000, random_state=0).fit(X)


def checked(estimator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(
            estimator, expected_failed_checks=EXPECTED, on_fail=None, on_skip=None
        )
    return {each["check_name"]: (each["status"], each["exception"]) for each in found}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"missing": True}], ids=["plain", "missing"])
def test_scikit_learns_own_checks_pass(options):
    found = checked(VAE(**{**QUICK, "samples": 100, "num_particles": 5}, **options))

    assert {
        n: said for n, said in found.items() if said[0] not in ("passed", "skipped", "xfail")
    } == {}
    assert {n for n, (status, _) in found.items() if status == "xfail"} == {*EXPECTED}


@pytest.mark.slow
def test_the_module_is_lazy_and_means_scikit_learn():
    code = (
        "import sys, pyro_vae as pv; assert 'sklearn' not in sys.modules;"
        "assert pv.sklearn.BaseEstimator.__module__ == 'sklearn.base'; print(pv.sklearn.VAE())"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "VAE()\n"


def test_it_learns_what_columns_of_any_scale_have_in_common(fitted):
    """Nearly as probable as under the law that the data are from; far from independence."""
    covariance = np.cov(X.T)
    apart = -0.5 * np.log(2 * np.pi * np.e * np.diag(covariance)).sum()
    together = -0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1]
    assert together - apart > 2
    assert fitted.score(X) == pytest.approx(together, abs=0.5)

    factors = np.array([1e-6, 1.0, 1e5, 1e9])
    scaled = VAE(1, samples=40_000, random_state=0).fit(X * factors + 1e3 * factors)
    there = X * factors + 1e3 * factors
    assert scaled.score(there) == pytest.approx(fitted.score(X) - np.log(factors).sum(), abs=0.05)
    back = scaled.inverse_transform(scaled.transform(there))
    left = ((back - there) ** 2).mean(0) / there.var(0)
    assert (left < 0.5).all() and left.mean() < 0.25
    drawn = scaled.sample(2000, random_state=1)
    np.testing.assert_allclose((drawn.mean(0) - there.mean(0)) / there.std(0), 0, atol=0.2)
    np.testing.assert_allclose(drawn.std(0) / there.std(0), 1, atol=0.2)


def test_scores_are_log_p_of_the_program_in_the_units_of_x(fitted):
    z = (X - fitted.mean_) / fitted.scale_
    evidence = pv.log_evidence(
        fitted.program_, z, num_particles=200, seed=fitted.seed_, progress=False
    )
    expected = evidence.value.numpy() - np.log(X.std(0)).sum()
    np.testing.assert_allclose(fitted.score_samples(X), expected, rtol=1e-6)
    assert fitted.score(X) == pytest.approx(expected.mean())

    by_grid = clone(fitted).set_params(score_method="quadrature")
    vars(by_grid).update({n: v for n, v in vars(fitted).items() if n.endswith(("_", "_out"))})
    assert by_grid.score(X[:8]) == pytest.approx(fitted.score(X[:8]), abs=0.05)


def test_zeros_and_ones_have_a_bernoulli_and_counts_what_is_named():
    bits = (X > 0).astype(int)
    vae = VAE(**QUICK).fit(bits)
    assert type(vae.program_.likelihood) is pv.likelihoods.Bernoulli and vae.mean_ is None
    assert ((vae.inverse_transform(vae.transform(bits)) - 0.5) ** 2 < 0.25).all()
    assert set(np.unique(vae.sample(20, random_state=0))) <= {0.0, 1.0}
    with pytest.raises(ValueError, match="x"):
        vae.score_samples(X)

    counts = sp.csr_array(RANDOM.poisson(2.0, size=(60, 5)))
    models = [VAE(likelihood=pv.likelihoods.Poisson(), **QUICK) for _ in range(2)]
    of_sparse, of_dense = models[0].fit(counts), models[1].fit(counts.toarray())
    np.testing.assert_array_equal(of_sparse.transform(counts), of_dense.transform(counts.toarray()))
    np.testing.assert_array_equal(
        of_sparse.score_samples(counts), of_dense.score_samples(counts.toarray())
    )
    drawn = of_sparse.sample(50, random_state=0)
    assert (drawn == drawn.round()).all() and (drawn >= 0).all()


def test_missing_numbers_are_left_out():
    gaps = X.copy()
    gaps[RANDOM.random(X.shape) < 0.2] = np.nan
    with pytest.raises(ValueError, match=r"NaN.*missing=True"):
        VAE(**QUICK).fit(gaps)
    vae = VAE(1, missing=True, samples=5_000, random_state=0).fit(gaps)
    np.testing.assert_allclose(vae.mean_, np.nanmean(gaps, 0))
    assert np.isfinite(vae.score_samples(gaps)).all() and np.isfinite(vae.transform(gaps)).all()
    empty = np.full((1, 4), np.nan)
    assert vae.score_samples(empty) == pytest.approx(0.0, abs=0.3)


def test_a_table_of_mixed_columns_comes_back_as_a_table():
    codes = RANDOM.integers(0, 3, size=(80, 1))
    table = np.hstack([X[:80, :2], codes])
    groups = {
        "sizes": (pv.likelihoods.Gaussian(sigmoid_mean=False), [0, 1]),
        "kind": (pv.likelihoods.Categorical(), [2]),
    }
    vae = VAE(likelihood=pv.likelihoods.Columns(groups), **QUICK).fit(table)
    back = vae.inverse_transform(vae.transform(table))
    assert back.shape == table.shape and set(back[:, 2]) <= {0.0, 1.0, 2.0}
    assert set(vae.sample(40, random_state=0)[:, 2]) <= {0.0, 1.0, 2.0}


def test_a_random_state_decides_everything_and_none_does_not():
    def made(state):
        return VAE(**{**QUICK, "random_state": state}).fit(X).transform(X)

    np.testing.assert_array_equal(made(3), made(3))
    np.testing.assert_array_equal(made(np.random.RandomState(3)), made(3))
    assert not np.array_equal(made(3), made(4))
    assert not np.array_equal(made(None), made(None))


def test_it_is_cloned_pickled_and_searched_over(fitted):
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(X), fitted.transform(X))
    np.testing.assert_array_equal(again.score_samples(X), fitted.score_samples(X))
    fresh = clone(VAE(likelihood=pv.likelihoods.Gaussian(sigmoid_mean=False), **QUICK))
    assert (
        not hasattr(fresh, "program_") and repr(fresh.likelihood) == "Gaussian(sigmoid_mean=False)"
    )

    grid = {"latent_dim": [1], "likelihood": ["auto", pv.likelihoods.Laplace()]}
    search = GridSearchCV(VAE(**QUICK), grid, cv=2).fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_score_ == search.cv_results_["mean_test_score"].max()

    classes = (FACTORS[:, 0] > 0).astype(int)
    pipe = make_pipeline(
        MinMaxScaler(), VAE(1, samples=10_000, random_state=0), LogisticRegression()
    )
    assert cross_val_score(pipe, X, classes, cv=2).min() > 0.85


def test_names_of_columns_are_kept_and_asked_for():
    frame = pd.DataFrame(X, columns=list("abcd"), index=[f"r{i}" for i in range(300)])
    vae = VAE(**QUICK).set_output(transform="pandas").fit(frame)
    latents = vae.transform(frame)
    assert latents.columns.tolist() == ["vae0", "vae1"] == list(vae.get_feature_names_out())
    assert latents.index.tolist() == frame.index.tolist()
    assert vae.feature_names_in_.tolist() == list("abcd") and vae.n_features_in_ == 4
    with pytest.raises(ValueError, match="feature names should match"):
        vae.transform(frame.rename(columns={"a": "e"}))
    np.testing.assert_array_equal(vae.fit_transform(frame), latents)
    assert vae.transform(frame.astype("float32")).dtypes.unique() == [np.float32]


def test_early_stopping_keeps_the_best_weights_of_rows_held_out():
    vae = VAE(early_stopping=1, samples=20_000, random_state=0, lr=0.05).fit(X)
    assert vae.manifest_["stopped"].startswith("early") and vae.manifest_["keep"] == "best"
    assert vae.manifest_["num_data"] == 270 and vae.n_iter_ == vae.manifest_["steps"] < 222
    assert VAE(**QUICK, epochs=None).fit(X).manifest_["num_data"] == 300


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"likelihood": "poisson"}, "likelihood is 'poisson'.*Poisson()"),
        ({"standardize": "yes"}, "standardize is 'yes'"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"epochs": 1.0}, "exactly one of samples, epochs"),
        ({"early_stopping": 1, "validation_fraction": 2.0}, "validation_fraction"),
    ],
)
def test_impossible_options_are_refused_at_fit(options, said):
    with pytest.raises(ValueError, match=said):
        VAE(**{**QUICK, **options}).fit(X)


def test_wrong_uses_are_refused(fitted):
    with pytest.raises(NotFittedError):
        VAE().transform(X)
    with pytest.raises(ValueError, match="X has 3 columns, expected the 1 of transform"):
        fitted.inverse_transform(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="3 features, but VAE is expecting 4"):
        fitted.transform(X[:, :3])


def test_constant_columns_and_torchs_generator_are_left_alone():
    import torch

    state = torch.random.get_rng_state()
    vae = VAE(**QUICK).fit(np.hstack([X, np.full((300, 1), 7e8)]))
    assert vae.scale_[-1] == 1 and np.isfinite(vae.history_["bound"]).all()
    assert torch.equal(torch.random.get_rng_state(), state)
