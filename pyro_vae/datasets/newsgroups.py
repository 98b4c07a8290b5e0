"""Newsgroups: 18,745 postings to 20 newsgroups, as counts of 1,994 words.

The "20news-clean" cut of topic models (Srivastava & Sutton 2017), written as one file of CSR
parts, `<data_dir>/20news_clean/20news_clean.npz`: `train_data`, `train_indices`, `train_indptr`,
the same of `test_`, and `vocab`.  No address of this file is public, so `pyro-vae data get` cannot
fetch it.
"""

import io
import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.datasets.data.base import Data, DataSet
from pyro_vae.datasets.data.checks import Binarize, check_options
from pyro_vae.datasets.fetching import files
from pyro_vae.datasets.fetching.files import Published

PUBLISHED = (
    Published(
        "20news_clean/20news_clean.npz",
        1_639_494,
        "0adc13659bd53aac2b6e7808bd188ac9fd5ea74fa3563960aac23d00307a8b56",
        (),
    ),
)


def load(
    *,
    binarize: Binarize = "none",
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    scale: float | None = None,
) -> DataSet:
    """Read the counts: 11,258 / 7,487 documents, no validation set, dim 1,994, no labels.

    The words are `train.columns`.  Documents stand in the file's order, which is that of dates.

    Args and errors: as in `pyro_vae.datasets.load`.
    """
    check_options(binarize, scale, seed)
    path = files.locate(PUBLISHED[0], data_dir)
    parts = np.load(io.BytesIO(files.read(path, PUBLISHED[0].sha256)), allow_pickle=False)
    words = tuple(map(str, parts["vocab"]))
    data = {
        name: Data.from_pixels(
            dense(
                parts[f"{name}_data"], parts[f"{name}_indices"], parts[f"{name}_indptr"], len(words)
            ),
            binarize=binarize, scale=scale, seed=seed, columns=words,
        )
        for name in ("train", "test")
    }  # fmt: skip
    return DataSet("newsgroups", train=data["train"], validation=None, test=data["test"])


def dense(
    data: NDArray[np.integer], indices: NDArray[np.integer], indptr: NDArray[np.integer], size: int
) -> Tensor:
    """Counts (documents, words) from the parts of a matrix in compressed rows."""
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    counts = np.zeros((len(indptr) - 1, size), dtype=np.float32)
    counts[rows, indices] = data
    return torch.from_numpy(counts)
