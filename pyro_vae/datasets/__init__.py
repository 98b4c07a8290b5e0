"""Data sets: `load` one by name, or bring your own array or file.

A file in this folder that defines `load(*, binarize, data_dir, seed, scale) -> DataSet`, with its
own defaults, *is* the data set of that name. Nothing is kept between calls, and the libraries
that read the files are imported when they are needed. `load` never downloads: `get` does.
"""

import os
from typing import Literal

from pyro_vae.datasets.catalog import Entry, Fetched, Verified, available, find, get, names, verify
from pyro_vae.datasets.data.arrays import from_array, split
from pyro_vae.datasets.data.base import Data, DataSet
from pyro_vae.datasets.data.checks import Binarize
from pyro_vae.datasets.data.readers import from_file
from pyro_vae.datasets.data.stored import StoredData
from pyro_vae.datasets.fetching.download import Transfer
from pyro_vae.datasets.synthetic import synthetic

__all__ = [
    "Binarize",
    "Data",
    "DataSet",
    "Entry",
    "Fetched",
    "StoredData",
    "Transfer",
    "Verified",
    "available",
    "from_array",
    "from_file",
    "get",
    "load",
    "names",
    "split",
    "synthetic",
    "verify",
]


def load(
    name: str,
    *,
    binarize: Binarize | Literal["default"] = "default",
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    scale: float | None = None,
) -> DataSet:
    """Load a data set by name: "digits", "mnist", "fashion_mnist", "frey_face" or "newsgroups".

    Args:
        name: one of `names()`.
        binarize: "threshold" (at 0.5), "static", "dynamic" or "none" (grey values); by default
            what suits the data set, "threshold" for the first three, "none" for the others.
        data_dir: folder with one folder of files per data set; where None, the environment
            variable PYRO_VAE_DATA, else `$XDG_CACHE_HOME/pyro_vae` or ~/.cache/pyro_vae.
            "digits" needs none.
        seed: of the draws of "static" and "dynamic". It does not move a split: the rows of
            train, validation and test are part of the data set.
        scale: what raw pixels are divided by; by default 16, 255, 255 and 256.

    Raises:
        ValueError: unknown name or option; a file missing (the message has the command that
            downloads it), damaged or not the published one.
    """
    loader = find(name).load
    options: dict[str, object] = {"data_dir": data_dir, "seed": seed}
    if binarize != "default":
        options["binarize"] = binarize
    if scale is not None:
        options["scale"] = scale
    return loader(**options)
