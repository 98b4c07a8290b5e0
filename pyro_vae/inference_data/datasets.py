"""Arrays as xarray data sets with named dimensions, and these as what ArviZ reads."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from pyro_vae.defaults import __version__
from pyro_vae.inference_data.draws import as_array

if TYPE_CHECKING:
    import xarray as xr


AXES = ("chain", "draw", "data")
NOTES = {
    "posterior": "draws come from the guide q(z | x), neither weighted nor resampled",
    "sample_stats": "lp = log p(x, z) and log_q = log q(z | x) of the posterior group's draws; "
    "their difference is the log importance weight that khat and log_evidence rest on; nats",
    "log_likelihood": "log p(x | z) at draws of z, nats. Not for az.loo or az.waic: where each "
    "datum has latents of its own they amount to the harmonic mean of p(x | z), which fails even "
    "at exact posterior draws. Compare models by log_evidence in sample_stats",
}

SHARED_NOTES = {
    "posterior": NOTES["posterior"] + "; one draw of what has no dimension data serves all rows",
    "sample_stats": "lp = log p(x, z) and log_q = log q(z | x) of all rows together, nats; ",
}


def notes_of(shared: bool, own: bool) -> dict[str, str]:
    """What each group says about itself.

    Args:
        shared: whether there are latents that all data share.
        own: whether there are latents of each datum.
    """
    if not shared:
        return NOTES
    if own:
        why = "data that share latents have no log p(x) each, and weights of all latents of all "
        why += "rows are too uneven to judge anything: khat and log_evidence are left out"
        return NOTES | SHARED_NOTES | {"sample_stats": SHARED_NOTES["sample_stats"] + why}
    why = (
        "khat judges the guide by the weights lp - log_q, and log_evidence is log p(x) of all rows"
    )
    likelihood = "log p(x | z) of each datum at draws of the guide, nats; az.loo takes them for "
    likelihood += "posterior draws, which khat in sample_stats judges"
    stats = SHARED_NOTES["sample_stats"] + why
    return NOTES | SHARED_NOTES | {"sample_stats": stats, "log_likelihood": likelihood}


def container() -> Callable[[dict[str, xr.Dataset]], Any]:
    """Makes what the installed ArviZ works on: its own class below version 1, xarray's from there.

    Raises:
        ValueError: ArviZ cannot be imported here, and what to do.
    """
    if int(version("arviz").split(".")[0]) < 1:
        try:
            from arviz import InferenceData
        except OSError as error:  # it notes on the disk when it last announced its version 1
            raise ValueError(
                f"ArviZ cannot write to its cache, {error.filename} ({error.strerror}): set "
                "XDG_CACHE_HOME to a folder that can be written"
            ) from error

        return lambda datasets: InferenceData(**dict(datasets))  # type: ignore[arg-type]
    from xarray import DataTree

    return DataTree.from_dict


def written(name: str) -> str:
    """The name of a variable: neither netCDF nor a tree of groups has any with a slash."""
    return name.replace("/", ".")


def as_dataset(
    values: dict[str, Any],
    axes: tuple[str, ...],
    chains: int | None = None,
    sites: dict[str, str] | None = None,
) -> xr.Dataset:
    """Variables with the leading dimensions ``axes`` and, for each event dimension, its own.

    Where ``chains`` is given, the draws that are in front are dealt to that many.  A slash in a
    name becomes a dot.
    """
    import xarray as xr

    variables: dict[str, Any] = {}
    coordinates: dict[str, np.ndarray] = {}
    for name, value in values.items():
        array = as_array(value)
        if chains is not None:
            array = array.reshape(chains, -1, *array.shape[1:])
        event = array.shape[len(axes) :]
        site = written((sites or {}).get(name, name))
        own = [f"{site}_dim" if len(event) == 1 else f"{site}_dim_{i}" for i in range(len(event))]
        variables[written(name)] = ((*axes, *own), array)
        coordinates |= {dim: np.arange(size) for dim, size in zip(own, event, strict=True)}
        if chains is not None:
            sizes = zip(axes[:2], array.shape[:2], strict=True)
            coordinates |= {axis: np.arange(size) for axis, size in sizes}
    return xr.Dataset(variables, coords=coordinates)


def attributes_of(program: nn.Module, x: Any, **settings: int) -> dict[str, Any]:
    """What the numbers depend on; netCDF holds text and numbers alone."""
    return {
        "inference_library": "pyro_vae",
        "inference_library_version": __version__,
        "program": type(program).__name__,
        "draws": "from the guide q(z | x)",
        "binarize": getattr(x, "binarize", "not stated: x was no Data"),
        "data_digest": getattr(x, "digest", ""),
        **settings,
        "python_version": platform.python_version(),
        **{
            f"{name.replace('-', '_')}_version": version(name)
            for name in ("arviz", "xarray", "torch", "pyro-ppl")
        },
    }
