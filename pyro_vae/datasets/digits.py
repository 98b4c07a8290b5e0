"""Digits: 1,797 handwritten digits of 8 x 8 pixels, values 0..16, that come with scikit-learn.

The test set of the UCI "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998).
It needs no download and trains in seconds: the data set of the examples and of most tests.
It has no split of its own; the one here, 1,297 / 200 / 300 shuffled rows, is part of the data
set: no seed of a caller moves it.
"""

import os

import torch

from pyro_vae.datasets.data.arrays import split
from pyro_vae.datasets.data.base import Data, DataSet
from pyro_vae.datasets.data.checks import Binarize, check_options

SPLIT_SEED = 0
VALIDATION, TEST = 200, 300


def load(
    *,
    binarize: Binarize = "threshold",
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    scale: float = 16.0,
) -> DataSet:
    """Read the digits: 1,297 / 200 / 300 images, dim 64, labels 0..9.

    Args and errors: as in `pyro_vae.datasets.load`; `data_dir` is not needed.
    """
    from sklearn.datasets import load_digits  # takes a second, and only this file needs it

    check_options(binarize, scale, seed)
    pixels, labels = load_digits(return_X_y=True)
    data = Data.from_pixels(
        torch.tensor(pixels), torch.tensor(labels), binarize=binarize, scale=scale, seed=seed
    )
    return split(
        data,
        test=TEST,
        validation=VALIDATION,
        seed=SPLIT_SEED,
        name="digits",
        image_shape=(8, 8),
    )
