"""Frey Face: 1,965 frames of a video of Brendan Frey's face, 28 x 20 grey pixels (Roweis).

One file, `<data_dir>/frey_face/frey_rawface.mat`, with one variable `ff`: 560 x 1,965 unsigned
bytes, a column an image, row by row. There are copies of it whose bytes differ and whose pixels
do not, so the content is checked (type, shape, range 8..238) and not the digest.

The paper does not say how it split the images. Here 1,565 are for training and 400 for testing,
chosen at random: neighbouring frames are near copies, and a random split lets the test set see
them. The split is part of the data set: no seed of a caller moves it.

Pixels are divided by 256, as in its authors' code; /255 lowers a Gaussian log-likelihood by
560 log(256/255) = 2.2 nats, so `scale` belongs in every report.
"""

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_vae.datasets import files
from pyro_vae.datasets.arrays import split
from pyro_vae.datasets.base import Data, DataSet
from pyro_vae.datasets.checks import Binarize, check_options

FILE = "frey_rawface.mat"
SHAPE, RANGE = (560, 1965), (8, 238)
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
    pixels = read_mat(files.locate(f"frey_face/{FILE}", data_dir))
    data = Data.from_pixels(
        torch.tensor(np.ascontiguousarray(pixels.T)), binarize=binarize, scale=scale, seed=seed
    )
    return split(data, test=TEST, seed=SPLIT_SEED, name="frey_face", image_shape=(28, 20))


def read_mat(path: Path) -> NDArray[np.uint8]:
    """The variable `ff`, 560 x 1,965 uint8 in 8..238.

    Raises:
        ValueError: not a MATLAB file, no `ff` in it, or another `ff`.
    """
    from scipy.io import loadmat  # takes half a second, and only this file needs it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # scipy only warns of some kinds of damage
            variables = loadmat(path, variable_names=["ff"])
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
    return ff
