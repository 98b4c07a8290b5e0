"""Data is what it says: right pixels, right binarization, and a refusal of everything else."""

import dataclasses
import gzip
import hashlib
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.io import savemat
from scipy.stats import kstest
from torch import Tensor

from pyro_vae import datasets
from pyro_vae.datasets import Data, DataSet, from_array, from_file, load, names, split
from pyro_vae.datasets.data import noise as noise_module
from pyro_vae.datasets.fetching.files import folder, read
from pyro_vae.datasets.fetching.idx import read_idx
from pyro_vae.datasets.frey_face import read_mat

BINARIZED = ("threshold", "static", "dynamic")


@pytest.fixture(scope="module")
def data_dir() -> Path:
    """The folder with the real files: PYRO_VAE_DATA, or shared/data beside the checkout."""
    given = os.environ.get("PYRO_VAE_DATA")
    path = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not (path / "mnist").is_dir():
        pytest.skip("no data files: set PYRO_VAE_DATA to the folder that holds mnist/")
    return path


@pytest.fixture
def grey() -> Tensor:
    return torch.rand(300, 40, generator=torch.Generator().manual_seed(0))


def positions(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


# The noise of binarization


def test_noise_is_uniform_over_pixels_rows_epochs_and_seeds():
    samples = {
        "pixels": noise_module.uniforms(positions(5), 20_000, seed=0, epoch=1)[0],
        "rows": noise_module.uniforms(torch.arange(20_000), 1, seed=0, epoch=1)[:, 0],
        "epochs": torch.cat([draw(seed=0, epoch=e) for e in range(5_000)]),
        "seeds": torch.cat([draw(seed=s, epoch=1) for s in range(5_000)]),
    }
    for name, u in samples.items():
        assert u.min() >= 0 and u.max() < 1
        assert kstest(u.double().numpy(), "uniform").pvalue > 1e-3, name


def draw(*, seed: int, epoch: int) -> Tensor:
    return noise_module.uniforms(positions(3), 1, seed=seed, epoch=epoch)[0]


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


# Data


def test_slices_take_labels_along(grey):
    data = Data(grey, torch.arange(300) % 7)
    for key in (slice(1, 5, 2), positions(1, 3), [1, 3], np.array([1, 3], np.uint8)):
        part = data[key]
        assert len(part) == 2
        assert torch.equal(part.x, grey[[1, 3]])
        assert part.labels.tolist() == [1, 3]
    mask = torch.arange(300) == 299
    assert data[mask].labels.tolist() == data[mask.numpy()].labels.tolist() == [299 % 7]
    assert data[[-1]].index.tolist() == [299]


def test_a_read_only_index_is_no_cause_for_a_warning(grey):
    index = np.array([4, 2])
    index.flags.writeable = False
    assert Data(grey)[index].index.tolist() == [4, 2]


def test_data_cannot_be_changed(grey):
    data = Data(grey)
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.x = grey + 1


def test_the_digest_names_values_shape_binarization_and_draws(grey):
    ones = (grey > 0.5).float()
    different = [
        Data(grey),
        Data(grey + 1),
        Data(grey.view(300, 8, 5)),
        Data(grey.view(150, 80)),
        Data(ones),
        Data(ones, binarize="threshold"),
        Data(ones, binarize="static"),
        Data(grey, binarize="dynamic"),
        Data(grey, binarize="dynamic", seed=1),
        Data(grey, binarize="dynamic", index=torch.arange(1, 301)),
        Data(grey)[:299],
    ]
    digests = [data.digest for data in different]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)
    assert Data(grey).digest == Data(grey.t().contiguous().t(), seed=5).digest
    assert Data(grey, binarize="dynamic")[:].digest == digests[7]
    assert Data(grey, digest="known").digest == "known"


def test_repr_is_one_readable_line(grey):
    data = Data.from_pixels(grey * 255, torch.arange(300), scale=255)
    assert repr(data) == (
        f"Data(300 x 40, binarize='threshold', scale=255, labels, {data.digest[:12]})"
    )


def test_moving_data_keeps_digest_and_draws(grey):
    data = Data.from_pixels(grey, torch.arange(300), binarize="dynamic")[10:]
    moved = data.to("cpu")
    assert moved.digest == data.digest
    assert torch.equal(moved.rows(), data.rows())


def test_pixels_passed_in_are_never_changed(grey):
    before = grey.clone()
    for binarize in ("none", *BINARIZED):
        Data.from_pixels(grey, binarize=binarize, scale=2.0)
    assert torch.equal(grey, before)


def test_no_gradient_comes_in_with_the_data(grey):
    assert not Data(grey.requires_grad_()).x.requires_grad


@pytest.mark.parametrize(
    ("error", "message", "build"),
    [
        (TypeError, "float64.*from_array", lambda x: Data(x.double())),
        (TypeError, "ndarray.*from_array", lambda x: Data(x.numpy())),
        (ValueError, r"reshape\(-1, 1\)", lambda x: Data(x[:, 0])),
        (ValueError, "empty", lambda x: Data(x[:0])),
        (ValueError, "empty", lambda x: Data(x)[:0]),
        (ValueError, "'dinamic'.*'dynamic'", lambda x: Data(x, binarize="dinamic")),
        (ValueError, "labels.*299.*300", lambda x: Data(x, torch.arange(299))),
        (ValueError, r"labels.*\(300, 1\)", lambda x: Data(x, torch.zeros(300, 1).long())),
        (TypeError, "labels.*float32", lambda x: Data(x, torch.zeros(300))),
        (TypeError, "labels.*list", lambda x: Data(x, [0] * 300)),
        (ValueError, "index.*299", lambda x: Data(x, index=torch.arange(299))),
        (ValueError, "scale.*-1", lambda x: Data(x, scale=-1.0)),
        (ValueError, "seed.*-1", lambda x: Data(x, seed=-1)),
        (ValueError, "from_pixels", lambda x: Data(x, binarize="threshold")),
        (ValueError, "from_pixels", lambda x: Data(x, binarize="static")),
        (TypeError, "complex64", lambda x: Data.from_pixels(x * 1j)),
        (TypeError, "dense", lambda x: Data.from_pixels(x.to_sparse())),
        (TypeError, r"data\[3:4\]", lambda x: Data(x)[3]),
        (TypeError, "data.x", lambda x: Data(x)[:, 0]),
        (TypeError, "float32", lambda x: Data(x)[torch.rand(300)]),
        (ValueError, "mask of 5", lambda x: Data(x)[[True] * 5]),
        (TypeError, "int64", lambda x: Data(x).batch([0, 1], 1)),
        (ValueError, "epoch.*-1", lambda x: Data(x).batch(positions(0), -1)),
        (IndexError, "out of", lambda x: Data(x).batch(positions(300), 1)),
    ],
)
def test_what_is_no_data_is_refused(grey, error, message, build):
    with pytest.raises(error, match=message):
        build(grey)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_named_with_its_place(grey, bad):
    grey[7, 3] = grey[9, 1] = bad
    with pytest.raises(ValueError, match=rf"{bad} at row 7, column 3 .*drop"):
        Data(grey)


@pytest.mark.parametrize("binarize", BINARIZED)
def test_values_outside_the_unit_interval_cannot_be_binarized(grey, binarize):
    for build in (Data.from_pixels, Data, from_array):
        with pytest.raises(ValueError, match=r"got max 255.0.*divide by 255 or pass scale=255"):
            build((grey * 400).clamp(max=255), binarize=binarize)
        with pytest.raises(ValueError, match=r"got max 16.0.*scale=16"):
            build((grey * 20).clamp(max=16), binarize=binarize)
        with pytest.raises(ValueError, match=r"got min -0.5"):
            build((grey - 2).clamp(min=-0.5), binarize=binarize)
    assert len(Data(grey * 400 - 7)) == 300  # real values are fine where nothing is binarized


# Arrays


def test_arrays_tensors_and_frames_become_the_same_data(grey):
    labels = np.arange(300)
    array = grey.numpy()
    frame = pd.DataFrame(array, columns=[f"c{i}" for i in range(40)])
    expected = Data(grey, torch.arange(300))
    for x, y in [
        (grey, torch.arange(300)),
        (grey.double(), labels.astype(np.uint16)),
        (array, labels),
        (array.astype(np.float64), pd.Series(labels)),
        (array.astype(">f4"), labels),
        (array[::-1][::-1], labels[::-1][::-1]),
        (frame, labels),
    ]:
        data = from_array(x, y)
        assert data.x.dtype == torch.float32
        assert data.labels.dtype == torch.int64
        assert data.digest == expected.digest
        assert torch.equal(data.labels, expected.labels)


def test_bytes_are_scaled_and_binarized_on_request():
    raw = np.array([[0, 100, 200, 255]], np.uint8)
    assert from_array(raw).x.tolist() == [[0, 100, 200, 255]]
    assert from_array(raw, scale=255.0).x[0, 3] == 1
    data = from_array(raw, scale=256.0, binarize="threshold")
    assert data.x.tolist() == [[0, 0, 1, 1]]
    assert data.scale == 256.0


def test_data_does_not_follow_later_changes_of_the_array():
    raw = np.zeros((2, 2), np.float32)
    data = from_array(raw)
    raw[:] = 1
    assert data.x.sum() == 0


@pytest.mark.parametrize(
    ("error", "message", "x"),
    [
        (TypeError, "list.*np.asarray", [[1.0, 2.0]]),
        (TypeError, "dtype <U1", np.array([["a", "b"]])),
        (TypeError, "dtype object", np.array([[1, None]])),
        (TypeError, "complex128", np.array([[1j]])),
        (TypeError, "masked", np.ma.masked_invalid([[1.0, np.nan]])),
        (TypeError, "column 'name'", pd.DataFrame({"a": [1.0], "name": ["x"]})),
        (ValueError, "nan at row 1, column 0", pd.DataFrame({"a": [1.0, None], "b": [1, 2]})),
        (
            ValueError,
            "nan at row 0, column 1",
            pd.DataFrame({"a": [1], "b": [pd.NA]}, dtype="Int8"),
        ),
        (ValueError, "inf at row 0, column 1.*float32", np.array([[0.0, 1e300]])),
        (ValueError, "reshape", np.arange(3.0)),
        (ValueError, "empty", np.zeros((0, 3))),
        (ValueError, "empty", np.zeros((3, 0))),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(error, message, x):
    with pytest.raises(error, match=message):
        from_array(x)


def test_labels_that_are_no_integers_are_refused(grey):
    with pytest.raises(TypeError, match=r"labels.*float64"):
        from_array(grey, np.zeros(300))
    with pytest.raises(TypeError, match=r"labels.*dtype"):
        from_array(grey, pd.Series(["a"] * 300))


# Files


def test_npy_npz_and_csv_hold_the_same_data(grey, tmp_path):
    labels = np.arange(300)
    np.save(tmp_path / "a.npy", grey.numpy())
    np.savez(tmp_path / "a.npz", x=grey.numpy(), y=labels)
    np.savez_compressed(tmp_path / "one.npz", pixels=grey.numpy(), y=labels)
    frame = pd.DataFrame(grey.numpy(), columns=[f"c{i}" for i in range(40)])
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "bare.csv", index=False, header=False)
    frame.assign(y=labels).to_csv(tmp_path / "y.csv", index=False)

    digest = Data(grey).digest
    assert from_file(tmp_path / "a.npy").digest == digest
    assert from_file(tmp_path / "a.npz").digest == digest
    assert from_file(tmp_path / "one.npz", key="pixels").digest == digest
    assert from_file(str(tmp_path / "a.csv")).digest == digest
    assert from_file(tmp_path / "bare.csv").digest == digest
    for name in ("a.npz", "one.npz", "y.csv"):
        data = from_file(tmp_path / name, labels_key="y")
        assert data.digest == digest
        assert data.labels.tolist() == labels.tolist()


def test_files_are_scaled_and_binarized_on_request(tmp_path):
    (tmp_path / "a.csv").write_text("0,16\n7,8\n")
    data = from_file(tmp_path / "a.csv", binarize="threshold", scale=16)
    assert data.x.tolist() == [[0, 1], [0, 1]]


def test_bad_files_are_refused_by_name(tmp_path):
    def refused(name: str, message: str, error: type[Exception] = ValueError, **options) -> None:
        with pytest.raises(error, match=message) as caught:
            from_file(tmp_path / name, **options)
        assert str(tmp_path / name) in str(caught.value)

    refused("none.npy", "no such file")
    refused("none.mat", r"'.mat'.*\.npy, \.npz, \.csv")
    np.save(tmp_path / "objects.npy", np.array([[1, None]]), allow_pickle=True)
    refused("objects.npy", "objects", TypeError)
    np.savez(tmp_path / "objects.npz", x=np.array([[1, None]]))
    refused("objects.npz", "objects", TypeError)
    (tmp_path / "text.npy").write_bytes(b"cos\nsystem\n(S'echo'\ntR.")
    refused("text.npy", "other bytes")
    np.save(tmp_path / "whole.npy", np.zeros((9, 9)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-8])
    refused("cut.npy", "damaged")
    (tmp_path / "cut.npz").write_bytes(b"PK\3\4 and no more")
    refused("cut.npz", "damaged")
    np.save(tmp_path / "line.npy", np.zeros(9))
    refused("line.npy", "reshape")
    refused("whole.npy", "key", key="x")
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    refused("two.npz", "no key.*'a', 'b'")
    refused("two.npz", "no array 'c'.*'a', 'b'", key="c")
    refused("two.npz", "no array 'c'", key="a", labels_key="c")
    for name, text, message in [
        ("empty.csv", "", "No columns"),
        ("header.csv", "a,b\n", "empty|dtype"),
        ("index.csv", ",a\n0,1\n", "index=False"),
        ("long.csv", "a,b\n1,2,3\n", "longer than the header"),
        ("ragged.csv", "1,2\n1,2,3\n", "Expected 2 fields"),
        ("hole.csv", "a,b\n1,2\n3,\n", "nan at row 1, column 1"),
    ]:
        (tmp_path / name).write_text(text)
        refused(name, message, (ValueError, TypeError))
    (tmp_path / "words.csv").write_text("a,b\n1,2\n3,red\n")
    refused("words.csv", "column 'b'", TypeError)
    refused("words.csv", "no column 'c'.*'a', 'b'", labels_key="c")
    (tmp_path / "latin.csv").write_bytes(b"a,\xff\n1,2\n")
    refused("latin.csv", "utf-8")


# Splits


def test_a_split_has_every_row_once_in_an_order_of_its_seed(grey):
    data = Data(grey, torch.arange(300))
    parts = split(data, test=0.1, validation=60, seed=0)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [210, 60, 30]
    labels = torch.cat([part.labels for part in (parts.train, parts.validation, parts.test)])
    assert torch.equal(labels.sort().values, torch.arange(300))
    assert torch.equal(parts.test.index, parts.test.labels)
    assert torch.equal(split(data, test=0.1).test.x, parts.test.x)
    assert not torch.equal(split(data, test=0.1, seed=1).test.x, parts.test.x)
    assert split(data).validation is None


def test_a_split_of_dynamic_data_keeps_the_draws_of_its_rows(grey):
    data = Data.from_pixels(grey, binarize="dynamic")
    test = split(data).test
    assert torch.equal(test.rows(), data.rows()[test.index])


def test_an_image_event_gives_the_image_shape(grey):
    assert split(Data(grey.view(300, 5, 8))).image_shape == (5, 8)
    assert split(Data(grey), image_shape=(8, 5)).image_shape == (8, 5)
    with pytest.raises(ValueError, match="= 40"):
        split(Data(grey), image_shape=(6, 6))


@pytest.mark.parametrize(
    "shares", [dict(test=0), dict(test=1.5), dict(test=-1), dict(test=300), dict(test=0.001)]
)
def test_a_split_without_rows_for_a_part_is_refused(grey, shares):
    with pytest.raises(ValueError, match="got"):
        split(Data(grey), **shares)
    with pytest.raises(TypeError, match="from_array"):
        split(grey)


def test_parts_that_differ_make_no_data_set(grey):
    one = Data(grey)
    for other in (Data(grey[:, :3]), Data((grey > 0.5).float(), binarize="static")):
        with pytest.raises(ValueError, match="the same in all parts"):
            DataSet("mine", train=one, validation=None, test=other)


# Data sets


def test_digits_need_no_file_and_have_a_fixed_split():
    digits = load("digits")
    parts = (digits.train, digits.validation, digits.test)
    assert [len(part) for part in parts] == [1297, 200, 300]
    assert digits.dim == 64 and digits.image_shape == (8, 8)
    assert repr(digits) == (
        "DataSet(digits: train 1,297, validation 200, test 300; dim 64 (8 x 8 pixels); "
        "binarize='threshold')"
    )
    rows = torch.cat([part.index for part in parts])
    assert torch.equal(rows.sort().values, torch.arange(1797))
    assert set(digits.train.x.unique().tolist()) == {0.0, 1.0}
    for part in parts:  # shuffled: all ten classes in the first hundred
        assert part.labels[:100].unique().tolist() == list(range(10))
    assert torch.equal(load("digits", seed=9).test.index, digits.test.index)
    assert digits.test.digest == load("digits").test.digest


def test_digits_are_the_pixels_of_scikit_learn():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    test = load("digits", binarize="none").test
    assert np.array_equal(test.x.numpy() * 16, pixels[test.index])
    assert np.array_equal(test.labels.numpy(), labels[test.index])
    assert np.array_equal(load("digits").test.x.numpy(), pixels[test.index] >= 8)


def test_mnist_is_the_published_one(data_dir):
    mnist = load("mnist", data_dir=data_dir, binarize="none")
    train, validation, test = mnist.train, mnist.validation, mnist.test
    assert [len(part) for part in (train, validation, test)] == [50_000, 10_000, 10_000]
    mean = torch.cat([train.x, validation.x]).double().mean()
    assert mean.item() == pytest.approx(0.1307, abs=5e-5)
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert mnist.dim == 784 and mnist.image_shape == (28, 28) and train.scale == 255.0
    assert torch.cat([part.index for part in (train, validation, test)]).tolist() == list(
        range(70_000)
    )
    # Upright: the first image, a five, has its bar at the top right and its bow below.
    five = train.x[0].view(28, 28)
    assert five[5, 20:25].mean() > 0.5 > five[22, 20:25].mean()


def test_mnist_is_thresholded_unless_asked_otherwise(data_dir):
    mnist = load("mnist", data_dir=data_dir)
    assert mnist.binarize == "threshold"
    assert bool(((mnist.test.x == 0) | (mnist.test.x == 1)).all())


def test_fashion_mnist_is_the_published_one(data_dir):
    fashion = load("fashion_mnist", data_dir=data_dir, binarize="none")
    assert fashion.train.labels[:5].tolist() == [9, 0, 0, 3, 0]
    mean = torch.cat([fashion.train.x, fashion.validation.x]).double().mean()
    assert mean.item() == pytest.approx(0.2860, abs=5e-5)
    assert len(fashion.test) == 10_000


def test_frey_face_is_the_published_one(data_dir):
    frey = load("frey_face", data_dir=data_dir)
    assert (len(frey.train), frey.validation, len(frey.test)) == (1565, None, 400)
    assert frey.binarize == "none" and frey.train.scale == 256.0 and frey.image_shape == (28, 20)
    raw = torch.cat([frey.train.x, frey.test.x]) * 256
    assert (raw.min(), raw.max()) == (8, 238)
    assert raw.mean().item() == pytest.approx(154.46, abs=0.005)
    rows = torch.cat([frey.train.index, frey.test.index])
    assert torch.equal(rows.sort().values, torch.arange(1965))
    by_255 = load("frey_face", data_dir=data_dir, scale=255.0)
    torch.testing.assert_close(by_255.test.x * 255, frey.test.x * 256)


def test_a_frey_face_is_upright_and_smooth(data_dir):
    """Read row by row: neighbours below are as alike as neighbours beside."""
    faces = load("frey_face", data_dir=data_dir).train.x.view(-1, 28, 20)
    below = (faces[:, 1:] - faces[:, :-1]).abs().mean()
    beside = (faces[:, :, 1:] - faces[:, :, :-1]).abs().mean()
    wrong = faces.view(-1, 20, 28)
    assert max(below, beside) < 0.09 < (wrong[:, 1:] - wrong[:, :-1]).abs().mean()
    mean = faces.mean(0)
    assert mean[5:9].mean() < mean[-9:-5].mean()  # the eyes, darkest of all, are in the upper half


def test_the_names_are_those_that_load(tmp_path):
    assert set(names()) >= {"digits", "fashion_mnist", "frey_face", "mnist"}
    assert not set(names()) & {"base", "arrays", "idx", "files"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnsit", "did you mean 'mnist'"),
        ("Fashion-MNIST", "did you mean 'fashion_mnist'"),
        ("freyface", "did you mean 'frey_face'"),
        ("cifar10", "one of digits, .*mnist.*from_array"),
        ("base", "expected one of"),
        ("../digits", "expected one of"),
        (None, "expected one of"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        load(name)


@pytest.mark.parametrize("name", ["digits", "mnist", "frey_face"])
def test_options_are_checked_before_any_file(name):
    for options in (dict(binarize="grey"), dict(scale=0.0), dict(seed=-3), dict(binarize=None)):
        with pytest.raises(ValueError, match=next(iter(options))):
            load(name, **options)


def test_a_missing_file_is_named_with_the_place_to_put_it(tmp_path, monkeypatch):
    """Both ways: the command that downloads it, and what to put where without one."""
    monkeypatch.delenv("PYRO_VAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = "mnist/train-images-idx3-ubyte.gz"
    by_hand = f"fetch https://.*/train-images-idx3-ubyte.gz .sha256 440fcabf.* put it at {tmp_path}"
    with pytest.raises(
        ValueError,
        match=rf"{tmp_path}/cache/pyro_vae/{expected}.*no such file; run `pyro-vae data get mnist`,"
        rf" or {by_hand}/cache/pyro_vae/{expected}; .* data_dir= \(--data_dir\) or PYRO_VAE_DATA",
    ):
        load("mnist")
    with pytest.raises(
        ValueError,
        match=f"{tmp_path}/{expected}.*`pyro-vae data get mnist --data_dir {tmp_path}`, "
        f"or {by_hand}/{expected}",
    ):
        load("mnist", data_dir=tmp_path)
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    with pytest.raises(
        ValueError, match=rf"{tmp_path}/frey_face/frey_rawface.mat.*`pyro-vae data get frey_face`"
    ):
        load("frey_face")
    assert not list(tmp_path.iterdir()), "nothing is made, and nothing downloaded"


def test_the_data_directory_is_the_argument_the_variable_or_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path / "variable"))
    assert folder(tmp_path / "argument") == tmp_path / "argument"
    assert folder("~/data") == tmp_path / "home/data"
    assert folder() == tmp_path / "variable"
    monkeypatch.setenv("PYRO_VAE_DATA", "")
    assert folder() == tmp_path / "cache/pyro_vae"
    for unset in ("", "relative/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert folder() == tmp_path / "home/.cache/pyro_vae"


def test_load_looks_where_get_puts(data_dir, tmp_path, monkeypatch):
    monkeypatch.delenv("PYRO_VAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "pyro_vae").symlink_to(data_dir)
    assert len(load("frey_face").train) == 1565


def test_a_changed_file_is_refused(tmp_path):
    (tmp_path / "mnist").mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / "mnist" / f"{name}-ubyte.gz").write_bytes(b"another file")
    with pytest.raises(ValueError, match=r"train-images.*sha256.*12 bytes.*440fcabf"):
        load("mnist", data_dir=tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path)


# Formats


def idx_bytes(shape: tuple[int, ...], values: bytes, kind: int = 8) -> bytes:
    return bytes((0, 0, kind, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + values


def test_idx_values_come_in_rows(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(idx_bytes((2, 1, 3), bytes(range(6)))))
    assert read_idx(path, 3).tolist() == [[[0, 1, 2]], [[3, 4, 5]]]


GOOD = idx_bytes((2, 1, 3), bytes(6))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "do not unpack|empty"),
        (b"plain text", "do not unpack"),
        (gzip.compress(GOOD)[:-9], "do not unpack"),
        (gzip.compress(GOOD)[:-8] + bytes(8), "do not unpack"),
        (gzip.compress(b""), "empty"),
        (gzip.compress(idx_bytes((6,), bytes(6))), "00000801.*expected 00000803"),
        (gzip.compress(idx_bytes((2, 1, 3), bytes(6), kind=13)), "00000d03"),
        (gzip.compress(idx_bytes((2, 1, 3), b"")[:10]), "10 bytes"),
        (gzip.compress(idx_bytes((2, 1, 3), bytes(5))), "got 5 values, expected 6 = 2 x 1 x 3"),
        (gzip.compress(idx_bytes((2, 1, 3), bytes(7))), "got more, expected 6"),
        (gzip.compress(idx_bytes((1 << 16, 1 << 16, 1), b"")), "65536 x 65536 x 1.*at most"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # packed bytes hold the time
)
def test_a_malformed_idx_file_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "bad-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


def peak_of_refusal(read, path: Path, message: str) -> int:
    """Bytes of Python memory that it takes to refuse a file."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            read(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_idx_file_is_not_unpacked_beyond_its_declared_size(tmp_path):
    """64 MB of zeros in 64 kB, after a header that declares six."""
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(GOOD + bytes(1 << 26)))
    assert peak_of_refusal(lambda path: read_idx(path, 3), path, "got more") < 1 << 20


def test_a_mat_file_is_not_unpacked_beyond_its_limit(tmp_path):
    """64 MB of zeros in 64 kB, as the matrix `ff`."""
    path = tmp_path / "frey_rawface.mat"
    savemat(path, {"ff": np.zeros((560, 1 << 17), np.uint8)}, do_compression=True)
    assert path.stat().st_size < 1 << 17
    assert peak_of_refusal(read_mat, path, "unpacks to more than") < 1 << 24


def test_a_frey_face_with_one_other_pixel_is_refused(data_dir, tmp_path):
    """Shape, type and range would not tell; and another packing of the same pixels is fine."""
    pixels = read_mat(data_dir / "frey_face/frey_rawface.mat").copy()
    path = tmp_path / "frey_rawface.mat"
    for options in ({"do_compression": True}, {"do_compression": False}, {"format": "4"}):
        savemat(path, {"ff": pixels}, **options)
        assert np.array_equal(read_mat(path), pixels)
    pixels[100, 100] += 1
    savemat(path, {"ff": pixels})
    with pytest.raises(ValueError, match="pixels of sha256"):
        read_mat(path)


def test_a_mat_file_that_is_not_frey_face_is_refused(tmp_path):
    good = np.full((560, 1965), 100, np.uint8)
    good[0, 0], good[0, 1] = 8, 238
    path = tmp_path / "frey_rawface.mat"
    savemat(path, {"ff": good})
    digest = hashlib.sha256(good.T.tobytes()).hexdigest()
    assert np.array_equal(read_mat(path, sha256=digest), good)

    for variables, message in [
        ({"faces": good}, "no variable `ff`"),
        ({"ff": good.astype(float)}, "float64"),
        ({"ff": good.T.copy()}, r"\(1965, 560\)"),
        ({"ff": good // 2}, "values 4..119"),
    ]:
        savemat(path, variables)
        with pytest.raises(ValueError, match=message) as caught:
            read_mat(path)
        assert str(path) in str(caught.value)

    whole = path.read_bytes()
    for content in (b"", b"no mat file", whole[:1000], whole[:200] + whole[300:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"frey_rawface\.mat"):
            read_mat(path)


def test_importing_the_package_imports_no_reader():
    code = (
        "import sys, pyro_vae.datasets as d; d.names(); "
        "print([m for m in ('sklearn', 'scipy', 'pandas') if m in sys.modules])"
    )
    root = Path(datasets.__file__).parents[2]
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
