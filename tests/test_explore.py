"""Sliders over latents: through the widgets' own Python interface."""

import io
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae

pytest.importorskip("ipywidgets", reason="needs ipywidgets")


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return bernoulli_vae.build(64, latent_dim=3, hidden_dim=8, init_std=0.5)


def shown(explorer):
    return np.asarray(Image.open(io.BytesIO(explorer.picture.value)))


def decoded(vae, z):
    return pv.decode(vae, torch.as_tensor(z, dtype=torch.float32)[None])[0].reshape(8, 8).numpy()


def test_a_slider_moves_one_latent_and_the_picture(vae):
    explorer = pv.explore(vae)
    before = shown(explorer)
    np.testing.assert_allclose(before[::35, ::35] / 255, decoded(vae, [0, 0, 0]), atol=0.01)
    explorer.sliders[1].value = 0.9
    assert explorer.told.value == "z[0] = 0.00, z[1] = 1.28, z[2] = 0.00"
    after = shown(explorer)
    np.testing.assert_allclose(after[::35, ::35] / 255, decoded(vae, [0, 1.2816, 0]), atol=0.01)
    assert (before != after).any()


def test_data_order_the_latents_and_a_datum_is_where_they_start(vae):
    x = pv.datasets.load("digits").test[:50]
    explorer = pv.explore(vae, x, datum=7, most=2)
    z = pv.encode(vae, x)
    order = z.std(0).argsort(descending=True)[:2]
    assert [slider.description for slider in explorer.sliders] == [f"z[{j}]" for j in order]
    np.testing.assert_allclose(shown(explorer)[::35, ::35] / 255, decoded(vae, z[7]), atol=0.01)
    explorer.sliders[0].value = 0.01
    start, random = explorer.buttons
    start.click()
    np.testing.assert_allclose(shown(explorer)[::35, ::35] / 255, decoded(vae, z[7]), atol=0.01)
    random.click()
    assert explorer.sliders[0].value != explorer.sliders[1].value


def test_a_table_is_drawn_as_bars():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 3)), columns=["a", "b", "c"])
    program = pv.VAE.build(
        frame, likelihood=pv.likelihoods.Gaussian(sigmoid_mean=False), latent_dim=2
    )
    explorer = pv.explore(program, frame)
    before = bytes(explorer.picture.value)
    explorer.sliders[0].value = 0.99
    assert bytes(explorer.picture.value) != before
    wide = pv.VAE.build(200, likelihood=pv.likelihoods.Gaussian(sigmoid_mean=False), latent_dim=2)
    with pytest.raises(ValueError, match="200 numbers and is no image, expected one, or at most"):
        pv.explore(wide)


def test_a_notebook_shows_all_of_it(vae):
    bundle = pv.explore(vae)._repr_mimebundle_()
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_without_ipywidgets_it_says_what_to_install(vae, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match="pip install ipywidgets"):
        pv.explore(vae)
