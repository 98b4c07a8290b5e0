"""The published curves, the table of differences, and figure 2 on small data: stopped, gone on."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae as pv
from pyro_vae.paper import FIGURES, figure_2, figure_3, published, read, shelf
from pyro_vae.paper.differences import difference_rows, difference_table, value_at
from pyro_vae.paper.published import about, the
from pyro_vae.paper.shelf import Shelf


def small(name, data_dir=None):
    """Grey rows in place of either data set: 240 to train on, 60 to test on."""
    x = torch.rand(300, 12, generator=torch.Generator().manual_seed(0))
    return pv.datasets.split(pv.datasets.from_array(x), test=60, seed=0, name=name)


@pytest.fixture
def small_data(monkeypatch):
    monkeypatch.setattr(figure_2, "load_grey", small)
    monkeypatch.setattr(figure_2, "HIDDEN", {"mnist": 6, "frey_face": 6})
    monkeypatch.setattr(figure_2, "EVERY", {"mnist": 400, "frey_face": 400})
    monkeypatch.setattr(figure_2, "ACCUMULATE", 2)


ESTIMATED = ("appendix_d", "appendix_d_error", "importance", "importance_error", "agree")


def computed(out, budget=2000, **options):
    options = {"only": ["mnist-aevb-3"], "progress": False, **options}
    return figure_2.reproduce(budget=budget, out=out, **options)


def without_seconds(numbers):
    return [{k: v for k, v in curve.items() if k != "seconds"} for curve in numbers["curves"]]


# --- the published curves -----------------------------------------------------------------------


def test_the_published_curves_are_those_of_the_paper():
    curves = published()
    assert len(curves) == 48
    assert {c.figure for c in curves} == {2, 3}
    assert "1312.6114" in about()["source"]
    for latent_dim, nats in {3: -152.9, 5: -138.9, 10: -128.3, 20: -124.2, 200: -119.9}.items():
        curve = the(figure=2, data="mnist", latent_dim=latent_dim, method="AEVB", split="test")
        assert curve.at(1e6) == pytest.approx(nats, abs=0.5)


def test_a_published_curve_says_nothing_outside_of_its_evaluations():
    curve = the(figure=2, data="mnist", latent_dim=3, method="AEVB", split="test")
    assert math.isnan(curve.at(1e5)) and math.isnan(curve.at(1e9))
    assert curve.at(curve.samples[0]) == curve.nats[0]


def test_what_the_paper_does_not_have_is_none_and_two_are_refused():
    assert the(figure=2, data="mnist", latent_dim=4) is None
    with pytest.raises(ValueError, match="name more attributes"):
        the(figure=2, data="mnist", latent_dim=3)


# --- the table ----------------------------------------------------------------------------------


def test_values_are_interpolated_in_log_samples():
    assert value_at([10.0, 1000.0], [0.0, 2.0], 100.0) == pytest.approx(1.0)
    assert math.isnan(value_at([10.0, 1000.0], [0.0, 2.0], 1001.0))
    assert math.isnan(value_at([], [], 5.0))


def test_differences_are_ours_minus_theirs_with_the_spread_of_seeds():
    theirs = the(figure=2, data="mnist", latent_dim=20, method="AEVB", split="test")
    x, at = [1e5, 1e7], theirs.at(1e6)
    # Both of our curves are flat: 3 above and 1 below the published value at 10^6.
    curves = [(x, [at + 3, at + 3]), (x, [at - 1, at - 1])]
    (row,) = difference_rows({}, theirs, curves, budgets=[1_000_000])
    assert row["difference"] == pytest.approx(1.0)
    assert row["sd over seeds"] == pytest.approx(np.std([3, -1], ddof=1))
    assert row["seeds"] == 2


def test_there_is_no_row_where_one_seed_or_the_paper_has_not_been():
    theirs = the(figure=2, data="mnist", latent_dim=20, method="AEVB", split="test")
    far, near = ([1e5, 1e7], [0.0, 0.0]), ([1e5, 6e5], [0.0, 0.0])
    budgets = [100_000, 500_000, 1_000_000]
    rows = difference_rows({}, theirs, [far, near], budgets=budgets)
    assert [row["samples"] for row in rows] == [500_000]
    assert difference_rows({}, None, [far]) == []


def test_the_table_has_both_splits_and_keeps_curves_apart():
    curve = {"data": "mnist", "latent_dim": 3, "method": "AEVB", "samples": [1e5, 1e6]}
    other = {**curve, "method": "wake-sleep"}
    curves = [{**c, "train": [-1.0, -1.0], "test": [-2.0, -2.0]} for c in (curve, other)]
    table = difference_table(2, curves)
    assert set(table.index.get_level_values("split")) == {"train", "test"}
    assert set(table.index.get_level_values("method")) == {"AEVB", "wake-sleep"}
    assert table.loc[("mnist", 3, "AEVB", "test")].ours.tolist() == [-2.0, -2.0, -2.0]


def test_train_is_the_mean_of_the_minibatches_since_the_evaluation_before():
    history = pd.DataFrame(
        {
            "step": [1, 2, 3, 4, 5],
            "samples": [100, 200, 250, 350, 400],
            "bound": [-10.0, -8.0, -6.0, -4.0, -2.0],
            # Step 3 is where a smaller budget had ended: no regular evaluation.
            "validation_bound": [math.nan, -7.0, -99.0, -3.5, -1.0],
            "validation_bound_standard_error": [math.nan, 0.1, 0.1, 0.1, 0.1],
        }
    )
    samples, test, _, train = figure_2.scored(history, every=2)
    assert samples.tolist() == [200, 350, 400]
    assert test.tolist() == [-7.0, -3.5, -1.0]
    assert train.tolist() == pytest.approx([-9.0, (-6.0 * 50 - 4.0 * 100) / 150, -2.0])


# --- figure 2, on small data --------------------------------------------------------------------


def test_a_larger_budget_goes_on_with_the_bits_of_one_run(small_data, tmp_path):
    whole = computed(tmp_path / "whole", 2000)
    computed(tmp_path / "parts", 1100)
    parts = computed(tmp_path / "parts", 2000)
    assert without_seconds(parts.numbers) == without_seconds(whole.numbers)
    assert len(parts.numbers["curves"][0]["samples"]) == 5


def test_a_stopped_reproduction_goes_on_with_the_bits_of_one_run(small_data, stop, tmp_path):
    whole = computed(tmp_path / "whole")
    stop[12] = 2  # SIGINT at step 12 of 20
    with pytest.raises(KeyboardInterrupt) as stopped:
        computed(tmp_path / "parts")
    assert stopped.value.path == tmp_path / "parts"
    assert stopped.value.flag == ""  # the same command goes on
    assert without_seconds(computed(tmp_path / "parts").numbers) == without_seconds(whole.numbers)


def test_a_training_has_the_settings_that_the_page_tells(small_data, monkeypatch, tmp_path):
    """Section 5 of the paper: a N(0, 1) prior on weights, a step of 0.02, minibatches of 100."""
    given = {}

    def spy(*args, **options):
        given.update(options)
        return fit(*args, **options)

    fit = shelf.fit
    monkeypatch.setattr(shelf, "fit", spy)
    (curve,) = computed(tmp_path, 1000).numbers["curves"]
    assert given["weight_prior"] == curve["weight_prior"] == 1.0
    assert given["lr"] == curve["lr"] == 0.02 and given["batch_size"] == 100
    given.clear()
    monkeypatch.setattr(figure_3, "load_grey", small)
    monkeypatch.setattr(figure_3, "MARKS", (1000,))
    monkeypatch.setattr(figure_3, "ACCUMULATE", 2)
    monkeypatch.setattr(figure_3, "estimates", lambda *rest: dict.fromkeys(ESTIMATED, 0.0))
    figure_3.reproduce(
        budget=60_000, only="aevb-1000", out=tmp_path / "3", points=5, progress=False
    )
    assert given["weight_prior"] == 1.0 and given["lr"] == 0.02


def test_a_finished_curve_is_not_trained_again(small_data, monkeypatch, tmp_path):
    first = computed(tmp_path)
    monkeypatch.setattr(shelf, "fit", None)  # whoever calls it fails
    again = computed(tmp_path)
    assert without_seconds(again.numbers) == without_seconds(first.numbers)
    shorter = computed(tmp_path, 1200)
    assert (
        shorter.numbers["curves"][0]["samples"] == first.numbers["curves"][0]["samples"][:3]
    )  # 1200


def test_other_settings_are_refused_and_named(small_data, monkeypatch, tmp_path):
    computed(tmp_path)
    steps = {**figure_2.STEPS, ("mnist", "AEVB"): {3: 0.5}}
    monkeypatch.setattr(figure_2, "STEPS", steps)
    with pytest.raises(ValueError, match=r"lr 0\.5, there 0\.02.*name another folder"):
        computed(tmp_path)


def test_a_piece_is_made_once_and_its_settings_are_its_own(tmp_path):
    kept = Shelf(tmp_path)
    assert kept.piece("a", {"draws": 5}, lambda: [1.5]) == [1.5]
    assert kept.piece("a", {"draws": 5}, lambda: [2.5]) == [1.5]
    with pytest.raises(ValueError, match="draws 6, there 5"):
        kept.piece("a", {"draws": 6}, lambda: [2.5])
    (tmp_path / "pieces" / "a.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        kept.piece("a", {"draws": 5}, lambda: [2.5])


def test_it_is_drawn_again_from_its_numbers(small_data, tmp_path):
    only = ["mnist-aevb-3", "mnist-wake-sleep-3", "frey-aevb-2"]
    result = computed(tmp_path, 1200, only=only, seeds=2)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["curves"] == result.numbers["curves"]
    assert len(numbers["curves"]) == 6
    again = read(tmp_path)
    pd.testing.assert_frame_equal(again.table(), result.table())
    axes = [axis for axis in again.plot().axes if axis.axison]
    titles = [axis.get_title() for axis in axes]
    assert titles == ["MNIST, Nz = 3", "Frey Face, Nz = 2"]
    # Two methods, both splits: published dashed and ours; two bands over seeds each.
    assert len(axes[0].lines) == 8 and len(axes[0].collections) == 4
    assert sum(line.get_linestyle() == "--" for line in axes[0].lines) == 4
    assert "--budget 1e6" in again.words()
    for name in ("figure2.png", "table.csv"):
        assert (tmp_path / name).stat().st_size > 0


def test_curves_are_told_apart_by_name(small_data, tmp_path):
    assert len({curve.name for curve in figure_2.CURVES}) == 18
    assert all(curve.optimizer["lr"] in (0.01, 0.02, 0.1) for curve in figure_2.CURVES)
    with pytest.raises(ValueError, match="only is 'mnist-aevb-4', expected some of mnist-aevb-3"):
        computed(tmp_path, only=["mnist-aevb-4"])
    with pytest.raises(ValueError, match="budget is 10"):
        computed(tmp_path, budget=10)


def test_a_folder_without_numbers_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no numbers\.json"):
        read(tmp_path)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_the_same_face(name):
    module = pv.paper.reproducing.module_of(name)
    assert name == module.NAME
    assert module.reproduce.__doc__ and module.__doc__


@pytest.mark.data
def test_it_runs_on_mnist_itself(data_dir, monkeypatch, tmp_path):
    monkeypatch.setattr(figure_2, "ACCUMULATE", 2)
    result = computed(tmp_path, 1000, data_dir=data_dir)
    (curve,) = result.numbers["curves"]
    assert curve["samples"] == [1000]
    assert -600 < curve["test"][0] < -200
