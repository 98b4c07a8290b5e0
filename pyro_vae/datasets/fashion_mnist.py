"""Fashion-MNIST: articles of clothing in the format of MNIST (Xiao, Rasul & Vollgraf 2017).

Four files in `<data_dir>/fashion_mnist`, as published; the split is that of MNIST. Clothes are
greyer than digits, so a threshold at 0.5 loses more here; it is the default all the same,
because a Bernoulli likelihood of grey values is not a density.
"""

import os

from pyro_vae.datasets.data.base import DataSet
from pyro_vae.datasets.data.checks import Binarize
from pyro_vae.datasets.fetching.idx import load_image_set, published

MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
)
PUBLISHED = published(
    "fashion_mnist",
    MIRRORS,
    {
        "train-images-idx3-ubyte.gz": (
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        "train-labels-idx1-ubyte.gz": (
            29_515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        "t10k-images-idx3-ubyte.gz": (
            4_422_102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        "t10k-labels-idx1-ubyte.gz": (
            5_148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
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
    """Read Fashion-MNIST: 50,000 / 10,000 / 10,000 images, dim 784, labels 0..9.

    Args and errors: as in `pyro_vae.datasets.load`.
    """
    return load_image_set(
        "fashion_mnist", PUBLISHED, binarize=binarize, data_dir=data_dir, seed=seed, scale=scale
    )
