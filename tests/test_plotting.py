"""Pictures: what the axes show, and what they say about what they leave out."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pyro_vae.plotting.comparison import curves_and_evidence
from pyro_vae.plotting.figures import saved
from pyro_vae.plotting.training import training_curve


def history(bounds, held_out=None):
    frame = pd.DataFrame({"samples": 100 * np.arange(1, len(bounds) + 1), "bound": bounds})
    if held_out is not None:
        frame["validation_bound"] = held_out
        frame["validation_bound_standard_error"] = 0.5
    return frame


def comparison(curves, evidence=None):
    """``curves``: objective -> (record,), one seed; nan where there is no guide."""
    bound = np.array(list(curves.values()))[:, None]  # (objective, seed, record)
    samples = np.broadcast_to(1000.0 * np.arange(1, bound.shape[-1] + 1), bound.shape)
    noise = np.random.default_rng(0).normal(size=(len(curves), 1, 50))
    dims = ("model", "objective", "seed")
    return xr.Dataset(
        {
            "curve_samples": ((*dims, "record"), samples[None]),
            "curve_bound": ((*dims, "record"), bound[None]),
            "log_evidence": ((*dims, "datum"), (noise if evidence is None else evidence)[None]),
        },
        coords={"model": ["m"], "objective": [f"{name}()" for name in curves]},
        attrs={"data": "digits", "binarize": "threshold"},
    )


def test_a_run_without_a_bound_shows_its_reconstruction():
    frame = history([-30.0, -20.0, -19.0]).rename(columns={"bound": "reconstruction"})
    axis = training_curve(frame)
    assert "log p(x | z)" in words(axis)
    assert len(axis.lines[0].get_ydata()) >= 2


def words(axis):
    return [text.get_text() for text in axis.texts]


def test_one_wild_first_record_does_not_flatten_the_curve():
    """The bound of an untrained net may be hundreds of nats down, and the picture says so."""
    bounds = -25 + np.linspace(-3, 0, 100)
    bounds[2] = -751.06
    axis = training_curve(history(bounds))
    low, high = axis.get_ylim()
    assert -29 < low < bounds[20] and high > -25
    assert "first records go down to −751.1" in words(axis)
    flat = training_curve(history(np.full(9, -25.0)))
    assert words(flat) == ["training"]


def test_the_held_out_bound_lies_in_a_band_of_its_standard_error():
    """A quarter of all records has one; the others are nan."""
    held_out = np.where(np.arange(40) % 4 == 3, -20.0, np.nan)
    axis = training_curve(history(np.full(40, -21.0), held_out))
    (band,) = axis.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (-20.5, -19.5)
    (line,) = [each for each in axis.lines if len(each.get_xdata()) == 10]
    assert np.all(line.get_ydata() == -20.0)


def test_labels_of_lines_that_end_together_are_pushed_apart():
    """Both ways alike, so that neither label points to the other's line."""
    flat = np.linspace(-30, -20, 50)
    axis = training_curve(history(flat, flat - 0.001))
    one, two = sorted(
        text.xy[1] for text in axis.texts if text.get_text() in ("training", "held out")
    )
    assert two - one >= 0.05 * np.diff(axis.get_ylim())
    assert (one + two) / 2 == pytest.approx(-20.0005)


def test_steps_that_only_accumulate_do_not_fill_the_picture():
    """Half the records stand still; the axes begin where the curves come in."""
    curve = np.concatenate([np.full(10, -45.0), -20 - 8 * 0.5 ** np.arange(10)])
    left, _ = curves_and_evidence(comparison({"AEVB": curve}))
    assert left.get_ylim()[0] > -30
    assert 9_000 < left.get_xlim()[0] < 12_000


def test_an_algorithm_without_a_guide_is_named_where_its_line_is_missing():
    rising = np.linspace(-30, -20, 12)
    left, right = curves_and_evidence(
        comparison({"AEVB": rising, "MonteCarloEM": np.full(12, np.nan)})
    )
    assert "MonteCarloEM: no guide, so no bound" in words(left)
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["AEVB", "MonteCarloEM"]


def test_bars_are_the_paired_standard_error(tmp_path):
    """Two algorithms that differ by a constant per datum have no error between them."""
    base = np.random.default_rng(1).normal(size=(1, 1, 50))
    shift = np.array([0.0, 1.0, 2.0])[:, None, None] + np.zeros(50)
    shift[2] += np.where(np.arange(50) % 2, 0.5, -0.5)
    curves = dict.fromkeys(("AEVB", "WakeSleep", "Other"), np.linspace(-30, -20, 12))
    path = tmp_path / "curves.png"
    _, right = curves_and_evidence(comparison(curves, base + shift))
    saved(right.figure, path)
    spans = [np.ptp(bar[2][0].get_segments()[0][:, 1]) for bar in right.containers]
    paired = shift[2, 0].std(ddof=1) / np.sqrt(50)
    np.testing.assert_allclose(spans, [0, 0, 2 * paired], atol=1e-12)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_runs_that_never_moved_and_a_single_record_are_drawn():
    """Warnings are errors here: limits that coincide would be one."""
    curves_and_evidence(comparison({"AEVB": np.full(12, -45.0)}))
    training_curve(history(np.array([-45.0])))
    training_curve(pd.DataFrame({"samples": [100], "loss": [3.0]}))
