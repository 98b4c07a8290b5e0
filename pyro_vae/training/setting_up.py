"""A training before its first step: data and options are looked at, the loop is made, and told."""

from __future__ import annotations

from typing import Any

from torch import nn

from pyro_vae.checking.guards import (
    require_all_data,
    require_own_parameters,
    require_possible_data,
)
from pyro_vae.densities.look import Look
from pyro_vae.densities.missing import readable_rows
from pyro_vae.engine.choosing import suited
from pyro_vae.engine.learner import Learner
from pyro_vae.engine.ranks import current
from pyro_vae.engine.steps import Step
from pyro_vae.noise import NoiseMode, Stream, keyed, seeded
from pyro_vae.objectives.base import EMPTY, Objective, name_of, objective_record
from pyro_vae.optimizers import make_optimizer, options_of
from pyro_vae.program.calling import materialize, require_learnable, require_program, trainable
from pyro_vae.program.rows import Rows, first_rows
from pyro_vae.program.stored import Stored
from pyro_vae.runs.held import objective_code, optimizer_record
from pyro_vae.runs.manifest import data_digest, form_of, manifest_of
from pyro_vae.training.batches import Batches
from pyro_vae.training.loop import Loop
from pyro_vae.training.schedules import is_told, schedule_record, scheduler_of
from pyro_vae.training.settings import Settings


def set_up(
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


def described(loop: Loop, x: Any, settings: Settings, step: Step) -> dict[str, Any]:
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
        matmul_precision=settings.matmul_precision,
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
