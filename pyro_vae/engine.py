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

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyro_vae.compiling import compiled, pays
from pyro_vae.lifting import Lifted, Refusal, lift, nudged, others
from pyro_vae.noise import NoiseMode, keyed, seeded
from pyro_vae.objectives.base import Objective, State
from pyro_vae.program import Rows, call_with, map_rows, materialize, num_rows
from pyro_vae.traces import DataScale

logger = logging.getLogger("pyro_vae")

Parameters = dict[str, Tensor]
Sums = dict[str, Tensor]


def trainable(program: nn.Module) -> Parameters:
    """The parameters that are to be learnt, by name.

    Raises:
        ValueError: where there are none.
    """
    parameters: Parameters = {n: p for n, p in program.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError(
            f"{type(program).__name__} has no parameter that requires a gradient: register its "
            "networks as attributes of the module, or pass them by name to pv.Program"
        )
    return parameters


@dataclass(frozen=True)
class WeightPrior:
    """N(0, 1 / precision) on weight matrices: what it adds to the gradient of the data's loss."""

    precision: float = 0.0
    num_data: int = 1

    def add(
        self, grads: Parameters, params: Parameters, weight: Tensor, scale: float
    ) -> tuple[Parameters, Tensor]:
        """The gradients with the prior's, and the norm of all of them together."""
        if self.precision:
            # Without a subsampled plate a batch stands for its rows; with one, for all N.
            rows = weight.sum() / self.num_data if scale == 1.0 else 1.0
            share = self.precision * rows
            grads = {n: g + share * params[n] if g.dim() >= 2 else g for n, g in grads.items()}
        # By rows first: a compiler sums long vectors with care that takes longer than the sum.
        by_rows = [torch.linalg.vector_norm(g, dim=-1) if g.dim() else g for g in grads.values()]
        norms = [torch.linalg.vector_norm(g) for g in by_rows]
        return grads, torch.linalg.vector_norm(torch.stack(norms))


NO_PRIOR = WeightPrior()


def gradient_function(
    program: nn.Module, objective: Objective, prior: WeightPrior = NO_PRIOR
) -> Callable[..., Any]:
    """``grads`` as Python that still runs the program's handlers and draws noise as it goes."""

    def grads(
        params: Parameters, x: Rows, weight: Tensor, rows: dict, shared: dict
    ) -> tuple[Parameters, Sums]:
        with torch.enable_grad():
            leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
            with DataScale() as scale:
                loss, stats = call_with(program, leaves, objective.terms, x, State(rows, shared))
            total = (weight * loss).sum()
            if scale.value != 1.0:  # N / B counts the padding; N / (rows that are there) does not
                total = total * (scale.value * len(weight) / weight.sum())
            gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        found = {
            name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(leaves.items(), gradients, strict=True)
        }
        with torch.no_grad():
            found, norm = prior.add(found, params, weight, scale.value)
            return found, {**sums_of(loss, weight, stats), "grad_norm": norm * weight.sum()}

    return grads


def refresh_function(program: nn.Module, objective: Objective) -> Callable[..., Any]:
    """``refresh`` as Python that still runs the program's handlers."""

    def refresh(
        params: Parameters, x: Rows, weight: Tensor, rows: dict, shared: dict
    ) -> tuple[dict[str, Tensor], Sums]:
        fixed = {name: p.detach() for name, p in params.items()}
        new, stats = call_with(program, fixed, objective.refresh, x, State(rows, shared))
        return {name: value.detach() for name, value in new.items()}, sums_of(None, weight, stats)

    return refresh


def sums_of(loss: Tensor | None, weight: Tensor, stats: dict[str, Tensor]) -> Sums:
    """Statistics summed over the rows that count."""
    sums = {name: (weight * value.detach()).sum() for name, value in stats.items()}
    if loss is not None:
        sums["loss"] = (weight * loss.detach()).sum()
    sums["weight"] = weight.sum()
    return sums


@dataclass(frozen=True)
class Graph:
    """A captured step.  ``graph.grads(params, x, weight, rows, shared, noise=noise)``.

    Attributes:
        grads: the gradient function; ``grads.draw(key)`` gives the noise that belongs to a key.
        refresh: the refresh function, where the objective has one.
    """

    grads: Lifted
    refresh: Lifted | None


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
        A :class:`Graph`, or a :class:`~pyro_vae.lifting.Refusal` with the reason: control flow
        that depends on data, or Python values that change from run to run.
    """
    materialize(program, x)
    params = {name: p.detach() for name, p in trainable(program).items()}
    rows, shared = objective.init(program, x) if state is None else state
    weight = torch.ones(num_rows(x), dtype=next(iter(params.values())).dtype, device=_device(x))

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


def _device(x: Rows) -> torch.device:
    return pytree.tree_leaves(x)[0].device


# --- rows in chunks -----------------------------------------------------------------------------


class RowFunction:
    """``function(program, rows)`` for many batches, without gradients.

    The first two calls of a form (shapes and dtypes) run the program's handlers; one that comes
    oftener is captured and runs as a graph where it can, and compiled where so many ``calls`` as
    are expected repay that.  In each case its noise depends on the key alone.
    """

    def __init__(
        self, program: nn.Module, function: Callable[[nn.Module, Any], Any], calls: int = 0
    ) -> None:
        # As they are, and no detached copies: pyro.module warns of parameters without gradient.
        self._parameters: Parameters = dict(program.named_parameters())
        self._expected = calls
        self._calls: dict[tuple, int] = {}
        self._graphs: dict[tuple, Lifted] = {}

        def run(parameters: Parameters, rows: Any) -> Any:
            with torch.no_grad():
                return call_with(program, parameters, function, rows)

        self._run = run

    def __call__(self, rows: Any, *key: int) -> Any:
        form = tuple((t.shape, t.dtype) for t in pytree.tree_leaves(rows))
        self._calls[form] = self._calls.get(form, 0) + 1
        if self._calls[form] == 3:  # a capture costs some tenths of a second
            moved = nudged(self._parameters)
            probes = [(moved, other) for other in others(rows)]
            lifted = lift(self._run, self._parameters, rows, probes=probes)
            if isinstance(lifted, Lifted) and not lifted.kept:
                self._graphs[form] = self._perhaps_compiled(lifted, rows)
        if form in self._graphs:
            graph = self._graphs[form]
            with torch.no_grad():
                return graph(self._parameters, rows, noise=graph.draw(key))
        with NoiseMode(keyed(*key)), seeded(*key), pyro.validation_enabled(False):
            return self._run(self._parameters, rows)

    def _perhaps_compiled(self, lifted: Lifted, rows: Any) -> Lifted:
        if not pays({lifted: self._expected}):
            return lifted
        code = compiled(lifted, self._parameters, rows)
        if isinstance(code, Refusal):
            logger.info("not compiled: %s", code)
            return lifted
        return code


def row_chunks(x: Rows, size: int) -> Iterator[tuple[int, Rows]]:
    """Cut ``x`` into pieces of exactly ``size`` rows: ``(rows that count, rows)``.

    The last piece repeats the last row, so that one captured graph serves all.
    """
    total = num_rows(x)
    size = min(size, total)
    for start in range(0, total, size):
        index = torch.arange(start, start + size, device=_device(x)).clamp_max(total - 1)
        rows = map_rows(partial(torch.index_select, dim=0, index=index), x)
        yield min(size, total - start), rows
