"""``pyro-vae report``."""

from __future__ import annotations

import inspect
import itertools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pyro_vae import defaults
from pyro_vae.cli.building import Model
from pyro_vae.cli.judged import open_judged
from pyro_vae.cli.sources import Binarization, Header


def run_report(
    folder: str | None,
    model: Model | None,
    /,
    *,
    data: str = "digits",
    num_data: int | None = None,
    diagnosis: Literal["quick", "full", "none"] = "quick",
    title: str | None = None,
    seed: int = defaults.SEED,
    out: Path = Path("report.html"),
    binarize: Binarization = "default",
    data_dir: Path | None = None,
    scale: float | None = None,
    key: str | None = None,
    labels_key: str | None = None,
    header: Header = "auto",
) -> int:
    """Write one HTML page about a saved run or a comparison; it needs no network.

    A folder that pyro-vae compare wrote takes no data: its page says what the comparison found.

    Args:
        data: name of a data set, or a file .npy, .npz or .csv, whose test part a run is judged on.
        num_data: the first so many test data only.
        diagnosis: how much work to judge the posterior with; none leaves that out.
        title: of the page.
        seed: of the noise, and of an untrained model's parameters.
        out: the file to write.
        binarize: how pixels become 0 and 1; default is what suits the data.
        data_dir: folder that holds the data sets' files (default: PYRO_VAE_DATA).
        scale: what the values of a file are divided by, such as 255.
        key: which array of a .npz is x; not needed for one named x, or for the only one.
        labels_key: the array of a .npz, or the column of a .csv, that holds labels.
        header: whether the first line of a .csv names the columns; auto finds out.
    """
    given = {n: v for n, v in locals().items() if n not in ("folder", "model")}
    command = None if folder is None else _command(folder, given)
    if folder is not None and (Path(folder) / "comparison.nc").is_file():
        from pyro_vae.reporting import report

        place = report(folder, out=out, title=title, command=command)
    else:
        from pyro_vae.runs.storage import MANIFEST

        if model is None and folder is not None and not (Path(folder) / MANIFEST).is_file():
            raise ValueError(
                f"{folder} holds neither {MANIFEST}, a run that fit --out has written, nor "
                "comparison.nc, which compare --out writes: name a folder that holds one of them"
            )
        judged = open_judged(
            folder, model, data, num_data, seed, binarize, data_dir, scale, key, labels_key, header
        )
        from pyro_vae.reporting import report

        place = report(
            judged.program if judged.run is None else judged.run, judged.test, out=out,
            diagnosis=diagnosis, title=title or f"{Path(judged.name).name} on {judged.loaded.name}",
            command=command, seed=seed,
        )  # fmt: skip
    print(f"written: {place}")
    return 0


def _command(folder: str, given: Mapping[str, Any]) -> str:
    """What to type for the same page: the flags that differ from their defaults."""
    usual = inspect.signature(run_report).parameters
    flags = [[f"--{n}", str(v)] for n, v in given.items() if v != usual[n].default]
    return shlex.join(["pyro-vae", "report", folder, *itertools.chain(*flags)])
