"""``compare`` and its command: equal terms, paired differences, a table and a picture."""

import numpy as np
import pytest
import torch
import xarray as xr

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae, gaussian_vae
from pyro_vae.objectives import AEVB, WakeSleep


@pytest.fixture(scope="module")
def digits():
    return pv.datasets.load("digits")


def build(data, **options):
    return bernoulli_vae.build(
        data.dim, **{"latent_dim": 2, "hidden_dim": 16, "init_std": None, **options}
    )


@pytest.fixture(scope="module")
def comparison(digits):
    return pv.compare(
        digits, builds={"bernoulli": lambda: build(digits)}, objectives=[AEVB(), WakeSleep()],
        seeds=2, samples=20_000, num_particles=50, progress=False,
    )  # fmt: skip


def test_every_objective_of_a_seed_starts_from_the_same_net(digits):
    from pyro_vae.comparison import _built

    one, two = (_built(lambda: build(digits), 5) for _ in range(2))
    other = _built(lambda: build(digits), 6)
    assert torch.equal(one.likelihood.network[0].weight, two.likelihood.network[0].weight)
    assert not torch.equal(one.likelihood.network[0].weight, other.likelihood.network[0].weight)


def test_differences_are_paired_per_datum(comparison):
    """The standard error of the difference is that of the differences, below the unpaired one."""
    table, data = comparison.table(), comparison.dataset
    first, second = (data.log_evidence.sel(model="bernoulli", objective=o).mean("seed").values
                     for o in ("AEVB()", "WakeSleep()"))  # fmt: skip
    row = table.loc[("bernoulli", "WakeSleep()")]
    assert row["against first"] == pytest.approx((second - first).mean())
    paired = (second - first).std(ddof=1) / np.sqrt(len(first))
    assert row["against first ±"] == pytest.approx(paired)
    assert paired < np.hypot(first.std(), second.std()) / np.sqrt(len(first))


def test_the_scores_are_those_of_the_trained_programs(comparison, digits):
    run = comparison.runs["bernoulli", "AEVB()", 1]
    expected = pv.elbo(run.program, digits.test).mean()
    got = comparison.dataset.bound.sel(model="bernoulli", objective="AEVB()", seed=1).mean()
    assert float(got) == pytest.approx(float(expected), rel=1e-6)


def test_it_is_saved_as_netcdf_and_drawn(comparison, tmp_path):
    comparison.save(tmp_path / "c.nc")
    with xr.open_dataset(tmp_path / "c.nc", engine="h5netcdf") as loaded:
        xr.testing.assert_allclose(loaded, comparison.dataset)
        assert loaded.attrs["binarize"] == "threshold"
    comparison.plot(tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_different_likelihoods_are_refused(digits):
    builds = {
        "bernoulli": lambda: build(digits),
        "soft": lambda: build(digits, soft_targets=True),
        "gaussian": lambda: gaussian_vae.build(digits.dim, latent_dim=2, hidden_dim=16),
    }
    for pair in (("bernoulli", "soft"), ("bernoulli", "gaussian")):
        with pytest.raises(ValueError, match="different likelihoods"):
            pv.compare(digits, builds={n: builds[n] for n in pair}, objectives=[AEVB()])


def test_mistakes_are_refused(digits):
    with pytest.raises(ValueError, match="expected different ones"):
        pv.compare(digits, builds={"b": lambda: build(digits)}, objectives=[AEVB(), AEVB()])
    with pytest.raises(ValueError, match="at least one"):
        pv.compare(digits, builds={}, objectives=[AEVB()])
    with pytest.raises(TypeError, match="a build returned NoneType"):
        pv.compare(digits, builds={"b": lambda: None}, objectives=[AEVB()])
