"""Data sets: `load` one by name, or bring your own array or file.

A file in this folder that defines `load(*, binarize, data_dir, seed, scale) -> DataSet`, with its
own defaults, *is* the data set of that name. Nothing is kept between calls, and the libraries
that read the files are imported when they are needed.
"""

import difflib
import importlib
import os
import pkgutil
from collections.abc import Callable
from typing import Literal

from pyro_vae.datasets.arrays import from_array, split
from pyro_vae.datasets.base import Data, DataSet
from pyro_vae.datasets.checks import Binarize
from pyro_vae.datasets.readers import from_file
from pyro_vae.datasets.synthetic import synthetic

__all__ = [
    "Binarize",
    "Data",
    "DataSet",
    "from_array",
    "from_file",
    "load",
    "names",
    "split",
    "synthetic",
]


def load(
    name: str,
    *,
    binarize: Binarize | Literal["default"] = "default",
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    scale: float | None = None,
) -> DataSet:
    """Load a data set by name: "digits", "mnist", "fashion_mnist" or "frey_face".

    Args:
        name: one of `names()`.
        binarize: "threshold" (at 0.5), "static", "dynamic" or "none" (grey values); by default
            what suits the data set, "threshold" for the first three, "none" for Frey Face.
        data_dir: folder with one folder of files per data set; where None, the environment
            variable PYRO_VAE_DATA. "digits" needs neither.
        seed: of the draws of "static" and "dynamic". It does not move a split: the rows of
            train, validation and test are part of the data set.
        scale: what raw pixels are divided by; by default 16, 255, 255 and 256.

    Raises:
        ValueError: unknown name or option; a file missing, damaged or not the published one.
    """
    loader = _loader(name)
    if loader is None:
        near = difflib.get_close_matches(str(name).lower().replace("-", "_"), names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; for your own data see from_array"
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(names())}{hint}")
    options: dict[str, object] = {"data_dir": data_dir, "seed": seed}
    if binarize != "default":
        options["binarize"] = binarize
    if scale is not None:
        options["scale"] = scale
    return loader(**options)


def names() -> tuple[str, ...]:
    """The names that `load` knows."""
    return tuple(name for name in _files() if _loader(name) is not None)


def _files() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def _loader(name: str) -> Callable[..., DataSet] | None:
    # Only names of files in this folder are ever imported.
    if name not in _files():
        return None
    return getattr(importlib.import_module(f"{__name__}.{name}"), "load", None)
