"""``pyro-vae evidence``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pyro_vae import defaults
from pyro_vae.cli.building import Model
from pyro_vae.cli.judged import open_judged
from pyro_vae.cli.sources import Binarization, Header, cluster_of, put, results


def run_evidence(
    folder: str | None,
    model: Model | None,
    /,
    *,
    data: str = "digits",
    method: Literal[
        "importance", "annealed", "sandwich", "reciprocal", "quadrature", "exact"
    ] = defaults.METHOD,
    proposal: Literal["auto", "guide", "hmc", "prior"] = "auto",
    num_particles: int = defaults.NUM_PARTICLES,
    num_draws: int = defaults.NUM_DRAWS,
    chains: int | None = None,
    num_temperatures: int = defaults.NUM_TEMPERATURES,
    num_data: int | None = None,
    seed: int = defaults.SEED,
    out: Path | None = None,
    binarize: Binarization = "default",
    data_dir: Path | None = None,
    scale: float | None = None,
    key: str | None = None,
    labels_key: str | None = None,
    header: Header = "auto",
    cluster: str | None = None,
) -> int:
    """Estimate log p(x) on test data, by a saved run or by an untrained model.

    Args:
        data: name of a data set, or a file .npy, .npz or .csv.
        method: importance; annealed, along a path to the posterior; sandwich, between a lower and
            an upper bound; the paper's reciprocal (appendix D); quadrature for one or two latent
            dimensions; exact where the model has a formula or few discrete values.
        proposal: draws of the guide, a density fitted to HMC draws (importance), or the prior
            (annealed, sandwich); auto does without the guide for a run that has none.
        num_particles: K draws per datum of the proposal.
        num_draws: HMC draws per datum.
        chains: of each datum; 4 of HMC and 16 annealed ones where none are given.
        num_temperatures: of annealing; the bounds close in as they rise.
        num_data: the first so many test data only.
        seed: of the noise, and of an untrained model's parameters.
        out: folder for evidence.csv, one row a datum.
        binarize: how pixels become 0 and 1; default is what suits the data.
        data_dir: folder that holds the data sets' files (default: PYRO_VAE_DATA).
        scale: what the values of a file are divided by, such as 255.
        key: which array of a .npz is x; not needed for one named x, or for the only one.
        labels_key: the array of a .npz, or the column of a .csv, that holds labels.
        header: whether the first line of a .csv names the columns; auto finds out.
        cluster: where rows are shared out, in pieces with noise of their own: local for a process
            a core, a number of processes, or the address of a Dask scheduler.
    """
    judged = open_judged(
        folder, model, data, num_data, seed, binarize, data_dir, scale, key, labels_key, header
    )
    import pyro_vae as pv

    annealing = method in ("annealed", "sandwich")
    if proposal == "auto":
        proposal = "guide" if judged.has_guide else "prior" if annealing else "hmc"
    elif proposal == "guide" and not judged.has_guide and (annealing or method == "importance"):
        other = "prior" if annealing else "hmc"
        raise ValueError(f"{folder} was trained without a guide; use --proposal {other}")
    with results(out, "pandas"):
        found = pv.log_evidence(
            judged.program, judged.test, method=method, proposal=proposal,
            num_particles=num_particles, num_draws=num_draws, chains=chains,
            num_temperatures=num_temperatures, seed=seed, cluster=cluster_of(cluster),
        )  # fmt: skip
        if out is not None:
            import pandas as pd

            columns = {"log_evidence": found.value, **found.columns()}
            del columns["value"]
            table = pd.DataFrame({n: v.cpu().numpy() for n, v in columns.items()})
            table.index.name = "datum"
            put(out / "evidence.csv", table.to_csv)
        heading = f"{judged.name} on {len(found.value):,} test rows of {judged.loaded.name}"
        print(heading if found.measured is None else f"{heading} ({found.measured.method})")
        for line in _lines(found, method):
            print(line)
        if out is not None:
            print(f"written: {out / 'evidence.csv'}")
    return 0


def _lines(found: Any, method: str) -> list[str]:
    """What was found, in words."""
    rows = len(found.value)
    noise = float(found.standard_error.square().sum().sqrt()) / rows
    lines = [
        f"log p(x) {found.mean():.3f} ± {found.mean_standard_error():.3f} nats per datum "
        f"(standard error over data; of the estimate {noise:.3f})"
    ]
    if method == "sandwich":
        gap = found.upper - found.lower
        lines += [
            f"at least {float(found.lower.mean()):.3f}: lower bound, in expectation",
            f"at most  {float(found.upper.mean()):.3f}: upper bound, if the chains have converged "
            f"(R-hat above 1.1 for {int((~(found.rhat <= 1.1)).sum())} of {rows})",
            f"between them {float(gap.mean()):.3f} nats in the mean, and "
            f"{float(gap.max()):.3f} at most",
        ]
    if not found.ess.isnan().all():
        said = f"median ESS {float(found.ess.median()):.1f}"
        if not found.khat.isnan().all():
            bad = int((~(found.khat <= 0.7)).sum())  # nan counts
            said += f"; khat not below 0.7 for {bad} of {rows}"
        lines.append(said)
    return lines
