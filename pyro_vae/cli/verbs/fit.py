"""``pyro-vae fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pyro_vae import defaults
from pyro_vae.cli.building import Model
from pyro_vae.cli.ranks import rank
from pyro_vae.cli.sources import (
    Binarization,
    Header,
    find_objective,
    find_optimizer,
    open_data,
    put,
    require_device,
    results,
)


def run_fit(
    model: Model,
    objective_options: dict[str, Any],
    /,
    *,
    data: str = "digits",
    objective: str = "AEVB",
    samples: int | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int = defaults.BATCH_SIZE,
    lr: float | None = None,
    optimizer: str = "adagrad",
    clip: float | None = None,
    weight_prior: float = defaults.WEIGHT_PRIOR,
    seed: int = defaults.SEED,
    engine: str = defaults.ENGINE,
    matmul_precision: str = defaults.MATMUL_PRECISION,
    device: str | None = None,
    early_stopping: int | None = None,
    evaluate_every: int | None = None,
    keep: Literal["best", "last"] | None = None,
    out: Path | None = None,
    resume: bool = False,
    checkpoint_every: float | None = None,
    track: Path | None = None,
    binarize: Binarization = "default",
    data_dir: Path | None = None,
    scale: float | None = None,
    key: str | None = None,
    labels_key: str | None = None,
    header: Header = "auto",
) -> int:
    """Train a model by one objective.

    Args:
        data: name of a data set, or a file .npy, .npz or .csv.
        objective: a name from pyro_vae.objectives; --objective.OPTION are its options.
        samples: the budget, rows x updates; or one of --epochs and --steps.
        epochs: the budget, in passes over the data.
        steps: the budget, in updates.
        batch_size: rows a minibatch.
        lr: the step size; default is 0.02 for adagrad, as in the paper, else 0.001.
        optimizer: adagrad, adam, adamw, rmsprop, sgd, or the paper's, accumulating_adagrad.
        clip: the largest norm of the whole gradient.
        weight_prior: precision of a normal prior on weight matrices; the paper's is 1.
        seed: of initial parameters, data order and noise.
        engine: auto, compiled or eager (the captured graph), or pyro.
        matmul_precision: highest, or medium for large matrix products in bfloat16.
        device: cpu or cuda.
        early_stopping: stop after so many evaluations without a better held-out bound.
        evaluate_every: updates between held-out evaluations.
        keep: the weights to end with, best by the held-out bound or last; default is best under
            --early_stopping, else last.
        out: folder for the run, its history.csv and learning_curve.png.
        resume: go on from what the folder of --out holds.
        checkpoint_every: seconds between saves.
        track: a table (CSV) of the curve that is written while the run trains; it must be new, but
            for --resume.
        binarize: how pixels become 0 and 1; default is what suits the data.
        data_dir: folder that holds the data sets' files (default: PYRO_VAE_DATA).
        scale: what the values of a file are divided by, such as 255.
        key: which array of a .npz is x; not needed for one named x, or for the only one.
        labels_key: the array of a .npz, or the column of a .csv, that holds labels.
        header: whether the first line of a .csv names the columns; auto finds out.
    """
    chosen = find_objective(objective)(**objective_options)
    maker = find_optimizer(optimizer)
    require_device(device)
    import pyro_vae as pv
    from pyro_vae.evidence.bound import elbo_and_error

    gaps = model is not None and bool(model.options.get("missing"))
    loaded = open_data(data, binarize, data_dir, scale, key, labels_key, header, gaps)
    program = model.make(loaded, seed)
    if not (first := rank() == 0):  # of several processes one alone writes and prints
        out, resume, checkpoint_every, track = None, False, None, None
    with results(out, "matplotlib", "pandas"):
        run = pv.fit(
            program, loaded.train, chosen, samples=samples, epochs=epochs, steps=steps,
            batch_size=batch_size, optimizer=maker, lr=lr, clip=clip, weight_prior=weight_prior,
            seed=seed, device=device, engine=engine, matmul_precision=matmul_precision,
            early_stopping=early_stopping, validation=loaded.validation,
            evaluate_every=evaluate_every, out=out, resume=resume, keep=keep,
            checkpoint_every=checkpoint_every, tracker=track,
        )  # fmt: skip
        if not first:
            return 0
        if out is not None:
            from pyro_vae.plotting.figures import saved
            from pyro_vae.plotting.training import training_curve

            put(out / "history.csv", lambda path: run.history.to_csv(path, index=False))
            put(out / "learning_curve.png", lambda path: saved(training_curve(run).figure, path))
        manifest = run.manifest
        print(
            f"{model.name} on {loaded.name}: {manifest['objective']}, "
            f"{manifest['samples']:,} samples in {manifest['seconds']:.1f} s, "
            f"{manifest['stopped']}"
        )
        if manifest["keep"] == "best":
            print(
                f"weights of step {manifest['kept_step']:,}, the best of {manifest['steps']:,} by "
                f"the held-out bound, {manifest['best_validation_bound']:.2f}"
            )
        if chosen.has_bound:
            bound, error = elbo_and_error(program, loaded.test)
            print(f"test bound {float(bound.mean()):.2f} ± {error:.2f} nats, {len(bound):,} rows")
        else:
            print(f"{objective} has no bound: see pyro-vae evidence DIR --proposal hmc")
    if out is None:
        print("nothing is saved: pass --out DIR")
    else:
        print(f"written: {out}: the run, history.csv and learning_curve.png")
    return 0
