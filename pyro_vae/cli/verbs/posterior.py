"""``pyro-vae posterior``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pyro_vae import defaults
from pyro_vae.cli.building import Model
from pyro_vae.cli.judged import open_judged
from pyro_vae.cli.sources import Binarization, Header, cluster_of


def run_posterior(
    folder: str | None,
    model: Model | None,
    /,
    *,
    out: Path | None = None,
    data: str = "digits",
    num_draws: int = 500,
    chains: int = 4,
    num_prior: int = 100,
    predictive: bool = True,
    num_simulations: int = 0,
    refined: Literal["none", "psis", "hmc", "guide"] = "none",
    num_data: int | None = None,
    seed: int = defaults.SEED,
    batch_size: int = 100,
    binarize: Binarization = "default",
    data_dir: Path | None = None,
    scale: float | None = None,
    key: str | None = None,
    labels_key: str | None = None,
    header: Header = "auto",
    cluster: str | None = None,
) -> int:
    """Write draws of the posterior of test data, and what judges them, for ArviZ.

    Args:
        out: the file to write, posterior.nc or posterior.zarr; it must not exist.
        data: name of a data set, or a file .npy, .npz or .csv.
        num_draws: draws per datum and chain.
        chains: the draws of a datum are dealt to so many.
        num_prior: draws of the prior per datum; 0 leaves the prior groups out.
        predictive: draw data too, which makes the largest groups.
        num_simulations: simulated data for calibration (group prior_sbc); 0 leaves it out.
        refined: draws better than the guide's in a group of their own, posterior_refined.
        num_data: the first so many test data only.
        seed: of the noise, and of an untrained model's parameters.
        batch_size: rows at a time.
        binarize: how pixels become 0 and 1; default is what suits the data.
        data_dir: folder that holds the data sets' files (default: PYRO_VAE_DATA).
        scale: what the values of a file are divided by, such as 255.
        key: which array of a .npz is x; not needed for one named x, or for the only one.
        labels_key: the array of a .npz, or the column of a .csv, that holds labels.
        header: whether the first line of a .csv names the columns; auto finds out.
        cluster: where rows are drawn for: local for a process a core, a number of processes, or
            the address of a Dask scheduler.
    """
    if out is None:
        raise ValueError("where to? --out posterior.nc, or posterior.zarr")
    from pyro_vae.inference_data.stores import require_path

    require_path(out)  # before a run is loaded
    judged = open_judged(
        folder, model, data, num_data, seed, binarize, data_dir, scale, key, labels_key, header
    )
    if not judged.has_guide:
        raise ValueError(
            f"{folder} was trained without a guide, whose draws these would be: draw by HMC, "
            "pyro_vae.chains.sample_posterior(program, x)"
        )
    import pyro_vae as pv

    result = pv.to_inference_data(
        judged.program if judged.run is None else judged.run, judged.test, num_draws=num_draws,
        chains=chains, num_prior=num_prior, predictive=predictive, num_simulations=num_simulations,
        refined=None if refined == "none" else refined, seed=seed, batch_size=batch_size, out=out,
        cluster=cluster_of(cluster),
    )  # fmt: skip
    rows = len(judged.test)
    print(f"{judged.name} on {rows:,} test rows of {judged.loaded.name}")
    stats = result["sample_stats"]
    if "khat" in stats:
        bad = int((~(stats["khat"] <= 0.7)).sum())  # nan counts
        print(f"khat not below 0.7 for {bad} of {stats['khat'].size}")
    print(f"written: {out}")
    return 0
