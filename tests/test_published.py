"""The paper's published numbers at 10^6 training samples: `make slow`, some 20 minutes."""

import pytest

from pyro_vae.paper import figure_2

AT_A_MILLION = {  # curve: the most nats below the published test bound
    "mnist-aevb-20": 3.0,
    "mnist-aevb-3": 3.0,
    "mnist-wake-sleep-20": 5.0,
    "frey-aevb-10": 60.0,
}


@pytest.fixture(scope="module")
def result(data_dir, tmp_path_factory):
    return figure_2.reproduce(
        budget=1e6,
        only=[*AT_A_MILLION, "frey-wake-sleep-10"],
        out=tmp_path_factory.mktemp("figure2"),
        data_dir=data_dir,
    )


def at_a_million(result, data, latent_dim, method):
    rows = result.table().xs("test", level="split").loc[(data, latent_dim, method)]
    return rows[rows.samples == 1_000_000].iloc[0]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", AT_A_MILLION)
def test_the_bound_reaches_the_published_one(result, name):
    (curve,) = [curve for curve in figure_2.CURVES if curve.name == name]
    row = at_a_million(result, curve.data, curve.latent_dim, curve.method)
    assert row.difference > -AT_A_MILLION[name]


@pytest.mark.slow
@pytest.mark.data
def test_wake_sleep_stays_below_aevb_on_mnist(result):
    """Fact 41: gaps of 2 to 7 nats in Figure 2 at this budget."""
    aevb, sleep = (at_a_million(result, "mnist", 20, m).ours for m in ("AEVB", "wake-sleep"))
    assert aevb - sleep > 2


@pytest.mark.slow
@pytest.mark.data
def test_wake_sleep_stays_on_the_plateau_that_ignores_z_on_frey_face(result):
    """Fact 40."""
    assert 560 <= at_a_million(result, "frey_face", 10, "wake-sleep").ours <= 590
