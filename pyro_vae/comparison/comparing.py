r"""``compare``: objectives side by side, with the same nets, data order and budget.

Every run of a seed starts from the same initial parameters and draws its minibatches in the same
order (Monte Carlo EM stays on each for its five updates, so it draws fewer of them); every program
is scored by the same routine on the same held-out data with the same noise.  So differences are
paired, by datum and seed, with an error of their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from pyro_vae import defaults, errors
from pyro_vae.chains.latents import Latents
from pyro_vae.chains.sampling import LEAST_WARMUP
from pyro_vae.comparison.sweeps import Key, Score, swept
from pyro_vae.comparison.table import Comparison, dataset_of
from pyro_vae.datasets.data.arrays import from_array
from pyro_vae.datasets.data.base import Data, DataSet
from pyro_vae.densities.look import Look
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.evidence.bound import elbo
from pyro_vae.evidence.estimate import log_evidence
from pyro_vae.evidence.markov import CHAINS, require_enough_draws
from pyro_vae.noise import Stream, seeded
from pyro_vae.objectives.base import names_of
from pyro_vae.optimizers import Adagrad
from pyro_vae.program.calling import evaluating
from pyro_vae.program.inputs import as_rows
from pyro_vae.runs.run import Run
from pyro_vae.runs.storage import MANIFEST
from pyro_vae.training.fitting import fit
from pyro_vae.turns import in_turn, taking_turns

MOST_SEEDS = 10_000


def compare(
    data: Any,
    *,
    builds: Mapping[str, Callable[[], nn.Module]],
    objectives: Sequence[Any],
    seeds: int = defaults.SEEDS,
    samples: int = defaults.SAMPLES,
    optimizer: Callable[..., torch.optim.Optimizer] = Adagrad,
    proposal: Literal["guide", "hmc"] = "hmc",
    num_particles: int = 500,
    num_draws: int = 160,
    warmup: int = 40,
    leapfrog_steps: int = 5,
    cluster: Any = None,
    out: str | Path | None = None,
    arrived: Callable[[Key, Score], Any] | None = None,
    **options: Any,
) -> Comparison:
    """Train every model under every objective and score all of them on held-out data alike.

    Args:
        data: a ``DataSet`` with ``train``, ``test`` and, for the curves, ``validation``; parts
            that are arrays or dicts of them become ``Data``.
        builds: name -> a callable that makes an untrained program; it is called under the run's
            seed, so objectives start from the same parameters.
        objectives: instances of ``pv.objectives``.
        seeds: how many runs of each; they train side by side as one batched program.  One says how
            runs differ, not how objectives do; two are enough for an interval, three make it a
            third as wide.
        samples: the budget of a run, rows x updates.
        optimizer: as in ``pv.fit``, but by default the paper's author's Adagrad, because
            wake-sleep does not survive plain Adagrad's first steps.
        proposal: what log p(x) is importance-sampled from: "hmc" puts algorithms with and without
            a guide on equal terms, "guide" is quicker where all have one.
        num_particles: K draws of the proposal per held-out datum.
        num_draws, warmup, leapfrog_steps: of the chains behind "hmc", as in ``pv.log_evidence``,
            though fewer and shorter by default.
        cluster: train and score each run in some process of a Dask cluster: "local" for one process
            a core of this machine, a number of processes, the address of a scheduler, or a
            ``distributed.Client``.  Replicas then do not train side by side, so numbers are those
            of one process up to rounding.
        out: with ``cluster``, a folder for what is done: a comparison that was stopped goes on in
            it, and no run in it is made twice.
        arrived: with ``cluster``, called with (model, objective, seed) and its scores as they come.
        options: any others of ``pv.fit``, such as batch_size, lr, engine or progress.

    Returns:
        :class:`Comparison`.

    Raises:
        ValueError: models with different likelihoods, because their nats are on different scales;
            parts of the data with different binarizations; or, under "hmc", too few draws for the
            latent dimensions, or latents that HMC cannot move.
    """
    if not (hasattr(data, "train") and hasattr(data, "test")):
        raise TypeError(
            f"data is {type(data).__name__}, expected a DataSet with train and test: "
            'pv.datasets.load("digits"), or pv.datasets.split(pv.datasets.from_array(x))'
        )
    data = _with_data(data)
    if not builds or not objectives:
        raise ValueError("compare needs at least one build and one objective")
    seeds = errors.whole("seeds", seeds, 1, MOST_SEEDS, why="they train side by side")
    samples = errors.whole("samples", samples)
    scoring: dict[str, Any] = {
        "num_particles": errors.whole("num_particles", num_particles),
        "num_draws": errors.whole("num_draws", num_draws),
        "warmup": errors.whole("warmup", warmup, LEAST_WARMUP, why="they tune the step"),
        "leapfrog_steps": errors.whole("leapfrog_steps", leapfrog_steps),
    }
    if proposal not in ("guide", "hmc"):
        raise ValueError(f'proposal is {proposal!r}, expected "guide" or "hmc"')
    names = names_of(objectives)
    if proposal == "guide" and not all(getattr(o, "has_bound", True) for o in objectives):
        raise ValueError(
            'proposal="guide" needs a trained guide, and Monte Carlo EM has none: use "hmc" for all'
        )
    _refuse_different_binarizations(data)
    programs = {name: built(build, 0) for name, build in builds.items()}
    in_turn(_refuse_different_likelihoods, programs, data.train)
    if proposal == "hmc":
        for program in programs.values():  # before anything is trained
            with evaluating(program):
                dim = in_turn(Latents.of, program, as_rows(data.train[:2], program)).dim
            require_enough_draws(scoring["num_draws"], CHAINS, dim)
    scoring["proposal"] = proposal
    options |= {"samples": samples, "optimizer": optimizer}
    options["validation"] = data.test if data.validation is None else data.validation
    runs: dict[Key, Run] = {}
    scores: dict[Key, Score] = {}
    if cluster is not None:
        by_name = dict(zip(names, objectives, strict=True))
        keys = [(m, o, s) for m in builds for o in names for s in range(seeds)]
        work = partial(_run, builds=builds, objectives=by_name, scoring=scoring, options=options)
        runs, scores = swept(
            work, keys, fresh=lambda key: built(builds[key[0]], key[2]), data=data,
            settings={key: {**options, **scoring, "objective": by_name[key[1]]} for key in keys},
            cluster=cluster, out=out, arrived=arrived,
        )  # fmt: skip
        return Comparison(runs, dataset_of(data, list(builds), names, seeds, runs, scores))
    if out is not None or arrived is not None:
        raise ValueError('out and arrived belong to a cluster: pass cluster="local", or leave them')
    for model, build in builds.items():
        for name, objective in zip(names, objectives, strict=True):
            fresh = [built(build, seed) for seed in range(seeds)]
            trained = fit(fresh, data.train, objective, seed=list(range(seeds)), **options)
            has_bound = getattr(objective, "has_bound", True)
            for seed, run in enumerate(trained):
                runs[model, name, seed] = run
                scores[model, name, seed] = _score(run.program, data.test, has_bound, scoring)
    return Comparison(runs, dataset_of(data, list(builds), names, seeds, runs, scores))


def _run(
    key: Key,
    folder: Path,
    data: Any,
    *,
    builds: Mapping[str, Callable[[], nn.Module]],
    objectives: Mapping[str, Any],
    scoring: dict[str, Any],
    options: dict[str, Any],
) -> tuple[Run, Score]:
    """Train one run in a folder, going on from what is there, and score it."""
    model, name, seed = key
    objective = objectives[name]
    goes_on = (folder / MANIFEST).exists()
    options = {"progress": False, **options, "seed": seed, "out": folder, "resume": goes_on}
    run = fit(built(builds[model], seed), data.train, objective, **options)
    has_bound = getattr(objective, "has_bound", True)
    return run, _score(run.program, data.test, has_bound, scoring)


def _with_data(data: Any) -> Any:
    """Parts that are no ``Data`` made into such, unbinarized."""
    train, validation, test = (getattr(data, n, None) for n in ("train", "validation", "test"))
    if all(part is None or hasattr(part, "binarize") for part in (train, validation, test)):
        return data

    def made(part: Any) -> Data:
        return part if hasattr(part, "binarize") else from_array(part)

    held_out = None if validation is None else made(validation)
    return DataSet(getattr(data, "name", "data"), made(train), held_out, made(test))


@taking_turns
def built(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with seeded(*Stream.PARAMETERS.key(seed)):
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
        sites = Look.at(program, as_rows(data[:2], program)).observations
        if not sites:
            raise ValueError(
                f'builds["{name}"] has no site that observes x, expected one: '
                "pv.check(program, x) says more"
            )
        kinds[name] = " and ".join(
            f"{site.family} of event shape {tuple(site.event_shape)}" for site in sites.values()
        )
    if len(set(kinds.values())) > 1:
        raise ValueError(
            f"the models have different likelihoods ({kinds}), so their nats are on different "
            "scales: compare models of one likelihood at a time"
        )


def _refuse_different_binarizations(data: Any) -> None:
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    kinds = {name: part.binarize for name, part in parts.items() if part is not None}
    if len(set(kinds.values())) > 1:
        raise ValueError(
            f"parts of the data are binarized differently ({kinds}), so what is trained is not "
            "what is scored: load them with one binarize"
        )


def _score(
    program: nn.Module, test: Any, has_bound: bool, scoring: dict[str, Any]
) -> dict[str, np.ndarray]:
    with warnings.catch_warnings():  # the table has columns for it
        warnings.simplefilter("ignore", PyroVaeWarning)
        evidence = log_evidence(program, test, **scoring)
    bound = elbo(program, test).double().cpu().numpy() if has_bound else None
    return {
        "bound": np.full(len(evidence.value), np.nan) if bound is None else bound,
        "log_evidence": evidence.value.cpu().numpy(),
        "standard_error": evidence.standard_error.cpu().numpy(),
        "khat": evidence.khat.cpu().numpy(),
        "rhat": evidence.rhat.cpu().numpy(),
    }
