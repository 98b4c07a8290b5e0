"""The IDX files of MNIST and of the data sets that took over its format.

A file is: two zero bytes, a type code (8: unsigned byte), the number of dimensions, one 32-bit
big-endian size per dimension, then the values. Nothing marks the end, so a truncated or
mislabelled file reads as other images; here the byte count has to be exact.
"""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.datasets import files
from pyro_vae.datasets.base import Data, DataSet
from pyro_vae.datasets.checks import Binarize, check_options

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
TRAIN = 50_000  # the other 10,000 of the training file are for validation


def read_idx(path: Path, ndim: int, *, sha256: str | None = None) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes with `ndim` dimensions, read-only.

    Raises:
        ValueError: not the file of that digest, not gzip, truncated, another magic number, or a
            byte count that is not the product of the dimensions.
    """
    content = files.read(path, sha256)
    try:
        content = gzip.decompress(content)
    except (EOFError, zlib.error, OSError) as error:  # OSError: BadGzipFile
        raise ValueError(
            f"{path}: got {len(content):,} bytes that do not unpack ({error}), expected a complete "
            "gzip file; fetch it again"
        ) from error
    header = 4 + 4 * ndim
    magic = bytes((0, 0, 8, ndim))
    if content[:4] != magic or len(content) < header:
        raise ValueError(
            f"{path}: got a header {content[:4].hex() or '(empty)'} in {len(content)} bytes, "
            f"expected {magic.hex()}: IDX, unsigned bytes, {ndim} dimensions; is it the right file?"
        )
    shape = struct.unpack(f">{ndim}I", content[4:header])
    found, expected = len(content) - header, math.prod(shape)
    if found != expected:
        raise ValueError(
            f"{path}: got {found:,} values, expected {expected:,} = "
            f"{' x '.join(map(str, shape))} as its header says; fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def load_image_set(
    name: str,
    digests: Sequence[str],
    *,
    binarize: Binarize,
    data_dir: str | os.PathLike[str] | None,
    seed: int,
    scale: float,
) -> DataSet:
    """A data set of 60,000 and 10,000 images of 28 x 28 pixels with labels 0..9.

    Args:
        name: of the data set and of its folder.
        digests: sha256 (hex) of the four files, in the order of `FILES`.
        binarize, data_dir, seed, scale: as in `pyro_vae.datasets.load`.

    Raises:
        ValueError: a file is missing or not the published one.
    """
    check_options(binarize, scale, seed)
    paths = [files.locate(f"{name}/{file}", data_dir) for file in FILES]
    raw = [
        read_idx(path, ndim, sha256=digest)
        for path, ndim, digest in zip(paths, (3, 1, 3, 1), digests, strict=True)
    ]

    def part(images: NDArray[np.uint8], labels: NDArray[np.uint8], index: Tensor) -> Data:
        return Data.from_pixels(
            torch.tensor(images.reshape(len(images), -1)),
            torch.tensor(labels),
            binarize=binarize,
            scale=scale,
            seed=seed,
            index=index,
        )

    images, labels, test_images, test_labels = raw
    # Test rows are numbered on, or test image i would get the noise of training image i.
    rows = torch.arange(len(images) + len(test_images))
    return DataSet(
        name,
        train=part(images[:TRAIN], labels[:TRAIN], rows[:TRAIN]),
        validation=part(images[TRAIN:], labels[TRAIN:], rows[TRAIN : len(images)]),
        test=part(test_images, test_labels, rows[len(images) :]),
        image_shape=(28, 28),
    )
