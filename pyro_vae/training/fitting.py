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
from pyro_vae.engine.choosing import make_step, require_alike, translate
from pyro_vae.engine.functions import WeightPrior
from pyro_vae.engine.learner import Ask
from pyro_vae.engine.ranked import step_among
from pyro_vae.engine.ranks import current
from pyro_vae.noise import LOOK
from pyro_vae.objectives.aevb import AEVB
from pyro_vae.objectives.base import Objective
from pyro_vae.program.inputs import gathered
from pyro_vae.progress import Record, reporter
from pyro_vae.runs.run import Run
from pyro_vae.runs.writer import sole_writer
from pyro_vae.training.advice import (
    warn_about_divergence,
    warn_at_floor,
    warn_if_nothing_is_rounded,
    warn_if_nothing_moves,
    warn_if_warmup_never_ends,
)
from pyro_vae.training.checkpoint import engine_of, go_on, keeping
from pyro_vae.training.lockstep import in_lockstep
from pyro_vae.training.loop import rows_of
from pyro_vae.training.ranks import among_ranks, begin
from pyro_vae.training.renewing import Renewal
from pyro_vae.training.replicas import is_several, side_by_side
from pyro_vae.training.setting_up import described, set_up
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
    matmul_precision: str = defaults.MATMUL_PRECISION,
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
        matmul_precision: "medium" takes large matrix products of the gradients in bfloat16, where
            the processor has instructions for them: rounded to three digits, summed in single
            precision.  Large nets train 1.6 times as fast there; MNIST's test bound differed by
            0.01 nats with a standard error of 0.05.  All that is evaluated stays "highest".
        validation: held-out data, scored by ``pv.elbo`` at the same noise each time.
        evaluate_every: updates between held-out evaluations (default: 20 in the whole run).
        early_stopping: stop once the held-out bound has not risen by more than the standard error
            of its paired difference for this many evaluations.
        keep: which weights the program, ``out`` and ``pv.load`` have in the end: "best" those of
            the highest held-out bound, "last" those of the last step.  Default: "best" under
            early stopping, else "last"; the manifest says ``kept_step``.  A run that goes on does
            so from its last weights, whatever was kept.
        callbacks: each called with a :class:`Record`; one that returns True ends the run.  One may
            change the program or the objective, whose step is then made anew; what is no tensor is
            not saved, so a resumed run has it again from its first record on.
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
            in_turn(set_up, p, x, objective, chosen, s, name if many else "")
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
        making = partial(
            make, first.learner, engine, ask, prior=prior, num_steps=num_steps,
            replicas=len(loops) if many else 0, precision=matmul_precision,
        )  # fmt: skip
        step = in_turn(making)
        warn_if_nothing_is_rounded(step.graph, matmul_precision)
        if step.reason:
            logger.info("engine %s: %s", step.engine, step.reason)
        manifests = [
            in_turn(described, loop, x, s, step) for loop, s in zip(loops, settings, strict=True)
        ]
        if writer is not None and resume:
            held = {n: b.clone() for n, b in first.learner.program.named_buffers()}
            in_turn(go_on, writer.folder, first, manifests[0], num_steps)
            now = dict(first.learner.program.named_buffers())
            if any(not torch.equal(now[name], value) for name, value in held.items()):
                step = in_turn(making)  # which may have read them as numbers
        begin(ranks, loops, manifests, num_steps, None if writer is None else writer.folder)

        renewal = Renewal(loops, making, ask, prior, ranks.size)
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
            stopped = in_lockstep(loops, step, num_steps, renewal if told else None)
        runs = []
        for loop, manifest in zip(loops, manifests, strict=True):
            loop.finish()
            in_turn(warn_at_floor, loop.learner.program, example)
            warn_about_divergence(history := loop.history.frame(), loop.learner.name)
            manifest |= {**loop.totals(), "stopped": stopped}
            runs.append(Run(loop.learner.program, history, manifest, loop.state))
        return runs if many else runs[0]
