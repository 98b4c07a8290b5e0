"""The estimator's densities against a closed form: with linear networks it is factor analysis."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

import pyro_vae as pv


@pytest.fixture(scope="module")
def fitted():
    random = np.random.default_rng(0)
    X = random.normal(size=(300, 2)) @ random.normal(size=(2, 4)) + random.normal(size=(300, 4))
    X = X * [1.0, 100.0, 0.01, 5.0] + [0.0, 1e4, -3.0, 7.0]
    line = pv.networks.MLP(hidden=())
    vae = pv.sklearn.VAE(
        2, network=line, posterior=pv.posteriors.FullNormal(), samples=40_000, num_particles=2_000,
        random_state=0,
    )  # fmt: skip
    return vae.fit(X), X


def law_of(vae):
    """N(m + s b, s (W W' + S) s): what x is, in the units that were given."""
    z = np.vstack([np.zeros(2), np.eye(2)])
    means = vae.inverse_transform(z)
    weight = (means[1:] - means[0]).T  # s W
    noise = vae.program_.likelihood(pv.encode(vae.program_, np.zeros((1, 4)))).variance
    noise = noise.detach().numpy()[0] * vae.scale_**2
    return multivariate_normal(means[0], weight @ weight.T + np.diag(noise))


def test_scores_are_log_densities_in_the_units_of_the_data(fitted):
    vae, X = fitted
    rows = X[:60]
    exact = law_of(vae).logpdf(rows)
    error = vae.score_samples(rows) - exact
    assert np.abs(error).max() < 0.1 and abs(error.mean()) < 0.01
    assert np.abs(error + np.log(vae.scale_).sum()).min() > 0.5  # without the Jacobian


def test_draws_have_the_moments_of_the_closed_form(fitted):
    vae, _ = fitted
    law, draws = law_of(vae), vae.sample(20_000, random_state=1)
    sd = np.sqrt(np.diag(law.cov))
    assert np.abs((draws.mean(0) - law.mean) / sd).max() < 5 / np.sqrt(20_000)
    assert np.abs(np.cov(draws.T) / np.outer(sd, sd) - law.cov / np.outer(sd, sd)).max() < 0.06
