"""What a comparison found: its data set, the table and the picture of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vae import errors
from pyro_vae.evidence.paired import paired_mean
from pyro_vae.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` returns.

    Attributes:
        runs: (model, objective, seed) -> :class:`~pyro_vae.Run`.
        dataset: an xarray data set; ``bound``, ``log_evidence`` and its ``standard_error``,
            ``khat`` and ``rhat`` over (model, objective, seed, datum), the learning curves over
            (..., record), and ``samples`` and ``seconds`` of each run.  Attributes say what data
            it was.
    """

    runs: dict[tuple[str, str, int], Run]
    dataset: xr.Dataset

    def table(self) -> pd.DataFrame:
        r"""One row a model and objective, in nats per held-out datum.

        ``bound ±`` and ``log p(x) ±`` are standard errors over data, after averaging S seeds;
        ``sd over seeds`` is the standard deviation of a seed's mean log p(x).

        ``against first`` is the difference of log p(x) to the first row of the table, paired by
        datum and seed, whichever model the row is of: a seed draws its minibatches in one order for
        all models, and starts from the same parameters within one.  Its ``±`` is the standard error
        for other data *and* other seeds, because one algorithm differs from itself by its seed.
        That of a few seeds is itself uncertain, so do not read twice ``±`` as 95 %:
        ``against first 95 %`` is half the width of the 95 % interval, with Student's quantiles for
        S - 1 and N - 1 degrees of freedom (12.7 for two seeds, 4.3 for three);
        :mod:`pyro_vae.evidence.paired` says how, and how often it is right.  With a single seed
        ``±`` holds the data alone and says how two *runs* differ, not two algorithms; there is no
        interval then.

        ``bound`` is nan for an algorithm without a guide.  ``khat > 0.7`` and ``rhat > 1.1`` are
        the shares of data whose log p(x) is not to be trusted.  ``samples`` are rows x updates;
        ``leapfrogs`` are steps of Hamiltonian Monte Carlo besides, rows x steps.
        """
        import pandas as pd

        rows = []
        first = self.dataset.log_evidence.isel(model=0, objective=0).values  # (seed, datum)
        for model in self.dataset.model.values:
            for objective in self.dataset.objective.values:
                part = self.dataset.sel(model=model, objective=objective)
                evidence = part.log_evidence.mean("seed").values  # (datum,)
                difference = paired_mean(part.log_evidence.values - first)
                by_seed = part.log_evidence.mean("datum").values
                bound = part.bound.mean("seed").values  # nan where no guide is trained
                rows.append(
                    {
                        "model": str(model),
                        "objective": str(objective),
                        "bound": bound.mean(),
                        "bound ±": standard_error(bound),
                        "log p(x)": evidence.mean(),
                        "log p(x) ±": standard_error(evidence),
                        "sd over seeds": by_seed.std(ddof=1) if len(by_seed) > 1 else math.nan,
                        "against first": difference.value,
                        "against first ±": difference.standard_error,
                        "against first 95 %": difference.half_width,
                        "khat > 0.7": float((~(part.khat <= 0.7)).mean()),  # nan counts
                        "rhat > 1.1": math.nan  # no chains
                        if part.rhat.isnull().all()
                        else float((~(part.rhat <= 1.1)).mean()),
                        "samples": int(part.samples.mean()),
                        "leapfrogs": int(part.leapfrogs.mean()),
                        "seconds": float(part.seconds.mean()),
                    }
                )
        return pd.DataFrame(rows).set_index(["model", "objective"])

    def plot(self, path: str | Path | None = None) -> Any:
        """Learning curves, and log p(x) with the table's intervals; saves it to ``path``.

        Returns:
            The figure, of :func:`~pyro_vae.plotting.curves_and_evidence`.
        """
        from pyro_vae.plotting.comparison import curves_and_evidence
        from pyro_vae.plotting.figures import saved

        return saved(curves_and_evidence(self.dataset)[0].figure, path)

    def save(self, path: str | Path) -> None:
        """Write the data set as netCDF; ``xarray.open_dataset`` reads it anywhere."""
        errors.require_libraries("h5netcdf", "h5py")
        self.dataset.to_netcdf(path, engine="h5netcdf")

    def __repr__(self) -> str:
        sizes, about = self.dataset.sizes, self.dataset.attrs
        counts = [
            f"{sizes[dim]} {dim}{'s' * (sizes[dim] != 1)}" for dim in ("model", "objective", "seed")
        ]
        text = f"<Comparison: {' × '.join(counts)}, {sizes['datum']} held-out data"
        if "data" in about:
            text += f" of {about['data']}, binarize: {about['binarize']}"
        if sizes["seed"] == 1:
            text += "; one seed, so differences are between runs, not between algorithms"
        return f"{text}; see .plot()>\n{self.table().round(3).to_string()}"


def dataset_of(
    data: Any,
    models: list[str],
    objectives: list[str],
    seeds: int,
    runs: Mapping[tuple[str, str, int], Run],
    scores: Mapping[tuple[str, str, int], dict[str, np.ndarray]],
) -> xr.Dataset:
    import xarray as xr

    keys = [(m, o, s) for m in models for o in objectives for s in range(seeds)]
    shape = (len(models), len(objectives), seeds)
    dims = ("model", "objective", "seed")
    variables: dict[str, Any] = {}
    for name in ("bound", "log_evidence", "standard_error", "khat", "rhat"):
        stacked = np.stack([scores[key][name] for key in keys])
        variables[name] = ((*dims, "datum"), stacked.reshape(*shape, -1))
    curves = [_curve(runs[key]) for key in keys]
    length = max(len(curve) for curve in curves)
    padded = np.full((len(keys), length, 3), np.nan)
    for row, curve in zip(padded, curves, strict=True):
        row[: len(curve)] = curve
    for column, name in enumerate(("curve_samples", "curve_bound", "curve_seconds")):
        variables[name] = ((*dims, "record"), padded[..., column].reshape(*shape, length))
    for name in ("samples", "seconds", "leapfrogs"):
        values = np.array([runs[key].manifest[name] for key in keys], dtype=float)
        variables[name] = (dims, values.reshape(shape))
    return xr.Dataset(
        variables,
        coords={"model": models, "objective": objectives, "seed": np.arange(seeds)},
        attrs={
            "data": data.name,
            "binarize": data.test.binarize,
            "test_digest": data.test.digest,
            "unit": "nats per datum",
        },
    )


def _curve(run: Run) -> np.ndarray:
    """(records, 3): samples, held-out bound, seconds; no rows where no guide is scored."""
    if "validation_bound" not in run.history:
        return np.empty((0, 3))
    return run.history[["samples", "validation_bound", "seconds"]].dropna().to_numpy(float)


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
