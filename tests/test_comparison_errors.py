"""What a comparison says of its own errors: pairing, seeds, degrees of freedom, and the picture."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import t

import pyro_vae as pv
from pyro_vae.cli.verbs.compare import _rendered
from pyro_vae.comparison.table import Comparison
from pyro_vae.evidence.paired import paired_mean
from pyro_vae.models import bernoulli_vae
from pyro_vae.objectives import AEVB
from pyro_vae.plotting.comparison import rows_of

from .quickly import some_quickly

# sd of a seed's luck, of its noise at a datum: between two objectives that are one
NULLS = {"luck": (0.5, 0.1), "both": (0.1, 1.0), "noise alone": (0.0, 1.0)}


def compared(scores, models=("bernoulli",), objectives=("AEVB()", "WakeSleep()")):
    """A comparison of made-up log p(x), (model, objective, seed, datum)."""
    dims, shape = ("model", "objective", "seed"), scores.shape[:3]
    tables = dict.fromkeys(("bound", "log_evidence"), ((*dims, "datum"), scores))
    tables |= dict.fromkeys(("khat", "rhat"), ((*dims, "datum"), np.full_like(scores, np.nan)))
    tables |= dict.fromkeys(("samples", "seconds", "leapfrogs"), (dims, np.ones(shape)))
    curve = (*shape, 9)
    tables["curve_samples"] = ((*dims, "record"), np.broadcast_to(np.arange(1.0, 10), curve))
    tables["curve_bound"] = ((*dims, "record"), np.broadcast_to(np.linspace(-30, -20, 9), curve))
    coords = {"model": list(models), "objective": list(objectives)}
    about = {"data": "made up", "binarize": "none"}
    return Comparison({}, xr.Dataset(tables, coords, about))


def null(rng, luck, noise, seeds, data=300):
    """Scores of one objective under two names, (1, 2, seed, datum)."""
    scores = 3 * rng.normal(size=data) + luck * rng.normal(size=(2, seeds, 1))
    return (scores + noise * rng.normal(size=(2, seeds, data)))[None]


def told_apart(rng, luck, noise, seeds, count):
    """Shares of null comparisons whose 95 % interval, and twice whose ±, leaves 0 out."""
    found = []
    for _ in range(count):
        scores = null(rng, luck, noise, seeds)[0]
        mean = paired_mean(scores[1] - scores[0])
        found.append(abs(mean.value) > np.array([mean.half_width, 1.96 * mean.standard_error]))
    return np.mean(found, 0)


# --- the statistics -------------------------------------------------------------------------------


def test_the_variance_is_that_of_crossed_effects():
    """Mean squares by hand; what the seeds' and the data's means both hold counts once."""
    d = np.random.default_rng(0).normal(size=(3, 50)) + np.arange(3)[:, None]
    mean = d.mean()
    seeds = 50 * ((d.mean(1) - mean) ** 2).sum() / 2
    data = 3 * ((d.mean(0) - mean) ** 2).sum() / 49
    rest = ((d - d.mean(1, keepdims=True) - d.mean(0) + mean) ** 2).sum() / (2 * 49)
    found = paired_mean(d)
    of_data = max(data - rest, 0)
    assert found.value == pytest.approx(mean)
    assert found.standard_error == pytest.approx(math.sqrt((seeds + of_data) / 150))
    quantiles = t.ppf(0.975, [2, 49]) ** 2
    assert found.half_width == pytest.approx(math.sqrt(quantiles @ [seeds, of_data] / 150))


def test_the_standard_error_is_that_of_other_seeds_and_other_data():
    """Its square is without bias, whichever effect is the larger one."""
    rng = np.random.default_rng(1)
    for a, b, e in ((0.1, 1.0, 1.0), (1.0, 0.0, 1.0), (0.02, 2.0, 0.5)):
        squares, means = [], []
        for _ in range(1000):
            seeds, data = a * rng.normal(size=(3, 1)), b * rng.normal(size=60)
            found = paired_mean(seeds + data + e * rng.normal(size=(3, 60)))
            squares.append(found.standard_error**2)
            means.append(found.value)
        right = a**2 / 3 + b**2 / 60 + e**2 / 180
        error = np.std(squares) / math.sqrt(1000)
        # Variances of data are kept from falling below 0, hence a little above.
        assert -4 * error < np.mean(squares) - right < 4 * error + 0.05 * right
        assert np.mean(means) == pytest.approx(0.0, abs=4 * math.sqrt(right / 1000))


@pytest.mark.parametrize("kind", NULLS)
@pytest.mark.parametrize("seeds", some_quickly([2, 3, 5], 3))
def test_one_objective_under_two_names_is_told_apart_in_five_percent(seeds, kind):
    """The mutants, twice the standard error and the data alone, do so in up to 95 %."""
    wrong, mutant = told_apart(np.random.default_rng(seeds), *NULLS[kind], seeds, 2000)
    assert abs(wrong - 0.05) < 0.015
    assert mutant > wrong + 0.02
    if kind != "noise alone":
        assert mutant > {2: 0.2, 3: 0.1, 5: 0.07}[seeds]


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_holds_what_it_says_where_data_count_too(seeds):
    """Objectives that are equal on average and differ on each datum: at most 5 % are told apart.

    Degrees of freedom that match the sum (Satterthwaite's) tell 12 % apart at two seeds.
    """
    rng, wrong = np.random.default_rng(0), []
    for ratio in (0.1, 0.5, 1.0, 3.0):
        for _ in range(500):
            luck, data = ratio * math.sqrt(seeds / 300), rng.normal(size=300)
            d = luck * rng.normal(size=(seeds, 1)) + data + 0.3 * rng.normal(size=(seeds, 300))
            found = paired_mean(d)
            wrong.append(abs(found.value) > found.half_width)
    assert 0.005 < np.mean(wrong) < 0.06


@pytest.mark.slow  # a table is some 20 ms
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_table_makes_that_statement(seeds):
    rng, wrong = np.random.default_rng(10 + seeds), 0
    for _ in range(400):
        row = compared(null(rng, 0.3, 0.5, seeds)).table().iloc[1]
        wrong += abs(row["against first"]) > row["against first 95 %"]
    assert 0.03 <= wrong / 400 <= 0.07


def test_a_difference_is_still_found():
    scores = null(np.random.default_rng(0), 0.1, 1.0, 3)
    scores[0, 1] += 1.0
    row = compared(scores).table().iloc[1]
    assert row["against first"] - row["against first 95 %"] > 0


def test_one_seed_has_no_interval_and_says_so():
    comparison = compared(null(np.random.default_rng(0), 0.3, 0.5, 1))
    table = comparison.table()
    difference = comparison.dataset.log_evidence.values[0, 1, 0]
    difference = difference - comparison.dataset.log_evidence.values[0, 0, 0]
    of_data = difference.std(ddof=1) / math.sqrt(300)
    assert table["against first ±"].iloc[1] == pytest.approx(of_data)
    assert table["against first 95 %"].isna().all()
    assert "between runs, not between algorithms" in repr(comparison)
    assert "one seed: ± of a difference says how two runs differ" in _rendered(table, 1)


# --- several models -------------------------------------------------------------------------------


def several(seeds=2):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 2, seeds, 40)) + 5 * rng.normal(size=40)
    return compared(scores, models=("J=2", "J=3", "J=5")), scores


def test_models_are_compared_to_the_first_row_too():
    comparison, scores = several()
    table = comparison.table()
    for i, model in enumerate(("J=2", "J=3", "J=5")):
        for j, objective in enumerate(("AEVB()", "WakeSleep()")):
            row, expected = table.loc[(model, objective)], paired_mean(scores[i, j] - scores[0, 0])
            for column, value in zip(("", " ±", " 95 %"), expected, strict=True):
                assert row[f"against first{column}"] == value
    assert table["against first ±"].iloc[-1] < table["log p(x) ±"].iloc[-1] / 2  # paired by datum


def test_two_builds_have_a_paired_difference():
    digits = pv.datasets.load("digits")
    digits = dataclasses.replace(digits, validation=None, test=digits.test[:50])
    builds = {
        f"J={j}": lambda j=j: bernoulli_vae.build(64, latent_dim=j, hidden_dim=8) for j in (1, 2)
    }
    comparison = pv.compare(
        digits, builds=builds, objectives=[AEVB()], seeds=1, samples=600, num_particles=20,
        optimizer=torch.optim.Adam, proposal="guide", progress=False,
    )  # fmt: skip
    row = comparison.table().loc[("J=2", "AEVB()")]
    scores = comparison.dataset.log_evidence.isel(objective=0).values
    assert row["against first"] == pytest.approx((scores[1] - scores[0]).mean()) != 0
    assert row["against first ±"] > 0
    about, *table = repr(comparison).splitlines()
    assert len(about) < 200 and any("against first" in line for line in table)
    assert table == comparison.table().round(3).to_string().splitlines()
    assert repr(comparison).startswith(
        "<Comparison: 2 models × 1 objective × 1 seed, 50 held-out data of digits"
    )


# --- picture and terminal -------------------------------------------------------------------------


def bars_of(axis):
    """(low, high) of each bar, from left to right."""
    return [tuple(bar[2][0].get_segments()[0][:, 1]) for bar in axis.containers]


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_bars_and_table_say_the_same(seeds):
    """On one axis for all models."""
    comparison, scores = several(seeds)
    _left, right = comparison.plot().axes
    table, means = comparison.table(), scores.mean((2, 3)).ravel()
    halves = table["against first ±" if seeds == 1 else "against first 95 %"].to_numpy()
    expected = np.stack([means - halves, means + halves], 1)
    np.testing.assert_allclose(bars_of(right), expected, atol=1e-9)
    assert ("95 % interval" in right.get_title("right")) == (seeds > 1)
    assert len(right.get_xticklabels()) == 6


def test_colours_are_models_and_lines_are_objectives():
    rows = rows_of(several()[0].dataset)
    assert [row.name for row in rows][:3] == ["J=2, AEVB", "J=2, WakeSleep", "J=3, AEVB"]
    assert rows[0].colour == rows[1].colour != rows[2].colour
    assert rows[0].dash == rows[2].dash != rows[1].dash
    assert len({(row.colour, row.dash) for row in rows}) == 6
    one = compared(null(np.random.default_rng(0), 1, 1, 2)).dataset
    assert [row.name for row in rows_of(one)] == ["AEVB", "WakeSleep"]


def test_a_bar_of_two_seeds_does_not_hide_the_dots():
    """12.7 standard errors may be fifty times what tells the rows apart."""
    scores = np.zeros((1, 2, 2, 40)) + np.random.default_rng(0).normal(size=40)
    scores[0, 1] += np.array([[-1.0], [1.0]])
    _, right = compared(scores).plot().axes
    (low, high), ends = right.get_ylim(), np.array(bars_of(right))
    assert "bars that leave the picture: see the table" in [each.get_text() for each in right.texts]
    assert ends[1, 0] < low < scores.mean() - 1 and scores.mean() + 1 < high < ends[1, 1]


def test_the_command_prints_intervals():
    table = several()[0].table()
    lines = _rendered(table, 2).splitlines()
    row = table.iloc[1]
    value, half = row["against first"], row["against first 95 %"]
    assert f"{value - half:+.2f} to {value + half:+.2f}" in lines[2]
    assert lines[1].count("—") >= 2 and "nan" not in "".join(lines)
    assert lines[-1].endswith("(S - 1 = 1 degree of freedom)")
