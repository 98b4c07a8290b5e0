"""Evidence in the form in which ArviZ compares models: an ELPD object, for both of its lines.

``elpd_i`` is log p(x_i), which of held-out data is what ``az.loo`` estimates for models without
latents of their own for each datum.  (Of those with them its estimate takes the latents for
parameters; docs/evidence.md shows by how much that misleads.)
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

GOOD_K = 0.7


def to_elpd(value: Tensor, khat: Tensor, draws: int, dim: str) -> Any:
    """An ``ELPDData`` of ArviZ 0.23, an ``ELPDDataLOO`` of ArviZ 1.

    Args:
        value, khat: of N data.
        draws: of a datum.
        dim: what the dimension of the data is called.
    """
    import xarray as xr

    value, khat = value.detach().cpu().double(), khat.detach().cpu().double()
    coords = {dim: range(len(value))}
    pointwise = xr.DataArray(value.numpy(), dims=[dim], coords=coords, name="loo_i")
    error = float(value.std()) * len(value) ** 0.5 if len(value) > 1 else float("nan")
    same = {
        "se": error,
        "n_samples": draws,
        "n_data_points": len(value),
        "warning": bool((khat > GOOD_K).any()),
        "scale": "log",
        "good_k": GOOD_K,
        "pareto_k": xr.DataArray(khat.numpy(), dims=[dim], coords=coords, name="pareto_shape"),
    }
    total = float(value.sum())
    try:
        made = importlib.import_module("arviz_stats.utils").ELPDDataLOO
    except ImportError:  # ArviZ 0.23
        made = importlib.import_module("arviz.stats").ELPDData
        fields = {"elpd_loo": total, "se": error, "p_loo": 0.0, **same, "loo_i": pointwise}
        order = ["n_samples", "n_data_points", "warning", "loo_i", "pareto_k", "scale", "good_k"]
        index = ["elpd_loo", "se", "p_loo", *order]
        return made(data=[fields[name] for name in index], index=index)
    return made(elpd=total, p=0.0, elpd_i=pointwise, **same)
