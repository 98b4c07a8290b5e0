"""Tables as people have them: odd columns, odd scales, and few rows."""

import numpy as np
import pandas as pd
import polars as pl
import pytest

import pyro_vae as pv
from pyro_vae.program.frames import column_names
from pyro_vae.program.inputs import as_tensor
from pyro_vae.sklearn import VAE, _moments

X = np.random.default_rng(0).normal(size=(40, 3))
QUICK = {"samples": 200, "engine": "pyro", "num_particles": 10, "random_state": 0}


@pytest.mark.parametrize("factor", [1e-320, 1e-200, 1e200, 1e300])
def test_columns_of_any_size_are_standardized(factor):
    """Their squares are no numbers of double precision."""
    mean, scale = _moments(X * factor)
    rtol = 1e-2 if factor == 1e-320 else 1e-12  # (which has three digits)
    np.testing.assert_allclose(mean / factor, X.mean(0), rtol=rtol)
    np.testing.assert_allclose(scale / factor, X.std(0), rtol=rtol)
    far, near = _moments(X + 1e8), _moments(np.full((9, 2), 0.1))
    np.testing.assert_allclose(far[1], X.std(0), rtol=1e-7)
    np.testing.assert_array_equal(near[1], 1.0)


def test_scores_of_huge_rows_differ_from_others_by_the_jacobian():
    quick = {**QUICK, "score_method": "quadrature", "latent_dim": 1}
    plain, huge = (VAE(**quick).fit(X * f) for f in (1.0, 1e200))
    expected = plain.score_samples(X) - 3 * np.log(1e200)
    np.testing.assert_allclose(huge.score_samples(X * 1e200), expected, rtol=1e-6)
    assert np.isfinite(huge.sample(9, random_state=0)).all()


def test_rows_are_left_to_train_on():
    with pytest.raises(ValueError, match=r"validation_fraction is 0\.99 of 3 rows"):
        VAE(**QUICK, early_stopping=1, validation_fraction=0.99).fit(X[:3])


@pytest.mark.parametrize("device", ["x", 99, object()])
def test_a_device_that_is_not_there_is_named(device):
    vae = pv.VAE.build(
        X, latent_dim=1, hidden_dim=2, likelihood=pv.likelihoods.Gaussian(sigmoid_mean=False)
    )
    with pytest.raises(ValueError, match=r"device is .*expected"):
        pv.fit(vae, X, steps=1, device=device, progress=False)
    with pytest.raises(ValueError, match="device is"):
        VAE(**QUICK, device=device).fit(X)


def test_what_is_no_column_of_numbers_is_refused_with_advice_that_works():
    gaps = pd.DataFrame({"a": [1, None, 3], "b": [1, pd.NA, 2]}, dtype=object)
    for name in gaps:
        with pytest.raises(TypeError, match=r"pandas\.to_numeric"):
            as_tensor(gaps[[name]])
    assert np.isnan(as_tensor(gaps.apply(pd.to_numeric)).numpy()).sum() == 2
    with pytest.raises(TypeError, match="real and imaginary"):
        as_tensor(pd.DataFrame({"a": [1j, 2]}))
    arrays = pl.DataFrame({"a": pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int64, 2))})
    with pytest.raises(TypeError, match=r"array of shape \(2,\) in each row"):
        as_tensor(arrays)
    assert as_tensor(arrays["a"]).shape == (2, 2)
    with pytest.raises(TypeError) as said:
        as_tensor(pl.DataFrame({"a": [[1, 2], [3]]}))
    assert "\n" not in str(said.value)


def test_columns_of_several_levels_have_names_as_rows_do():
    several = pd.MultiIndex.from_product([["a", "b"], [1, 2]])
    assert column_names(pd.DataFrame(np.zeros((2, 4)), columns=several)) == (
        "a, 1", "a, 2", "b, 1", "b, 2",
    )  # fmt: skip
