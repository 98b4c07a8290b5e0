"""Pictures of a latent of one number."""

import pytest
import torch

from pyro_vae import plotting
from pyro_vae.models import bernoulli_vae


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_walks_of_few_latents_are_large_enough_to_see(latent_dim):
    axis = plotting.traversals(bernoulli_vae.build(64, latent_dim=latent_dim))
    axis.figure.canvas.draw()
    box = axis.get_window_extent()
    inches = box.height / axis.figure.dpi / latent_dim
    assert inches > 0.45  # an image; the text around it took the height of the figure before


def test_one_number_spans_no_plane():
    torch.manual_seed(0)
    line = bernoulli_vae.build(64, latent_dim=1)
    for dims in (None, (0, 1)):
        with pytest.raises(ValueError, match=r"1 number, expected two or more.*traversals"):
            plotting.latent_manifold(line, dims=dims)
