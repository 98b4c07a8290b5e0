"""Loops side by side, all of them answered by one step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from pyro_vae.engine.learner import Ask, NotFinite
from pyro_vae.engine.steps import Step
from pyro_vae.training.loop import Loop
from pyro_vae.turns import in_turn
from pyro_vae.turns.state import Whole

Renewed = Callable[[Step], Step]


def in_lockstep(
    loops: Sequence[Loop], step: Step, num_steps: int, renewed: Renewed | None = None
) -> str:
    """Run loops side by side, all of them answered by one step; why they ended.

    Args:
        loops: which.
        step: the step.
        num_steps: the budget.
        renewed: from a step to the one to go on with, once listeners have been told a record and
            may have changed a program.
    """
    run = lockstep(loops, step, num_steps, renewed)
    while True:
        try:
            next(run)
        except StopIteration as end:
            return end.value


def lockstep(
    loops: Sequence[Loop], step: Step, num_steps: int, renewed: Renewed | None = None
) -> Generator[int, None, str]:
    """The same bit by bit: it yields how many updates each of the loops has just taken."""
    # A turn for each step, so that a long training keeps no other thread waiting.
    in_turn(step.bind, [loop.learner for loop in loops])
    programs = [Whole.of(loop.learner.program) for loop in loops]
    turns = [loop.turns(num_steps) for loop in loops]
    sends = [each.send for each in turns]
    told = 0
    try:
        asks = _next(sends, [None] * len(loops))
        while not isinstance(asks, str):
            started = time.perf_counter()
            try:
                answers = in_turn(step.answer, asks)
            except ValueError as error:  # of a distribution, it may be, that got no number
                in_turn(_explain, step, error, asks)
                raise
            most = step.most_at_once(asks[0], time.perf_counter() - started)
            updates = sum(not ask.refresh for ask in asks[0])
            asks = _next(sends, [(answer, most) for answer in answers])
            if renewed is not None and loops[0].told > told and not isinstance(asks, str):
                told, other = loops[0].told, renewed(step)
                if other is not step or step.displaced():
                    if other is not step:
                        in_turn(step.release)
                    step = other
                    in_turn(step.bind, [loop.learner for loop in loops])
            yield updates
    except BaseException as error:
        for program in programs:
            in_turn(program.put_back)
        for each in turns:  # they book what was done before it, and undo what was begun
            with contextlib.suppress(BaseException):
                each.throw(error)
        raise
    finally:
        in_turn(step.release)
    return asks


def _explain(step: Step, error: ValueError, asks: Sequence[Sequence[Ask]]) -> None:
    """Tell an error what was made before it; raise it anew where it can be said of what it is."""
    try:
        if step.made and not isinstance(error, NotFinite):
            learner, answers = step.made[-1]
            learner.explain(error, asks[len(step.made) - 1][len(answers)])
    except NotFinite as found:
        error = found
        raise
    finally:
        if isinstance(error, NotFinite):
            error.made = step.made


def _next(
    sends: Sequence[Callable[[Any], list[Ask]]], what: Sequence[Any]
) -> list[list[Ask]] | str:
    """What all loops ask for next, or why one of them ended."""
    asks, ends = [], []
    for send, value in zip(sends, what, strict=True):
        try:
            asks.append(send(value))
        except StopIteration as end:
            ends.append(end.value)
    # A callback of one ends all of them, when all have booked this step.
    return ends[0] if ends else asks
