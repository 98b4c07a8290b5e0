r"""A whole training step as one graph: gradients, their checks, and the update in place.

.. code-block:: text

    (params, x, weight, rows, shared, noise, numbers, count, optimizer's state) -> sums

Parameters and the optimizer's state are written in place.  A step whose loss or gradient is not
finite writes nothing, and its sums say so.  Python is left with drawing noise, choosing rows and
reading a handful of numbers.

Replicas are the same graph under ``vmap``: every tensor has a leading dimension of R, and the
programs and optimizers of the R loops hold views of what is stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from pyro_vae.compiling import compiled, machine_code
from pyro_vae.engine import Graph, capture_unit, sums_of, trainable
from pyro_vae.lifting import Lifted, Refusal
from pyro_vae.loop import Loop
from pyro_vae.noise import keyed, seeded
from pyro_vae.objectives.base import Objective
from pyro_vae.steps import Answer, Ask, Step, stack
from pyro_vae.updates import Rule, bind, numbers_of, rebind, unbind

Flat = Callable[..., Sequence[Tensor]]


def _update_function(
    lifted: Lifted, num_params: int, rule: Rule, clip: float | None
) -> tuple[Callable[..., list[Tensor]], list[str]]:
    """Flat tensors -> new parameters, count and state, stacked sums; once run, the sums' names."""
    names: list[str] = []
    width = len(rule.names)

    def update(num_inputs: int, *tensors: Tensor) -> list[Tensor]:
        inputs, (given, count, *state) = tensors[:num_inputs], tensors[num_inputs:]
        numbers = given.unbind()
        grads, sums = lifted.unflatten(lifted.graph(*inputs))
        names[:] = sums
        norm = sums["grad_norm"] / sums["weight"]
        good = norm.isfinite() & sums["loss"].isfinite()
        share = 1.0 if clip is None else (clip / norm).clamp_max(1.0)
        moved, memory = [], []
        for i, (p, grad) in enumerate(zip(inputs[:num_params], grads.values(), strict=True)):
            old = tuple(state[i * width : (i + 1) * width])
            new_p, new = rule(p, grad * share, old, numbers)
            moved.append(torch.where(good, new_p, p))
            memory += [torch.where(good, n, o) for n, o in zip(new, old, strict=True)]
        return [*moved, torch.where(good, count + 1, count), *memory, stack(sums)[1]]

    return update, names


def _in_place(graph: Flat, num_params: int, num_inputs: int) -> Flat:
    """The same function, writing what is new where the old was."""

    def run(*tensors: Tensor) -> list[Tensor]:
        *new, sums = graph(*tensors)
        old = [*tensors[:num_params], *tensors[num_inputs + 1 :]]
        for target, value in zip(old, new, strict=True):
            target.copy_(value)
        return [sums]

    return run


def fuse(
    graph: Graph,
    program: nn.Module,
    objective: Objective,
    rule: Rule,
    clip: float | None,
    ask: Ask,
    *,
    replicas: int = 0,
    machine: bool = True,
) -> FusedStep | Refusal:
    """The step of a captured graph with its update inside, compiled where ``machine`` says so.

    Args:
        graph: the captured step of one program, with the prior of its weights.
        program: that program.
        objective: what it was captured from.
        rule: the optimizer's update.
        clip: the largest norm of the whole gradient.
        ask: what the loop asks for, as an example.
        replicas: R programs side by side, each tensor stacked; 0 is one program as it is.
        machine: compile, or run operation by operation.
    """
    kept = graph.grads.kept + (graph.refresh.kept if graph.refresh else ())
    if replicas and kept:
        return Refusal(
            f"{', '.join(kept)} draws by itself, which would be one draw for all of them"
        )
    params = [p.detach().clone() for p in trainable(program).values()]
    inputs = [*params, *pytree.tree_leaves(ask[1:4])]
    update, names = _update_function(graph.grads, len(params), rule, clip)
    memory = [torch.ones_like(p) for p in params for _ in rule.names]
    numbers = params[0].new_full((rule.num_numbers,), 0.5)
    count = torch.zeros((), device=params[0].device)
    tensors = [*inputs, *graph.grads.draw(ask.key), numbers, count, *memory]
    num_inputs = len(tensors) - len(memory) - 2
    update = partial(update, num_inputs)
    if replicas:
        tensors = [torch.stack([t] * replicas) for t in tensors]
        update = torch.vmap(update)
    with torch.no_grad(), seeded(*ask.key):  # tracing runs the draws that stay in the graph
        code: Flat = _in_place(make_fx(update)(*tensors), len(params), num_inputs)
        refresh: Any = None if graph.refresh is None else graph.refresh.run
        if machine:
            whole = make_fx(code)(*[t.clone() for t in tensors])
            made = machine_code(whole, *tensors, kept=bool(kept))
            if isinstance(made, Refusal):
                return made
            code = made
        if refresh is not None and replicas:
            given = [*inputs, *graph.refresh.draw(ask.key)]  # type: ignore[union-attr]
            refresh = make_fx(torch.vmap(refresh))(*[torch.stack([t] * replicas) for t in given])
    unit = None
    if machine and graph.refresh is not None and not replicas:
        unit = _compiled_unit(program, objective, ask)
        if isinstance(unit, Refusal):
            return unit
    return FusedStep(
        graph, objective, rule, tuple(names), code, refresh, unit, bool(replicas), machine
    )


def _compiled_unit(program: nn.Module, objective: Objective, ask: Ask) -> Lifted | Refusal | None:
    """What a refresh calls over and over, where it is one function: quicker to compile than all."""
    if objective.unit is None:
        return None
    unit = capture_unit(program, objective, ask.x, ask.state)
    if isinstance(unit, Refusal):
        return unit
    params = {name: p.detach() for name, p in trainable(program).items()}
    return compiled(unit, params, ask.x, ask.state.rows)


class FusedStep(Step):
    """Gradients and update as one graph, for one loop or for replicas in lockstep."""

    reason = ""

    def __init__(self, graph, objective, rule, names, code, refresh, unit, stacked, machine):
        self.graph: Graph = graph
        self.objective: Objective = objective
        self.rule: Rule = rule
        self.names: tuple[str, ...] = names
        self.stacked: bool = stacked
        self.engine = "compiled" if machine else "eager"
        self._code: Flat = code
        self._refresh: Any = refresh
        self._kept = tuple(bool(g.kept) if g else False for g in (graph.grads, graph.refresh))
        self._unit: Lifted | None = unit

    def bind(self, loops: Sequence[Loop]) -> None:
        """Work in place on the parameters and the optimizers' states of these loops.

        Replicas' parameters and states become views of stacked tensors.
        """
        super().bind(loops)
        bound = [bind(loop.optimizer, self.rule) for loop in loops]
        params = [[p.detach() for p in loop.parameters.values()] for loop in loops]
        self._params, self._memory = params[0], bound[0]
        self._taken = [int(count) for count, *_ in bound]
        if self.stacked:
            self._params = [torch.stack(ps) for ps in zip(*params, strict=True)]
            self._memory = [torch.stack(ms) for ms in zip(*bound, strict=True)]
            for r, loop in enumerate(loops):
                for p, whole in zip(loop.parameters.values(), self._params, strict=True):
                    p.data = whole[r]
                rebind(loop.optimizer, self.rule, [whole[r] for whole in self._memory])
        lead = (len(loops),) if self.stacked else ()
        self._numbers = self._params[0].new_zeros(*lead, self.rule.num_numbers)

    def release(self) -> None:
        for r, loop in enumerate(self._loops):
            own = [whole[r] for whole in self._memory] if self.stacked else self._memory
            unbind(loop.optimizer, self.rule, own)
            if self.stacked:  # a view would be saved with the parameters of all the others
                for p in loop.parameters.values():
                    p.data = p.data.clone()

    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        inputs = [pytree.tree_leaves(ask[1:4]) for ask in asks]
        return self._refreshed(asks, inputs) if asks[0].refresh else self._updated(asks, inputs)

    def _updated(self, asks: Sequence[Ask], inputs: list[list[Tensor]]) -> list[Answer]:
        self._taken = [taken + 1 for taken in self._taken]
        numbers = [
            numbers_of(loop.optimizer, self.rule, taken)
            for loop, taken in zip(self._loops, self._taken, strict=True)
        ]
        now = torch.tensor(numbers, dtype=self._numbers.dtype)
        self._numbers.copy_(now if self.stacked else now[0])
        lifted = self.graph.grads
        given = self._together(
            [[*i, *lifted.draw(a.key)] for i, a in zip(inputs, asks, strict=True)]
        )
        tensors = [*self._params, *given, self._numbers, *self._memory]
        (sums,) = self._run(self._code, asks[0], *tensors)
        return [(None, self.names, s) for s in (sums.unbind() if self.stacked else [sums])]

    def _refreshed(self, asks: Sequence[Ask], inputs: list[list[Tensor]]) -> list[Answer]:
        if self._unit is not None:
            return [self._by_units(self._unit, asks[0])]
        lifted: Any = self.graph.refresh
        given = self._together(
            [[*i, *lifted.draw(a.key)] for i, a in zip(inputs, asks, strict=True)]
        )
        results = self._run(self._refresh, asks[0], *self._params, *given)
        each = zip(*[r.unbind() for r in results], strict=True) if self.stacked else [results]
        return [(rows, *stack(sums)) for rows, sums in map(lifted.unflatten, each)]

    def _by_units(self, lifted: Lifted, ask: Ask) -> Answer:
        """A refresh in Python around its one costly function, compiled."""
        fixed = [*self._params, *pytree.tree_leaves(ask.x)]

        def unit(rows: dict[str, Tensor]) -> Any:
            return lifted.unflatten(lifted.run(*fixed, *rows.values()))

        with torch.no_grad():
            refresh: Any = self.objective.refresh  # of those that have a unit
            rows, stats = refresh(None, ask.x, ask.state, unit=unit, noise=keyed(*ask.key))
            return rows, *stack(sums_of(None, ask.weight, stats))

    def _together(self, each: list[list[Tensor]]) -> list[Tensor]:
        """One tensor each for all replicas."""
        return [torch.stack(ts) for ts in zip(*each, strict=True)] if self.stacked else each[0]

    def _run(self, code: Flat, ask: Ask, *tensors: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            if self._kept[ask.refresh]:  # draws left in the graph come from torch's generator
                with seeded(*ask.key):
                    return code(*tensors)
            return code(*tensors)
