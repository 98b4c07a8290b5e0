"""Frey Face: 1,965 frames of a video of Brendan Frey's face, 28 x 20 grey pixels (Roweis).

One file, `<data_dir>/frey_face/frey_rawface.mat`, with one variable `ff`: 560 x 1,965 unsigned
bytes, a column an image, row by row. There are copies of it whose bytes differ and whose pixels
do not, so the pixels are checked: type, shape, range 8..238, and the sha256 over one image after
the other, each row by row, a byte a pixel (1,965 x 28 x 20, C order).

The paper does not say how it split the images. Here 1,565 are for training and 400 for testing,
chosen at random: neighbouring frames are near copies, and a random split lets the test set see
them. The split is part of the data set: no seed of a caller moves it.

Pixels are divided by 256, as in its authors' code; /255 lowers a Gaussian log-likelihood by
560 log(256/255) = 2.2 nats, so `scale` belongs in every report.
"""

import hashlib
import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_vae.datasets.data.arrays import split
from pyro_vae.datasets.data.base import Data, DataSet
from pyro_vae.datasets.data.checks import Binarize, check_options
from pyro_vae.datasets.fetching import files
from pyro_vae.datasets.fetching.files import Published

FILE = "frey_rawface.mat"
SHAPE, RANGE = (560, 1965), (8, 238)
PIXELS = "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78"
LIMIT = 1 << 22  # bytes, of the file and of what it unpacks to; the pixels are 1.1 million
SPLIT_SEED = 0
TEST = 400


def load(
    *,
    binarize: Binarize = "none",
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    scale: float = 256.0,
) -> DataSet:
    """Read Frey Face: 1,565 / 400 images, no validation set, dim 560, no labels.

    Args and errors: as in `pyro_vae.datasets.load`; `binarize` is "none" and `scale` 256 unless
    asked otherwise.
    """
    check_options(binarize, scale, seed)
    pixels = read_mat(files.locate(PUBLISHED[0], data_dir))
    data = Data.from_pixels(
        torch.tensor(np.ascontiguousarray(pixels.T)), binarize=binarize, scale=scale, seed=seed
    )
    return split(data, test=TEST, seed=SPLIT_SEED, name="frey_face", image_shape=(28, 20))


def read_mat(path: Path, *, sha256: str = PIXELS) -> NDArray[np.uint8]:
    """The variable `ff`, 560 x 1,965 uint8 in 8..238.

    Args:
        path: a MATLAB file, v4 to v7.
        sha256: hex, of the pixels in the order above.

    Raises:
        ValueError: not a MATLAB file, no `ff` in it, or another `ff`.
    """
    from scipy.io import loadmat  # takes half a second, and only this file needs it

    content = files.read(path)
    try:
        _refuse_bombs(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # scipy only warns of some kinds of damage
            variables = loadmat(io.BytesIO(content), variable_names=["ff"])
    except Exception as error:  # a damaged file raises any of a dozen types in there
        raise ValueError(
            f"{path}: got {type(error).__name__} ({error}), expected a MATLAB file (v4 to v7); "
            "fetch it again"
        ) from error
    ff = variables.get("ff")
    expected = f"expected `ff` of uint8 {SHAPE} with values {RANGE[0]}..{RANGE[1]}"
    if not isinstance(ff, np.ndarray):
        raise ValueError(f"{path}: got no variable `ff`, {expected}; is it the Frey Face file?")
    if ff.dtype != np.uint8 or ff.shape != SHAPE:
        raise ValueError(f"{path}: got `ff` of {ff.dtype} {ff.shape}, {expected}")
    if (ff.min(), ff.max()) != RANGE:
        raise ValueError(f"{path}: got values {ff.min()}..{ff.max()}, {expected}; fetch it again")
    found = hashlib.sha256(ff.tobytes(order="F")).hexdigest()  # column by column
    if found != sha256:
        raise ValueError(f"{path}: got pixels of sha256 {found}, expected {sha256}; fetch it again")
    return ff


def _refuse_bombs(content: bytes) -> None:
    """Raise where the compressed elements of a v5 or v7 file unpack to more than `LIMIT`."""
    if not content.startswith(b"MATLAB 5"):
        return
    order = "<" if content[126:128] == b"IM" else ">"
    position = 128  # after the header come elements: type, size, content
    while position + 8 <= len(content):
        kind, size = struct.unpack(order + "II", content[position : position + 8])
        position += 8
        if kind == 15:  # miCOMPRESSED
            unpacking = zlib.decompressobj()
            unpacking.decompress(content[position : position + size], LIMIT)
            if unpacking.unconsumed_tail:
                raise ValueError(f"an element that unpacks to more than {LIMIT:,} bytes")
        position += size


PUBLISHED = (
    Published(
        f"frey_face/{FILE}",
        LIMIT,
        None,
        ("https://cs.nyu.edu/~roweis/data/frey_rawface.mat",),
        content=read_mat,
    ),
)
