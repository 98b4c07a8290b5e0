"""``fit``: train any program under any objective with any engine, by one loop."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.infer.elbo import ELBO
from torch import nn

from pyro_vae import defaults
from pyro_vae.checking.guards import (
    require_all_data,
    require_own_parameters,
    require_possible_data,
)
from pyro_vae.densities.look import Look
from pyro_vae.densities.missing import readable_rows
from pyro_vae.engine.choosing import make_step, require_alike, suited, translate
from pyro_vae.engine.functions import WeightPrior
from pyro_vae.engine.learner import Ask, Learner
from pyro_vae.engine.ranked import step_among
from pyro_vae.engine.ranks import current
from pyro_vae.engine.steps import Step
from pyro_vae.noise import LOOK, NoiseMode, Stream, keyed, seeded
from pyro_vae.objectives.aevb import AEVB
from pyro_vae.objectives.base import EMPTY, Objective, name_of, objective_record
from pyro_vae.optimizers import make_optimizer, options_of
from pyro_vae.program.calling import materialize, require_learnable, require_program, trainable
from pyro_vae.program.inputs import gathered
from pyro_vae.program.rows import Rows, first_rows
from pyro_vae.program.stored import Stored
from pyro_vae.progress import Record, reporter
from pyro_vae.runs.held import objective_code, optimizer_record
from pyro_vae.runs.manifest import data_digest, form_of, manifest_of
from pyro_vae.runs.run import Run
from pyro_vae.runs.writer import sole_writer
from pyro_vae.training.advice import (
    warn_about_divergence,
    warn_at_floor,
    warn_if_nothing_moves,
    warn_if_warmup_never_ends,
)
from pyro_vae.training.batches import Batches
from pyro_vae.training.checkpoint import engine_of, go_on, keeping
from pyro_vae.training.lockstep import in_lockstep
from pyro_vae.training.loop import Loop, rows_of
from pyro_vae.training.ranks import among_ranks, begin
from pyro_vae.training.replicas import is_several, side_by_side
from pyro_vae.training.schedules import is_told, schedule_record, scheduler_of
from pyro_vae.training.settings import Settings
from pyro_vae.training.tracking import Tracker, trackers_of, tracking
from pyro_vae.turns import in_plain_surroundings, in_turn

logger = logging.getLogger("pyro_vae")


@among_ranks
@in_plain_surroundings
def fit(
    program: nn.Module | Sequence[nn.Module],
    x: Any,
    objective: Objective | ELBO | None = None,
    *,
    samples: int | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int = defaults.BATCH_SIZE,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adagrad,
    lr: float | Sequence[float] | None = None,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    clip: float | None = None,
    weight_prior: float = defaults.WEIGHT_PRIOR,
    seed: int | Sequence[int] = defaults.SEED,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    engine: str = defaults.ENGINE,
    validation: Any = None,
    evaluate_every: int | None = None,
    early_stopping: int | None = None,
    keep: str | None = None,
    callbacks: Iterable[Callable[[Record], Any]] = (),
    out: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: float | None = None,
    progress: bool | Callable[[Record], Any] | None = None,
    tracker: Tracker | str | Path | Sequence[Tracker] | None = None,
    replicas: int | None = None,
) -> Any:
    r"""Train a program in place.

    The defaults are the paper's: Adagrad with a global step of 0.02, minibatches of 100, one draw
    per datum.  Initialization belongs to the program's networks.  Gradients are those of the sum
    over the minibatch (times N / B under a subsampled plate), as in Pyro.

    Args:
        program: model and guide; trained in place.
        x: training data (N, ...): a ``Data``, a tensor, an array, a frame, or a dict of them, given
            to model and guide by name where they have such parameters (see
            :mod:`pyro_vae.program.arguments`); a tuple or a ``Dataset`` (see ``program.inputs``).
        objective: what to learn by (default ``AEVB()``); Pyro's ELBOs are accepted.
        samples, epochs, steps: the budget, exactly one of them; samples = rows x updates.
        batch_size: rows a minibatch.
        optimizer: a class of ``torch.optim``, or a callable from parameters to an optimizer;
            ``pv.optimizers.Adagrad`` is the paper's author's, with accumulate-only first steps.
        lr: the step size (default: 0.02, the paper's, for Adagrad; else the optimizer's own, such
            as 0.001 for Adam and SGD).  One that a function makes, or ``functools.partial`` with
            an ``lr``, has its own.
        schedule: from the optimizer to a learning-rate scheduler, stepped at every update; one
            whose ``step`` asks for a metric, ``ReduceLROnPlateau``, is instead told the held-out
            loss, minus the bound, at each evaluation (under ``mode="max"`` the bound itself, whose
            relative threshold torch turns round where it is negative: set
            ``threshold_mode="abs"`` there).
        clip: the largest norm of the whole gradient.
        weight_prior: precision of a N(0, 1 / precision) prior on weight matrices (parameters of
            two or more dimensions), adding precision (rows / N) w to the gradient; the paper's
            is 1.
        seed: of data order and noise.  Torch's global generator is neither read nor changed.
        device, dtype: move program and data there first.
        engine: "pyro" is ``pyro.infer.SVI`` step by step; "eager" runs the captured graph;
            "compiled" runs it as machine code, with the optimizer's update inside; "auto"
            compiles where the budget repays it, and the log and the manifest say why where it
            cannot.
        validation: held-out data, scored by ``pv.elbo`` at the same noise each time.
        evaluate_every: updates between held-out evaluations (default: 20 in the whole run).
        early_stopping: stop once the held-out bound has not risen by more than the standard error
            of its paired difference for this many evaluations.
        keep: which weights the program, ``out`` and ``pv.load`` have in the end: "best" those of
            the highest held-out bound, "last" those of the last step.  Default: "best" under
            early stopping, else "last"; the manifest says ``kept_step``.  A run that goes on does
            so from its last weights, whatever was kept.
        callbacks: each called with a :class:`Record`; one that returns True ends the run.
        out: a folder where the run is saved at regular times, at its end, on Ctrl-C, SIGTERM or
            SIGHUP, and at an error; ``pv.load(out)`` reads it.  One process may write there at a
            time.  Where the folder fails (a full disk), the state lies in one beside it, or in the
            temporary folder: the error says where.
        resume: go on from what ``out`` holds, or start, and say so, where it holds nothing.  The
            end has the bits of an uninterrupted run at the same number of threads.  A run that is
            finished goes on under a larger budget.
        checkpoint_every: a whole number counts updates between saves, a float such as 60.0
            seconds (default: a minute, and at most 2% of the time).
        progress: None shows a live line where stderr is a terminal, and else a line a minute;
            True and False insist on the live line and on none; a callable is given each
            :class:`Record`.
        tracker: where the numbers go while the run trains: a path of a table (CSV), or a
            :class:`~pyro_vae.training.Tracker`, as sbi's for Weights & Biases, MLflow and
            TensorBoard are; of replicas one for all or a list.  It is told settings, each record
            by its number of samples, and the curve at the end; what it raises is only warned of.
        replicas: R runs side by side as one batched program.  ``program``, ``seed`` and ``lr``
            may then be sequences of R; a single program is copied, and a single seed counts on
            (seed, seed + 1, ...).  Replica r is what a run of its own with the r-th of each
            would be, up to rounding.  A callback that ends one ends all.

    Returns:
        :class:`Run`; with replicas, or sequences, a list of them.

    Raises:
        ValueError: impossible options; or a loss or gradient that is not finite, named by site
            and step.  The parameters are then those before that step.  With ``out``: another
            process writes there.  With ``resume``: a damaged checkpoint, or one that was made with
            other settings, each named.
        KeyboardInterrupt, SystemExit: with ``out``, once SIGINT, SIGTERM (exit code 143) or SIGHUP
            (129) was obeyed after the step at hand; the message says how to go on.
        Exception: what a callback raises.  With ``out``, the last whole step is saved first, and a
            note of the error says where.
    """
    given = dict(locals())
    chosen = translate(AEVB() if objective is None else objective)
    options = {field.name: given[field.name] for field in dataclasses.fields(Settings)}
    many = replicas is not None or any(is_several(v) for v in (program, seed, lr))
    programs: list[Any] = [program]
    each = [options]
    if many:
        programs, each = side_by_side(program, options, replicas)
    settings = [Settings(**o) for o in each]
    x = gathered(x, programs[0])
    if validation is not None:
        held_out = gathered(validation, programs[0])
        settings = [dataclasses.replace(s, validation=held_out) for s in settings]
    with contextlib.nullcontext() if out is None else sole_writer(out, resume=resume) as writer:
        trackers = trackers_of(tracker, len(programs), append=resume)
        names = [f"replica {r} (seed {s.seed}, lr {s.lr}), " for r, s in enumerate(settings)]
        loops = [
            in_turn(_set_up, p, x, objective, chosen, s, name if many else "")
            for p, s, name in zip(programs, settings, names, strict=True)
        ]
        first = loops[0]
        chosen = first.learner.objective
        num_steps, num_samples = settings[0].budget(first.batches)
        warn_if_nothing_moves(first.learner.optimizer, num_steps)
        warn_if_warmup_never_ends(chosen, num_steps)
        index, example, weight, _ = first.batches(0)
        if writer is not None and resume and engine == "auto":
            engine = engine_of(writer.folder) or engine
        ranks = current()
        engine = ranks.first(lambda: engine)
        ask = ranks.own(Ask(False, example, weight, rows_of(first.state, index), LOOK))
        if engine != "pyro" and is_several(program):
            in_turn(require_alike, programs, chosen, ask)
        prior = WeightPrior(settings[0].weight_prior, first.batches.num_data)
        make = make_step if ranks.size == 1 else partial(step_among, ranks)
        step = in_turn(
            make, first.learner, engine, ask, prior=prior, num_steps=num_steps,
            replicas=len(loops) if many else 0,
        )  # fmt: skip
        if step.reason:
            logger.info("engine %s: %s", step.engine, step.reason)
        manifests = [
            in_turn(_manifest, loop, x, s, step) for loop, s in zip(loops, settings, strict=True)
        ]
        if writer is not None and resume:
            in_turn(go_on, writer.folder, first, manifests[0], num_steps)
        begin(ranks, loops, manifests, num_steps, None if writer is None else writer.folder)
        label = type(chosen).__name__ + (f" x {len(loops)}" if many else "")
        with (
            # Left from below: what is stopped is saved first, and trackers are told afterwards.
            tracking(trackers, manifests, lambda number: loops[number].history) as tracked,
            keeping(first, manifests[0], num_steps, writer, settings[0].checkpoint_every),
            reporter(progress, num_samples, label=label) as report,
        ):
            told = list(callbacks)
            for loop, track in zip(loops, tracked, strict=True):
                loop.listeners = [*([report] if loop is first else []), track, *told]
            stopped = in_lockstep(loops, step, num_steps)
        runs = []
        for loop, manifest in zip(loops, manifests, strict=True):
            loop.finish()
            in_turn(warn_at_floor, loop.learner.program, example)
            warn_about_divergence(history := loop.history.frame(), loop.learner.name)
            manifest |= {**loop.totals(), "stopped": stopped}
            runs.append(Run(loop.learner.program, history, manifest, loop.state))
        return runs if many else runs[0]


def _set_up(
    program: nn.Module, x: Any, given: Any, chosen: Any, settings: Settings, name: str
) -> Loop:
    """The loop of one program, ready to run."""
    require_program(program)
    require_learnable(program)
    program.to(device=settings.device, dtype=settings.dtype)
    rows = readable_rows(x, program, learning=True)
    batches = Batches(x, program, settings.batch_size, settings.seed, current())
    num_steps, _ = settings.budget(batches)
    first = batches(0)[1]
    materialize(program, first)
    look = Look.at(program, first, rows=None)
    require_possible_data(look, rows)
    require_all_data(look, batches.num_data)
    require_own_parameters(program, first)
    chosen = suited(given, chosen, look.guide)
    held_out = None
    if settings.validation is not None:
        held_out = readable_rows(settings.validation, program)
        theirs, ours = (first_rows(each, 1) for each in (held_out, rows))
        if form_of(theirs) != form_of(ours):
            raise ValueError(
                f"a row of validation is {_shape(theirs)}, expected {_shape(ours)} as in x; to "
                "flatten rows: x.reshape(len(x), -1)"
            )
        require_possible_data(look, held_out)
    for option, asked in (
        ("early_stopping", settings.early_stopping),
        ('keep="best"', settings.keep == "best"),
    ):
        if asked and not getattr(chosen, "has_bound", True):
            raise ValueError(
                f"{option} watches the held-out bound, and {type(chosen).__name__} has none: "
                "leave it out"
            )
    state = EMPTY
    if isinstance(chosen, Objective) and type(chosen).init is not Objective.init:
        key = Stream.INIT.key(settings.seed)
        with NoiseMode(keyed(*key)), seeded(*key):
            state = chosen.init(program, _all_that_it_keeps(rows, first, chosen))
    parameters = trainable(program)
    return Loop(
        learner=Learner(
            program=program,
            parameters=parameters,
            objective=chosen,
            optimizer=make_optimizer(settings.optimizer, parameters, settings.lr),
            clip=settings.clip,
            name=name,
        ),
        batches=batches,
        state=state,
        seed=settings.seed,
        validation=held_out,
        evaluate_every=settings.evaluate_every or max(1, num_steps // 20),
        record_every=max(1, num_steps // 200),
        patience=settings.early_stopping,
        keep_best=settings.keep == "best",
    )


def _all_that_it_keeps(x: Rows | Stored, first: Rows, objective: Objective) -> Rows:
    """The rows of which an objective keeps something: of a store only where it keeps any."""
    if not isinstance(x, Stored):
        return x
    return x.rows() if getattr(objective, "refresh_every", 0) else first


def _shape(x: Rows) -> Any:
    return {n: _shape(v) for n, v in x.items()} if isinstance(x, dict) else tuple(x.shape[1:])


def _manifest(loop: Loop, x: Any, settings: Settings, step: Step) -> dict[str, Any]:
    """What the numbers of a run depend on; its schedule is made here, once all else is known."""
    objective, optimizer = loop.learner.objective, loop.learner.optimizer
    schedule, validation = settings.schedule, settings.validation
    options = options_of(optimizer)  # before a schedule changes them
    if schedule is not None:
        loop.scheduler = scheduler_of(schedule, optimizer)
        watched = loop.validation is not None and getattr(objective, "has_bound", True)
        loop.scheduler_is_told = is_told(loop.scheduler, watched)
    return manifest_of(
        loop.learner.program,
        x,
        objective=name_of(objective),
        objective_record=objective_record(objective),
        objective_code=objective_code(objective),
        engine=step.engine,
        engine_reason=step.reason,
        optimizer=type(optimizer).__name__,
        optimizer_options=options,
        optimizer_record=optimizer_record(optimizer, loop.learner.parameters),
        schedule=None if schedule is None else type(loop.scheduler).__name__,
        schedule_record=schedule_record(schedule, loop.scheduler),
        lr=options.get("lr", settings.lr),
        batch_size=loop.batches.batch_size,
        weight_prior=settings.weight_prior,
        clip=settings.clip,
        seed=settings.seed,
        evaluate_every=settings.evaluate_every,
        validation_digest=None if validation is None else data_digest(validation),
        processes=current().size,
        row=form_of(loop.batches(0)[1]),
    )
