"""What the groups say about themselves, and the class that holds them for the installed ArviZ."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from torch import nn

from pyro_vae.defaults import __version__

if TYPE_CHECKING:
    import xarray as xr


NOTES = {
    "posterior": "draws come from the guide q(z | x), neither weighted nor resampled",
    "sample_stats": "lp = log p(x, z) and log_q = log q(z | x) of the posterior group's draws; "
    "their difference log_weight is what khat, ess, elbo and log_evidence are computed from; nats",
    "log_likelihood": "log p(x | z) at draws of z, nats. Not for az.loo or az.waic: where each "
    "datum has latents of its own they amount to the harmonic mean of p(x | z), which fails even "
    "at exact posterior draws. Compare models by log_evidence in sample_stats",
}

NOTES |= {
    "posterior_refined": "draws of pv.refine for the same data, to lay over the guide's",
    "predictions": "of other data: latents from the guide q(z | x) that sees them, and x drawn at "
    "these; the data themselves are in predictions_constant_data",
    "prior_sbc": "where latents that were drawn from the prior lie among the guide's draws at the "
    "data drawn from them, as places from 0 to 1, uniform if the guide is the posterior; a draw is "
    "a simulated datum",
    "training": "the history of each run by step, means since the record before; nats per datum",
}
CHAINS = {
    False: ". Chains deal out independent draws of one guide, so r_hat near 1 says nothing of it",
    True: ". Chains are independent trainings, so r_hat says how far they agree about a datum; "
    "latents that trainings may turn, mirror or exchange disagree without harm",
}
SHARED_NOTES = {
    "posterior": NOTES["posterior"] + "; one draw of what has no dimension data serves all rows",
    "sample_stats": "lp = log p(x, z) and log_q = log q(z | x) of all rows together, nats; ",
}


def notes_of(shared: bool, own: bool, several: bool) -> dict[str, str]:
    """What each group says about itself.

    Args:
        shared: whether there are latents that all data share.
        own: whether there are latents of each datum.
        several: whether chains are programs.
    """
    notes = _notes(shared, own)
    return notes | {"posterior": notes["posterior"] + CHAINS[several]}


def _notes(shared: bool, own: bool) -> dict[str, str]:
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
