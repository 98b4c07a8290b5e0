r"""One training step, four ways: ``Step`` objects with the same signature and the same numbers.

A step turns (parameters, batch, state, key) into gradients and summed statistics.  The noise of a
step depends on its key = (seed, replica, step) alone, so the engines see the same draws:

=========== ======================================================================
"pyro"      ``pyro.infer.SVI`` computes loss and gradients: the reference
"eager"     the captured graph, operation by operation; where a program cannot be
            captured, its handlers run at every step
"compiled"  the captured graph as machine code
=========== ======================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyro_vae.engine.capture import Graph
from pyro_vae.engine.gradients import Sums, WeightPrior, gradient_function, refresh_function
from pyro_vae.engine.learner import Answer, Ask, stack
from pyro_vae.noise import NoiseMode, keyed, seeded
from pyro_vae.objectives.base import Objective, State
from pyro_vae.program.calling import Parameters
from pyro_vae.program.rows import Rows

if TYPE_CHECKING:
    from pyro_vae.training.loop import Loop


class Step:
    """What the training loop talks to; subclasses say how gradients come about.

    Attributes:
        engine: its name.
        reason: why this engine, one line; empty where it is what was asked for.
    """

    engine: str
    reason: str

    def grads(
        self, params: Parameters, x: Rows, weight: Tensor, state: State, key: tuple
    ) -> tuple[Parameters, Sums]:
        """Gradients and summed statistics."""
        raise NotImplementedError

    def refresh(
        self, params: Parameters, x: Rows, weight: Tensor, state: State, key: tuple
    ) -> tuple[dict[str, Tensor], Sums]:
        """New rows of the objective's state and summed statistics."""
        raise NotImplementedError

    def bind(self, loops: Sequence[Loop]) -> None:
        """Work for these loops from now on."""
        self._loops = loops

    def release(self) -> None:
        """Leave the loops' parameters and optimizers as if they had been alone."""

    def answer(self, asks: Sequence[Sequence[Ask]]) -> list[list[Answer]]:
        """Do what each loop asks for, one after another."""
        return [
            [self._answer(loop, ask) for ask in its]
            for loop, its in zip(self._loops, asks, strict=True)
        ]

    def most_at_once(self, asks: Sequence[Ask], seconds: float) -> int:
        """How many updates a loop may ask for at a time, after these asks took so long."""
        return 1

    def _answer(self, loop: Loop, ask: Ask) -> Answer:
        if ask.refresh:
            rows, sums = self.refresh(loop.parameters, *ask[1:])
            return rows, *stack(sums)
        grads, sums = self.grads(loop.parameters, *ask[1:])
        return loop.apply(grads, sums, ask)


class GraphStep(Step):
    """A captured graph, run operation by operation."""

    engine = "eager"

    def __init__(self, graph: Graph, reason: str = "") -> None:
        self.graph, self.reason = graph, reason

    def grads(self, params, x, weight, state, key):
        return self._run(self.graph.grads, params, x, weight, state, key)

    def refresh(self, params, x, weight, state, key):
        return self._run(self.graph.refresh, params, x, weight, state, key)

    def _run(self, lifted, params, x, weight, state, key):
        with torch.no_grad():
            if lifted.kept:  # draws left in the graph come from torch's generator
                with seeded(*key):
                    return lifted(params, x, weight, *state, noise=lifted.draw(key))
            return lifted(params, x, weight, *state, noise=lifted.draw(key))


class HandlerStep(Step):
    """The program's handlers run at every step: for what no graph can hold."""

    engine = "eager"

    def __init__(
        self, program: nn.Module, objective: Objective, prior: WeightPrior, reason: str
    ) -> None:
        self.reason = reason
        self._grads = gradient_function(program, objective, prior)
        self._refresh = refresh_function(program, objective)

    def grads(self, params, x, weight, state, key):
        with NoiseMode(keyed(*key)), seeded(*key):
            return self._grads(params, x, weight, *state)

    def refresh(self, params, x, weight, state, key):
        with NoiseMode(keyed(*key)), seeded(*key):
            return self._refresh(params, x, weight, *state)
