r"""``compare``: objectives side by side, with the same nets, data order and budget.

Every run of a seed starts from the same initial parameters and sees the same minibatches; every
program is scored by the same routine on the same held-out data with the same noise.  So a
difference is reported per datum and paired, with its own standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pyro_vae.densities import sites_of, trace_program
from pyro_vae.evidence import elbo, log_evidence
from pyro_vae.inputs import as_rows
from pyro_vae.lifting import seeded
from pyro_vae.optimizers import Adagrad
from pyro_vae.program import map_rows
from pyro_vae.training import Run, fit

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` returns.

    Attributes:
        runs: (model, objective, seed) -> :class:`~pyro_vae.training.Run`.
        dataset: an xarray data set; ``bound``, ``log_evidence`` and its ``standard_error`` and
            ``khat`` over (model, objective, seed, datum), the learning curves over (..., record),
            and ``samples`` and ``seconds`` of each run.  Attributes say what data it was.
    """

    runs: dict[tuple[str, str, int], Run]
    dataset: xr.Dataset

    def table(self) -> pd.DataFrame:
        """One row a model and objective, in nats per held-out datum.

        ``±`` columns are standard errors over data, after averaging seeds; ``spread`` is the
        standard deviation over seeds; ``against first`` is the paired difference of log p(x) to
        the first row of the same model.
        """
        import pandas as pd

        rows = []
        for model in self.dataset.model.values:
            first = None
            for objective in self.dataset.objective.values:
                part = self.dataset.sel(model=model, objective=objective)
                evidence = part.log_evidence.mean("seed").values  # (datum,)
                first = evidence if first is None else first
                difference = evidence - first
                bound = part.bound.mean("seed").values
                rows.append(
                    {
                        "model": str(model),
                        "objective": str(objective),
                        "bound": bound.mean(),
                        "bound ±": _standard_error(bound),
                        "log p(x)": evidence.mean(),
                        "log p(x) ±": _standard_error(evidence),
                        "spread": float(part.log_evidence.mean("datum").std("seed", ddof=1))
                        if part.sizes["seed"] > 1
                        else math.nan,
                        "against first": difference.mean(),
                        "against first ±": _standard_error(difference),
                        "khat > 0.7": float((part.khat > 0.7).mean()),
                        "samples": int(part.samples.mean()),
                        "seconds": float(part.seconds.mean()),
                    }
                )
        return pd.DataFrame(rows).set_index(["model", "objective"])

    def plot(self, path: str | Path | None = None) -> Any:
        """Learning curves of the held-out bound; returns the figure, and saves it to ``path``."""
        from pyro_vae.plotting import learning_curves

        return learning_curves(self.dataset, path)

    def save(self, path: str | Path) -> None:
        """Write the data set as netCDF; ``xarray.open_dataset`` reads it anywhere."""
        self.dataset.to_netcdf(path, engine="h5netcdf")


def compare(
    data: Any,
    *,
    builds: Mapping[str, Callable[[], nn.Module]],
    objectives: Sequence[Any],
    seeds: int = 3,
    samples: int = 150_000,
    batch_size: int = 100,
    optimizer: Callable[..., torch.optim.Optimizer] = Adagrad,
    lr: float = 0.02,
    num_particles: int = 500,
    progress: bool | Callable[[Any], Any] | None = None,
    **options: Any,
) -> Comparison:
    """Train every model under every objective and score all of them on held-out data alike.

    Args:
        data: a ``DataSet`` with ``train``, ``test`` and, for the curves, ``validation``.
        builds: name -> a callable that makes an untrained program; it is called under the run's
            seed, so objectives start from the same parameters.
        objectives: instances of ``pv.objectives``.
        seeds: how many runs of each.
        samples: the budget of a run, rows x updates.
        batch_size, optimizer, lr, options: as in ``pv.fit``.  The default optimizer is the
            paper's author's Adagrad, because wake-sleep does not survive plain Adagrad's first
            steps.
        num_particles: K of the importance-sampled log p(x).
        progress: as in ``pv.fit``.

    Returns:
        :class:`Comparison`.

    Raises:
        ValueError: models with different likelihoods: their bounds are on different scales.
    """
    if not builds or not objectives:
        raise ValueError("compare needs at least one build and one objective")
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}, expected a whole number from 1 on")
    names = [repr(objective) for objective in objectives]
    if len(set(names)) < len(names):
        raise ValueError(f"objectives are {names}, expected different ones")
    programs = {name: _built(build, 0) for name, build in builds.items()}
    _refuse_different_likelihoods(programs, data.train)
    runs: dict[tuple[str, str, int], Run] = {}
    scores: dict[tuple[str, str, int], dict[str, np.ndarray]] = {}
    for model, build in builds.items():
        for name, objective in zip(names, objectives, strict=True):
            for seed in range(seeds):
                program = _built(build, seed)
                key = (model, name, seed)
                runs[key] = fit(
                    program, data.train, objective, samples=samples, batch_size=batch_size,
                    optimizer=optimizer, lr=lr, seed=seed, progress=progress,
                    validation=data.test if data.validation is None else data.validation,
                    **options,
                )  # fmt: skip
                scores[key] = _score(program, data.test, num_particles)
    return Comparison(runs, _dataset(data, list(builds), names, seeds, runs, scores))


def _built(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with seeded(seed):
        program = build()
    if not isinstance(program, nn.Module):
        raise TypeError(
            f"a build returned {type(program).__name__}, expected a program: pass a callable, "
            "such as lambda: bernoulli_vae.build(data.dim, latent_dim=2)"
        )
    return program


def _refuse_different_likelihoods(programs: Mapping[str, nn.Module], data: Any) -> None:
    kinds = {}
    for name, program in programs.items():
        rows = map_rows(lambda t: t[:2], as_rows(data[:2], program))
        with torch.no_grad(), seeded(0):
            _, trace = trace_program(program, rows, reparameterize=False)
        site = sites_of(trace)[getattr(program, "observed", "x")]
        base = site["fn"]
        while hasattr(base, "base_dist"):
            base = base.base_dist
        kinds[name] = f"{type(base).__name__} of event shape {tuple(site['fn'].event_shape)}"
    if len(set(kinds.values())) > 1:
        raise ValueError(
            f"the models have different likelihoods ({kinds}), so their nats are on different "
            "scales: compare models of one likelihood at a time"
        )


def _score(program: nn.Module, test: Any, num_particles: int) -> dict[str, np.ndarray]:
    import warnings

    from pyro_vae.errors import PyroVaeWarning

    with warnings.catch_warnings():  # the table has a column for it
        warnings.simplefilter("ignore", PyroVaeWarning)
        evidence = log_evidence(program, test, num_particles=num_particles)
    return {
        "bound": elbo(program, test).double().cpu().numpy(),
        "log_evidence": evidence.value.cpu().numpy(),
        "standard_error": evidence.standard_error.cpu().numpy(),
        "khat": evidence.khat.cpu().numpy(),
    }


def _dataset(
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
    for name in ("bound", "log_evidence", "standard_error", "khat"):
        stacked = np.stack([scores[key][name] for key in keys])
        variables[name] = ((*dims, "datum"), stacked.reshape(*shape, -1))
    curves = {key: runs[key].history.dropna(subset="validation_bound") for key in keys}
    length = min(len(curve) for curve in curves.values())
    for name, column in (("curve_samples", "samples"), ("curve_bound", "validation_bound")):
        stacked = np.stack([curves[key][column].to_numpy()[:length] for key in keys])
        variables[name] = ((*dims, "record"), stacked.reshape(*shape, length))
    for name in ("samples", "seconds"):
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


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
