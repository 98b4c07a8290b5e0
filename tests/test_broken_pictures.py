"""Pictures of what is empty, missing, infinite, named oddly, or drawn in the wrong place."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

import pyro_vae as pv
from pyro_vae import plotting
from pyro_vae.plotting.images import image_shape_of, limits_of, moments_of

Z = np.random.default_rng(0).normal(size=(20, 2))
HISTORY = {"samples": [1, 2, 3], "seconds": [0.1, 0.2, 0.3], "bound": [-3.0, -2.0, -1.0]}


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


@pytest.mark.parametrize(
    "labels, names",
    [
        ([None, "a"], ["a", "no label"]),
        ([None, None], ["no label"]),
        ([np.nan, 1.0], ["1.0", "no label"]),
        ([None, 3], ["3", "no label"]),
        (["b", 1], ["1", "b"]),
        (["_a", "$x$b$"], [r"\$x\$b\$", "\u200b_a"]),
        (pd.array([1, None], dtype="Int64"), ["1.0", "no label"]),
    ],
)
@pytest.mark.parametrize("dim", [1, 2])
def test_each_datum_is_drawn_whatever_its_label(labels, names, dim):
    labels = pd.concat([pd.Series(labels)] * 10) if hasattr(labels, "dtype") else labels * 10
    axis = plotting.latent_scatter(Z[:, :dim], None, labels)
    assert legend(axis) == names
    if dim == 2:
        assert sum(len(dots.get_offsets()) for dots in axis.collections) == len(Z)
    axis.figure.draw_without_rendering()


def test_numbers_without_a_value_are_drawn_beside_the_colour_bar():
    values = np.where(np.arange(20) > 17, np.nan, np.arange(20.0))
    axis = plotting.latent_scatter(Z, None, values)
    assert legend(axis) == ["no label"] and len(axis.collections[-1].get_offsets()) == 2


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: plotting.latent_scatter(Z[:0], None), "there are none"),
        (lambda: plotting.latent_scatter(Z * np.nan, None), "row 0 are not finite"),
        (lambda: plotting.latent_scatter(Z, None, dims=(0,)), "expected two"),
        (lambda: plotting.latent_scatter(Z, None, dims=1), "expected two"),
        (lambda: plotting.khat_map(Z[:, 0], Z, dims=(0, 1, 1)), "expected two"),
        (lambda: plotting.latent_scatter(Z, None, ax=pytest), "ax is module"),
        (lambda: plotting.latent_scatter(Z, None, ax=pyplot), "ax is module"),
        (lambda: plotting.kl_per_latent(np.zeros(0)), "expected"),
        (lambda: plotting.kl_per_latent(np.zeros((2, 3, 4))), "expected"),
        (lambda: plotting.learning_curves(pd.DataFrame(HISTORY), by=["samples"]), "by is"),
        (lambda: plotting.learning_curves(pd.DataFrame(HISTORY)[:0]), "no record"),
        (lambda: image_shape_of((12,), (-3, -4)), "image_shape"),
        (lambda: image_shape_of((12,), "ab"), "image_shape"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_words(call, said):
    with pytest.raises((ValueError, TypeError), match=said):
        call()


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_run_that_diverged_for_a_while_is_drawn(bad, place, several):
    frame = pd.DataFrame(HISTORY)
    frame.loc[place, "bound"] = bad
    axis = plotting.learning_curves([frame] if several else frame)
    assert len(axis.lines[0].get_xdata()) == 2 and np.isfinite(axis.get_ylim()).all()
    frame["bound"] = bad
    with pytest.raises(ValueError, match="finite"):
        plotting.learning_curves([frame] if several else frame)


def test_what_was_not_evaluated_leaves_the_rest_of_the_picture():
    nothing = [np.nan] * 3
    early = pd.DataFrame(
        {**HISTORY, "validation_bound": nothing, "validation_bound_standard_error": nothing}
    )
    assert len(plotting.training_curve(early).lines) == 1
    bare = pd.DataFrame({**HISTORY, "validation_bound": [-3.0, -2.0, -1.0]})
    assert len(plotting.training_curve(bare).lines) == 2
    assert plotting.learning_curves(iter([bare])).lines


def test_names_are_written_as_they_are():
    frame = pd.DataFrame(HISTORY)
    axis = plotting.learning_curves({"$a_$": frame, "_b": frame, None: frame})
    axis.figure.draw_without_rendering()


def test_missing_columns_and_images_make_no_noise(recwarn):
    assert limits_of(np.full(3, np.nan)) == (0.0, 1.0)
    assert limits_of(np.array([np.nan, -2.0, 5.0, np.inf])) == (-2.0, 5.0)
    center, spread = moments_of(np.array([[1.0, np.nan], [3.0, np.nan]]))
    assert center.tolist() == [2.0, 0.0] and spread.tolist() == [1.0, 1.0]
    x = np.column_stack([Z, np.full(20, np.nan)]).astype("float32")
    vae = pv.VAE.build(
        x, latent_dim=1, hidden_dim=2, missing=True,
        likelihood=pv.likelihoods.Gaussian(sigmoid_mean=False),
    )  # fmt: skip
    plotting.reconstructions(vae, x)
    plotting.reconstructions(vae, x * np.nan, image_shape=(1, 3))
    plotting.samples(vae, like=x)
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]
    with pytest.raises(ValueError, match="traversals shows"):
        plotting.latent_manifold(vae, image_shape=(1, 3))
    for span in (3, (0, np.inf), (1, 0)):
        with pytest.raises(ValueError, match="span"):
            plotting.latent_manifold(wide(), image_shape=(1, 3), span=span)


def wide():
    return pv.VAE.build(
        np.zeros((2, 3), "float32"), latent_dim=2, hidden_dim=2,
        likelihood=pv.likelihoods.Gaussian(sigmoid_mean=False),
    )  # fmt: skip


def test_axes_of_a_subfigure_are_axes():
    axis = Figure().subfigures(1, 2)[0].subplots()
    assert plotting.latent_scatter(Z, None, np.arange(20), ax=axis) is axis
