r"""Where gradients come from: one signature, three sources, the same numbers.

A source turns (parameters, batch, state, key) into gradients and summed statistics, and moves
nothing.  The noise depends on the key alone, so the sources see the same draws:

=========== ======================================================================
"pyro"      ``pyro.infer.SVI`` computes loss and gradients: the reference, ``svi.py``
"eager"     the captured graph, operation by operation; where a program cannot be
            captured, its handlers run each time
=========== ======================================================================

The graph as machine code comes with the update inside: ``fused.py``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn, no_grad

from pyro_vae.engine.capture import Graph
from pyro_vae.engine.functions import Sums, WeightPrior, gradient_function, refresh_function
from pyro_vae.noise import Key, Noise, NoiseMode, keyed, seeded
from pyro_vae.objectives.base import Objective, State
from pyro_vae.program.calling import Parameters
from pyro_vae.program.rows import Rows


class GradientSource:
    """Gradients of one objective; subclasses say how they come about.

    Attributes:
        engine: its name.
        reason: why this one, in a line; empty where it is what was asked for.
        noise: from a key to the noise of its draws.
    """

    engine: str
    reason: str
    noise: Callable[..., Callable[[int, Noise], Tensor]] = staticmethod(keyed)

    def grads(
        self, params: Parameters, x: Rows, weight: Tensor, state: State, key: Key
    ) -> tuple[Parameters, Sums]:
        """Gradients and summed statistics."""
        raise NotImplementedError

    def refresh(
        self, params: Parameters, x: Rows, weight: Tensor, state: State, key: Key
    ) -> tuple[dict[str, Tensor], Sums]:
        """New rows of the objective's state and summed statistics."""
        raise NotImplementedError

    def on(self, program: nn.Module) -> GradientSource:
        """The source for this program; one function of the parameters serves all that are alike."""
        return self


class GraphSource(GradientSource):
    """A captured graph, run operation by operation."""

    engine = "eager"

    def __init__(self, graph: Graph, reason: str = "") -> None:
        self.graph, self.reason = graph, reason

    def grads(self, params, x, weight, state, key):
        return self._run(self.graph.grads, params, x, weight, state, key)

    def refresh(self, params, x, weight, state, key):
        return self._run(self.graph.refresh, params, x, weight, state, key)

    def _run(self, lifted, params, x, weight, state, key):
        with no_grad():
            if lifted.kept:  # draws left in the graph come from torch's generator
                with seeded(*key):
                    return lifted(params, x, weight, *state, noise=lifted.draw(key, self.noise))
            return lifted(params, x, weight, *state, noise=lifted.draw(key, self.noise))


class HandlerSource(GradientSource):
    """The program's handlers run at every step: for what no graph can hold."""

    engine = "eager"

    def __init__(
        self, program: nn.Module, objective: Objective, prior: WeightPrior, reason: str
    ) -> None:
        self.reason = reason
        self._grads = gradient_function(program, objective, prior)
        self._refresh = refresh_function(program, objective)

    def grads(self, params, x, weight, state, key):
        with NoiseMode(self.noise(*key)), seeded(*key):
            return self._grads(params, x, weight, *state)

    def refresh(self, params, x, weight, state, key):
        with NoiseMode(self.noise(*key)), seeded(*key):
            return self._refresh(params, x, weight, *state)
