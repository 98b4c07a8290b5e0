"""The numbers behind the page: a row a latent, a row a datum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def latent_table(parts: Mapping[str, Any]) -> pd.DataFrame:
    """Each number of each latent: what the guide does with it, and whether it is calibrated.

    ``activity`` to ``p_prior`` are of the data, ``contraction`` to ``p_calibration`` of simulated
    ones.
    """
    import pandas as pd

    columns: dict[str, dict[str, Any]] = {}
    if (profile := parts.get("latents")) is not None:
        distance, p = profile.distances()
        found = {
            "activity": profile.activity,
            "active": profile.active,
            "sd_to_prior": profile.dispersion,
            "distance_to_prior": distance,
            "p_prior": p,
        }
        for name, values in found.items():
            values = np.asarray(values)
            columns[name] = dict(zip(profile.names, values.tolist(), strict=True))
    if (calibration := parts.get("calibration")) is not None:
        ranks = calibration.ranks
        names = [name for name in ranks.ranks if ranks.is_latent[name]]
        scores = calibration.z_scores
        columns["contraction"] = calibration.contraction
        columns["z_score_mean"] = {
            n: float(np.nanmean(scores[n])) if np.isfinite(scores[n]).any() else np.nan
            for n in names
        }
        columns["z_score_sd"] = {n: calibration.scatter(n) for n in names}
        for prob in (0.5, 0.9):
            covered = ranks.coverage(prob)
            columns[f"coverage_{round(100 * prob)}"] = {n: covered[n] for n in names}
        columns["p_calibration"] = {n: calibration.p_values[n] for n in names}
    table = pd.DataFrame(columns)
    table.index.name = "latent"
    return table


def data_table(parts: Mapping[str, Any], names: np.ndarray | None = None) -> pd.DataFrame:
    """Each datum: how well the guide serves it; ``names`` of all of them, where a frame has any."""
    import pandas as pd

    columns: dict[str, Any] = {}
    if (trust := parts.get("weights")) is not None:
        columns["khat"] = trust.evidence.khat.cpu().numpy()
        columns["ess"] = trust.evidence.ess.cpu().numpy()
        columns["log_evidence"] = trust.evidence.value.cpu().numpy()
        columns["standard_error"] = trust.evidence.standard_error.cpu().numpy()
        columns["elbo"] = trust.elbo.cpu().numpy()
        columns["distance"] = trust.distance.cpu().numpy()
    table = pd.DataFrame(columns)
    table.index.name = "datum"
    if (both := parts.get("log p(x)")) is not None:
        rows = both.index.cpu().numpy()
        table.loc[rows, "lower"] = both.bounds.lower.cpu().numpy()
        table.loc[rows, "upper"] = both.bounds.upper.cpu().numpy()
    if (split := parts.get("gaps")) is not None:
        for name in ("approximation", "amortization"):
            table.loc[split.index.cpu().numpy(), f"{name}_gap"] = getattr(split, name).cpu().numpy()
    if names is not None:
        table.index = pd.Index(names[table.index], name="datum")
    return table
