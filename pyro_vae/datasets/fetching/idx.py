"""The IDX files of MNIST and of the data sets that took over its format.

A file is: two zero bytes, a type code (8: unsigned byte), the number of dimensions, one 32-bit
big-endian size per dimension, then the values. Nothing marks the end, so a truncated or
mislabelled file reads as other images; here the byte count has to be exact. A few kilobytes of
gzip can unpack to gigabytes, so no more is unpacked than the header declares.
"""

import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.datasets.data.base import Data, DataSet
from pyro_vae.datasets.data.checks import Binarize, check_options
from pyro_vae.datasets.fetching import files
from pyro_vae.datasets.fetching.files import Published

TRAIN = 50_000  # the other 10,000 of the training file are for validation
LIMIT = 1 << 26  # values of one file; the largest file here has 47 million


def published(
    name: str, mirrors: Sequence[str], known: Mapping[str, tuple[int, str]]
) -> tuple[Published, ...]:
    """The files of an image set: training images and labels, test images and labels.

    Args:
        name: of the data set and of its folder.
        mirrors: https addresses that the file names are appended to.
        known: size in bytes and sha256 (hex) of each file, in this order.
    """
    return tuple(
        Published(f"{name}/{file}", size, sha256, tuple(mirror + file for mirror in mirrors))
        for file, (size, sha256) in known.items()
    )


def read_idx(path: Path, ndim: int, *, sha256: str | None = None) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes with `ndim` dimensions, read-only.

    Raises:
        ValueError: not the file of that digest, not gzip, truncated, another magic number, a
            byte count that is not the product of the dimensions, or one above `LIMIT`.
    """
    packed = files.read(path, sha256)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            shape = _shape(file.read(4 + 4 * ndim), ndim, path)
            expected = math.prod(shape)
            if expected > LIMIT:
                raise ValueError(
                    f"{path}: got a header of {' x '.join(map(str, shape))} values, expected at "
                    f"most {LIMIT:,}; fetch it again"
                )
            # One byte more shows whether there are more, and at the end the checksum is compared.
            values = file.read(expected + 1)
    except (EOFError, zlib.error, OSError) as error:  # OSError: BadGzipFile
        raise ValueError(
            f"{path}: got {len(packed):,} bytes that do not unpack ({error}), expected a complete "
            "gzip file; fetch it again"
        ) from error
    if len(values) != expected:
        found = "more" if len(values) > expected else f"{len(values):,} values"
        raise ValueError(
            f"{path}: got {found}, expected {expected:,} = {' x '.join(map(str, shape))} as its "
            "header says; fetch it again"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def _shape(header: bytes, ndim: int, path: Path) -> tuple[int, ...]:
    magic = bytes((0, 0, 8, ndim))
    if header[:4] != magic or len(header) < 4 + 4 * ndim:
        raise ValueError(
            f"{path}: got a header {header.hex() or '(empty)'} of {len(header)} bytes, expected "
            f"{magic.hex()}: IDX, unsigned bytes, {ndim} dimensions; is it the right file?"
        )
    return struct.unpack(f">{ndim}I", header[4:])


def load_image_set(
    name: str,
    files_of: Sequence[Published],
    *,
    binarize: Binarize,
    data_dir: str | os.PathLike[str] | None,
    seed: int,
    scale: float,
) -> DataSet:
    """A data set of 60,000 and 10,000 images of 28 x 28 pixels with labels 0..9.

    Args:
        name: of the data set and of its folder.
        files_of: it, as `published` gives them.
        binarize, data_dir, seed, scale: as in `pyro_vae.datasets.load`.

    Raises:
        ValueError: a file is missing or not the published one.
    """
    check_options(binarize, scale, seed)
    paths = [files.locate(file, data_dir) for file in files_of]
    raw = [
        read_idx(path, ndim, sha256=file.sha256)
        for file, path, ndim in zip(files_of, paths, (3, 1, 3, 1), strict=True)
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
