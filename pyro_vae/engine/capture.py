r"""The engine: an objective's step on a program as one pure function of tensors.

:func:`capture` runs the Pyro program under an objective once and keeps what the handlers did to
tensors.  Out come exactly two functions,

.. code-block:: text

    grads  (params, x, weight, rows, shared, noise) -> (grads, sums)
    refresh(params, x, weight, rows, shared, noise) -> (rows, sums)

without handlers, Python state, generator or optimizer: so they can be compiled, replicated with
``vmap``, resumed, and compared number by number with Pyro's own ``SVI``.

``weight`` (B,) is 1, or 0 for a padding row.  ``sums`` are statistics summed over the batch, with
the loss, the weight, and the norm of the whole gradient times the weight among them.  Gradients
are those of the sum over the batch, times the plate's scale, as in Pyro.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.engine.functions import NO_PRIOR, WeightPrior, gradient_function, refresh_function
from pyro_vae.graphs.lifted import Lifted, Refusal
from pyro_vae.graphs.lifting import holds, lift
from pyro_vae.graphs.probing import nudged, others
from pyro_vae.graphs.products import in_bfloat16
from pyro_vae.objectives.base import Objective, State
from pyro_vae.program.calling import (
    Parameters,
    call_with,
    left_as_it_was,
    materialize,
    trainable,
)
from pyro_vae.program.remembered import changed, put_back, remembered
from pyro_vae.program.rows import Rows, device_of, num_rows
from pyro_vae.turns import taking_turns


@dataclass(frozen=True)
class Graph:
    """A captured step.  ``graph.grads(params, x, weight, rows, shared, noise=noise)``.

    Attributes:
        grads: the gradient function; ``grads.draw(key)`` gives the noise that belongs to a key.
        refresh: the refresh function, where the objective has one.
        exact: the gradient function that programs are compared with, where ``grads`` is a rough
            one.
    """

    grads: Lifted
    refresh: Lifted | None
    exact: Lifted | None = None

    def at(self, precision: str) -> Graph:
        """The same with gradients whose large products are in that precision."""
        if precision == "highest":
            return self
        return Graph(in_bfloat16(self.grads), self.refresh, exact=self.grads)


@taking_turns
def capture(
    program: nn.Module,
    objective: Objective,
    x: Rows,
    state: State | None = None,
    prior: WeightPrior = NO_PRIOR,
) -> Graph | Refusal:
    """Capture an objective's step on a program for batches of the form of ``x``.

    Args:
        program: a :class:`~pyro_vae.program.Program`, or any module with ``model`` and ``guide``.
        objective: the objective; attributes that change are frozen as they are now.
        x: an example batch.
        state: an example state for these rows (default: ``objective.init``).
        prior: of the weights.

    Returns:
        A :class:`Graph`, or a :class:`~pyro_vae.graphs.Refusal` with the reason: control flow
        that depends on data, or Python values that change from run to run.
    """
    materialize(program, x)
    before = remembered(program)
    with left_as_it_was(program, parameters=False):  # the program runs some times
        graph = _captured(program, objective, x, state, prior)
        if isinstance(graph, Refusal) or not changed(before, after := remembered(program)):
            return graph
        _captured(program, objective, x, state, prior)  # what its first run sets stays
        said = changed(after, remembered(program))
    if not said:
        return graph
    put_back(program, before)
    return Refusal(f"the program changes {said} as it runs, which a graph would freeze")


def still_holds(
    graph: Graph, program: nn.Module, objective: Objective, prior: WeightPrior, args: tuple
) -> bool:
    """Whether a graph says what the program says now, at (x, weight, rows, shared).

    Somebody may have changed an attribute that was frozen into it.
    """
    params = {name: p.detach() for name, p in trainable(program).items()}
    function = gradient_function(program, objective, prior)
    with left_as_it_was(program, parameters=False):
        if not holds(function, graph.exact or graph.grads, (params, *args)):
            return False
        refresh = refresh_function(program, objective)
        return graph.refresh is None or holds(refresh, graph.refresh, (params, *args))


def _captured(
    program: nn.Module, objective: Objective, x: Rows, state: State | None, prior: WeightPrior
) -> Graph | Refusal:
    params = {name: p.detach() for name, p in trainable(program).items()}
    rows, shared = objective.init(program, x) if state is None else state
    weight = torch.ones(num_rows(x), dtype=next(iter(params.values())).dtype, device=device_of(x))

    args = (params, x, weight, rows, shared)
    moved = nudged(params)
    probes = [(moved, x, weight, rows, shared) for x, rows in others((x, rows))]
    grads = lift(gradient_function(program, objective, prior), *args, probes=probes)
    if isinstance(grads, Refusal):
        return grads
    if not objective.refresh_every:
        return Graph(grads, None)
    refresh = lift(refresh_function(program, objective), *args, probes=probes)
    return refresh if isinstance(refresh, Refusal) else Graph(grads, refresh)


def capture_unit(
    program: nn.Module, objective: Objective, x: Rows, state: State
) -> Lifted | Refusal:
    """Capture ``objective.unit`` as a graph of (params, x, rows)."""

    def unit(params: Parameters, x: Rows, rows: dict[str, Tensor]) -> Any:
        return call_with(program, params, objective.unit, x, rows)  # type: ignore[arg-type]

    params = {name: p.detach() for name, p in trainable(program).items()}
    moved = nudged(params)
    probes = [(moved, *other) for other in others((x, state.rows))]
    return lift(unit, params, x, state.rows, probes=probes)
