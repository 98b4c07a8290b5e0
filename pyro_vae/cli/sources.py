"""What the command line names beside a model: an objective, data, a folder for results."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pyro_vae import errors
from pyro_vae.cli.flags import nearest
from pyro_vae.cli.telling import Note

Binarization = Literal["default", "none", "threshold", "static", "dynamic"]
Header = bool | Literal["auto"]
FILES = (".npy", ".npz", ".csv")
LEAST_ROWS = 6  # of a file, so that each of its parts has one


# --- how to train -------------------------------------------------------------------------------


def find_objective(name: str) -> type:
    """A class of ``pyro_vae.objectives``."""
    from pyro_vae import objectives

    known = [n for n in objectives.__all__ if n not in ("Objective", "State")]
    if name not in known:
        raise ValueError(f"objective: {nearest(name, known)}")
    return getattr(objectives, name)


def find_optimizer(name: str) -> Any:
    """A class of optimizers."""
    import torch

    from pyro_vae import optimizers

    known = {
        "adagrad": torch.optim.Adagrad,
        "accumulating_adagrad": optimizers.Adagrad,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "rmsprop": torch.optim.RMSprop,
        "sgd": torch.optim.SGD,
    }
    if name not in known:
        raise ValueError(f"--optimizer: {nearest(name, list(known))}")
    return known[name]


def require_device(name: str | None) -> None:
    """Try a device, before anything is read or written."""
    import torch

    try:
        torch.zeros(1, device=name).item()  # "meta" makes tensors, and holds no number
    except (RuntimeError, AssertionError) as error:  # NotImplementedError is a RuntimeError
        why = str(error).splitlines()[0]
        raise ValueError(f"--device {name}: {why}; leave it out for the CPU") from None


def cluster_of(name: str | None) -> Any:
    """A cluster as ``pyro_vae.cluster.sweep`` takes it: a number of processes is a number."""
    return int(name) if name is not None and name.isdecimal() else name


# --- data ---------------------------------------------------------------------------------------


def open_data(
    data: str,
    binarize: Binarization = "default",
    data_dir: Path | None = None,
    scale: float | None = None,
    key: str | None = None,
    labels_key: str | None = None,
    header: Header = "auto",
    missing: bool = False,
) -> Any:
    """A data set by name, or a file of your own, a tenth of it for validation and for testing.

    What was read of a file is told on stderr: a column of targets would be learnt like the others.

    Raises:
        ValueError, TypeError: no such data, or damaged ones.
    """
    from pyro_vae import datasets

    if scale is not None:
        errors.positive("--scale", scale, "such as 255")
    path = Path(data).expanduser()
    looks_like_file = path.suffix.lower() in FILES or os.sep in data or path.is_file()
    if data in datasets.names() or not looks_like_file:
        own = {"key": key, "labels_key": labels_key, "header": None if header == "auto" else header}
        for flag, given in own.items():
            if given is not None:
                raise ValueError(f"--{flag} is for files of your own, and {data} is a data set")
        try:
            return datasets.load(data, binarize=binarize, data_dir=data_dir, scale=scale)
        except ValueError as error:
            hint = f"; a file of your own ends in {', '.join(FILES)}"
            unknown = str(error).startswith("name: ")
            raise ValueError(f"--data: {error}{hint if unknown else ''}") from error
    if path.is_dir():
        raise ValueError(f"--data {data}: is a directory, expected a file {', '.join(FILES)}")
    rows = datasets.from_file(
        path,
        binarize="none" if binarize == "default" else binarize,
        scale=scale,
        key=key,
        labels_key=labels_key,
        header=header,
        missing=missing,
    )
    warnings.warn(_told(data, rows, labels_key), Note, stacklevel=2)
    if len(rows) < LEAST_ROWS:
        raise ValueError(
            f"--data {data}: {len(rows)} rows, expected {LEAST_ROWS} or more, because a tenth is "
            "for validation and a tenth for testing; fewer go through Python, as pv.log_evidence"
        )
    return datasets.split(rows, test=0.1, validation=0.1, seed=0, name=path.stem)


def _told(data: str, rows: Any, labels_key: str | None) -> str:
    """What was read of a file: how many rows and columns, the first names, and the labels."""
    shape = rows.event_shape
    each = f"{shape[0]:,} columns" if len(shape) == 1 else " x ".join(map(str, shape))
    if rows.columns is not None:
        each += f": {', '.join(rows.columns[:5])}{', ...' if len(rows.columns) > 5 else ''}"
    labels = "" if labels_key is None else f"; labels: {labels_key}"
    return f"{data}: {len(rows):,} rows of {each}{labels}"


# --- results ------------------------------------------------------------------------------------


@contextlib.contextmanager
def results(out: Path | None, *libraries: str) -> Iterator[Path | None]:
    """The folder for results, made and tried before any work, as are the libraries that write them.

    It is gone again where nothing came.
    """
    if out is None:
        yield None
        return
    errors.require_libraries(*libraries)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: {error.strerror}; name a folder that can be made") from None
    if not os.access(out, os.W_OK):
        raise ValueError(f"--out {out}: cannot be written; name another folder")
    try:
        yield out
    except BaseException:
        with contextlib.suppress(OSError):  # of a folder that holds something
            for folder in made:
                folder.rmdir()
        raise


def put(path: Path, write: Callable[[Path], Any]) -> Path:
    """Write a file beside its place and rename it, so that it is never there by half."""
    part = path.with_name(f".{path.name}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path
