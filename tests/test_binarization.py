"""Binarization: noise that is uniform, fixed and independent, and pixels that follow from it."""

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from pyro_vae.datasets import Data
from pyro_vae.datasets.data import noise as noise_module

from .pixels import BINARIZED, positions

# The noise of binarization


def test_noise_is_uniform_over_pixels_rows_epochs_and_seeds():
    samples = {
        "pixels": noise_module.uniforms(positions(5), 20_000, seed=0, epoch=1)[0],
        "rows": noise_module.uniforms(torch.arange(20_000), 1, seed=0, epoch=1)[:, 0],
        "epochs": torch.cat([draw(seed=0, epoch=e) for e in range(1_500)]),
        "seeds": torch.cat([draw(seed=s, epoch=1) for s in range(1_500)]),
    }
    for name, u in samples.items():
        assert u.min() >= 0 and u.max() < 1
        assert kstest(u.double().numpy(), "uniform").pvalue > 1e-3, name


def draw(*, seed: int, epoch: int) -> Tensor:
    return noise_module.uniforms(positions(10), 1, seed=seed, epoch=epoch)[0]


@pytest.mark.parametrize(
    ("other", "pixel_shift"),
    [
        (dict(rows=1000), 0),
        (dict(rows=1), 0),
        (dict(epoch=2), 0),
        (dict(seed=1), 0),
        (dict(seed=1, epoch=0), 0),
        (dict(), 1),
        (dict(), 8),
        (dict(rows=1), 1),
        (dict(epoch=2), 1),
    ],
)
def test_noise_is_uncorrelated_between_neighbouring_rows_epochs_seeds_and_pixels(
    other, pixel_shift
):
    """Correlation of n independent pairs is N(0, 1/n); 5 standard deviations."""
    rows, dim = torch.arange(1000), 784
    first = noise_module.uniforms(rows, dim, seed=0, epoch=1)
    shifted = rows + other.get("rows", 0)
    second = noise_module.uniforms(
        shifted, dim, seed=other.get("seed", 0), epoch=other.get("epoch", 1)
    )
    a = first[:, : dim - pixel_shift].reshape(-1).double()
    b = second[:, pixel_shift:].reshape(-1).double()

    for transform in (lambda u: u, lambda u: (u - 0.5).square(), lambda u: (u * 256) % 1):
        correlation = torch.corrcoef(torch.stack([transform(a), transform(b)]))[0, 1]
        assert abs(correlation) < 5 / len(a) ** 0.5


def test_noise_bits_are_fair_down_to_the_last_of_24():
    u = noise_module.uniforms(torch.arange(1000), 784, seed=0, epoch=1)
    bits = (u.double() * 2**24).long()
    for bit in range(24):
        share = ((bits >> bit) & 1).double().mean()
        assert abs(share - 0.5) < 5 * 0.5 / u.numel() ** 0.5, bit


def test_noise_never_changes_between_versions():
    """A change here changes every number measured on binarized data: say so in the changelog."""
    u = noise_module.uniforms(positions(0, 59_999), 3, seed=0, epoch=1)
    order = noise_module.permutation(8, seed=0)
    assert (u.double() * 2**24).long().tolist() == [
        [7306151, 5669890, 5861450],
        [9358392, 3259512, 5652002],
    ]
    assert order.tolist() == [1, 3, 7, 4, 6, 0, 2, 5]


def test_noise_is_the_same_on_one_thread_and_on_many():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = noise_module.uniforms(torch.arange(500), 784, seed=0, epoch=1)
        torch.set_num_threads(4)
        many = noise_module.uniforms(torch.arange(500), 784, seed=0, epoch=1)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, many)


def test_a_permutation_has_every_row_once_and_depends_on_the_seed():
    first, second = (noise_module.permutation(1000, seed=seed) for seed in (0, 1))
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert not torch.equal(first, second)


# Binarization


def test_grey_values_stay_as_they_are(grey):
    data = Data(grey)
    assert torch.equal(data.rows(), grey)
    assert torch.equal(data.batch(positions(3, 1), 7), grey[[3, 1]])


def test_threshold_is_one_from_half_upwards():
    data = Data.from_pixels(torch.tensor([[0, 127, 128, 255]]), scale=255.0)
    assert data.x.tolist() == [[0, 0, 1, 1]]
    assert Data.from_pixels(torch.tensor([[0.5, 0.4999]])).x.tolist() == [[1, 0]]


def test_dynamic_pixels_have_the_grey_value_as_their_mean(grey):
    data = Data.from_pixels(grey, binarize="dynamic")
    epochs, index = 400, torch.arange(len(grey))
    mean = sum(data.batch(index, epoch) for epoch in range(1, epochs + 1)) / epochs
    z = (mean - grey) / (grey * (1 - grey) / epochs).sqrt().clamp(min=1e-3)
    assert abs(z.mean()) < 5 / z.numel() ** 0.5
    assert 0.95 < z.std() < 1.05
    assert torch.equal(data.x, grey)


def test_dynamic_pixels_of_probability_zero_and_one_never_change():
    x = torch.tensor([[0.0, 1.0]]).repeat(5000, 1)
    data = Data.from_pixels(x, binarize="dynamic")
    assert torch.equal(data.batch(torch.arange(5000), 3), x)


def test_a_row_gets_the_same_pixels_in_every_batch(grey):
    data = Data.from_pixels(grey, binarize="dynamic", seed=3)
    whole = data.batch(torch.arange(300), 5)
    some = positions(299, 0, 17, 17)
    assert torch.equal(data.batch(some, 5), whole[some])
    assert not torch.equal(data.batch(some, 6), whole[some])


def test_a_slice_of_dynamic_data_has_the_pixels_of_its_rows(grey):
    data = Data.from_pixels(grey, binarize="dynamic")
    part = data[positions(200, 10, 50)][1:]
    assert part.index.tolist() == [10, 50]
    assert torch.equal(part.batch(positions(1, 0), 4), data.batch(positions(50, 10), 4))
    assert torch.equal(part.rows(), data.rows()[[10, 50]])


def test_rows_of_a_large_data_set_are_those_of_its_batches():
    x = torch.rand(3000, 50, generator=torch.Generator().manual_seed(0))
    data = Data.from_pixels(x, binarize="dynamic")
    assert torch.equal(data.rows(), data.batch(torch.arange(3000), 0))
    assert torch.equal(data.rows()[2999:], data.batch(positions(2999), 0))


def test_static_binarization_is_epoch_zero_of_dynamic(grey):
    static = Data.from_pixels(grey, binarize="static", seed=1)
    dynamic = Data.from_pixels(grey, binarize="dynamic", seed=1)
    assert torch.equal(static.x, dynamic.rows())
    assert torch.equal(static.batch(positions(0, 1), 9), static.x[:2])
    assert not torch.equal(static.x, Data.from_pixels(grey, binarize="static", seed=2).x)


@pytest.mark.parametrize("binarize", ("none", *BINARIZED))
def test_events_of_any_shape_keep_it(grey, binarize):
    flat = Data.from_pixels(grey, binarize=binarize)
    images = Data.from_pixels(grey.view(300, 5, 8), binarize=binarize)
    assert images.dim == flat.dim == 40
    assert images.batch(positions(7, 8, 9), 2).shape == (3, 5, 8)
    assert torch.equal(images.batch(positions(7), 2).flatten(), flat.batch(positions(7), 2)[0])


def test_a_batch_leaves_the_global_generators_alone(grey):
    data = Data.from_pixels(grey, binarize="dynamic")
    before = torch.get_rng_state()
    data.batch(torch.arange(10), 1)
    assert torch.equal(before, torch.get_rng_state())
