"""What ``evidence``, ``diagnose`` and ``posterior`` judge: a saved run or an untrained model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

from pyro_vae import errors
from pyro_vae.cli.building import Model
from pyro_vae.cli.sources import Binarization, Header, open_data
from pyro_vae.errors import PyroVaeWarning


class Judged(NamedTuple):
    """A program and the test data that it is judged on.

    Attributes:
        program: the program.
        name: of the run's folder or of the model, for a heading.
        loaded: the data set.
        test: its test data, or the first so many.
        has_guide: whether the guide was trained.
        run: the saved run; None for an untrained model.
    """

    program: Any
    name: str
    loaded: Any
    test: Any
    has_guide: bool
    run: Any


def open_judged(
    folder: str | None,
    model: Model | None,
    data: str,
    num_data: int | None,
    seed: int,
    binarize: Binarization,
    data_dir: Path | None,
    scale: float | None,
    key: str | None,
    labels_key: str | None,
    header: Header,
) -> Judged:
    """Load the run, or build the model, and the data; say where they do not belong together.

    Raises:
        ValueError: rows of another shape than the run was trained on.
    """
    if num_data is not None:
        errors.whole("--num_data", num_data)
    run = _loaded(folder, None) if folder is not None and model is None else None
    if model is not None:
        gaps = bool(model.options.get("missing"))
    else:
        gaps = bool(run is not None and getattr(run.program, "missing", False))
    loaded = open_data(data, binarize, data_dir, scale, key, labels_key, header, gaps)
    mine: Any = None if model is None else model.make(loaded, seed)
    test = loaded.test if num_data is None else loaded.test[:num_data]
    if folder is None:
        name = f"{model.name if model else ''}, untrained"
        return Judged(mine, name, loaded, test, True, None)
    run = _loaded(folder, mine) if run is None else run
    width = list(loaded.test.event_shape)
    if run.manifest["row"].get("shape", width) != width:
        raise ValueError(
            f"--data {data} has rows of shape {width}, expected "
            f"{run.manifest['row']['shape']} as {folder} was trained on"
        )
    _warn_about_other_data(run.manifest, loaded, data)
    has_guide = not str(run.manifest["objective"]).startswith("MonteCarloEM")
    return Judged(run.program, folder, loaded, test, has_guide, run)


def _loaded(folder: str, program: Any) -> Any:
    """The saved run; where its program cannot be built by name, the flag that names it is told."""
    import pyro_vae as pv

    try:
        return pv.load(folder, program)
    except ValueError as error:
        if program is None and "program=mine" in str(error):
            why = str(error).split(":")[0]
            raise ValueError(f"{why}: pass --program path/to/file.py:build") from error
        raise


def _warn_about_other_data(manifest: dict[str, Any], loaded: Any, data: str) -> None:
    if manifest["data_digest"] != loaded.train.digest:
        how = manifest["binarize"]
        warnings.warn(
            f"the run was trained on other data than --data {data} with binarize "
            f"{loaded.binarize}: its own were binarized {how}",
            PyroVaeWarning,
            stacklevel=3,
        )
