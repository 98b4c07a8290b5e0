"""``pyro-vae check | fit | evidence``.

Positional parameters are what stands without a flag; keyword parameters are flags.  ``model`` is a
:class:`~pyro_vae.cli.sources.Model` and ``model_options`` what its own flags say.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, Literal

from pyro_vae.cli.sources import (
    Binarization,
    Model,
    find_objective,
    find_optimizer,
    open_data,
    put,
    require_device,
    results,
)
from pyro_vae.errors import PyroVaeWarning


def run_check(
    model: Model,
    model_options: dict[str, Any],
    /,
    *,
    data: str = "digits",
    binarize: Binarization = "default",
    data_dir: Path | None = None,
    scale: float | None = None,
    labels_key: str | None = None,
    seed: int = 0,
) -> int:
    """Look a model over on a few rows, before any training.

    Args:
        data: name of a data set, or a file .npy, .npz or .csv.
        binarize: how pixels become 0 and 1; default is what suits the data.
        data_dir: folder that holds the data sets' files (default: PYRO_VAE_DATA).
        scale: what the values of a file are divided by, such as 255.
        labels_key: the array of a .npz, or the column of a .csv, that holds labels.
        seed: of the initial parameters.
    """
    import pyro_vae as pv

    loaded = open_data(data, binarize, data_dir, scale, labels_key)
    print(pv.check(model.make(loaded.dim, seed, model_options), loaded.train))
    return 0


def run_fit(
    model: Model,
    model_options: dict[str, Any],
    objective_options: dict[str, Any],
    /,
    *,
    data: str = "digits",
    objective: str = "AEVB",
    samples: int | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int = 100,
    lr: float = 0.02,
    optimizer: str = "adagrad",
    clip: float | None = None,
    weight_prior: float = 0.0,
    seed: int = 0,
    engine: str = "auto",
    device: str | None = None,
    early_stopping: int | None = None,
    evaluate_every: int | None = None,
    out: Path | None = None,
    resume: bool = False,
    checkpoint_every: float | None = None,
    binarize: Binarization = "default",
    data_dir: Path | None = None,
    scale: float | None = None,
    labels_key: str | None = None,
) -> int:
    """Train a model by one objective.

    Args:
        data: name of a data set, or a file .npy, .npz or .csv.
        objective: a name from pyro_vae.objectives; --objective.OPTION are its options.
        samples: the budget, rows x updates; or one of --epochs and --steps.
        epochs: the budget, in passes over the data.
        steps: the budget, in updates.
        batch_size: rows a minibatch.
        lr: the step size.
        optimizer: adagrad, adam, sgd, or accumulating_adagrad, the paper's author's.
        clip: the largest norm of the whole gradient.
        weight_prior: precision of a normal prior on weight matrices; the paper's is 1.
        seed: of initial parameters, data order and noise.
        engine: auto, compiled or eager (the captured graph), or pyro.
        device: cpu or cuda.
        early_stopping: stop after so many evaluations without a better held-out bound.
        evaluate_every: updates between held-out evaluations.
        out: folder for the run, its history.csv and learning_curve.png.
        resume: go on from what the folder of --out holds.
        checkpoint_every: seconds between saves.
        binarize: how pixels become 0 and 1; default is what suits the data.
        data_dir: folder that holds the data sets' files (default: PYRO_VAE_DATA).
        scale: what the values of a file are divided by, such as 255.
        labels_key: the array of a .npz, or the column of a .csv, that holds labels.
    """
    budget = {"samples": samples, "epochs": epochs, "steps": steps}
    if sum(value is not None for value in budget.values()) != 1:
        raise ValueError(
            "the budget needs exactly one of --samples, --epochs and --steps, such as "
            "--samples 150_000"
        )
    for name, needs in (("resume", resume), ("checkpoint_every", checkpoint_every)):
        if needs and out is None:
            raise ValueError(f"--{name} needs a folder: pass --out DIR")
    if out is not None and not resume and (out / "checkpoint.json").exists():
        raise ValueError(
            f"--out {out}: holds a saved run, which would be lost; pass --resume to go on from it, "
            "or name another folder"
        )
    chosen = find_objective(objective)(**objective_options)
    maker = find_optimizer(optimizer)
    require_device(device)
    import pyro_vae as pv

    loaded = open_data(data, binarize, data_dir, scale, labels_key)
    program = model.make(loaded.dim, seed, model_options)
    with results(out):
        run = pv.fit(
            program, loaded.train, chosen, samples=samples, epochs=epochs, steps=steps,
            batch_size=batch_size, optimizer=maker, lr=lr, clip=clip, weight_prior=weight_prior,
            seed=seed, device=device, engine=engine, early_stopping=early_stopping,
            validation=loaded.validation, evaluate_every=evaluate_every, out=out, resume=resume,
            checkpoint_every=checkpoint_every,
        )  # fmt: skip
        manifest = run.manifest
        print(
            f"{model.name} on {loaded.name}: {manifest['objective']}, "
            f"{manifest['samples']:,} samples in {manifest['seconds']:.1f} s, "
            f"{manifest['stopped']}"
        )
        if chosen.has_bound:
            bound = pv.elbo(program, loaded.test).double()
            error = _error_of_mean(bound)
            print(f"test bound {float(bound.mean()):.2f} ± {error:.2f} nats, {len(bound):,} rows")
        else:
            print(f"{objective} has no bound: see pyro-vae evidence DIR --proposal hmc")
        if out is None:
            print("nothing is saved: pass --out DIR")
            return 0
        from pyro_vae.plotting import training_curve

        put(out / "history.csv", lambda path: run.history.to_csv(path, index=False))
        put(out / "learning_curve.png", lambda path: training_curve(run.history, path))
    print(f"written: {out}: the run, history.csv and learning_curve.png")
    return 0


def run_evidence(
    target: str | Model,
    model_options: dict[str, Any],
    /,
    *,
    data: str = "digits",
    program: Model | None = None,
    method: Literal["importance", "reciprocal"] = "importance",
    proposal: Literal["auto", "guide", "hmc"] = "auto",
    num_particles: int = 1000,
    num_draws: int = 200,
    num_data: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    binarize: Binarization = "default",
    data_dir: Path | None = None,
    scale: float | None = None,
    labels_key: str | None = None,
) -> int:
    """Estimate log p(x) on test data, by a saved run or by an untrained model.

    Args:
        data: name of a data set, or a file .npy, .npz or .csv.
        program: the model of a run that was made by a file of your own, path/to/file.py:build.
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
        labels_key: the array of a .npz, or the column of a .csv, that holds labels.
    """
    if num_data is not None and num_data < 1:
        raise ValueError(f"--num_data is {num_data}, expected a whole number from 1 on")
    import pyro_vae as pv

    loaded = open_data(data, binarize, data_dir, scale, labels_key)
    trained = True
    if isinstance(target, Model):
        made, name = target.make(loaded.dim, seed, model_options), f"{target.name}, untrained"
    else:
        mine = None if program is None else program.make(loaded.dim, seed, model_options)
        try:
            run = pv.load(target, mine)
        except ValueError as error:
            if mine is None and "program=mine" in str(error):
                why = str(error).split(":")[0]
                raise ValueError(f"{why}: pass --program path/to/file.py:build") from error
            raise
        made, name = run.program, target
        trained = not str(run.manifest["objective"]).startswith("MonteCarloEM")
        width = list(loaded.test.x.shape[1:])
        if isinstance(target, str) and run.manifest["row"].get("shape", width) != width:
            raise ValueError(
                f"--data {data} has rows of shape {width}, expected "
                f"{run.manifest['row']['shape']} as {target} was trained on"
            )
        _warn_about_other_data(run.manifest, loaded, data)
    if proposal == "auto":
        proposal = "guide" if trained else "hmc"
    elif proposal == "guide" and not trained and method == "importance":
        raise ValueError(f"{target} was trained without a guide; use --proposal hmc")
    test = loaded.test if num_data is None else loaded.test[:num_data]
    with results(out):
        found = pv.log_evidence(
            made, test, method=method, proposal=proposal, num_particles=num_particles,
            num_draws=num_draws, seed=seed,
        )  # fmt: skip
        rows = len(found.value)
        noise = float(found.standard_error.square().sum().sqrt()) / rows
        how = "reciprocal, HMC draws" if method == "reciprocal" else f"importance, {proposal}"
        print(f"{name} on {rows:,} test rows of {loaded.name} ({how})")
        print(
            f"log p(x) {found.mean():.3f} ± {_error_of_mean(found.value):.3f} nats per datum "
            f"(standard error over data; of the sampling {noise:.3f})"
        )
        bad = int((~(found.khat <= 0.7)).sum())  # nan counts
        print(f"median ESS {float(found.ess.median()):.1f}; khat not below 0.7 for {bad} of {rows}")
        if out is not None:
            import pandas as pd

            columns = {"log_evidence": found.value, **found._asdict()}
            del columns["value"]
            table = pd.DataFrame({n: v.cpu().numpy() for n, v in columns.items()})
            table.index.name = "datum"
            print(f"written: {put(out / 'evidence.csv', table.to_csv)}")
    return 0


# --- parts --------------------------------------------------------------------------------------


def _warn_about_other_data(manifest: dict[str, Any], loaded: Any, data: str) -> None:
    if manifest["data_digest"] != loaded.train.digest:
        how = manifest["binarize"]
        warnings.warn(
            f"the run was trained on other data than --data {data} with binarize "
            f"{loaded.binarize}: its own were binarized {how}",
            PyroVaeWarning,
            stacklevel=2,
        )


def _error_of_mean(values: Any) -> float:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
