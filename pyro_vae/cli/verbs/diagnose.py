"""``pyro-vae diagnose``."""

from __future__ import annotations

from pathlib import Path

from pyro_vae import defaults
from pyro_vae.cli.building import Model
from pyro_vae.cli.judged import open_judged
from pyro_vae.cli.sources import Binarization, Header, cluster_of, put, results


def run_diagnose(
    folder: str | None,
    model: Model | None,
    /,
    *,
    data: str = "digits",
    num_data: int | None = None,
    simulated: bool = False,
    num_particles: int = defaults.NUM_PARTICLES,
    num_simulations: int = 10_000,
    num_close: int = 20,
    level: float = 0.01,
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
    """Say on one page how far to trust the posterior of a saved run, on test data.

    Args:
        data: name of a data set, or a file .npy, .npz or .csv.
        num_data: the first so many test data only.
        simulated: as many data drawn from the model in place of the test data.
        num_particles: K draws of the guide for each datum's log p(x) and khat.
        num_simulations: draws of the model for the calibration.
        num_close: data that are looked at closely, by chains and refits.
        level: the rate of false alarms of each verdict.
        seed: of the noise, and of an untrained model's parameters.
        out: folder for diagnosis.txt, latents.csv, data.csv and a picture for each question.
        binarize: how pixels become 0 and 1; default is what suits the data.
        data_dir: folder that holds the data sets' files (default: PYRO_VAE_DATA).
        scale: what the values of a file are divided by, such as 255.
        key: which array of a .npz is x; not needed for one named x, or for the only one.
        labels_key: the array of a .npz, or the column of a .csv, that holds labels.
        header: whether the first line of a .csv names the columns; auto finds out.
        cluster: where log p(x) of all data is estimated by rows: local for a process a core, a
            number of processes, or the address of a Dask scheduler (pip install
            'pyro-vae[cluster]').
    """
    judged = open_judged(
        folder, model, data, num_data, seed, binarize, data_dir, scale, key, labels_key, header
    )
    import pyro_vae as pv

    if not judged.has_guide:
        raise ValueError(
            f"{folder} was trained without a guide, so there is none to diagnose: use pyro-vae "
            "evidence --proposal hmc"
        )
    with results(out, "pandas", "matplotlib"):
        found = pv.diagnose(
            judged.program, len(judged.test) if simulated else judged.test,
            like=judged.test if simulated else None, num_particles=num_particles,
            num_simulations=num_simulations, num_close=num_close, level=level, seed=seed,
            cluster=cluster_of(cluster),
        )  # fmt: skip
        print(f"{judged.name} on {judged.loaded.name}\n\n{found}")
        if out is not None:
            put(out / "diagnosis.txt", lambda path: path.write_text(f"{found}\n", encoding="utf8"))
            put(out / "latents.csv", found.table().to_csv)
            put(out / "data.csv", found.data_table().to_csv)
            names = [f"{name}.png" for name in found.plot(out)]
            print(
                f"\nwritten to {out}: {', '.join(['diagnosis.txt, latents.csv, data.csv', *names])}"
            )
    return 0
