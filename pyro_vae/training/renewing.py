"""The step of programs that callbacks have changed: a graph is compared with them, and made anew.

Whatever a callback touched, an attribute, a module's function, a tensor, a global variable: the
program is run once and compared with its graph, after each record that callbacks were told.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from pyro_vae import errors
from pyro_vae.engine.capture import still_holds
from pyro_vae.engine.choosing import require_alike
from pyro_vae.engine.functions import WeightPrior
from pyro_vae.engine.learner import Ask
from pyro_vae.engine.sources import HandlerSource
from pyro_vae.engine.steps import OneByOne, Step
from pyro_vae.objectives.base import Objective
from pyro_vae.program.calling import trainable
from pyro_vae.program.remembered import changed, fixed_tensors, remembered
from pyro_vae.training.loop import Loop
from pyro_vae.turns import in_turn

MOST = 3  # graphs that are made anew, which takes some tenths of a second, or some seconds compiled


class Renewal:
    """Which step to go on with once callbacks have been told a record.

    Args:
        loops: side by side.
        making: makes the step of the program as it is.
        ask: an example of what is asked.
        prior: of the weights.
        processes: how many train together.
    """

    def __init__(
        self,
        loops: Sequence[Loop],
        making: Callable[[], Step],
        ask: Ask,
        prior: WeightPrior,
        processes: int,
    ) -> None:
        self._programs = [loop.learner.program for loop in loops]
        self._loops, self._making, self._prior = loops, making, prior
        self._rows, self._processes = (ask.x, ask.weight, *ask.state), processes
        self._ask = ask
        self._objective = loops[0].learner.objective
        self._memory, self._made = self._now(), 0

    def _now(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return [(remembered(p), fixed_tensors(p)) for p in self._programs]

    def __call__(self, step: Step) -> Step:
        """The same step where it still does what the program says.

        Raises:
            ValueError: what is trained is another; or not all programs have changed alike.
        """
        before, self._memory = self._memory, self._now()
        both = list(zip(before, self._memory, strict=True))
        values = [changed(was[0], now[0]) for was, now in both]
        tensors = [changed(was[1], now[1]) for was, now in both]
        self._require(values, tensors)
        objective = self._objective
        if step.graph is None or not isinstance(objective, Objective):
            return step
        copied = any(tensors) and step.engine == "compiled"
        if not copied and all(
            in_turn(still_holds, step.graph, p, objective, self._prior, self._rows)
            for p in self._programs
        ):
            return step
        if self._processes > 1:
            raise self._apart("the program or the objective")
        self._made += 1
        if self._made <= MOST:
            return in_turn(self._making)
        what = next(filter(None, [*values, *tensors]), "") or "the program or the objective"
        reason = f"a callback has changed {what} again and again, so the program's handlers run"
        warnings.warn(
            f"step {self._loops[0].progress.steps}: {reason}, which is slower: a number that is "
            "annealed is cheapest as a buffer in a distribution's parameter, and KL terms by "
            "kl_warmup",
            errors.PyroVaeWarning,
            stacklevel=errors.users_line(),
        )
        # Batches that are filled up stay with what leaves the filling out of a batch norm.
        handlers = HandlerSource(self._programs[0], objective, self._prior, reason)
        return OneByOne(handlers, getattr(step, "partial", None))

    def _require(self, values: Sequence[str], tensors: Sequence[str]) -> None:
        for loop in self._loops:
            mine, now = loop.learner.parameters, trainable(loop.learner.program)
            if mine.keys() != now.keys() or any(now[n] is not p for n, p in mine.items()):
                raise ValueError(
                    "a callback has changed which parameters are trained, which an optimizer is "
                    "not told: train in two runs, and freeze or replace between them"
                )
        said = next(filter(None, [*values, *tensors]), "")
        if said and self._processes > 1:
            raise self._apart(said)
        for each in (values, tensors):
            if any(each) and not all(each):
                try:  # what a callback counts for itself matters to nobody
                    in_turn(require_alike, self._programs, self._objective, self._ask)
                except ValueError as error:
                    number = next(n for n, one in enumerate(each) if not one)
                    raise ValueError(
                        f"a callback has changed {next(filter(None, each))} of some of the "
                        f"{len(each)} replicas, and not of number {number}: change "
                        "record.program, which is each one's own"
                    ) from error

    def _apart(self, said: str) -> ValueError:
        return ValueError(
            f"a callback has changed {said} in process 0 alone, where callbacks run, so "
            f"{self._processes} processes would train different programs: train in one process"
        )
