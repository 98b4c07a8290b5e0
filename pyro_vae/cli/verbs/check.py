"""``pyro-vae check``."""

from __future__ import annotations

from pathlib import Path

from pyro_vae.cli.building import Model
from pyro_vae.cli.sources import Binarization, Header, open_data


def run_check(
    model: Model,
    /,
    *,
    data: str = "digits",
    binarize: Binarization = "default",
    data_dir: Path | None = None,
    scale: float | None = None,
    key: str | None = None,
    labels_key: str | None = None,
    header: Header = "auto",
    seed: int = 0,
) -> int:
    """Look a model over on a few rows, before any training.

    Args:
        data: name of a data set, or a file .npy, .npz or .csv.
        binarize: how pixels become 0 and 1; default is what suits the data.
        data_dir: folder that holds the data sets' files (default: PYRO_VAE_DATA).
        scale: what the values of a file are divided by, such as 255.
        key: which array of a .npz is x; not needed for one named x, or for the only one.
        labels_key: the array of a .npz, or the column of a .csv, that holds labels.
        header: whether the first line of a .csv names the columns; auto finds out.
        seed: of the initial parameters.
    """
    import pyro_vae as pv

    gaps = model is not None and bool(model.options.get("missing"))
    loaded = open_data(data, binarize, data_dir, scale, key, labels_key, header, gaps)
    print(pv.check(model.make(loaded, seed), loaded.train))
    return 0
