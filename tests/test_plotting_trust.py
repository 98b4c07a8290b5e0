"""Pictures of trust and of comparisons: khat, ranks, evidence, tables, learning curves."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import pyro_vae as pv
from pyro_vae import plotting
from pyro_vae.calibration import simulated_ranks
from pyro_vae.evidence.paired import paired_mean
from pyro_vae.models import linear_gaussian
from tests.test_plotting import comparison, history, words


def test_khat_is_sorted_or_lies_over_the_latents():
    khat = np.array([0.1, 0.9, np.nan, 5.0, 0.3])
    axis = plotting.khat_map(khat)
    fine, bad = axis.collections
    assert fine.get_offsets()[:, 1].tolist() == [0.1, 0.3]
    assert bad.get_offsets()[:, 1].tolist() == [0.9, 2.0, 2.0]  # nan is no good sign
    assert axis.get_title(loc="left") == "3 of 5 data above 0.7"
    z = np.arange(10.0).reshape(5, 2)
    fine, bad = plotting.khat_map(torch.tensor(khat), z).collections
    assert bad.get_offsets().tolist() == z[[1, 2, 3]].tolist()
    with pytest.raises(ValueError, match=r"z has shape \(4, 2\), expected \(5, 2 or more\)"):
        plotting.khat_map(khat, z[:4])
    with pytest.raises(ValueError, match="no khat of any datum"):
        plotting.khat_map(np.full(3, np.nan))


def test_differences_of_evidence_are_paired():
    x = torch.randn(40, 3)
    models = {f"J = {j}": linear_gaussian.build(3, latent_dim=j) for j in (1, 2)}
    found = {name: pv.log_evidence(model, x, method="exact") for name, model in models.items()}
    table = pv.compare_evidence(found)
    axis = plotting.evidence_differences(found)
    (bars,) = axis.containers
    np.testing.assert_allclose(bars[0].get_xdata(), table["mean_diff"].to_numpy())
    low, high = bars[2][0].get_segments()[1][:, 0]
    assert (high - low) / 2 == pytest.approx(1.96 * table["mean_dse"].iloc[1])
    assert [t.get_text() for t in axis.get_yticklabels()] == list(table.index)
    assert plotting.evidence_differences(table).get_xlabel() == axis.get_xlabel()
    with pytest.raises(TypeError, match="without mean_diff"):
        plotting.evidence_differences(pd.DataFrame({"a": [1.0]}))


@pytest.fixture(scope="module")
def ranks():
    program = linear_gaussian.build(3, latent_dim=2, posterior="full")
    program.guide_is_exact_posterior()
    good = simulated_ranks(program, torch.zeros(2, 3), num_simulations=500, num_draws=19)
    with torch.no_grad():
        program.guide_bias += 1.0
    return good, simulated_ranks(program, torch.zeros(2, 3), num_simulations=500, num_draws=19)


def test_ranks_that_leave_the_band_are_named(ranks):
    good, bad = ranks
    assert plotting.calibration_ranks(good, prob=0.9999).get_legend() is None
    axis = plotting.calibration_ranks(bad, names=["z[0]", "z[1]"])
    assert axis.get_title(loc="left") == "2 of 2 leave the 95 % band"
    *_, curves = bad.curves(0.95)
    name = axis.get_legend().get_texts()[0].get_text()
    np.testing.assert_allclose(axis.lines[0].get_ydata(), curves[name])
    with pytest.raises(ValueError, match='names has "w", expected some of z'):
        plotting.calibration_ranks(bad, names=["w"])
    with pytest.raises(TypeError, match="ranks is dict, expected what"):
        plotting.coverage({})


def test_coverage_is_that_of_the_ranks(ranks):
    axis = plotting.coverage(ranks[0])
    _, first, _ = axis.lines
    assert first.get_ydata()[9] == ranks[0].coverage(0.5)["z[0]"]


# --- learning curves ----------------------------------------------------------------------------


def with_seconds(frame, rate=1000.0):
    return frame.assign(seconds=frame["samples"] / rate)


def test_learning_curves_of_runs_by_samples_and_seconds():
    rising = np.linspace(-30, -20, 12)
    runs = {"a": with_seconds(history(rising)), "b": with_seconds(history(rising - 1), 500.0)}
    axis = plotting.learning_curves(runs)
    assert words(axis)[:2] == ["b", "a"] and axis.lines[1].get_xdata()[-1] == 1200
    axis = plotting.learning_curves(runs, by="seconds")
    assert axis.lines[1].get_xdata()[-1] == pytest.approx(2.4)
    assert axis.get_xlabel() == "seconds of training"
    first, second = axis.lines[:2]
    assert first.get_linestyle() != second.get_linestyle()  # told apart in grey, too
    assert words(plotting.learning_curves(runs["a"]))[:1] == ["training"]
    with pytest.raises(ValueError, match="by is 'steps', expected"):
        plotting.learning_curves(runs, by="steps")
    with pytest.raises(ValueError, match='a has no column "elbo", expected one of samples'):
        plotting.learning_curves(runs, column="elbo")
    with pytest.raises(TypeError, match="a run is int"):
        plotting.learning_curves([1])


def test_runs_of_one_objective_share_a_colour():
    rising = np.linspace(-30, -20, 12)
    manifests = [{"objective": o, "program": "VAE"} for o in ("AEVB()", "AEVB()", "WakeSleep()")]
    runs = [pv.Run(torch.nn.Identity(), history(rising - i), m) for i, m in enumerate(manifests)]
    axis = plotting.learning_curves(runs)
    colours = [line.get_color() for line in axis.lines]
    assert colours[0] == colours[1] != colours[2]
    assert sorted(words(axis))[:2] == ["AEVB", "WakeSleep"]


def test_learning_curves_of_a_comparison_by_seconds():
    dataset = comparison({"AEVB": np.linspace(-30, -20, 12)})
    with pytest.raises(ValueError, match='take by="samples"'):
        plotting.learning_curves(dataset, by="seconds")
    dataset["curve_seconds"] = dataset.curve_samples / 100
    axis = plotting.learning_curves(dataset, by="seconds")
    assert axis.lines[-1].get_xdata()[-1] == 120
    assert "seconds" in axis.get_xlabel()


def test_the_table_as_a_picture_has_the_intervals_of_the_table():
    base = np.random.default_rng(1).normal(size=(1, 3, 50))
    shift = np.array([0.0, 1.0])[:, None, None] + 0.1 * np.random.default_rng(2).normal(
        size=(2, 3, 50)
    )
    one = comparison({"AEVB": np.zeros(4), "WakeSleep": np.zeros(4)})
    three = xr.concat([one] * 3, "seed").transpose("model", "objective", "seed", ...)
    dataset = three.assign(log_evidence=(three.log_evidence.dims, (base + shift)[None]))
    axis = plotting.comparison_table(dataset)
    found = paired_mean(shift[1] - shift[0])
    low, high = axis.containers[1][2][0].get_segments()[0][:, 0]
    assert (low + high) / 2 == pytest.approx(found.value)
    assert (high - low) / 2 == pytest.approx(found.half_width)
    assert any(f"+{found.value:.2f}" in word for word in words(axis))
    with pytest.raises(TypeError, match="comparison is dict, expected"):
        plotting.comparison_table({})
