"""``compare`` and its command: equal terms, paired differences, a table and a picture."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
import xarray as xr

import pyro_vae as pv
from pyro_vae.cli import main
from pyro_vae.evidence.paired import paired_mean
from pyro_vae.models import bernoulli_vae, gaussian_vae
from pyro_vae.objectives import AEVB, WakeSleep


@pytest.fixture(scope="module")
def digits():
    """With a third of the held-out ones."""
    loaded = pv.datasets.load("digits")
    return dataclasses.replace(loaded, validation=None, test=loaded.test[:100])


def build(data, **options):
    return bernoulli_vae.build(
        data.dim, **{"latent_dim": 2, "hidden_dim": 16, "init_std": None, **options}
    )


@pytest.fixture(scope="module")
def comparison(digits):
    return pv.compare(
        digits, builds={"bernoulli": lambda: build(digits)}, objectives=[AEVB(), WakeSleep()],
        seeds=2, samples=2_000, num_particles=50, optimizer=torch.optim.Adam, progress=False,
    )  # fmt: skip


def test_every_objective_of_a_seed_starts_from_the_same_net(digits):
    from pyro_vae.comparison.comparing import built

    one, two = (built(lambda: build(digits), 5) for _ in range(2))
    other = built(lambda: build(digits), 6)
    assert torch.equal(one.likelihood.network[0].weight, two.likelihood.network[0].weight)
    assert not torch.equal(one.likelihood.network[0].weight, other.likelihood.network[0].weight)


def test_differences_are_paired_by_datum_and_seed(comparison):
    """Their standard error is that of the differences, over data and over seeds."""
    table, data = comparison.table(), comparison.dataset
    first, second = (data.log_evidence.sel(model="bernoulli", objective=o).values  # (seed, datum)
                     for o in ("AEVB()", "WakeSleep()"))  # fmt: skip
    row = table.loc[("bernoulli", "WakeSleep()")]
    difference = second - first
    assert row["against first"] == pytest.approx(difference.mean())
    assert row["against first ±"] == pytest.approx(paired_mean(difference).standard_error)
    over_data = difference.mean(0).std(ddof=1) / np.sqrt(difference.shape[1])
    assert row["sd over seeds"] == pytest.approx(second.mean(1).std(ddof=1))
    assert over_data < np.hypot(first.std(), second.std()) / np.sqrt(first.size / 2)
    assert table["rhat > 1.1"].max() < 0.02 and not table["rhat > 1.1"].isna().any()


def test_too_few_draws_for_the_latents_are_refused_before_training(digits):
    builds = {"b": lambda: build(digits, latent_dim=40)}
    with pytest.raises(ValueError, match="num_draws is 160, expected at least 200"):
        pv.compare(digits, builds=builds, objectives=[AEVB()], samples=10**12)


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


def test_a_budget_in_which_nothing_moves_is_warned_about(digits):
    """Adagrad's first steps only accumulate: such runs would all be compared untrained."""

    def steps(number, accumulate):
        optimizer = functools.partial(pv.optimizers.Adagrad, accumulate_steps=accumulate)
        pv.fit(build(digits), digits.train, steps=number, optimizer=optimizer, progress=False)

    steps(4, 3)
    steps(3, 0)
    for number in (2, 3):
        with pytest.warns(pv.PyroVaeWarning, match=f"budget is {number} steps.* its first 3 "):
            steps(number, 3)


def test_the_command_warns_of_it_once(tmp_path, capsys):
    """Not once for each objective."""
    np.save(tmp_path / "bits.npy", np.random.default_rng(0).integers(0, 2, (60, 4)))
    arguments = [
        "--data",
        str(tmp_path / "bits.npy"),
        "--binarize",
        "threshold",
        "--samples",
        "200",
    ]
    flags = ["--objectives", "AEVB", "WakeSleep", "--seeds", "1", "--hidden_dim", "4",
             "--proposal", "guide"]  # fmt: skip
    assert main(["compare", *arguments, *flags, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err.splitlines()
    warned = [line for line in said if "warning" in line]
    assert len(said) == 2 and "60 rows of 4 columns" in said[0]  # what was read of the file
    assert len(warned) == 1 and "no parameter will move: the budget is" in warned[0]
