"""``fit``: train any program under any objective with any engine, by one loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.infer.elbo import ELBO
from torch import nn

from pyro_vae.checkpoint import SWITCHES, folder_for, go_on, keeping
from pyro_vae.contract import require_possible_data
from pyro_vae.diagnostics import warn_at_floor
from pyro_vae.engine import Parameters, trainable
from pyro_vae.history import data_digest, form_of, manifest_of
from pyro_vae.inputs import Batches, as_rows
from pyro_vae.loop import Loop, rows_of
from pyro_vae.noise import NoiseMode, keyed, seeded
from pyro_vae.objectives.aevb import AEVB
from pyro_vae.objectives.base import EMPTY, Objective
from pyro_vae.program import materialize, require_program
from pyro_vae.progress import Record, reporter
from pyro_vae.runs import Run
from pyro_vae.steps import make_step, plate_scale, translate

logger = logging.getLogger("pyro_vae")


def fit(
    program: nn.Module,
    x: Any,
    objective: Objective | ELBO | None = None,
    *,
    samples: int | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int = 100,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adagrad,
    lr: float = 0.02,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    clip: float | None = None,
    weight_prior: float = 0.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    engine: str = "auto",
    validation: Any = None,
    evaluate_every: int | None = None,
    early_stopping: int | None = None,
    callbacks: Iterable[Callable[[Record], Any]] = (),
    out: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: float | None = None,
    progress: bool | Callable[[Record], Any] | None = None,
) -> Run:
    r"""Train a program in place.

    The defaults are the paper's: Adagrad with a global step of 0.02, minibatches of 100, one draw
    per datum.  Initialization belongs to the program's networks.  Gradients are those of the sum
    over the minibatch (times N / B under a subsampled plate), as in Pyro.

    Args:
        program: model and guide; trained in place.
        x: training data: a ``Data``, a tensor, an array, or a dict of them, (N, ...).
        objective: what to learn by (default ``AEVB()``); Pyro's ELBOs are accepted.
        samples, epochs, steps: the budget, exactly one of them; samples = rows x updates.
        batch_size: rows a minibatch.
        optimizer: a class of ``torch.optim``, or a callable from parameters to an optimizer;
            ``pv.optimizers.Adagrad`` is the paper's author's, with accumulate-only first steps.
        lr: the step size; passed on where the optimizer takes an ``lr``.
        schedule: from the optimizer to a learning-rate scheduler, stepped at every update.
        clip: the largest norm of the whole gradient.
        weight_prior: precision of a N(0, 1 / precision) prior on weight matrices (parameters of
            two or more dimensions), adding precision (rows / N) w to the gradient; the paper's
            is 1.
        seed: of data order and noise.  Torch's global generator is neither read nor changed.
        device, dtype: move program and data there first.
        engine: "pyro" is ``pyro.infer.SVI`` step by step; "eager" runs the captured graph;
            "auto" chooses.
        validation: held-out data, scored by ``pv.elbo`` at the same noise each time.
        evaluate_every: updates between held-out evaluations (default: 20 in the whole run).
        early_stopping: stop once the held-out bound has not risen by more than the standard error
            of its paired difference for this many evaluations.
        callbacks: each called with a :class:`Record`; one that returns True ends the run.
        out: a folder where the run is saved at regular times, at its end, and on Ctrl-C or
            SIGTERM; ``pv.load(out)`` reads it.
        resume: go on from what ``out`` holds, or start where it holds nothing.  The end has the
            bits of an uninterrupted run at the same number of threads.  A run that is finished
            goes on under a larger budget.
        checkpoint_every: a whole number counts updates between saves, a float such as 60.0
            seconds (default: a minute, and at most 2% of the time).
        progress: None shows a line where stderr is a terminal; True and False insist; a callable
            is given each :class:`Record`.

    Returns:
        :class:`Run`.

    Raises:
        ValueError: impossible options; or a loss or gradient that is not finite, named by site
            and step.  The parameters are then those before that step.  With ``resume``: a
            damaged checkpoint, or one that was made with other settings, each named.
        KeyboardInterrupt, SystemExit: with ``out``, once SIGINT or SIGTERM (exit code 143) was
            obeyed after the step at hand; the message says how to go on.
    """
    chosen = translate(AEVB() if objective is None else objective)
    require_program(program)
    _check_options(locals())
    folder = None if out is None else folder_for(out, resume=resume)
    program.to(device=device, dtype=dtype)
    rows = as_rows(x, program)
    batches = Batches(x, program, batch_size, seed)
    num_steps, num_samples = _budget(samples, epochs, steps, batches)

    _, example, _, _ = batches(0)
    materialize(program, example)
    parameters = trainable(program)
    require_possible_data(program, rows)
    held_out = None if validation is None else as_rows(validation, program)
    if held_out is not None:
        require_possible_data(program, held_out)
    state = EMPTY
    if isinstance(chosen, Objective) and type(chosen).init is not Objective.init:
        with NoiseMode(keyed(seed, -1)), seeded(seed, -1):  # steps count from 0
            state = chosen.init(program, rows)
    step = make_step(program, chosen, engine, example, rows_of(state, batches(0)[0]))
    if step.reason:
        logger.info("engine %s: %s", step.engine, step.reason)
    loop = Loop(
        program=program,
        parameters=parameters,
        objective=chosen,
        step=step,
        batches=batches,
        state=state,
        optimizer=_make_optimizer(optimizer, parameters, lr),
        clip=clip,
        prior=weight_prior,
        scale=plate_scale(program, example),
        seed=seed,
        validation=held_out,
        evaluate_every=evaluate_every or max(1, num_steps // 20),
        record_every=max(1, num_steps // 200),
        patience=early_stopping,
    )
    options = _options_of(loop.optimizer)  # before a schedule changes them
    loop.scheduler = None if schedule is None else schedule(loop.optimizer)
    manifest = manifest_of(
        program,
        x,
        objective=repr(chosen) if isinstance(chosen, Objective) else type(chosen).__name__,
        engine=step.engine,
        engine_reason=step.reason,
        optimizer=type(loop.optimizer).__name__,
        optimizer_options=options,
        schedule=None if schedule is None else type(loop.scheduler).__name__,
        lr=lr,
        batch_size=batches.batch_size,
        weight_prior=weight_prior,
        clip=clip,
        seed=seed,
        validation_digest=None if validation is None else data_digest(validation),
        row=form_of(example),
    )
    if folder is not None and resume:
        go_on(folder, loop, manifest, num_steps)
    with (
        keeping(loop, manifest, num_steps, folder, checkpoint_every),
        reporter(progress, num_samples, label=type(chosen).__name__) as report,
    ):
        loop.listeners = [report, *callbacks]
        stopped = loop.run(num_steps)
    warn_at_floor(program, example)
    manifest |= {**loop.progress(), "stopped": stopped}
    return Run(program, loop.history.frame(), manifest, loop.state)


def _make_optimizer(
    optimizer: Callable[..., torch.optim.Optimizer], parameters: Parameters, lr: float
) -> torch.optim.Optimizer:
    values = list(parameters.values())
    make: Callable[..., Any] = optimizer
    if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
        try:
            return make(values, lr=lr, fused=True)
        except (TypeError, RuntimeError):  # this class, or this device, has no fused kernel
            return make(values, lr=lr)
    made = make(values)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer returned {type(made).__name__}, expected a torch.optim.Optimizer: pass a "
            "class such as torch.optim.Adam, or a callable on parameters"
        )
    return made


def _options_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What the optimizer was made with, by name: plain values."""
    options: dict[str, Any] = {}
    for number, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            if name not in ("params", *SWITCHES):
                plain = value.tolist() if isinstance(value, torch.Tensor) else value
                options[f"{name} of group {number}" if number else name] = plain
    return options


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _budget(
    samples: int | None, epochs: float | None, steps: int | None, batches: Batches
) -> tuple[int, int]:
    """(updates, samples) of the run; an update at an epoch's end counts fewer rows."""
    whole, size = batches.num_data, batches.batch_size
    if epochs is not None:
        samples = round(epochs * whole)
    if samples is not None:
        full, rest = divmod(samples, whole)
        return max(1, full * batches.per_epoch + -(-rest // size)), samples
    number = int(steps or 0)
    full, rest = divmod(number, batches.per_epoch)
    return number, full * whole + min(rest * size, whole)


def _check_options(options: dict[str, Any]) -> None:
    numbers = ("samples", "epochs", "steps", "batch_size", "lr", "clip", "weight_prior", "seed",
               "evaluate_every", "early_stopping")  # fmt: skip
    for name in numbers:
        value = options[name]
        optional = name not in ("batch_size", "lr", "weight_prior", "seed")
        if (value is None and optional) or _is_number(value):
            continue
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected a number")
    if int(options["seed"]) != options["seed"] or not -(2**62) < options["seed"] < 2**62:
        raise ValueError(f"seed is {options['seed']!r}, expected a whole number below 2**62")
    budget = {name: options[name] for name in ("samples", "epochs", "steps")}
    given = {name: value for name, value in budget.items() if value is not None}
    if len(given) != 1:
        raise ValueError(
            f"the budget is {given or 'not given'}, expected exactly one of samples, epochs and "
            "steps, such as samples=150_000"
        )
    if options["early_stopping"] is not None and options["validation"] is None:
        raise ValueError("early_stopping needs held-out data: pass validation=data.validation")
    for name in ("resume", "checkpoint_every"):
        if options[name] and options["out"] is None:
            raise ValueError(f"{name} needs a folder: pass out=")
    positive = ("lr", "clip", "batch_size", "evaluate_every", "early_stopping", "checkpoint_every")
    for name, value in {**given, **{name: options[name] for name in positive}}.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}, expected a positive finite number")
    for name in ("samples", "steps", "batch_size", "evaluate_every", "early_stopping"):
        value = options[name]
        if value is not None and int(value) != value:
            raise ValueError(f"{name} is {value}, expected a whole number")
    if not (options["weight_prior"] >= 0 and math.isfinite(options["weight_prior"])):
        raise ValueError(f"weight_prior is {options['weight_prior']}, expected 0 or a precision")
