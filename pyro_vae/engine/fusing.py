r"""A whole training step as one graph: gradients, their checks, and the update in place.

.. code-block:: text

    (params, x, weight, rows, shared, noise, numbers, count, optimizer's state) -> sums

Parameters and the optimizer's state are written in place, each in one pass over memory, before
anybody knows whether what is written is a number; the sums say so afterwards.  A second pass would
cost a tenth of a step.

Replicas are the same graph under ``vmap``: every tensor has a leading dimension of R.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyro_vae.engine.capture import Graph, capture_unit
from pyro_vae.engine.fused import FusedStep, form_of, leaves_of
from pyro_vae.engine.learner import Ask, Learner, stack
from pyro_vae.engine.updates import Rules
from pyro_vae.graphs.compiling import Flat, compiled, machine_code, machine_code_of_either
from pyro_vae.graphs.lifted import Lifted, Refusal
from pyro_vae.graphs.tracing import traced
from pyro_vae.noise import seeded
from pyro_vae.objectives.base import Objective
from pyro_vae.program.calling import trainable
from pyro_vae.torch_internals import sources_forgotten


def _update_function(
    lifted: Lifted, num_params: int, rule: Rules, clip: float | None
) -> tuple[Callable[..., list[Tensor]], list[str]]:
    """Flat tensors -> new parameters, count and state, stacked sums; once run, the sums' names."""
    names: list[str] = []
    width = len(rule.names)

    def update(num_inputs: int, *tensors: Tensor) -> list[Tensor]:
        inputs, (now, count, *state) = tensors[:num_inputs], tensors[num_inputs:]
        numbers = now.unbind()
        grads, sums = lifted.unflatten(lifted.graph(*inputs))
        names[:] = sums
        if clip is not None:
            share = (clip * sums["weight"] / sums["grad_norm"]).clamp_max(1.0)
            grads = {name: grad * share for name, grad in grads.items()}
        given = zip(inputs[:num_params], batched(state, width, num_params), strict=True)
        made = [
            rule.moved(i, p, grad, old, numbers)
            for i, ((p, old), grad) in enumerate(zip(given, grads.values(), strict=True))
        ]
        bad = ~torch.stack([_sum_of(p).isfinite() for p, _ in made])
        good = sums["grad_norm"].isfinite() & sums["loss"].isfinite()
        named = -(1 + bad.int().argmax()) * sums["weight"]  # as `require_finite` reads it
        norm = torch.where(good & bad.any(), named, sums["grad_norm"])
        memory = [tensor for _, new in made for tensor in new]
        moved = [p for p, _ in made]
        return [*moved, count + 1, *memory, stack({**sums, "grad_norm": norm})[1]]

    return update, names


def batched(state: Sequence[Tensor], width: int, most: int) -> list[tuple[Tensor, ...]]:
    """The optimizer's tensors, parameter by parameter."""
    if not width:
        return [()] * most
    return [tuple(state[i : i + width]) for i in range(0, len(state), width)]


def _sum_of(p: Tensor) -> Tensor:
    """A number where all entries are, in a precision in which a sum of many does not overflow.

    By rows first, as the norm of the gradient: then both are a part of the pass that updates.
    """
    wide = torch.promote_types(p.dtype, torch.float32)
    return p.sum(dim=-1, dtype=wide).sum() if p.dim() else p.to(wide)


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
    learner: Learner,
    rule: Rules,
    ask: Ask,
    *,
    replicas: int = 0,
    machine: bool = True,
) -> FusedStep | Refusal:
    """The step of a captured graph with its update inside, compiled where ``machine`` says so.

    Args:
        graph: the captured step of one program, with the prior of its weights.
        learner: that program with its objective, and the largest norm of a gradient.
        rule: the optimizer's update.
        ask: what is asked for, as an example.
        replicas: R programs side by side, each tensor stacked; 0 is one program as it is.
        machine: compile, or run operation by operation.
    """
    program, objective = learner.program, learner.objective
    kept = graph.grads.kept + (graph.refresh.kept if graph.refresh else ())
    if replicas and kept:
        return Refusal(
            f"{', '.join(kept)} draws by itself, which would be one draw for all of them"
        )
    params = [p.detach().clone() for p in trainable(program).values()]
    inputs = [*params, *leaves_of(ask)]
    update, names = _update_function(graph.grads, len(params), rule, learner.clip)
    memory = [torch.ones_like(p) for p in params for _ in rule.names]
    numbers = params[0].new_full((rule.num_numbers,), 0.5)
    count = torch.zeros((), device=params[0].device)
    tensors = [*inputs, *graph.grads.draw(ask.key), numbers, count, *memory]
    num_inputs = len(tensors) - len(memory) - 2
    update = partial(update, num_inputs)
    if replicas:
        tensors = [torch.stack([t] * replicas) for t in tensors]
        update = torch.vmap(update)
    # Tracing runs the draws that stay in the graph.
    with torch.no_grad(), seeded(*ask.key), sources_forgotten():
        pure = traced(update, *tensors)
        code: Flat = _in_place(pure, len(params), num_inputs)
        refresh: Any = None if graph.refresh is None else graph.refresh.run
        if machine:
            whole = traced(code, *[t.clone() for t in tensors])
            options = {"kept": bool(kept), "checked": False, "rough": graph.grads.rough}
            # torch's compiler may write a weight before the last product that reads it (2.11), and
            # fails on some loops whose results are written over their inputs (2.13).
            made, in_place = machine_code_of_either(whole, pure, *tensors, **options)
            if not (in_place or isinstance(made, Refusal)):
                made = _in_place(made, len(params), num_inputs)
            if isinstance(made, Refusal):
                return made
            code = made
        if refresh is not None and replicas:
            given = [*inputs, *graph.refresh.draw(ask.key)]  # type: ignore[union-attr]
            refresh = traced(torch.vmap(refresh), *[torch.stack([t] * replicas) for t in given])
    unit = None
    if machine and graph.refresh is not None:
        unit = _compiled_unit(program, objective, ask, replicas)  # type: ignore[arg-type]
        if isinstance(unit, Refusal):
            return unit
    forms = [form_of(t) for t in tensors]
    written = forms[: len(params)] + forms[num_inputs + 1 :]
    given = forms[len(params) : num_inputs]
    return FusedStep(
        graph, objective, rule, tuple(names), code, refresh, unit, bool(replicas), machine,
        (written, given),
    )  # fmt: skip


def _compiled_unit(
    program: nn.Module, objective: Objective, ask: Ask, replicas: int
) -> Lifted | Refusal | None:
    """What a refresh calls over and over, where it is one function: quicker to compile than all."""
    if objective.unit is None:
        return None
    unit = capture_unit(program, objective, ask.x, ask.state)
    if isinstance(unit, Refusal):
        return unit
    params = {name: p.detach() for name, p in trainable(program).items()}
    if not replicas:
        return compiled(unit, params, ask.x, ask.state.rows)
    leaves = pytree.tree_leaves((params, ask.x, ask.state.rows))
    tensors = [torch.stack([t] * replicas) for t in leaves]
    code = machine_code(traced(torch.vmap(unit.graph), *tensors), *tensors)
    if isinstance(code, Refusal):
        return code
    unit.run = code
    return unit
