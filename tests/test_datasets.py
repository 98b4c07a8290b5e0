"""Data sets by name, their folder and their files, and a refusal of everything else."""

import gzip
import hashlib
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from pyro_vae import datasets
from pyro_vae.datasets import load, names
from pyro_vae.datasets.fetching.files import folder, read
from pyro_vae.datasets.fetching.idx import read_idx
from pyro_vae.datasets.frey_face import read_mat


@pytest.fixture(scope="module")
def data_dir() -> Path:
    """The folder with the real files: PYRO_VAE_DATA, or shared/data beside the checkout."""
    given = os.environ.get("PYRO_VAE_DATA")
    path = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not (path / "mnist").is_dir():
        pytest.skip("no data files: set PYRO_VAE_DATA to the folder that holds mnist/")
    return path


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


@pytest.mark.parametrize("name", names())
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
