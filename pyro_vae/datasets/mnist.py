"""MNIST: handwritten digits, 28 x 28 grey pixels (LeCun, Cortes & Burges 1998).

Four files in `<data_dir>/mnist`, as published. The first 50,000 images of the training file are
for training and the last 10,000 for validation, as in the paper's figures; the test file is for
testing. The paper used the grey values themselves (`binarize="none"`), which a Bernoulli
likelihood scores without being a density of them; the default is therefore a threshold at 0.5.
"""

import os

from pyro_vae.datasets.data.base import DataSet
from pyro_vae.datasets.data.checks import Binarize
from pyro_vae.datasets.fetching.idx import load_image_set, published

MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
PUBLISHED = published(
    "mnist",
    MIRRORS,
    {
        "train-images-idx3-ubyte.gz": (
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        "train-labels-idx1-ubyte.gz": (
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        "t10k-images-idx3-ubyte.gz": (
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        "t10k-labels-idx1-ubyte.gz": (
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    },
)


def load(
    *,
    binarize: Binarize = "threshold",
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    scale: float = 255.0,
) -> DataSet:
    """Read MNIST: 50,000 / 10,000 / 10,000 images, dim 784, labels 0..9.

    Args and errors: as in `pyro_vae.datasets.load`.
    """
    return load_image_set(
        "mnist", PUBLISHED, binarize=binarize, data_dir=data_dir, seed=seed, scale=scale
    )
