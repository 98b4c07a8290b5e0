"""``pyro-vae compare``."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pyro_vae import defaults
from pyro_vae.cli.building import Model
from pyro_vae.cli.sources import (
    Binarization,
    Header,
    cluster_of,
    find_objective,
    open_data,
    put,
    results,
)


def run_compare(
    models: Sequence[Model] = (),
    /,
    *,
    data: str = "digits",
    objectives: list[str] = ["AEVB", "WakeSleep", "MonteCarloEM"],  # noqa: B006
    samples: int = defaults.SAMPLES,
    seeds: int = defaults.SEEDS,
    latent_dim: int = 2,
    hidden_dim: int = 128,
    lr: float = defaults.LR,
    proposal: Literal["hmc", "guide"] = "hmc",
    out: Path = Path("comparison"),
    cluster: str | None = None,
    binarize: Binarization = "default",
    data_dir: Path | None = None,
    scale: float | None = None,
    key: str | None = None,
    labels_key: str | None = None,
    header: Header = "auto",
) -> int:
    """Train the same nets by each objective and compare them on held-out data.

    Writes a table, a picture of the learning curves and the numbers (netCDF).  Binary data get a
    Bernoulli likelihood, others a Gaussian one, whose mean is in (0, 1) where all data are.

    Parts are compared as well: --model.prior Normal --model.prior VampPrior
    --model.prior.num_components 20 are two priors, the second with 20 components, in a model "vae"
    where --model says no other.  Several parts for several arguments are all pairs of them.

    Args:
        data: name of a data set, or a file .npy, .npz or .csv.
        objectives: names from pyro_vae.objectives.
        samples: budget of each run, rows x updates.
        seeds: runs of each objective.
        latent_dim: latent dimensions, where --model.latent_dim says no other.
        hidden_dim: hidden units, where --model.hidden_dim says no other.
        lr: the global step of Adagrad.
        proposal: what log p(x) is importance-sampled from; guide is for latents that HMC cannot
            move, and takes objectives that train one.
        out: folder for the results.
        cluster: where runs are trained and scored, each by itself: local for a process a core, a
            number of processes, or the address of a Dask scheduler.  What is done is kept in the
            folder of --out, and the same command goes on there.
        binarize: how pixels become 0 and 1; default is what suits the data.
        data_dir: folder that holds the data sets' files (default: PYRO_VAE_DATA).
        scale: what the values of a file are divided by, such as 255.
        key: which array of a .npz is x; not needed for one named x, or for the only one.
        labels_key: the array of a .npz, or the column of a .csv, that holds labels.
        header: whether the first line of a .csv names the columns; auto finds out.
    """
    chosen = [find_objective(each)() for each in objectives]
    with results(out, "h5netcdf", "h5py", "matplotlib", "pandas"):
        from pyro_vae.comparison import compare
        from pyro_vae.models import bernoulli_vae, gaussian_vae

        loaded = open_data(data, binarize, data_dir, scale, key, labels_key, header)
        binary = loaded.train.binarize != "none"
        # torch's own initialization: with the paper's sigma = 0.01 small images hardly start
        # within this budget, and seeds and orders blur.
        options: dict[str, Any] = {"latent_dim": latent_dim, "hidden_dim": hidden_dim}
        options["init_std"] = None
        of_gaussian: dict[str, Any] = {}
        if not binary:
            parts = [loaded.train, loaded.validation, loaded.test]
            values = [part.x for part in parts if part is not None]
            of_gaussian["sigmoid_mean"] = all(x.min() >= 0 and x.max() <= 1 for x in values)
        if models:
            builds = _builds(models, loaded, options, binary, of_gaussian)
        else:
            name = "bernoulli" if binary else "gaussian"
            module: Any = bernoulli_vae if binary else gaussian_vae
            builds = {name: lambda: module.build(loaded.dim, **options, **of_gaussian)}
        result = compare(
            loaded,
            builds=builds,
            objectives=chosen,
            seeds=seeds,
            samples=samples,
            lr=lr,
            proposal=proposal,
            **({} if cluster is None else _on_cluster(cluster, out)),
        )
        table = result.table()
        written = [
            put(out / "table.csv", table.to_csv),
            put(out / "curves.png", result.plot),
            put(out / "comparison.nc", result.save),
        ]
    print(_rendered(table, seeds))
    print(f"\nwritten: {', '.join(map(str, written))}")
    return 0


def _on_cluster(cluster: str, out: Path) -> dict[str, Any]:
    """Options of ``compare``; each run is told as it is done."""

    def told(key: tuple[str, str, int], score: dict[str, Any]) -> None:
        model, objective, seed = key
        evidence = float(score["log_evidence"].mean())
        print(f"{model}, {objective}, seed {seed}: log p(x) {evidence:.2f}", flush=True)

    return {"cluster": cluster_of(cluster), "out": out / "runs", "arrived": told}


def _builds(
    models: Sequence[Model],
    loaded: Any,
    options: dict[str, Any],
    binary: bool,
    of_gaussian: dict[str, Any],
) -> dict[str, Callable[[], Any]]:
    """A build for each model, by the parts in which they differ.

    Raises:
        ValueError: two are the same.
    """
    from pyro_vae import likelihoods

    said = [{slot: str(part) for slot, part in model.parts.items()} for model in models]
    differ = [slot for slot in said[0] if len({each[slot] for each in said}) > 1]
    builds: dict[str, Callable[[], Any]] = {}
    for model, parts in zip(models, said, strict=True):
        told = differ if differ or len(models) == 1 else list(parts)
        name = ", ".join(parts[slot] for slot in told) or model.name
        if name in builds:
            raise ValueError(f"{name} is named twice: name models that differ")
        takes = inspect.signature(model.function).parameters
        more = {n: v for n, v in options.items() if n in takes and n not in model.options}
        if model.name == "vae" and "likelihood" not in model.parts:
            usual = likelihoods.Bernoulli() if binary else likelihoods.Gaussian(**of_gaussian)
            more["likelihood"] = usual
        model = dataclasses.replace(model, options={**model.options, **more})
        builds[name] = functools.partial(model.built, loaded)
    return builds


def _rendered(table: Any, seeds: int) -> str:
    """The table for a terminal: value ± standard error, nats per datum."""
    import pandas as pd

    shown = pd.DataFrame(index=table.index)
    for column in ("bound", "log p(x)", "against first"):
        pairs = zip(table[column], table[f"{column} ±"], strict=True)
        shown[column] = [
            "—" if math.isnan(value) else f"{value:.2f} ± {error:.2f}" for value, error in pairs
        ]
    shown.iloc[0, -1] = "—"  # the first itself
    if seeds > 1:
        pairs = zip(table["against first"], table["against first 95 %"], strict=True)
        shown["95 %"] = [f"{value - half:+.2f} to {value + half:+.2f}" for value, half in pairs]
        shown.iloc[0, -1] = "—"
        shown["sd over seeds"] = table["sd over seeds"].map("{:.2f}".format)
    for column in ("khat > 0.7", "rhat > 1.1"):
        shown[column] = table[column].map(lambda share: "—" if share != share else f"{share:.0%}")
    shown["samples"] = table["samples"].map("{:,}".format)
    shown["leapfrogs"] = table["leapfrogs"].map("{:,}".format)
    shown["seconds"] = table["seconds"].map("{:.1f}".format)
    lines = shown.reset_index().to_string(index=False)
    if seeds == 1:
        return f"{lines}\n\none seed: ± of a difference says how two runs differ, not algorithms"
    return (
        f"{lines}\n\n95 %: interval of the difference to the first row, over data and seeds "
        f"(S - 1 = {seeds - 1} degree{'s' * (seeds > 2)} of freedom)"
    )
