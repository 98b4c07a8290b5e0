"""``pyro-vae evidence``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pyro_vae import defaults
from pyro_vae.cli.building import Model
from pyro_vae.cli.judged import open_judged
from pyro_vae.cli.sources import Binarization, Header, put, results


def run_evidence(
    folder: str | None,
    model: Model | None,
    /,
    *,
    data: str = "digits",
    method: Literal["importance", "reciprocal"] = defaults.METHOD,
    proposal: Literal["auto", "guide", "hmc"] = "auto",
    num_particles: int = defaults.NUM_PARTICLES,
    num_draws: int = defaults.NUM_DRAWS,
    num_data: int | None = None,
    seed: int = defaults.SEED,
    out: Path | None = None,
    binarize: Binarization = "default",
    data_dir: Path | None = None,
    scale: float | None = None,
    key: str | None = None,
    labels_key: str | None = None,
    header: Header = "auto",
) -> int:
    """Estimate log p(x) on test data, by a saved run or by an untrained model.

    Args:
        data: name of a data set, or a file .npy, .npz or .csv.
        method: importance, or the paper's reciprocal (appendix D).
        proposal: draws of the guide, or a density fitted to HMC draws; auto is hmc for a run
            without a guide.
        num_particles: K draws per datum of the proposal.
        num_draws: HMC draws per datum.
        num_data: the first so many test data only.
        seed: of the noise, and of an untrained model's parameters.
        out: folder for evidence.csv, one row a datum.
        binarize: how pixels become 0 and 1; default is what suits the data.
        data_dir: folder that holds the data sets' files (default: PYRO_VAE_DATA).
        scale: what the values of a file are divided by, such as 255.
        key: which array of a .npz is x; not needed for one named x, or for the only one.
        labels_key: the array of a .npz, or the column of a .csv, that holds labels.
        header: whether the first line of a .csv names the columns; auto finds out.
    """
    judged = open_judged(
        folder, model, data, num_data, seed, binarize, data_dir, scale, key, labels_key, header
    )
    import pyro_vae as pv

    if proposal == "auto":
        proposal = "guide" if judged.has_guide else "hmc"
    elif proposal == "guide" and not judged.has_guide and method == "importance":
        raise ValueError(f"{folder} was trained without a guide; use --proposal hmc")
    with results(out, "pandas"):
        found = pv.log_evidence(
            judged.program, judged.test, method=method, proposal=proposal,
            num_particles=num_particles, num_draws=num_draws, seed=seed,
        )  # fmt: skip
        if out is not None:
            import pandas as pd

            columns = {"log_evidence": found.value, **found._asdict()}
            del columns["value"]
            table = pd.DataFrame({n: v.cpu().numpy() for n, v in columns.items()})
            table.index.name = "datum"
            put(out / "evidence.csv", table.to_csv)
        rows = len(found.value)
        noise = float(found.standard_error.square().sum().sqrt()) / rows
        how = "reciprocal, HMC draws" if method == "reciprocal" else f"importance, {proposal}"
        print(f"{judged.name} on {rows:,} test rows of {judged.loaded.name} ({how})")
        print(
            f"log p(x) {found.mean():.3f} ± {found.mean_standard_error():.3f} nats per datum "
            f"(standard error over data; of the sampling {noise:.3f})"
        )
        bad = int((~(found.khat <= 0.7)).sum())  # nan counts
        print(f"median ESS {float(found.ess.median()):.1f}; khat not below 0.7 for {bad} of {rows}")
        if out is not None:
            print(f"written: {out / 'evidence.csv'}")
    return 0
