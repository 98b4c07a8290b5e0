"""``compare_autoencoder``: what an auto-encoder and a VAE of the same nets make of data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.comparison.autoencoders import energy_distance, nearest
from pyro_vae.models import bernoulli_vae, gaussian_vae


@pytest.fixture(scope="module")
def both():
    digits = pv.datasets.load("digits")
    return pv.compare_autoencoder(
        digits,
        build=lambda: bernoulli_vae.build(digits.dim, latent_dim=2, hidden_dim=50),
        samples=60_000,
        progress=False,
    )


def test_an_autoencoder_reconstructs_what_it_has_seen_and_leaves_the_prior(both):
    table = both.table()
    autoencoder, vae = table.loc["auto-encoder"], table.loc["VAE"]

    assert autoencoder["train"] > vae["train"]
    assert autoencoder["to prior"] > 0.1 > vae["to prior"]
    assert autoencoder["code spread"] > 1.4 * vae["code spread"]


def test_numbers_of_the_table_are_those_of_the_public_functions(both):
    program, x = both.runs["auto-encoder"].program, torch.as_tensor(both.data)
    found = both.found["auto-encoder"]
    by_hand = program.likelihood(pv.encode(program, x)).log_prob(x).detach()

    np.testing.assert_allclose(found.reconstruction, by_hand, rtol=1e-4)
    np.testing.assert_allclose(found.reconstructed, pv.reconstruct(program, x), rtol=1e-5)
    np.testing.assert_allclose(found.codes, pv.encode(program, x), rtol=1e-5)
    assert both.runs["VAE"].manifest["samples"] == both.runs["auto-encoder"].manifest["samples"]
    assert "auto-encoder" in repr(both)


def test_the_picture_has_a_line_for_each(both, tmp_path):
    figure = both.plot(tmp_path / "both.png")

    assert [axis.get_ylabel() for axis in figure.axes[::3]] == ["auto-encoder", "VAE"]
    assert (tmp_path / "both.png").stat().st_size > 0


@pytest.mark.parametrize(("columns", "latents"), [(2, 1), (5, 3)])
def test_rows_that_are_no_images_are_drawn_too(columns, latents, tmp_path):
    x = np.random.default_rng(0).normal(size=(60, columns)).astype("float32")
    data = pv.datasets.split(pv.datasets.from_array(x))

    both = pv.compare_autoencoder(
        data,
        build=lambda: gaussian_vae.build(
            columns, latent_dim=latents, hidden_dim=4, sigmoid_mean=False
        ),
        samples=200,
        batch_size=20,
        progress=False,
    )

    assert len(both.plot().axes) == 6
    assert both.table().drop(columns=["log p(x|z)", "train"]).notna().all(axis=None)


def test_data_without_parts_are_refused():
    with pytest.raises(TypeError, match=r"expected a DataSet with train and test"):
        pv.compare_autoencoder(torch.rand(5, 2), build=lambda: None)


def test_the_energy_distance_is_that_of_known_laws():
    """E|a - b| of two standard normals is 2 / sqrt(pi), and 2 / sqrt(pi) is their spread."""
    a, b, c = np.random.default_rng(1).normal(size=(3, 2000, 1))

    assert abs(energy_distance(a, b)) < 0.01
    far = energy_distance(a, c + 10)
    assert far == pytest.approx(1 - 2 / np.sqrt(np.pi) / 10, abs=0.01)


def test_nearest_is_a_distance_per_number():
    points, others = np.zeros((1, 4)), np.array([[3.0, 3, 3, 3], [1, 1, 1, 1]])

    np.testing.assert_allclose(nearest(points, others), [1.0])
